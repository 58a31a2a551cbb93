"""What the numeric tests share: an MDP whose optimum is known, and a stand-in for a task."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from vqvae import VQVAE, train_vqvae

GAMMA = 0.9  # of the corridor


def check_mean_over_codes(loss: Callable[[slice, torch.Tensor], torch.Tensor], batch_size: int, codes: int) -> None:
    """`loss(rows, p)` on probabilities p (B, codes) must be the mean of its values on codes drawn from p."""
    p = torch.randn(batch_size, codes).softmax(1)
    expected = 0.0
    for row in range(batch_size):
        for code in range(codes):
            one_hot = F.one_hot(torch.tensor([code]), codes).float()
            expected += p[row, code] * loss(slice(row, row + 1), one_hot) / batch_size
    torch.testing.assert_close(loss(slice(None), p), expected, rtol=1e-4, atol=1e-5)


def stand_in_task(evaluate: Callable[..., dict[str, np.ndarray]], **attributes) -> SimpleNamespace:
    """A task with what the docstring of `load_task` lists."""
    task = {
        "env_id": "stand-in",
        "max_episode_steps": 300,
        "eval_episodes": 2,
        "dataset_scores": [10.0, 20.0],
        "action_low": [-1.0],
        "action_high": [1.0],
        "print_scores": print,
    }
    return SimpleNamespace(evaluate=evaluate, **{**task, **attributes})


def load_network(module: ModuleType, folder: str | Path, name: str) -> torch.nn.Module:
    """A network that a run has saved: from model.pt, such as q, or else from its checkpoint, such as q_target."""
    model = torch.load(Path(folder) / "model.pt", weights_only=True)
    weights = model.get(name)
    if weights is None:
        checkpoint = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)["modules"]
        weights = {key.removeprefix(f"{name}."): w for key, w in checkpoint.items() if key.startswith(f"{name}.")}
    output_dim = len(weights[list(weights)[-1]])
    standardize = VQVAE.load(Path(folder) / "vqvae.pt").standardize
    network = module.mlp(standardize, output_dim, module.Args(**model["args"]))
    network.load_state_dict(weights)
    return network.requires_grad_(False)


def corridor_value(p_stay: float, state: int) -> float:
    """The value of a policy that stays with this probability: V(s) = p_stay (-0.05 + gamma V(s)) + (1 - p_stay) ..."""
    moved = 1.0 if state == 3 else -0.05 + GAMMA * corridor_value(p_stay, state + 1)
    return ((1 - p_stay) * moved + p_stay * -0.05) / (1 - p_stay * GAMMA)


class Corridor:
    """Four states and a continuous action: it moves right where |a - best(s)| < 0.4, else it stays; every step costs.

    The last state's good actions end the episode with reward 1, every other step pays -0.05. The data act uniformly at
    random, so that an action is good with probability 0.4 in every state.
    """

    best = np.array([-0.6, 0.5, -0.1, 0.6], np.float32)
    optimal_values = np.array([corridor_value(0.0, state) for state in range(4)])
    random_values = np.array([corridor_value(0.6, state) for state in range(4)])

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
        self.terminals = torch.from_numpy(terminals.astype(np.float32))
        self.discounts = GAMMA * (1 - self.terminals)

    def batches(self, steps: int, scale: float) -> Iterator[dict[str, torch.Tensor]]:
        """Transitions drawn at random, rewards times `scale`."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            idx = torch.randint(len(self.actions), (256,), generator=generator)
            yield {
                "observations": self.observations[idx],
                "actions": self.actions[idx],
                "returns": scale * self.returns[idx],
                "next_observations": self.next_observations[idx],
                "discounts": self.discounts[idx],
            }

    def train_vqvae(self) -> VQVAE:
        vqvae = VQVAE.for_data(self.observations, self.actions, codebook_size=16, hidden_dim=64)
        train_vqvae(vqvae, self.observations, self.actions, 1500)
        return vqvae

    def code_frequencies(self, vqvae: VQVAE) -> torch.Tensor:
        """How often each code occurs in each state (4, 16): the best pi_b."""
        codes = F.one_hot(vqvae.encode(self.observations, self.actions), 16).float()
        return torch.stack([codes[self.states == state].mean(0) for state in range(4)])

    def learn(self, module: ModuleType, monkeypatch, **flags) -> SimpleNamespace:
        """Run `module.main` on the corridor.

        Returns:
            moves_right: (4,) bool, whether the policy's action in each state is a good one.
            scale: the factor of rewards.
            q, v, behavior: outputs of the trained networks in the four states.
            vqvae: the VQ-VAE.
        """
        data = {
            "observations": self.observations,
            "actions": self.actions,
            "rewards": self.returns,
            "next_observations": self.next_observations,
            "terminals": self.terminals,
            "ends": torch.ones(len(self.actions), dtype=torch.bool),
        }
        acted = []

        def evaluate(policy, episodes, seed, video):
            acted.append(policy(np.eye(4)).squeeze(1))
            return dict.fromkeys(("seeds", "returns", "lengths", "scores"), np.zeros(episodes))

        task = stand_in_task(evaluate, max_episode_steps=20)
        monkeypatch.setattr(module, "load_task", lambda args, device: (task, data))
        folder = flags["run_dir"]
        result = module.main(module.Args(codebook_size=16, hidden_dim=64, device="cpu", **flags))

        states = torch.eye(4)
        learned = SimpleNamespace(
            moves_right=np.abs(acted[-1] - self.best) < 0.4,
            scale=result.get("reward_scale"),
            vqvae=VQVAE.load(Path(folder) / "vqvae.pt"),
        )
        weights = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)["modules"]
        for name in {key.partition(".")[0] for key in weights} & {"q", "v", "behavior"}:
            setattr(learned, name, load_network(module, folder, name)(states))
        return learned
