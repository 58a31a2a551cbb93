"""A file without an environment, such as a real robot's: policies are evaluated on held-out trajectories."""

import functools
from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.d4rl import read_d4rl
from tasks.task import Policy, Task, act, fail

ENV_ID = "none"


class Own(Task):
    """An HDF5 file in D4RL's layout, one trajectory in ten of which is held out.

    The score is the share of the variance of held-out actions that a policy explains, in percent: 0 for their mean, 100
    for the actions themselves. It measures imitation and says nothing about returns. Action bounds are the smallest and
    largest values in the file. The default step limit is the length of the longest trajectory.
    """

    env_id, max_episode_steps = ENV_ID, 0

    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def contents(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        rows, returns = read_d4rl(self.path, self.max_episode_steps or 10**9)  # no limit, no cuts
        if len(rows["ends"]) < 2:
            fail(f"{self.path} has too few transitions: one to train on and one to hold out are needed")
        lengths = np.diff(np.flatnonzero(np.append(rows["ends"][:-1], True)), prepend=-1)
        self.max_episode_steps = self.max_episode_steps or int(lengths.max())
        return rows, returns

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return self.contents

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        fail(f"--env-id {ENV_ID} has no environment: it cannot be rolled out or recorded")

    def spaces(self) -> tuple[gym.spaces.Box, gym.spaces.Box]:
        observations, actions = self.contents[0]["observations"], self.contents[0]["actions"]
        low, high = actions.min(0), actions.max(0)
        still = low == high
        bounds = gym.spaces.Box(low - still, high + still, dtype=np.float32)
        return gym.spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32), bounds

    def dataset(self) -> dict[str, np.ndarray]:
        """`Task.dataset` without each tenth trajectory; of fewer than ten the last is held out, of one its tenth."""
        data = super().dataset()
        del self.contents  # frees the file's own arrays
        ends = data["ends"]
        if ends.sum() == 1:
            ends[int(0.9 * len(ends)) - 1] = True
        trajectory = np.cumsum(ends) - ends
        kept = trajectory % 10 != 9 if ends.sum() >= 10 else trajectory != ends.sum() - 1
        self.held_out = data["observations"][~kept], data["actions"][~kept]
        self.held_out_ends = np.flatnonzero(ends[~kept])
        self.eval_episodes = len(self.held_out_ends)
        return {key: column[kept] for key, column in data.items()}

    def evaluate(
        self, policy: Policy, episodes: int | None = None, seed: int = 1, video: Path | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays of `Task.evaluate`, with one entry per held-out trajectory, for the first `episodes` of them.

        A return is minus the squared error of the actions, summed over dimensions and steps, over the mean number of
        steps, so that the mean return weighs all steps alike. Seeds are numbers of trajectories.
        """
        ends = self.held_out_ends[: episodes or self.eval_episodes]
        observations, actions = (column[: ends[-1] + 1] for column in self.held_out)
        chosen = np.concatenate([act(policy, observations[i : i + 1024]) for i in range(0, len(actions), 1024)])
        lengths = np.diff(ends, prepend=-1)
        returns = -np.add.reduceat(np.square(chosen - actions).sum(1, dtype=float), ends + 1 - lengths)
        returns /= lengths.mean()
        scores = 100 * (1 + returns / (self.variance() or 1.0))
        return {"seeds": np.arange(len(ends)), "returns": returns, "lengths": lengths, "scores": scores}

    def variance(self) -> float:
        """Variance of the held-out actions, summed over dimensions."""
        return float(self.held_out[1].var(0, dtype=float).sum())

    def score(self, returns: np.ndarray) -> np.ndarray:
        """100 for each of the file's own trajectories."""
        return np.full(len(returns), 100.0)

    def describe(self, data: dict[str, np.ndarray]) -> str:
        return f"{super().describe(data)}; {len(self.held_out[1])} transitions held out"

    def print_scores(self, scores: dict[str, list[float]]) -> None:
        """Print the squared error of actions, and its share of their variance, one line per entry of `scores`."""
        print(f"\n{'squared error of held-out actions':<40}{'trajectories':>14}")
        for name, values in scores.items():
            share = 1 - np.mean(values) / 100
            print(f"{name:<25}{share * self.variance():.4g}, {share:.1%} of their variance {len(values):>14}")
