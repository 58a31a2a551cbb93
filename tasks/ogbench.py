"""OGBench's single-task datasets, with the package's rewards, episode ends and environments."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.task import EndAtSuccess, Task, check_rows, data_folder, fail, quiet

SINGLE_TASK = re.compile(r"(?P<env>.+)-(?P<kind>[^-]+)-(?P<task>singletask(-task[1-5])?-v0)")
DATASETS = {  # of each environment with vector observations; two have no published dataset
    **{f"pointmaze-{_size}": ("navigate", "stitch") for _size in ("medium", "large", "giant", "teleport")},
    **{f"antmaze-{_size}": ("navigate", "stitch", "explore") for _size in ("medium", "large", "teleport")},
    "antmaze-giant": ("navigate", "stitch"),
    **{f"humanoidmaze-{_size}": ("navigate", "stitch") for _size in ("medium", "large", "giant")},
    "humanoidmaze-teleport": (),
    **{f"antsoccer-{_field}": ("navigate", "stitch") for _field in ("arena", "medium")},
    **{f"cube-{_count}": ("play", "noisy") for _count in ("single", "double", "triple", "quadruple")},
    "cube-octuple": (),
    "scene": ("play", "noisy"),
    **{f"puzzle-{_size}": ("play", "noisy") for _size in ("3x3", "4x4", "4x5", "4x6")},
}
IDS = tuple(
    f"{_env}-{_kind}-singletask{_task}-v0"
    for _env, _kinds in DATASETS.items()
    for _kind in _kinds
    for _task in ("", *(f"-task{_number}" for _number in range(1, 6)))
)


def known(env_id: str) -> bool:
    """Whether an id names an OGBench environment, with any name of the dataset (for files of your own)."""
    match = SINGLE_TASK.fullmatch(env_id)
    return bool(match) and match["env"] in DATASETS


def locate(env_id: str) -> tuple[Path, str]:
    """The file of an id in $OGBENCH_DATASET_DIR, else ~/.ogbench/data, and its URL."""
    match = SINGLE_TASK.fullmatch(env_id)
    name = f"{match['env']}-{match['kind']}-v0.npz"
    folder = data_folder("OGBENCH_DATASET_DIR", ".ogbench", "data")
    return folder / name, f"https://rail.eecs.berkeley.edu/datasets/ogbench/{name}"


def fetch(env_id: str) -> Path:
    """The file of an id, downloaded by the package if it is missing."""
    path, url = locate(env_id)
    if not path.is_file():
        try:
            package().download_datasets([path.stem], str(path.parent))
        except Exception as error:  # the network, a proxy and the disk fail in many ways
            fail(f"cannot download {url} ({error}); fetch it by other means and put it at {path}")
    return path


def package():
    """The module `ogbench`, which registers its environments when it is imported."""
    try:
        with quiet():
            import ogbench
    except Exception as error:  # graphics libraries that do not load
        fail(f"OGBench's ids need the package ogbench ({error!r}): pip install ogbench==1.2.2")
    return ogbench


class OGBench(Task):
    """A single-task id. `path` is its own dataset or any file in OGBench's layout; the score is percent of success.

    Trajectories are play data and go on after the goal. `terminals` are where OGBench's masks are 0, `ends` where its
    terminals are 1. A trajectory is a success if it reaches the goal at some step.
    """

    min_return, max_return, processes = 0.0, 1.0, True

    def __init__(self, env_id: str, path: Path):
        self.env_id, self.path = env_id, path
        match = SINGLE_TASK.fullmatch(env_id)
        package()
        self.max_episode_steps = gym.spec(f"{match['env']}-{match['task']}").max_episode_steps

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        from ogbench.relabel_utils import relabel_dataset

        env = self.env().unwrapped
        try:
            rows = package().load_dataset(str(self.path), add_info=True)
            if not len(rows["terminals"]) or len(rows["observations"]) != len(rows["next_observations"]):
                raise ValueError("its terminals are not 1 at the last of several rows")
            relabel_dataset(self.env_id, env, rows)
        except Exception as error:  # damaged files fail in many ways
            fail(f"{self.path} is not a readable .npz file in OGBench's layout: {error}")
        finally:
            env.close()
        columns = {key: rows[key] for key in ("observations", "next_observations", "actions", "rewards")}
        columns = check_rows(str(self.path), columns | {"terminals": 1 - rows["masks"], "ends": rows["terminals"]})
        starts = np.flatnonzero(np.append(True, columns["ends"][:-1]))
        return columns, np.logical_or.reduceat(columns["terminals"], starts).astype(np.float64)

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        settings = {"max_episode_steps": self.max_episode_steps}
        if render_mode:
            settings["render_mode"] = render_mode
        with quiet():
            return EndAtSuccess(FromSeed(package().make_env_and_datasets(self.env_id, env_only=True, **settings)))


class FromSeed(gym.Wrapper):
    """Resets that seed numpy's global generator, too, from which OGBench's mazes draw start and goal."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            np.random.seed(seed)  # noqa: NPY002
        return self.env.reset(seed=seed, options=options)
