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

    def evaluate(policy, episodes, seed, video=None):
        env, returns = gym.make("Pendulum-v1", max_episode_steps=20), np.zeros(episodes or 5)
        for i in range(len(returns)):
            observation, ended = env.reset(seed=seed + i)[0], False
            while not ended:
                observation, reward, terminated, truncated, _ = env.step(2 * policy(observation[None])[0])
                returns[i], ended = returns[i] + reward, terminated or truncated
        return {"returns": returns, "scores": returns, "lengths": np.full(len(returns), 20)}

    task = {"max_episode_steps": 20, "dataset_scores": [0.0], "evaluate": evaluate, "print_scores": print}
    return dict(np.load("data.npz")), SimpleNamespace(**task)
"""


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
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
    path = tmp_path_factory.mktemp("arrays") / "data.npz"
    np.savez(path, **{name: np.stack(column) for name, column in zip(names, zip(*rows), strict=True)})
    return path


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_copied_file_learns_from_arrays_and_a_gymnasium_environment(arrays, tmp_path, algorithm):
    source = (ROOT / f"{algorithm}.py").read_text()
    (function,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == "load_task")
    lines = source.splitlines()
    lines[function.lineno - 1 : function.end_lineno] = OWN.strip().splitlines()
    (tmp_path / "mine.py").write_text("\n".join(lines) + "\n")
    for path in (ROOT / "vqvae.py", arrays):
        shutil.copy(path, tmp_path)
    flags = ["--vqvae-steps=60", "--total-steps=60", "--hidden-dim=16", "--codebook-size=8", "--eval-every=30"]
    flags += ["--bc-steps=30"] if algorithm in ("saq_iql", "saq_brac") else []
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "mine.py", *flags, "--device=cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    (path,) = tmp_path.glob("runs/*/result.json")
    result = json.loads(path.read_text())
    assert result["algorithm"] == "mine" and len(result["normalized_scores"]) == 5
    assert all(-400 < score < 0 for score in result["normalized_scores"])  # of 20 steps of a pendulum
