"""Datasets for smoke.sh: a few episodes of random actions, under the ids of the benchmark's scripts.

python benchmark/smoke_data.py FOLDER
"""

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks

STEPS = 20  # per episode


def collect(env: gym.Env, episodes: int) -> list[dict[str, np.ndarray]]:
    """Episodes of uniformly random actions. `observations` has one row more than the other columns."""
    rng = np.random.default_rng(0)
    collected = []
    for seed in range(episodes):
        observations, actions, rewards = [env.reset(seed=seed)[0]], [], []
        for _ in range(STEPS):
            action = rng.uniform(-1, 1, env.action_space.shape)
            observation, reward, terminated, truncated, _ = env.step(action)
            actions.append(action)
            observations.append(observation)
            rewards.append(reward)
            if terminated or truncated:
                break
        columns = {"observations": observations, "actions": actions, "rewards": rewards}
        collected.append({name: np.array(column) for name, column in columns.items()})
    return collected


def last_step(episode: dict[str, np.ndarray]) -> np.ndarray:
    """Whether a step is the last one (steps,)."""
    return np.arange(len(episode["rewards"])) == len(episode["rewards"]) - 1


def d4rl(env_id: str) -> None:
    """A file in D4RL's layout, with episodes that time out."""
    path, _ = tasks.locate(env_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    h5py.File(path, "w").close()  # the task asks for a file
    episodes = collect(tasks.make(env_id, path).env(), 10)
    with h5py.File(path, "w") as file:
        file["observations"] = np.concatenate([episode["observations"][:-1] for episode in episodes])
        file["actions"] = np.concatenate([episode["actions"] for episode in episodes])
        file["rewards"] = np.concatenate([episode["rewards"] for episode in episodes])
        file["timeouts"] = np.concatenate([last_step(episode) for episode in episodes])
        file["terminals"] = np.zeros(len(file["rewards"]), bool)


def minari(dataset_id: str, env_id: str, **settings) -> None:
    """A dataset that Minari collects in $MINARI_DATASETS_PATH, with episodes of STEPS steps."""
    import minari

    env = minari.DataCollector(gym.make(env_id, max_episode_steps=STEPS, **settings))
    collect(env, 10)
    env.create_dataset(dataset_id, algorithm_name="random", author="smoke test", ref_min_score=0.0, ref_max_score=1.0)
    env.close()


def robomimic(env_id: str) -> None:
    """A file of Lift in robomimic's layout. Control at 500 Hz makes the steps fast to simulate."""
    with tasks.common.quiet():
        import robosuite
    controller = robosuite.load_composite_controller_config(controller="BASIC", robot="Panda")
    settings = {"robots": ["Panda"], "controller_configs": controller, "control_freq": 500}
    description = {"env_name": "Lift", "type": 1, "env_version": robosuite.__version__, "env_kwargs": settings}
    sizes = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
    path, _ = tasks.locate(env_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(description)
    episodes = collect(tasks.make(env_id, path, observation_keys=list(sizes)).env(), 5)
    with h5py.File(path, "a") as file:
        for number, episode in enumerate(episodes):
            demo = file["data"].create_group(f"demo_{number}")
            for key, end in zip(sizes, np.cumsum(list(sizes.values()))):
                columns = slice(end - sizes[key], end)
                demo[f"obs/{key}"] = episode["observations"][:-1, columns]
                demo[f"next_obs/{key}"] = episode["observations"][1:, columns]
            demo["actions"] = episode["actions"]
            demo["rewards"] = episode["rewards"]
            demo["dones"] = last_step(episode)
            demo.attrs["num_samples"] = len(episode["rewards"])


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    os.environ["D4RL_DATASET_DIR"] = str(folder / "d4rl")
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    os.environ["ROBOMIMIC_DATASET_DIR"] = str(folder / "robomimic")
    (folder / "minari").mkdir(parents=True)
    (folder / "robomimic").mkdir()  # stays empty without robosuite
    warnings.simplefilter("ignore")  # Minari warns that the author has no email address
    with tasks.common.quiet():
        import gymnasium_robotics
    gym.register_envs(gymnasium_robotics)
    d4rl("halfcheetah-expert-v2")
    d4rl("door-human-v0")
    minari("D4RL/antmaze/medium-diverse-v1", "AntMaze_Medium_Diverse_GR-v5")
    minari("D4RL/kitchen/mixed-v2", "FrankaKitchen-v1", tasks_to_complete=["microwave", "kettle"])
    if importlib.util.find_spec("robosuite"):
        robomimic("lift-ph")
