"""Load mutated datasets, each in a process of its own: the outcome must be data, or one line and exit code 2.

    python tests/fuzz.py --files 2000             # some 8 minutes on one core
    python tests/fuzz.py --source d4rl --first 17 --files 1 --keep /tmp/d4rl    # file 17 again, kept to look at

Files of D4RL's, robomimic's, OGBench's and Minari's layouts are mutated in bytes (flipped, zeroed, inserted, cut) and
in structure (keys, types, shapes, values, links, attributes, headers that promise what is not stored). A traceback, two
lines, another exit code, more than 10 seconds or a gigabyte is a failure; it is printed with what repeats it.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from unittest import mock

import gymnasium as gym
import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks

SECONDS, BYTES = 10, 2**30
SPACES = {"d4rl": (11, 3), "robomimic": (19, 7), "ogbench": (28, 5), "minari": (3, 1)}  # observations and actions
IDS = {"d4rl": "hopper-medium-v2", "robomimic": tasks.DEFAULT, "ogbench": "cube-single-play-singletask-v0"}


def write_d4rl(folder: Path) -> Path:
    rng, rows = np.random.default_rng(0), np.arange(300)
    with h5py.File(folder / "data", "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(300, 11)), rng.uniform(-1, 1, (300, 3))
        file["next_observations"], file["rewards"] = rng.normal(size=(300, 11)), rng.normal(size=300)
        file["terminals"], file["timeouts"] = rows % 70 == 69, rows % 100 == 99
    return folder / "data"


def write_robomimic(folder: Path) -> Path:
    rng, sizes = np.random.default_rng(0), {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
    with h5py.File(folder / "data", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "type": 1, "env_version": "1.5.1", "env_kwargs": {"robots": ["Panda"]}}
        )
        for demonstration in ("demo_0", "demo_1", "demo_2"):
            group = file.create_group(f"data/{demonstration}")
            group["actions"], group["rewards"] = rng.uniform(-1, 1, (20, 7)), np.zeros(20)
            group["dones"] = np.arange(20) == 19
            for part in ("obs", "next_obs"):
                group[f"{part}/object"] = rng.normal(size=(20, 10))
                for name, size in sizes.items():
                    group[f"{part}/robot0_{name}"] = rng.normal(size=(20, size))
        file["mask/train"] = np.array(["demo_0", "demo_2"], "S")
    return folder / "data"


def write_ogbench(folder: Path) -> Path:
    rng, rows = np.random.default_rng(0), np.arange(60)
    columns = {"observations": rng.normal(size=(60, 28)), "actions": rng.uniform(-0.9, 0.9, (60, 5))}
    columns |= {"terminals": rows % 20 == 19, "qpos": rng.normal(size=(60, 21)), "qvel": rng.normal(size=(60, 20))}
    np.savez_compressed(folder / "data.npz", **columns)
    return folder / "data.npz"


def write_minari(folder: Path) -> Path:
    import minari

    env = minari.DataCollector(gym.make("Pendulum-v1", max_episode_steps=20))
    for seed in range(3):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        while not any(env.step(env.action_space.sample())[2:4]):
            pass
    with mock.patch.dict(os.environ, MINARI_DATASETS_PATH=str(folder)):
        env.create_dataset("fuzz/pendulum-v0", algorithm_name="random", author="none")
    return folder / "fuzz" / "pendulum-v0" / "data" / "main_data.hdf5"


def mutate_bytes(path: Path, rng: np.random.Generator) -> None:
    """Flip, zero, insert or cut bytes, half of the times among the first 4000, where headers are."""
    content = bytearray(path.read_bytes())
    limit = len(content) if rng.random() < 0.5 else min(4000, len(content))
    for place in rng.integers(limit, size=rng.integers(1, 20)).tolist():
        content[place] = int(rng.integers(256)) if rng.random() < 0.8 else 0
    match rng.integers(6):
        case 0:
            del content[int(rng.integers(len(content))) :]
        case 1:
            place = int(rng.integers(limit))
            content[place:place] = rng.bytes(int(rng.integers(1, 50)))
    path.write_bytes(content)


def odd_array(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An array of another type, shape or content in place of `values`."""
    count = len(values) if values.ndim else 1
    odd = [
        values[: rng.integers(count)],
        np.concatenate([values, values]) if values.ndim else values[None],
        np.reshape(values, -1),
        np.reshape(values, (1, *np.shape(values))),
        np.zeros((count, 0)),
        np.zeros(()),
        np.full(np.shape(values), 1e300),
        np.full(np.shape(values), np.nan),
        np.full(np.shape(values), -np.inf),
        np.full(np.shape(values), 7),
        np.full(np.shape(values), b"text"),
        np.full(np.shape(values), 1j),
        np.zeros(count, [("a", "f4"), ("b", "i8")]),
        np.zeros(np.shape(values), "V8"),
        np.full(np.shape(values), 2**62, np.uint64),
    ]
    return odd[rng.integers(len(odd))]


def mutate_hdf5(path: Path, rng: np.random.Generator) -> None:
    """Change one or two of a file's keys, arrays, links or attributes."""
    with h5py.File(path, "r+") as file:
        for _ in range(rng.integers(1, 3)):
            nodes = {}
            file.visititems(lambda name, node, nodes=nodes: nodes.update({name: node}))
            nodes = {name: node for name, node in nodes.items() if isinstance(name, str)}
            arrays = [name for name, node in nodes.items() if isinstance(node, h5py.Dataset) and node.shape is not None]
            names = [name for name in arrays if nodes[name].nbytes < 2**20]
            attributes = [(name, key) for name, node in nodes.items() for key in node.attrs]
            if not names:
                return
            name = names[rng.integers(len(names))]
            if attributes and rng.random() < 0.2:
                name, key = attributes[rng.integers(len(attributes))]
                odd = [7, "", "{", "[]", "null", b"\xff\xfe", np.zeros((2, 2)), '{"env_name": 3, "type": 1}']
                del file[name].attrs[key]
                if (choice := rng.integers(len(odd) + 1)) < len(odd):
                    file[name].attrs[key] = odd[choice]
                continue
            parent, values = file[name].parent, np.asarray(file[name][()])
            leaf = name.rpartition("/")[2]
            choice = rng.integers(12)
            if choice == 11:  # the group goes, too
                del file[parent.name if parent.name != "/" else name]
                continue
            del parent[leaf]
            match choice:
                case 0:
                    parent.create_group(leaf)
                case 1:
                    parent[leaf] = h5py.SoftLink("/nowhere" if rng.random() < 0.5 else parent.name)
                case 2:
                    parent[leaf] = h5py.ExternalLink("nowhere.hdf5", "/x")
                case 3:  # promised, not stored
                    parent.create_dataset(leaf, (10**9, *np.shape(values)[1:]), "f4", chunks=(1, *np.shape(values)[1:]))
                case 4:
                    ragged = parent.create_dataset(leaf, (5,), h5py.vlen_dtype(np.float32))
                    ragged[0], ragged[1] = np.ones(3, np.float32), np.ones(1, np.float32)
                case 5:
                    parent[leaf.encode() + b"\xff"] = values
                case 6:
                    parent.create_dataset(leaf, data=h5py.Empty("f4"))
                case _:
                    parent[leaf] = odd_array(values, rng)


def mutate_npz(path: Path, rng: np.random.Generator) -> None:
    """Change one or two of a file's arrays."""
    with np.load(path) as file:
        columns = dict(file)
    for _ in range(rng.integers(1, 3)):
        key = list(columns)[rng.integers(len(columns))]
        columns[key] = odd_array(columns[key], rng)
        match rng.integers(6):
            case 0:
                del columns[key]
            case 1:
                columns[key] = np.array([{}, []], object)  # needs pickle
    np.savez_compressed(path, **columns)


def mutate_json(path: Path, rng: np.random.Generator) -> None:
    """Change one or two of the values of a JSON file."""
    values = json.loads(path.read_text())
    odd = [None, 3, -1, "", "text", [], {}, [[1]], "{", 1e300]
    for _ in range(rng.integers(1, 3)):
        key = list(values)[rng.integers(len(values))]
        values[key] = odd[rng.integers(len(odd))]
        if rng.random() < 0.2:
            del values[key]
    path.write_text(json.dumps(values))


def mutate(path: Path, rng: np.random.Generator) -> None:
    if path.name == "main_data.hdf5" and rng.random() < 0.3:  # Minari's other file
        path = path.with_name("metadata.json")
    if rng.random() < 0.5:
        return mutate_bytes(path, rng)
    {".json": mutate_json, ".npz": mutate_npz}.get(path.suffix, mutate_hdf5)(path, rng)


def load(source: str, path: Path, env: gym.Env | None) -> None:
    """What a run loads, with spaces that are known and one environment, which would be slow to make for each file."""
    spaces = [gym.spaces.Box(-np.inf, np.inf, SPACES[source][:1]), gym.spaces.Box(-1, 1, SPACES[source][1:])]
    tasks.Task.spaces, tasks.ogbench.OGBench.make_env = lambda *_: spaces, lambda *_: env
    if source == "minari":
        os.environ["MINARI_DATASETS_PATH"] = str(path.parents[3])
        return tasks.make("fuzz/pendulum-v0").dataset()
    filters = {"dataset_filter": "train"} if source == "robomimic" else {}
    return tasks.make(IDS[source], path, **filters).dataset()


def outcome(source: str, path: Path, env: gym.Env | None) -> str:
    """`data`, `line`, or what went wrong, of a process of its own."""
    reader, writer = os.pipe()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code, error = 1, io.StringIO()
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc").exists() else 2**20
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * BYTES,) * 2)
        try:
            with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
                load(source, path, env)
            code = 0
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            error.write(traceback.format_exc())
        os.write(writer, error.getvalue().encode(errors="replace")[-4000:])
        os._exit(code if isinstance(code, int) else 1)
    os.close(writer)
    end = time.time() + SECONDS
    while not (status := os.wait4(child, os.WNOHANG))[0]:
        if time.time() > end:
            os.kill(child, 9)
            os.wait4(child, 0)
            os.close(reader)
            return f"no end within {SECONDS} seconds"
        time.sleep(0.005)
    with open(reader) as pipe:
        said = pipe.read()
    code, used = os.waitstatus_to_exitcode(status[1]), (status[2].ru_maxrss - before) * 1024
    if used > BYTES:
        return f"{used / 2**30:.1f} GB of memory"
    if code == 0:
        return "data"
    if code == 2 and said.count("\n") == 1 and said.startswith("error: ") and "allocate" not in said:
        return "line"
    return f"exit code {code}: {said}"


def fuzz(source: str, first: int, files: int, keep: Path | None = None) -> tuple[Counter, list[str]]:
    """Counts of `data` and `line`, and what went wrong with which file."""
    counts, failures = Counter(), []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = Path(folder) / "original"
        original.mkdir()
        path = globals()[f"write_{source}"](original)
        env = tasks.make(IDS[source], path).make_env() if source == "ogbench" else None
        for number in range(first, first + files):
            copy = Path(folder) / "copy"
            shutil.copytree(original, copy)
            mutated = copy / path.relative_to(original)
            mutate(mutated, np.random.default_rng([number, len(source)]))
            found = outcome(source, mutated, env)
            counts[found if found in ("data", "line") else "failure"] += 1
            if found not in ("data", "line"):
                failures.append(f"--source {source} --first {number} --files 1: {found}")
            if keep:
                shutil.copytree(copy, keep, dirs_exist_ok=True)
            shutil.rmtree(copy)
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="over all sources")
    parser.add_argument("--source", choices=SPACES, action="append", help="default all four")
    parser.add_argument("--first", type=int, default=0, help="number of the first file, which is its seed")
    parser.add_argument("--keep", type=Path, help="folder to leave the last mutated file in")
    args = parser.parse_args()
    failed = 0
    for source in args.source or SPACES:
        if source == "ogbench" and importlib.util.find_spec("ogbench") is None:
            print("ogbench is not installed")
            continue
        counts, failures = fuzz(source, args.first, args.files // len(args.source or SPACES), args.keep)
        print(source, dict(counts), flush=True)
        print(*failures, sep="\n", end="\n" if failures else "", flush=True)
        failed += len(failures)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
