"""Reads HDF5 files in D4RL's layout: one array a column, trajectories one after the other."""

from pathlib import Path

import h5py
import numpy as np

from tasks.common import TaskError, read_array, task_errors
from tasks.transitions import Transitions, check_columns

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("next_observations", "timeouts")


def read_d4rl_file(path: Path, max_episode_steps: int) -> Transitions:
    """Read a file in D4RL's layout.

    With `next_observations` every row is a transition, and trajectories end at `terminals` and `timeouts`. If the rows
    do not follow each other (see `rows_follow`), as in a shuffled replay buffer, each row is a trajectory of its own,
    and `returns` is a single number: the total reward divided by the number of ends that the file marks.

    Without `next_observations` the rule of d4rl's `qlearning_dataset` holds: row i + 1 follows row i, and the last step
    of a timed-out trajectory is not a transition. If `timeouts` is missing too, a counter decides: see
    `counted_timeouts`.

    A file that marks no end in more than `max_episode_steps` rows is cut at that limit. `returns` sums rewards up to
    each end. The rows after the last end count only if there is no end.

    Args:
        path: the file.
        max_episode_steps: step limit of the environment that the data comes from.

    Raises:
        TaskError: if the file cannot be read, lacks a column or holds invalid values.
    """
    with task_errors(path):
        columns = read_columns(path)
        terminals = columns["terminals"]
        count = len(terminals)
        if not count:
            raise TaskError("it contains no transitions")
        marks_timeouts = "timeouts" in columns
        timeouts = columns.pop("timeouts", np.zeros(count, bool))

        notes = []
        unmarked = count > max_episode_steps and not (terminals | timeouts).any()
        if unmarked:
            notes.append(
                f"the file marks no end of a trajectory in {count} rows; they are cut every {max_episode_steps} rows, "
                "the step limit"
            )
        if "next_observations" in columns:
            if unmarked:
                timeouts[max_episode_steps - 1 :: max_episode_steps] = True
            return with_next_observations(columns, timeouts, notes)
        if unmarked or not marks_timeouts:
            timeouts = counted_timeouts(terminals, max_episode_steps)
        return without_next_observations(columns, timeouts, notes)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The checked columns of a file in D4RL's layout. Raises TaskError if one is missing or invalid."""
    with h5py.File(path, "r") as file:
        for key in REQUIRED:
            if key not in file:
                raise TaskError(f"the key {key!r} is missing; files in D4RL's layout have {', '.join(REQUIRED)}")
        keys = [key for key in (*REQUIRED, *OPTIONAL) if key in file]
        return check_columns({key: np.atleast_1d(read_array(file[key])) for key in keys})


def counted_timeouts(terminals: np.ndarray, max_episode_steps: int) -> np.ndarray:
    """Timeouts (N,) bool by the step counter in d4rl's `qlearning_dataset`, for files that do not mark them.

    The counter starts at 0. It times out at the step limit and restarts at 0 after a timeout, at 1 after a terminal.
    """
    timeouts = np.zeros(len(terminals), bool)
    start = 0
    steps = 0  # the counter's value at row `start`
    for end in (*np.flatnonzero(terminals), len(terminals) - 1):
        timeouts[start + max_episode_steps - 1 - steps : end + 1 : max_episode_steps] = True
        steps = 0 if timeouts[end] else 1
        start = end + 1
    return timeouts


def with_next_observations(columns: dict[str, np.ndarray], timeouts: np.ndarray, notes: list[str]) -> Transitions:
    """Every row is a transition. `columns` is extended by `ends`."""
    ends = columns["terminals"] | timeouts
    ordered = rows_follow(columns["observations"], columns["next_observations"], ends)
    if ordered:
        returns = sums_to_ends(columns["rewards"], ends)
    else:
        returns = np.array([columns["rewards"].sum(dtype=np.float64) / max(ends.sum(), 1)])
        ends = np.ones(len(ends), bool)
        notes.append("rows do not follow each other, as in a shuffled file; they are used as single transitions")
    columns["ends"] = ends
    return Transitions(columns, returns, notes, ordered)


def without_next_observations(columns: dict[str, np.ndarray], timeouts: np.ndarray, notes: list[str]) -> Transitions:
    """The next observation is the next row's. Timed-out rows and the last row are not transitions."""
    returns = sums_to_ends(columns["rewards"], columns["terminals"] | timeouts)
    kept = np.flatnonzero(~timeouts[:-1])
    transitions = {key: values[kept] for key, values in columns.items()}
    transitions["next_observations"] = columns["observations"][kept + 1]
    skips_rows = np.diff(kept, append=len(timeouts)) != 1
    transitions["ends"] = transitions["terminals"] | skips_rows
    dropped = np.setdiff1d(np.flatnonzero(columns["rewards"]), kept)
    if len(dropped) and not transitions["rewards"].any():
        notes.append(
            "all rewards are in rows that are no transitions, because no next observation follows them: mark these "
            "rows as terminals, or add next_observations"
        )
    return Transitions(transitions, returns, notes)


def sums_to_ends(rewards: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sums of rewards (N,) float32 up to each end (E,) float64; the sum of all rewards if there is no end."""
    last_rows = np.flatnonzero(ends)
    if not len(last_rows):
        last_rows = np.array([len(ends) - 1])
    sums = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    return np.diff(sums[last_rows + 1], prepend=0.0)


def rows_follow(observations: np.ndarray, next_observations: np.ndarray, ends: np.ndarray) -> bool:
    """Whether a row's next observation is usually the observation of the next row, or at least close to it.

    10,000 rows that do not end a trajectory are drawn with a fixed seed. Rows follow each other if the median distance
    between a row's next observation and the next row's observation is at most half of the median distance between a
    row's next observation and the observation of a random row. Distances are Euclidean, in units of each column's
    standard deviation; columns that never change are left out. The ratio of the medians is 0 in exact files, below 0.1
    with noise of a tenth of the standard deviation, about 0.4 with noise of half, and about 1 in shuffled files.

    Args:
        observations, next_observations: (N, o).
        ends: (N,) bool.
    """
    rows = np.flatnonzero(~ends[:-1])
    if not len(rows):
        return True
    rng = np.random.default_rng(0)
    rows = rng.choice(rows, 10_000)
    random_rows = rng.integers(len(ends), size=len(rows))
    sample = observations[random_rows]
    deviation = sample.std(0, dtype=np.float64)
    changing = deviation > 10 * np.finfo(sample.dtype).eps * np.abs(sample).max(0)  # otherwise it is rounding

    def median_distance(others: np.ndarray) -> float:
        differences = next_observations[rows] - observations[others]
        return np.median(np.linalg.norm(differences[:, changing] / deviation[changing], axis=1))

    return bool(median_distance(rows + 1) <= 0.5 * median_distance(random_rows))
