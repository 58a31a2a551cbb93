"""Transitions as the readers return them, and the checks that every dataset passes."""

from dataclasses import dataclass, field

import numpy as np

from tasks.common import TaskError

FLAGS = ("terminals", "timeouts", "ends")


@dataclass
class Transitions:
    """The content of a dataset, before its actions are scaled.

    Attributes:
        columns: arrays over N transitions, named as in `Task.dataset`. Observations have the file's own precision, and
            actions are in the environment's own units.
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
    """Check columns read from a file. Flags (terminals, timeouts, ends) become bool, actions and rewards float32.

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
            continue
        check_numbers(key, values)
        if key in ("actions", "rewards") or values.dtype.kind != "f":
            values = values.astype(np.float32, copy=False)
        checked[key] = values
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


def check_numbers(key: str, values: np.ndarray) -> None:
    """Raise TaskError for NaN, infinity and values that overflow float32 when they are squared."""
    finite = np.isfinite(values)
    if not finite.all():
        raise TaskError(f"{key} has a NaN or an infinity in row {np.argwhere(~finite)[0, 0]}")
    small = np.abs(values) < 1e18
    if not small.all():
        row = np.argwhere(~small)[0, 0]
        raise TaskError(f"{key} has a value too large for float32 in row {row}: squares of 1e18 and more may overflow")


def prepare_observations(key: str, values: np.ndarray, notes: list[str]) -> np.ndarray:
    """Observations (N, o) as float32, without values such as 1e9 that stand for a missing reading.

    Such values would set the mean and the deviation of their column, by which networks standardize observations. A
    value counts as one if it is separated from the rest of the column by a gap a hundred times as wide as the rest's
    range, or as 1e-3 if the rest varies by less. It is clipped to this range. `notes` gets a sentence for each such
    column, and for each column whose movement float32 cannot resolve because it is small beside its offset.
    """
    low, high = values.min(0), values.max(0)
    resolution = np.spacing(np.maximum(-low, high).astype(np.float32))
    for i in np.flatnonzero((high - low > 1e-5) & (high - low < 100 * resolution)):
        notes.append(
            f"{key}: column {i} lies from {low[i]:.9g} to {high[i]:.9g}, where float32 has steps of "
            f"{resolution[i]:.2g}; subtract the offset in the data and on the robot"
        )
    values = values.astype(np.float32, copy=False)
    clip_wild_values(f"{key}: column", values, notes, gap=100.0, share=0.5, least=1e-3)
    return values


def clip_wild_values(
    what: str, values: np.ndarray, notes: list[str], gap: float, share: float, least: float = 0.0
) -> None:
    """Clip the wild values of each column of values (N, D) to the range of the rest, in place.

    Wild values are separated from all others, which must vary, by more than `gap` times the range of the others (or
    than `least`, if that is larger), and are less than `share` of the column. `notes` gets a sentence for each column
    that has wild values; `what` starts it.
    """
    for i in range(values.shape[1]):
        column = values[:, i]
        ordered = np.sort(column)
        low, high = 0, len(ordered) - 1  # indices of the smallest and the largest value that is not wild
        while low < high:
            widest = low + np.argmax(np.diff(ordered[low : high + 1]))
            width = ordered[widest + 1] - ordered[widest]
            lower_part = low, widest
            upper_part = widest + 1, high
            rest = max(lower_part, upper_part, key=lambda part: part[1] - part[0])
            spread = ordered[rest[1]] - ordered[rest[0]]
            if spread == 0 or width <= gap * max(spread, least):
                break
            low, high = rest
        wild_count = len(ordered) - (high - low + 1)
        if 0 < wild_count < share * len(ordered):
            wild = (column < ordered[low]) | (column > ordered[high])
            row = np.argmax(wild)
            notes.append(
                f"{what} {i} lies from {ordered[low]:.4g} to {ordered[high]:.4g}, except in {wild_count} of "
                f"{len(column)} rows (row {row}: {column[row]:.4g}), where it is clipped"
            )
            np.clip(column, ordered[low], ordered[high], out=column)


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
