"""OGBench's single-task datasets, with the package's rewards, episode ends and environments."""

import contextlib
import os
import re
import tempfile
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.common import TaskError, data_folder, download, import_hub, quiet, task_errors
from tasks.evaluation import EndAtSuccess
from tasks.task import Task
from tasks.transitions import Transitions, check_columns, starts

SERVER = "https://rail.eecs.berkeley.edu/datasets/ogbench"
MIRROR = "zhouzypaul/ogbench_datasets"  # on the Hugging Face Hub, by an author of OGBench's laboratory
SINGLE_TASK = re.compile(r"(?P<env>.+)-(?P<kind>[^-]+)-(?P<task>singletask(-task[1-5])?-v0)")
DATASETS = {  # the kinds of data for each environment with vector observations; two environments have none
    **{f"pointmaze-{size}": ("navigate", "stitch") for size in ("medium", "large", "giant", "teleport")},
    **{f"antmaze-{size}": ("navigate", "stitch", "explore") for size in ("medium", "large", "teleport")},
    "antmaze-giant": ("navigate", "stitch"),
    **{f"humanoidmaze-{size}": ("navigate", "stitch") for size in ("medium", "large", "giant")},
    "humanoidmaze-teleport": (),
    **{f"antsoccer-{field}": ("navigate", "stitch") for field in ("arena", "medium")},
    **{f"cube-{count}": ("play", "noisy") for count in ("single", "double", "triple", "quadruple")},
    "cube-octuple": (),
    "scene": ("play", "noisy"),
    **{f"puzzle-{size}": ("play", "noisy") for size in ("3x3", "4x4", "4x5", "4x6")},
}
TASKS = ("singletask", *(f"singletask-task{number}" for number in range(1, 6)))


class OGBench(Task):
    """A single-task id. The score is the percentage of successes.

    `path` is any .npz file in OGBench's layout; the default is the id's own, downloaded if it is missing. With a file,
    the part of the id that names the kind of data may be any word.

    Trajectories are play data, which go on after the goal. `terminals` are 1 where OGBench's masks are 0, and `ends`
    are where OGBench's terminals are 1. A trajectory is a success if it reaches the goal at some step. With
    `sparse_rewards` the reward is -1 until the whole task is solved, and 0 then; the package's own rewards count the
    parts of the task that are left.
    """

    IDS = tuple(
        f"{environment}-{kind}-{task}-v0" for environment, kinds in DATASETS.items() for kind in kinds for task in TASKS
    )
    OPTIONS = ("sparse_rewards",)
    processes = True

    def __init__(self, env_id: str, path: Path | None = None, **options):
        super().__init__(env_id, path, **options)
        match = SINGLE_TASK.fullmatch(env_id)
        import_ogbench()
        self.max_episode_steps = gym.spec(f"{match['env']}-{match['task']}").max_episode_steps
        if path is None:
            self.path, url = self.locate(env_id)
            if not self.path.is_file():
                fetch(url, self.path)

    @classmethod
    def matches(cls, env_id: str | None, path: Path | None) -> bool:
        match = SINGLE_TASK.fullmatch(env_id)
        return match is not None and match["env"] in DATASETS

    @classmethod
    def locate(cls, env_id: str) -> tuple[Path, str]:
        """The file of an id in $OGBENCH_DATASET_DIR, else ~/.ogbench/data, and its URL."""
        match = SINGLE_TASK.fullmatch(env_id)
        name = f"{match['env']}-{match['kind']}-v0.npz"
        folder = data_folder("OGBENCH_DATASET_DIR", ".ogbench", "data")
        return folder / name, f"{SERVER}/{name}"

    def read(self) -> Transitions:
        from ogbench.relabel_utils import relabel_dataset

        if not zipfile.is_zipfile(self.path):
            raise TaskError(f"{self.path} is not an .npz file, or is damaged")
        with contextlib.closing(self.env()) as env, task_errors(self.path):
            dataset = import_ogbench().load_dataset(str(self.path), add_info=True)
            if not len(dataset["terminals"]) or len(dataset["observations"]) != len(dataset["next_observations"]):
                raise TaskError("this is not OGBench's layout, where terminals are 1 at the last row of a trajectory")
            relabel_dataset(self.env_id, env.unwrapped, dataset)  # adds rewards and masks of the task
            columns = check_columns(
                {
                    "observations": dataset["observations"],
                    "next_observations": dataset["next_observations"],
                    "actions": dataset["actions"],
                    "rewards": dataset["rewards"],
                    "terminals": 1 - dataset["masks"],
                    "ends": dataset["terminals"],
                }
            )
        if "sparse_rewards" in self.options:
            columns["rewards"] = np.where(columns["rewards"] == 0, np.float32(0), np.float32(-1))
        successes = np.logical_or.reduceat(columns["terminals"], starts(columns["ends"]))
        return Transitions(columns, successes.astype(np.float64))

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        settings = {"max_episode_steps": self.max_episode_steps}
        if render_mode:
            settings["render_mode"] = render_mode
        with quiet():
            env = import_ogbench().make_env_and_datasets(self.env_id, env_only=True, **settings)
            return EndAtSuccess(SeededReset(env))


class SeededReset(gym.Wrapper):
    """Resets that also seed numpy's global generator, from which OGBench's mazes draw start and goal."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            np.random.seed(seed)  # noqa: NPY002
        return self.env.reset(seed=seed, options=options)


def fetch(url: str, path: Path) -> None:
    """Download a dataset to `path` from OGBench's server, or from its mirror on the Hugging Face Hub.

    Raises:
        TaskError: if neither has it.
    """
    try:
        download(url, path, check_npz)
        return
    except TaskError as error:
        reason = type(error.__cause__).__name__
    with task_errors(
        f"cannot download {url} ({reason}) or its copy in https://huggingface.co/datasets/{MIRROR}; download it "
        f"manually to {path}"
    ):
        download_from_mirror(url, path)


def download_from_mirror(url: str, path: Path) -> None:
    """Download the mirror's copy of the file at `url`. It must have the size of the original, where that is known."""
    hub = import_hub()
    names = hub.list_repo_files(MIRROR, repo_type="dataset")
    name = next((name for name in names if Path(name).name == path.name), path.name)
    size = published_size(url)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        copy = Path(hub.hf_hub_download(MIRROR, name, repo_type="dataset", local_dir=folder))
        if size is not None and copy.stat().st_size != size:
            raise TaskError(f"the copy has {copy.stat().st_size} bytes, the original {size}")
        check_npz(copy)
        os.replace(copy, path)


def published_size(url: str) -> int | None:
    """The size of the file at `url` in bytes; None if the server does not tell."""
    import requests

    try:
        response = requests.head(url, timeout=10, allow_redirects=True)
        response.raise_for_status()
        return int(response.headers["Content-Length"])
    except (requests.RequestException, KeyError, ValueError):
        return None


def check_npz(path: Path) -> None:
    """Raise TaskError if an .npz file is damaged."""
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged:
        raise TaskError(f"its member {damaged} is damaged")


def import_ogbench():
    """The package, which registers its environments when it is imported. Raises TaskError if that fails."""
    install = "pip install ogbench==1.2.2; on Python 3.13 and later pip install --no-deps -r requirements-ogbench.txt"
    with quiet(), task_errors(f"OGBench's ids need the package ogbench ({install})"):
        import ogbench
    return ogbench
