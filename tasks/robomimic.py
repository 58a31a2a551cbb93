"""robomimic's low-dimensional datasets in robosuite's environments: v1.5 on robosuite 1.5, v141 on robosuite 1.4.1."""

import ctypes.util
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np

from tasks.task import EndAtSuccess, Task, check_rows, data_folder, fail, join, quiet, read_array

HUB = "robomimic/robomimic_datasets"  # on the Hugging Face Hub, a repository of type dataset
ENVIRONMENTS = {
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "transport": "TwoArmTransport",
    "tool_hang": "ToolHang",
}
IDS = {f"{_task}-{_kind}": f"v1.5/{_task}/{_kind}/low_dim_v15.hdf5" for _task in ENVIRONMENTS for _kind in ("ph", "mh")}
del IDS["tool_hang-mh"]
for _task in ("lift", "can"):
    IDS[f"{_task}-mg"] = f"v1.5/{_task}/mg/low_dim_sparse_v15.hdf5"
    IDS[f"{_task}-mg-dense"] = f"v1.5/{_task}/mg/low_dim_dense_v15.hdf5"
IDS["can-paired"] = "v1.5/can/paired/low_dim_v15.hdf5"
INSTALL = {
    "1.4": "pip install --no-deps robosuite==1.4.1",
    "1.5": "pip install --no-deps -r requirements-robosuite.txt",
}


def horizon(env_name: str, env_id: str) -> int:
    """Steps of a rollout in robomimic's registry; data of several operators (mh) have longer ones."""
    several, long = env_id.endswith("-mh"), env_name in ("TwoArmTransport", "ToolHang")
    return (1100 if long else 500) if several else (700 if long else 400)


def installed() -> str | None:
    """Version of robosuite, or None if it is not installed."""
    try:
        return importlib.metadata.version("robosuite")
    except importlib.metadata.PackageNotFoundError:
        return None


def locate(env_id: str) -> tuple[Path, str]:
    """The file of an id, which may be missing, and its URL.

    It is looked for in $ROBOMIMIC_DATASET_DIR, else in the Hugging Face Hub's cache. Where robosuite 1.4 is installed,
    the older file comes first, if it is in $ROBOMIMIC_DATASET_DIR or ~/.robomimic/datasets.
    """
    url = f"https://huggingface.co/datasets/{HUB}/resolve/main/{IDS[env_id]}"
    if (installed() or "").startswith("1.4") and (older := older_file(env_id)).is_file():
        return older, url
    if os.environ.get("ROBOMIMIC_DATASET_DIR"):
        return data_folder("ROBOMIMIC_DATASET_DIR") / IDS[env_id], url
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(HUB, IDS[env_id], repo_type="dataset")
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"datasets--{HUB.replace('/', '--')}"
    return (Path(cached) if isinstance(cached, str) else folder / "snapshots" / "main" / IDS[env_id]), url


def older_file(env_id: str) -> Path:
    """The path of an id's older file, for robosuite 1.4.1, in the layout of robomimic's server."""
    name = IDS[env_id].removeprefix("v1.5/").replace("_v15", "_v141")
    return data_folder("ROBOMIMIC_DATASET_DIR", ".robomimic", "datasets") / name


def fetch(env_id: str) -> Path:
    """The file of an id, downloaded from the Hugging Face Hub if it is missing."""
    path, url = locate(env_id)
    if path.is_file():
        return path
    if (version := installed() or "").startswith("1.4"):
        older = older_file(env_id)
        fail(f"{env_id} needs robosuite 1.5: {INSTALL['1.5']} ({version} is here; its older file would be {older})")
    try:
        import huggingface_hub

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hides the messages of every retry
        folder = os.environ.get("ROBOMIMIC_DATASET_DIR") or None
        return Path(huggingface_hub.hf_hub_download(HUB, IDS[env_id], repo_type="dataset", local_dir=folder))
    except Exception as error:  # network, Hub and disk raise many kinds of errors
        reason = str(error).split(". ")[0]
        fail(f"cannot download {env_id} ({type(error).__name__}: {reason}); fetch {url} and name it by --dataset-path")


def env_name(env_id: str) -> str:
    """The robosuite environment of an id."""
    return ENVIRONMENTS[env_id.split("-")[0]]


def check_attribute(path: Path) -> None:
    """Fail if reading `env_args` takes more than 20 s: on some damaged files libhdf5 never returns."""
    code = "import h5py, sys; h5py.File(sys.argv[1], 'r')['data'].attrs['env_args']"
    try:
        subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, timeout=20)
    except subprocess.TimeoutExpired:
        fail(f"{path} is damaged: its env_args cannot be read")


def read_header(path: Path) -> tuple[dict, list[str], int] | None:
    """A robomimic file's `env_args`, its observations' names and its longest demonstration's steps.

    None if the HDF5 file is not robomimic's.
    """
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("data"), h5py.Group):
                return None
            check_attribute(path)
            env_args = json.loads(file["data"].attrs["env_args"])
            demonstrations = [group for group in file["data"].values() if isinstance(group, h5py.Group)]
            observations = demonstrations[0]["obs"].keys() if demonstrations else []
            names = [name for name in observations if isinstance(name, str)]  # bytes: not text
            lengths = [len(group["actions"]) for group in demonstrations if "actions" in group]
    except (OSError, RuntimeError) as error:
        fail(f"{path} is not a readable HDF5 file: {error}")
    except Exception as error:  # h5py raises many kinds of errors on damaged files
        fail(f"{path} has robomimic's group 'data', but no readable env_args or obs in it: {error}")
    match env_args:
        case {"env_name": str(), "env_kwargs": dict(), "type": 1}:
            return env_args, names, max(lengths, default=0)
    fail(f"{path}: its env_args do not describe a robosuite environment (env_name, env_kwargs, type 1)")


class Robomimic(Task):
    """A robomimic file and the environment it describes; the score is the percentage of successes.

    Observations are those of `observation_keys`, concatenated; default: end effector and gripper of each arm, object.
    Episodes have the steps of robomimic's registry, or of the longest demonstration if that is longer.
    """

    min_return, max_return, eval_episodes, processes = 0.0, 1.0, 50, True

    def __init__(
        self,
        env_id: str,
        path: Path,
        dataset_filter: str | None = None,
        observation_keys: list[str] | None = None,
        header: tuple[dict, list[str], int] | None = None,  # of `read_header`, if it has been read
    ):
        self.env_id, self.path, self.dataset_filter = env_id, path, dataset_filter
        self.env_args, names, longest = header or read_header(path)
        self.env_name = self.env_args["env_name"]
        self.max_episode_steps = max(horizon(self.env_name, env_id), longest)
        robots = sorted({key.split("_")[0] for key in names if key.startswith("robot")})
        keys = [f"{robot}_{key}" for robot in robots for key in ("eef_pos", "eef_quat", "gripper_qpos")]
        self.observation_keys = tuple(observation_keys or [*keys, "object"])
        if names and (missing := [key for key in self.observation_keys if key not in names]):
            fail(f"{path} has no observation {missing[0]!r}; it has {', '.join(names)}")

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Transitions of all demonstrations, or of those under the filter key; returns: 1 of a success, else 0.

        Rewards and dones are the file's own. robomimic sets dones where the task is achieved (done_mode 0), at the last
        step (1), or at both (2). A demonstration succeeds if its largest reward is that of success, which dense rewards
        stay below. Without `next_obs` the last step is a transition only if it is done.
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
                    names = [name.decode() for name in read_array(masks, self.dataset_filter)]
                for name in sorted(set(names), key=lambda name: int(name.removeprefix("demo_"))):
                    demonstration = file["data"][name]
                    columns = {
                        "observations": self._observations(demonstration["obs"]),
                        "actions": read_array(demonstration, "actions"),
                        "rewards": read_array(demonstration, "rewards"),
                        "terminals": read_array(demonstration, "dones"),
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
        except Exception as error:  # h5py raises many kinds of errors on damaged files
            fail(f"{self.path}, {name}: not as in robomimic's low-dim files: {error}")

    def _observations(self, group: h5py.Group) -> np.ndarray:
        values = [read_array(group, key) for key in self.observation_keys]
        return np.concatenate([value.reshape(len(value), -1) for value in values], 1)

    def recorded(self) -> str:
        """The robosuite version of the file; if it is not stored, composite controllers mean 1.5, others 1.4."""
        controllers = self.env_args["env_kwargs"].get("controller_configs")
        composite = isinstance(controllers, dict) and "body_parts" in controllers
        return str(self.env_args.get("env_version") or ("1.5" if composite else "1.4"))

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        if sys.platform == "linux" and ctypes.util.find_library("EGL") is None:
            os.environ.setdefault("MUJOCO_GL", "glx")  # importing robosuite loads EGL otherwise
        recorded, here = ".".join(self.recorded().split(".")[:2]), installed()
        if here is None:
            fail(f"{self.env_name} needs robosuite: {INSTALL.get(recorded, INSTALL['1.5'])}")
        if recorded != ".".join(here.split(".")[:2]):  # the same names hold other observations there
            install = INSTALL.get(recorded, f"pip install --no-deps robosuite=={recorded}")
            fail(f"{self.path} is of robosuite {self.recorded()}, and {here} is here: {install}")
        rendering = {"has_renderer": False, "has_offscreen_renderer": bool(render_mode), "use_camera_obs": False}
        kwargs = self.env_args["env_kwargs"] | rendering | {"ignore_done": True}
        kwargs = {key: value for key, value in kwargs.items() if key not in ("lang", "env_lang")}  # robomimic's own
        keys = ["object-state" if key == "object" else key for key in self.observation_keys]
        with quiet():
            import robosuite
            from robosuite.utils.log_utils import ROBOSUITE_DEFAULT_LOGGER
            from robosuite.wrappers import GymWrapper

            ROBOSUITE_DEFAULT_LOGGER.setLevel("ERROR")  # hides a warning at every reset
            env = robosuite.make(self.env_name, **kwargs)
            for key in set(keys) & set(env.observation_names):  # some are off by default
                env.modify_observable(key, "active", True)
            seen = env.reset()
            env = GymWrapper(env, keys)
        if missing := [key for key in keys if key not in seen]:
            fail(f"robosuite {here} observes no {missing[0]!r} in {self.env_name}, which {self.path} has")
        env.metadata = {"render_modes": ["rgb_array"]}
        env.render = lambda: env.sim.render(camera_name="agentview", width=512, height=512)[::-1]
        return gym.wrappers.TimeLimit(EndAtSuccess(FromSeed(env)), self.max_episode_steps)


class FromSeed(gym.Wrapper):
    """Seed robosuite at a reset, and return the observations of the state after the reset.

    Robosuite 1.5 draws from its own generator, which placement samplers share, so the generator's state is set. Its
    first observation has relative poses from before the gripper was read, so observables are updated once more. The
    update takes no simulated time; otherwise every later observation would be one simulation step early.
    """

    def reset(self, *, seed=None, options=None):
        env = self.unwrapped
        if seed is not None and hasattr(env, "rng"):
            env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.env.reset(seed=seed)
        for observable in env._observables.values():
            observable.update(timestep=0.0, obs_cache=env._obs_cache, force=True)
        return self.env._flatten_obs(env._get_observations()), {}
