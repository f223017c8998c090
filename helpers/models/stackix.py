"""Stackix: one variational autoencoder per modality, and one more on top of their codes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from helpers import penalties
from helpers.batches import Batch
from helpers.encoders import Posterior
from helpers.models.assembly import Model, Penalty
from helpers.models.vae import Head, varix


class Stack(nn.Module):
    """Two storeys of models: `ground` (modality -> model of that modality alone) and `top`, a model of their codes.

    The top reads posterior means and no gradient goes down from it, so that the ground floor trains as if it were
    alone; both storeys learn in the same steps, where the original trains one after the other. Loss terms:
    `nll/<modality>` and `<penalty>/<modality>` of the ground floor, `nll/stack` (how well the top reconstructs all
    codes) and `<penalty>/stack`. A modality that a sample lacks is masked in both storeys.
    Introduced in notebook 02.
    """

    latent_names = ()

    def __init__(self, ground: Mapping[str, Model], top: Model):
        super().__init__()
        self.ground, self.top = nn.ModuleDict(ground), top
        self.prior = top.prior

    def codes(self, batch: Batch) -> Batch:
        """The same samples with posterior means [batch, n_codes] for values; zeros where a modality is missing."""
        means = {m: model.encode(batch)[0].mean[0].detach() for m, model in self.ground.items()}
        return Batch(means, batch.mask, {}, batch.index, batch.covariates)

    def encode(self, batch: Batch) -> tuple[Posterior, Tensor]:
        """As `Model.encode`: candidates [k, batch, n_latent] and their weights [k, batch]."""
        return self.top.encode(self.codes(batch))

    def decode(self, z: Tensor, library: Mapping[str, Tensor] | None = None) -> dict[str, Distribution]:
        """z [batch, n_latent] -> codes -> modality -> distribution over its features [batch, n_vars]."""
        codes = self.top.decode(z)
        return {m: model.decode(codes[m].mean, library)[m] for m, model in self.ground.items()}

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Loss terms of both storeys, scalars: nats per sample."""
        terms: dict[str, Tensor] = {}
        for m, model in self.ground.items():
            terms |= {k if "/" in k else f"{k}/{m}": v for k, v in model.losses(batch, generator).items()}
        upper = self.top.losses(self.codes(batch), generator)
        stacked = sum(v for k, v in upper.items() if k.startswith("nll/"))
        return terms | {"nll/stack": stacked} | {f"{k}/stack": v for k, v in upper.items() if not k.startswith("nll/")}

    @property
    def likelihoods(self) -> dict[str, type[Distribution]]:
        """Modality -> distribution class, for checks on the data."""
        return {m: found for model in self.ground.values() for m, found in model.likelihoods.items()}


def stackix(
    n_vars: Mapping[str, int],
    n_latent: int = 16,
    n_layers: int = 2,
    factor: float = 4.0,
    dropout: float = 0.1,
    n_codes: Mapping[str, int] | int | None = None,
    heads: Mapping[str, Head] | None = None,
    penalty: Penalty = penalties.kl,
) -> Stack:
    """A Varix per modality, and a Varix of `n_latent` dimensions on their concatenated posterior means.

    `n_codes`: latent dimensions per modality, an eighth of its features (and no fewer than `n_latent`) unless given.
    The published scores of Stackix are those of reconstructing the codes; here `tasks.reconstruct` decodes down to
    the features, and the loss term `nll/stack` tells the other. Source: AUTOENCODIX, Methods, Stackix.
    Introduced in notebook 02.
    """
    given = n_codes if isinstance(n_codes, Mapping) else {m: n_codes for m in n_vars}
    width = {m: given[m] or max(n // 8, min(n_latent, n)) for m, n in n_vars.items()}
    return Stack(
        ground={m: varix({m: n}, width[m], n_layers, factor, dropout, heads, penalty) for m, n in n_vars.items()},
        top=varix(width, n_latent, n_layers, factor, dropout, penalty=penalty),
    )
