"""Aquadem in place of the VQ-VAE, with the algorithm files unchanged: K candidate actions per state.

    candidates  psi_1(s) ... psi_K(s), outputs of one network
    loss        -T log sum_k exp(-|psi_k(s) - a|^2 / T)              soft minimum of the K squared errors
    code        argmin_k |psi_k(s) - a|^2                            decode(s, k) = psi_k(s)
    soft codes  softmax_k(-|psi_k(s) - a|^2 / T)

    Dadashi et al., *Continuous Control with Action Quantization from Demonstrations*, ICML 2022

There is no codebook, so --dead-code-reset-every is always 0, and --no-state-conditioned has no effect. The released
code differs in K = 10 (--codebook-size), a second hidden layer for each candidate, dropout of 0.1, Xavier
initialization, T = 1e-3, no layer normalization, one code per action (--no-soft-codes), and a constant T log K in the
loss.

    python benchmark/baselines/aquadem.py bc --vqvae-steps 20000
    python benchmark/baselines/aquadem.py iql --env-id hopper-medium-v2 --vqvae-steps 20000   # flags of saq_iql.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from quantizers import main

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from vqvae import VQVAE, Metrics, coder, train_vqvae

CHUNK = 2048  # rows that encode and decode take at once, with K candidates each


class Aquadem(VQVAE):
    """VQVAE's interface around one network psi with two hidden layers, from observations to K x action_dim."""

    # T, in squared units of actions. Error after 3000 steps of 256-wide networks, K = 64, mean over seeds 1 to 3:
    #               1e-4     1e-3     1e-2     1e-1    VQVAE
    #   demo      0.0345   0.0348   0.0332   0.0531   0.0842
    #   hopper    0.0296   0.0296   0.0291   0.0402   0.0497
    temperature = 1e-2

    def __init__(self, observation_dim: int, action_dim: int, **settings):
        super().__init__(observation_dim, action_dim, **settings)
        del self.encoder, self.decoder, self.codebook, self.config["embedding_dim"]
        codebook_size = self.config["codebook_size"]
        self.register_buffer("codebook", torch.empty(codebook_size, 0))  # callers ask for its length and device
        self.network = coder(
            observation_dim, self.config["hidden_dim"], codebook_size * action_dim, self.config["layer_norm"]
        )

    def candidates(self, observations: torch.Tensor) -> torch.Tensor:
        """psi(s) (B, K, action_dim) at observations (B, observation_dim)."""
        return self.network(self.standardize(observations)).unflatten(1, (len(self.codebook), -1))

    def squared_errors(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """|psi_k(s) - a|^2 (B, K)."""
        return (self.candidates(observations) - actions[:, None]).square().sum(2)

    def loss(self, observations: torch.Tensor, actions: torch.Tensor) -> Metrics:
        """The loss of a batch (B, .), (B, .) float32; as T goes to 0 it becomes mean min_k |psi_k(s) - a|^2.

        Returns:
            loss: to minimize.
            reconstruction: squared error of the nearest candidate.
        """
        errors = self.squared_errors(observations, actions)
        loss = -self.temperature * torch.logsumexp(-errors / self.temperature, 1).mean()
        return {"loss": loss, "reconstruction": errors.amin(1).mean()}

    @torch.no_grad()
    def encode(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Codes (N,) int64 of observations (N, observation_dim) and actions (N, action_dim)."""
        chunks = zip(observations.split(CHUNK), actions.split(CHUNK))
        return torch.cat([self.squared_errors(o, a).argmin(1) for o, a in chunks])

    @torch.no_grad()
    def soft_codes(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Probabilities (N, K) of the codes, the weights that the loss gives to the candidates."""
        chunks = zip(observations.split(CHUNK), actions.split(CHUNK))
        return torch.cat([(-self.squared_errors(o, a) / self.temperature).softmax(1) for o, a in chunks])

    def fit_soft_codes(self, observations: torch.Tensor, actions: torch.Tensor) -> None:
        """Nothing to do: T is the scale of the soft codes."""

    @torch.no_grad()
    def decode(self, observations: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Actions (N, action_dim), the candidates of codes (N,) at observations (N, observation_dim); not clipped."""
        actions = []
        for o, c in zip(observations.split(CHUNK), codes.split(CHUNK)):
            actions.append(self.candidates(o)[torch.arange(len(c), device=c.device), c])
        return torch.cat(actions)


if __name__ == "__main__":
    main("aquadem", Aquadem, train_vqvae, dead_code_reset_every=0)
