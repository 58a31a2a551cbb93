"""Minari's datasets and their evaluation environments."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.common import TaskError, data_folder, import_hub, quiet, task_errors
from tasks.task import Task
from tasks.transitions import Transitions, check_columns, join

# D4RL ids whose environments need MuJoCo 2.1, and the Minari ids that stand for them
STAND_INS = {
    f"antmaze-{maze}-{version}": f"D4RL/antmaze/{maze}-v1"
    for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    for version in ("v0", "v1", "v2")
} | {f"kitchen-{kind}-v0": f"D4RL/kitchen/{kind}-v2" for kind in ("complete", "partial", "mixed")}


class Minari(Task):
    """A Minari dataset, downloaded if it is missing. Without reference returns the score is the return.

    Observations of data and environment are flattened by the dataset's space, because the environment's Dict can have
    its keys in another order.
    """

    processes = True

    def __init__(self, env_id: str, path: Path | None = None, **options):
        super().__init__(env_id, path, **options)
        if env_id in STAND_INS:
            raise TaskError(f"the environment of {env_id} needs MuJoCo 2.1; use Minari's {STAND_INS[env_id]} instead")
        folder, _ = self.locate(env_id)
        if path is not None:
            raise TaskError(
                f"--dataset-path is for files of other benchmarks; {env_id} is Minari's, stored in {folder}"
            )
        with task_errors(f"cannot load {env_id} with Minari; download it manually to {folder}"):
            import minari

            import_hub()  # Minari downloads with it
            self.stored = minari.load_dataset(env_id, download=True)
            metadata = self.stored.storage.metadata
            episodes = self.stored.storage.get_episode_metadata(self.stored.episode_indices)
            longest = max((episode["total_steps"] for episode in episodes), default=1)
            spec = json.loads(metadata.get("eval_env_spec") or metadata.get("env_spec") or "{}")
            limit = spec.get("max_episode_steps") or -1
            min_return = float(metadata.get("ref_min_score") or 0.0)
            max_return = float(metadata.get("ref_max_score") or 0.0)
        self.env_kwargs = spec.get("kwargs") or {}
        self.max_episode_steps = limit if limit > 0 else int(longest)
        if min_return != max_return:
            self.min_return = min_return
            self.max_return = max_return
        else:
            self.min_return = 0.0
            self.max_return = 100.0

    @classmethod
    def matches(cls, env_id: str | None, path: Path | None) -> bool:
        return "/" in env_id or env_id in STAND_INS or cls.locate(env_id)[0].exists()

    @classmethod
    def ids(cls) -> tuple[str, ...]:
        """The Minari datasets on this machine."""
        folder = datasets_folder()
        files = folder.glob("**/data/metadata.json")
        return tuple(sorted(str(file.parent.parent.relative_to(folder)) for file in files))

    @classmethod
    def locate(cls, env_id: str) -> tuple[Path, None]:
        """The folder in which Minari keeps a dataset. Minari knows its URL."""
        return datasets_folder() / env_id, None

    def read(self) -> Transitions:
        trajectories = []
        returns = []
        with task_errors(self.env_id):
            for episode in self.stored.iterate_episodes():
                with task_errors(f"episode {episode.id}"):
                    observations = flatten_steps(self.stored.observation_space, episode.observations)
                    columns = {
                        "observations": observations[:-1],
                        "next_observations": observations[1:],
                        "actions": episode.actions,
                        "rewards": episode.rewards,
                        "terminals": episode.terminations,
                    }
                    trajectories.append(check_columns(columns))
                    returns.append(episode.rewards.sum())
            return Transitions(join(trajectories), np.array(returns, np.float64))

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        settings = {"max_episode_steps": self.max_episode_steps}
        if render_mode or "render_mode" in self.env_kwargs:  # not every environment takes this argument
            settings["render_mode"] = render_mode
        with quiet():
            env = self.stored.recover_environment(eval_env=True, **settings)
        stored_space = self.stored.observation_space
        flat_space = gym.spaces.flatten_space(stored_space)

        def flatten(observation) -> np.ndarray:
            return gym.spaces.flatten(stored_space, observation)

        try:
            fits = flatten(env.observation_space.sample()).shape == flat_space.shape
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            fits = False
        if not fits:
            raise TaskError(
                f"observations of {self.env_id} are in {stored_space}, those of its environment in "
                f"{env.observation_space}"
            )
        return gym.wrappers.TransformObservation(env, flatten, flat_space)


def datasets_folder() -> Path:
    """The folder of Minari's datasets."""
    return data_folder("MINARI_DATASETS_PATH", ".minari", "datasets")


def flatten_steps(space: gym.Space, values) -> np.ndarray:
    """Flatten T observations in a Box or a Dict of Boxes as gymnasium.spaces.flatten does: (T, o)."""
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([flatten_steps(part, values[key]) for key, part in space.items()], axis=1)
    return np.asarray(values).reshape(len(values), -1)
