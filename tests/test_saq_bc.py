"""SAQ-BC's loss against its definition, and its policy where the best one is known."""

import math

import numpy as np
import pytest
import torch
from conftest import batch

from saq_bc import behavior_loss, decode_policy, mlp
from vqvae import VQVAE


def test_behavior_loss_is_the_mean_negative_log_likelihood():
    network, data = mlp(VQVAE(4, 2, hidden_dim=8).standardize, 6, 16), batch()
    chances = torch.softmax(network(data["observations"]), 1)
    expected = -np.mean([math.log(chances[i, code].item()) for i, code in enumerate(data["codes"])])
    loss = behavior_loss(network, data["observations"], data["codes"])["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_mean_action_is_the_expectation_over_decoded_codes():
    vqvae, observations, logits = VQVAE(4, 2, codebook_size=6, hidden_dim=8), torch.randn(5, 4), 3 * torch.randn(5, 6)
    expected = np.zeros((5, 2))
    for row in range(5):
        weights = np.exp(logits[row].double().numpy())
        for k in range(6):
            decoded = vqvae.decode(observations[row : row + 1], torch.tensor([k]))[0].numpy()
            expected[row] += weights[k] / weights.sum() * decoded
    actions = decode_policy(vqvae, observations, logits, "mean", None)
    np.testing.assert_allclose(actions, expected, atol=1e-6)


def test_codes_are_the_most_probable_or_sampled_from_the_softmax():
    vqvae, logits = VQVAE(4, 2, codebook_size=4, hidden_dim=8), torch.tensor([[0.0, 1.0, 3.0, -1.0]])
    observation, generator = torch.randn(1, 4), torch.Generator().manual_seed(0)
    decoded = vqvae.decode(observation.expand(4, 4), torch.arange(4))
    torch.testing.assert_close(decode_policy(vqvae, observation, logits, "greedy", generator), decoded[2:3])
    rows = 50_000
    actions = decode_policy(vqvae, observation.expand(rows, 4), logits.expand(rows, 4), "sampled", generator)
    codes = torch.cdist(actions, decoded).argmin(1)
    torch.testing.assert_close(actions, decoded[codes])
    frequencies = torch.bincount(codes, minlength=4) / rows
    torch.testing.assert_close(frequencies, torch.softmax(logits[0], 0), atol=0.01, rtol=0.0)


def test_saq_bc_learns_how_often_each_code_occurs_in_each_state(corridor):
    """The cross-entropy is least where pi_b(k|s) is the frequency of code k in state s."""
    behavior = mlp(corridor.vqvae.standardize, 16, 64)
    optimizer = torch.optim.AdamW(behavior.parameters(), lr=1e-3)
    for data in corridor.batches(2000):
        loss = behavior_loss(behavior, data["observations"], data["codes"])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chances = torch.softmax(behavior(torch.eye(4)), 1)
    torch.testing.assert_close(chances, corridor.code_frequencies(), atol=0.03, rtol=0.0)
