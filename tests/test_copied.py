"""A copied algorithm file: with `load_task` replaced, it learns from anyone's arrays and environment."""

import gymnasium as gym
import numpy as np
import pytest
import torch
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
