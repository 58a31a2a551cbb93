"""D4RL's ids on current environments: gymnasium's MuJoCo tasks, and Adroit with D4RL's rewards and endings."""

from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import h5py
import numpy as np

from tasks.common import data_folder, download, quiet
from tasks.task import Task
from tasks.transitions import Transitions

SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"


class Benchmark(NamedTuple):
    """An entry of d4rl's tables, with gymnasium's environment for it."""

    gym_id: str
    max_episode_steps: int
    min_return: float  # of a random policy
    max_return: float  # of an expert
    url: str


def locomotion(name: str, gym_id: str, min_return: float, max_return: float) -> dict[str, Benchmark]:
    """The six datasets of a MuJoCo environment."""
    benchmarks = {}
    for kind in ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay"):
        url = f"{SERVER}/gym_mujoco_v2/{name}_{kind.replace('-', '_')}-v2.hdf5"
        benchmarks[f"{name}-{kind}-v2"] = Benchmark(gym_id, 1000, min_return, max_return, url)
    return benchmarks


def adroit(name: str, gym_id: str, steps: int, min_return: float, max_return: float) -> dict[str, Benchmark]:
    """The three datasets of an Adroit environment, in two versions."""
    first_version = {
        "human": f"{name}-v0_demos_clipped",
        "cloned": f"{name}-demos-v0-bc-combined",
        "expert": f"{name}-v0_expert_clipped",
    }
    benchmarks = {}
    for kind, file in first_version.items():
        urls = {
            "v0": f"{SERVER}/hand_dapg/{file}.hdf5",
            "v1": f"{SERVER}/hand_dapg_v1/{name}-{kind}-v1.hdf5",
        }
        for version, url in urls.items():
            benchmarks[f"{name}-{kind}-{version}"] = Benchmark(gym_id, steps, min_return, max_return, url)
    return benchmarks


BENCHMARKS = {
    **locomotion("halfcheetah", "HalfCheetah-v4", -280.178953, 12135.0),
    **locomotion("hopper", "Hopper-v4", -20.272305, 3234.3),
    **locomotion("walker2d", "Walker2d-v4", 1.629008, 4592.3),
    **adroit("pen", "AdroitHandPen-v1", 100, 96.262799, 3076.8331017826877),
    **adroit("door", "AdroitHandDoor-v1", 200, -56.512833, 2880.5693087298737),
    **adroit("hammer", "AdroitHandHammer-v1", 200, -274.856578, 12794.134825156867),
    **adroit("relocate", "AdroitHandRelocate-v1", 200, -6.425911, 4233.877797728884),
}


class D4RL(Task):
    """A D4RL id. `path` replaces the id's own dataset, which is downloaded if it is missing."""

    IDS = tuple(BENCHMARKS)

    def __init__(self, env_id: str, path: Path | None = None, **options):
        super().__init__(env_id, path, **options)
        self.benchmark = BENCHMARKS[env_id]
        self.max_episode_steps = self.benchmark.max_episode_steps
        self.min_return = self.benchmark.min_return
        self.max_return = self.benchmark.max_return
        if path is None:
            self.path, url = self.locate(env_id)
            if not self.path.exists():
                download(url, self.path, lambda path: h5py.File(path, "r").close())

    @classmethod
    def locate(cls, env_id: str) -> tuple[Path, str]:
        """The file of an id in $D4RL_DATASET_DIR, else ~/.d4rl/datasets, and its URL."""
        url = BENCHMARKS[env_id].url
        return data_folder("D4RL_DATASET_DIR", ".d4rl", "datasets") / Path(url).name, url

    def read(self) -> Transitions:
        return self.read_file(self.benchmark.max_episode_steps)

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        is_adroit = self.benchmark.gym_id.startswith("Adroit")
        with quiet():
            if is_adroit:
                import gymnasium_robotics

                gym.register_envs(gymnasium_robotics)
            env = gym.make(self.benchmark.gym_id, max_episode_steps=self.max_episode_steps, render_mode=render_mode)
        return AdroitAsInD4RL(env) if is_adroit else env


class AdroitAsInD4RL(gym.Wrapper):
    """D4RL's Adroit rewards and endings on gymnasium-robotics 1.2.1 to 1.4.2, which changed them.

    Door, hammer and relocate: D4RL's reward is lower by 0.2 times the distance from the palm to the handle, hammer or
    ball. Pen: D4RL ends the episode when the pen falls below a height of 0.075.
    """

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        match self.spec.id:
            case "AdroitHandPen-v1":
                terminated = bool(observation[26] < 0.075)  # height of the pen
            case "AdroitHandDoor-v1":
                reward -= 0.2 * np.linalg.norm(observation[35:38])
            case "AdroitHandHammer-v1":
                reward -= 0.2 * np.linalg.norm(observation[33:36] - observation[36:39])
            case "AdroitHandRelocate-v1":
                reward -= 0.2 * np.linalg.norm(observation[30:33])
        return observation, reward, terminated, truncated, info
