"""Reads a file or folder in whichever layout it has: LeRobot's, robomimic's or D4RL's."""

from pathlib import Path
from typing import Any

import h5py

from tasks.common import TaskError
from tasks.d4rl_file import read_d4rl_file
from tasks.lerobot_file import is_lerobot_folder, read_lerobot_folder
from tasks.robomimic_file import is_robomimic_file, read_robomimic_file
from tasks.transitions import Transitions

LEROBOT_OPTIONS = ("observation_keys", "assume_success")
ROBOMIMIC_OPTIONS = ("dataset_filter", "observation_keys")


def layout_options(path: Path | None) -> tuple[str, ...]:
    """The options of `tasks.make` that apply to a file in its layout."""
    if path is None:
        return ()
    if is_lerobot_folder(path):
        return LEROBOT_OPTIONS
    if is_robomimic_file(path):
        return ROBOMIMIC_OPTIONS
    return ()


def read_file(path: Path, max_episode_steps: int, options: dict[str, Any]) -> Transitions:
    """The transitions of a file or folder.

    Args:
        path: a LeRobot folder, or an HDF5 file in robomimic's or D4RL's layout.
        max_episode_steps: where to cut trajectories of a file in D4RL's layout that marks no end.
        options: those of `layout_options`, without defaults.

    Raises:
        TaskError: if it cannot be read.
    """
    if is_lerobot_folder(path):
        return read_lerobot_folder(path, **options)
    if path.is_dir():
        raise TaskError(f"{path} is a folder without meta/info.json, and so is not a LeRobot dataset")
    if not h5py.is_hdf5(path):
        raise TaskError(f"{path} is not an HDF5 file, or is damaged")
    if is_robomimic_file(path):
        return read_robomimic_file(path, **options)
    return read_d4rl_file(path, max_episode_steps)
