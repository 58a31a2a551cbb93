"""SAQ-BC's loss against its definition, and its policy where the best one is known."""

import math

import numpy as np
import pytest
import torch
from known import batch

from saq_bc import behavior_loss, mlp
from vqvae import VQVAE


def test_behavior_loss_is_the_mean_negative_log_likelihood():
    network, data = mlp(VQVAE(4, 2, hidden_dim=8).standardize, 6, 16), batch()
    chances = torch.softmax(network(data["observations"]), 1)
    expected = -np.mean([math.log(chances[i, code].item()) for i, code in enumerate(data["codes"])])
    loss = behavior_loss(network, data)["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_saq_bc_learns_how_often_each_code_occurs_in_each_state(corridor):
    """The cross-entropy is least where pi_b(k|s) is the frequency of code k in state s."""
    behavior = mlp(corridor.vqvae.standardize, 16, 64)
    optimizer = torch.optim.AdamW(behavior.parameters(), lr=1e-3)
    for data in corridor.batches(2000):
        loss = behavior_loss(behavior, data)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chances = torch.softmax(behavior(torch.eye(4)), 1)
    torch.testing.assert_close(chances, corridor.code_frequencies(), atol=0.03, rtol=0.0)
