"""What the story of an algorithm file makes of a small dataset: codes, targets, tables of pi_b, averages."""

import runpy
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_script import WITH_BEHAVIOR

import tasks


@pytest.fixture
def story(tmp_path, monkeypatch):
    """What the names of an algorithm file stand for at its end, run in this process on 3 trajectories of 200 steps."""
    rng, rows = np.random.default_rng(0), np.arange(600)
    data = {"observations": rng.normal(size=(600, 3)), "next_observations": rng.normal(size=(600, 3))}
    data |= {"actions": rng.uniform(-0.9, 0.9, (600, 2)), "rewards": rng.normal(size=600), "terminals": rows == 399}
    data = {name: column.astype(np.float32) for name, column in data.items()} | {"ends": rows % 200 == 199}
    seeds, result = [], dict.fromkeys(("scores", "returns", "lengths", "seeds"), np.zeros(1))
    task = {"dataset": lambda: dict(data), "describe": str, "facts": {}, "max_episode_steps": 300}
    task |= {"dataset_scores": [0.0], "print_scores": print}
    task |= {"evaluate": lambda policy, episodes, seed, video: seeds.append(seed) or result}
    monkeypatch.setattr(tasks, "make", lambda **_: SimpleNamespace(**task))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = signal.getsignal(signal.SIGINT)

    def run(algorithm, *flags):
        flags = ("--vqvae-steps=3", "--bc-steps=3", "--total-steps=4", "--hidden-dim=16", "--device=cpu", *flags)
        monkeypatch.setattr(sys, "argv", [f"{algorithm}.py", f"--runs-dir={tmp_path}", *flags])
        seeds.clear()
        return SimpleNamespace(**runpy.run_path(str(ROOT / f"{algorithm}.py"), run_name="__main__"), seeds=[*seeds])

    yield run
    signal.signal(signal.SIGINT, before)
    torch.set_flush_denormal(False)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("algorithm", WITH_BEHAVIOR)
def test_q_learns_on_soft_codes_and_scaled_n_step_targets(story, algorithm):
    it = story(algorithm)
    assert (it.gamma, it.n_step) == (pytest.approx(1 - 1 / 200), 4)  # n: h / 50
    rewards, ends, gamma = it.data["rewards"].double().numpy(), it.data["ends"].numpy(), 1 - 1 / 200
    stops = np.array([next(i for i in range(t, 600) if ends[i]) for t in range(600)])
    last = np.minimum(np.arange(600) + 3, stops)

    def total(t, stop):
        return (gamma ** np.arange(stop + 1 - t) * rewards[t : stop + 1]).sum()

    scale = 100 / max(abs(total(t, stop)) for t, stop in enumerate(stops))
    assert it.scale == pytest.approx(scale, rel=1e-4)
    returns = [scale * total(t, stop) for t, stop in enumerate(last)]
    np.testing.assert_allclose(it.transitions["returns"], returns, rtol=1e-3, atol=1e-3)
    discounts = np.where(last == 399, 0, gamma ** (last + 1 - np.arange(600)))
    np.testing.assert_allclose(it.transitions["discounts"], discounts, rtol=1e-5)
    assert torch.equal(it.transitions["next_observations"], it.data["next_observations"][last])
    soft = it.vqvae.soft_codes(it.observations, it.actions)
    assert torch.equal(it.transitions["codes"], soft) and torch.equal(it.codes, soft)
    for name, states in (("log_pi_b", "observations"), ("next_log_pi_b", "next_observations")):
        if name in it.transitions:
            table = it.behavior_acting(it.transitions[states]).log_softmax(1).detach()
            torch.testing.assert_close(it.transitions[name], table)


@pytest.mark.parametrize("algorithm", WITH_BEHAVIOR)
def test_target_and_averages_follow_as_the_flags_say(story, algorithm):
    follows, stays = ("target-period=4", "target-period=5") if algorithm == "saq_cql" else ("tau=1", "tau=0")
    it = story(algorithm, f"--{follows}", "--ema-decay=0")
    pairs = (it.vqvae, it.vqvae_learner), (it.behavior_acting, it.behavior), (it.q_acting, it.q), (it.q_target, it.q)
    assert all(equal(*pair) for pair in pairs)
    it = story(algorithm, f"--{stays}")
    pairs = (it.vqvae, it.vqvae_learner), (it.behavior_acting, it.behavior), (it.q_acting, it.q), (it.q_target, it.q)
    assert not any(equal(*pair) for pair in pairs)


def test_without_its_steps_saq_cqls_behavior_policy_is_uniform(story):
    it = story("saq_cql", "--bc-steps=0")
    torch.testing.assert_close(it.transitions["log_pi_b"], torch.full((600, 64), -np.log(64)))


COMMON = {"seed=2": "vqvae behavior q", "learning-rate=1e-3": "vqvae behavior q", "batch-size=8": "vqvae behavior q"}
COMMON |= {"no-soft-codes": "behavior q", "weight-decay=9": "behavior q", "restart-every=0": "vqvae"}
COMMON |= dict.fromkeys(("gamma=0.5", "n-step=1", "value-scale=1"), "q")
OWN = {"saq_iql": ("expectile=0.9", "tau=1"), "saq_cql": ("alpha=1", "backup=greedy", "target-period=1")}
OWN["saq_brac"] = ("alpha=1", "tau=1")


@pytest.mark.parametrize("algorithm", WITH_BEHAVIOR)
def test_each_flag_reaches_the_networks(story, algorithm):
    usual = story(algorithm)
    for flag, names in (COMMON | dict.fromkeys(OWN[algorithm], "q")).items():
        other = story(algorithm, f"--{flag}")
        same = [name for name in names.split() if equal(usual.run.networks[name], other.run.networks[name])]
        assert not same, f"--{flag} does not reach {same}"
        assert set(other.seeds) == {2 if flag == "seed=2" else 1}  # of evaluations
