"""SAQ-CQL's losses against brute force, and the whole method on an MDP whose optimum is known."""

import math

import numpy as np
import pytest
import torch
from conftest import batch

from saq_cql import Args, Dataset, cql_loss, largest_return, mlp, n_step_returns, time_scale
from vqvae import VQVAE


def networks():
    return [mlp(VQVAE(4, 2, hidden_dim=8).standardize, 6, 16) for _ in range(2)]


@pytest.mark.parametrize("backup", ["expected", "greedy"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 5.0])
def test_cql_loss_is_the_equation(temperature, backup):
    q, q_target = networks()
    data = batch()
    metrics = cql_loss(q, q_target, **data, alpha=2.5, temperature=temperature, backup=backup)
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
        y = data["rewards"][i].item() + data["discounts"][i].item() * value
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
    cql_loss(q, q_target, **data, alpha=1.0, temperature=1.0, backup=backup)["loss"].backward()
    assert all(p.grad is None for p in q_target.parameters())
    assert data["next_observations"].grad is None
    assert all(p.grad is not None for p in q.parameters())


def test_conservative_gradient_is_softmax_minus_data():
    """d/dQ of T logsumexp(Q / T) - Q_c is softmax(Q / T) - onehot(c): pushes the unseen down, the seen up."""
    values = torch.randn(8, 6, requires_grad=True)
    data = batch(rows=8) | {"discounts": torch.zeros(8)}
    data["rewards"] = values.detach().gather(1, data["codes"][:, None]).squeeze(1)  # no temporal-difference error
    tables = [lambda _: values, lambda _: torch.zeros(8, 6)]
    metrics = cql_loss(*tables, **data, alpha=3.0, temperature=0.5, backup="expected")
    metrics["loss"].backward()
    onehot = torch.nn.functional.one_hot(data["codes"], 6)
    torch.testing.assert_close(values.grad, 3.0 / 8 * (torch.softmax(values.detach() / 0.5, 1) - onehot))


@pytest.mark.parametrize(
    "transitions, next_rows",
    [
        ([0, 1, 2, 4], [1, 2, 3, 5]),  # row 3 timed out, row 5 is the last
        ([0, 1, 2, 3, 4, 5], [1, 6, 3, 7, 5, 8]),  # what followed rows 1, 3 and 5 comes after all rows
    ],
)
def test_largest_return_restarts_at_terminals_and_time_outs(transitions, next_rows):
    rewards = torch.tensor([1.0, 2.0, 4.0, -16.0, 0.0, 8.0])
    terminals = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    observations, actions = torch.zeros(9, 1), torch.zeros(6, 1)
    rows = torch.tensor(transitions), torch.tensor(next_rows)
    dataset = Dataset(observations, actions, rewards, terminals, *rows, np.zeros(1))
    # from row 2: 4 - 0.5 * 16; from row 3: -16; from row 4: 0.5 * 8; from row 0: 1 + 0.5 * 2
    assert largest_return(dataset, 0.5) == pytest.approx(16.0)
    rewards[3] = 0.0
    assert largest_return(dataset, 0.5) == pytest.approx(8.0)
    rewards[5] = 0.0
    assert largest_return(dataset, 0.5) == pytest.approx(4.0)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
@pytest.mark.parametrize(
    "transitions, next_rows",
    [
        ([0, 1, 2, 3, 5, 6, 7], [1, 2, 3, 4, 6, 7, 8]),  # row 4 timed out, row 8 is the last
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 9, 6, 7, 8, 10]),  # what followed rows 4 and 8 comes after all rows
    ],
)
def test_n_step_returns_end_where_episodes_do(transitions, next_rows, n):
    rewards, terminals = torch.arange(1.0, 10.0), torch.zeros(9)
    terminals[6] = 1.0  # an episode of rows 5 and 6 between two time-outs
    observations, actions = torch.zeros(11, 1), torch.zeros(9, 1)
    rows = torch.tensor(transitions), torch.tensor(next_rows)
    dataset = Dataset(observations, actions, rewards, terminals, *rows, np.zeros(3))
    returns, ends, discounts = n_step_returns(dataset, rewards, 0.5, n)
    following = dict(zip(transitions, next_rows))
    for i, row in enumerate(transitions):
        total, discount = 0.0, 1.0
        for _ in range(n):
            total += discount * rewards[row].item()
            discount *= 0.5 * (1 - terminals[row].item())
            row = following[row]
            if not discount or row not in following:
                break
        assert returns[i].item() == pytest.approx(total)
        assert discounts[i].item() == pytest.approx(discount)
        assert not discount or ends[i].item() == row


def test_time_scale_is_that_of_the_mean_episode():
    def scale(episodes, **given):
        rows = torch.zeros(1000, 1)
        dataset = Dataset(rows, rows, rows[:, 0], rows[:, 0], *2 * [torch.arange(1000)], np.zeros(episodes))
        return time_scale(Args(**given), dataset)

    assert scale(2) == (pytest.approx(0.998), 10)
    assert scale(20) == (pytest.approx(0.98), 1)
    assert scale(100) == (pytest.approx(0.9), 1)
    assert scale(2, gamma=0.5) == (0.5, 10)
    assert scale(2, n_step=3) == (pytest.approx(0.998), 3)


@pytest.mark.parametrize("backup", ["expected", "greedy"])
def test_saq_cql_finds_the_optimum_of_a_known_mdp(corridor, backup):
    q, q_target = (mlp(corridor.vqvae.standardize, 16, 64) for _ in range(2))
    optimizer = torch.optim.AdamW(q.parameters(), lr=1e-3)
    scale = 100.0
    for step, data in enumerate(corridor.batches(3000)):
        data["rewards"] *= scale
        loss = cql_loss(q, q_target, **data, alpha=1.0, temperature=1.0, backup=backup)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            q_target.load_state_dict(q.state_dict())
    states = torch.eye(4)
    assert corridor.moves_right(q(states).argmax(1)).all(), "the greedy policy moves right in every state"
    np.testing.assert_allclose(q(states).max(1).values.detach() / scale, corridor.optimal_values, atol=0.1)
