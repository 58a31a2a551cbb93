"""benchmark/baselines/aquadem.py: loss, gradients and codes of Aquadem."""

import math
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmark" / "baselines"))
from aquadem import Aquadem

from vqvae import Standardize, train_vqvae

SMALL = {"codebook_size": 12, "hidden_dim": 32}


def batch(rows=300, observation_dim=5, action_dim=3):
    return torch.randn(rows, observation_dim), torch.rand(rows, action_dim) * 2 - 1


def aquadem(temperature=1e-3):
    """A model whose candidates are spread out, so that many are somewhere the nearest."""
    model = Aquadem(5, 3, **SMALL)
    model.standardize = Standardize(torch.ones(5), torch.full((5,), 2.0))
    torch.nn.init.normal_(model.network[-1].weight, std=0.3)
    model.temperature = temperature
    return model


def brute_force_errors(model, observations, actions):
    """|psi_k(s) - a|^2 (B, K) float64, each candidate through `decode`."""
    candidates = [model.decode(observations, torch.full((len(actions),), k)) for k in range(SMALL["codebook_size"])]
    return np.stack([((c.double() - actions.double()) ** 2).sum(1).numpy() for c in candidates], 1)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_aquadem_loss_is_the_soft_minimum(temperature):
    model, (observations, actions) = aquadem(temperature), batch()
    errors = brute_force_errors(model, observations, actions)
    expected = np.mean([-temperature * math.log(sum(math.exp(-e / temperature) for e in row)) for row in errors])
    metrics = model.loss(observations, actions)
    assert metrics["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert metrics["reconstruction"].item() == pytest.approx(errors.min(1).mean(), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 1e-2, 1e-4])
def test_aquadem_loss_is_between_the_minimum_and_t_log_k_below_it(temperature):
    model, (observations, actions) = aquadem(temperature), batch()
    least = brute_force_errors(model, observations, actions).min(1).mean()
    loss = model.loss(observations, actions)["loss"].item()
    assert least - temperature * math.log(12) - 1e-4 <= loss <= least + 1e-4


def test_aquadem_gradient_at_low_temperature_is_that_of_the_nearest_candidate():
    model, (observations, actions) = aquadem(1e-6), batch()
    model.loss(observations, actions)["loss"].backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    nearest = model.candidates(observations)[torch.arange(len(actions)), model.encode(observations, actions)]
    (nearest - actions).square().sum(1).mean().backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-3)


def test_aquadem_gradient_is_shared_by_the_softmax_of_the_errors():
    """dL/d psi_k = w_k 2 (psi_k - a), w = softmax(-errors / T): every candidate's errors weigh in."""
    model, (observations, actions) = aquadem(0.5), batch(1)
    candidates = model.candidates(observations).detach().requires_grad_()
    model.candidates = lambda _: candidates
    model.loss(observations, actions)["loss"].backward()
    errors = (candidates - actions[:, None]).detach()
    weights = torch.softmax(-errors.square().sum(2) / 0.5, 1)
    torch.testing.assert_close(candidates.grad, 2 * weights[:, :, None] * errors)


def test_aquadem_code_is_the_nearest_candidate():
    model, (observations, actions) = aquadem(), batch(5000)  # more than one chunk
    codes = model.encode(observations, actions)
    assert codes.dtype == torch.int64 and len(codes.unique()) > 4
    errors = brute_force_errors(model, observations, actions)
    np.testing.assert_allclose(errors[np.arange(5000), codes], errors.min(1), rtol=1e-5, atol=1e-6)
    decoded = model.decode(observations, codes)
    quality = model.evaluate(observations, actions)
    assert quality["reconstruction_error"] == pytest.approx((decoded - actions).square().sum(1).mean().item())
    assert quality["codes_used"] == len(codes.unique())


def test_aquadem_learns_modes_that_depend_on_the_state():
    observations = torch.randn(4000, 5)
    sign = torch.randint(2, (4000, 1)) * 2.0 - 1.0
    actions = 0.5 * sign + 0.3 * torch.tanh(observations[:, :3])
    model = Aquadem(5, 3, codebook_size=4, hidden_dim=64)
    train_vqvae(model, observations, actions, 500, dead_code_reset_every=0)
    quality = model.evaluate(observations, actions)
    assert quality["reconstruction_error"] < 0.05 * quality["action_variance"]
