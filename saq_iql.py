"""SAQ-IQL: implicit Q-learning on the codes of a state-conditioned action VQ-VAE, with its exact policy.

    code        c = vqvae.encode(s, a)          looked up: computed once per row, before Q-learning
    V           mean |expectile - 1(u < 0)| u^2,  u = Q_target(s, c) - V(s)
    Q           mean (Q(s, c) - w r - gamma (1 - terminal) V(s'))^2,  Q_target follows Q by Polyak averaging
    policy      pi(k|s) = softmax_k (Q(s, k) / temperature + log pi_b(k|s))
    action      sum_k pi(k|s) vqvae.decode(s, k), the policy's mean, clipped to the action space

Continuous IQL extracts its policy pi ~ pi_b exp((Q - V) / temperature) by weighted regression onto an actor. Over K
codes the policy is a softmax of K terms: there is no actor, and the temperature can be chosen after training. The
weight w puts the largest return of the dataset at `value_scale`, so that one temperature fits every reward. Targets are
of n steps: w r is the discounted sum of n rewards, s' follows the last of them, and gamma stands for gamma^n.

Paper: *Action-Quantized Offline Reinforcement Learning for Robotic Skill Learning* (Luo et al., CoRL 2023), section 4;
IQL (Kostrikov et al., ICLR 2022), equations 5 to 7. README.md numbers the deviations from the paper and has the
commands of its own recipe.

    python saq_iql.py                                 # this repository's demo dataset: a robot arm picks and places
    python saq_iql.py --env-id hopper-medium-v2       # D4RL
    python saq_iql.py --env-id lift-ph                # robomimic
    python saq_iql.py --env-id D4RL/kitchen/mixed-v2  # Minari
"""

import contextlib
import copy
import ctypes.util
import difflib
import gc
import importlib.util
import io
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, NoReturn, get_args

import gymnasium as gym
import h5py
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vqvae import VQVAE, Standardize, cuda_graph, ema_weight, follow, train_vqvae


@dataclass
class Args:
    env_id: str = "fetch-pick-and-place-demo-v0"
    """dataset and environment: a D4RL, robomimic or Minari id, or the demo in this repository"""
    dataset_path: str | None = None
    """HDF5 file in D4RL's or robomimic's layout in place of the id's own; robomimic's brings its environment"""
    dataset_filter: str | None = None
    """robomimic files: filter key of the demonstrations to use, such as train; default all"""
    observation_keys: list[str] | None = None
    """robomimic files: observations to use; default end effector and gripper of each arm, and object (the paper)"""
    seed: int = 1
    """seed of networks, batches and evaluation episodes"""
    vqvae_steps: int = 3000
    """gradient steps of the VQ-VAE"""
    bc_steps: int = 3000
    """gradient steps of the behavior policy over codes"""
    total_steps: int = 3000
    """gradient steps of Q and V"""
    batch_size: int = 256
    """transitions per gradient step, in every phase"""
    codebook_size: int = 64
    """K, the number of codes"""
    hidden_dim: int = 256
    """width of the hidden layers of every network"""
    standardize: bool = True
    """standardize observations with the dataset's mean and deviation (the paper: raw)"""
    restart_every: int = 500
    """VQ-VAE steps between restarts of unused codes, after a k-means start; 0: neither (the paper)"""
    layer_norm: bool = True
    """normalize the hidden layers of every network but the VQ-VAE (the paper: no)"""
    learning_rate: float = 3e-3
    """learning rate of every network (the paper: 3e-4)"""
    weight_decay: float = 1e-3
    """AdamW's weight decay for Q and behavior policy"""
    gamma: float | None = None
    """discount factor; default 1 - 1 / h, of the data's mean episode of h steps (the paper: 0.99)"""
    n_step: int | None = None
    """rewards summed before a target bootstraps; default h / 50, at least 1 (the paper: 1)"""
    expectile: float = 0.7
    """expectile of V over the codes of the data; 0.5: their mean"""
    temperature: float = 3.0
    """temperature of the policy: low follows Q, high the behavior policy"""
    behavior_floor: float | None = None
    """raise log pi_b to this in the policy where it is lower (the paper's code: -8)"""
    tau: float = 0.05
    """weight of Q in each Polyak update of its target network (the paper: 0.005)"""
    value_scale: float = 100.0
    """scale rewards so that the dataset's largest discounted return is this; 0: by domain (the paper)"""
    ema_decay: float = 0.9995
    """decay, in the long run, of the moving averages of the weights that act; 0: the last weights (the paper)"""
    acting: Literal["mean", "greedy", "sampled"] = "mean"
    """the mean of what the policy's codes decode to, the most probable code, or one sampled; after the last step all"""
    eval_every: int = 10_000
    """gradient steps of Q between evaluations"""
    eval_episodes: int = 10
    """episodes per evaluation during training"""
    final_eval_episodes: int | None = None
    """episodes of the evaluation after the last step; default 100, robosuite 50"""
    checkpoint_every: int = 10_000
    """gradient steps between checkpoints"""
    runs_dir: str = "runs"
    """folder in which the run's folder is made"""
    resume: str | None = None
    """folder of an interrupted run to continue; its arguments hold, but for those given again"""
    vqvae_path: str | None = None
    """trained VQ-VAE (the vqvae.pt of a run on the same dataset) to use in place of training one"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """device of networks and dataset; auto: cuda where there is one"""
    compile: bool = False
    """compile the losses with torch.compile"""
    track: bool = False
    """log to Weights & Biases too"""
    capture_video: bool = False
    """write video.gif of the final policy"""


# ---- shared by all algorithm files, identical to the letter ----------------------------------------------------------


class Task(NamedTuple):
    """What an `--env-id` stands for: an environment, the returns that score 0 and 100 in it, and a dataset."""

    name: str  # of the environment: gymnasium's id or robosuite's name; Minari: of the dataset
    max_steps: int
    min_return: float
    max_return: float
    url: str | None = None  # of the dataset, if it is to be downloaded
    # set by `find_task`:
    path: Path | None = None  # of the dataset's HDF5 file
    env_args: dict | None = None  # robomimic: the file's description of its environment
    observation_keys: tuple[str, ...] = ()  # robomimic: observations to concatenate
    dataset_filter: str | None = None  # robomimic: filter key of the demonstrations to use
    minari: Any = None  # the MinariDataset


LOG_EVERY = 500  # gradient steps
D4RL_SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
ROBOMIMIC_SERVER = "http://downloads.cs.stanford.edu/downloads/rt_benchmark"
TASKS = {"fetch-pick-and-place-demo-v0": Task("FetchPickAndPlace-v4", 50, 0.0, 1.0)}
for _name, *_task in (
    ("halfcheetah", "HalfCheetah-v4", 1000, -280.178953, 12135.0),
    ("hopper", "Hopper-v4", 1000, -20.272305, 3234.3),
    ("walker2d", "Walker2d-v4", 1000, 1.629008, 4592.3),
):
    for _kind in ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay"):
        _file = f"gym_mujoco_v2/{_name}_{_kind.replace('-', '_')}-v2.hdf5"
        TASKS[f"{_name}-{_kind}-v2"] = Task(*_task, f"{D4RL_SERVER}/{_file}")
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
        TASKS[f"{_name}-{_kind}-v0"] = Task(*_task, f"{D4RL_SERVER}/hand_dapg/{_file}.hdf5")
        TASKS[f"{_name}-{_kind}-v1"] = Task(*_task, f"{D4RL_SERVER}/hand_dapg_v1/{_name}-{_kind}-v1.hdf5")
ROBOMIMIC_STEPS = {"TwoArmTransport": 700, "ToolHang": 700}  # every other task: 400
for _name, _robosuite_name, _kinds in (
    ("lift", "Lift", ("ph", "mh", "mg", "mg-dense")),
    ("can", "PickPlaceCan", ("ph", "mh", "mg", "mg-dense")),
    ("square", "NutAssemblySquare", ("ph", "mh")),
    ("transport", "TwoArmTransport", ("ph", "mh")),
    ("tool_hang", "ToolHang", ("ph",)),
):
    for _kind in _kinds:
        _file = {"mg": "mg/low_dim_sparse", "mg-dense": "mg/low_dim_dense"}.get(_kind, f"{_kind}/low_dim")
        _url = f"{ROBOMIMIC_SERVER}/{_name}/{_file}_v141.hdf5"
        TASKS[f"{_name}-{_kind}"] = Task(_robosuite_name, ROBOMIMIC_STEPS.get(_robosuite_name, 400), 0.0, 1.0, _url)


def fail(message: str) -> NoReturn:
    """End the program with one line on stderr and exit code 2: the user's input, not the program, is at fault."""
    print("error:", *message.split(), file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep off the screen what environments' packages say when they are imported and started."""
    gym.logger.min_level = gym.logger.ERROR  # D4RL's v2 tasks are gymnasium's v4: no hint to upgrade to v5
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class EndAtSuccess(gym.Wrapper):
    """Reward 1 and end of the episode at success, else 0."""

    def step(self, action):
        observation, _, _, truncated, info = self.env.step(action)
        success = bool(info["is_success"] if "is_success" in info else self.unwrapped._check_success())
        return observation, float(success), success, truncated, info


class AdroitAsInD4RL(gym.Wrapper):
    """D4RL's Adroit rewards and endings on gymnasium-robotics 1.4.2, which departs from them (README, deviations)."""

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


def make_robosuite(task: Task, render_mode: str | None) -> gym.Env:
    """The environment that a robomimic file describes; its observation is `task.observation_keys`, concatenated."""
    if sys.platform == "linux" and ctypes.util.find_library("EGL") is None:
        os.environ.setdefault("MUJOCO_GL", "glx")  # importing robosuite loads EGL unless told of another
    try:
        with quiet():
            import robosuite
            from robosuite.wrappers import GymWrapper
    except ImportError as error:
        fail(f"{task.name} needs robosuite ({error}): pip install --no-deps -r requirements-robosuite.txt")
    installed = robosuite.__version__
    recorded = str(task.env_args.get("env_version") or installed)
    if recorded.split(".")[:2] != installed.split(".")[:2]:
        fail(f"{task.path} is of robosuite {recorded}, whose physics are not those of {installed}, which is here")
    rendering = {"has_renderer": False, "has_offscreen_renderer": bool(render_mode), "use_camera_obs": False}
    keys = ["object-state" if key == "object" else key for key in task.observation_keys]
    try:
        with quiet():
            env = robosuite.make(task.name, **task.env_args["env_kwargs"] | rendering | {"ignore_done": True})
            for key in set(keys) & set(env.observation_names):  # a few are off by default
                env.modify_observable(key, "active", True)
            env = GymWrapper(env, keys)
    except Exception as error:  # each task and version fails in its own way
        fail(f"robosuite {installed} cannot make {task.name} as {task.path} has it: {error!r}")
    env.metadata = {"render_modes": ["rgb_array"]}
    env.render = lambda: env.sim.render(camera_name="agentview", width=512, height=512)[::-1]
    return gym.wrappers.TimeLimit(EndAtSuccess(env), task.max_steps)


def make_minari(task: Task, render_mode: str | None) -> gym.Env:
    """The environment that a Minari dataset is to be evaluated in, with observations flattened."""
    try:
        with quiet():
            rendering = {"render_mode": render_mode} if render_mode else {}  # not every environment knows the word
            env = task.minari.recover_environment(eval_env=True, **rendering)
    except Exception as error:  # each package fails in its own way
        fail(f"cannot make the environment of {task.name}: {error!r}")
    if not isinstance(env.action_space, gym.spaces.Box) or len(env.action_space.shape) != 1:
        fail(f"{task.name} has actions in {env.action_space}; SAQ needs vectors of continuous ones (Box)")
    if env.spec.max_episode_steps is None:
        env = gym.wrappers.TimeLimit(env, task.max_steps)
    return gym.wrappers.FlattenObservation(env)


def make_env(task: Task, render_mode: str | None = None) -> gym.Env:
    """The task's gymnasium environment, with the rewards, endings and step limit of the benchmark it comes from."""
    if task.env_args:
        return make_robosuite(task, render_mode)
    if task.minari is not None:
        return make_minari(task, render_mode)
    with quiet():
        if task.name.startswith(("Fetch", "Adroit")):
            import gymnasium_robotics

            gym.register_envs(gymnasium_robotics)
        env = gym.make(task.name, max_episode_steps=task.max_steps, render_mode=render_mode)
    if task.name.startswith("Fetch"):
        space = gym.spaces.Box(-np.inf, np.inf, (28,), np.float64)
        keys = ("observation", "desired_goal")
        env = gym.wrappers.TransformObservation(env, lambda seen: np.concatenate([seen[key] for key in keys]), space)
        return EndAtSuccess(env)
    return AdroitAsInD4RL(env) if task.name.startswith("Adroit") else env


def normalized_score(task: Task, returns: np.ndarray) -> np.ndarray:
    """0 for a random policy's return, 100 for an expert's (D4RL, Minari); success in percent (demo, robomimic)."""
    return 100.0 * (returns - task.min_return) / (task.max_return - task.min_return)


def download(url: str, path: Path) -> None:
    """Fetch `url` into `path` through a temporary file, which is renamed only when it is complete HDF5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, open(temporary, "wb") as file:
            size = int(response.headers["Content-Length"])
            with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
                while block := response.read(1 << 20):
                    bar.update(file.write(block))
        if temporary.stat().st_size != size:
            raise OSError(f"connection closed after {temporary.stat().st_size} of {size} bytes")
        h5py.File(temporary, "r").close()
        os.replace(temporary, path)
    except (OSError, TypeError) as error:
        fail(f"cannot download {url} ({error}); fetch it by other means and put it at {path}")
    finally:
        temporary.unlink(missing_ok=True)


def read_header(path: Path) -> tuple[dict, list[str]] | None:
    """Of a robomimic file, `env_args` and the names of its observations; None if the HDF5 file is not robomimic's."""
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


def find_task(args) -> Task:
    """The task of `args.env_id` with its dataset, downloaded if it is not here.

    A robomimic file names its own environment, so that `args.env_id`, if left at its default, becomes that name. An id
    with a slash, or of a dataset that Minari finds on this machine, is Minari's.
    """
    task, path = TASKS.get(args.env_id), None if args.dataset_path is None else Path(args.dataset_path)
    minari_path = Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari" / "datasets")) / args.env_id
    if path is None and task is not None:
        if task.url is None:
            path = Path(__file__).parent / "demo" / f"{args.env_id}.hdf5"
        elif task.url.startswith(ROBOMIMIC_SERVER):
            folder = Path(os.environ.get("ROBOMIMIC_DATASET_DIR", Path.home() / ".robomimic" / "datasets"))
            path = folder / task.url.removeprefix(f"{ROBOMIMIC_SERVER}/")
        else:
            path = Path(os.environ.get("D4RL_DATASET_DIR", Path.home() / ".d4rl" / "datasets")) / Path(task.url).name
        if task.url and not path.exists():
            download(task.url, path)
    if path is not None and not path.is_file():
        fail(f"no such file: {path}")
    if path is not None and (header := read_header(path)):
        env_args, names = header
        name = env_args["env_name"]
        if args.env_id == type(args).env_id:
            args.env_id = name
        elif name not in (args.env_id, task and task.name):
            fail(f"{path} is of robosuite's {name}, not of --env-id {args.env_id}; leave --env-id out")
        robots = sorted({key.split("_")[0] for key in names if key.startswith("robot")})
        keys = [f"{robot}_{key}" for robot in robots for key in ("eef_pos", "eef_quat", "gripper_qpos")]
        keys = args.observation_keys or [*keys, "object"]
        if names and (missing := [key for key in keys if key not in names]):
            fail(f"{path} has no observation {missing[0]!r}; it has {', '.join(names)}")
        return Task(
            name,
            ROBOMIMIC_STEPS.get(name, 400),
            0.0,
            1.0,
            path=path,
            env_args=env_args,
            observation_keys=tuple(keys),
            dataset_filter=args.dataset_filter,
        )
    if args.observation_keys or args.dataset_filter:
        fail("--observation-keys and --dataset-filter are for robomimic's files")
    if task is not None:
        if (task.url or "").startswith(ROBOMIMIC_SERVER):
            fail(f"{path} is not a robomimic file, which has a group 'data' with env_args")
        return task._replace(path=path)
    if "/" not in args.env_id and not minari_path.exists():
        near = difflib.get_close_matches(args.env_id, TASKS, n=3, cutoff=0.0)
        fail(f"unknown --env-id {args.env_id}; did you mean {', '.join(near)}? Minari's ids have a slash")
    if path is not None:
        fail(f"--dataset-path is for HDF5 files of D4RL and robomimic; {args.env_id} is Minari's, in {minari_path}")
    try:
        import minari

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # not every retry to reach the server
        dataset = minari.load_dataset(args.env_id, download=True)
        lowest, highest = (float(dataset.storage.metadata.get(f"ref_{end}_score") or 0.0) for end in ("min", "max"))
        lengths = [episode["total_steps"] for episode in dataset.storage.get_episode_metadata(dataset.episode_indices)]
    except Exception as error:  # no network, no such dataset, half a dataset, another version of Minari
        fail(f"cannot load {args.env_id} with Minari ({error}); fetch it by other means and put it at {minari_path}")
    if lowest == highest:  # no reference: the score is the return
        lowest, highest = 0.0, 100.0
    return Task(args.env_id, int(max(lengths, default=1)), lowest, highest, minari=dataset)


class Dataset(NamedTuple):
    """Rows of a dataset on the device, one an action, and the transitions among them."""

    observations: torch.Tensor  # (M + E, observation_dim) float32, of the M rows, then E that follow some of them
    actions: torch.Tensor  # (M, action_dim) float32, within 0.999 of the action space's bounds
    rewards: torch.Tensor  # (M,) float32
    terminals: torch.Tensor  # (M,) float32, 1 where the episode ended other than by time-out
    transitions: torch.Tensor  # (N,) int64, rows whose next observation is known
    next_rows: torch.Tensor  # (N,) int64, of `observations`: where it is
    episode_returns: np.ndarray  # (episodes,) float64, undiscounted; robomimic: 1 if the demonstration succeeds, else 0


def check_rows(where: str, rows: dict[str, np.ndarray]) -> None:
    """Fail if columns differ in length or hold a NaN or an infinity."""
    count = len(rows["observations"])
    for key, values in rows.items():
        if key in ("rewards", "terminals", "timeouts"):
            rows[key] = values = values.reshape(-1)
        if len(values) != count:
            fail(f"{where}: {key} has {len(values)} rows, observations {count}")
        if not np.isfinite(values).all():
            fail(f"{where}: {key} has a NaN or an infinity in row {np.argwhere(~np.isfinite(values))[0, 0]}")


def read_d4rl(task: Task) -> dict[str, np.ndarray]:
    """Rows and transitions of a D4RL file, by the rule of d4rl's `qlearning_dataset`.

    The last step of an episode that ended by time-out is no transition, since its next observation is not in the
    file. Without a `timeouts` key, episodes end when a counter, which restarts at 1 after a terminal, reaches the
    environment's step limit.
    """
    try:
        with h5py.File(task.path, "r") as file:
            keys = ("observations", "actions", "rewards", "terminals")
            if missing := [key for key in keys if key not in file]:
                fail(f"{task.path} lacks the key {missing[0]!r}; D4RL files have {', '.join(keys)}")
            rows = {key: np.atleast_1d(file[key][()]) for key in (*keys, "timeouts") if key in file}
    except (OSError, RuntimeError, TypeError) as error:
        fail(f"{task.path} is not a readable HDF5 file: {error}")
    check_rows(str(task.path), rows)
    count, terminals = len(rows["rewards"]), rows["terminals"].astype(bool)
    if "timeouts" in rows:
        timeouts = rows["timeouts"].astype(bool)
    else:
        timeouts, steps = np.zeros(count, bool), 0
        for row in range(count):
            timeouts[row] = steps == task.max_steps - 1
            steps = 0 if timeouts[row] else 1 if terminals[row] else steps + 1
    transitions = np.flatnonzero(~timeouts[:-1])
    ends = np.flatnonzero(terminals | timeouts)
    ends = ends if len(ends) else np.array([count - 1])  # steps after the last end are an unfinished episode
    sums = np.concatenate([[0.0], np.cumsum(rows["rewards"], dtype=np.float64)])
    returns = np.diff(sums[np.concatenate([[0], ends + 1])])
    return rows | {"transitions": transitions, "next_rows": transitions + 1, "episode_returns": returns}


def join_episodes(episodes: list[dict[str, np.ndarray]], returns: list[float]) -> dict[str, np.ndarray]:
    """Rows and transitions of episodes whose columns have the observation after each step, too; none of no episodes.

    A next observation that is not the following row's own, as after an episode's last step, comes after all rows.
    """
    if not episodes:
        return {}
    rows = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    observations, following = rows["observations"], rows.pop("next_observations")
    count, lasts = len(observations), np.cumsum([len(episode["rewards"]) for episode in episodes]) - 1
    appended = np.append((following[:-1] != observations[1:]).any(1), True)
    appended[lasts] = True
    next_rows = np.arange(1, count + 1)
    next_rows[appended] = count + np.arange(appended.sum())
    rows["observations"] = np.concatenate([observations, following[appended]])
    returns = np.array(returns, np.float64)
    return rows | {"transitions": np.arange(count), "next_rows": next_rows, "episode_returns": returns}


def read_robomimic(task: Task) -> dict[str, np.ndarray]:
    """Rows and transitions of a robomimic file's demonstrations, or of those under the task's filter key.

    Rewards and dones are the file's own; robomimic sets dones where the task is achieved (its done_mode 0), at the last
    step (1), or at both (2). A demonstration succeeds if it pays the reward of success, which dense rewards stay below.
    """
    episodes, returns, name = [], [], "data"
    try:
        success = 0.999 * (task.env_args["env_kwargs"].get("reward_scale") or 1.0)
        with h5py.File(task.path, "r") as file:
            names, masks = list(file["data"]), file.get("mask", {})
            if task.dataset_filter is not None:
                if task.dataset_filter not in masks:
                    known = ", ".join(masks) or "none"
                    fail(f"{task.path} has no filter key {task.dataset_filter!r}; its filter keys: {known}")
                names = [name.decode() for name in masks[task.dataset_filter]]
            for name in sorted(set(names), key=lambda name: int(name.removeprefix("demo_"))):
                demonstration = file["data"][name]
                columns = {
                    "actions": demonstration["actions"][()],
                    "rewards": demonstration["rewards"][()],
                    "terminals": demonstration["dones"][()],
                }
                for column, group in (("observations", "obs"), ("next_observations", "next_obs")):
                    if group in demonstration:
                        values = [demonstration[group][key][()] for key in task.observation_keys]
                        values = [value.reshape(len(value), -1) for value in values]
                        columns[column] = np.concatenate(values, 1, dtype=np.float32)
                check_rows(f"{task.path}, {name}", columns)
                if "next_observations" not in columns:
                    columns["next_observations"] = np.roll(columns["observations"], -1, 0)
                    if not columns["terminals"][-1]:  # what follows the last step is not in the file
                        columns = {key: values[:-1] for key, values in columns.items()}
                episodes.append(columns)
                returns.append(columns["rewards"].max(initial=0.0) >= success)
        return join_episodes(episodes, returns)
    except (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        fail(f"{task.path}, {name}: not as in robomimic's low-dim files: {error}")


def read_minari(task: Task) -> dict[str, np.ndarray]:
    """Rows and transitions of a Minari dataset; dict observations are flattened as gymnasium flattens them."""

    def flatten(space: gym.Space, values) -> np.ndarray:
        if isinstance(space, gym.spaces.Dict):
            return np.concatenate([flatten(part, values[key]) for key, part in space.items()], 1, dtype=np.float32)
        return np.asarray(values, np.float32).reshape(len(values), -1)

    episodes, returns = [], []
    try:
        for episode in task.minari.iterate_episodes():
            observations = flatten(task.minari.observation_space, episode.observations)
            columns = {
                "observations": observations[:-1],
                "next_observations": observations[1:],
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminals": episode.terminations,
            }
            check_rows(f"{task.name}, episode {episode.id}", columns)
            episodes.append(columns)
            returns.append(episode.rewards.sum())
        return join_episodes(episodes, returns)
    except (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        fail(f"{task.name}, episode {len(episodes)}: not arrays, or dicts of arrays, that can be read: {error}")


def load_dataset(task: Task, env: gym.Env, device: torch.device) -> Dataset:
    """Read the task's dataset and check that it fits the environment."""
    where = task.path or task.name
    read = read_robomimic if task.env_args else read_d4rl if task.minari is None else read_minari
    rows = read(task)
    if not len(rows.get("transitions", ())):
        fail(f"{where} holds no transition")
    for key, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if rows[key].shape[1:] != space.shape:
            fail(f"{where}: {key} have shape {rows[key].shape[1:]}, those of {task.name} {space.shape}")
    low, high = env.action_space.low, env.action_space.high
    actions = rows["actions"].astype(np.float32)
    outside = ((actions < low) | (actions > high)).any(1)
    if (np.abs(actions) > 2 * np.maximum(np.abs(low), np.abs(high))).any():
        fail(f"{where}: actions reach {np.abs(actions).max():.3g}, beyond twice the action space of {task.name}")
    if outside.any():
        print(f"{outside.sum()} of {len(actions)} actions lie outside the action space and are clipped")
    transitions, returns = rows["transitions"], rows["episode_returns"]
    terminals = rows["terminals"].astype(bool)
    print(
        f"{where}: {len(transitions)} transitions, {terminals[transitions].sum()} terminal, {len(returns)} episodes, "
        f"mean return {returns.mean():.2f} (score {normalized_score(task, returns).mean():.1f})"
    )
    return Dataset(
        torch.from_numpy(rows["observations"].astype(np.float32, copy=False)).to(device),
        torch.from_numpy(np.clip(actions, 0.999 * low, 0.999 * high, out=actions)).to(device),
        torch.from_numpy(rows["rewards"].astype(np.float32, copy=False)).to(device),
        torch.from_numpy(terminals.astype(np.float32)).to(device),
        torch.from_numpy(transitions).to(device),
        torch.from_numpy(rows["next_rows"]).to(device),
        returns,
    )


# observations (B, observation_dim) and the source of randomness -> actions (B, action_dim)
Policy = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def act(policy: Policy, space: gym.spaces.Box, observations: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Actions (B, action_dim) float32 for observations (B, observation_dim), clipped to the action space."""
    with torch.no_grad():
        observations = torch.as_tensor(observations, dtype=torch.float32, device=generator.device)
        actions = policy(observations, generator).cpu().numpy()
    return np.clip(actions, space.low, space.high)


def decode_policy(
    vqvae: VQVAE, observations: torch.Tensor, logits: torch.Tensor, acting: str, generator: torch.Generator
) -> torch.Tensor:
    """Actions (B, action_dim) of the policy softmax(logits) over codes (B, K) at observations (B, observation_dim).

    Args:
        acting: `mean`, sum_k pi(k|s) decode(s, k), as continuous policies act by their mean; `greedy`, what the most
            probable code decodes to; `sampled`, what a code drawn from the policy decodes to.
    """
    if acting == "greedy":
        return vqvae.decode(observations, logits.argmax(1))
    probabilities = torch.softmax(logits, 1)
    if acting == "sampled":
        return vqvae.decode(observations, torch.multinomial(probabilities, 1, generator=generator).squeeze(1))
    count, size = logits.shape
    codes = torch.arange(size, device=logits.device).repeat(count)
    decoded = vqvae.decode(observations.repeat_interleave(size, 0), codes)
    return torch.einsum("bk,bka->ba", probabilities, decoded.view(count, size, -1))


class Evaluation(NamedTuple):
    """One row an episode: its seed, undiscounted return, length in steps and normalized score."""

    seeds: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray


class Episodes(gym.Wrapper):
    """An environment whose resets go through `seeds`, an episode each; after the last it stands still."""

    def __init__(self, env: gym.Env, seeds: np.ndarray):
        super().__init__(env)
        self.seeds = seeds.tolist()
        self.standing = False

    def reset(self, **_):
        self.standing = not self.seeds
        if self.seeds:
            self.observation, _ = self.env.reset(seed=self.seeds.pop(0))
        return self.observation, {}

    def step(self, action):
        if self.standing:
            return self.observation, 0.0, False, False, {}
        self.observation, reward, terminated, truncated, _ = self.env.step(action)
        return self.observation, reward, terminated, truncated, {}


def evaluate(task: Task, policy: Policy, episodes: int, seed: int, device: torch.device) -> Evaluation:
    """Run `episodes` episodes in ten environments side by side, episode i from environment seed `10000 seed + i`.

    Environment j runs episodes j, j + 10, ..., whatever the number of cores. robosuite's and Minari's environments are
    processes; the others' steps are so fast that processes would cost more than they save.
    """
    generator = torch.Generator(device).manual_seed(seed)
    seeds = 10_000 * seed + np.arange(episodes)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    count = min(episodes, 10)
    vector = gym.vector.AsyncVectorEnv if task.env_args or task.minari is not None else gym.vector.SyncVectorEnv
    gc.freeze()  # or each process copies the whole heap when robosuite collects garbage, which it does at every reset
    envs = vector([lambda slot=slot: Episodes(make_env(task), seeds[slot::count]) for slot in range(count)])
    gc.unfreeze()
    observations, _ = envs.reset()
    episode, ended = np.arange(count), np.zeros(count, bool)
    with tqdm(desc="evaluation", unit="step", disable=None, leave=False) as bar:
        while (episode < episodes).any():
            actions = act(policy, envs.single_action_space, observations, generator)
            observations, rewards, terminated, truncated, _ = envs.step(actions)
            running = (episode < episodes) & ~ended  # an environment whose episode ended has spent this step on a reset
            returns[episode[running]] += rewards[running]
            lengths[episode[running]] += 1
            ended = running & (terminated | truncated)
            episode[ended] += count
            bar.set_postfix_str(f"{(episode // count).sum()} of {episodes} episodes", refresh=False)
            bar.update(int(running.sum()))
    envs.close()
    return Evaluation(seeds, returns, lengths, normalized_score(task, returns))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` only when it is written to its end, so that a killed run leaves the old one.

    Ctrl-C waits for the end, since torch.save would answer it with an error of its own.
    """
    temporary, interrupts = path.with_name(f"{path.name}.part"), []
    handler = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        signal.raise_signal(signal.SIGINT)


def capture_video(task: Task, policy: Policy, seed: int, device: torch.device, path: Path, episodes: int = 3) -> None:
    """Write `episodes` episodes of the policy to `path`, a gif; with `episodes=0` only check that it can be done."""
    import imageio.v3 as imageio

    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        env = make_env(task, render_mode="rgb_array")
        env.reset(seed=0)
        env.render()
    except Exception as error:  # OpenGL libraries fail in as many ways as there are of them
        fail(
            f"--capture-video cannot render here ({type(error).__name__}); without a display install EGL "
            "(Debian, Ubuntu: apt-get install libegl1) or OSMesa (apt-get install libosmesa6, then MUJOCO_GL=osmesa)"
        )
    generator, frames = torch.Generator(device).manual_seed(seed), []
    for episode in range(episodes):
        observation, _ = env.reset(seed=10_000 * seed + episode)
        ended = False
        while not ended:
            frames.append(env.render()[::2, ::2])
            observation, _, terminated, truncated, _ = env.step(
                act(policy, env.action_space, observation[None], generator)[0]
            )
            ended = terminated or truncated
        frames += [env.render()[::2, ::2]] * 10
    env.close()
    del env
    gc.collect()  # robosuite's renderer complains when it is freed only at the program's end
    if frames:
        with replacing(path) as file:
            file.write(imageio.imwrite("<bytes>", np.stack(frames), extension=".gif", duration=50, loop=0))


def parse_args(args_class: type, positive: tuple[str, ...] = ()) -> tuple[Any, Task]:
    """The command line and its task; with `--resume RUN` the flags that are not given take that run's values.

    Args:
        positive: names of the algorithm's own arguments that must be above 0.
    """
    args = tyro.cli(args_class)
    if args.resume:
        try:
            saved = args_class(**json.loads((Path(args.resume) / "args.json").read_text())["args"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            fail(f"--resume {args.resume}: not the folder of a run of {sys.argv[0]} ({error})")
        args = tyro.cli(args_class, default=saved)
        if getattr(args, "vqvae_path", None) != getattr(saved, "vqvae_path", None):
            fail("--resume goes on with the run's own VQ-VAE; leave --vqvae-path out")
    counts = ("total_steps", "batch_size", "codebook_size", "hidden_dim", "eval_every", "eval_episodes")
    for name in (*positive, *counts, "final_eval_episodes", "checkpoint_every"):
        if (value := getattr(args, name, None)) is not None and value <= 0:
            fail(f"--{name.replace('_', '-')} must be above 0, it is {value}")
    if args.track and importlib.util.find_spec("wandb") is None:
        fail("--track needs Weights & Biases: pip install wandb")
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: this PyTorch sees no GPU; use --device cpu")
    if args.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        fail("--compile needs a C++ compiler (Debian, Ubuntu: apt-get install g++)")
    task = find_task(args)
    if args.capture_video:
        capture_video(task, None, args.seed, torch.device("cpu"), Path(), episodes=0)
    return args, task


def make_standardize(args, dataset: Dataset) -> Standardize:
    """What every network does to observations first; nothing with `--no-standardize`."""
    observations = dataset.observations[: len(dataset.actions)]
    mean, std = observations.mean(0), observations.std(0, unbiased=False) + 1e-3
    return Standardize(mean, std) if args.standardize else Standardize(torch.zeros_like(mean), torch.ones_like(std))


def make_vqvae(args, dataset: Dataset, device: torch.device) -> VQVAE:
    """A new VQ-VAE for the dataset, or the one in `args.vqvae_path`, which must have seen the same observations."""
    standardize = make_standardize(args, dataset)
    vqvae = VQVAE(
        observation_dim=dataset.observations.shape[1],
        action_dim=dataset.actions.shape[1],
        codebook_size=args.codebook_size,
        hidden_dim=args.hidden_dim,
        observation_mean=standardize.mean,
        observation_std=standardize.std,
    ).to(device)
    if args.vqvae_path and not args.resume:  # a resumed run's is in its checkpoint
        try:
            trained = VQVAE.load(args.vqvae_path, device)
        except (OSError, ValueError) as error:
            fail(f"--vqvae-path {args.vqvae_path}: {error}")
        for name, wanted in vqvae.config.items():
            if trained.config[name] != wanted:
                fail(f"--vqvae-path {args.vqvae_path} has {name} {trained.config[name]}, this run needs {wanted}")
        for known, own in zip(trained.standardize.buffers(), vqvae.standardize.buffers(), strict=True):
            if not torch.allclose(known, own, rtol=1e-3, atol=1e-3):
                fail(f"--vqvae-path {args.vqvae_path} is of another dataset, or differs in --standardize")
        return trained
    return vqvae


def mlp(standardize: Standardize, outputs: int, hidden_dim: int, layer_norm: bool = False) -> nn.Sequential:
    """Two hidden layers from observations (B, observation_dim), standardized, to (B, outputs)."""
    layers = [Standardize(standardize.mean, standardize.std)]
    for inputs in (len(standardize.mean), hidden_dim):
        norm = [nn.LayerNorm(hidden_dim)] if layer_norm else []
        layers += [nn.Linear(inputs, hidden_dim), *norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden_dim, outputs))


class Run:
    """The run's folder (arguments, curves, checkpoints, evaluations) and the loop over a phase's gradient steps.

    Args:
        args, task: the command line and what it stands for.
        parts: everything that training changes, by name: modules, optimizers, the generator that draws batches.
            With `args.resume` they are loaded from that folder's last checkpoint.
    """

    def __init__(self, args, task: Task, parts: dict[str, nn.Module | torch.optim.Optimizer | torch.Generator]):
        self.args, self.task, self.parts = args, task, parts
        self.steps_done: dict[str, int] = {}
        self.evaluations: list[dict[str, list]] = []
        self.metrics: dict[str, torch.Tensor] = {}
        self.started = time.time()
        # not this file's name: the baselines import this class, and benchmark/quantizers.py adds words to the script's
        self.algorithm = Path(sys.argv[0]).name.replace(".py", "").replace(" ", "_")
        if args.resume:
            self.folder = Path(args.resume)
            self.load_checkpoint()
        else:
            name = f"{args.env_id.replace('/', '_')}__{self.algorithm}__{args.seed}__{time.time_ns() // 1_000_000}"
            self.folder = Path(args.runs_dir) / name
            self.folder.mkdir(parents=True)
            self.save_checkpoint()
        versions = {}
        for name in ("torch", "gymnasium", "gymnasium-robotics", "minari", "robosuite", "mujoco", "numpy"):
            with contextlib.suppress(PackageNotFoundError):
                versions[name] = version(name)
        git = [shutil.which("git") or "true", "-C", Path(__file__).parent, "rev-parse", "HEAD"]
        description = {
            "args": asdict(args) | {"resume": None},
            "versions": versions,
            "git_commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        }
        with replacing(self.folder / "args.json") as file:
            file.write(json.dumps(description, indent=2).encode())
        if args.track:
            import wandb

            wandb.init(
                project="saq", name=self.folder.name, dir=self.folder, config=asdict(args), sync_tensorboard=True
            )
        self.writer = SummaryWriter(self.folder)
        print(f"writing to {self.folder}")
        again = f"interrupted; to continue: python {sys.argv[0]} --resume {self.folder}"
        here = os.getpid()  # evaluation's processes inherit the handler
        signal.signal(signal.SIGINT, lambda *_: sys.exit(again) if os.getpid() == here else None)

    def save_checkpoint(self) -> None:
        states = {k: p.get_state() if isinstance(p, torch.Generator) else p.state_dict() for k, p in self.parts.items()}
        checkpoint = {
            "parts": states,
            "steps_done": self.steps_done,
            "evaluations": self.evaluations,
            "seconds": time.time() - self.started,
        }
        with replacing(self.folder / "checkpoint.pt") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self) -> None:
        path = self.folder / "checkpoint.pt"
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            fail(f"--resume: {path} is not a readable checkpoint ({str(error).splitlines()[0]})")
        try:
            for name, part in self.parts.items():
                state = checkpoint["parts"][name]
                if isinstance(part, torch.Generator):
                    if len(state) == len(part.get_state()):  # else another device's; the seed's draws begin anew
                        part.set_state(state)
                elif isinstance(part, torch.optim.Optimizer):  # with the rates of this command, which may be others
                    part.load_state_dict({"state": state["state"], "param_groups": part.state_dict()["param_groups"]})
                else:
                    part.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            fail(f"--resume: {path} is of another architecture ({str(error).splitlines()[0]})")
        self.steps_done, self.evaluations = checkpoint["steps_done"], checkpoint["evaluations"]
        self.started -= checkpoint["seconds"]

    def steps(self, phase: str, total: int, tag: str) -> Iterator[int]:
        """Yield the step numbers up to `total` that are still to do; after each, log and checkpoint when it is due.

        The loop's body leaves the step's scalars in `self.metrics`. They are copied from the device only every
        LOG_EVERY steps, and logged under their names with `tag` before.
        """
        first = self.steps_done.get(phase, 0) + 1
        bar = tqdm(range(first, total + 1), phase, total, initial=first - 1, unit="step", disable=None, leave=False)
        last_step, last_time = first - 1, time.time()
        for step in bar:
            yield step
            self.steps_done[phase] = step
            if step % LOG_EVERY == 0 or step == total:
                values = {name: torch.as_tensor(value).item() for name, value in self.metrics.items()}
                for name, value in values.items():
                    self.writer.add_scalar(f"{tag}{name}", value, step)
                steps_per_second = (step - last_step) / (time.time() - last_time)
                self.writer.add_scalar(f"charts/SPS{'' if tag == 'losses/' else '_' + phase}", steps_per_second, step)
                last_step, last_time = step, time.time()
                bar.set_postfix(values)
                if bar.disable and (step * 10 // total > (step - LOG_EVERY) * 10 // total or step == total):
                    print(f"{phase} {step}/{total}", *(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
            if step % self.args.checkpoint_every == 0 or step == total:
                self.writer.flush()
                self.save_checkpoint()

    def evaluate(self, policy: Policy, episodes: int, step: int, device: torch.device) -> Evaluation:
        """Evaluate, log as `eval/...`, and rewrite eval.npz with the episodes of every evaluation so far."""
        result = evaluate(self.task, policy, episodes, self.args.seed, device)
        self.evaluations.append({"step": [step] * episodes, **{k: v.tolist() for k, v in result._asdict().items()}})
        keys = self.evaluations[0]
        with replacing(self.folder / "eval.npz") as file:
            np.savez(file, **{key: np.concatenate([e[key] for e in self.evaluations]) for key in keys})
        self.writer.add_scalar("eval/normalized_score", result.scores.mean(), step)
        self.writer.add_scalar("eval/episodic_return", result.returns.mean(), step)
        self.writer.add_scalar("eval/episodic_length", result.lengths.mean(), step)
        return result

    def finish(self, name: str, policy: Policy, dataset: Dataset, modules: dict[str, nn.Module], **facts) -> None:
        """Evaluate the last policy, write model.pt, result.json and video.gif, and print the scores beside the data's.

        Args:
            name: the algorithm's, for the printed table.
            policy: takes `acting` too; the ways of acting that `args.acting` did not ask for are also evaluated.
            modules: what model.pt holds beside the arguments.
            facts: more entries of result.json.
        """
        args, device, training_seconds = self.args, dataset.actions.device, time.time() - self.started
        episodes = args.final_eval_episodes or (50 if self.task.env_args else 100)
        final = self.evaluate(policy, episodes, args.total_steps, device)
        evaluations = {args.acting: final}
        for way in get_args(type(args).__annotations__["acting"]):
            if way != args.acting:
                evaluations[way] = evaluate(self.task, partial(policy, acting=way), episodes, args.seed, device)
        if args.capture_video:
            capture_video(self.task, policy, args.seed, device, self.folder / "video.gif")
        with replacing(self.folder / "model.pt") as file:
            torch.save({"args": asdict(args), **{name: m.state_dict() for name, m in modules.items()}}, file)
        data_scores = normalized_score(self.task, dataset.episode_returns)
        result = {
            "env_id": args.env_id,
            "algorithm": self.algorithm,
            "seed": args.seed,
            "normalized_score": final.scores.mean(),
            "normalized_scores": final.scores.tolist(),
            "dataset_normalized_return": data_scores.mean(),
            "total_steps": args.total_steps,
            "wall_clock_seconds": time.time() - self.started,
            "training_seconds": training_seconds,
            "scores": {way: evaluation.scores.tolist() for way, evaluation in evaluations.items()},
            **facts,
        }
        with replacing(self.folder / "result.json") as file:
            file.write(json.dumps(result, indent=2).encode())
        self.writer.close()
        print(f"\n{'score, mean and standard error':<40}{'episodes':>10}")
        scores = {"dataset": data_scores} | {f"{name}, {way}": e.scores for way, e in evaluations.items()}
        for name, values in scores.items():
            error = values.std() / max(len(values) - 1, 1) ** 0.5
            print(f"{name:<25}{values.mean():7.1f} +- {error:4.1f}{len(values):>10}")
        print(f"\n{result['wall_clock_seconds']:.0f} seconds; all of it in {self.folder}")


def learn_codes(
    args,
    run: Run,
    dataset: Dataset,
    vqvae: VQVAE,
    learner: VQVAE,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Train the VQ-VAE, unless `args.vqvae_path` gave a trained one, and look up the code of every row, once.

    Returns:
        codes (M,) int64, and how well they stand for the actions, as `VQVAE.evaluate` says it.
    """
    observations, actions = dataset.observations[: len(dataset.actions)], dataset.actions
    sample = slice(None, None, max(1, len(actions) // 4096))

    def log(step: int, metrics: dict[str, torch.Tensor]) -> None:
        if step % LOG_EVERY == 0 or step == args.vqvae_steps:
            metrics = metrics | vqvae.evaluate(observations[sample], actions[sample])
        run.metrics = metrics

    if not args.vqvae_path:
        train_vqvae(
            vqvae,
            observations,
            actions,
            run.steps("vqvae", args.vqvae_steps, "vqvae/"),
            batch_size=args.batch_size,
            learner=learner,
            optimizer=optimizer,
            generator=generator,
            restart_every=args.restart_every,
            ema_decay=args.ema_decay,
            compile=args.compile,
            on_step=log,
        )
    vqvae.save(run.folder / "vqvae.pt")
    quality = vqvae.evaluate(observations, actions)
    print(", ".join(f"{name} {value:.4g}" for name, value in quality.items()))
    return vqvae.encode(observations, actions), quality


# ---- end of the shared section --------------------------------------------------------------------------------------


def behavior_loss(behavior: nn.Module, observations: torch.Tensor, codes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cross-entropy of the behavior policy pi_b(k|s) on the dataset's codes.

    Args:
        behavior: maps observations to logits (B, K).
        observations: (B, observation_dim) float32.
        codes: (B,) int64.
    """
    return {"loss": F.cross_entropy(behavior(observations), codes)}


def expectile_loss(u: torch.Tensor, expectile: float) -> torch.Tensor:
    """mean |expectile - 1(u < 0)| u^2 of differences u (B,) (IQL, equation 5): a scalar."""
    return (torch.where(u < 0, 1.0 - expectile, expectile) * u.square()).mean()


def iql_loss(
    q: nn.Module,
    q_target: nn.Module,
    v: nn.Module,
    observations: torch.Tensor,
    codes: torch.Tensor,
    rewards: torch.Tensor,
    next_observations: torch.Tensor,
    discounts: torch.Tensor,
    expectile: float,
) -> dict[str, torch.Tensor]:
    """IQL's two losses (Kostrikov et al., 2022, equations 5 and 6), which share no parameter, as one sum.

    Args:
        q, q_target: map observations to values (B, K) of the codes.
        v: maps observations to values (B, 1) of the states.
        observations, next_observations: (B, observation_dim) float32.
        codes: (B,) int64, the codes of the actions taken.
        rewards, discounts: (B,) float32, of the n steps from `observations` to `next_observations` (`n_step_returns`).

    Returns:
        Scalars: `loss` to minimize, its parts `v_loss` and `q_loss`, and the means `v_values` and `q_values`.
    """
    with torch.no_grad():
        targets = rewards + discounts * v(next_observations).squeeze(1)
        target_taken = q_target(observations).gather(1, codes[:, None]).squeeze(1)
    values = v(observations).squeeze(1)
    taken = q(observations).gather(1, codes[:, None]).squeeze(1)
    v_loss = expectile_loss(target_taken - values, expectile)
    q_loss = F.mse_loss(taken, targets)
    return {
        "loss": v_loss + q_loss,
        "v_loss": v_loss.detach(),
        "q_loss": q_loss.detach(),
        "v_values": values.detach().mean(),
        "q_values": taken.detach().mean(),
    }


def policy_logits(
    values: torch.Tensor, behavior_logits: torch.Tensor, temperature: float, behavior_floor: float | None
) -> torch.Tensor:
    """Logits (B, K) of IQL's policy from Q-values and logits of pi_b, both (B, K).

    The maximizer of E_pi[Q] - temperature KL(pi || pi_b) (IQL, equation 7, without a network to fit it). A floor of
    log pi_b lets codes that the data never take have a say.
    """
    log_behavior = behavior_logits.log_softmax(1)
    if behavior_floor is not None:
        log_behavior = log_behavior.clamp(min=behavior_floor)
    return values / temperature + log_behavior


def time_scale(args, dataset: Dataset) -> tuple[float, int]:
    """Discount factor and n of the n-step returns: as given, else by the data's mean episode, of h steps.

    The discount 1 - 1/h sees an episode's end from its beginning; n = h / 50 takes a reward there in some 50 backups.
    """
    h = len(dataset.actions) / len(dataset.episode_returns)
    gamma = 1.0 - 1.0 / h if args.gamma is None else args.gamma
    return gamma, args.n_step or max(1, round(h / 50))


def n_step_returns(
    dataset: Dataset, rewards: torch.Tensor, gamma: float, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The parts of y = R + discount V(s_next) of every transition: n rewards, or those to the end of what is known.

    Args:
        rewards: (M,) float32, of the dataset's rows.

    Returns:
        R (N,) float32, the discounted sum of m <= n rewards; the rows (N,) int64 of the observations s_next that follow
        them; the discounts (N,) float32, gamma^m, or 0 where the episode is over (terminal).
    """
    reward = rewards[dataset.transitions]
    follow_rows, discount = dataset.next_rows, gamma * (1.0 - dataset.terminals[dataset.transitions])
    transition_of = torch.full((len(dataset.observations),), -1, device=rewards.device)
    transition_of[dataset.transitions] = torch.arange(len(reward), device=rewards.device)
    returns, next_rows, discounts = reward, follow_rows, discount
    for _ in range(n - 1):
        following = transition_of[next_rows]
        known = following >= 0  # else a time-out, or the last observation of the file
        returns = torch.where(known, returns + discounts * reward[following], returns)
        next_rows = torch.where(known, follow_rows[following], next_rows)
        discounts = torch.where(known, discounts * discount[following], discounts)
    return returns, next_rows, discounts


def largest_return(dataset: Dataset, gamma: float) -> float:
    """The largest absolute discounted return from any row of the dataset to the end of its episode."""
    continues = torch.zeros_like(dataset.rewards)
    inside = dataset.next_rows == dataset.transitions + 1  # the next observation is the next row's
    continues[dataset.transitions] = (1.0 - dataset.terminals[dataset.transitions]) * inside
    value = largest = 0.0
    for reward, c in zip(reversed(dataset.rewards.tolist()), reversed(continues.tolist()), strict=True):
        value = reward + gamma * c * value
        largest = max(largest, abs(value))
    return largest


def domain_scale(env_id: str, episode_returns: np.ndarray) -> float:
    """The paper's factor of rewards: locomotion 1000 / (largest - smallest episode return), antmaze 100, others 1."""
    if not any(name in env_id for name in ("halfcheetah", "hopper", "walker2d")):
        return 100.0 if "antmaze" in env_id else 1.0
    return 1000.0 / ((episode_returns.max() - episode_returns.min()) or 1.0)


if __name__ == "__main__":
    args, task = parse_args(Args, positive=("temperature", "n_step"))
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    generator = torch.Generator(device).manual_seed(args.seed)
    dataset = load_dataset(task, make_env(task), device)

    vqvae = make_vqvae(args, dataset, device)
    vqvae_learner = copy.deepcopy(vqvae)
    behavior = mlp(vqvae.standardize, args.codebook_size, args.hidden_dim, args.layer_norm).to(device)
    behavior_acting = copy.deepcopy(behavior)
    q = mlp(vqvae.standardize, args.codebook_size, args.hidden_dim, args.layer_norm).to(device)
    v = mlp(vqvae.standardize, 1, args.hidden_dim, args.layer_norm).to(device)
    q_target, q_acting = copy.deepcopy(q), copy.deepcopy(q)
    vqvae_optimizer = torch.optim.Adam(vqvae_learner.parameters(), lr=args.learning_rate, fused=True)
    adamw = partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    behavior_optimizer = adamw(behavior.parameters())
    optimizer = adamw([{"params": q.parameters()}, {"params": v.parameters(), "weight_decay": 0.0}])
    parts = {
        "vqvae": vqvae,
        "vqvae_learner": vqvae_learner,
        "behavior": behavior,
        "behavior_acting": behavior_acting,
        "q": q,
        "q_target": q_target,
        "q_acting": q_acting,
        "v": v,
        "generator": generator,
    }
    optimizers = {"vqvae_adam": vqvae_optimizer, "behavior_adam": behavior_optimizer, "qv_adam": optimizer}
    run = Run(args, task, parts | optimizers)
    if args.compile:
        behavior_loss, iql_loss = torch.compile(behavior_loss), torch.compile(iql_loss)

    def policy(observations: torch.Tensor, generator: torch.Generator, acting: str = args.acting) -> torch.Tensor:
        values, behavior_logits = q_acting(observations), behavior_acting(observations)
        logits = policy_logits(values, behavior_logits, args.temperature, args.behavior_floor)
        return decode_policy(vqvae, observations, logits, acting, generator)

    # The codebook, and the code of every row, once.
    codes, vqvae_quality = learn_codes(args, run, dataset, vqvae, vqvae_learner, vqvae_optimizer, generator)

    # The behavior policy over codes.
    @cuda_graph(behavior_optimizer, generator)
    def behavior_step() -> dict[str, torch.Tensor]:
        rows = torch.randint(len(codes), (args.batch_size,), generator=generator, device=device)
        metrics = behavior_loss(behavior, dataset.observations[rows], codes[rows])
        behavior_optimizer.zero_grad()
        metrics["loss"].backward()
        behavior_optimizer.step()
        return metrics

    for step in run.steps("bc", args.bc_steps, "losses/bc_"):
        run.metrics = behavior_step()
        follow(behavior_acting, behavior, ema_weight(args.ema_decay, step))

    # Implicit Q-learning on the codes.
    gamma, n_step = time_scale(args, dataset)
    if args.value_scale:
        scale = args.value_scale / (largest_return(dataset, gamma) or 1.0)
    else:
        scale = domain_scale(args.env_id, dataset.episode_returns)
    returns, next_rows, discounts = n_step_returns(dataset, scale * dataset.rewards, gamma, n_step)

    @cuda_graph(optimizer, generator)
    def q_step() -> dict[str, torch.Tensor]:
        picks = torch.randint(len(dataset.transitions), (args.batch_size,), generator=generator, device=device)
        rows = dataset.transitions[picks]
        metrics = iql_loss(
            q,
            q_target,
            v,
            dataset.observations[rows],
            codes[rows],
            returns[picks],
            dataset.observations[next_rows[picks]],
            discounts[picks],
            args.expectile,
        )
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
        return metrics

    for step in run.steps("rl", args.total_steps, "losses/"):
        run.metrics = q_step()
        follow(q_target, q, args.tau)
        follow(q_acting, q, ema_weight(args.ema_decay, step))
        if step % args.eval_every == 0 and step < args.total_steps:
            run.evaluate(policy, args.eval_episodes, step, device)

    run.finish(
        "SAQ-IQL",
        policy,
        dataset,
        {"q": q_acting, "v": v, "behavior": behavior_acting},
        vqvae=vqvae_quality,
        reward_scale=scale,
        gamma=gamma,
        n_step=n_step,
    )
