"""SAQ-BRAC's closed forms against numerical maximization, its limits, and the method on a known MDP."""

import numpy as np
import pytest
import torch
from known import batch, check_probabilities
from scipy.optimize import minimize

from saq_brac import brac_loss, follow, mlp, policy_logits
from vqvae import VQVAE


def networks():
    return [mlp(VQVAE(4, 2, hidden_dim=8).standardize, 6, 16, False) for _ in range(2)]


def soft_value(q: torch.Tensor, log_behavior: torch.Tensor, alpha: float) -> torch.Tensor:
    """The value (B,) that the backup gives to `q` (B, K): where Q is 1e3 without reward, the loss is (1e3 - it)^2."""
    values = []
    for row, log_pi_b in zip(q.double().split(1), log_behavior.double().split(1)):
        data = {"codes": torch.tensor([0]), "returns": torch.zeros(1).double(), "discounts": torch.ones(1).double()}
        data |= {"observations": torch.zeros(1, 1), "next_observations": torch.zeros(1, 1), "next_log_pi_b": log_pi_b}
        loss = brac_loss(lambda _: torch.full((1, 1), 1e3).double(), lambda _, row=row: row, data, alpha)["loss"]
        values.append(1e3 - loss.sqrt())
    return torch.stack(values)


def test_a_loss_on_probabilities_is_its_mean_over_the_codes_drawn_from_them():
    (q, q_target), data = networks(), batch() | {"next_log_pi_b": torch.randn(32, 6).log_softmax(1)}
    check_probabilities(lambda data: brac_loss(q, q_target, data, 3.0), data)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_policy_and_value_are_the_maximum_over_the_simplex(alpha):
    """SciPy maximizes E_pi[Q] - alpha KL(pi || pi_b) over distributions of 5 codes, knowing nothing of its solution."""
    for row in range(4):
        values = torch.randn(1, 5, generator=torch.Generator().manual_seed(row), dtype=torch.float64)
        log_behavior = torch.randn(1, 5, generator=torch.Generator().manual_seed(9 + row)).double().log_softmax(1)
        q, log_b = values[0].numpy(), log_behavior[0].numpy()

        def penalized(pi, q=q, log_b=log_b):
            return pi @ q - alpha * pi @ (np.log(np.maximum(pi, 1e-12)) - log_b)

        best = minimize(
            lambda pi: -penalized(pi),
            np.full(5, 0.2),
            method="SLSQP",
            bounds=[(0.0, 1.0)] * 5,
            constraints={"type": "eq", "fun": lambda pi: pi.sum() - 1.0},
            options={"ftol": 1e-12, "maxiter": 1000},
        )
        policy = torch.softmax(policy_logits(values, log_behavior, alpha), 1)[0].numpy()
        np.testing.assert_allclose(policy, best.x, atol=1e-4)
        assert soft_value(values, log_behavior, alpha).item() == pytest.approx(-best.fun, abs=1e-6)
        assert penalized(policy) == pytest.approx(-best.fun, abs=1e-6)


def test_alpha_to_infinity_is_the_behavior_policy():
    values, log_behavior = torch.randn(8, 6).double(), torch.randn(8, 6).double().log_softmax(1)
    policy = torch.softmax(policy_logits(values, log_behavior, 1e6), 1)
    torch.testing.assert_close(policy, log_behavior.exp(), atol=1e-5, rtol=0.0)
    expectation = (log_behavior.exp() * values).sum(1)
    torch.testing.assert_close(soft_value(values, log_behavior, 1e6), expectation, atol=1e-4, rtol=0.0)


def test_alpha_to_zero_is_the_largest_q_over_the_support():
    values = torch.tensor([[1.0, 5.0, 3.0], [2.0, 9.0, -1.0]])
    log_behavior = torch.tensor([[0.5, 0.0, 0.5], [0.3, 0.2, 0.5]]).log()  # code 1 is not supported in the first row
    torch.testing.assert_close(
        soft_value(values, log_behavior, 1e-3), torch.tensor([3.0, 9.0]).double(), atol=5e-3, rtol=0.0
    )
    assert policy_logits(values, log_behavior, 1e-3).argmax(1).tolist() == [2, 1]


def test_brac_loss_is_the_equation():
    q, q_target = networks()
    data = batch() | {"next_log_pi_b": torch.randn(32, 6).log_softmax(1)}
    metrics = brac_loss(q, q_target, data, 2.0)
    losses = []
    for i, code in enumerate(data["codes"].tolist()):
        here, there = data["observations"][i : i + 1], data["next_observations"][i : i + 1]
        values = q_target(there)[0].detach().double().numpy()
        weights = np.exp(data["next_log_pi_b"][i].double().numpy() + values / 2.0)
        y = data["returns"][i].item() + data["discounts"][i].item() * 2.0 * np.log(weights.sum())
        losses.append((q(here)[0, code].item() - y) ** 2)
    assert metrics["loss"].item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_no_gradient_through_the_backup():
    q, q_target = networks()
    next_log_behavior = torch.zeros(32, 6, requires_grad=True)
    brac_loss(q, q_target, batch() | {"next_log_pi_b": next_log_behavior}, 1.0)["loss"].backward()
    assert all(p.grad is None for p in q_target.parameters()) and next_log_behavior.grad is None
    assert all(p.grad is not None for p in q.parameters())


def train(corridor, alpha: float, scale: float = 10.0, steps: int = 3000) -> torch.Tensor:
    """Values (4, 16) of the corridor's states and codes; `alpha` on the scale of its rewards."""
    q, q_target = (mlp(corridor.vqvae.standardize, 16, 64, False) for _ in range(2))
    q_target.load_state_dict(q.state_dict())
    log_behavior = corridor.code_frequencies().clamp(min=1e-9).log()
    optimizer = torch.optim.AdamW(q.parameters(), lr=1e-3, weight_decay=0.0)
    for data in corridor.batches(steps, scale):
        data["next_log_pi_b"] = log_behavior[data["next_observations"].argmax(1)]
        metrics = brac_loss(q, q_target, data, alpha * scale)
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
        follow(q_target, q, 0.02)
    return q(torch.eye(4)).detach() / scale


def test_saq_brac_finds_the_optimum_of_a_known_mdp(corridor):
    values = train(corridor, alpha=0.01)
    log_behavior = corridor.code_frequencies().clamp(min=1e-9).log()
    assert corridor.moves_right(policy_logits(values, log_behavior, 0.01).argmax(1)).all()
    np.testing.assert_allclose(soft_value(values, log_behavior, 0.01), corridor.optimal_values, atol=0.1)


def test_a_large_alpha_evaluates_the_data(corridor):
    values = train(corridor, alpha=100.0)
    log_behavior = corridor.code_frequencies().clamp(min=1e-9).log()
    np.testing.assert_allclose(soft_value(values, log_behavior, 100.0), corridor.random_values, atol=0.05)
