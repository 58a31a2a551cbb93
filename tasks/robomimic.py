"""robomimic's datasets (the v141 low-dimensional files) on robosuite 1.4.1's environments."""

import ctypes.util
import json
import os
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np

from tasks.task import EndAtSuccess, Task, check_rows, data_folder, fail, join, quiet

SERVER = "http://downloads.cs.stanford.edu/downloads/rt_benchmark"
HORIZONS = {"TwoArmTransport": 700, "ToolHang": 700}  # every other environment: 400
ENVIRONMENTS = {
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "transport": "TwoArmTransport",
    "tool_hang": "ToolHang",
}
IDS = {f"{_task}-{_kind}": f"{_task}/{_kind}/low_dim_v141.hdf5" for _task in ENVIRONMENTS for _kind in ("ph", "mh")}
del IDS["tool_hang-mh"]
for _task in ("lift", "can"):
    IDS[f"{_task}-mg"] = f"{_task}/mg/low_dim_sparse_v141.hdf5"
    IDS[f"{_task}-mg-dense"] = f"{_task}/mg/low_dim_dense_v141.hdf5"


def locate(env_id: str) -> tuple[Path, str]:
    """The file of an id in $ROBOMIMIC_DATASET_DIR, else ~/.robomimic/datasets, and its URL."""
    folder = data_folder("ROBOMIMIC_DATASET_DIR", ".robomimic", "datasets")
    return folder / IDS[env_id], f"{SERVER}/{IDS[env_id]}"


def env_name(env_id: str) -> str:
    """The robosuite environment of an id."""
    return ENVIRONMENTS[env_id.split("-")[0]]


def read_header(path: Path) -> tuple[dict, list[str]] | None:
    """A robomimic file's `env_args` and the names of its observations; None if the HDF5 file is not robomimic's."""
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("data"), h5py.Group):
                return None
            env_args = json.loads(file["data"].attrs["env_args"])
            first = next(iter(file["data"].values()), {"obs": {}})
            names = list(first["obs"].keys())
    except (OSError, RuntimeError) as error:
        fail(f"{path} is not a readable HDF5 file: {error}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fail(f"{path} has robomimic's group 'data', but no readable env_args or obs in it: {error}")
    match env_args:
        case {"env_name": str(), "env_kwargs": dict(), "type": 1}:
            return env_args, names
    fail(f"{path}: its env_args do not describe a robosuite environment (env_name, env_kwargs, type 1)")


class Robomimic(Task):
    """A robomimic file and the environment that it describes; the score is the percentage of successes.

    Observations are those of `observation_keys`, concatenated; default: end effector and gripper of each arm, object.
    """

    min_return, max_return, eval_episodes, processes = 0.0, 1.0, 50, True

    def __init__(
        self, env_id: str, path: Path, dataset_filter: str | None = None, observation_keys: list[str] | None = None
    ):
        self.env_id, self.path, self.dataset_filter = env_id, path, dataset_filter
        self.env_args, names = read_header(path)
        self.env_name = self.env_args["env_name"]
        self.max_episode_steps = HORIZONS.get(self.env_name, 400)
        robots = sorted({key.split("_")[0] for key in names if key.startswith("robot")})
        keys = [f"{robot}_{key}" for robot in robots for key in ("eef_pos", "eef_quat", "gripper_qpos")]
        self.observation_keys = tuple(observation_keys or [*keys, "object"])
        if names and (missing := [key for key in self.observation_keys if key not in names]):
            fail(f"{path} has no observation {missing[0]!r}; it has {', '.join(names)}")

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Transitions of all demonstrations, or of those under the filter key; returns: 1 of a success, else 0.

        Rewards and dones are the file's own; robomimic sets dones where the task is achieved (its done_mode 0), at the
        last step (1), or at both (2). A demonstration succeeds if it pays the reward of success, which dense rewards
        stay below. Without `next_obs`, the last step is a transition only where it is done.
        """
        demonstrations, returns, name = [], [], "data"
        try:
            success = 0.999 * (self.env_args["env_kwargs"].get("reward_scale") or 1.0)
            with h5py.File(self.path, "r") as file:
                names, masks = list(file["data"]), file.get("mask", {})
                if self.dataset_filter is not None:
                    if self.dataset_filter not in masks:
                        known = ", ".join(masks) or "none"
                        fail(f"{self.path} has no filter key {self.dataset_filter!r}; its filter keys: {known}")
                    names = [name.decode() for name in masks[self.dataset_filter]]
                for name in sorted(set(names), key=lambda name: int(name.removeprefix("demo_"))):
                    demonstration = file["data"][name]
                    columns = {
                        "observations": self._observations(demonstration["obs"]),
                        "actions": demonstration["actions"][()],
                        "rewards": demonstration["rewards"][()],
                        "terminals": demonstration["dones"][()],
                    }
                    if "next_obs" in demonstration:
                        columns["next_observations"] = self._observations(demonstration["next_obs"])
                    columns = check_rows(f"{self.path}, {name}", columns)
                    returns.append(columns["rewards"].max(initial=0.0) >= success)
                    if "next_observations" not in columns:
                        observations = columns["observations"]
                        columns["next_observations"] = np.concatenate([observations[1:], observations[-1:]])
                        if not columns["terminals"][-1]:  # what follows the last step is not in the file
                            columns = {key: values[:-1] for key, values in columns.items()}
                    demonstrations.append(columns)
            return join(str(self.path), demonstrations), np.array(returns, np.float64)
        except (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            fail(f"{self.path}, {name}: not as in robomimic's low-dim files: {error}")

    def _observations(self, group: h5py.Group) -> np.ndarray:
        values = [group[key][()] for key in self.observation_keys]
        return np.concatenate([value.reshape(len(value), -1) for value in values], 1)

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        if sys.platform == "linux" and ctypes.util.find_library("EGL") is None:
            os.environ.setdefault("MUJOCO_GL", "glx")  # importing robosuite loads EGL unless told of another
        try:
            with quiet():
                import robosuite
                from robosuite.wrappers import GymWrapper
        except ImportError as error:
            fail(f"{self.env_name} needs robosuite ({error}): pip install --no-deps -r requirements-robosuite.txt")
        installed = robosuite.__version__
        recorded = str(self.env_args.get("env_version") or installed)
        if recorded.split(".")[:2] != installed.split(".")[:2]:
            fail(f"{self.path} is of robosuite {recorded}, whose physics are not those of {installed}, which is here")
        rendering = {"has_renderer": False, "has_offscreen_renderer": bool(render_mode), "use_camera_obs": False}
        keys = ["object-state" if key == "object" else key for key in self.observation_keys]
        try:
            with quiet():
                env = robosuite.make(self.env_name, **self.env_args["env_kwargs"] | rendering | {"ignore_done": True})
                for key in set(keys) & set(env.observation_names):  # a few are off by default
                    env.modify_observable(key, "active", True)
                env = GymWrapper(env, keys)
        except Exception as error:  # each task and version fails in its own way
            fail(f"robosuite {installed} cannot make {self.env_name} as {self.path} has it: {error!r}")
        env.metadata = {"render_modes": ["rgb_array"]}
        env.render = lambda: env.sim.render(camera_name="agentview", width=512, height=512)[::-1]
        return gym.wrappers.TimeLimit(EndAtSuccess(env), self.max_episode_steps)
