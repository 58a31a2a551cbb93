"""Datasets and environments of offline RL by id: D4RL, robomimic, OGBench, Minari, a demo, own data.

    task = tasks.make("hopper-medium-v2")       # downloads the dataset if it is missing
    data = task.dataset()                       # dict of arrays, one row a transition
    env = task.env()                            # gymnasium.Env: vector observations, actions in [-1, 1]
    result = task.evaluate(policy, episodes=100, seed=1)

`python -m tasks` lists the ids; `python -m tasks hopper-medium-v2` downloads a dataset, checks it and prints a summary.
A source is a module with a subclass of `Task`, its `IDS`, `locate(env_id)` for file and URL of a dataset, and
`fetch(env_id)`, which downloads the file if it is missing.
"""

import difflib
from pathlib import Path

from tasks import d4rl, demo, minari, ogbench, own, robomimic
from tasks.task import Task, fail

__all__ = ["Task", "fail", "ids", "locate", "make"]

DEFAULT = "fetch-pick-and-place-demo-v0"
SOURCES = (demo, d4rl, robomimic, ogbench)  # beside Minari: ids with a slash, or found on this machine


def ids() -> list[str]:
    """The known ids: the demo's, D4RL's, robomimic's and OGBench's."""
    return [env_id for source in SOURCES for env_id in source.IDS]


def locate(env_id: str) -> tuple[Path, str | None]:
    """The file of a known id on this machine, which may be missing, and the URL to download it from."""
    return next(source for source in SOURCES if env_id in source.IDS).locate(env_id)


def make(
    env_id: str = DEFAULT,
    dataset_path: str | Path | None = None,
    dataset_filter: str | None = None,
    observation_keys: list[str] | None = None,
    video: bool = False,
    max_episode_steps: int | None = None,
) -> Task:
    """The task of an id. Its dataset is downloaded if it is missing.

    Args:
        env_id: an id of `ids()`; or an id of Minari, which has a slash or is on this machine; or none, for a file in
            D4RL's layout without an environment.
        dataset_path: HDF5 file in D4RL's or robomimic's layout, or .npz file in OGBench's, in place of the id's own. A
            robomimic file names its own environment; then `env_id` may be left out, and the task's is that name.
        dataset_filter: robomimic files: filter key of the demonstrations to use, such as train; default all.
        observation_keys: robomimic files: observations to use; default end effector and gripper of each arm, object.
        video: also check that this machine can render the environment.
        max_episode_steps: step limit of the environment in place of the benchmark's.

    Raises:
        SystemExit: with one line on stderr and code 2, if the arguments contradict each other, or a file cannot be
            downloaded or read.
    """
    if max_episode_steps is not None and max_episode_steps < 1:
        fail(f"an episode cannot have {max_episode_steps} steps")
    task = find(env_id, None if dataset_path is None else Path(dataset_path), dataset_filter, observation_keys)
    task.max_episode_steps = max_episode_steps or task.max_episode_steps
    if video:
        task.check_video()
    return task


def find(env_id: str, path: Path | None, dataset_filter: str | None, observation_keys: list[str] | None) -> Task:
    """`make`, without the check of rendering."""
    if env_id == own.ENV_ID and path is None:
        fail(f"--env-id {env_id} is for data without an environment: name the file by --dataset-path")
    source = next((source for source in SOURCES if env_id in source.IDS), ogbench if ogbench.known(env_id) else None)
    if path is None and source:
        path = source.fetch(env_id)
    if path and not path.is_file():
        fail(f"no such file: {path}")
    if source is not ogbench and path and (header := robomimic.read_header(path)):
        name = header[0]["env_name"]
        if env_id == DEFAULT:
            env_id = name
        elif env_id != name and (source is not robomimic or robomimic.env_name(env_id) != name):
            fail(f"{path} is of robosuite's {name}, not of --env-id {env_id}; leave --env-id out")
        return robomimic.Robomimic(env_id, path, dataset_filter, observation_keys, header)
    if observation_keys or dataset_filter:
        fail("--observation-keys and --dataset-filter are for robomimic's files")
    if source is robomimic:
        fail(f"{path} is not a robomimic file, which has a group 'data' with env_args")
    if env_id == own.ENV_ID:
        return own.Own(path)
    if source:
        return {demo: demo.Demo, d4rl: d4rl.D4RL, ogbench: ogbench.OGBench}[source](env_id, path)
    if "/" not in env_id and not minari.locate(env_id).exists():
        if instead := d4rl.elsewhere(env_id):
            fail(f"unknown --env-id {env_id}: its environment needs MuJoCo 2.1; in its place Minari has {instead}")
        near = difflib.get_close_matches(env_id, ids(), n=3, cutoff=0.0)
        fail(f"unknown --env-id {env_id}; did you mean {', '.join(near)}? Minari's ids have a slash")
    if path:
        where = minari.locate(env_id)
        fail(f"--dataset-path is for files of D4RL, robomimic and OGBench; {env_id} is Minari's, in {where}")
    return minari.Minari(env_id)
