"""SAQ-IQL's losses and policy against brute force, its limits, and training on a known MDP."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from known import GAMMA, check_mean_over_codes
from scipy.optimize import brentq

import saq_iql
from saq_iql import iql_loss, policy_logits


def test_iql_loss_is_the_equations():
    q, q_target, v, td_target = torch.randn(32, 6), torch.randn(32, 6), torch.randn(32), torch.randn(32)
    codes = torch.randint(6, (32,))
    v_loss, q_loss = iql_loss(q, v, q_target, td_target, F.one_hot(codes, 6).float(), 0.7)
    v_losses, q_losses = [], []
    for i, code in enumerate(codes.tolist()):
        advantage = q_target[i, code].item() - v[i].item()
        v_losses.append(abs(0.7 - (advantage < 0)) * advantage**2)
        q_losses.append((q[i, code].item() - td_target[i].item()) ** 2)
    assert v_loss.item() == pytest.approx(np.mean(v_losses), rel=1e-4)
    assert q_loss.item() == pytest.approx(np.mean(q_losses), rel=1e-4)


def test_losses_on_probabilities_are_means_over_codes():
    q, q_target, v, td_target = torch.randn(16, 6), torch.randn(16, 6), torch.randn(16), torch.randn(16)

    def loss(rows, p):
        return torch.stack(iql_loss(q[rows], v[rows], q_target[rows], td_target[rows], p, 0.7))

    check_mean_over_codes(loss, 16, 6)


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.9])
def test_v_loss_is_minimal_at_the_expectile(expectile):
    """The minimizer m solves expectile E[(x - m)+] = (1 - expectile) E[(m - x)+], which SciPy solves."""
    x = torch.randn(1000, dtype=torch.float64) ** 3

    def gap(m: float) -> float:
        return (expectile * (x - m).clamp(min=0) - (1 - expectile) * (m - x).clamp(min=0)).mean().item()

    def v_loss(m: float) -> float:
        q_target = x[:, None]
        return iql_loss(q_target, torch.full_like(x, m), q_target, x, torch.ones_like(q_target), expectile)[0].item()

    m = brentq(gap, x.min().item(), x.max().item(), xtol=1e-12)
    assert all(v_loss(m) < v_loss(m + offset) for offset in (-0.1, -1e-3, 1e-3, 0.1))
    if expectile == 0.5:
        assert m == pytest.approx(x.mean().item())


def test_gradients_of_the_losses():
    """V's loss moves V alone, Q's loss moves Q alone, in proportion to p."""
    q, v, p = torch.randn(8, 6, requires_grad=True), torch.randn(8, requires_grad=True), torch.rand(8, 6).softmax(1)
    q_target, td_target = torch.randn(8, 6), torch.randn(8)
    v_loss, q_loss = iql_loss(q, v, q_target, td_target, p, 0.7)
    (v_loss + q_loss).backward()
    torch.testing.assert_close(q.grad, 2 * p * (q - td_target[:, None]).detach() / 8)
    advantage = q_target - v[:, None].detach()
    weight = torch.where(advantage < 0, 0.3, 0.7)
    torch.testing.assert_close(v.grad, (-2 * p * weight * advantage).sum(1) / 8)


@pytest.mark.parametrize(("min_log_pi_b", "last"), [(-1e3, 1e-4), (-8.0, math.exp(-8))])
def test_policy_by_hand_with_and_without_a_lower_bound(min_log_pi_b, last):
    """pi_b = (0.9, 0.0999, 1e-4): with a bound of -8, log 1e-4 = -9.2 counts as -8."""
    behavior_logits = torch.tensor([[0.9, 0.0999, 1e-4]]).log() + 5.0  # a constant does not matter
    q = torch.tensor([[1.0, 2.0, 6.0]])
    weights = [0.9 * math.exp(1 / 2), 0.0999 * math.exp(2 / 2), last * math.exp(6 / 2)]
    policy = policy_logits(q, behavior_logits, 2.0, min_log_pi_b).softmax(1)[0].tolist()
    assert policy == pytest.approx([w / sum(weights) for w in weights], rel=1e-4)


def test_policy_limits():
    q, behavior_logits = torch.randn(8, 6), torch.randn(8, 6)
    high = policy_logits(q, behavior_logits, 1e6, -1e3).softmax(1)
    torch.testing.assert_close(high, behavior_logits.softmax(1), atol=1e-4, rtol=0.0)
    low = policy_logits(q, behavior_logits, 1e-4, -1e3).softmax(1)
    torch.testing.assert_close(low, F.one_hot(q.argmax(1), 6).float(), atol=1e-3, rtol=0.0)


FLAGS = {"gamma": GAMMA, "bc_steps": 500, "rl_steps": 2000}


def test_saq_iql_finds_the_optimum_of_a_known_mdp(corridor, learn_corridor):
    learned = learn_corridor(saq_iql, expectile=0.95, temperature=2.0, action_mode="greedy", **FLAGS)
    assert learned.moves_right.all()
    np.testing.assert_allclose(learned.v.squeeze(1) / learned.scale, corridor.optimal_values, atol=0.15)


def test_expectile_one_half_evaluates_the_data(corridor, learn_corridor):
    """SARSA: V is the value of the uniformly random policy that collected the corridor's data."""
    learned = learn_corridor(saq_iql, expectile=0.5, **FLAGS)
    np.testing.assert_allclose(learned.v.squeeze(1) / learned.scale, corridor.random_values, atol=0.05)
