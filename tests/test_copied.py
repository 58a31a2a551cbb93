"""A copied algorithm file: with vqvae.py beside it and `load_task` replaced, it learns from anyone's arrays."""

import ast
import json
import os
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from conftest import ALGORITHMS, ROOT

OWN = """
def load_task(args):
    import gymnasium as gym

    args.env_id = "Pendulum-v1"

    def evaluate(policy, episodes, seed, video=None):
        env, returns = gym.make("Pendulum-v1", max_episode_steps=20), np.zeros(episodes or 5)
        for i in range(len(returns)):
            observation, ended = env.reset(seed=seed + i)[0], False
            while not ended:
                action = policy(observation[None].astype(float))[0].clip(-1, 1)
                observation, reward, terminated, truncated, _ = env.step(2 * action)
                returns[i], ended = returns[i] + reward, terminated or truncated
        return {"returns": returns, "scores": returns, "lengths": np.full(len(returns), 20)}

    task = {"max_episode_steps": 20, "dataset_scores": [0.0], "evaluate": evaluate, "print_scores": print}
    return dict(np.load("data.npz")), SimpleNamespace(**task)
"""


@pytest.fixture(scope="module")
def arrays():
    """Twenty steps each of fifty episodes of a pendulum at random, as anyone would have them."""
    env, rows, rng = gym.make("Pendulum-v1", max_episode_steps=20), [], np.random.default_rng(0)
    for seed in range(50):
        observation, ended = env.reset(seed=seed)[0], False
        while not ended:
            action = rng.uniform(-1, 1, 1).astype(np.float32)
            following, reward, terminated, ended, _ = env.step(2 * action)
            rows.append((observation, action, np.float32(reward), following, np.float32(terminated), ended))
            observation = following
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "ends")
    return {name: np.stack(column) for name, column in zip(names, zip(*rows), strict=True)}


def copied(algorithm, folder, **columns):
    """The command of an algorithm file copied to `folder`, with `load_task` replaced, vqvae.py and data beside it."""
    source = (ROOT / f"{algorithm}.py").read_text()
    (function,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == "load_task")
    lines = source.splitlines()
    lines[function.lineno - 1 : function.end_lineno] = OWN.strip().splitlines()
    (folder / "mine.py").write_text("\n".join(lines) + "\n")
    shutil.copy(ROOT / "vqvae.py", folder)
    np.savez(folder / "data.npz", **columns)
    return [sys.executable, "mine.py", "--hidden-dim=16", "--codebook-size=8", "--device=cpu"]


def learn(command, folder, *flags):
    """What the run's result.json holds."""
    flags = ["--vqvae-steps=60", "--total-steps=60", "--eval-every=30", *flags]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([*command, *flags], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    (path,) = folder.glob("runs/*/result.json")
    return json.loads(path.read_text())


def bc_steps(algorithm, steps):
    return [f"--bc-steps={steps}"] if algorithm != "saq_bc" else []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_copied_file_learns_from_arrays_and_a_gymnasium_environment(arrays, tmp_path, algorithm):
    result = learn(copied(algorithm, tmp_path, **arrays), tmp_path, *bc_steps(algorithm, 30))
    assert result["algorithm"] == "mine" and len(result["normalized_scores"]) == 5
    assert all(-400 < score < 0 for score in result["normalized_scores"])  # of 20 steps of a pendulum


CASES = [
    ("saq_iql", "episodes"),
    ("saq_iql", "successes"),
    *((f"saq_{name}", "play") for name in ("iql", "cql", "brac")),
]


@pytest.mark.parametrize(("algorithm", "case"), CASES)
def test_gamma_and_n_follow_the_episodes_but_not_those_of_play(arrays, tmp_path, algorithm, case):
    """Trajectories of 100 steps, limit 20. A success that lasts to the end is no play; one that is left again is."""
    columns = arrays | {"ends": np.arange(1000) % 100 == 99, "terminals": np.zeros(1000, np.float32)}
    columns["terminals"][{"episodes": [], "successes": [97, 98, 99], "play": [50, 51]}[case]] = 1
    result = learn(copied(algorithm, tmp_path, **columns), tmp_path, *bc_steps(algorithm, 1))
    h = {"episodes": 20, "successes": 20, "play": 5}[case]
    assert result["gamma"] == pytest.approx(1 - 1 / h) and result["n_step"] == 1


SIZES = [("saq_iql", 1000, 3000), ("saq_iql", 400_000, 50_000), *((name, 41_000, 6000) for name in ALGORITHMS)]


@pytest.mark.parametrize(("algorithm", "transitions", "steps"), SIZES)
def test_steps_follow_the_transitions_where_no_flag_says_otherwise(arrays, tmp_path, algorithm, transitions, steps):
    columns = {name: np.concatenate([column] * (transitions // 1000)) for name, column in arrays.items()}
    command, environment = copied(algorithm, tmp_path, **columns), os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stdout if "writing to" in line)
        process.kill()
    for phase in ("vqvae", "total", *["bc"] * (algorithm != "saq_bc")):
        assert f"{phase}_steps {steps}," in line
