"""SAQ-BRAC's closed forms against numerical maximization, its limits, and training on a known MDP."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from known import GAMMA, check_mean_over_codes
from scipy.optimize import minimize

import saq_brac
from saq_brac import policy_logits, td_loss


def soft_value(q: torch.Tensor, log_pi_b: torch.Tensor, alpha: float) -> torch.Tensor:
    """max_pi E_pi[Q] - alpha KL(pi || pi_b), from the closed form of the policy."""
    return alpha * policy_logits(q, log_pi_b, alpha).logsumexp(1)


def test_td_loss_is_the_squared_temporal_difference():
    q, td_target, codes = torch.randn(32, 6), torch.randn(32), torch.randint(6, (32,))
    loss = td_loss(q, td_target, F.one_hot(codes, 6).float())
    expected = np.mean([(q[i, code] - td_target[i]).item() ** 2 for i, code in enumerate(codes.tolist())])
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_loss_on_probabilities_is_its_mean_over_codes():
    q, td_target = torch.randn(16, 6), torch.randn(16)
    check_mean_over_codes(lambda rows, p: td_loss(q[rows], td_target[rows], p), 16, 6)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_policy_and_value_are_the_maximum_over_the_simplex(alpha):
    """SciPy maximizes E_pi[Q] - alpha KL(pi || pi_b) over distributions of 5 codes without the closed form."""
    q, log_pi_b = torch.randn(4, 5).double(), torch.randn(4, 5).double().log_softmax(1)
    policies, values = policy_logits(q, log_pi_b, alpha).softmax(1), soft_value(q, log_pi_b, alpha)

    def negative(pi, q, log_pi_b):
        return alpha * pi @ (np.log(np.maximum(pi, 1e-12)) - log_pi_b) - pi @ q

    for row in range(4):
        args = q[row].numpy(), log_pi_b[row].numpy()
        best = minimize(
            negative,
            np.full(5, 0.2),
            args,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * 5,
            constraints={"type": "eq", "fun": lambda pi: pi.sum() - 1.0},
            options={"ftol": 1e-12, "maxiter": 1000},
        )
        np.testing.assert_allclose(policies[row], best.x, atol=1e-4)
        assert values[row].item() == pytest.approx(-best.fun, abs=1e-6)
        assert negative(policies[row].numpy(), *args) == pytest.approx(best.fun, abs=1e-6)


def test_alpha_to_infinity_is_the_behavior_policy():
    q, log_pi_b = torch.randn(8, 6).double(), torch.randn(8, 6).double().log_softmax(1)
    policy = policy_logits(q, log_pi_b, 1e6).softmax(1)
    torch.testing.assert_close(policy, log_pi_b.exp(), atol=1e-5, rtol=0.0)
    expectation = (log_pi_b.exp() * q).sum(1)
    torch.testing.assert_close(soft_value(q, log_pi_b, 1e6), expectation, atol=1e-4, rtol=0.0)


def test_alpha_to_zero_is_the_largest_q_over_the_support():
    q = torch.tensor([[1.0, 5.0, 3.0], [2.0, 9.0, -1.0]])
    log_pi_b = torch.tensor([[0.5, 0.0, 0.5], [0.3, 0.2, 0.5]]).log()  # the data never have code 1 in the first row
    torch.testing.assert_close(soft_value(q, log_pi_b, 1e-3), torch.tensor([3.0, 9.0]), atol=5e-3, rtol=0.0)
    assert policy_logits(q, log_pi_b, 1e-3).argmax(1).tolist() == [2, 1]


FLAGS = {"gamma": GAMMA, "bc_steps": 500, "rl_steps": 2000}


def test_saq_brac_finds_the_optimum_of_a_known_mdp(corridor, learn_corridor):
    learned = learn_corridor(saq_brac, alpha=1.0, action_mode="greedy", **FLAGS)
    assert learned.moves_right.all()
    values = soft_value(learned.q, learned.behavior.log_softmax(1), 1.0) / learned.scale
    np.testing.assert_allclose(values, corridor.optimal_values, atol=0.1)


def test_a_large_alpha_evaluates_the_data(corridor, learn_corridor):
    learned = learn_corridor(saq_brac, alpha=1e4, **FLAGS)
    values = soft_value(learned.q, learned.behavior.log_softmax(1), 1e4) / learned.scale
    np.testing.assert_allclose(values, corridor.random_values, atol=0.05)
