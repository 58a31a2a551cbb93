"""SAQ-BC where the best policy is known."""

import pytest
import torch

import saq_bc


@pytest.mark.parametrize("soft_codes", [True, False])
def test_saq_bc_learns_how_often_each_code_occurs_in_each_state(corridor, learn_corridor, soft_codes):
    """The cross-entropy is minimal where pi_b(k|s) is the frequency of code k, or its mean probability, in state s."""
    learned = learn_corridor(saq_bc, soft_codes=soft_codes, bc_steps=1000)
    expected = corridor.code_frequencies(learned.vqvae)
    if soft_codes:
        p = learned.vqvae.soft_codes(corridor.observations, corridor.actions)
        expected = torch.stack([p[corridor.states == state].mean(0) for state in range(4)])
    torch.testing.assert_close(learned.behavior.softmax(1), expected, atol=0.03, rtol=0.0)
