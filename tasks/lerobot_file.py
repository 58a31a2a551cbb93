"""Reads LeRobot dataset folders in the formats 2.0, 2.1 and 3.0: parquet files with one row per frame, never videos."""

import json
import re
from pathlib import Path

import numpy as np

from tasks.common import TaskError, task_errors
from tasks.transitions import (
    Transitions,
    check_columns,
    check_flags,
    note_observations,
    starts,
    trajectory_lengths,
)

BOOKKEEPING = ("episode_index", "frame_index", "timestamp", "index", "task_index")
NO_REWARDS = "the data have no rewards and no success flags; --assume-success counts every episode as a success"
DONE_IS_THE_END = (
    "next.done is true at the last frame of every episode and nowhere else, which can mean a time limit: no frame is "
    "terminal"
)


def is_lerobot_folder(path: Path) -> bool:
    """Whether a path is a folder with LeRobot's meta/info.json."""
    return (path / "meta" / "info.json").is_file()


def read_lerobot_folder(
    path: Path, observation_keys: list[str] | None = None, assume_success: bool = False
) -> Transitions:
    """Read all episodes of a folder.

    A frame holds an observation, the action taken there and, in the columns `next.*`, what followed: see
    `rewards_and_terminals`. The observation after an episode's last frame is not in the data, so the last frame is no
    transition. Its reward and its terminal flag move to the frame before, unless that is terminal itself: what follows
    a terminal frame does not count. `returns` sums the rewards of all frames.

    Args:
        path: the folder.
        observation_keys: columns to concatenate; default observation.state, and observation.environment_state if there.
        assume_success: count every episode as a success.

    Raises:
        TaskError: if the folder cannot be read, files are missing, or columns are missing or invalid.
    """
    with task_errors(path):
        info = read_info(path)
        files = data_files(path, info)
        keys, unused = select_observations(files[0], info, observation_keys)
        frames, last = sort_frames(read_frames(path, files, keys), info)
        columns = {"observations": np.concatenate([frames[key] for key in keys], axis=1), "actions": frames["action"]}
        transitions = to_transitions(columns, frames, last, assume_success)
        if unused:
            transitions.notes.append(note_observations(keys, unused))
        return transitions


def largest_rewards(path: Path) -> np.ndarray:
    """The largest reward (E,) of every episode of a folder. Raises TaskError if it cannot be read."""
    with task_errors(path):
        info = read_info(path)
        frames, last = sort_frames(read_frames(path, data_files(path, info), []), info)
        if "next.reward" not in frames:
            raise TaskError("the column 'next.reward' is missing")
        return np.maximum.reduceat(frames["next.reward"].reshape(-1), starts(last))


# ---- files -----------------------------------------------------------------------------------------------------------


def read_info(path: Path) -> dict:
    """The content of meta/info.json. Raises TaskError for other formats than 2 and 3, and for missing keys."""
    info = json.loads((path / "meta" / "info.json").read_text(encoding="utf-8-sig"))
    version = str(info.get("codebase_version"))
    if not re.match(r"v[23]\.", version):
        raise TaskError(f"the codebase_version is {version}; LeRobot's formats v2.0, v2.1 and v3.0 can be read")
    for key in ("data_path", "total_episodes", "total_frames"):
        if key not in info:
            raise TaskError(f"meta/info.json has no {key!r}")
    return info


def data_files(path: Path, info: dict) -> list[Path]:
    """The parquet files that the metadata lists. Raises TaskError if one of them is missing."""
    if info["codebase_version"].startswith("v2"):
        episodes = path / "meta" / "episodes.jsonl"
        if not episodes.is_file():
            raise TaskError("meta/episodes.jsonl is missing")
        lines = episodes.read_text(encoding="utf-8-sig").split("\n")
        numbers = sorted({json.loads(line)["episode_index"] for line in lines if line.strip()})
        places = [
            {
                "episode_chunk": number // info.get("chunks_size", 1000),
                "episode_index": number,
                "total_episodes": info["total_episodes"],
            }
            for number in numbers
        ]
    else:
        lists = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
        if not lists:
            raise TaskError("meta/episodes has no parquet file")
        keys = ["data/chunk_index", "data/file_index"]
        tables = [read_parquet(path, file, keys) for file in lists]
        pairs = sorted({pair for table in tables for pair in zip(*(table[key].flat for key in keys), strict=True)})
        places = [{"chunk_index": int(chunk), "file_index": int(file)} for chunk, file in pairs]
    names = [info["data_path"].format(**place) for place in places]
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise TaskError(
            f"{missing[0]} is missing ({len(missing)} of {len(names)} data files are); copy or download them again"
        )
    if not names:
        raise TaskError("it contains no transitions")
    return [path / name for name in names]


def numeric_columns(file: Path) -> list[str]:
    """The columns of a parquet file that hold numbers, or lists of numbers."""
    import pyarrow.parquet as pq
    from pyarrow import types

    names = []
    for field in pq.read_schema(file):
        kind = field.type
        if is_list(kind):
            kind = kind.value_type
        if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
            names.append(field.name)
    return names


def read_parquet(path: Path, file: Path, keys: list[str], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Columns of a parquet file as arrays (rows, dimensions), with those of the optional ones that it has.

    Raises:
        TaskError: if a column is missing or has gaps.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with task_errors(file.relative_to(path)):
        parquet = pq.ParquetFile(file)
        keys = [*keys, *(key for key in optional if key in parquet.schema_arrow.names)]
        table = parquet.read(keys)
        columns = {}
        for key in keys:
            if key not in table.column_names:
                raise TaskError(f"the column {key!r} is missing")
            values = table.column(key).combine_chunks()
            gaps = values.null_count
            if is_list(values.type):
                lengths = pc.unique(pc.list_value_length(values))
                values = values.flatten()
                gaps += values.null_count
                if not gaps and len(lengths) > 1:
                    raise TaskError(f"{key} holds vectors of different lengths")
            if gaps:
                raise TaskError(f"{key} has missing values")
            columns[key] = values.to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
        return columns


def is_list(kind) -> bool:
    """Whether an Arrow type is a list. Vectors are; scalars are lists of length 1 in the files of some writers."""
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


# ---- frames ----------------------------------------------------------------------------------------------------------


def select_observations(file: Path, info: dict, observation_keys: list[str] | None) -> tuple[list[str], list[str]]:
    """The columns to read as observations, and those that the default leaves out.

    Raises:
        TaskError: if they do not exist or are not vectors.
    """
    names = [name for name in numeric_columns(file) if name not in (*BOOKKEEPING, "action")]
    vectors = [name for name in names if not name.startswith("next.")]
    if observation_keys:
        unknown = [key for key in observation_keys if key not in vectors]
        if unknown:
            existing = ", ".join(vectors) or "nothing"
            raise TaskError(f"there is no vector {unknown[0]!r}; choose with --observation-keys from: {existing}")
        return observation_keys, []
    keys = [key for key in ("observation.state", "observation.environment_state") if key in vectors]
    if keys:
        return keys, [key for key in vectors if key not in keys]
    if vectors:
        raise TaskError(f"there is no observation.state; choose with --observation-keys from: {', '.join(vectors)}")
    features = info.get("features", {})
    images = [key for key, feature in features.items() if feature.get("dtype") in ("image", "video")]
    if images:
        raise TaskError(f"the observations are images only ({', '.join(images)}); SAQ needs vectors")
    raise TaskError("there are no observations in it")


def read_frames(path: Path, files: list[Path], observation_keys: list[str]) -> dict[str, np.ndarray]:
    """The columns that are needed, (frames, dimensions), of all files one after the other."""
    required = list(dict.fromkeys([*observation_keys, "action", "episode_index", "frame_index"]))
    optional = ("next.reward", "next.success", "next.done")
    tables = [read_parquet(path, file, required, optional) for file in files]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    for file, table in zip(files, tables, strict=True):
        name = file.relative_to(path)
        for key in keys:
            if key not in table:
                raise TaskError(f"{name}: the column {key!r} is missing")
            width, expected = table[key].shape[1], tables[0][key].shape[1]
            if width != expected:
                raise TaskError(f"{name}: {key} has {width} dimensions, those of other files have {expected}")
    return {key: np.concatenate([table[key] for table in tables]) for key in keys}


def sort_frames(frames: dict[str, np.ndarray], info: dict) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Sort frames by episode and number, and mark the last of each episode.

    Args:
        frames: columns (N, dimensions), with episode_index and frame_index.
        info: the content of meta/info.json.

    Returns:
        frames: the sorted columns.
        last: (N,) bool, the frames that end an episode.

    Raises:
        TaskError: if frames or episodes are missing.
    """
    episodes = frames["episode_index"].reshape(-1)
    numbers = frames["frame_index"].reshape(-1)
    if not len(episodes):
        raise TaskError("it contains no transitions")
    order = np.lexsort((numbers, episodes))
    episodes, numbers = episodes[order], numbers[order]
    last = np.append(episodes[1:] != episodes[:-1], True)
    wrong = numbers != np.arange(len(numbers)) - np.repeat(starts(last), trajectory_lengths(last))
    if wrong.any():
        row = np.argmax(wrong)
        raise TaskError(f"the frames of episode {episodes[row]} are not numbered 0, 1, 2 ...: see frame {numbers[row]}")
    if (last.sum(), len(last)) != (int(info["total_episodes"]), int(info["total_frames"])):
        raise TaskError(
            f"meta/info.json says {info['total_episodes']} episodes with {info['total_frames']} frames, the data files "
            f"have {last.sum()} with {len(last)}"
        )
    return {key: values[order] for key, values in frames.items()}, last


def rewards_and_terminals(
    rewards: np.ndarray | None,
    success: np.ndarray | None,
    done: np.ndarray | None,
    last: np.ndarray,
    assume_success: bool,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rewards (N,) float32 and terminal flags (N,) bool of frames, and notes for the user.

    Rewards are the file's own. Without them an episode with a success flag has the reward 1 at its last frame, which is
    terminal, and 0 at all others. Success flags are terminal. Without them `done` is, unless it marks the last frame of
    every episode and no other, which says nothing about the reason. The end of an episode alone is never terminal.

    Args:
        rewards: (N,) float32, or None.
        success, done: (N,) bool, or None.
        last: (N,) bool, the frames that end an episode.
        assume_success: whether every episode counts as a success, whatever the data say.
    """
    if assume_success:
        return last.astype(np.float32), last.copy(), []
    if rewards is None and success is not None:
        terminals = np.zeros(len(last), bool)
        terminals[last] = np.logical_or.reduceat(success, starts(last))
        return terminals.astype(np.float32), terminals, []

    notes = []
    if rewards is None:
        rewards = np.zeros(len(last), np.float32)
        notes.append(NO_REWARDS)
    if success is not None:
        return rewards, success, notes
    if done is None:
        return rewards, np.zeros(len(last), bool), notes
    if (done == last).all():
        notes.append(DONE_IS_THE_END)
        return rewards, np.zeros(len(last), bool), notes
    return rewards, done, notes


def to_transitions(
    columns: dict[str, np.ndarray], frames: dict[str, np.ndarray], last: np.ndarray, assume_success: bool
) -> Transitions:
    """The transitions of sorted frames.

    Args:
        columns: observations and actions of all frames.
        frames: all columns, of which `next.*` are used.
        last: (N,) bool, the frames that end an episode.
        assume_success: whether every episode counts as a success.
    """
    success = done = None
    if "next.reward" in frames:
        columns["rewards"] = frames["next.reward"]
    columns = check_columns(columns)
    rewards = columns.get("rewards")
    if "next.success" in frames:
        success = check_flags("next.success", frames["next.success"].reshape(-1))
    if "next.done" in frames:
        done = check_flags("next.done", frames["next.done"].reshape(-1))
    rewards, terminals, notes = rewards_and_terminals(rewards, success, done, last, assume_success)
    returns = np.add.reduceat(rewards, starts(last), dtype=np.float64)

    kept = np.flatnonzero(~last)
    if not len(kept):
        raise TaskError("it contains no transitions: every episode has a single frame")
    ends = last[kept + 1]
    transitions = {
        "observations": columns["observations"][kept],
        "actions": columns["actions"][kept],
        "next_observations": columns["observations"][kept + 1],
        "rewards": rewards[kept] + np.where(ends & ~terminals[kept], rewards[kept + 1], 0),
        "terminals": terminals[kept] | (ends & terminals[kept + 1]),
        "ends": ends,
    }
    single = len(returns) - int(ends.sum())
    if single:
        notes.append(f"{single} of {len(returns)} episodes have a single frame, which is no transition")
    return Transitions(transitions, returns, notes)
