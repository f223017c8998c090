"""One model: encoders, a fusion rule, a prior, decoders with their likelihoods, and penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from helpers.batches import Batch
from helpers.encoders import Posterior
from helpers.penalties import Latent

Fuse = Callable[[Sequence[Posterior], Tensor], tuple[Posterior, Tensor]]
Penalty = Callable[[Latent], Tensor | Mapping[str, Tensor]]


class Model(nn.Module):
    """An autoencoder put together from parts; a new model is a new combination of them.

    `losses(batch)` answers with named terms in nats per sample: `nll/<modality>` and one per penalty (a penalty of
    several parts gives `<penalty>/<part>`). It has no side effect beyond batch-norm statistics, and draws latent
    noise from the generator it is given. `latent_names` says what the latent dimensions stand for, where they stand
    for something. Introduced in notebook 01.
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        fuse: Fuse,
        prior: nn.Module,
        decoders: Sequence[nn.Module],
        penalties: Mapping[str, Penalty] | None = None,
        latent_names: Sequence[str] = (),
    ):
        super().__init__()
        self.latent_names = tuple(latent_names)
        self.encoders, self.decoders = nn.ModuleList(encoders), nn.ModuleList(decoders)
        self.fuse, self.prior, self.penalties = fuse, prior, dict(penalties or {})

    def encode(self, batch: Batch) -> tuple[Posterior, Tensor]:
        """Candidate posteriors [k, batch, n_latent] and their weights [k, batch]."""
        posteriors = [encoder(batch) for encoder in self.encoders]
        seen = [torch.stack([batch.mask[m] for m in e.modalities]).any(0) for e in self.encoders]
        return self.fuse(posteriors, torch.stack(seen))

    def decode(self, z: Tensor, library: Mapping[str, Tensor] | None = None) -> dict[str, Distribution]:
        """z [batch, n_latent] -> modality -> distribution [batch, n_vars]."""
        return {m: p for decoder in self.decoders for m, p in decoder(z, library or {}).items()}

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Loss terms of a batch, scalars: nats per sample, averaged over the batch."""
        q, weight = self.encode(batch)
        z = q.sample(generator)
        terms = dict(reconstruction(self, z, weight, batch))
        latent = Latent(q, weight, z, self.prior, batch, generator)
        return terms | flat({name: penalty(latent) for name, penalty in self.penalties.items()})

    @property
    def likelihoods(self) -> dict[str, type[Distribution]]:
        """Modality -> distribution class, for checks on the data."""
        return {m: head.likelihood for decoder in self.decoders for m, head in decoder.heads.items()}


def reconstruction(model: Model, z: Tensor, weight: Tensor, batch: Batch) -> dict[str, Tensor]:
    """`nll/<modality>`: −log p(x | z) summed over features, weighted over candidates, zero where unmeasured."""
    terms: dict[str, Tensor] = {}
    for z_k, weight_k in zip(z, weight, strict=True):
        for m, p in model.decode(z_k, batch.library).items():
            nll = -p.log_prob(batch.x[m]).sum(-1)  # [batch]
            share = (nll * (weight_k * batch.mask[m])).mean()
            terms[f"nll/{m}"] = terms[f"nll/{m}"] + share if f"nll/{m}" in terms else share
    return terms


def flat(terms: Mapping[str, Tensor | Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """{"kl": {"a": t}} -> {"kl/a": t}; numbers stay as they are."""
    named: dict[str, Tensor] = {}
    for name, value in terms.items():
        named |= {name: value} if isinstance(value, Tensor) else {f"{name}/{part}": v for part, v in value.items()}
    return named


def n_parameters(model: nn.Module) -> int:
    """Number of trained parameters. Introduced in notebook 01."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
