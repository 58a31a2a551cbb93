"""SAQ-BC's loss against its definition, and its policy where the best one is known."""

import math

import numpy as np
import pytest
import torch
from known import batch

from saq_bc import behavior_loss, mlp
from vqvae import VQVAE


@pytest.mark.parametrize("soft", [True, False])
def test_behavior_loss_is_the_mean_negative_log_likelihood(soft):
    network, data = mlp(VQVAE(4, 2, hidden_dim=8).standardize, 6, 16, False), batch()
    labels = torch.rand(len(data["codes"]), 6).softmax(1) if soft else data["codes"]
    chances = torch.softmax(network(data["observations"]), 1)
    shares = labels if soft else torch.eye(6)[labels]
    pairs = zip(shares.tolist(), chances.tolist())
    expected = -np.mean([sum(p * math.log(q) for p, q in zip(*pair)) for pair in pairs])
    loss = behavior_loss(network, data | {"codes": labels})["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("soft", [True, False])
def test_saq_bc_learns_how_often_each_code_occurs_in_each_state(corridor, soft):
    """The cross-entropy is least where pi_b(k|s) is the frequency of code k, or its mean probability, in state s."""
    behavior = mlp(corridor.vqvae.standardize, 16, 64, False)
    optimizer = torch.optim.AdamW(behavior.parameters(), lr=1e-3)
    labels, expected = corridor.codes, corridor.code_frequencies()
    if soft:
        labels = corridor.vqvae.soft_codes(corridor.observations, corridor.actions)
        expected = torch.stack([labels[corridor.states == state].mean(0) for state in range(4)])
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        rows = torch.randint(len(labels), (256,), generator=generator)
        loss = behavior_loss(behavior, {"observations": corridor.observations[rows], "codes": labels[rows]})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chances = torch.softmax(behavior(torch.eye(4)), 1)
    torch.testing.assert_close(chances, expected, atol=0.03, rtol=0.0)
