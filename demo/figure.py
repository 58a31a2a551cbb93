"""Pictures of trained runs: what the codes of a VQ-VAE decode to, and frames of a policy.

They need matplotlib (pip install matplotlib). Frames are taken from the video.gif that --capture-video writes.

    python demo/figure.py --run runs/fetch-pick-and-place-demo-v0__saq_cql__1__...
    python demo/figure.py --picture strip --run runs/Lift__saq_bc__1__... --output demo/lift.png
    python demo/figure.py --picture strip --run runs/fetch-... --output demo/pick_and_place.png --crop 0.15 0.65 0.2 0.7
    python demo/figure.py --picture strip --run runs/cube-single-... --output demo/cube.png
"""

import sys
from pathlib import Path
from typing import Literal, NamedTuple

import imageio.v3 as imageio
import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks
from vqvae import VQVAE


class Args(NamedTuple):
    run: Path  # folder of a finished run: for codebook on the demo dataset, for strip with a video.gif
    picture: Literal["codebook", "strip"] = "codebook"  # actions by code, or six frames of the video's first episode
    output: Path = Path("demo/codebook.png")  # picture to write
    crop: tuple[float, float, float, float] = (0, 1, 0, 1)  # strip: top, bottom, left, right of each frame to keep


def draw_codebook(vqvae: VQVAE, path: Path) -> None:
    """Two kinds of state: the data's actions there, coloured by code, and what each code decodes to."""
    data = tasks.make().dataset()
    observations, actions = torch.from_numpy(data["observations"]), torch.from_numpy(data["actions"])
    codes = vqvae.encode(observations, actions)
    colours = plt.get_cmap("hsv")(np.random.default_rng(0).permutation(len(vqvae.codebook)) / len(vqvae.codebook))
    # Reaching: the block is 8 cm to the left of the gripper and 8 cm below it. Carrying: the block is grasped, and
    # the goal is 8 cm to the right and 10 cm above.
    reaching = (observations[:, 3:6] - observations[:, :3] - torch.tensor([0.0, 0.08, -0.08])).norm(dim=1)
    carrying = (observations[:, 25:28] - observations[:, 3:6] - torch.tensor([0.0, -0.08, 0.1])).norm(dim=1)
    carrying += 10 * (observations[:, 3:6] - observations[:, :3]).norm(dim=1)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharex=True, sharey=True, layout="constrained")
    for axis, distance, title in zip(
        axes, (reaching, carrying), ("block to the left and below", "holding the block, goal to the right and above")
    ):
        near = distance.argsort()[:400]
        state = observations[near[:1]].expand(len(vqvae.codebook), -1)
        decoded = vqvae.decode(state, torch.arange(len(vqvae.codebook)))
        used = codes[near].unique()
        axis.scatter(*actions[near][:, [1, 2]].T, s=9, color=colours[codes[near]], alpha=0.5)
        axis.scatter(*decoded[used][:, [1, 2]].T, s=70, color=colours[used], marker="D", edgecolor="black")
        axis.set(title=title, xlabel="action: left (+) or right (-)", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
        axis.set_aspect("equal")
    axes[0].set_ylabel("action: up (+) or down (-)")
    figure.suptitle("dots: actions in the data, coloured by code; diamonds: what each code decodes to")
    figure.savefig(path, dpi=110)


def draw_strip(video: Path, path: Path, crop: tuple[float, float, float, float], frames: int = 6) -> None:
    """Frames side by side, evenly spaced from the first to the last of the video's first episode, and cropped."""
    images = imageio.imread(video)
    durations = [imageio.immeta(video, index=i)["duration"] for i in range(len(images))]
    end = np.argmax(np.array(durations) > durations[0])  # the last frame of an episode is shown for longer
    height, width = images.shape[1:3]
    top, bottom, left, right = (round(share * size) for share, size in zip(crop, (height, height, width, width)))
    chosen = images[np.linspace(0, end, frames).round().astype(int), top:bottom, left:right]
    imageio.imwrite(path, np.concatenate(chosen, axis=1))


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    if args.picture == "codebook":
        draw_codebook(VQVAE.load(args.run / "vqvae.pt"), args.output)
    else:
        draw_strip(args.run / "video.gif", args.output, args.crop)
