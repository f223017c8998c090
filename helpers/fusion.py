"""Joining the posteriors of several encoders into k candidate posteriors with weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from helpers.encoders import Posterior

PARTS = ("own", "batch", "expert")  # what a modality has besides the joint latent


def concatenate(posteriors: Sequence[Posterior], mask: Tensor) -> tuple[Posterior, Tensor]:
    """Posteriors side by side: one candidate [1, batch, Σ n_latent] of weight 1 [1, batch].

    `mask` [n_encoders, batch] says which encoder saw data; where one did not, its block is N(0, I), so a hidden
    modality cannot change the posterior. A single encoder passes through: early integration is one encoder that
    reads several modalities. Introduced in notebook 01.
    """
    if len({q.logvar is None for q in posteriors}) > 1:
        raise ValueError("cannot concatenate point and Gaussian posteriors: make all encoders stochastic or none")
    seen = mask.unsqueeze(-1)  # [n_encoders, batch, 1]
    weight = torch.ones(1, mask.shape[1], device=mask.device)
    mean = side_by_side([q.mean for q in posteriors], seen)
    logvars = [q.logvar for q in posteriors if q.logvar is not None]
    return Posterior(mean, side_by_side(logvars, seen) if logvars else None), weight


def mixture(posteriors: Sequence[Posterior], mask: Tensor) -> tuple[Posterior, Tensor]:
    """Each posterior a candidate of its own [n_encoders, batch, n_latent], of equal weight among those that saw data.

    `mask` [n_encoders, batch]; where an encoder saw nothing its candidate is N(0, I) with weight zero. The mixture
    of experts of MMVAE (Shi et al. 2019), and the separate latent spaces of X-modalix. Introduced in notebook 04.
    """
    if len({q.logvar is None for q in posteriors}) > 1:
        raise ValueError("cannot mix point and Gaussian posteriors: make all encoders stochastic or none")
    seen = mask.to(posteriors[0].mean.dtype)
    mean = torch.stack([q.mean for q in posteriors]) * seen[..., None]
    logvars = [q.logvar for q in posteriors if q.logvar is not None]
    logvar = torch.stack(logvars) * seen[..., None] if logvars else None
    return Posterior(mean, logvar), seen / seen.sum(0).clamp(min=1)


def product(posteriors: Sequence[Posterior], mask: Tensor, prior: bool = True) -> tuple[Posterior, Tensor]:
    """The normalised product of Gaussians: one candidate [1, batch, n_latent] of weight 1 [1, batch].

    Precisions add, and the mean is weighed by them: Σ μ / σ² over Σ 1 / σ², over the encoders that `mask`
    [n_encoders, batch] says saw data. `prior`: N(0, I) is one more expert, which keeps the variance at 1 or below and
    makes a sample that nobody saw N(0, I); without it one expert alone passes through as it is, and such a sample is
    N(0, I) all the same. Source: Wu and Goodman 2018 (MVAE), equation 2; MIMA does not say whether it has the prior
    expert. Raises `ValueError` for points, which have no precision. Introduced in notebook 07.
    """
    if any(q.logvar is None for q in posteriors):
        raise ValueError("a product needs posteriors with a variance: make all encoders stochastic")
    seen = mask.to(posteriors[0].mean.dtype)[..., None]  # [n_encoders, batch, 1]
    precision = torch.stack([torch.exp(-q.logvar) for q in posteriors]) * seen
    total = precision.sum(0) + (1.0 if prior else (seen.sum(0) == 0).to(precision.dtype))
    mean = (precision * torch.stack([q.mean for q in posteriors])).sum(0) / total
    return Posterior(mean[None], -torch.log(total)[None]), torch.ones_like(seen[:1, :, 0])


class SharedPrivate:
    """Fuses encoders that speak of three things: what all modalities share, what is one's own, and the batch.

    Every encoder gives [shared | own | batch], each of `n_latent` dimensions, for the modality that `names` says. The
    shared ones are joined by `join` (a product of experts), and all is put side by side as one candidate: the joint
    latent first, then each modality's own, batch and expert (its shared latent by itself), at `places[name]`, with
    names "shared", "own/rna", "batch/rna", "expert/rna". Source: MIMA, Methods, Model training. Introduced in
    notebook 07.
    """

    def __init__(self, names: Sequence[str], n_latent: int, join: Callable = product):
        self.names, self.n_latent, self.join = tuple(names), n_latent, join
        blocks = ["shared", *(f"{part}/{m}" for m in names for part in PARTS)]
        self.places = {name: slice(k * n_latent, (k + 1) * n_latent) for k, name in enumerate(blocks)}

    def __call__(self, posteriors: Sequence[Posterior], mask: Tensor) -> tuple[Posterior, Tensor]:
        parts = [[Posterior(*pair) for pair in zip(*(v.chunk(3, -1) for v in q), strict=True)] for q in posteriors]
        joint, weight = self.join([shared for shared, _, _ in parts], mask)
        if len(joint.mean) > 1:
            raise ValueError("SharedPrivate needs a join with one candidate, such as fusion.product")
        blocks = [(joint.mean[0], joint.logvar[0])]
        for (shared, own, batch), seen in zip(parts, mask.to(joint.mean.dtype)[..., None], strict=True):
            blocks += [(q.mean * seen, q.logvar * seen) for q in (own, batch, shared)]
        mean, logvar = (torch.cat(side, -1)[None] for side in zip(*blocks, strict=True))
        return Posterior(mean, logvar), weight


def side_by_side(blocks: Sequence[Tensor], seen: Tensor) -> Tensor:
    """Blocks [batch, n] -> [1, batch, Σ n], zero where unseen [n_blocks, batch, 1]."""
    shown = [block * s for block, s in zip(blocks, seen, strict=True)]
    return (shown[0] if len(shown) == 1 else torch.cat(shown, -1)).unsqueeze(0)
