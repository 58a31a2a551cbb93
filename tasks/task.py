"""The base class of all sources: transitions, environment, scores and evaluation of one task."""

import os
from abc import ABC, abstractmethod
from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.common import TaskError, task_errors
from tasks.evaluation import Policy, check_rendering, episode_seeds, record_video, run_episodes
from tasks.files import layout_options, read_file
from tasks.transitions import Transitions, make_float32, trajectory_lengths

MUJOCO_GL = os.environ.get("MUJOCO_GL")  # the user's own setting; robosuite changes the variable
VIDEO_EPISODES = 3
WHAT_OPTIONS_DO = {
    "dataset_filter": "selects demonstrations of robomimic files",
    "observation_keys": "selects observations of robomimic files and LeRobot data",
    "assume_success": "is for LeRobot data",
    "sparse_rewards": "is for OGBench",
}


class Task(ABC):
    """A dataset with the environment and the scores that belong to it. Sources implement `read` and `make_env`.

    Attributes:
        env_id: the task's id.
        path: the dataset's file; None where a package keeps it (Minari).
        max_episode_steps: step limit of the environment; can be changed before `env` or `evaluate` is called.
        min_return, max_return: the returns that score 0 and 100.
        eval_episodes: default number of episodes of an evaluation.
        has_env: whether there is an environment; otherwise policies are evaluated on trajectories that are held out.
        processes: whether evaluation uses one process per environment, for environments with expensive steps.

    Attributes set by `dataset`:
        dataset_returns, dataset_scores: (E,) float64, one entry per trajectory of the file; a single one if the file's
            rows do not follow each other.
        action_low, action_high: lists of a floats, the bounds that the actions -1 and 1 stand for.
        held_out: observations (M, o) and actions (M, a) that are kept out of training; usually empty.
        notes: sentences about the data that the user should read.
    """

    IDS: tuple[str, ...] = ()
    OPTIONS: tuple[str, ...] = ()  # of `tasks.make` that apply to the source, whatever the layout of its file

    max_episode_steps: int
    min_return: float = 0.0
    max_return: float = 1.0
    eval_episodes: int = 100
    has_env: bool = True
    processes: bool = False
    held_out: tuple[()] | tuple[np.ndarray, np.ndarray] = ()

    def __init__(self, env_id: str, path: Path | None = None, **options):
        self.options = {name: value for name, value in options.items() if value}
        for name in self.options:
            if name not in (*self.OPTIONS, *layout_options(path)):
                flag = f"--{name.replace('_', '-')}"
                raise TaskError(f"{flag} {WHAT_OPTIONS_DO[name]}, and does not apply to {path or env_id}")
        self.env_id = env_id
        self.path = path
        self.notes = []

    @classmethod
    def matches(cls, env_id: str | None, path: Path | None) -> bool:
        """Whether this source makes the task of an id, or of an id with a file."""
        return env_id in cls.IDS

    @classmethod
    def ids(cls) -> tuple[str, ...]:
        """The ids that `python -m tasks` lists for this source."""
        return cls.IDS

    @classmethod
    def locate(cls, env_id: str) -> tuple[Path, str | None]:
        """The place of an id's dataset on this machine, which may be empty, and the URL to download it from."""
        raise NotImplementedError

    @abstractmethod
    def read(self) -> Transitions:
        """The dataset, with actions in the environment's own units. Raises TaskError if it cannot be read."""

    def read_file(self, max_episode_steps: int) -> Transitions:
        """The file, in whichever layout it has. One in D4RL's that marks no end is cut every max_episode_steps."""
        return read_file(self.path, max_episode_steps, self.options)

    @abstractmethod
    def make_env(self, render_mode: str | None = None) -> gym.Env:
        """The benchmark's environment, with vector observations and actions in its own units."""

    def dataset(self) -> dict[str, np.ndarray]:
        """Read and check the dataset, and scale its actions.

        Returns:
            Arrays over N transitions, in the order of their trajectories: unless ends[i], row i + 1 is the next step.
            observations, next_observations (N, o) and actions (N, a) float32, actions scaled to [-1, 1] by the
            environment's bounds and clipped to 0.999; rewards (N,) float32; terminals (N,) float32, 1 where no future
            reward counts; ends (N,) bool, the last transition of its trajectory, whatever ended it.

        Raises:
            TaskError: if the environment cannot be made, the data cannot be read or contain invalid values, or the two
                have different dimensions.
            OSError: if the operating system fails.
        """
        env = self.env()  # first, because it fails faster than reading a large file
        with task_errors(f"cannot reset the environment of {self.env_id}"):
            env.reset(seed=0)
        env.close()
        return self.prepare(self.read_float32(), env.observation_space, env.env.action_space)

    def read_float32(self) -> Transitions:
        """What `read` returns, with float32 columns and without outliers in observations. Raises as `read` does."""
        transitions = self.read()
        if not len(transitions.columns["ends"]):
            raise TaskError(f"{self.path or self.env_id}: it contains no transitions")
        make_float32(transitions.columns, transitions.notes)
        return transitions

    def prepare(
        self, transitions: Transitions, observation_space: gym.spaces.Box, action_space: gym.spaces.Box
    ) -> dict[str, np.ndarray]:
        """Check the dimensions of transitions, scale their actions, and set the attributes that `dataset` sets.

        Args:
            transitions: what `read_float32` returned; its columns are changed.
            observation_space: the space of observations.
            action_space: the space of actions in the environment's own units.

        Returns:
            The columns, as described in `dataset`.
        """
        where = self.path or self.env_id
        data = transitions.columns
        for key, space in (("observations", observation_space), ("actions", action_space)):
            if data[key].shape[1:] != space.shape:
                raise TaskError(
                    f"{where}: {key} have shape {data[key].shape[1:]}, those of {self.env_id} have {space.shape}; name "
                    "the environment with --env-id, or 'none' for data without one"
                )
        self.notes = list(transitions.notes)
        data["actions"] = self.scale_actions(data["actions"], action_space)
        data["ends"][-1] = True
        self.note_oddities(data)
        data["terminals"] = data["terminals"].astype(np.float32)
        self.dataset_returns = transitions.returns
        self.dataset_scores = self.score(transitions.returns)
        return data

    def note_oddities(self, data: dict[str, np.ndarray]) -> None:
        """Add notes about data that are valid, but may not be what the user thinks they are."""
        rewards = data["rewards"]
        if (rewards == rewards[0]).all() and (rewards[0] == 0 or not data["terminals"].any()):
            self.notes.append(f"all rewards are {rewards[0]:g}, so RL has nothing to learn from; SAQ-BC is what fits")
        if (data["actions"] == data["actions"][0]).all():
            self.notes.append("all actions are equal")
        lengths = trajectory_lengths(data["ends"])
        single = (lengths == 1).sum()
        if len(lengths) / 2 < single < len(lengths):
            self.notes.append(
                f"{single} of {len(lengths)} trajectories have a single transition, as if terminals or timeouts stayed "
                "on for several rows"
            )
        continues = data["terminals"][:-1] & ~data["terminals"][1:] & ~data["ends"][:-1]
        if continues.any():
            trajectories = np.cumsum(data["ends"]) - data["ends"]
            count = len(np.unique(trajectories[:-1][continues]))
            self.notes.append(
                f"{count} of {data['ends'].sum()} trajectories go on after a terminal transition: this is play data, "
                "whose discount follows from the step limit, not from the length of trajectories"
            )

    def scale_actions(self, actions: np.ndarray, space: gym.spaces.Box) -> np.ndarray:
        """Scale actions (N, a) float32 from the bounds of the space to [-1, 1], and clip them to 0.999.

        Raises:
            TaskError: if an action is farther outside the space than half its width, and so must have other units.
        """
        low = space.low.astype(float)
        high = space.high.astype(float)
        self.action_low = low.tolist()
        self.action_high = high.tolist()
        scaled = (actions - ((low + high) / 2).astype(np.float32)) / ((high - low) / 2).astype(np.float32)
        if not np.abs(scaled).max() <= 2:
            row, i = np.unravel_index(np.abs(scaled).argmax(), scaled.shape)
            raise TaskError(
                f"{self.path or self.env_id}: dimension {i} of the actions reaches {actions[row, i]:.3g}, far outside "
                f"the range of {self.env_id}, from {low[i]:.3g} to {high[i]:.3g}"
            )
        outside = ((actions < space.low) | (actions > space.high)).any(axis=1).sum()
        if outside:
            self.notes.append(f"{outside} of {len(actions)} actions lie outside the action space and are clipped")
        return np.clip(scaled, -0.999, 0.999, out=scaled)

    def env(self, render_mode: str | None = None) -> gym.Env:
        """The environment, with its actions rescaled to [-1, 1].

        Raises:
            TaskError: if the environment cannot be made, or its actions are not vectors with bounds.
        """
        graphics = f" with MUJOCO_GL={MUJOCO_GL}" if MUJOCO_GL else ""
        with task_errors(f"cannot make the environment of {self.env_id}{graphics}"):
            env = self.make_env(render_mode)
        space = env.action_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
            raise TaskError(f"{self.env_id} has actions in {space}; only vectors of continuous actions (Box) work")
        if not (np.isfinite(space.high - space.low) & (space.low < space.high)).all():
            raise TaskError(f"{self.env_id} has actions in {space}; only actions with bounds can be scaled")
        return gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))

    def score(self, returns: np.ndarray) -> np.ndarray:
        """0 for the return of a random policy and 100 for an expert's (D4RL, Minari); elsewhere percent of success."""
        return 100.0 * (returns - self.min_return) / (self.max_return - self.min_return)

    def describe(self, data: dict[str, np.ndarray]) -> str:
        """A line of statistics of the data that `dataset` returned, and the notes, one a line."""
        return "\n".join([self.statistics(data), *self.notes])

    def statistics(self, data: dict[str, np.ndarray]) -> str:
        """The first line of `describe`."""
        return (
            f"{self.path or self.env_id}: {len(data['ends'])} transitions, {int(data['terminals'].sum())} terminal, "
            f"{data['ends'].sum()} trajectories, mean return {self.dataset_returns.mean():.2f}{self.describe_scores()}"
        )

    def describe_scores(self) -> str:
        """How the first line of `describe` ends."""
        return f" (score {self.dataset_scores.mean():.1f})"

    def evaluate(
        self, policy: Policy, episodes: int | None = None, seed: int = 1, video: Path | None = None
    ) -> dict[str, np.ndarray]:
        """Run episodes in ten environments side by side, each episode from its own seed (see `episode_seeds`).

        Args:
            policy: actions (B, a), which are clipped to [-1, 1], for observations (B, o) float32.
            episodes: how many; default `eval_episodes`.
            seed: any integer.
            video: a gif to which the first three episodes are written.

        Returns:
            One entry per episode: seeds int64, undiscounted returns float64, lengths int64 in steps, scores float64.

        Raises:
            TaskError: if the environment cannot be made or rendered.
        """
        seeds = episode_seeds(seed, episodes or self.eval_episodes)
        returns, lengths = run_episodes(self.env, policy, seeds, self.processes)
        if video:
            record_video(self.env, policy, episode_seeds(seed, VIDEO_EPISODES), video)
        return {"seeds": seeds, "returns": returns, "lengths": lengths, "scores": self.score(returns)}

    def print_scores(self, scores: dict[str, np.ndarray]) -> None:
        """Print mean and standard error, one line for the dataset's trajectories and one per entry of `scores`."""
        print(f"\n{'score, mean and standard error':<40}{'episodes':>10}")
        for name, values in {"dataset": self.dataset_scores, **scores}.items():
            error = np.std(values) / max(len(values) - 1, 1) ** 0.5
            print(f"{name:<25}{np.mean(values):7.1f} +- {error:4.1f}{len(values):>10}")

    def check_video(self) -> None:
        """Raise TaskError if this machine cannot render the environment."""
        check_rendering(self.env)
