"""The base class of all datasets: transitions, environment, scores, evaluation; checks of files."""

import contextlib
import gc
import io
import logging
import multiprocessing
import os
import sys
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import gymnasium as gym
import h5py
import numpy as np
from tqdm import tqdm

MUJOCO_GL = os.environ.get("MUJOCO_GL")  # as the user has it; robosuite sets it
Policy = Callable[[np.ndarray], np.ndarray]  # observations (B, o) float32 -> actions (B, a)


def fail(message: str) -> NoReturn:
    """Print one line on stderr and exit with code 2, for errors in the user's input."""
    print("error:", *message.split(), file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence messages and warnings of environment packages while they are imported and started."""
    gym.logger.min_level = gym.logger.ERROR  # D4RL's v2 tasks are gymnasium's v4: no hint to upgrade to v5
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class Task(ABC):
    """A dataset with the environment and the scores that belong to it. Sources implement `read` and `make_env`.

    Attributes:
        env_id: the task's id.
        path: the dataset's file; None where the source keeps it elsewhere (Minari).
        max_episode_steps: step limit of the environment; can be changed before `env` or `evaluate` is called.
        min_return, max_return: the returns that score 0 and 100.
        eval_episodes: default number of episodes of an evaluation.
        processes: whether to evaluate in processes, for environments whose steps cost more than passing arrays around.
        dataset_returns, dataset_scores: (E,) float64, one entry per trajectory of the file; set by `dataset`.
        facts: what a run stores beside its weights, set by `dataset`: env_id; action_low and action_high, the bounds
            for which -1 and 1 stand; dataset, a checksum of each column.
        held_out: observations (M, o) and actions (M, a) that `dataset` kept out of training; empty by default.
    """

    env_id: str
    path: Path | None = None
    max_episode_steps: int
    min_return: float
    max_return: float
    eval_episodes: int = 100
    processes: bool = False
    dataset_returns: np.ndarray
    dataset_scores: np.ndarray
    facts: dict[str, object]
    held_out: tuple[np.ndarray, ...] = ()

    @abstractmethod
    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The columns of `dataset`, actions in the environment's units, and the trajectories' returns (E,).

        Returns sum all rewards of a trajectory, including rows that are no transitions, as the benchmark does.
        """

    @abstractmethod
    def make_env(self, render_mode: str | None = None) -> gym.Env:
        """The benchmark's environment, with vector observations and actions in its own units."""

    def dataset(self) -> dict[str, np.ndarray]:
        """Read the dataset and check lengths, types, finite values, and dimensions against the environment's.

        Returns:
            Arrays over N transitions, in the order of their trajectories: unless ends[i], row i + 1 is the step after.
            observations, next_observations (N, o) and actions (N, a) float32, actions scaled to [-1, 1] by the
            environment's bounds and clipped to 0.999; rewards (N,) float32; terminals (N,) float32, 1 where no future
            reward counts; ends (N,) bool, the last transition of its trajectory, whatever ended it.

        Raises:
            SystemExit: with one line on stderr and code 2, if a check fails.
        """
        where = self.path or self.env_id
        observation_space, action_space = self.spaces()
        columns, returns = self.read()
        data = check_rows(str(where), columns)
        if not len(data["ends"]):
            fail(f"{where} holds no transition")
        for key, space in (("observations", observation_space), ("actions", action_space)):
            if data[key].shape[1:] != space.shape:
                fail(f"{where}: {key} have shape {data[key].shape[1:]}, those of {self.env_id} {space.shape}")
        low, high, actions = action_space.low.astype(float), action_space.high.astype(float), data["actions"]
        outside = ((actions < action_space.low) | (actions > action_space.high)).any(1).sum()
        scaled = (actions - ((low + high) / 2).astype(np.float32)) / ((high - low) / 2).astype(np.float32)
        if np.abs(scaled).max() > 2:
            fail(f"{where}: actions reach {np.abs(actions).max():.3g}, beyond twice the action space of {self.env_id}")
        if outside:
            print(f"{outside} of {len(actions)} actions lie outside the action space and are clipped")
        data["actions"] = np.clip(scaled, -0.999, 0.999, out=scaled)
        data["terminals"] = data["terminals"].astype(np.float32)
        data["ends"][-1] = True
        self.dataset_returns, self.dataset_scores = returns, self.score(returns)
        self.facts = {"env_id": self.env_id, "action_low": low.tolist(), "action_high": high.tolist()}
        self.facts["dataset"] = {key: zlib.crc32(column) for key, column in data.items()}
        return data

    def spaces(self) -> tuple[gym.spaces.Box, gym.spaces.Box]:
        """The spaces of observations, and of actions in their own units."""
        env = self.env()
        env.close()
        return env.observation_space, env.env.action_space

    def env(self, render_mode: str | None = None) -> gym.Env:
        """The environment, with its actions rescaled to [-1, 1].

        Raises:
            SystemExit: with one line on stderr and code 2, if the environment cannot be made, or its actions are no
                bounded vectors. With a render mode, an error of the environment is raised as it is.
        """
        try:
            env = self.make_env(render_mode)
        except Exception as error:  # packages and graphics libraries raise errors of many kinds
            if render_mode:
                raise
            graphics = f" with MUJOCO_GL={MUJOCO_GL}" if MUJOCO_GL else ""
            fail(f"cannot make the environment of {self.env_id}{graphics}: {error!r}")
        space = env.action_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
            fail(f"{self.env_id} has actions in {space}; it takes vectors of continuous ones (Box)")
        if not (np.isfinite(space.high - space.low) & (space.low < space.high)).all():
            fail(f"{self.env_id} has actions in {space}; it takes bounds to scale them by")
        return gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))

    def score(self, returns: np.ndarray) -> np.ndarray:
        """0 for a random policy's return, 100 for an expert's (D4RL, Minari); success in percent (demo, robomimic)."""
        return 100.0 * (returns - self.min_return) / (self.max_return - self.min_return)

    def describe(self, data: dict[str, np.ndarray]) -> str:
        """One line of statistics, from the columns that `dataset` returned."""
        return (
            f"{self.path or self.env_id}: {len(data['ends'])} transitions, {int(data['terminals'].sum())} terminal, "
            f"{data['ends'].sum()} trajectories, mean return {self.dataset_returns.mean():.2f} "
            f"(score {self.dataset_scores.mean():.1f})"
        )

    def evaluate(
        self, policy: Policy, episodes: int | None = None, seed: int = 1, video: Path | None = None
    ) -> dict[str, np.ndarray]:
        """Run episodes in ten environments side by side, each episode from its own seed (see `episode_seeds`).

        Environment j runs episodes j, j + 10, ..., whatever the number of cores.

        Args:
            policy: actions (B, a), clipped to [-1, 1] here, for observations (B, o) float32.
            episodes: how many; default `eval_episodes`.
            seed: any integer.
            video: a gif to which the first three episodes are written.

        Returns:
            One entry per episode: seeds int64, undiscounted returns float64, lengths int64 in steps, scores float64.
        """
        episodes = episodes or self.eval_episodes
        seeds = episode_seeds(seed, episodes)
        returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
        count = min(episodes, 10)
        vector = gym.vector.AsyncVectorEnv if self.processes else gym.vector.SyncVectorEnv
        gc.freeze()  # or each process copies the whole heap when robosuite collects garbage, at every reset
        envs = vector([lambda slot=slot: Episodes(self.env(), seeds[slot::count]) for slot in range(count)])
        gc.unfreeze()
        observations, _ = envs.reset()
        episode, ended = np.arange(count), np.zeros(count, bool)
        with tqdm(desc="evaluation", unit="step", disable=None, leave=False) as bar:
            while (episode < episodes).any():
                observations, rewards, terminated, truncated, _ = envs.step(act(policy, observations))
                running = (episode < episodes) & ~ended  # where an episode ended, this step was spent on a reset
                returns[episode[running]] += rewards[running]
                lengths[episode[running]] += 1
                ended = running & (terminated | truncated)
                episode[ended] += count
                bar.set_postfix_str(f"{(episode // count).sum()} of {episodes} episodes", refresh=False)
                bar.update(int(running.sum()))
        envs.close()
        if video:
            self.capture_video(policy, video, seed)
        return {"seeds": seeds, "returns": returns, "lengths": lengths, "scores": self.score(returns)}

    def print_scores(self, scores: dict[str, list[float]]) -> None:
        """Print mean and standard error, one line for the dataset's trajectories and one per entry of `scores`."""
        print(f"\n{'score, mean and standard error':<40}{'episodes':>10}")
        for name, values in {"dataset": self.dataset_scores, **scores}.items():
            error = np.std(values) / max(len(values) - 1, 1) ** 0.5
            print(f"{name:<25}{np.mean(values):7.1f} +- {error:4.1f}{len(values):>10}")

    def check_video(self) -> None:
        """Fail with one line if this machine cannot render the environment.

        The check runs in its own process, because loading Triton after Mesa's OpenGL crashes. PyTorch on a GPU loads
        Triton when it creates an optimizer. The other order works.
        """
        process = multiprocessing.Process(target=self._rendering_env)
        process.start()
        process.join()
        if process.exitcode == 2:  # it has said why
            raise SystemExit(2)
        if process.exitcode:
            fail(f"--capture-video cannot render here: exit code {process.exitcode}")

    def capture_video(self, policy: Policy, path: Path, seed: int = 1, episodes: int = 3) -> None:
        """Write the first `episodes` episodes of `evaluate(policy, seed=seed)` to `path`, a gif."""
        import imageio.v3 as imageio

        env, frames = self._rendering_env(), []
        for episode_seed in episode_seeds(seed, episodes).tolist():
            observation, _ = env.reset(seed=episode_seed)
            ended = False
            while not ended:
                frames.append(shrunk(env.render()))
                observation, _, terminated, truncated, _ = env.step(act(policy, observation[None])[0])
                ended = terminated or truncated
            frames += [shrunk(env.render())] * 10
        env.close()
        del env
        gc.collect()
        temporary = path.with_name(f"{path.name}.part")
        temporary.write_bytes(imageio.imwrite("<bytes>", np.stack(frames), extension=".gif", duration=50, loop=0))
        os.replace(temporary, path)

    def _rendering_env(self) -> gym.Env:
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")
        try:
            env = self.env(render_mode="rgb_array")
            env.reset(seed=0)
            env.render()
        except Exception as error:  # each OpenGL library raises errors of its own
            fail(
                f"--capture-video cannot render here ({type(error).__name__}); without a display install EGL (Debian, "
                "Ubuntu: apt-get install libegl1) or OSMesa (apt-get install libosmesa6, then MUJOCO_GL=osmesa)"
            )
        return env


def shrunk(image: np.ndarray) -> np.ndarray:
    """An image (height, width, 3) with every second pixel if it is more than 300 pixels high."""
    return image[::2, ::2] if len(image) > 300 else image


def episode_seeds(seed: int, episodes: int) -> np.ndarray:
    """Environment seeds (episodes,) int64 of an evaluation: `10000 seed + i`, modulo 2**32.

    Environments accept seeds from 0 to 2**32 - 1, the range of numpy's RandomState.
    """
    return (10_000 * seed % 2**32 + np.arange(episodes)) % 2**32


def act(policy: Policy, observations: np.ndarray) -> np.ndarray:
    """Actions (B, a) float32 for observations (B, o), clipped to [-1, 1]."""
    return np.clip(np.asarray(policy(observations.astype(np.float32)), np.float32), -1.0, 1.0)


class Episodes(gym.Wrapper):
    """An environment that takes the seed of each reset from a list; after the last one, steps have no effect."""

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


class EndAtSuccess(gym.Wrapper):
    """Pay 1 at success and end the episode there; pay 0 before."""

    def step(self, action):
        observation, _, _, truncated, info = self.env.step(action)
        key = next((key for key in ("is_success", "success") if key in info), None)
        success = bool(info[key] if key else self.unwrapped._check_success())  # robosuite does not put it in info
        return observation, float(success), success, truncated, info


def check_rows(where: str, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Check columns and convert them: flags (terminals, timeouts, ends) to bool, all others to float32.

    Args:
        where: the file, or the trajectory in it, for the error.
        rows: observations, next_observations and actions (N, dimensions); rewards and flags (N,) or (N, 1).

    Raises:
        SystemExit: with one line on stderr and code 2, at unequal lengths, other types, a NaN, an infinity, a value
            whose square overflows float32, or a flag other than 0 and 1.
    """
    count, checked = len(rows["observations"]), {}
    for key, values in rows.items():
        if values.dtype.kind not in "biuf":
            fail(f"{where}: {key} holds values of type {values.dtype}, not numbers")
        if key in ("rewards", "terminals", "timeouts", "ends"):
            values = values.reshape(-1)
        elif values.ndim != 2:
            fail(f"{where}: {key} has {values.ndim} dimensions, not 2")
        if len(values) != count:
            fail(f"{where}: {key} has {len(values)} rows, observations {count}")
        if key == "next_observations" and values.shape != rows["observations"].shape:
            fail(f"{where}: {key} have shape {values.shape[1:]}, observations {rows['observations'].shape[1:]}")
        if not (finite := np.isfinite(values)).all():
            fail(f"{where}: {key} has a NaN or an infinity in row {np.argwhere(~finite)[0, 0]}")
        if key in ("terminals", "timeouts", "ends"):
            if not (known := (values == 0) | (values == 1)).all():
                fail(f"{where}: {key} is {values[~known][0]} in row {np.argmin(known)}, neither 0 nor 1")
            checked[key] = values.astype(bool, copy=False)
            continue
        if not (small := np.abs(values) < 1e18).all():
            row = np.argwhere(~small)[0, 0]
            fail(f"{where}: {key} has a value too large for float32 in row {row}; from 1e18 on its squares overflow")
        checked[key] = values.astype(np.float32, copy=False)
    return checked


def read_array(parent: h5py.Group, key: str) -> np.ndarray:
    """The array under a key of an HDF5 group.

    Raises:
        KeyError, TypeError: where it is missing, not an array, or stored only in part. A damaged header could
            otherwise allocate gigabytes.
    """
    if not isinstance(parent[key], h5py.Dataset):
        raise TypeError(f"{key} is not an array")
    check_stored(key, parent[key])
    return parent[key][()]


def check_stored(key: str, array: h5py.Dataset) -> None:
    """Raise TypeError if an HDF5 array is stored only in part, by its shape."""
    if array.shape is None or array.is_virtual or array.external:  # nothing at all, or in other files
        stored = True
    elif array.chunks is None:
        stored = array.id.get_storage_size() >= array.nbytes and array.nbytes <= os.path.getsize(array.file.filename)
    else:
        chunks = np.prod([-(-size // chunk) for size, chunk in zip(array.shape, array.chunks)], dtype=float)
        stored = array.id.get_num_chunks() == chunks
    if not stored:
        raise TypeError(f"{key} has shape {array.shape}, but less of it is stored")


def join(where: str, trajectories: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate trajectories and add `ends`; fail if there is no transition."""
    trajectories = [columns for columns in trajectories if len(columns["rewards"])]
    if not trajectories:
        fail(f"{where} holds no transition")
    rows = {key: np.concatenate([columns[key] for columns in trajectories]) for key in trajectories[0]}
    rows["ends"] = np.zeros(len(rows["rewards"]), bool)
    rows["ends"][np.cumsum([len(columns["rewards"]) for columns in trajectories]) - 1] = True
    return rows


def data_folder(variable: str, *default: str) -> Path:
    """The folder that an environment variable names, else `default` in the home folder."""
    if folder := os.environ.get(variable):
        return Path(folder)
    try:
        return Path.home().joinpath(*default)
    except RuntimeError:
        fail(f"there is no home folder to keep datasets in; set {variable} to a folder")


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, through a temporary file that is renamed once it opens as HDF5."""
    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 20, timeout=60)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pooch.retrieve(url, None, temporary.name, temporary.parent, downloader=fetch)
        h5py.File(temporary, "r").close()
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # ValueError: a proxy sent an invalid length
        fail(f"cannot download {url} ({error}); fetch it by other means and put it at {path}")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
