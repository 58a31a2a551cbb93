"""SAQ-CQL's losses against brute force, and the whole method on an MDP whose optimum is known."""

import math

import numpy as np
import pytest
import torch
from known import batch, check_probabilities

from saq_cql import cql_loss, mlp, n_step_returns
from vqvae import VQVAE


def networks():
    """Q and its target network, of 6 codes."""
    return [mlp(VQVAE(4, 2, hidden_dim=8).standardize, 6, 16, False) for _ in range(2)]


def with_behavior(data, log_pi_b=None):
    """A batch with a behavior policy, by default any."""
    log_pi_b = torch.randn(len(data["codes"]), 6).log_softmax(1) if log_pi_b is None else log_pi_b
    return data | {"log_pi_b": log_pi_b, "next_log_pi_b": log_pi_b.roll(1, 0)}


@pytest.mark.parametrize("backup", ["expected", "greedy"])
def test_cql_loss_is_the_equation(backup):
    q, q_target = networks()
    data = with_behavior(batch())
    metrics = cql_loss(q, q_target, data, 2.5, backup)
    td, cross_entropy = [], []
    for i in range(32):
        here, there = data["observations"][i : i + 1], data["next_observations"][i : i + 1]
        values, online, target = (network(o)[0].tolist() for network, o in ((q, here), (q, there), (q_target, there)))
        pi_b, next_pi_b = (data[name][i].exp().tolist() for name in ("log_pi_b", "next_log_pi_b"))
        if backup == "greedy":
            value = target[max(range(6), key=lambda k: online[k])]
        else:
            weights = [p * math.exp(t) for p, t in zip(next_pi_b, target)]
            value = sum(w * t for w, t in zip(weights, target)) / sum(weights)
        y = data["returns"][i].item() + data["discounts"][i].item() * value
        code = data["codes"][i].item()
        td.append((values[code] - y) ** 2)
        conservative = math.log(sum(p * math.exp(v) for p, v in zip(pi_b, values))) - values[code]
        cross_entropy.append(conservative - math.log(pi_b[code]))
    assert metrics["td_loss"].item() == pytest.approx(np.mean(td), rel=1e-4)
    assert metrics["cross_entropy"].item() == pytest.approx(np.mean(cross_entropy), rel=1e-4)
    assert metrics["loss"].item() == pytest.approx(np.mean(td) + 2.5 * np.mean(cross_entropy), rel=1e-4)


def test_a_loss_on_probabilities_is_its_mean_over_the_codes_drawn_from_them():
    (q, q_target), data = networks(), with_behavior(batch())
    check_probabilities(lambda data: cql_loss(q, q_target, data, 2.5, "expected"), data)


def test_without_a_behavior_policy_it_is_the_papers_regularizer():
    """CQL(H), equation 4: logsumexp_k Q(s, k) - Q(s, c)."""
    q, q_target = networks()
    data = with_behavior(batch(), torch.full((32, 6), -math.log(6)))
    metrics = cql_loss(q, q_target, data, 1.0, "greedy")
    values = q(data["observations"])
    expected = (values.logsumexp(1) - values.gather(1, data["codes"][:, None]).squeeze(1)).mean()
    torch.testing.assert_close(metrics["cross_entropy"], expected.detach())


@pytest.mark.parametrize("backup", ["expected", "greedy"])
def test_no_gradient_through_the_backup(backup):
    q, q_target = networks()
    data = with_behavior(batch())
    data["next_observations"].requires_grad_()
    cql_loss(q, q_target, data, 1.0, backup)["loss"].backward()
    assert all(p.grad is None for p in q_target.parameters())
    assert data["next_observations"].grad is None
    assert all(p.grad is not None for p in q.parameters())


def test_conservative_gradient_is_policy_minus_data():
    """d/dQ of logsumexp(Q + log pi_b) - Q_c is pi - onehot(c): pushes the unseen down, the seen up."""
    values, pi_b = torch.randn(8, 6, requires_grad=True), torch.randn(8, 6).log_softmax(1)
    data = with_behavior(batch(rows=8) | {"discounts": torch.zeros(8)}, pi_b)
    data["returns"] = values.detach().gather(1, data["codes"][:, None]).squeeze(1)  # no temporal-difference error
    metrics = cql_loss(lambda _: values, lambda _: torch.zeros(8, 6), data, 3.0, "expected")
    metrics["loss"].backward()
    onehot = torch.nn.functional.one_hot(data["codes"], 6)
    torch.testing.assert_close(values.grad, 3.0 / 8 * (torch.softmax(values.detach() + pi_b, 1) - onehot))


@pytest.mark.parametrize("alpha", [1.0, 4.0, 20.0])
def test_the_policy_at_the_optimum_is_known(alpha):
    """In one state, where pi_b is the data's, the loss is least at pi / pi_b = 1 + 2 (y - Q) / alpha.

    So log (pi / pi_b) is about (y - V) / (1 + alpha / 2), whatever pi_b: the codes that are rare are not favored.
    """
    frequencies, rewards = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.0, 0.3, -0.2]).double()
    codes = torch.tensor([0] * 7 + [1] * 2 + [2])
    data = {"codes": codes, "returns": rewards[codes], "discounts": torch.zeros(10).double()}
    data |= {"observations": torch.zeros(10, 1), "next_observations": torch.zeros(10, 1)}
    values = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    data = with_behavior(data, frequencies.log().expand(10, 3))
    tables = [lambda _, t=t: t.expand(10, 3) for t in (values, torch.zeros(1, 3).double())]
    optimizer = torch.optim.LBFGS([values], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def loss():
        optimizer.zero_grad()
        (value := cql_loss(*tables, data, alpha, "expected")["loss"]).backward()
        return value

    optimizer.step(loss)
    ratio = torch.softmax(values.detach()[0] + frequencies.log(), 0) / frequencies
    torch.testing.assert_close(ratio, 1 + 2 * (rewards - values.detach()[0]) / alpha, atol=1e-6, rtol=0)
    v = (frequencies * rewards).sum()
    torch.testing.assert_close(ratio.log(), (rewards - v) / (1 + alpha / 2), atol=0.03, rtol=0)


def trajectories() -> dict[str, torch.Tensor]:
    """Ten transitions: one trajectory of 5 that times out, one of 2 that is terminal, one of 3 with a goal inside."""
    data = {"rewards": torch.arange(1.0, 11.0), "terminals": torch.zeros(10), "ends": torch.zeros(10, dtype=torch.bool)}
    data["terminals"][[6, 8]] = 1.0  # row 8: play data, which go on after the goal
    data["ends"][[4, 6, 9]] = True
    return data


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_n_step_returns_stop_at_terminals_and_at_ends(n):
    data = trajectories()
    returns, last, discounts = n_step_returns(data, 0.5, n)
    for start in range(10):
        row, total, steps = start, data["rewards"][start].item(), 1
        while steps < n and not data["ends"][row] and not data["terminals"][row]:
            row, steps = row + 1, steps + 1
            total += 0.5 ** (steps - 1) * data["rewards"][row].item()
        assert returns[start].item() == pytest.approx(total)
        assert last[start].item() == row
        assert discounts[start].item() == pytest.approx(0.0 if data["terminals"][row] else 0.5**steps)


def test_as_many_steps_as_there_are_give_the_return_to_the_end():
    returns, *_ = n_step_returns(trajectories(), 0.5, 1_000_000_000)
    assert returns[0].item() == pytest.approx(1 + 2 / 2 + 3 / 4 + 4 / 8 + 5 / 16)
    assert returns[5].item() == pytest.approx(6 + 7 / 2)
    assert returns[7:].tolist() == pytest.approx([8 + 9 / 2, 9.0, 10.0])


@pytest.mark.parametrize("backup", ["expected", "greedy"])
def test_saq_cql_finds_the_optimum_of_a_known_mdp(corridor, backup):
    q, q_target = (mlp(corridor.vqvae.standardize, 16, 64, False) for _ in range(2))
    log_behavior = corridor.code_frequencies().clamp(min=1e-9).log()
    optimizer = torch.optim.AdamW(q.parameters(), lr=1e-3)
    scale = 100.0
    for step, data in enumerate(corridor.batches(3000, scale)):
        for name, states in (("log_pi_b", "observations"), ("next_log_pi_b", "next_observations")):
            data[name] = data[states] @ log_behavior
        loss = cql_loss(q, q_target, data, 1.0, backup)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            q_target.load_state_dict(q.state_dict())
    states = torch.eye(4)
    assert corridor.moves_right(q(states).argmax(1)).all(), "the greedy policy moves right in every state"
    np.testing.assert_allclose(q(states).max(1).values.detach() / scale, corridor.optimal_values, atol=0.1)
