"""Maskix: an autoencoder that reads profiles with swapped values, mends them, and says which ones were swapped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from helpers.batches import Batch
from helpers.encoders import Posterior
from helpers.layers import linear
from helpers.models.assembly import Model, Penalty, flat
from helpers.models.vae import Head, vanillix, varix
from helpers.penalties import Latent


class Denoiser(nn.Module):
    """A `model` trained on corrupted input. Encoding and decoding are those of the model, on clean data.

    In `losses` each value is swapped with probability `swap` for that of another sample in the batch. Terms:
    `nll/<modality>`, where swapped values weigh `emphasis` and the others 1 − emphasis (times two, so that 0.5
    leaves the plain sum), `mask/<modality>`, the binary cross-entropy, in nats per sample, of telling from z which
    values were swapped, and the penalties of the model. Introduced in notebook 02.
    """

    latent_names = ()

    def __init__(self, model: Model, n_vars: Mapping[str, int], swap: float = 0.2, emphasis: float = 0.75):
        super().__init__()
        if not 0 < swap < 1 or not 0 <= emphasis <= 1:
            raise ValueError(f"need 0 < swap < 1 and 0 <= emphasis <= 1, got {swap} and {emphasis}")
        self.model, self.swap, self.emphasis = model, swap, emphasis
        self.detect = nn.ModuleDict({m: linear(model.prior.n_latent, n) for m, n in n_vars.items()})
        self.prior = model.prior

    def encode(self, batch: Batch) -> tuple[Posterior, Tensor]:
        """As `Model.encode`."""
        return self.model.encode(batch)

    def decode(self, z: Tensor, library: Mapping[str, Tensor] | None = None) -> dict[str, Distribution]:
        """As `Model.decode`."""
        return self.model.decode(z, library)

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Loss terms of a corrupted batch, scalars: nats per sample."""
        swapped, where = corrupt(batch, self.swap, generator)
        q, share = self.model.encode(swapped)
        drawn, terms = q.sample(generator), {}
        z = drawn[0]
        for m, p in self.model.decode(z, batch.library).items():
            weight = 2 * torch.where(where[m], self.emphasis, 1 - self.emphasis)  # [batch, n_vars]
            terms[f"nll/{m}"] = (-(p.log_prob(batch.x[m]) * weight).sum(-1) * batch.mask[m]).mean()
            guess = F.binary_cross_entropy_with_logits(self.detect[m](z), where[m].to(z.dtype), reduction="none")
            terms[f"mask/{m}"] = (guess.sum(-1) * batch.mask[m]).mean()
        latent = Latent(q, share, drawn, self.prior, batch, generator)
        return terms | flat({name: penalty(latent) for name, penalty in self.model.penalties.items()})

    @property
    def likelihoods(self) -> dict[str, type[Distribution]]:
        """Modality -> distribution class, for checks on the data."""
        return self.model.likelihoods


def corrupt(batch: Batch, swap: float, generator: torch.Generator | None) -> tuple[Batch, dict[str, Tensor]]:
    """The batch with values swapped between measured samples, feature by feature, and where [batch, n_vars]."""
    values, where = {}, {}
    for m, x in batch.x.items():
        chosen = torch.rand(x.shape, generator=generator, device=x.device) < swap
        donor = torch.randint(len(x), x.shape, generator=generator, device=x.device)
        where[m] = chosen & batch.mask[m][:, None] & batch.mask[m][donor]
        values[m] = torch.where(where[m], x.gather(0, donor), x)
    return Batch(values, batch.mask, batch.library, batch.index, batch.covariates), where


def maskix(
    n_vars: Mapping[str, int],
    n_latent: int = 16,
    n_layers: int = 2,
    factor: float = 4.0,
    dropout: float = 0.1,
    heads: Mapping[str, Head] | None = None,
    swap: float = 0.2,
    emphasis: float = 0.75,
    penalty: Penalty | None = None,
) -> Denoiser:
    """Vanillix, or with a `penalty` Varix, as a masked, denoising autoencoder; weights of the terms as in `Denoiser`.

    After AUTOENCODIX's package and its source (doi 10.1093/bioinformatics/btae020), with our dense blocks instead of
    layer norm and Mish, and a decoder that reads z alone, not z beside the guessed mask. Introduced in notebook 02.
    """
    shape = (n_vars, n_latent, n_layers, factor, dropout, heads)
    model = varix(*shape, penalty) if penalty else vanillix(*shape)
    return Denoiser(model, n_vars, swap, emphasis)
