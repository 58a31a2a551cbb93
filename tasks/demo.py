"""The dataset in this repository: scripted operators of mixed skill on gymnasium-robotics' FetchPickAndPlace."""

from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.common import quiet
from tasks.evaluation import EndAtSuccess
from tasks.task import Task
from tasks.transitions import Transitions

ID = "fetch-pick-and-place-demo-v0"


class Demo(Task):
    """A robot arm picks up a block and carries it to a goal within 50 steps. The score is the percentage of successes.

    Observations (28,): the 25 numbers of FetchPickAndPlace-v4, then the goal. Actions (4,): gripper motion and fingers.
    """

    IDS = (ID,)
    STEP_LIMIT = 50
    max_episode_steps = STEP_LIMIT

    def __init__(self, env_id: str | None, path: Path | None = None, **options):
        super().__init__(ID, path or self.locate(ID)[0], **options)

    @classmethod
    def matches(cls, env_id: str | None, path: Path | None) -> bool:
        return env_id in (None, ID)

    @classmethod
    def locate(cls, env_id: str) -> tuple[Path, None]:
        return Path(__file__).resolve().parent.parent / "demo" / f"{env_id}.hdf5", None

    def read(self) -> Transitions:
        return self.read_file(self.STEP_LIMIT)

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        with quiet():
            import gymnasium_robotics

            gym.register_envs(gymnasium_robotics)
            env = gym.make("FetchPickAndPlace-v4", max_episode_steps=self.max_episode_steps, render_mode=render_mode)

        def flatten(observation: dict[str, np.ndarray]) -> np.ndarray:
            """The observation before the goal, as in the dataset; gymnasium's FlattenObservation sorts the keys."""
            return np.concatenate([observation["observation"], observation["desired_goal"]])

        space = gym.spaces.Box(-np.inf, np.inf, (28,), np.float64)
        return EndAtSuccess(gym.wrappers.TransformObservation(env, flatten, space))
