"""Minari's datasets and their evaluation environments."""

import functools
import json
import logging
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np

from tasks.task import Task, check_rows, check_stored, data_folder, fail, join, quiet

FOLDER = ("MINARI_DATASETS_PATH", ".minari", "datasets")


def locate(env_id: str) -> Path:
    """The folder in which Minari keeps a dataset."""
    return data_folder(*FOLDER) / env_id


def local_ids() -> list[str]:
    """Ids of the Minari datasets on this machine."""
    folder = data_folder(*FOLDER)
    return sorted(str(file.parent.parent.relative_to(folder)) for file in folder.glob("**/data/metadata.json"))


class Minari(Task):
    """A Minari dataset, downloaded if it is missing. Without reference scores the score is the return.

    Observations of data and environment are flattened by the dataset's space, because the environment's Dict can have
    its keys in another order.
    """

    processes = True

    def __init__(self, env_id: str):
        self.env_id = env_id
        try:
            import minari

            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hides the messages of every retry
            self.stored = minari.load_dataset(env_id, download=True)
            storage = self.stored.storage
            lowest, highest = (float(storage.metadata.get(f"ref_{end}_score") or 0.0) for end in ("min", "max"))
            spec = json.loads(storage.metadata.get("eval_env_spec") or storage.metadata.get("env_spec") or "{}")
            limit = spec.get("max_episode_steps")
            lengths = [episode["total_steps"] for episode in storage.get_episode_metadata(self.stored.episode_indices)]
        except Exception as error:  # no network, no such dataset, half a dataset, another version of Minari
            where = locate(env_id)
            fail(f"cannot load {env_id} with Minari ({error}); fetch it by other means and put it at {where}")
        self.min_return, self.max_return = (lowest, highest) if lowest != highest else (0.0, 100.0)
        self.max_episode_steps = limit if limit and limit > 0 else int(max(lengths, default=1))

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        episodes, returns = [], []
        try:
            if (file := locate(self.env_id) / "data" / "main_data.hdf5").exists():  # else in another format of Minari's
                check_file(file)
            for episode in self.stored.iterate_episodes():
                observations = flatten_steps(self.stored.observation_space, episode.observations)
                columns = {
                    "observations": observations[:-1],
                    "next_observations": observations[1:],
                    "actions": episode.actions,
                    "rewards": episode.rewards,
                    "terminals": episode.terminations,
                }
                episodes.append(check_rows(f"{self.env_id}, episode {episode.id}", columns))
                returns.append(episode.rewards.sum())
            return join(self.env_id, episodes), np.array(returns, np.float64)
        except Exception as error:  # damaged files, Minari's own assertions
            fail(f"{self.env_id}, episode {len(episodes)}: cannot be read as arrays or dicts of arrays: {error}")

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        settings = {"max_episode_steps": self.max_episode_steps}
        if render_mode:  # not every environment takes this argument
            settings["render_mode"] = render_mode
        with quiet():
            env = self.stored.recover_environment(eval_env=True, **settings)
        flatten = functools.partial(gym.spaces.flatten, self.stored.observation_space)
        space = gym.spaces.flatten_space(self.stored.observation_space)
        try:
            fits = flatten(env.observation_space.sample()).shape == space.shape
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            fits = False
        if not fits:
            fail(f"{self.env_id} observes {self.stored.observation_space}, its environment {env.observation_space}")
        return gym.wrappers.TransformObservation(env, flatten, space)


def check_file(path: Path) -> None:
    """Raise TypeError if an array in an HDF5 file is stored only in part; reading it could allocate gigabytes."""
    with h5py.File(path, "r") as file:
        file.visititems(lambda key, node: check_stored(key, node) if isinstance(node, h5py.Dataset) else None)


def flatten_steps(space: gym.Space, values) -> np.ndarray:
    """Flatten T observations of a Box or a Dict of Boxes as gymnasium.spaces.flatten does: (T, o) float32."""
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([flatten_steps(part, values[key]) for key, part in space.items()], 1)
    return np.asarray(values).reshape(len(values), -1)
