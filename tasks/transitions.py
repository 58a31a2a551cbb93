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


def prepare_observations(columns: dict[str, np.ndarray], notes: list[str]) -> None:
    """Make observations and next_observations (N, o) float32, and clip values that stand for a missing reading.

    Values such as 1e9 would set the mean and the deviation by which networks standardize their column. A value counts
    as missing if a gap separates it from the rest of the column that is a hundred times as wide as the rest's range, or
    as 1e-3 if the rest varies by less.

    Args:
        columns: observations and next_observations are replaced.
        notes: gets a sentence if there are such values, and one if there are columns whose movement float32 cannot
            resolve because it is small beside their offset.
    """
    observations = columns["observations"]
    low, high = observations.min(0), observations.max(0)
    resolution = np.spacing(np.maximum(-low, high).astype(np.float32))
    unresolved = np.flatnonzero((high - low > 1e-5) & (high - low < 100 * resolution))
    if len(unresolved):
        i = unresolved[0]
        notes.append(
            f"observations: columns {', '.join(map(str, unresolved))} move little beside their offset, such as from "
            f"{low[i]:.9g} to {high[i]:.9g}, where float32 has steps of {resolution[i]:.2g}; subtract the offset in "
            "the data and on the robot"
        )
    sentences = []
    for key in ("observations", "next_observations"):
        columns[key] = columns[key].astype(np.float32, copy=False)
        sentences += clip_wild_values(key, columns[key], gap=100.0, share=0.5, least=1e-3)
    notes += sentences[:1]  # the same values are in both


def clip_wild_values(key: str, values: np.ndarray, gap: float, share: float, least: float = 0.0) -> list[str]:
    """Clip the wild values of each column of values (N, D) to the range of the rest, in place.

    Wild values are separated from all others, which must vary, by more than `gap` times the range of the others (or
    than `least`, if that is larger), and are less than `share` of the column.

    Returns a sentence about them that begins with `key`, in a list; an empty list if there are none.
    """
    wild = np.zeros(values.shape, bool)
    for i in range(values.shape[1]):
        column = values[:, i]
        low, high = range_without_wild_values(np.sort(column), gap, least)
        outside = (column < low) | (column > high)
        if outside.sum() < share * len(column):
            wild[:, i] = outside
    if not wild.any():
        return []
    row, first = np.argwhere(wild)[0]
    example = f"{values[row, first]:.4g} in transition {row}"
    wild_columns = np.flatnonzero(wild.any(0))
    for i in wild_columns:
        rest = values[~wild[:, i], i]
        np.clip(values[:, i], rest.min(), rest.max(), out=values[:, i])
    return [
        f"{key}: {wild.any(1).sum()} of {len(values)} transitions have values far outside all others, such as "
        f"{example}, in columns {', '.join(map(str, wild_columns))}; they are clipped"
    ]


def range_without_wild_values(ordered: np.ndarray, gap: float, least: float) -> tuple[float, float]:
    """The smallest and the largest of sorted values (N,) that are not wild: see `clip_wild_values`."""
    while len(ordered) > 1:
        widest = np.argmax(np.diff(ordered))
        below, above = ordered[: widest + 1], ordered[widest + 1 :]
        rest = max(below, above, key=len)
        spread = rest[-1] - rest[0]
        if spread == 0 or above[0] - below[-1] <= gap * max(spread, least):
            break
        ordered = rest
    return ordered[0], ordered[-1]


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
