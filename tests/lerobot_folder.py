"""Writes LeRobot dataset folders, as the tests need them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def episode(length: int, **columns) -> dict[str, np.ndarray]:
    """Columns of one episode: a state (t, -t) and an action t at frame t, and `columns`, with _ for . in names."""
    steps = np.arange(length, dtype=np.float32)
    given = {name.replace("_", ".", 1): np.asarray(values) for name, values in columns.items()}
    return {"observation.state": np.stack([steps, -steps], 1), "action": steps[:, None], **given}


def arrow(values, lists: bool) -> pa.Array:
    """Vectors (N, d) become lists. Scalars (N,) and (N, 1) stay scalars, as LeRobot's, or become lists of 1."""
    values = np.asarray(values)
    if values.ndim == 1 and not lists:
        return pa.array(values)
    values = values.reshape(len(values), -1)
    if values.shape[1] == 1 and not lists:
        return pa.array(values[:, 0])
    flat = pa.array(values.reshape(-1))
    if lists:
        return pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, values.shape[1], dtype=np.int32), flat)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def write_folder(
    folder: Path,
    episodes: list[dict[str, np.ndarray]],
    version: str = "v3.0",
    episodes_per_file: int = 2,
    files_per_chunk: int = 2,
    order: np.random.Generator | None = None,
    lists: bool = False,
    images: bool = False,
    info: dict | None = None,
) -> Path:
    """A folder as LeRobot writes it, with the columns of one dict per episode.

    Args:
        folder: the folder to make.
        episodes: columns of frames, in order. The bookkeeping columns are added.
        version: v2.0 or v2.1, with one file an episode, or v3.0.
        episodes_per_file: of v3.0.
        files_per_chunk: how many files a folder `chunk-000` has.
        order: shuffles the rows of each file, and in v3.0 the episodes over the files.
        lists: whether vectors are lists of variable length, and scalars lists of 1; else as LeRobot writes them.
        images: whether to add an image column to the files and a video to the features.
        info: keys of meta/info.json to change.
    """
    total = sum(len(columns["action"]) for columns in episodes)
    (folder / "meta").mkdir(parents=True)
    per_file = 1 if version.startswith("v2") else episodes_per_file
    numbers = np.arange(len(episodes))
    if order is not None and per_file > 1:
        order.shuffle(numbers)
    groups = [numbers[start : start + per_file] for start in range(0, len(numbers), per_file)]

    lines = []
    for place, group in enumerate(groups):
        chunk, file = divmod(place, files_per_chunk)
        tables = []
        for number in group:
            columns = dict(episodes[number])
            length = len(columns["action"])
            columns["episode_index"] = np.full(length, number)
            columns["frame_index"] = np.arange(length)
            columns["timestamp"] = np.arange(length, dtype=np.float32) / 10
            columns["task_index"] = np.zeros(length, int)
            table = {name: arrow(values, lists) for name, values in columns.items()}
            if images:
                table["observation.images.top"] = pa.array([{"bytes": b"png", "path": None}] * length)
            tables.append(pa.table(table))
            line = {"episode_index": int(number), "tasks": ["push"], "length": length}
            if version == "v3.0":
                line |= {"data/chunk_index": chunk, "data/file_index": file}
            lines.append(line)
        table = pa.concat_tables(tables)
        if order is not None:
            table = table.take(order.permutation(len(table)))
        name = f"file-{file:03d}" if version == "v3.0" else f"episode_{group[0]:06d}"
        path = folder / "data" / f"chunk-{chunk:03d}" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)

    if version == "v3.0":
        path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        if lines:
            pq.write_table(pa.Table.from_pylist(lines), path)
        template = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    else:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "meta" / "episodes.jsonl").write_text(text)
        template = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    features = {name: {"dtype": "float32"} for name in (episodes[0] if episodes else ())}
    if images:
        features |= {"observation.images.top": {"dtype": "image"}, "observation.images.wrist": {"dtype": "video"}}
    content = {
        "codebase_version": version,
        "total_episodes": len(episodes),
        "total_frames": total,
        "chunks_size": files_per_chunk,
        "fps": 10,
        "data_path": template,
        "features": features,
    }
    (folder / "meta" / "info.json").write_text(json.dumps(content | (info or {})))
    return folder
