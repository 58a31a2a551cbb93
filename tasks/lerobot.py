"""LeRobot datasets on the Hugging Face Hub, and the environment of one of them: pushing a T to its goal."""

import logging
import os
from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.common import TaskError, data_folder, quiet, task_errors
from tasks.lerobot_file import is_lerobot_folder, largest_rewards
from tasks.own import Own
from tasks.task import Task
from tasks.transitions import Transitions

PREFIX = "lerobot:"
PUSHT = f"{PREFIX}lerobot/pusht_keypoints"


class LeRobot(Own):
    """`lerobot:OWNER/NAME`: a LeRobot dataset, downloaded from the Hugging Face Hub if it is missing. No environment.

    `path` is a folder in its place.
    """

    OPTIONS = ("observation_keys", "assume_success")

    def __init__(self, env_id: str, path: Path | None = None, **options):
        super().__init__(env_id, path or fetch(env_id), **options)

    @classmethod
    def matches(cls, env_id: str | None, path: Path | None) -> bool:
        return env_id.startswith(PREFIX)

    @classmethod
    def locate(cls, env_id: str) -> tuple[Path, str]:
        return locate(env_id)


def locate(env_id: str) -> tuple[Path, str]:
    """The folder of a dataset on this machine, which may be missing, and its URL.

    The first choice is $HF_LEROBOT_HOME, where LeRobot puts what it records, the second the Hugging Face Hub's cache.
    """
    import huggingface_hub

    name = env_id.removeprefix(PREFIX)
    url = f"https://huggingface.co/datasets/{name}"
    recorded = data_folder("HF_LEROBOT_HOME", ".cache", "huggingface", "lerobot") / name
    if is_lerobot_folder(recorded):
        return recorded, url
    info = huggingface_hub.try_to_load_from_cache(name, "meta/info.json", repo_type="dataset")
    if isinstance(info, str):
        return Path(info).parent.parent, url
    repository = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return repository / "snapshots" / "main", url


def fetch(env_id: str) -> Path:
    """The folder of a dataset, without its videos, downloaded from the Hugging Face Hub if it is missing.

    Raises:
        TaskError: if it cannot be downloaded.
    """
    name = env_id.removeprefix(PREFIX)
    recorded = data_folder("HF_LEROBOT_HOME", ".cache", "huggingface", "lerobot") / name
    if is_lerobot_folder(recorded):
        return recorded
    advice = f"download https://huggingface.co/datasets/{name} by other means and name the folder in dataset_path"
    with task_errors(f"cannot download {name}; {advice}"):
        import huggingface_hub

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hides the messages of every retry
        folder = Path(huggingface_hub.snapshot_download(name, repo_type="dataset", allow_patterns=["meta/*", "data/*"]))
        if not is_lerobot_folder(folder):
            raise TaskError("it has no meta/info.json, and so is not a LeRobot dataset")
        return folder


class PushT(Task):
    """lerobot/pusht_keypoints and the package gym-pusht: a disc pushes a T-shaped block to its goal within 300 steps.

    The reward is the share of the goal that the block covers, divided by 0.95 and at most 1. The return is the largest
    reward of an episode, and the score the percentage of episodes that reach 1. Observations (18,): position of the
    disc, then the block's keypoints.
    """

    IDS = (PUSHT,)
    max_episode_steps = 300

    def __init__(self, env_id: str, path: Path | None = None, **options):
        super().__init__(env_id, path or fetch(env_id), **options)

    @classmethod
    def locate(cls, env_id: str) -> tuple[Path, str]:
        return locate(env_id)

    def read(self) -> Transitions:
        transitions = self.read_file(self.max_episode_steps)
        transitions.returns = largest_rewards(self.path).astype(np.float64)
        return transitions

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        with quiet(), task_errors("PushT needs the package gym-pusht (pip install gym-pusht)"):
            import gym_pusht  # noqa: F401  registers the environment
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
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
