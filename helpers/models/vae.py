"""Vanillix and Varix: the plain and the variational autoencoder of AUTOENCODIX, as combinations of parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from helpers import fusion, penalties
from helpers.decoders import DenseDecoder, GaussianHead, NegativeBinomialHead
from helpers.encoders import DenseEncoder, Posterior
from helpers.layers import hidden_widths
from helpers.models.assembly import Model, Penalty
from helpers.models.storage import recipe
from helpers.priors import StandardNormal

Head = Callable[[int, int], nn.Module]


@recipe
def varix(
    n_vars: Mapping[str, int],
    n_latent: int = 16,
    n_layers: int = 2,
    factor: float = 4.0,
    dropout: float = 0.1,
    heads: Mapping[str, Head] | None = None,
    penalty: Penalty = penalties.kl,
    bound: Callable[[Posterior], Posterior] | None = None,
    skip: bool = False,
) -> Model:
    """Variational autoencoder: modalities side by side, N(0, I) prior, symmetric decoder (AUTOENCODIX, Methods).

    `n_vars`: modality -> features, for example `Samples.n_vars`. `heads`: modality -> head class, a Gaussian of
    variance ½ (squared error) unless given. `penalty`: `penalties.kl` or `penalties.mmd`; its loss term carries
    its name. The weight β is given to `training.fit(weights={"kl": β})`. `bound` restricts the posterior, see
    `encoders.as_published`. `skip` adds a linear path to encoder and decoder, on which `controls.start_at` can place
    a PCA before training (notebook 02). Introduced in notebook 01.
    """
    terms = {penalty.__name__: penalty}
    return dense_autoencoder(n_vars, n_latent, n_layers, factor, dropout, heads, terms, bound, skip)


@recipe
def vanillix(
    n_vars: Mapping[str, int],
    n_latent: int = 16,
    n_layers: int = 2,
    factor: float = 4.0,
    dropout: float = 0.1,
    heads: Mapping[str, Head] | None = None,
    skip: bool = False,
) -> Model:
    """Plain autoencoder: Varix with a point for a posterior and no penalty. Introduced in notebook 01."""
    return dense_autoencoder(n_vars, n_latent, n_layers, factor, dropout, heads, {}, skip=skip)


@recipe
def disentanglix(
    n_vars: Mapping[str, int],
    n_latent: int = 16,
    n_layers: int = 2,
    factor: float = 4.0,
    dropout: float = 0.1,
    heads: Mapping[str, Head] | None = None,
    n_obs: int = 1000,
    stratified: bool = True,
) -> Model:
    """β-TCVAE: Varix whose KL comes in three parts, `penalties.decomposed_kl`, for a training set of `n_obs` samples.

    `training.fit(weights={"kl/total_correlation": 6})` presses for independent dimensions; {"kl": β} on all parts is
    β-VAE again. Source: Chen et al. 2018. Introduced in notebook 02.
    """
    return varix(n_vars, n_latent, n_layers, factor, dropout, heads, penalties.decomposed_kl(n_obs, stratified))


def dense_autoencoder(
    n_vars: Mapping[str, int],
    n_latent: int,
    n_layers: int,
    factor: float,
    dropout: float,
    heads: Mapping[str, Head] | None,
    terms: Mapping[str, Penalty],
    bound: Callable[[Posterior], Posterior] | None = None,
    skip: bool = False,
) -> Model:
    """One encoder that reads all modalities and its mirror image; stochastic where a penalty asks for it."""
    hidden = hidden_widths(sum(n_vars.values()), n_latent, n_layers, factor)
    chosen = {m: (heads or {}).get(m, GaussianHead) for m in n_vars}
    counts = {m: torch.log1p for m, head in chosen.items() if head is NegativeBinomialHead}
    mirror = hidden[::-1]
    last = (mirror[-1] if mirror else n_latent) + skip * n_latent
    return Model(
        encoders=[DenseEncoder(n_vars, n_latent, hidden, dropout, bool(terms), counts, bound, skip)],
        fuse=fusion.concatenate,
        prior=StandardNormal(n_latent),
        decoders=[DenseDecoder(n_latent, mirror, {m: chosen[m](last, n) for m, n in n_vars.items()}, dropout, skip)],
        penalties=terms,
    )
