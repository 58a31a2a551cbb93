"""List the datasets; or download one, check it and print a summary.

python -m tasks
python -m tasks hopper-medium-v2
"""

import signal
import sys
from dataclasses import dataclass

import tyro

import tasks
from tasks.transitions import trajectory_lengths


@dataclass
class Args:
    env_id: tyro.conf.Positional[str | None] = None
    """id of the dataset; without an id and a file the ids are listed"""
    dataset_path: str | None = None
    """D4RL, robomimic or OGBench file, or LeRobot folder, in place of the id's own dataset"""
    dataset_filter: str | None = None
    """robomimic files: filter key of the demonstrations to use, such as train (default: all)"""
    observation_keys: list[str] | None = None
    """observations to use (default in robomimic files: end effector and gripper of each arm, object; in LeRobot data:
    the state)"""
    assume_success: bool = False
    """LeRobot data: count every episode as a success, in place of its rewards"""
    sparse_rewards: bool = False
    """OGBench: -1 until the whole task is solved, in place of rewards for its parts"""
    max_episode_steps: int | None = None
    """step limit of the environment (default: the benchmark's)"""


def list_ids() -> None:
    """Print each id, the path of its dataset, and whether it is there."""
    for env_id in tasks.ids():
        path, _ = tasks.locate(env_id)
        here = "here" if path.exists() else "not here"
        print(f"{env_id:<50} {here:<8} {path}")
    print(
        "Ids with a slash are Minari's, such as D4RL/kitchen/mixed-v2; https://minari.farama.org lists them. "
        "lerobot:OWNER/NAME is a LeRobot dataset on the Hugging Face Hub. The id none is for data without an "
        "environment, such as a real robot's."
    )


def describe(args: Args) -> None:
    """Make the task, load and check its dataset, and print a summary."""
    options = {name: getattr(args, name) for name in tasks.OPTIONS}
    task = tasks.make(args.env_id, args.dataset_path, **options)
    data = task.dataset()
    lengths = trajectory_lengths(data["ends"])
    print(task.describe(data))
    print(f"{'trajectory lengths':<20} {lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}")
    print(f"{'observations':<20} {data['observations'].shape[1]} dimensions")
    print(f"{'actions':<20} {data['actions'].shape[1]} dimensions")
    print(f"{'step limit':<20} {task.max_episode_steps}")


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `python -m tasks | head` ends silently
    args = tyro.cli(Args, prog="python -m tasks")
    try:
        if args.env_id or args.dataset_path:
            describe(args)
        else:
            list_ids()
    except (tasks.TaskError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
