"""Transitions as the readers return them, and the checks that every dataset passes."""

from dataclasses import dataclass, field

import numpy as np

from tasks.common import TaskError

FLAGS = ("terminals", "timeouts", "ends")


@dataclass
class Transitions:
    """The content of a dataset, before its actions are scaled.

    Attributes:
        columns: arrays over N transitions, named as in `Task.dataset`. Observations and actions have the file's own
            precision, and actions are in the environment's own units.
        returns: (E,) float64, the return of each trajectory in the file as its benchmark counts it: the sum of rewards,
            including those of rows that are not transitions, or 1 for a success.
        notes: sentences about the data that the user should read.
        ordered: False if the rows do not follow each other, so that each row is a trajectory of its own here.
    """

    columns: dict[str, np.ndarray]
    returns: np.ndarray
    notes: list[str] = field(default_factory=list)
    ordered: bool = True


def check_columns(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Check columns read from a file. Flags (terminals, timeouts, ends) become bool, rewards float32.

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
            raise TaskError(f"{key} has shape {values.shape}, not (rows, dimensions)")
        if len(values) != count:
            raise TaskError(f"{key} has {len(values)} rows, observations has {count}")
        if key in FLAGS:
            checked[key] = check_flags(key, values)
            continue
        if values.dtype == np.float16:  # the checks would overflow
            values = values.astype(np.float32)
        check_numbers(key, values)
        if key == "rewards":
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


def make_float32(columns: dict[str, np.ndarray], notes: list[str]) -> None:
    """Make observations, next_observations (N, o) and actions (N, a) float32, and clip outliers of the observations.

    Outliers stand for missing readings. Values such as 1e9 would set the mean and the deviation by which networks
    standardize their column.

    Args:
        columns: the three columns are replaced.
        notes: gets a sentence if there are outliers, and one for each of observations and actions whose movement
            float32 cannot resolve because it is small beside an offset.
    """
    sentences = []
    for key in ("observations", "next_observations", "actions"):
        if columns[key].dtype.kind != "f":
            columns[key] = columns[key].astype(np.float64)
    for key in ("observations", "next_observations"):
        sentences += clip_outliers(key, columns[key], gap=100.0, min_range=1e-3)
    notes += sentences[:1]  # the same values are in both
    for key in ("observations", "actions"):
        notes += note_resolution(key, columns[key])
    for key in ("observations", "next_observations", "actions"):
        columns[key] = columns[key].astype(np.float32, copy=False)


def note_resolution(key: str, values: np.ndarray) -> list[str]:
    """A sentence about the columns of values (N, D) that move by few steps of float32, in a list; it can be empty."""
    low, high = values.min(0), values.max(0)
    resolution = np.spacing(np.maximum(-low, high).astype(np.float32))
    unresolved = np.flatnonzero((high - low > 1e-5) & (high - low < 100 * resolution))
    if not len(unresolved):
        return []
    i = unresolved[0]
    return [
        f"{key}: columns {', '.join(map(str, unresolved))} vary too little beside their offset for float32 (column "
        f"{i}: from {low[i]:.9g} to {high[i]:.9g} in steps of {resolution[i]:.2g}); subtract the offset in the data "
        "and on the robot"
    ]


def clip_outliers(key: str, values: np.ndarray, gap: float, min_range: float = 0.0) -> list[str]:
    """Clip the outliers of each column of values (N, D) to the range of its other values, in place.

    Outliers are isolated from the bulk of the column: see `range_of_bulk`. They are either few, at most one row in two
    hundred, and farther from the bulk than `gap` times its range, or one value that is repeated exactly, ten times the
    range away from a bulk of many different values. Other groups of values far apart stay, such as an angle that wraps.

    Args:
        key: begins the sentence.
        values: (N, D) floating-point numbers.
        gap: how isolated a few values must be.
        min_range: the least range of the bulk to compare with.

    Returns:
        A sentence about the outliers in a list, which is empty if there are none.
    """
    is_outlier = np.zeros(values.shape, bool)
    for i in range(values.shape[1]):
        column = values[:, i]
        distinct = np.unique(column)
        for factor, is_kind in ((gap, is_few), (10.0, is_repeated_value)):
            low, high = range_of_bulk(distinct, factor, min_range)
            outside = (column < low) | (column > high)
            if outside.any() and is_kind(column[outside], column[~outside]):
                is_outlier[:, i] = outside
                break
    if not is_outlier.any():
        return []
    row, first = np.argwhere(is_outlier)[0]
    example = f"{values[row, first]:.4g} in transition {row}"
    affected = np.flatnonzero(is_outlier.any(0))
    for i in affected:
        others = values[~is_outlier[:, i], i]
        np.clip(values[:, i], others.min(), others.max(), out=values[:, i])
    return [
        f"{key}: {is_outlier.any(1).sum()} of {len(values)} transitions have values far outside all others, such as "
        f"{example}, in columns {', '.join(map(str, affected))}; they are clipped"
    ]


def is_few(outside: np.ndarray, inside: np.ndarray) -> bool:
    """Whether the values outside the bulk are at most one in two hundred, or a single one."""
    return len(outside) <= max(0.005 * (len(outside) + len(inside)), 1)


def is_repeated_value(outside: np.ndarray, inside: np.ndarray) -> bool:
    """Whether the values outside the bulk are one or two values, while those inside vary."""
    return len(np.unique(outside)) <= 2 and len(np.unique(inside)) >= 20


def range_of_bulk(distinct: np.ndarray, gap: float, min_range: float) -> tuple[float, float]:
    """The smallest and the largest value of the bulk of sorted, distinct values (K,).

    The bulk begins as the narrowest half of the values. It extends to both sides until the distance to the next value
    exceeds `gap` times its range, or times `min_range` if that is larger.
    """
    half = (len(distinct) + 1) // 2
    if half == len(distinct):
        return distinct[0], distinct[-1]
    first = np.argmin(distinct[half:] - distinct[: len(distinct) - half])
    last = first + half
    gaps = np.diff(distinct)
    too_far = gaps[last:] > gap * np.maximum(distinct[last:-1] - distinct[first], min_range)
    high = last + np.argmax(np.append(too_far, True))
    too_far = gaps[:first] > gap * np.maximum(distinct[last] - distinct[1 : first + 1], min_range)
    low = first - np.argmax(np.append(too_far[::-1], True))
    return distinct[low], distinct[high]


def starts(ends: np.ndarray) -> np.ndarray:
    """The first rows (E,) int64 of trajectories whose last rows are marked in `ends` (N,) bool."""
    return np.flatnonzero(np.append(True, ends[:-1]))


def trajectory_lengths(ends: np.ndarray) -> np.ndarray:
    """The lengths (E,) int64 of trajectories, including a last one whose end is not marked in `ends` (N,) bool."""
    return np.diff(starts(ends), append=len(ends))


def note_observations(used: list[str], unused: list[str]) -> str:
    """A sentence about the observations that a default has chosen and those that it leaves out."""
    return f"observations are {', '.join(used)}, without {', '.join(unused)}; --observation-keys chooses"


def join(trajectories: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the columns of trajectories and add the column `ends`.

    Raises:
        TaskError: if there is no transition.
    """
    trajectories = [columns for columns in trajectories if len(columns["rewards"])]
    if not trajectories:
        raise TaskError("it contains no transitions")
    joined = {key: np.concatenate([columns[key] for columns in trajectories]) for key in trajectories[0]}
    lengths = [len(columns["rewards"]) for columns in trajectories]
    joined["ends"] = np.zeros(sum(lengths), bool)
    joined["ends"][np.cumsum(lengths) - 1] = True
    return joined
