"""Reads robomimic's HDF5 files with low-dimensional observations: one group per demonstration, and the environment."""

import json
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from tasks.common import TaskError, task_errors
from tasks.transitions import Transitions, check_columns, join


class Header(NamedTuple):
    """What a robomimic file says besides its transitions.

    Attributes:
        env_args: environment, with env_name, env_kwargs and perhaps env_version.
        observation_names: the observations of a demonstration; empty if there is no demonstration.
        longest: number of steps of the longest demonstration.
    """

    env_args: dict
    observation_names: list[str]
    longest: int


def is_robomimic_file(path: Path) -> bool:
    """Whether a file is in robomimic's layout: HDF5 with a group `data`. Raises TaskError if it is damaged."""
    if not h5py.is_hdf5(path):
        return False
    with task_errors(path), h5py.File(path, "r") as file:
        return isinstance(file.get("data"), h5py.Group)


def read_header(path: Path) -> Header:
    """The header of a robomimic file.

    Raises:
        TaskError: if the file is not a robomimic file or cannot be read.
    """
    with task_errors(path), h5py.File(path, "r") as file:
        if not isinstance(file.get("data"), h5py.Group):
            raise TaskError("this is not a robomimic file, which has a group 'data' with env_args")
        env_args = json.loads(file["data"].attrs["env_args"])
        match env_args:
            case {"env_name": str(), "env_kwargs": dict(), "type": 1}:
                pass
            case _:
                raise TaskError("env_args do not describe a robosuite environment (env_name, env_kwargs, type 1)")
        names = []
        longest = 0
        for demonstration in file["data"].values():
            names = [str(name) for name in demonstration["obs"]]  # h5py has bytes for names that are not UTF-8
            longest = max(longest, len(demonstration["actions"]))
        return Header(env_args, names, longest)


def read_robomimic_file(path: Path, observation_keys: list[str], dataset_filter: str | None) -> Transitions:
    """Read the demonstrations of a robomimic file, or those under a filter key, in the order of their numbers.

    Rewards and dones are the file's own. robomimic sets dones where the task is achieved (done_mode 0), at the last
    step (1), or at both (2). Without `next_obs` the last step is a transition only if it is done. The return of a
    demonstration is 1 if its largest reward is that of success, else 0; dense rewards before success are smaller.

    Args:
        path: the file.
        observation_keys: the observations to concatenate.
        dataset_filter: filter key, the name of a list of demonstrations in the file; None for all demonstrations.

    Raises:
        TaskError: if the file cannot be read, lacks the filter key, or holds no transition.
    """
    env_kwargs = read_header(path).env_args["env_kwargs"]
    trajectories = []
    returns = []
    with task_errors(path), h5py.File(path, "r") as file:
        success_reward = 0.999 * (env_kwargs.get("reward_scale") or 1.0)
        for name in demonstration_names(file, dataset_filter):
            with task_errors(name):
                columns = read_demonstration(file["data"][name], observation_keys)
            returns.append(columns["rewards"].max(initial=0.0) >= success_reward)
            trajectories.append(with_next_observations(columns))
        return Transitions(join(trajectories), np.array(returns, np.float64))


def demonstration_names(file: h5py.File, dataset_filter: str | None) -> list[str]:
    """The names of all demonstrations, or of those under a filter key, sorted by number: demo_2 before demo_10."""
    if dataset_filter is None:
        names = list(file["data"])
    else:
        filters = file.get("mask", {})
        if dataset_filter not in filters:
            existing = ", ".join(filters) or "none"
            raise TaskError(f"there is no filter key {dataset_filter!r}; filter keys in this file: {existing}")
        names = [name.decode() for name in filters[dataset_filter][()]]
    return sorted(set(names), key=lambda name: int(name.removeprefix("demo_")))


def read_demonstration(group: h5py.Group, observation_keys: list[str]) -> dict[str, np.ndarray]:
    """The checked columns of a demonstration, with next_observations only if the file has them."""
    columns = {
        "observations": concatenated(group["obs"], observation_keys),
        "actions": group["actions"][()],
        "rewards": group["rewards"][()],
        "terminals": group["dones"][()],
    }
    if "next_obs" in group:
        columns["next_observations"] = concatenated(group["next_obs"], observation_keys)
    return check_columns(columns)


def concatenated(group: h5py.Group, observation_keys: list[str]) -> np.ndarray:
    """The observations under the keys, flattened and concatenated (T, o)."""
    arrays = [group[key][()] for key in observation_keys]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def with_next_observations(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns with next_observations, which are the next row's if the file has none of its own."""
    if "next_observations" in columns:
        return columns
    observations = columns["observations"]
    columns["next_observations"] = np.concatenate([observations[1:], observations[-1:]])
    if columns["terminals"][-1]:
        return columns  # what follows a terminal step is never used
    return {key: values[:-1] for key, values in columns.items()}
