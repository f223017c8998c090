"""Terms that shape the latent space. A penalty takes the state of one forward pass and returns one number, or several
under names of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def decomposed_kl(n_obs: int, stratified: bool = True) -> Callable[[Latent], dict[str, Tensor]]:
    """The KL of β-TCVAE in three parts, nats per sample, for a training set of `n_obs` samples.

    `mutual_information` E[log q(z|x) − log q(z)], `total_correlation` E[log q(z) − Σ log q(z_d)] and `dimension_wise`
    E[Σ (log q(z_d) − log p(z_d))] add up to the KL, estimated with the drawn z. The marginal q(z) is estimated within
    the batch: `stratified` weighs a sample's own posterior by 1/n_obs and the others equally (the minibatch-stratified
    estimator, averaged over which sample carries its remainder: unbiased, and exact when the batch is the data set);
    otherwise all by 1/(n_obs · batch) (minibatch-weighted: a lower bound of log q(z)).

    Source: Chen et al. 2018, *Isolating Sources of Disentanglement*, equations 2-5 and appendix C. Unlike in
    AUTOENCODIX no part is cut at zero, where an estimate below zero would lose its gradient.
    Introduced in notebook 02.
    """

    def kl(latent: Latent) -> dict[str, Tensor]:
        if len(latent.z) > 1:
            raise ValueError("decomposed_kl needs one posterior per sample, not a mixture of candidates")
        q, z = Posterior(*(v[0] for v in latent.q)), latent.z[0]  # [batch, n_latent]
        pairs = Posterior(q.mean[None], q.logvar[None]).log_density(z[:, None])  # [z of i, posterior of j, n_latent]
        log_weight = batch_weights(len(z), n_obs, stratified).log().to(z)  # [batch, batch]
        joint = torch.logsumexp(pairs.sum(-1) + log_weight, 1)
        each = torch.logsumexp(pairs + log_weight[..., None], 1).sum(-1)
        return {
            "mutual_information": (q.log_density(z).sum(-1) - joint).mean(),
            "total_correlation": (joint - each).mean(),
            "dimension_wise": (each - latent.prior.log_density(z).sum(-1)).mean(),
        }

    return kl


def batch_weights(n_batch: int, n_obs: int, stratified: bool) -> Tensor:
    """Weight [i, j] of sample j's posterior in the estimate of q(z_i), for `decomposed_kl`."""
    if not stratified:
        return torch.full((n_batch, n_batch), 1 / (n_obs * n_batch), dtype=torch.float64)
    n_obs = max(n_obs, n_batch)
    others = (n_obs - 1) / (n_obs * max(n_batch - 1, 1))
    return torch.full((n_batch, n_batch), others, dtype=torch.float64).fill_diagonal_(1 / n_obs)


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
