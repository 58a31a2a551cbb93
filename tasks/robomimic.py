"""robomimic's datasets in robosuite's environments: v1.5 files on robosuite 1.5, v141 files on robosuite 1.4.1."""

import ctypes.util
import importlib.metadata
import os
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np

from tasks.common import TaskError, cached_file, data_folder, import_hub, quiet, task_errors
from tasks.evaluation import EndAtSuccess
from tasks.robomimic_file import choose_observations, is_robomimic_file, read_header
from tasks.task import Task
from tasks.transitions import Transitions

HUB = "robomimic/robomimic_datasets"  # on the Hugging Face Hub, a repository of type dataset
ENVIRONMENTS = {
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "transport": "TwoArmTransport",
    "tool_hang": "ToolHang",
}
FILES = {f"{task}-{kind}": f"v1.5/{task}/{kind}/low_dim_v15.hdf5" for task in ENVIRONMENTS for kind in ("ph", "mh")}
del FILES["tool_hang-mh"]  # does not exist
FILES |= {
    "lift-mg": "v1.5/lift/mg/low_dim_sparse_v15.hdf5",
    "lift-mg-dense": "v1.5/lift/mg/low_dim_dense_v15.hdf5",
    "can-mg": "v1.5/can/mg/low_dim_sparse_v15.hdf5",
    "can-mg-dense": "v1.5/can/mg/low_dim_dense_v15.hdf5",
    "can-paired": "v1.5/can/paired/low_dim_v15.hdf5",
}
INSTALL = {
    "1.4": "pip install --no-deps robosuite==1.4.1",
    "1.5": "pip install --no-deps -r requirements-robosuite.txt",
}


class Robomimic(Task):
    """A robomimic file and the environment that it describes. The score is the percentage of successes.

    Episodes are as long as in robomimic's registry, or as the longest demonstration if that
    is longer. The id of a file without one is the name of its environment.
    """

    IDS = tuple(FILES)
    eval_episodes = 50
    processes = True

    def __init__(self, env_id: str | None, path: Path | None = None, **options):
        path = path or fetch(env_id)
        super().__init__(env_id, path, **options)
        header = read_header(path)
        match header.env_args:
            case {"env_name": str(), "env_kwargs": dict(), "type": 1}:
                self.env_args = header.env_args
            case _:
                raise TaskError(
                    f"{path}: its env_args do not describe a robosuite environment (env_name, env_kwargs, type 1); "
                    "train without an environment with --env-id none"
                )
        self.env_name = header.env_args["env_name"]
        if env_id is None:
            self.env_id = self.env_name
        elif self.env_name not in (env_id, environment_name(env_id)):
            raise TaskError(
                f"{self.path} holds data of robosuite's {self.env_name}, not of {env_id}; leave out the id to use it"
            )
        self.max_episode_steps = max(horizon(self.env_name, self.env_id), header.longest)
        with task_errors(path):
            self.observation_keys = choose_observations(header, self.options.get("observation_keys"))

    @classmethod
    def matches(cls, env_id: str | None, path: Path | None) -> bool:
        if path is not None and is_robomimic_file(path):
            return True
        return env_id in cls.IDS

    @classmethod
    def locate(cls, env_id: str) -> tuple[Path, str]:
        """The file of an id, which may be missing, and its URL.

        It is looked for in $ROBOMIMIC_DATASET_DIR, else in the Hugging Face Hub's cache. Where robosuite 1.4 is
        installed, the older file comes first, if it is in $ROBOMIMIC_DATASET_DIR or ~/.robomimic/datasets.
        """
        name = FILES[env_id]
        url = f"https://huggingface.co/datasets/{HUB}/resolve/main/{name}"
        if has_robosuite_1_4() and older_file(env_id).is_file():
            return older_file(env_id), url
        if os.environ.get("ROBOMIMIC_DATASET_DIR"):
            return data_folder("ROBOMIMIC_DATASET_DIR") / name, url
        return cached_file(HUB, name), url

    def read(self) -> Transitions:
        return self.read_file(self.max_episode_steps)

    def recorded_version(self) -> str:
        """The robosuite version of the file. If it is not stored, composite controllers mean 1.5, others 1.4."""
        if self.env_args.get("env_version"):
            return str(self.env_args["env_version"])
        controllers = self.env_args["env_kwargs"].get("controller_configs")
        composite = isinstance(controllers, dict) and "body_parts" in controllers
        return "1.5" if composite else "1.4"

    def check_robosuite(self) -> None:
        """Raise TaskError unless the robosuite version of the file is installed.

        The same observation keys hold other values in another version.
        """
        version = self.recorded_version()
        recorded = minor_version(version)
        install = INSTALL.get(recorded, f"pip install --no-deps robosuite=={recorded}")
        installed = robosuite_version()
        if installed is None:
            raise TaskError(f"{self.env_name} needs robosuite: {install}")
        if minor_version(installed) != recorded:
            raise TaskError(f"{self.path} was made with robosuite {version}, but {installed} is installed: {install}")

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        self.check_robosuite()
        if sys.platform == "linux" and ctypes.util.find_library("EGL") is None:
            os.environ.setdefault("MUJOCO_GL", "glx")  # importing robosuite loads EGL otherwise
        kwargs = dict(self.env_args["env_kwargs"])
        kwargs.pop("lang", None)  # an argument of robomimic's own, like the next one
        kwargs.pop("env_lang", None)
        kwargs["has_renderer"] = False
        kwargs["has_offscreen_renderer"] = render_mode is not None
        kwargs["use_camera_obs"] = False
        kwargs["ignore_done"] = True
        keys = ["object-state" if key == "object" else key for key in self.observation_keys]
        with quiet():
            import robosuite
            from robosuite.utils.log_utils import ROBOSUITE_DEFAULT_LOGGER
            from robosuite.wrappers import GymWrapper

            ROBOSUITE_DEFAULT_LOGGER.setLevel("ERROR")  # hides a warning at every reset
            env = robosuite.make(self.env_name, **kwargs)
            for key in keys:
                if not key.endswith("-state"):  # those are concatenations of observables
                    env.modify_observable(key, "active", True)  # some are off by default
            env = GymWrapper(env, keys)
        env.metadata = {"render_modes": ["rgb_array"]}
        env.render = lambda: env.sim.render(camera_name="agentview", width=512, height=512)[::-1]
        return gym.wrappers.TimeLimit(EndAtSuccess(SeededReset(env)), self.max_episode_steps)


class SeededReset(gym.Wrapper):
    """Seed robosuite at a reset, and return the observations of the state after the reset.

    Robosuite 1.5 draws from a generator of its own, which placement samplers hold too, so the generator's state is set.
    The first observation of robosuite 1.5 has relative poses from before the gripper was read, so observables are
    updated once more. This update takes no simulated time; otherwise every later observation would be one simulation
    step early.
    """

    def reset(self, *, seed=None, options=None):
        env = self.unwrapped
        if seed is not None and hasattr(env, "rng"):
            env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.env.reset(seed=seed)
        for observable in env._observables.values():
            observable.update(timestep=0.0, obs_cache=env._obs_cache, force=True)
        return self.env._flatten_obs(env._get_observations()), {}


def environment_name(env_id: str) -> str | None:
    """robosuite's environment for a robomimic id such as lift-ph; None for other ids."""
    return ENVIRONMENTS[env_id.split("-")[0]] if env_id in FILES else None


def horizon(env_name: str, env_id: str) -> int:
    """Steps of an episode in robomimic's registry. Data from several operators (mh) have longer episodes."""
    long_task = env_name in ("TwoArmTransport", "ToolHang")
    if env_id.endswith("-mh"):
        return 1100 if long_task else 500
    return 700 if long_task else 400


def robosuite_version() -> str | None:
    """The version of the installed robosuite, None if there is none."""
    try:
        return importlib.metadata.version("robosuite")
    except importlib.metadata.PackageNotFoundError:
        return None


def minor_version(version: str) -> str:
    """1.5 for 1.5.2."""
    return ".".join(version.split(".")[:2])


def has_robosuite_1_4() -> bool:
    version = robosuite_version()
    return version is not None and minor_version(version) == "1.4"


def older_file(env_id: str) -> Path:
    """The path of an id's file for robosuite 1.4.1, in the layout of robomimic's server."""
    name = FILES[env_id].removeprefix("v1.5/").replace("_v15", "_v141")
    return data_folder("ROBOMIMIC_DATASET_DIR", ".robomimic", "datasets") / name


def fetch(env_id: str) -> Path:
    """The file of an id, downloaded from the Hugging Face Hub if it is missing.

    Raises:
        TaskError: if it cannot be downloaded, or is for another robosuite than the installed one.
    """
    path, url = Robomimic.locate(env_id)
    if path.is_file():
        return path
    if has_robosuite_1_4():
        raise TaskError(
            f"{env_id} needs robosuite 1.5 ({INSTALL['1.5']}), or for the installed {robosuite_version()} the older "
            f"file {older_file(env_id)}"
        )
    with task_errors(f"cannot download {env_id}; download {url} manually and name the file with --dataset-path"):
        folder = os.environ.get("ROBOMIMIC_DATASET_DIR") or None
        return Path(import_hub().hf_hub_download(HUB, FILES[env_id], repo_type="dataset", local_dir=folder))
