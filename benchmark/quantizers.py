"""The ablation's quantizers: other codes in place of the VQ-VAE's, under the unchanged algorithm files.

    action-only   a VQ-VAE without the observation: one codebook of actions for all states
    uniform       a grid of equal bins over the range of the dataset's actions, without training

Policies and Q still see the observation. A grid's codes are never soft, so ablation.sh compares all on nearest codes.
Name the quantizer, then the algorithm, then the flags of its file:

    python benchmark/quantizers.py action-only bc --vqvae-steps 3000 --total-steps 3000
    python benchmark/quantizers.py uniform iql --bc-steps 3000 --total-steps 3000
"""

import importlib.util
import math
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the slow imports without a traceback

import torch
import torch.nn as nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import vqvae
from vqvae import VQVAE, train_vqvae

ALGORITHMS = ("bc", "iql", "cql", "brac")


class Without(nn.Module):
    """Rows (B, D) without their first columns."""

    def __init__(self, columns: int):
        super().__init__()
        self.columns = columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.columns :]


class ActionOnly(VQVAE):
    """z = e(a), a' = d(z_q): the VQ-VAE with the same loss and training, without the observation."""

    def __init__(self, observation_dim: int, action_dim: int, **settings):
        super().__init__(observation_dim, action_dim, **settings)
        dims = [self.config[name] for name in ("action_dim", "hidden_dim", "embedding_dim")]
        self.encoder = nn.Sequential(Without(observation_dim), *self._mlp(*dims))
        self.decoder = nn.Sequential(Without(observation_dim), *self._mlp(*reversed(dims)))


class Uniform(VQVAE):
    """A grid of equal bins per action dimension, with at most K cells. A code is a cell and decodes to its centre.

    Codes without a cell never occur in the data, and decode to the middle of the range.
    """

    def __init__(self, observation_dim: int, action_dim: int, **settings):
        super().__init__(observation_dim, action_dim, **settings)
        del self.encoder, self.decoder, self.config["embedding_dim"], self.config["hidden_dim"]
        # a parameter, since the algorithm files give the quantizer an optimizer
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
        self.codebook.copy_((low + high) / 2)
        cells = torch.stack(torch.unravel_index(torch.arange(math.prod(bins), device=low.device), bins), 1)
        self.codebook[: len(cells)] = low + (cells + 0.5) * self.width

    @torch.no_grad()
    def encode(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Codes (N,) int64 of actions (N, action_dim), the last dimension's bin counting fastest."""
        tiny = torch.finfo(actions.dtype).tiny  # a dimension that never changes has one bin, of width 0
        index = ((actions - self.low) / self.width.clamp_min(tiny)).clamp_min(0).minimum(self.bins - 1).long()
        cells_per_bin = self.bins.flip(0).cumprod(0).flip(0) // self.bins
        return (index * cells_per_bin).sum(1)

    def soft_codes(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Probabilities (N, K) of codes: 1 for the cell of the action."""
        return nn.functional.one_hot(self.encode(observations, actions), len(self.codebook)).float()

    @torch.no_grad()
    def decode(self, observations: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Actions (N, action_dim), the centres of the cells of codes (N,)."""
        return self.codebook[codes]


def divide(ranges: list[float], cells: int) -> list[int]:
    """Bins per dimension, at most `cells` in product. Greedy: one each, then one more where it lowers the error most.

    Actions spread evenly over a dimension of range r have the mean squared error r^2 / (12 b^2) from b bins' centres.
    """
    bins = [1] * len(ranges)

    def gain(i: int) -> float:
        fits = math.prod(bins) // bins[i] * (bins[i] + 1) <= cells
        return ranges[i] ** 2 * (bins[i] ** -2 - (bins[i] + 1) ** -2) if fits else 0.0

    while gain(best := max(range(len(ranges)), key=gain)) > 0:
        bins[best] += 1
    return bins


def fit_uniform(model: Uniform, observations: torch.Tensor, actions: torch.Tensor, *_, **__) -> None:
    """`train_vqvae` for the grid, which has nothing to train but its range."""
    model.fit(actions)


def take_word(words: Iterable[str]) -> str:
    """Remove the first word of the command line, one of `words`, and append it to the script's name in sys.argv[0]."""
    script, *rest = sys.argv
    if rest and rest[0] in ("-h", "--help"):
        print(sys.modules["__main__"].__doc__.strip())
        raise SystemExit
    if not rest or rest[0] not in words:
        problem = f"it is {rest[0]!r}" if rest else "there is none"
        print(f"error: {script} needs one of {', '.join(words)} as its next word, {problem}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"{script} {rest[0]}", *rest[1:]]
    return rest[0]


def launch(quantizer: type[VQVAE], train: Callable[..., None]) -> None:
    """Run the algorithm file named by the first word of the command line, with `quantizer` in place of VQVAE.

    Args:
        quantizer: constructed, saved, loaded and called as VQVAE is.
        train: called as `train_vqvae` is.
    """
    path = Path(vqvae.__file__).with_name(f"saq_{take_word(ALGORITHMS)}.py")
    vqvae.VQVAE, vqvae.train_vqvae = quantizer, train
    # runpy.run_path would put the file's name in sys.argv[0], which names the run
    spec = importlib.util.spec_from_file_location("__main__", path)
    sys.modules["__main__"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["__main__"])


if __name__ == "__main__":
    quantizers = {"action-only": (ActionOnly, train_vqvae), "uniform": (Uniform, fit_uniform)}
    launch(*quantizers[take_word(quantizers)])
