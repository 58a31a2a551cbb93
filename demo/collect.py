"""Collect the demo dataset: scripted controllers of mixed skill on FetchPickAndPlace-v4, in D4RL's HDF5 layout.

Some operators are careful; most are sloppy: they aim beside the block, move slowly, shake, or close the gripper too
early. An offline RL algorithm can therefore beat both the data and its imitation.

    python demo/collect.py            # writes demo/fetch-pick-and-place-demo-v0.hdf5, the file in the repository
"""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import tyro
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks

OUTPUT = Path(__file__).with_name("fetch-pick-and-place-demo-v0.hdf5")


class Args(NamedTuple):
    output: Path = OUTPUT  # the HDF5 file to write
    episodes: int = 600  # number of episodes
    careful: float = 0.25  # fraction of the episodes with a careful operator
    seed: int = 1_000_000  # of operators and environment; runs with --seed 100 are evaluated on the same starts


class Operator:
    """A scripted pick-and-place controller with the habits of one operator.

    Args:
        rng: source of the habits and of the noise.
        careful: whether the operator aims well, moves fast and does not shake.
    """

    def __init__(self, rng: np.random.Generator, careful: bool):
        self.rng = rng
        self.gain = rng.uniform(8.0, 12.0) if careful else rng.uniform(3.0, 9.0)
        self.noise = 0.05 if careful else rng.uniform(0.1, 0.5)
        deviation = 0.003 if careful else 0.018
        self.aim_error = rng.normal(0.0, deviation, size=3)
        self.closing_steps = 3 if careful else int(rng.integers(1, 5))
        self.clearance = rng.uniform(0.05, 0.09)
        self.phase, self.waited = "reach", 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the action (4,) in [-1, 1] for an observation (28,): gripper position, block position, ..., goal."""
        gripper, block, goal = observation[:3], observation[3:6], observation[25:28]
        grasp = block + self.aim_error
        if self.phase == "reach" and np.linalg.norm((grasp - gripper)[:2]) < 0.02:
            self.phase = "descend"
        elif self.phase == "descend" and np.linalg.norm(grasp - gripper) < 0.015:
            self.phase = "close"
        elif self.phase == "close" and self.waited >= self.closing_steps:
            self.phase = "carry"
        self.waited += self.phase == "close"
        target = {
            "reach": grasp + np.array([0.0, 0.0, self.clearance]),
            "descend": grasp,
            "close": gripper,
            "carry": gripper + goal - block,
        }[self.phase]
        finger = -1.0 if self.phase in ("close", "carry") else 1.0
        action = np.append(self.gain * (target - gripper), finger)
        action += self.noise * self.rng.standard_normal(4)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def main(args: Args) -> None:
    """Roll out the operators and write observations, actions, rewards, terminals and timeouts, one row per step."""
    args.output.parent.mkdir(parents=True, exist_ok=True)
    env = tasks.make().env()
    rng = np.random.default_rng(args.seed)
    rows = {"observations": [], "actions": [], "rewards": [], "terminals": [], "timeouts": []}
    for episode in trange(args.episodes, unit="episode", disable=None):
        operator = Operator(rng, careful=rng.random() < args.careful)
        observation, _ = env.reset(seed=args.seed + episode)
        ended = False
        while not ended:
            action = operator.act(observation)
            next_observation, reward, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
            for key, value in zip(rows, (observation, action, reward, terminated, truncated and not terminated)):
                rows[key].append(value)
            observation = next_observation

    temporary = args.output.with_suffix(".part")
    with h5py.File(temporary, "w") as file:
        for key, values in rows.items():
            dtype = bool if key in ("terminals", "timeouts") else np.float32
            file.create_dataset(key, data=np.asarray(values, dtype), compression="gzip", shuffle=True)
    os.replace(temporary, args.output)
    print(
        f"{args.output}: {len(rows['rewards'])} steps, {args.episodes} episodes, "
        f"success {100 * sum(rows['terminals']) / args.episodes:.1f}%"
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
