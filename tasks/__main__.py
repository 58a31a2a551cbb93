"""List the datasets; or download one, check it and print a summary.

python -m tasks
python -m tasks hopper-medium-v2
"""

import signal
from dataclasses import dataclass

import numpy as np
import tyro

import tasks
from tasks import minari


@dataclass
class Args:
    env_id: tyro.conf.Positional[str | None] = None
    """id of the dataset; without an id and a file the ids are listed"""
    dataset_path: str | None = None
    """HDF5 file in the layout of D4RL or robomimic, or .npz file of OGBench, instead of the id's own; a robomimic file
    names its environment"""
    dataset_filter: str | None = None
    """robomimic files: filter key of the demonstrations to use, such as train; default all"""
    observation_keys: list[str] | None = None
    """robomimic files: observations to use; default end effector and gripper of each arm, and object"""
    max_episode_steps: int | None = None
    """step limit of the environment; default the benchmark's"""


def list_ids() -> None:
    """Print each id, the path of its dataset, and whether the file is there."""
    for env_id in tasks.ids():
        path, _ = tasks.locate(env_id)
        print(f"{env_id:<50} {'here' if path.is_file() else 'not here':<8} {path}")
    for env_id in minari.local_ids():
        print(f"{env_id:<50} {'here':<8} {minari.locate(env_id)}")
    minaris = "Ids with a slash are Minari's, such as D4RL/kitchen/mixed-v2; https://minari.farama.org lists them."
    print(minaris, "The id none is for a file without an environment, such as a real robot's.")


def describe(args: Args) -> None:
    """Make the task, load and check its dataset, and print a summary."""
    task = tasks.make(**vars(args) | {"env_id": args.env_id or tasks.DEFAULT})
    data = task.dataset()
    lengths = np.diff(np.flatnonzero(data["ends"]), prepend=-1)
    print(task.describe(data))
    print(f"{'trajectory lengths':<20} {lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}")
    print(f"{'observations':<20} {data['observations'].shape[1]} dimensions")
    print(f"{'actions':<20} {data['actions'].shape[1]} dimensions")
    print(f"{'step limit':<20} {task.max_episode_steps}")


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `python -m tasks | head` ends without a word
    args = tyro.cli(Args, prog="python -m tasks")
    if args.env_id or args.dataset_path:
        describe(args)
    else:
        list_ids()
