"""Data for the numeric tests: random batches, and an MDP whose optimum is known."""

from collections.abc import Iterator

import numpy as np
import torch

from vqvae import VQVAE, train_vqvae

GAMMA = 0.9  # of the corridor


def batch(codes: int = 6, rows: int = 32) -> dict[str, torch.Tensor]:
    """Random transitions of 4-dimensional observations, a third of them terminal."""
    return {
        "observations": torch.randn(rows, 4),
        "codes": torch.randint(codes, (rows,)),
        "returns": torch.randn(rows),
        "next_observations": torch.randn(rows, 4),
        "discounts": 0.9 * (torch.rand(rows) < 0.7),
    }


def check_probabilities(loss, data: dict[str, torch.Tensor], codes: int = 6) -> None:
    """What `loss(batch)` gives on probabilities of codes is the mean of what it gives on codes drawn from them."""
    p = torch.randn(len(data["returns"]), codes).softmax(1)
    expected = dict.fromkeys(whole := loss(data | {"codes": p}), 0.0)
    for i, row in enumerate(p):
        for code, chance in enumerate(row):
            alone = loss({name: column[i : i + 1] for name, column in data.items()} | {"codes": torch.tensor([code])})
            expected = {name: value + chance * alone[name].detach() / len(p) for name, value in expected.items()}
    for name, value in whole.items():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-4, atol=1e-5)


class Corridor:
    """Four states and a continuous action: it moves right where |a - best(s)| < 0.4, else it stays; every step costs.

    The last state's good actions end the episode with reward 1, every other step pays -0.05. The data act uniformly at
    random, so that an action is good with probability 0.4 in every state.
    """

    best = np.array([-0.6, 0.5, -0.1, 0.6], np.float32)
    # -0.05 (1 + 0.9 + ...) for the moves before the last, and 1 for that
    optimal_values = np.array([-0.05 * sum(GAMMA**t for t in range(3 - s)) + GAMMA ** (3 - s) for s in range(4)])
    # V(s) = 0.4 (r + gamma V(s + 1)) + 0.6 (-0.05 + gamma V(s))
    random_values = np.zeros(4)
    for _s in (3, 2, 1, 0):
        _moved = 1.0 if _s == 3 else -0.05 + GAMMA * random_values[_s + 1]
        random_values[_s] = (0.4 * _moved + 0.6 * -0.05) / (1 - 0.6 * GAMMA)

    def __init__(self, rows: int = 6000):
        rng = np.random.default_rng(0)
        state = rng.integers(4, size=rows)
        actions = rng.uniform(-1, 1, rows).astype(np.float32)
        right = np.abs(actions - self.best[state]) < 0.4
        terminals = right & (state == 3)
        self.states = torch.from_numpy(state)
        self.observations = torch.eye(4)[state]
        self.actions = torch.from_numpy(actions)[:, None]
        self.returns = torch.from_numpy(np.where(terminals, 1.0, -0.05).astype(np.float32))
        self.next_observations = torch.eye(4)[np.minimum(state + right, 3)]
        self.discounts = torch.from_numpy(GAMMA * (1.0 - terminals.astype(np.float32)))
        self.vqvae = VQVAE(4, 1, codebook_size=16, hidden_dim=64)
        generator = torch.Generator().manual_seed(0)
        train_vqvae(self.vqvae, self.observations, self.actions, 2000, generator=generator)
        self.codes = self.vqvae.encode(self.observations, self.actions)

    def batches(self, steps: int, scale: float = 1.0) -> Iterator[dict[str, torch.Tensor]]:
        """Transitions drawn at random, rewards times `scale`."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            rows = torch.randint(len(self.codes), (256,), generator=generator)
            keys = ("observations", "actions", "codes", "next_observations", "discounts")
            yield {key: getattr(self, key)[rows] for key in keys} | {"returns": scale * self.returns[rows]}

    def code_frequencies(self) -> torch.Tensor:
        """How often each code occurs in each state (4, 16): the best pi_b."""
        counts = torch.zeros(4, 16).index_put_((self.states, self.codes), torch.ones(len(self.codes)), accumulate=True)
        return counts / counts.sum(1, keepdim=True)

    def moves_right(self, codes: torch.Tensor) -> np.ndarray:
        """Whether the actions that codes (4,) stand for, one a state, move right."""
        return np.abs(self.vqvae.decode(torch.eye(4), codes).squeeze(1).numpy() - self.best) < 0.4
