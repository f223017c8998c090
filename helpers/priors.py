"""Distributions over the latent space before any data is seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from helpers.encoders import Posterior


class StandardNormal(nn.Module):
    """N(0, I) in `n_latent` dimensions. Introduced in notebook 01."""

    def __init__(self, n_latent: int):
        super().__init__()
        self.n_latent = n_latent

    def kl(self, q: Posterior, z: Tensor) -> Tensor:
        """KL(q ‖ N(0, I)) in nats, [...], in closed form: ½ Σ (μ² + σ² − 1 − log σ²); `z` is not needed."""
        if q.logvar is None:
            raise ValueError("a point posterior has no KL divergence: use a stochastic encoder or drop the penalty")
        return 0.5 * (q.mean.square() + q.logvar.exp() - 1.0 - q.logvar).sum(-1)

    def log_density(self, z: Tensor) -> Tensor:
        """log p of every dimension by itself, nats, of the shape of `z`: the prior factorises."""
        return -0.5 * (z.square() + math.log(2 * math.pi))

    def sample(self, n: int, generator: torch.Generator | None = None, device: torch.device | None = None) -> Tensor:
        """Draws [n, n_latent]."""
        return torch.randn(n, self.n_latent, generator=generator, device=device)
