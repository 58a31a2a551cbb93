"""Aquadem under the unchanged algorithm files: K candidate actions per state, in place of the VQ-VAE.

    psi_1(s) ... psi_K(s)                                            candidates, of one network
    loss = mean -T log sum_k exp(-|psi_k(s) - a|^2 / T)              soft minimum of the K squared errors
    code of (s, a) = argmin_k |psi_k(s) - a|^2,   decode(s, k) = psi_k(s)

from *Continuous Control with Action Quantization from Demonstrations* (Dadashi et al., ICML 2022). A code is a head of
the network: there is no codebook to restart, and --restart-every has no effect. The released code differs in K = 10
(--codebook-size), a second hidden layer of its own for each head, dropout of 0.1, Xavier initialization, T = 1e-3, no
layer normalization, one code per action (--no-soft-codes), and T log K added to the loss, a constant.

    python benchmark/baselines/aquadem.py bc --vqvae-steps 20000
    python benchmark/baselines/aquadem.py iql --env-id hopper-medium-v2 --vqvae-steps 20000   # flags of saq_iql.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from quantizers import VQVAE, launch, train_vqvae

CHUNK = 2048  # rows that encode and decode take at once: K candidates each


class Aquadem(VQVAE):
    """VQVAE's interface around one network psi of two hidden layers, from observations to K x action_dim."""

    # T, in squared units of actions. Error after 3000 steps of 256-wide networks, K = 64, mean of seeds 1 to 3:
    #               1e-4     1e-3     1e-2     1e-1    VQVAE
    #   demo      0.0345   0.0348   0.0332   0.0531   0.0842
    #   hopper    0.0296   0.0296   0.0291   0.0402   0.0497
    temperature = 1e-2

    def __init__(self, observation_dim: int, action_dim: int, **settings):
        super().__init__(observation_dim, action_dim, **settings)
        del self.encoder, self.decoder, self.codebook, self.config["embedding_dim"]
        codes = self.config["codebook_size"]
        self.register_buffer("codebook", torch.empty(codes, 0))  # its length and device are asked for
        self.network = self._mlp(observation_dim, self.config["hidden_dim"], codes * action_dim)

    def candidates(self, observations: torch.Tensor) -> torch.Tensor:
        """psi(s) (B, K, action_dim) of observations (B, observation_dim)."""
        return self.network(self.standardize(observations)).unflatten(1, (len(self.codebook), -1))

    def squared_errors(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """|psi_k(s) - a|^2 (B, K)."""
        return (self.candidates(observations) - actions[:, None]).square().sum(2)

    def loss(self, observations: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        """The soft-minimum loss of a batch; as T goes to 0, it becomes mean min_k |psi_k(s) - a|^2.

        Args:
            observations: (B, observation_dim) float32.
            actions: (B, action_dim) float32.

        Returns:
            Scalars: `loss` to minimize; `reconstruction`, the squared error of the nearest candidate.
        """
        errors = self.squared_errors(observations, actions)
        loss = -self.temperature * torch.logsumexp(-errors / self.temperature, 1).mean()
        return {"loss": loss, "reconstruction": errors.detach().amin(1).mean()}

    @torch.no_grad()
    def encode(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Codes (N,) int64 in 0..K-1 of observations (N, observation_dim) and actions (N, action_dim)."""
        chunks = zip(observations.split(CHUNK), actions.split(CHUNK))
        return torch.cat([self.squared_errors(o, a).argmin(1) for o, a in chunks])

    @torch.no_grad()
    def soft_codes(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Probabilities (N, K) of codes, softmax_k(-|psi_k(s) - a|^2 / T), as the loss weighs their errors."""
        chunks = zip(observations.split(CHUNK), actions.split(CHUNK))
        return torch.cat([(-self.squared_errors(o, a) / self.temperature).softmax(1) for o, a in chunks])

    @torch.no_grad()
    def decode(self, observations: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Actions (N, action_dim), the candidates of codes (N,) at observations (N, observation_dim); not clipped."""
        chunks = zip(observations.split(CHUNK), codes.split(CHUNK))
        return torch.cat([self.candidates(o)[torch.arange(len(c), device=c.device), c] for o, c in chunks])


def train_aquadem(model: Aquadem, observations, actions, steps, restart_every: int = 0, **settings) -> None:
    """`train_vqvae`, whose restarts are of codebooks."""
    train_vqvae(model, observations, actions, steps, restart_every=0, **settings)


if __name__ == "__main__":
    launch(Aquadem, train_aquadem)
