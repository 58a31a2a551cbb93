"""Transitions as the readers return them, and the checks that every dataset passes."""

from dataclasses import dataclass, field

import numpy as np

from tasks.common import TaskError

FLAGS = ("terminals", "timeouts", "ends")


@dataclass
class Transitions:
    """The content of a dataset, before its actions are scaled.

    Attributes:
        columns: arrays over N transitions, named as in `Task.dataset`. Actions are in the environment's own units.
        returns: (E,) float64, sum of rewards of each trajectory in the file. It includes the rewards of rows that are
            not transitions, as the benchmarks do.
        notes: sentences about the data that the user should read.
        ordered: False if the rows do not follow each other, so that each row is a trajectory of its own here.
    """

    columns: dict[str, np.ndarray]
    returns: np.ndarray
    notes: list[str] = field(default_factory=list)
    ordered: bool = True


def check_columns(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Check columns read from a file. Flags (terminals, timeouts, ends) become bool, everything else float32.

    Args:
        columns: observations, next_observations and actions (N, dimensions); rewards and flags (N,) or (N, 1). Columns
            may be missing, except observations.

    Raises:
        TaskError: for unequal lengths, types other than numbers, NaN and infinity, values whose square overflows
            float32, and flags other than 0 and 1.
    """
    count = len(columns["observations"])
    checked = {}
    for key, values in columns.items():
        if values.dtype.kind not in "biuf":
            raise TaskError(f"{key} holds values of type {values.dtype}, not numbers")
        if key == "rewards" or key in FLAGS:
            values = values.reshape(-1)
        elif values.ndim != 2:
            raise TaskError(f"{key} has {values.ndim} dimensions, not 2")
        if len(values) != count:
            raise TaskError(f"{key} has {len(values)} rows, observations has {count}")
        if key in FLAGS:
            checked[key] = check_flags(key, values)
        else:
            checked[key] = check_numbers(key, values)
    shape = checked["observations"].shape
    if "next_observations" in checked and checked["next_observations"].shape != shape:
        raise TaskError(f"next_observations has shape {checked['next_observations'].shape}, observations has {shape}")
    return checked


def check_flags(key: str, values: np.ndarray) -> np.ndarray:
    """Flags (N,) as bool. Raises TaskError for values other than 0 and 1."""
    valid = (values == 0) | (values == 1)
    if not valid.all():
        row = np.argmin(valid)
        raise TaskError(f"{key} is {values[row]} in row {row}, neither 0 nor 1")
    return values.astype(bool, copy=False)


def check_numbers(key: str, values: np.ndarray) -> np.ndarray:
    """Numbers as float32. Raises TaskError for NaN, infinity and values that overflow when they are squared."""
    finite = np.isfinite(values)
    if not finite.all():
        raise TaskError(f"{key} has a NaN or an infinity in row {np.argwhere(~finite)[0, 0]}")
    small = np.abs(values) < 1e18
    if not small.all():
        row = np.argwhere(~small)[0, 0]
        raise TaskError(f"{key} has a value too large for float32 in row {row}: squares of 1e18 and more may overflow")
    return values.astype(np.float32, copy=False)


def join(trajectories: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the columns of trajectories and add the column `ends`.

    Raises:
        TaskError: if there is no transition.
    """
    trajectories = [columns for columns in trajectories if len(columns["rewards"])]
    if not trajectories:
        raise TaskError("there is no transition in it")
    joined = {key: np.concatenate([columns[key] for columns in trajectories]) for key in trajectories[0]}
    lengths = [len(columns["rewards"]) for columns in trajectories]
    joined["ends"] = np.zeros(sum(lengths), bool)
    joined["ends"][np.cumsum(lengths) - 1] = True
    return joined
