"""Other quantizers in place of the VQ-VAE, with the algorithm files unchanged. In the ablation this is

    uniform       a grid of equal bins over the range of the dataset's actions, without training

and a VQ-VAE that does not see the observation is a flag of the algorithm files, --no-state-conditioned. Codes of a grid
are never soft, so ablation.sh compares all quantizers on nearest codes. Name the algorithm, then the flags of its file:

    python benchmark/quantizers.py bc --bc-steps 3000
    python benchmark/quantizers.py iql --bc-steps 3000 --rl-steps 3000
"""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae import VQVAE

ALGORITHMS = ("bc", "iql", "cql", "brac")


class Uniform(VQVAE):
    """A grid of equal bins per action dimension, with at most K cells. A code is a cell and decodes to its center.

    Codes without a cell never occur in the data, and decode to the middle of the range.
    """

    def __init__(self, observation_dim: int, action_dim: int, **settings):
        super().__init__(observation_dim, action_dim, **settings)
        del self.encoder, self.decoder, self.config["embedding_dim"], self.config["hidden_dim"]
        # a parameter, because the algorithm files give the quantizer to an optimizer
        self.codebook = nn.Parameter(torch.zeros(self.config["codebook_size"], action_dim), requires_grad=False)
        self.register_buffer("low", torch.zeros(action_dim))
        self.register_buffer("width", torch.ones(action_dim))  # of a bin
        self.register_buffer("bins", torch.ones(action_dim, dtype=torch.int64))

    @torch.no_grad()
    def fit(self, actions: torch.Tensor) -> None:
        """Lay the grid over the range of actions (N, action_dim)."""
        low, high = actions.amin(0), actions.amax(0)
        bins = divide((high - low).tolist(), len(self.codebook))
        self.bins.copy_(torch.tensor(bins))
        self.low.copy_(low)
        self.width.copy_((high - low) / self.bins)
        cells = torch.stack(torch.unravel_index(torch.arange(math.prod(bins), device=low.device), bins), 1)
        self.codebook.copy_((low + high) / 2)
        self.codebook[: len(cells)] = low + (cells + 0.5) * self.width

    @torch.no_grad()
    def encode(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Codes (N,) int64 of actions (N, action_dim). The bin of the last dimension counts fastest."""
        tiny = torch.finfo(actions.dtype).tiny  # a dimension that never changes has one bin, with width 0
        cell = ((actions - self.low) / self.width.clamp_min(tiny)).clamp_min(0).minimum(self.bins - 1).long()
        cells_per_bin = self.bins.flip(0).cumprod(0).flip(0) // self.bins
        return (cell * cells_per_bin).sum(1)

    def soft_codes(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Probabilities (N, K) of the codes: 1 for the cell of the action."""
        return F.one_hot(self.encode(observations, actions), len(self.codebook)).float()

    @torch.no_grad()
    def decode(self, observations: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Actions (N, action_dim), the centers of the cells of codes (N,)."""
        return self.codebook[codes]


def divide(ranges: list[float], cells: int) -> list[int]:
    """Bins per dimension, with a product of at most `cells`: one each, then greedily one more where it helps most.

    Actions that are spread evenly over a range r have a mean squared error of r^2 / (12 b^2) with b bins.
    """
    bins = [1] * len(ranges)

    def gain(i: int) -> float:
        """By how much one more bin in dimension i lowers 12 times the error; 0 if there are no cells left for it."""
        if math.prod(bins) // bins[i] * (bins[i] + 1) > cells:
            return 0.0
        return ranges[i] ** 2 * (bins[i] ** -2 - (bins[i] + 1) ** -2)

    while True:
        best = max(range(len(ranges)), key=gain)
        if gain(best) == 0:
            return bins
        bins[best] += 1


def fit_uniform(model: Uniform, observations: torch.Tensor, actions: torch.Tensor, *_, **__) -> None:
    """`train_vqvae` for the grid, which has nothing to train but its range."""
    model.fit(actions)


def main(name: str, quantizer: type[VQVAE], train: Callable[..., None], **fixed) -> None:
    """Run the algorithm file that the first word of the command line names, with another quantizer.

    Args:
        name: of the quantizer; runs are called {name}_{algorithm}.
        quantizer: replaces VQVAE.
        train: replaces `train_vqvae`.
        fixed: arguments of the algorithm file that have one value for this quantizer.
    """
    algorithm, *flags = sys.argv[1:] or [""]
    if algorithm not in ALGORITHMS:
        print(f"error: the first word must be one of {', '.join(ALGORITHMS)}; flags follow", file=sys.stderr)
        raise SystemExit(2)
    module = importlib.import_module(f"saq_{algorithm}")
    args = replace(tyro.cli(module.Args, args=flags, description=sys.modules["__main__"].__doc__), **fixed)
    plain_run = module.Run

    def named_run(_, *settings, **more):
        return plain_run(f"{name}_{algorithm}", *settings, **more)

    module.VQVAE, module.train_vqvae, module.Run = quantizer, train, named_run
    module.main(args)


if __name__ == "__main__":
    main("uniform", Uniform, fit_uniform)
