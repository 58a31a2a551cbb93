"""Reads robomimic's HDF5 files, which have a group per demonstration, with low-dimensional observations."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from tasks.common import TaskError, read_array, task_errors
from tasks.transitions import Transitions, check_columns, join, note_observations


class Header(NamedTuple):
    """What a robomimic file says besides its transitions.

    Attributes:
        env_args: the environment, for robosuite with env_name, env_kwargs, type 1 and perhaps env_version; empty in
            files without one.
        observation_names: the observations of the last demonstration; empty if there is no demonstration.
        vector_names: those of them that are vectors or numbers, unlike images.
        longest: number of steps of the longest demonstration.
    """

    env_args: dict[str, Any]
    observation_names: list[str]
    vector_names: list[str]
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
            raise TaskError("this is not a robomimic file, which has a group 'data' with demonstrations")
        env_args = json.loads(file["data"].attrs.get("env_args", "{}"))
        if not isinstance(env_args, dict):
            raise TaskError(f"env_args are {env_args!r:.100}, not a dict")
        observation_names = []
        vector_names = []
        longest = 0
        for name in demonstration_names(file, None):
            demonstration = file["data"][name]
            observations = {str(key): array for key, array in demonstration["obs"].items()}  # bytes if not UTF-8
            observation_names = list(observations)
            vector_names = [key for key, array in observations.items() if array.ndim <= 2]
            longest = max(longest, len(demonstration["actions"]))
        return Header(env_args, observation_names, vector_names, longest)


def choose_observations(header: Header, observation_keys: list[str] | None) -> list[str]:
    """The observations to use: the given ones, or the default.

    In a file with robosuite's names (robot0_eef_pos and so on) the default is position, orientation and gripper of each
    arm, then the object. In other files, such as those of real robots, it is every observation that is a vector.

    Raises:
        TaskError: if the file has demonstrations without them.
    """
    if not header.observation_names:  # without demonstrations there is nothing to compare with
        return list(observation_keys or [])
    robots = sorted({name.split("_")[0] for name in header.observation_names if re.match(r"robot\d+_", name)})
    if observation_keys:
        keys = list(observation_keys)
    elif robots:
        keys = [f"{robot}_{part}" for robot in robots for part in ("eef_pos", "eef_quat", "gripper_qpos")] + ["object"]
    else:
        keys = header.vector_names
    for key in keys:
        if key not in header.observation_names:
            names = ", ".join(header.observation_names)
            raise TaskError(f"there is no observation {key!r}; the file has {names}; choose with --observation-keys")
    if not keys:
        raise TaskError(f"no observation is a vector; the file has {', '.join(header.observation_names)}")
    return keys


def read_robomimic_file(
    path: Path, observation_keys: list[str] | None = None, dataset_filter: str | None = None
) -> Transitions:
    """Read the demonstrations of a robomimic file, or those under a filter key, in the order of their numbers.

    Rewards and dones are the file's own. robomimic sets dones where the task is achieved (done_mode 0), at the last
    step (1), or at both (2). Without `next_obs` the last step is a transition only if it is done. The return of a
    demonstration is 1 if its largest reward is that of success, else 0; dense rewards before success are smaller.

    Args:
        path: the file.
        observation_keys: the observations to concatenate; None for the default of `choose_observations`.
        dataset_filter: filter key, the name of a list of demonstrations in the file; None for all demonstrations.

    Raises:
        TaskError: if the file cannot be read, lacks the filter key, or holds no transition.
    """
    header = read_header(path)
    trajectories = []
    returns = []
    with task_errors(path), h5py.File(path, "r") as file:
        used = choose_observations(header, observation_keys)
        success_reward = 0.999 * (header.env_args.get("env_kwargs", {}).get("reward_scale") or 1.0)
        for name in demonstration_names(file, dataset_filter):
            with task_errors(name):
                columns = read_demonstration(file["data"][name], used)
            returns.append(columns["rewards"].max(initial=0.0) >= success_reward)
            trajectories.append(with_next_observations(columns))
        transitions = Transitions(join(trajectories), np.array(returns, np.float64))
        unused = [name for name in header.observation_names if name not in used]
        if not observation_keys and used == header.vector_names and unused:
            transitions.notes.append(note_observations(used, unused))
        return transitions


def demonstration_names(file: h5py.File, dataset_filter: str | None) -> list[str]:
    """The names of all demonstrations, or of those under a filter key.

    They are sorted by the numbers at their ends, demo_2 before demo_10. Names without numbers stay in the file's order.
    Groups without actions and observations, such as one for metadata, are no demonstrations.
    """
    if dataset_filter is None:
        groups = {name: group for name, group in file["data"].items() if isinstance(group, h5py.Group)}
        names = [name for name, group in groups.items() if "actions" in group or "obs" in group]
    else:
        filters = file.get("mask", {})
        if dataset_filter not in filters:
            existing = ", ".join(filters) or "none"
            raise TaskError(f"there is no filter key {dataset_filter!r}; filter keys in this file: {existing}")
        names = [name.decode() for name in filters[dataset_filter][()]]
    numbers = {name: re.search(r"\d+$", name) for name in names}  # a dict also drops repetitions
    if not all(numbers.values()):
        return list(numbers)
    return sorted(numbers, key=lambda name: int(numbers[name][0]))


def read_demonstration(group: h5py.Group, observation_keys: list[str]) -> dict[str, np.ndarray]:
    """The checked columns of a demonstration, with next_observations only if the file has them."""
    columns = {
        "observations": concatenated(group["obs"], observation_keys),
        "actions": read_array(group["actions"]),
        "rewards": read_array(group["rewards"]),
        "terminals": read_array(group["dones"]),
    }
    if "next_obs" in group:
        columns["next_observations"] = concatenated(group["next_obs"], observation_keys)
    return check_columns(columns)


def concatenated(group: h5py.Group, observation_keys: list[str]) -> np.ndarray:
    """The observations under the keys, flattened and concatenated (T, o)."""
    arrays = [read_array(group[key]) for key in observation_keys]
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
