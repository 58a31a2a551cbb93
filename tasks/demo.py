"""The dataset in this repository: scripted operators of mixed skill on gymnasium-robotics' FetchPickAndPlace."""

from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.d4rl import read_d4rl
from tasks.task import EndAtSuccess, Task, quiet

IDS = ("fetch-pick-and-place-demo-v0",)


def locate(env_id: str) -> tuple[Path, None]:
    """The file of the id, which is part of the repository."""
    return Path(__file__).resolve().parent.parent / "demo" / f"{env_id}.hdf5", None


def fetch(env_id: str) -> Path:
    """The file of the id."""
    return locate(env_id)[0]


class Demo(Task):
    """A robot arm picks up a block and carries it to a goal within 50 steps; the score is the percentage of successes.

    Observations (28,): the 25 of FetchPickAndPlace-v4, then the goal. Actions (4,): gripper motion and fingers.
    """

    max_episode_steps, min_return, max_return = 50, 0.0, 1.0

    def __init__(self, env_id: str, path: Path):
        self.env_id, self.path = env_id, path

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return read_d4rl(self.path, Demo.max_episode_steps)

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        with quiet():
            import gymnasium_robotics

            gym.register_envs(gymnasium_robotics)
            env = gym.make("FetchPickAndPlace-v4", max_episode_steps=self.max_episode_steps, render_mode=render_mode)
        space, keys = gym.spaces.Box(-np.inf, np.inf, (28,), np.float64), ("observation", "desired_goal")
        env = gym.wrappers.TransformObservation(env, lambda seen: np.concatenate([seen[key] for key in keys]), space)
        return EndAtSuccess(env)
