"""Data without an environment, such as a real robot's: policies are evaluated on held-out trajectories."""

from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.common import TaskError
from tasks.evaluation import Policy, act
from tasks.lerobot_file import is_lerobot_folder
from tasks.task import Task
from tasks.transitions import Transitions, clip_outliers, trajectory_lengths

ENV_ID = "none"
NO_LIMIT = 10**9


class NoEnv(Task):
    """Data without an environment, in D4RL's, robomimic's or LeRobot's layout. One trajectory in ten is held out.

    The score is the share of the variance of held-out actions that a policy explains, in percent: 0 for their mean, 100
    for the actions themselves. It measures imitation and says nothing about returns. Action bounds are the smallest and
    largest values in the data, apart from outliers, which are clipped. The default step limit is the length of the
    longest trajectory, set by `dataset`.
    """

    has_env = False
    max_episode_steps = None

    def __init__(self, env_id: str | None, path: Path | None = None, **options):
        if path is None:
            raise TaskError(f"the id '{ENV_ID}' is for data without an environment: name the data with --dataset-path")
        super().__init__(env_id or ENV_ID, path, **options)

    @classmethod
    def matches(cls, env_id: str | None, path: Path | None) -> bool:
        return env_id == ENV_ID or (env_id is None and path is not None and is_lerobot_folder(path))

    def read(self) -> Transitions:
        transitions = self.read_file(self.max_episode_steps or NO_LIMIT)
        ends = transitions.columns["ends"]
        if len(ends) < 2:
            raise TaskError(f"{self.path} has too few transitions: one to train on and one to hold out are needed")
        if self.max_episode_steps is None:
            if not transitions.ordered:
                raise TaskError(
                    f"{self.path}: rows are not in time order, so the length of an episode is unknown; set it with "
                    "--max-episode-steps"
                )
            self.max_episode_steps = int(trajectory_lengths(ends).max())
        return transitions

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        raise TaskError(f"{self.env_id}: there is no environment in which to run or film a policy")

    def dataset(self) -> dict[str, np.ndarray]:
        """`Task.dataset` without every tenth trajectory.

        With fewer than ten trajectories the last one is held out, with one trajectory its last tenth.
        """
        transitions = self.read_float32()
        actions = transitions.columns["actions"]
        # A single outlier as a bound would squeeze all other actions into a small part of [-1, 1].
        transitions.notes += clip_outliers("actions", actions, gap=1.0)
        low, high = actions.min(0), actions.max(0)
        constant = low == high  # such a dimension is scaled to 0
        margin = constant * np.maximum(1, 1e-3 * np.abs(low))
        action_space = gym.spaces.Box(low - margin, high + margin, dtype=np.float32)
        observation_shape = transitions.columns["observations"].shape[1:]
        observation_space = gym.spaces.Box(-np.inf, np.inf, observation_shape, np.float32)
        data = self.prepare(transitions, observation_space, action_space)
        for i in np.flatnonzero(constant):  # a trained policy then keeps the value exactly
            self.action_low[i] = self.action_high[i] = float(low[i])
        ends = data["ends"]
        if ends.sum() == 1:
            self.notes.append("the data are one trajectory, whose last tenth is held out")
            ends[int(0.9 * len(ends)) - 1] = True
        trajectory = np.cumsum(ends) - ends  # its number, for each row
        held_out = trajectory % 10 == 9
        if ends.sum() < 10:
            held_out = trajectory == ends.sum() - 1
        self.held_out = data["observations"][held_out], data["actions"][held_out]
        self.held_out_ends = np.flatnonzero(ends[held_out])
        self.eval_episodes = len(self.held_out_ends)
        return {key: column[~held_out] for key, column in data.items()}

    def evaluate(
        self, policy: Policy, episodes: int | None = None, seed: int = 1, video: Path | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays of `Task.evaluate` with one entry per held-out trajectory, for the first `episodes` of them.

        The return is minus the squared error of the actions, summed over the dimensions and steps of a trajectory and
        divided by the mean length of the trajectories. So the mean of the returns weighs all steps equally. Seeds are
        numbers of trajectories.
        """
        ends = self.held_out_ends[: episodes or self.eval_episodes]
        steps = ends[-1] + 1
        observations, actions = self.held_out
        batches = [act(policy, observations[i : min(i + 1024, steps)]) for i in range(0, steps, 1024)]
        errors = np.square(np.concatenate(batches) - actions[:steps])
        self.dimension_errors = errors.mean(0, dtype=float)
        lengths = np.diff(ends, prepend=-1)
        returns = -np.add.reduceat(errors.sum(1, dtype=float), ends + 1 - lengths)
        returns /= lengths.mean()
        scores = 100 * (1 + returns / (self.variance().sum() or 1.0))
        return {"seeds": np.arange(len(ends)), "returns": returns, "lengths": lengths, "scores": scores}

    def variance(self) -> np.ndarray:
        """Variance (a,) of each dimension of the held-out actions."""
        return self.held_out[1].var(0, dtype=float)

    def score(self, returns: np.ndarray) -> np.ndarray:
        """100 for each trajectory of the file."""
        return np.full(len(returns), 100.0)

    def describe_scores(self) -> str:
        return f"; {len(self.held_out[1])} transitions held out"

    def print_scores(self, scores: dict[str, np.ndarray]) -> None:
        """Print the squared error of actions as a share of their variance, and that of each action dimension.

        The first is a line per entry of `scores`. The second follows from the last call of `evaluate`.
        """
        variance = self.variance()
        print(f"\n{'squared error of held-out actions':<40}{'trajectories':>14}")
        for name, values in scores.items():
            share = 1 - np.mean(values) / 100
            print(f"{name:<25}{share * variance.sum():.4g}, {share:.1%} of their variance {len(values):>14}")
        varies = variance > 0
        shares = np.divide(self.dimension_errors, variance, where=varies, out=np.zeros(len(variance)))
        texts = [f"{share:.1%}" if moves else "constant" for share, moves in zip(shares, varies)]
        print("by action dimension:", ", ".join(f"{i}: {text}" for i, text in enumerate(texts)), end="")
        print(f"; mean {shares[varies].mean():.1%}" if varies.any() else "")
