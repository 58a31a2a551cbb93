"""SAQ-CQL's losses against brute force, and the whole method on an MDP whose optimum is known."""

import math

import numpy as np
import pytest
import torch
from known import batch

from saq_cql import cql_loss, mlp, n_step_returns
from vqvae import VQVAE


def networks():
    return [mlp(VQVAE(4, 2, hidden_dim=8).standardize, 6, 16) for _ in range(2)]


@pytest.mark.parametrize("backup", ["expected", "greedy"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 5.0])
def test_cql_loss_is_the_equation(temperature, backup):
    q, q_target = networks()
    data = batch()
    metrics = cql_loss(q, q_target, data, 2.5, temperature, backup)
    td, conservative = [], []
    for i in range(32):
        values = q(data["observations"][i : i + 1])[0].tolist()
        online = q(data["next_observations"][i : i + 1])[0].tolist()
        target = q_target(data["next_observations"][i : i + 1])[0].tolist()
        if backup == "greedy":
            value = target[max(range(6), key=lambda k: online[k])]
        else:
            weights = [math.exp(t / temperature) for t in target]
            value = sum(w * t for w, t in zip(weights, target)) / sum(weights)
        y = data["returns"][i].item() + data["discounts"][i].item() * value
        code = data["codes"][i].item()
        td.append((values[code] - y) ** 2)
        lse = temperature * math.log(sum(math.exp(v / temperature) for v in values))
        conservative.append(lse - values[code])
    assert metrics["td_loss"].item() == pytest.approx(np.mean(td), rel=1e-4)
    assert metrics["cql_loss"].item() == pytest.approx(np.mean(conservative), rel=1e-4)
    assert metrics["loss"].item() == pytest.approx(np.mean(td) + 2.5 * np.mean(conservative), rel=1e-4)


@pytest.mark.parametrize("backup", ["expected", "greedy"])
def test_no_gradient_through_the_backup(backup):
    q, q_target = networks()
    data = batch()
    data["next_observations"].requires_grad_()
    cql_loss(q, q_target, data, 1.0, 1.0, backup)["loss"].backward()
    assert all(p.grad is None for p in q_target.parameters())
    assert data["next_observations"].grad is None
    assert all(p.grad is not None for p in q.parameters())


def test_conservative_gradient_is_softmax_minus_data():
    """d/dQ of T logsumexp(Q / T) - Q_c is softmax(Q / T) - onehot(c): pushes the unseen down, the seen up."""
    values = torch.randn(8, 6, requires_grad=True)
    data = batch(rows=8) | {"discounts": torch.zeros(8)}
    data["returns"] = values.detach().gather(1, data["codes"][:, None]).squeeze(1)  # no temporal-difference error
    tables = [lambda _: values, lambda _: torch.zeros(8, 6)]
    metrics = cql_loss(*tables, data, 3.0, 0.5, "expected")
    metrics["loss"].backward()
    onehot = torch.nn.functional.one_hot(data["codes"], 6)
    torch.testing.assert_close(values.grad, 3.0 / 8 * (torch.softmax(values.detach() / 0.5, 1) - onehot))


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
    q, q_target = (mlp(corridor.vqvae.standardize, 16, 64) for _ in range(2))
    optimizer = torch.optim.AdamW(q.parameters(), lr=1e-3)
    scale = 100.0
    for step, data in enumerate(corridor.batches(3000, scale)):
        loss = cql_loss(q, q_target, data, 1.0, 1.0, backup)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            q_target.load_state_dict(q.state_dict())
    states = torch.eye(4)
    assert corridor.moves_right(q(states).argmax(1)).all(), "the greedy policy moves right in every state"
    np.testing.assert_allclose(q(states).max(1).values.detach() / scale, corridor.optimal_values, atol=0.1)
