"""Episodes of a policy: evaluation in environments side by side, and a video."""

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from tasks.common import TaskError, task_errors

ENVIRONMENTS = 10  # side by side; a constant, so that results do not depend on the number of cores
Policy = Callable[[np.ndarray], np.ndarray]  # observations (B, o) float32 -> actions (B, a)


def episode_seeds(seed: int, episodes: int) -> np.ndarray:
    """Seeds (episodes,) int64 of the episodes of an evaluation: `10000 seed + i`, modulo 2**32.

    Environments accept seeds from 0 to 2**32 - 1, like numpy's RandomState.
    """
    return (10_000 * seed % 2**32 + np.arange(episodes)) % 2**32


def act(policy: Policy, observations: np.ndarray) -> np.ndarray:
    """Actions (B, a) float32 for observations (B, o), clipped to [-1, 1]."""
    actions = policy(observations.astype(np.float32))
    return np.clip(np.asarray(actions, np.float32), -1.0, 1.0)


def run_episodes(
    make_env: Callable[[], gym.Env], policy: Policy, seeds: np.ndarray, in_processes: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Run one episode from each seed. Environment j of ten runs episodes j, j + 10, ...

    Args:
        make_env: makes an environment with actions in [-1, 1].
        policy: actions for the observations of all environments at once.
        seeds: (E,) int64.
        in_processes: whether each environment runs in a process of its own.

    Returns:
        The episodes' undiscounted returns (E,) float64 and lengths (E,) int64.
    """
    episodes = len(seeds)
    count = min(episodes, ENVIRONMENTS)
    makers = [lambda slot=slot: EpisodesFromSeeds(make_env(), seeds[slot::count]) for slot in range(count)]
    if in_processes:
        gc.freeze()  # otherwise garbage collection in the processes, as at robosuite's resets, copies the whole heap
        envs = gym.vector.AsyncVectorEnv(makers)
        gc.unfreeze()
    else:
        envs = gym.vector.SyncVectorEnv(makers)

    returns = np.zeros(episodes)
    lengths = np.zeros(episodes, np.int64)
    episode = np.arange(count)  # the episode that each environment runs
    ended = np.zeros(count, bool)  # whether it ended in the previous step: the environments then use a step to reset
    observations, _ = envs.reset()
    with tqdm(desc="evaluation", unit="step", disable=None, leave=False) as bar:
        while (episode < episodes).any():
            observations, rewards, terminated, truncated, _ = envs.step(act(policy, observations))
            running = (episode < episodes) & ~ended
            returns[episode[running]] += rewards[running]
            lengths[episode[running]] += 1
            ended = running & (terminated | truncated)
            episode[ended] += count
            bar.set_postfix_str(f"{(episode // count).sum()} of {episodes} episodes", refresh=False)
            bar.update(int(running.sum()))
    envs.close()
    return returns, lengths


class EpisodesFromSeeds(gym.Wrapper):
    """An environment whose resets take their seeds from a list. After the last seed, resets and steps do nothing."""

    def __init__(self, env: gym.Env, seeds: np.ndarray):
        super().__init__(env)
        self.seeds = seeds.tolist()
        self.finished = False

    def reset(self, *, seed=None, options=None):
        if self.seeds:
            self.observation, _ = self.env.reset(seed=self.seeds.pop(0))
        else:
            self.finished = True
        return self.observation, {}

    def step(self, action):
        if self.finished:
            return self.observation, 0.0, False, False, {}
        self.observation, reward, terminated, truncated, _ = self.env.step(action)
        return self.observation, reward, terminated, truncated, {}


class EndAtSuccess(gym.Wrapper):
    """The reward is 1 at success, where the episode ends, and 0 before."""

    def step(self, action):
        observation, _, _, truncated, info = self.env.step(action)
        if "is_success" in info:
            success = bool(info["is_success"])
        elif "success" in info:
            success = bool(info["success"])
        else:
            success = bool(self.unwrapped._check_success())  # robosuite does not report it in info
        return observation, float(success), success, truncated, info


def make_rendering_env(make_env: Callable[[str], gym.Env]) -> gym.Env:
    """An environment that has rendered a first image.

    Raises:
        TaskError: if rendering fails.
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    with task_errors(
        "cannot render a video here; without a display install EGL (Debian, Ubuntu: apt-get install libegl1) or OSMesa "
        "(apt-get install libosmesa6, then MUJOCO_GL=osmesa)"
    ):
        env = make_env("rgb_array")
        env.reset(seed=0)
        env.render()
    return env


def check_rendering(make_env: Callable[[str], gym.Env]) -> None:
    """Raise TaskError if this machine cannot render the environment.

    The check runs in a process of its own because loading Triton after Mesa's OpenGL crashes, and PyTorch on a GPU
    loads Triton when it creates an optimizer. The other order works.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=report_rendering_error, args=(make_env, sender))
    process.start()
    process.join()
    if receiver.poll():
        raise TaskError(receiver.recv())
    if process.exitcode:
        raise TaskError(f"cannot render a video here: a trial in another process ended with code {process.exitcode}")


def report_rendering_error(make_env: Callable[[str], gym.Env], sender: Connection) -> None:
    """Send the message of the error that rendering raises, nothing if it works."""
    try:
        make_rendering_env(make_env)
    except TaskError as error:
        sender.send(str(error))


def record_video(make_env: Callable[[str], gym.Env], policy: Policy, seeds: np.ndarray, path: Path) -> None:
    """Write an episode from each seed to a gif at `path`. Raises TaskError if this machine cannot render."""
    import imageio.v3 as imageio

    env = make_rendering_env(make_env)
    frames = []
    for seed in seeds.tolist():
        observation, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            frames.append(small_image(env))
            observation, _, terminated, truncated, _ = env.step(act(policy, observation[None])[0])
            ended = terminated or truncated
        frames += [small_image(env)] * 10
    env.close()
    del env
    gc.collect()  # frees the OpenGL context while its library is still loaded
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(imageio.imwrite("<bytes>", np.stack(frames), extension=".gif", duration=50, loop=0))
    os.replace(temporary, path)


def small_image(env: gym.Env) -> np.ndarray:
    """The rendered image (height, width, 3) uint8; every second pixel if it is more than 300 pixels high."""
    image = env.render()
    return image[::2, ::2] if len(image) > 300 else image
