"""Datasets and environments of offline RL by id: D4RL, robomimic, OGBench, Minari, LeRobot, a demo, your own files.

    task = tasks.make("hopper-medium-v2")       # downloads the dataset if it is missing
    data = task.dataset()                       # dict of arrays, one row a transition
    env = task.env()                            # gymnasium.Env: vector observations, actions in [-1, 1]
    result = task.evaluate(policy, episodes=100, seed=1)

`python -m tasks` lists the ids; `python -m tasks hopper-medium-v2` downloads a dataset, checks it and prints a summary.
A source is a subclass of `Task`. The files `*_file.py` each read one layout of files.
"""

import difflib
from pathlib import Path

from tasks.common import TaskError
from tasks.d4rl import D4RL
from tasks.demo import Demo
from tasks.lerobot import LeRobot, PushT
from tasks.minari import Minari
from tasks.no_env import NoEnv
from tasks.ogbench import OGBench
from tasks.robomimic import Robomimic
from tasks.task import Task

__all__ = ["OPTIONS", "Task", "TaskError", "ids", "locate", "make"]

# The first that matches makes the task. Demo takes everything without an id that those before it do not take.
SOURCES = (NoEnv, Robomimic, Demo, D4RL, OGBench, PushT, LeRobot, Minari)
OPTIONS = ("dataset_filter", "observation_keys", "assume_success", "sparse_rewards", "max_episode_steps")  # of `make`


def ids() -> list[str]:
    """The ids that can be listed: Minari's are those of the datasets on this machine."""
    return [env_id for source in SOURCES for env_id in source.ids()]


def locate(env_id: str) -> tuple[Path, str | None]:
    """The place of an id's dataset on this machine, which may be empty, and the URL to download it from.

    Raises:
        TaskError: if the id is unknown.
    """
    return find_source(env_id).locate(env_id)


def make(
    env_id: str | None = None,
    dataset_path: str | Path | None = None,
    dataset_filter: str | None = None,
    observation_keys: list[str] | None = None,
    assume_success: bool = False,
    sparse_rewards: bool = False,
    max_episode_steps: int | None = None,
) -> Task:
    """The task of an id. Its dataset is downloaded if it is missing.

    Args:
        env_id: an id of `ids()`; an id of Minari, which has a slash; lerobot:OWNER/NAME for a LeRobot dataset on the
            Hugging Face Hub; or "none", for data without an environment. None: the environment that a robomimic file
            describes, "none" for a LeRobot folder, and the demo's in all other cases.
        dataset_path: a file in place of the id's own: HDF5 in D4RL's or robomimic's layout, .npz in OGBench's, or a
            LeRobot folder.
        dataset_filter: robomimic files: filter key of the demonstrations to use, such as train; default all.
        observation_keys: observations to use. The default in robomimic files is end effector and gripper of each arm
            and the object, in LeRobot data observation.state and, if there is one, observation.environment_state.
        assume_success: LeRobot data: count every episode as a success, in place of its rewards.
        sparse_rewards: OGBench: -1 until the whole task is solved, in place of rewards for its parts.
        max_episode_steps: step limit of the environment in place of the benchmark's.

    Raises:
        TaskError: if the arguments contradict each other, or a file is missing, damaged or cannot be downloaded.
        OSError: if the operating system fails.
    """
    if max_episode_steps is not None and max_episode_steps < 1:
        raise TaskError(f"--max-episode-steps must be at least 1, it is {max_episode_steps}")
    path = None if dataset_path is None else Path(dataset_path).expanduser()
    if path is not None and not path.exists():
        raise TaskError(f"{path} does not exist")
    source = find_source(env_id, path)
    task = source(
        env_id,
        path,
        dataset_filter=dataset_filter,
        observation_keys=observation_keys,
        assume_success=assume_success,
        sparse_rewards=sparse_rewards,
    )
    task.max_episode_steps = max_episode_steps or task.max_episode_steps
    return task


def find_source(env_id: str | None, path: Path | None = None) -> type[Task]:
    """The first source that makes the task of an id, or of an id with a file. Raises TaskError if there is none."""
    for source in SOURCES:
        if source.matches(env_id, path):
            return source
    similar = ", ".join(difflib.get_close_matches(env_id, ids(), n=3, cutoff=0.0))
    raise TaskError(
        f"unknown id {env_id}; did you mean {similar}? Ids of Minari have a slash, and 'none' is "
        "for data without an environment"
    )
