"""How much runs overfit: their errors on their own dataset and on other episodes of the task.

    python demo/collect.py --seed 2000000 --output more.hdf5
    python benchmark/held_out.py runs/*saq_* --dataset-path more.hdf5

Prints a line per run, with two errors on the run's own data and on the other file: the VQ-VAE's reconstruction error,
summed over action dimensions, and the behavior policy's cross-entropy on their nearest codes, in nats. Guessing has a
cross-entropy of log K. A run far above it has taken too many steps for its dataset. For data without an environment
(--env-id none) the other episodes are those that the run has held out, and no file is needed.
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks
from saq_bc import fail, mlp
from vqvae import CHUNK, VQVAE


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # folders of finished runs of saq_*.py
    dataset_path: str | None = None  # file of the same task, with episodes that the runs have not seen
    dataset_filter: str | None = None  # robomimic files: filter key of these episodes


@cache
def read(env_id: str, path: str | None, options: tuple[tuple[str, Any], ...]):
    """The dataset of a run's id or of a file, with options of `tasks.make`, which are hashable here.

    Returns two pairs of observations (M, observation_dim) and actions (M, action_dim): those to train on, and those
    that the task holds out, which are empty if it has an environment.
    """
    task = tasks.make(env_id, path, **dict(options))
    data = task.dataset()
    own = torch.from_numpy(data["observations"]), torch.from_numpy(data["actions"])
    return own, tuple(map(torch.from_numpy, task.held_out))


@torch.no_grad()
def errors(vqvae: VQVAE, behavior: torch.nn.Module, observations: torch.Tensor, actions: torch.Tensor) -> list[float]:
    """Reconstruction error and cross-entropy."""
    codes = vqvae.encode(observations, actions)
    reconstruction = (vqvae.decode(observations, codes) - actions).square().sum(1).mean().item()
    nats = 0.0
    for obs, taken in zip(observations.split(CHUNK), codes.split(CHUNK)):
        nats += F.cross_entropy(behavior(obs), taken, reduction="sum").item()
    return [reconstruction, nats / len(codes)]


def main(args: Args) -> None:
    if not args.runs:
        fail("name at least one folder of a finished run of saq_*.py")
    lines = []
    for folder in args.runs:
        try:
            vqvae = VQVAE.load(folder / "vqvae.pt")
            model = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
            known = SimpleNamespace(**model["args"])
            behavior = mlp(vqvae.standardize, known.codebook_size, known)
            behavior.load_state_dict(model["behavior"])
        except Exception as error:  # damaged files fail in many ways
            fail(f"{folder} is not the folder of a finished run of saq_*.py ({error!r:.200})")
        options = {name: getattr(known, name) for name in tasks.OPTIONS}
        options["observation_keys"] = tuple(known.observation_keys or ())
        try:
            own, other = read(known.env_id, known.dataset_path, tuple(options.items()))
            if not other:
                if args.dataset_path is None:
                    fail(f"name a file with other episodes of {known.env_id} with --dataset-path")
                options["dataset_filter"] = args.dataset_filter
                other, _ = read(known.env_id, args.dataset_path, tuple(options.items()))
        except (tasks.TaskError, OSError) as error:
            fail(error)
        reconstruction, entropy = errors(vqvae, behavior, *own)
        held_reconstruction, held_entropy = errors(vqvae, behavior, *other)
        lines.append(f"{reconstruction:10.4f}{held_reconstruction:12.4f}{entropy:10.2f}{held_entropy:12.2f}   {folder}")
    print(f"\n{'reconstruction error':>22}{'cross-entropy':>22}")
    print(f"{2 * '      data    held out'}   run", *lines, sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
