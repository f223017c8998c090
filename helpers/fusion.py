"""Joining the posteriors of several encoders into k candidate posteriors with weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from helpers.encoders import Posterior


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


def side_by_side(blocks: Sequence[Tensor], seen: Tensor) -> Tensor:
    """Blocks [batch, n] -> [1, batch, Σ n], zero where unseen [n_blocks, batch, 1]."""
    shown = [block * s for block, s in zip(blocks, seen, strict=True)]
    return (shown[0] if len(shown) == 1 else torch.cat(shown, -1)).unsqueeze(0)
