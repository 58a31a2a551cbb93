"""A copied algorithm file: with `load_task` replaced, it learns from anyone's arrays and environment."""

import os
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ROOT
from known import stand_in_task

import saq_bc
import saq_brac
import saq_cql
import saq_iql


def episode(policy, seed: int):
    """Twenty steps of a pendulum; yields every transition. Actions are in [-1, 1]."""
    env = gym.make("Pendulum-v1", max_episode_steps=20)
    obs, _ = env.reset(seed=seed)
    is_over = False
    while not is_over:
        action = policy(obs[None])[0].clip(-1, 1)
        next_obs, reward, terminated, truncated, _ = env.step(2 * action)
        is_over = terminated or truncated
        yield {
            "observations": obs,
            "actions": action,
            "rewards": np.float32(reward),
            "next_observations": next_obs,
            "terminals": np.float32(terminated),
            "ends": is_over,
        }
        obs = next_obs


def load_task(args, device):
    """Fifty episodes of random actions, and returns of the same environment as scores."""
    rng = np.random.default_rng(0)

    def act_at_random(observations):
        return rng.uniform(-1, 1, (len(observations), 1)).astype(np.float32)

    rows = [row for seed in range(50) for row in episode(act_at_random, seed)]
    data = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}

    def evaluate(policy, episodes, seed, video):
        seeds = np.arange(seed, seed + episodes)
        returns = np.array([sum(row["rewards"] for row in episode(policy, int(s))) for s in seeds])
        return {"seeds": seeds, "returns": returns, "lengths": np.full(episodes, 20), "scores": returns}

    return stand_in_task(evaluate, env_id="Pendulum-v1", max_episode_steps=20), data


@pytest.mark.parametrize("algorithm", [saq_bc, saq_iql, saq_cql, saq_brac], ids=lambda module: module.__name__)
def test_a_file_learns_from_arrays_and_a_gymnasium_environment(monkeypatch, tmp_path, algorithm):
    monkeypatch.setattr(algorithm, "load_task", load_task)
    flags = {"vqvae_steps": 60, "bc_steps": 60, "eval_every": 30, "final_eval_episodes": 5}
    if algorithm is not saq_bc:
        flags["rl_steps"] = 60
    args = algorithm.Args(hidden_dim=16, codebook_size=8, device="cpu", run_dir=str(tmp_path), **flags)
    result = algorithm.main(args)
    assert result["env_id"] == "Pendulum-v1"
    assert len(result["normalized_scores"]) == 5
    assert all(-400 < score < 0 for score in result["normalized_scores"])  # twenty steps of a pendulum
    assert np.load(tmp_path / "eval.npz")["step"].tolist() == [30] * 10 + [60] * 5


MINE = """
from types import SimpleNamespace

import numpy as np
import torch

import saq_iql


def load_task(args, device):
    def evaluate(policy, episodes, seed, video):
        lengths = np.abs(policy(np.zeros((episodes, 3)))).sum(1)
        return {"seeds": np.arange(episodes), "returns": lengths, "lengths": lengths, "scores": lengths}

    data = {name: torch.rand(500, 3) for name in ("observations", "next_observations", "actions")}
    data |= {name: torch.zeros(500) for name in ("rewards", "terminals")}
    data["ends"] = torch.arange(500) % 50 == 49
    return SimpleNamespace(
        env_id="mine", max_episode_steps=50, eval_episodes=2, dataset_scores=[0.0], action_low=[-1.0] * 3,
        action_high=[1.0] * 3, evaluate=evaluate, print_scores=print,
    ), data


saq_iql.load_task = load_task
saq_iql.main(saq_iql.Args(vqvae_steps=10, bc_steps=10, rl_steps=10, hidden_dim=16, device="cpu"))
"""


def test_a_file_and_vqvae_are_all_that_has_to_be_copied(tmp_path):
    for name in ("saq_iql.py", "vqvae.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "mine.py"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert len(list(tmp_path.glob("runs/mine__saq_iql__1__*/result.json"))) == 1
