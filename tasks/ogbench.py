"""OGBench's single-task datasets, with the package's rewards, episode ends and environments."""

import contextlib
import re
from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.common import TaskError, data_folder, quiet, task_errors
from tasks.evaluation import EndAtSuccess
from tasks.task import Task
from tasks.transitions import Transitions, check_columns

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
    are where OGBench's terminals are 1. A trajectory is a success if it reaches the goal at some step.
    """

    IDS = tuple(
        f"{environment}-{kind}-{task}-v0" for environment, kinds in DATASETS.items() for kind in kinds for task in TASKS
    )
    processes = True

    def __init__(self, env_id: str, path: Path | None = None, **selection):
        super().__init__(env_id, path, **selection)
        match = SINGLE_TASK.fullmatch(env_id)
        package = import_ogbench()
        self.max_episode_steps = gym.spec(f"{match['env']}-{match['task']}").max_episode_steps
        if path is None:
            self.path, url = self.locate(env_id)
            if not self.path.is_file():
                with task_errors(f"cannot download {url}; download it by other means and put it at {self.path}"):
                    package.download_datasets([self.path.stem], str(self.path.parent))

    @classmethod
    def matches(cls, env_id: str, path: Path | None) -> bool:
        match = SINGLE_TASK.fullmatch(env_id)
        return match is not None and match["env"] in DATASETS

    @classmethod
    def locate(cls, env_id: str) -> tuple[Path, str]:
        """The file of an id in $OGBENCH_DATASET_DIR, else ~/.ogbench/data, and its URL."""
        match = SINGLE_TASK.fullmatch(env_id)
        name = f"{match['env']}-{match['kind']}-v0.npz"
        folder = data_folder("OGBENCH_DATASET_DIR", ".ogbench", "data")
        return folder / name, f"https://rail.eecs.berkeley.edu/datasets/ogbench/{name}"

    def read(self) -> Transitions:
        from ogbench.relabel_utils import relabel_dataset

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
        starts = np.flatnonzero(np.append(True, columns["ends"][:-1]))
        successes = np.logical_or.reduceat(columns["terminals"], starts)
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


def import_ogbench():
    """The package, which registers its environments when it is imported. Raises TaskError if that fails."""
    with quiet(), task_errors("OGBench's ids need the package ogbench (pip install ogbench==1.2.2)"):
        import ogbench
    return ogbench
