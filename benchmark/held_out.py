"""How much runs overfit: errors on their own dataset and on other episodes of the task.

    python demo/collect.py --seed 2000000 --output more.hdf5
    python benchmark/held_out.py runs/*saq_* --dataset-path more.hdf5

Prints a line per run, with two figures on the run's own data and on the other file: the VQ-VAE's reconstruction error,
summed over action dimensions, and the behavior policy's cross-entropy on their nearest codes, in nats. Guessing has
a cross-entropy of log K; a run far above it has taken too many steps for its dataset.
"""

import pickle
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks
from saq_cql import fail, mlp
from vqvae import VQVAE


class Args(NamedTuple):
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # folders of finished runs of saq_*.py
    dataset_path: str  # HDF5 file of the same task, with episodes that the runs have not seen
    dataset_filter: str | None = None  # robomimic files: filter key of these episodes


@cache
def read(env_id: str, path: str | None, key: str | None, names: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations (M, observation_dim) and actions (M, action_dim) of a dataset, by a run's arguments."""
    data = tasks.make(env_id, path, key, list(names) or None).dataset()
    return torch.from_numpy(data["observations"]), torch.from_numpy(data["actions"])


@torch.no_grad()
def errors(
    vqvae: VQVAE, model: dict[str, Any], observations: torch.Tensor, actions: torch.Tensor
) -> tuple[float, float]:
    """Reconstruction error and cross-entropy of a run with the VQ-VAE `vqvae` and the content `model` of model.pt."""
    args = model["args"]
    net = mlp(vqvae.standardize, args["codebook_size"], args["hidden_dim"], args["layer_norm"])
    net.load_state_dict(model["behavior"])
    codes = vqvae.encode(observations, actions)
    parts = zip(observations.split(16384), codes.split(16384), strict=True)
    sums = [F.cross_entropy(net(rows), taken, reduction="sum") for rows, taken in parts]
    error = (vqvae.decode(observations, codes) - actions).square().sum(1).mean().item()
    return error, sum(sums).item() / len(codes)


def main(args: Args) -> None:
    if not args.runs:
        fail("name at least one folder of a finished run of saq_*.py")
    lines = []
    for folder in args.runs:
        try:
            vqvae = VQVAE.load(folder / "vqvae.pt")
            model = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            fail(f"{folder} is not the folder of a finished run of saq_*.py ({error})")
        known = model["args"]
        if known["env_id"] == "none":
            fail(f"{folder} is of data without an environment: its result.json has these errors")
        names = tuple(known["observation_keys"] or ())
        own = read(known["env_id"], known["dataset_path"], known["dataset_filter"], names)
        other = read(known["env_id"], args.dataset_path, args.dataset_filter, names)
        (error, entropy), (held_error, held_entropy) = errors(vqvae, model, *own), errors(vqvae, model, *other)
        lines.append(f"{error:10.4f}{held_error:12.4f}{entropy:10.2f}{held_entropy:12.2f}   {folder}")
    print(f"\n{'reconstruction error':>22}{'cross-entropy':>22}")
    print(f"{2 * '      data    held out'}   run", *lines, sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
