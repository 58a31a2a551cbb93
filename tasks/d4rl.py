"""D4RL's datasets on current environments: gymnasium's MuJoCo tasks, and Adroit with D4RL's rewards and endings."""

import itertools
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import h5py
import numpy as np

from tasks.task import Task, check_rows, data_folder, download, fail, quiet, read_array

SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"


class Benchmark(NamedTuple):
    """An entry of d4rl's tables, with gymnasium's environment for it."""

    gym_id: str
    max_episode_steps: int
    min_return: float
    max_return: float
    url: str


IDS: dict[str, Benchmark] = {}
for _name, *_task in (
    ("halfcheetah", "HalfCheetah-v4", 1000, -280.178953, 12135.0),
    ("hopper", "Hopper-v4", 1000, -20.272305, 3234.3),
    ("walker2d", "Walker2d-v4", 1000, 1.629008, 4592.3),
):
    for _kind in ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay"):
        _file = f"gym_mujoco_v2/{_name}_{_kind.replace('-', '_')}-v2.hdf5"
        IDS[f"{_name}-{_kind}-v2"] = Benchmark(*_task, f"{SERVER}/{_file}")
for _name, *_task in (
    ("pen", "AdroitHandPen-v1", 100, 96.262799, 3076.8331017826877),
    ("door", "AdroitHandDoor-v1", 200, -56.512833, 2880.5693087298737),
    ("hammer", "AdroitHandHammer-v1", 200, -274.856578, 12794.134825156867),
    ("relocate", "AdroitHandRelocate-v1", 200, -6.425911, 4233.877797728884),
):
    for _kind, _file in (
        ("human", f"{_name}-v0_demos_clipped"),
        ("cloned", f"{_name}-demos-v0-bc-combined"),
        ("expert", f"{_name}-v0_expert_clipped"),
    ):
        IDS[f"{_name}-{_kind}-v0"] = Benchmark(*_task, f"{SERVER}/hand_dapg/{_file}.hdf5")
        IDS[f"{_name}-{_kind}-v1"] = Benchmark(*_task, f"{SERVER}/hand_dapg_v1/{_name}-{_kind}-v1.hdf5")
ANTMAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")


def locate(env_id: str) -> tuple[Path, str]:
    """The file of an id in $D4RL_DATASET_DIR, else ~/.d4rl/datasets, and its URL."""
    url = IDS[env_id].url
    return data_folder("D4RL_DATASET_DIR", ".d4rl", "datasets") / Path(url).name, url


def fetch(env_id: str) -> Path:
    """The file of an id, downloaded if it is missing."""
    path, url = locate(env_id)
    if not path.exists():
        download(url, path)
    return path


def elsewhere(env_id: str) -> str | None:
    """The Minari id that stands for an antmaze or kitchen id of D4RL's, whose environments need MuJoCo 2.1."""
    match env_id.split("-"):
        case ["antmaze", *kind, "v0" | "v1" | "v2"] if "-".join(kind) in ANTMAZES:
            return f"D4RL/antmaze/{'-'.join(kind)}-v1"
        case ["kitchen", "complete" | "partial" | "mixed" as kind, "v0"]:
            return f"D4RL/kitchen/{kind}-v2"
    return None


class D4RL(Task):
    """A D4RL id. `path` is its own dataset or any HDF5 file in D4RL's layout."""

    def __init__(self, env_id: str, path: Path):
        self.env_id, self.path = env_id, path
        self.gym_id, self.max_episode_steps, self.min_return, self.max_return, _ = IDS[env_id]

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return read_d4rl(self.path, IDS[self.env_id].max_episode_steps)

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        adroit = self.gym_id.startswith("Adroit")
        with quiet():
            if adroit:
                import gymnasium_robotics

                gym.register_envs(gymnasium_robotics)
            env = gym.make(self.gym_id, max_episode_steps=self.max_episode_steps, render_mode=render_mode)
        return AdroitAsInD4RL(env) if adroit else env


class AdroitAsInD4RL(gym.Wrapper):
    """D4RL's Adroit rewards and endings on gymnasium-robotics 1.2.1 to 1.4.2, which changed them.

    Door, hammer and relocate: D4RL's reward is lower by 0.2 times the distance of the palm to handle, hammer or
    ball. Pen: D4RL ends the episode when the pen falls below 0.075.
    """

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.spec.id == "AdroitHandPen-v1":
            terminated = bool(observation[26] < 0.075)  # the pen has fallen
        else:
            palm_to_object = {
                "AdroitHandDoor-v1": observation[35:38],
                "AdroitHandHammer-v1": observation[33:36] - observation[36:39],
                "AdroitHandRelocate-v1": observation[30:33],
            }[self.spec.id]
            reward -= 0.2 * np.linalg.norm(palm_to_object)
        return observation, reward, terminated, truncated, info


def read_d4rl(path: Path, max_episode_steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Transitions and returns of an HDF5 file in D4RL's layout, as `Task.read` gives them.

    With `next_observations` every row is a transition, and trajectories end at `terminals` and `timeouts`. Rows out of
    order, as from a replay buffer, are put in order. Without them the rule of d4rl's `qlearning_dataset` holds: row
    i + 1 follows row i, so that the last step of a timed-out trajectory is no transition. Without `timeouts` too, a
    counter cuts trajectories: it restarts at 1 after a terminal and times out at `max_episode_steps`. A file that marks
    no end in more rows than that is cut in the same way, with a message.
    Returns are sums of rewards up to each end; steps after the last end count only if there is no other end.
    """
    required = ("observations", "actions", "rewards", "terminals")
    try:
        with h5py.File(path, "r") as file:
            if missing := [key for key in required if key not in file]:
                fail(f"{path} lacks the key {missing[0]!r}; D4RL files have {', '.join(required)}")
            keys = [key for key in (*required, "next_observations", "timeouts") if key in file]
            rows = check_rows(str(path), {key: np.atleast_1d(read_array(file, key)) for key in keys})
    except Exception as error:  # h5py raises many kinds of errors on damaged files
        fail(f"{path} is not a readable HDF5 file: {error}")
    count, terminals = len(rows["rewards"]), rows["terminals"]
    if not count:
        fail(f"{path} holds no transition")
    timeouts = rows.pop("timeouts", np.zeros(count, bool))
    unmarked = count > max_episode_steps and not (terminals | timeouts).any()
    if "next_observations" not in keys and (unmarked or "timeouts" not in keys):
        start, steps = 0, 0
        for end in (*np.flatnonzero(terminals), count - 1):
            timeouts[start + max_episode_steps - 1 - steps : end + 1 : max_episode_steps] = True
            start, steps = end + 1, 0 if timeouts[end] else 1
    ends = terminals | timeouts
    if "next_observations" in rows:
        finished, marked = ends[-1], ends.sum()
        order, ends = trajectory_order(rows["observations"], rows["next_observations"], ends)
        if (loose := ends.sum() - marked) > 1:  # the last trajectory of a file may be unfinished
            print(f"{path}: no row observes the next observation of {loose} rows; a trajectory ends at each")
        for key, values in rows.items():
            rows[key] = values[order]
        ends[-1] = finished or order[-1] != count - 1
        unmarked &= not ends.any()
        if unmarked:
            ends[max_episode_steps - 1 :: max_episode_steps] = True
        rewards, rows["ends"] = rows["rewards"], ends.copy()
    else:
        rewards, kept = rows["rewards"], np.flatnonzero(~timeouts[:-1])
        rows["next_observations"] = rows["observations"][kept + 1]
        for key in required:
            rows[key] = rows[key][kept]
        rows["ends"] = rows["terminals"] | (np.diff(kept, append=count) != 1)
    if unmarked:
        print(f"{path} marks no end of a trajectory in {count} rows; cut every {max_episode_steps}, the step limit")
    lasts = np.flatnonzero(ends) if ends.any() else np.array([count - 1])
    sums = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    return rows, np.diff(sums[np.concatenate([[0], lasts + 1])])


def trajectory_order(
    observations: np.ndarray, next_observations: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The order in which each of N rows is followed by the row that observes its next observation.

    Args:
        observations, next_observations: (N, o) float32.
        ends: (N,) bool, rows that nothing follows.

    Returns:
        order (N,) int64, which leaves rows that are in order as they are, and (N,) bool, whether the row at that place
        ends a trajectory: it is among the given ends, or no row observes its next observation.
    """
    count = len(ends)
    linked = ~ends  # to the row below
    linked[-1] = False
    linked[:-1] &= (next_observations[:-1] == observations[1:]).all(1)
    following = np.where(linked, np.arange(1, count + 1), -1)
    firsts, lasts = np.flatnonzero(np.append(True, ~linked[:-1])), np.flatnonzero(~ends & ~linked)
    hashes = row_hashes(observations[firsts]), row_hashes(next_observations[lasts])
    _, first, last = np.intersect1d(*hashes, return_indices=True)  # of several that are equal, one
    following[lasts[last]] = firsts[first]
    leads = np.ones(count + 1, bool)
    leads[following] = False
    order, ended, seen, following = [], bytearray(count), bytearray(count), following.tolist()
    # from each row that follows no other, then from any row left, which is in a cycle
    for row in itertools.chain(np.flatnonzero(leads[:-1]).tolist(), range(count)):
        while row >= 0 and not seen[row]:
            seen[row] = True
            order.append(row)
            row = following[row]
        ended[len(order) - 1] = True
    return np.array(order), np.frombuffer(ended, bool)


def row_hashes(rows: np.ndarray) -> np.ndarray:
    """Hashes (N,) uint64 of float32 rows (N, o), equal where the rows are."""
    hashes = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        hashes = (hashes ^ (column + 0.0).view(np.uint32)) * np.uint64(0x9E3779B97F4A7C15)  # + 0.0: -0.0 equals 0.0
        hashes ^= hashes >> np.uint64(32)
    return hashes
