"""LeRobot datasets on the Hugging Face Hub, and the environment of one of them: pushing a T to its goal."""

import os
from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.common import TaskError, cached_file, data_folder, import_hub, quiet, task_errors
from tasks.lerobot_file import is_lerobot_folder, largest_rewards
from tasks.no_env import NoEnv
from tasks.task import Task
from tasks.transitions import Transitions

PREFIX = "lerobot:"


def locate(env_id: str) -> tuple[Path, str]:
    """The folder of a dataset on this machine, which may be missing, and its URL.

    LeRobot's own folder comes first, which is where recordings are, then the Hugging Face Hub's cache.
    """
    name = env_id.removeprefix(PREFIX)
    folder = recordings_folder() / name
    if not is_lerobot_folder(folder):
        folder = cached_file(name, "meta/info.json").parent.parent
    return folder, f"https://huggingface.co/datasets/{name}"


def recordings_folder() -> Path:
    """$HF_LEROBOT_HOME, else `lerobot` in $HF_HOME, by default ~/.cache/huggingface."""
    if os.environ.get("HF_LEROBOT_HOME"):
        return data_folder("HF_LEROBOT_HOME")
    return Path(import_hub().constants.HF_HOME) / "lerobot"


def fetch(env_id: str) -> Path:
    """The folder of a dataset. Unless it was recorded here, the Hub is asked for all of its files except videos.

    Raises:
        TaskError: if files are missing and cannot be downloaded.
    """
    name = env_id.removeprefix(PREFIX)
    url = f"https://huggingface.co/datasets/{name}"
    with task_errors(f"cannot download {name}; download {url} manually and name its folder with --dataset-path"):
        if is_lerobot_folder(recordings_folder() / name):
            return recordings_folder() / name
        patterns = ["meta/*", "data/*"]
        folder = Path(import_hub().snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
        if not is_lerobot_folder(folder):
            raise TaskError("it has no meta/info.json, and so is not a LeRobot dataset")
        return folder


class LeRobot(NoEnv):
    """`lerobot:OWNER/NAME`: a LeRobot dataset, downloaded from the Hugging Face Hub if it is missing. No environment.

    `path` is a folder in its place.
    """

    locate = staticmethod(locate)

    def __init__(self, env_id: str, path: Path | None = None, **options):
        super().__init__(env_id, path or fetch(env_id), **options)

    @classmethod
    def matches(cls, env_id: str | None, path: Path | None) -> bool:
        return env_id.startswith(PREFIX)


class PushT(Task):
    """lerobot/pusht_keypoints and the package gym-pusht: a disc pushes a T-shaped block to its goal within 300 steps.

    The reward is the share of the goal that the block covers, divided by 0.95 and at most 1. The return is the largest
    reward of an episode, and the score the percentage of episodes that reach 1. Observations (18,): position of the
    disc, then the block's keypoints. `path` is another LeRobot folder with these columns.
    """

    IDS = ("lerobot:lerobot/pusht_keypoints",)
    max_episode_steps = 300
    locate = staticmethod(locate)

    def __init__(self, env_id: str, path: Path | None = None, **options):
        super().__init__(env_id, path or fetch(env_id), **options)

    def read(self) -> Transitions:
        if not is_lerobot_folder(self.path):
            raise TaskError(f"{self.path} is not a LeRobot folder, with meta/info.json")
        transitions = self.read_file(self.max_episode_steps)
        transitions.returns = largest_rewards(self.path).astype(np.float64)
        return transitions

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        with quiet(), task_errors("PushT needs the package gym-pusht (pip install gym-pusht)"):
            import gym_pusht  # noqa: F401  registers the environment
        with quiet():
            env = gym.make(
                "gym_pusht/PushT-v0",
                obs_type="environment_state_agent_pos",
                max_episode_steps=self.max_episode_steps,
                render_mode=render_mode or "rgb_array",
            )

        def flatten(observation: dict[str, np.ndarray]) -> np.ndarray:
            return np.concatenate([observation["agent_pos"], observation["environment_state"]])

        space = gym.spaces.Box(-np.inf, np.inf, (18,), np.float64)
        return LargestReward(gym.wrappers.TransformObservation(env, flatten, space))

    def score(self, returns: np.ndarray) -> np.ndarray:
        return 100.0 * (returns >= 1)


class LargestReward(gym.Wrapper):
    """The reward is what the largest reward so far grows by, so that the return is the largest reward."""

    def reset(self, *, seed=None, options=None):
        self.largest = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        growth = max(reward - self.largest, 0.0)
        self.largest += growth
        return observation, growth, terminated, truncated, info
