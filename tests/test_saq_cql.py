"""SAQ-CQL's losses against brute force, and the whole method on an MDP whose optimum is known."""

import math

import numpy as np
import pytest
import torch

from saq_cql import Dataset, behavior_loss, code_network, cql_loss, largest_return
from vqvae import VQVAE, train_vqvae


def networks(codes=6, hidden_dim=16):
    vqvae = VQVAE(4, 2, codebook_size=codes, hidden_dim=8)
    return [code_network(vqvae, hidden_dim) for _ in range(2)]


def batch(codes=6, rows=32):
    return {
        "observations": torch.randn(rows, 4),
        "codes": torch.randint(codes, (rows,)),
        "rewards": torch.randn(rows),
        "next_observations": torch.randn(rows, 4),
        "terminals": (torch.rand(rows) < 0.3).float(),
    }


@pytest.mark.parametrize("temperature", [1.0, 0.1, 5.0])
def test_cql_loss_is_the_equation(temperature):
    q, q_target = networks()
    data = batch()
    metrics = cql_loss(q, q_target, **data, gamma=0.9, alpha=2.5, temperature=temperature)
    td, conservative = [], []
    for i in range(32):
        values = q(data["observations"][i : i + 1])[0].tolist()
        online = q(data["next_observations"][i : i + 1])[0].tolist()
        target = q_target(data["next_observations"][i : i + 1])[0].tolist()
        best = max(range(6), key=lambda k: online[k])
        y = data["rewards"][i].item() + 0.9 * (1 - data["terminals"][i].item()) * target[best]
        code = data["codes"][i].item()
        td.append((values[code] - y) ** 2)
        lse = temperature * math.log(sum(math.exp(v / temperature) for v in values))
        conservative.append(lse - values[code])
    assert metrics["td_loss"].item() == pytest.approx(np.mean(td), rel=1e-4)
    assert metrics["cql_loss"].item() == pytest.approx(np.mean(conservative), rel=1e-4)
    assert metrics["loss"].item() == pytest.approx(np.mean(td) + 2.5 * np.mean(conservative), rel=1e-4)


def test_no_gradient_through_the_backup():
    q, q_target = networks()
    data = batch()
    data["next_observations"].requires_grad_()
    cql_loss(q, q_target, **data, gamma=0.9, alpha=1.0, temperature=1.0)["loss"].backward()
    assert all(p.grad is None for p in q_target.parameters())
    assert data["next_observations"].grad is None
    assert all(p.grad is not None for p in q.parameters())


def test_conservative_gradient_is_softmax_minus_data():
    """d/dQ of T logsumexp(Q / T) - Q_c is softmax(Q / T) - onehot(c): pushes the unseen down, the seen up."""
    values = torch.randn(8, 6, requires_grad=True)
    data = batch(rows=8) | {"terminals": torch.ones(8)}
    data["rewards"] = values.detach().gather(1, data["codes"][:, None]).squeeze(1)  # no temporal-difference error
    table = iter([torch.zeros(8, 6), values])
    metrics = cql_loss(
        lambda _: next(table), lambda _: torch.zeros(8, 6), **data, gamma=0.9, alpha=3.0, temperature=0.5
    )
    metrics["loss"].backward()
    onehot = torch.nn.functional.one_hot(data["codes"], 6)
    torch.testing.assert_close(values.grad, 3.0 / 8 * (torch.softmax(values.detach() / 0.5, 1) - onehot))


def test_behavior_loss_is_the_mean_negative_log_likelihood():
    network, data = networks()[0], batch()
    chances = torch.softmax(network(data["observations"]), 1)
    expected = -np.mean([math.log(chances[i, code].item()) for i, code in enumerate(data["codes"])])
    assert behavior_loss(network, data["observations"], data["codes"])["loss"].item() == pytest.approx(
        expected, rel=1e-5
    )


def test_largest_return_restarts_at_terminals_and_time_outs():
    rewards = torch.tensor([1.0, 2.0, 4.0, -16.0, 0.0, 8.0])
    terminals = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    transitions = torch.tensor([0, 1, 2, 4])  # row 3 timed out, row 5 is the last
    dataset = Dataset(torch.zeros(6, 1), torch.zeros(6, 1), rewards, terminals, transitions, np.zeros(1))
    # from row 2: 4 - 0.5 * 16; from row 3: -16; from row 4: 0.5 * 8; from row 0: 1 + 0.5 * 2
    assert largest_return(dataset, 0.5) == pytest.approx(16.0)
    rewards[3] = 0.0
    assert largest_return(dataset, 0.5) == pytest.approx(8.0)
    rewards[5] = 0.0
    assert largest_return(dataset, 0.5) == pytest.approx(4.0)


def chain(rows=6000, states=4, seed=0):
    """A corridor with a continuous action: it moves right where |a - best(s)| < 0.4, else it stays and pays.

    In state s the good actions lie around best(s); the last state's good action ends the episode with reward 1, every
    other step costs 0.05. The data act uniformly at random. With discount 0.9 the optimal value of the first state is
    -0.05 (1 + 0.9 + 0.81) + 0.9^3, that of a random policy far lower.
    """
    rng = np.random.default_rng(seed)
    best = np.array([-0.6, 0.5, -0.1, 0.6], np.float32)
    state = rng.integers(states, size=rows)
    actions = rng.uniform(-1, 1, rows).astype(np.float32)
    right = np.abs(actions - best[state]) < 0.4
    terminals = right & (state == states - 1)
    next_state = np.minimum(state + right, states - 1)
    eye = torch.eye(states)
    return best, {
        "observations": eye[state],
        "actions": torch.from_numpy(actions)[:, None],
        "rewards": torch.from_numpy(np.where(terminals, 1.0, -0.05).astype(np.float32)),
        "next_observations": eye[next_state],
        "terminals": torch.from_numpy(terminals.astype(np.float32)),
    }


def test_saq_cql_finds_the_optimum_of_a_known_mdp():
    best, data = chain()
    gamma, generator = 0.9, torch.Generator().manual_seed(0)
    vqvae = VQVAE(4, 1, codebook_size=16, hidden_dim=64)
    train_vqvae(vqvae, data["observations"], data["actions"], 2000, generator=generator)
    codes = vqvae.encode(data["observations"], data["actions"])
    q, q_target = (code_network(vqvae, 64) for _ in range(2))
    optimizer = torch.optim.AdamW(q.parameters(), lr=1e-3)
    scale = 100.0
    for step in range(3000):
        rows = torch.randint(len(codes), (256,), generator=generator)
        loss = cql_loss(
            q,
            q_target,
            data["observations"][rows],
            codes[rows],
            scale * data["rewards"][rows],
            data["next_observations"][rows],
            data["terminals"][rows],
            gamma=gamma,
            alpha=1.0,
            temperature=1.0,
        )["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            q_target.load_state_dict(q.state_dict())
    states = torch.eye(4)
    actions = vqvae.decode(states, q(states).argmax(1)).squeeze(1).numpy()
    assert np.all(np.abs(actions - best) < 0.4), "the greedy policy moves right in every state"
    optimal = [-0.05 * sum(gamma**t for t in range(3 - s)) + gamma ** (3 - s) for s in range(4)]
    np.testing.assert_allclose(q(states).max(1).values.detach() / scale, optimal, atol=0.1)
