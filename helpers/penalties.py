"""Terms that shape the latent space. A penalty takes the state of one forward pass and returns one number, or several
under names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from helpers.batches import Batch
from helpers.encoders import Posterior


class Latent(NamedTuple):
    """What a forward pass knows about its latent space, for penalties to read."""

    q: Posterior  # [k, batch, n_latent] candidate posteriors
    weight: Tensor  # [k, batch], sums to 1 over k
    z: Tensor  # [k, batch, n_latent] one draw from each
    prior: nn.Module
    batch: Batch
    generator: torch.Generator | None


def kl(latent: Latent) -> Tensor:
    """KL(q ‖ prior), nats per sample, weighted over candidates. Introduced in notebook 01."""
    return (latent.weight * latent.prior.kl(latent.q, latent.z)).sum(0).mean()


def mmd(latent: Latent) -> Tensor:
    """Squared maximum mean discrepancy between the batch's codes and as many draws from the prior, in [0, 2].

    The kernel is exp(−‖x − y‖² / n_latent) (InfoVAE, Zhao et al. 2017, with the bandwidth of a unit Gaussian);
    the original divides by n_latent twice, which flattens it. A dimensionless number, not nats.
    Introduced in notebook 01.
    """
    z = latent.z.flatten(0, 1)
    draws = latent.prior.sample(len(z), latent.generator, z.device)
    return squared_mmd(z, draws)


def squared_mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] = (1.0,)) -> Tensor:
    """Biased (V-statistic, never negative) squared MMD of x [n, d] and y [m, d].

    The kernel is the mean of exp(−‖x − y‖² / (b d)) over bandwidths b. Introduced in notebook 01.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = squared_distance(a, b) / a.shape[-1]
        return torch.stack([torch.exp(-distance / width).mean() for width in bandwidths]).mean()

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances [n, m], with a gradient that is finite at zero distance."""
    cross = a @ b.T
    return (a.square().sum(-1)[:, None] + b.square().sum(-1)[None] - 2 * cross).clamp(min=0)
