"""SAQ-IQL's losses and policy against brute force, its limits, and the method on a known MDP."""

import math

import numpy as np
import pytest
import torch
from known import batch, check_probabilities
from scipy.optimize import brentq

from saq_iql import follow, iql_loss, mlp, policy_logits
from vqvae import VQVAE


def networks(*outputs):
    return [mlp(VQVAE(4, 2, hidden_dim=8).standardize, n, 16, False) for n in outputs]


def v_loss(x: torch.Tensor, m: torch.Tensor | float, expectile: float) -> torch.Tensor:
    """V's loss where Q_target of the codes taken is x (N,) and V is m everywhere."""
    data = batch(1, len(x)) | {"codes": torch.zeros(len(x), dtype=torch.int64)}
    m = torch.as_tensor(m, dtype=x.dtype)
    table = x[:, None].detach()
    return iql_loss(lambda _: table, lambda _: table, lambda _: m.expand(len(x), 1), data, expectile)


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.9])
def test_the_loss_of_v_is_least_at_the_expectile(expectile):
    """The minimizer m solves expectile E[(x - m)+] = (1 - expectile) E[(m - x)+], which SciPy finds directly."""
    x = torch.randn(1000, dtype=torch.float64) ** 3

    def gap(m: float) -> float:
        return (expectile * (x - m).clamp(min=0) - (1 - expectile) * (m - x).clamp(min=0)).mean().item()

    direct = brentq(gap, x.min().item(), x.max().item(), xtol=1e-12)
    losses = [v_loss(x, direct + offset, expectile)["v_loss"].item() for offset in (-0.1, -1e-3, 0.0, 1e-3, 0.1)]
    assert min(losses) == losses[2]
    if expectile == 0.5:
        assert direct == pytest.approx(x.mean().item())


def test_the_loss_of_v_weighs_the_two_sides():
    assert v_loss(torch.tensor([2.0, -3.0]), 0.0, 0.8)["v_loss"].item() == pytest.approx((0.8 * 4 + 0.2 * 9) / 2)


def test_a_loss_on_probabilities_is_its_mean_over_the_codes_drawn_from_them():
    (q, q_target, v), data = networks(6, 6, 1), batch()
    check_probabilities(lambda data: iql_loss(q, q_target, v, data, 0.7), data)


def test_iql_loss_is_the_equations():
    q, q_target, v = networks(6, 6, 1)
    data = batch()
    metrics = iql_loss(q, q_target, v, data, 0.7)
    v_loss, q_loss = [], []
    for i, code in enumerate(data["codes"].tolist()):
        here, there = data["observations"][i : i + 1], data["next_observations"][i : i + 1]
        u = q_target(here)[0, code].item() - v(here).item()
        v_loss.append(abs(0.7 - (u < 0)) * u**2)
        y = data["returns"][i].item() + data["discounts"][i].item() * v(there).item()
        q_loss.append((q(here)[0, code].item() - y) ** 2)
    assert metrics["v_loss"].item() == pytest.approx(np.mean(v_loss), rel=1e-4)
    assert metrics["q_loss"].item() == pytest.approx(np.mean(q_loss), rel=1e-4)
    assert metrics["loss"].item() == pytest.approx(np.mean(v_loss) + np.mean(q_loss), rel=1e-4)


def test_the_two_losses_reach_only_their_own_network():
    q, q_target, v = networks(6, 6, 1)
    data = batch() | {"returns": torch.zeros(32)}
    iql_loss(q, q_target, v, data, 0.7)["loss"].backward()
    assert all(p.grad is None for p in q_target.parameters())
    together = [p.grad.clone() for p in v.parameters()]
    v.zero_grad()
    taken = q_target(data["observations"]).gather(1, data["codes"][:, None]).squeeze(1).detach()
    u = taken - v(data["observations"]).squeeze(1)
    ((0.7 - (u < 0).float()).abs() * u**2).mean().backward()
    for ours, alone in zip(together, v.parameters(), strict=True):
        torch.testing.assert_close(ours, alone.grad)


@pytest.mark.parametrize(("floor", "last"), [(-1e3, 1e-4), (-8.0, math.exp(-8))])
def test_policy_is_computed_by_hand_with_and_without_a_floor(floor, last):
    """pi_b = (0.9, 0.0999, 1e-4): with a floor of -8, log 1e-4 = -9.2 counts as -8."""
    behavior_logits = torch.tensor([[0.9, 0.0999, 1e-4]]).log() + 5.0  # a constant does not matter
    values = torch.tensor([[1.0, 2.0, 6.0]])
    weights = [0.9 * math.exp(1 / 2), 0.0999 * math.exp(2 / 2), last * math.exp(6 / 2)]
    policy = torch.softmax(policy_logits(values, behavior_logits, 2.0, floor), 1)[0].tolist()
    assert policy == pytest.approx([w / sum(weights) for w in weights], rel=1e-4)


def test_policy_limits():
    values, behavior_logits = torch.randn(8, 6), torch.randn(8, 6)
    high = torch.softmax(policy_logits(values, behavior_logits, 1e6, -1e3), 1)
    torch.testing.assert_close(high, torch.softmax(behavior_logits, 1), atol=1e-4, rtol=0.0)
    low = torch.softmax(policy_logits(values, behavior_logits, 1e-4, -1e3), 1)
    torch.testing.assert_close(low, torch.nn.functional.one_hot(values.argmax(1), 6).float(), atol=1e-3, rtol=0.0)


def train(corridor, expectile: float, scale: float = 10.0, steps: int = 3000):
    q, v = mlp(corridor.vqvae.standardize, 16, 64, False), mlp(corridor.vqvae.standardize, 1, 64, False)
    q_target = mlp(corridor.vqvae.standardize, 16, 64, False)
    q_target.load_state_dict(q.state_dict())
    optimizer = torch.optim.AdamW([*q.parameters(), *v.parameters()], lr=1e-3, weight_decay=0.0)
    for data in corridor.batches(steps, scale):
        loss = iql_loss(q, q_target, v, data, expectile)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(q_target, q, 0.02)
    return q(torch.eye(4)).detach() / scale, v(torch.eye(4)).squeeze(1).detach() / scale


def test_saq_iql_finds_the_optimum_of_a_known_mdp(corridor):
    q, v = train(corridor, expectile=0.95)
    log_behavior = corridor.code_frequencies().clamp(min=1e-6).log()
    codes = policy_logits(q, log_behavior, 0.02, -1e3).argmax(1)
    assert corridor.moves_right(codes).all(), "at a low temperature the policy moves right in every state"
    np.testing.assert_allclose(v, corridor.optimal_values, atol=0.15)


def test_expectile_one_half_evaluates_the_data(corridor):
    """SARSA: V is the value of the uniformly random policy that collected the corridor's data."""
    _, v = train(corridor, expectile=0.5)
    np.testing.assert_allclose(v, corridor.random_values, atol=0.05)
