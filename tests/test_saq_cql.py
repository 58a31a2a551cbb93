"""SAQ-CQL's losses against brute force, n-step returns, and training on an MDP whose optimum is known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from known import GAMMA, check_mean_over_codes

import saq_cql
from saq_cql import cql_loss, log_probs, n_step_targets


def test_cql_loss_is_the_equation():
    q, td_target, log_pi_b = torch.randn(32, 6), torch.randn(32), torch.randn(32, 6).log_softmax(1)
    codes = torch.randint(6, (32,))
    td_loss, penalty = cql_loss(q, td_target, log_pi_b, F.one_hot(codes, 6).float())
    td_losses, penalties = [], []
    for i, code in enumerate(codes.tolist()):
        td_losses.append((q[i, code].item() - td_target[i].item()) ** 2)
        weights = [math.exp(value) * pi_b for value, pi_b in zip(q[i].tolist(), log_pi_b[i].exp().tolist())]
        penalties.append(-math.log(weights[code] / sum(weights)))
    assert td_loss.item() == pytest.approx(np.mean(td_losses), rel=1e-4)
    assert penalty.item() == pytest.approx(np.mean(penalties), rel=1e-4)


def test_losses_on_probabilities_are_means_over_codes():
    q, td_target, log_pi_b = torch.randn(16, 6), torch.randn(16), torch.randn(16, 6).log_softmax(1)

    def loss(rows, p):
        return torch.stack(cql_loss(q[rows], td_target[rows], log_pi_b[rows], p))

    check_mean_over_codes(loss, 16, 6)


def test_with_a_uniform_behavior_policy_the_penalty_is_the_papers():
    """CQL(H), equation 4: logsumexp_k Q(s, k) - Q(s, c)."""
    q, codes = torch.randn(32, 6), torch.randint(6, (32,))
    uniform = torch.full((32, 6), -math.log(6))
    _, penalty = cql_loss(q, torch.zeros(32), uniform, F.one_hot(codes, 6).float())
    torch.testing.assert_close(penalty, (q.logsumexp(1) - q[torch.arange(32), codes]).mean())


def test_gradient_of_the_penalty_is_policy_minus_data():
    """d/dQ of logsumexp(Q + log pi_b) - sum_k p_k Q_k is pi - p: unseen codes go down, those of the data go up."""
    q, log_pi_b = torch.randn(8, 6, requires_grad=True), torch.randn(8, 6).log_softmax(1)
    p = torch.rand(8, 6).softmax(1)
    _, penalty = cql_loss(q, torch.zeros(8), log_pi_b, p)
    penalty.backward()
    torch.testing.assert_close(q.grad, ((q.detach() + log_pi_b).softmax(1) - p) / 8)


@pytest.mark.parametrize("alpha", [1.0, 4.0, 20.0])
def test_policy_at_the_optimum_is_known(alpha):
    """In one state, where pi_b is the data's, the loss is minimal at pi / pi_b = 1 + 2 (y - Q) / alpha.

    So log (pi / pi_b) is about (y - V) / (1 + alpha / 2), whatever pi_b is: rare codes are not favored.
    """
    frequencies, rewards = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.0, 0.3, -0.2]).double()
    codes = torch.tensor([0] * 7 + [1] * 2 + [2])
    q = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    log_pi_b = frequencies.log().expand(10, 3)
    optimizer = torch.optim.LBFGS([q], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def loss():
        optimizer.zero_grad()
        td_loss, penalty = cql_loss(q.expand(10, 3), rewards[codes], log_pi_b, F.one_hot(codes, 3).double())
        total = td_loss + alpha * penalty
        total.backward()
        return total

    optimizer.step(loss)
    values = q.detach()[0]
    ratio = (values + frequencies.log()).softmax(0) / frequencies
    torch.testing.assert_close(ratio, 1 + 2 * (rewards - values) / alpha, atol=1e-6, rtol=0)
    v = (frequencies * rewards).sum()
    torch.testing.assert_close(ratio.log(), (rewards - v) / (1 + alpha / 2), atol=0.03, rtol=0)


def test_log_probs_of_many_rows_are_those_of_each():
    network, observations = torch.nn.Sequential(torch.nn.Linear(3, 5)), torch.randn(20_000, 3)
    table = log_probs(network, observations)
    torch.testing.assert_close(table, network(observations).log_softmax(1).detach())
    assert not table.requires_grad


def trajectories() -> dict[str, torch.Tensor]:
    """Ten transitions: one trajectory of 5 that times out, one of 2 that is terminal, one of 3 with a goal inside."""
    data = {"rewards": torch.arange(1.0, 11.0), "terminals": torch.zeros(10), "ends": torch.zeros(10, dtype=torch.bool)}
    data["terminals"][[6, 8]] = 1.0  # row 8: play data, which continue after the goal
    data["ends"][[4, 6, 9]] = True
    return data


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1_000_000_000])
def test_n_step_targets_stop_at_terminals_and_at_ends(n):
    data = trajectories()
    returns, discounts, last = n_step_targets(data, 0.5, n)
    for start in range(10):
        row, total, steps = start, data["rewards"][start].item(), 1
        while steps < n and not data["ends"][row] and not data["terminals"][row]:
            row, steps = row + 1, steps + 1
            total += 0.5 ** (steps - 1) * data["rewards"][row].item()
        assert returns[start].item() == pytest.approx(total)
        assert last[start].item() == row
        expected = 0.0 if data["terminals"][row] else 0.5**steps
        assert discounts[start].item() == pytest.approx(expected)


@pytest.mark.parametrize("backup", ["expected", "greedy"])
def test_saq_cql_finds_the_optimum_of_a_known_mdp(corridor, learn_corridor, backup):
    learned = learn_corridor(
        saq_cql, gamma=GAMMA, alpha=1.0, backup=backup, bc_steps=500, rl_steps=2000, action_mode="greedy"
    )
    assert learned.moves_right.all()
    values = learned.q.max(1).values / learned.scale
    np.testing.assert_allclose(values, corridor.optimal_values, atol=0.1)
