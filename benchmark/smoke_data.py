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
from tasks.d4rl import D4RL, locate
from tasks.robomimic import IDS, Robomimic
from tasks.task import quiet

STEPS = 20  # per episode


def collect(env: gym.Env, episodes: int) -> list[dict[str, np.ndarray]]:
    """Episodes of uniformly random actions. `observations` has one row more than the other columns."""
    rng, made = np.random.default_rng(0), []
    for seed in range(episodes):
        observations, actions, rewards = [env.reset(seed=seed)[0]], [], []
        for _ in range(STEPS):
            actions.append(rng.uniform(-1, 1, env.action_space.shape))
            observation, reward, terminated, truncated, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            if terminated or truncated:
                break
        columns = {"observations": observations, "actions": actions, "rewards": rewards}
        made.append({name: np.array(column) for name, column in columns.items()})
    return made


def d4rl(folder: Path, env_id: str) -> None:
    """A file in D4RL's layout, with episodes that time out."""
    path = folder / locate(env_id)[0].name
    episodes = collect(D4RL(env_id, path).env(), 10)
    with h5py.File(path, "w") as file:
        file["observations"] = np.concatenate([e["observations"][:-1] for e in episodes])
        file["actions"] = np.concatenate([e["actions"] for e in episodes])
        file["rewards"] = np.concatenate([e["rewards"] for e in episodes])
        file["terminals"] = np.zeros(len(file["rewards"]), bool)
        file["timeouts"] = np.concatenate([np.arange(len(e["rewards"])) == len(e["rewards"]) - 1 for e in episodes])


def minari(dataset_id: str, env_id: str, **settings) -> None:
    """A dataset collected by Minari in $MINARI_DATASETS_PATH, with episodes of STEPS steps."""
    import minari

    env = minari.DataCollector(gym.make(env_id, max_episode_steps=STEPS, **settings))
    collect(env, 10)
    env.create_dataset(dataset_id, algorithm_name="random", author="smoke test", ref_min_score=0.0, ref_max_score=1.0)
    env.close()


def robomimic(folder: Path) -> None:
    """A file of Lift in robomimic's layout. Control at 500 Hz makes the steps fast to simulate."""
    with quiet():
        import robosuite
    controller = robosuite.load_composite_controller_config(controller="BASIC", robot="Panda")
    settings = {"robots": ["Panda"], "controller_configs": controller, "control_freq": 500}
    description = {"env_name": "Lift", "type": 1, "env_version": robosuite.__version__, "env_kwargs": settings}
    sizes = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
    path = folder / IDS["lift-ph"]
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(description)
    episodes = collect(Robomimic("lift-ph", path, observation_keys=list(sizes)).env(), 5)
    with h5py.File(path, "a") as file:
        for number, episode in enumerate(episodes):
            demo = file["data"].create_group(f"demo_{number}")
            for key, end in zip(sizes, np.cumsum(list(sizes.values()))):
                demo[f"obs/{key}"] = episode["observations"][:-1, end - sizes[key] : end]
                demo[f"next_obs/{key}"] = episode["observations"][1:, end - sizes[key] : end]
            demo["actions"], demo["rewards"] = episode["actions"], episode["rewards"]
            demo["dones"] = np.arange(len(episode["rewards"])) == len(episode["rewards"]) - 1
            demo.attrs["num_samples"] = len(episode["rewards"])


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    for name in ("d4rl", "minari", "robomimic"):
        (folder / name).mkdir(parents=True)
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    warnings.simplefilter("ignore")  # Minari warns about missing facts on the author
    with quiet():
        import gymnasium_robotics
    gym.register_envs(gymnasium_robotics)
    d4rl(folder / "d4rl", "halfcheetah-expert-v2")
    d4rl(folder / "d4rl", "door-human-v0")
    minari("D4RL/antmaze/medium-diverse-v1", "AntMaze_Medium_Diverse_GR-v5")
    minari("D4RL/kitchen/mixed-v2", "FrankaKitchen-v1", tasks_to_complete=["microwave", "kettle"])
    if importlib.util.find_spec("robosuite"):
        robomimic(folder / "robomimic")
