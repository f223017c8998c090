"""From data to a posterior over the latent space."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from helpers.batches import Batch
from helpers.layers import Convolution, dense_stack, linear


class Posterior(NamedTuple):
    """A diagonal Gaussian q(z | x), or a point where `logvar` is None. Introduced in notebook 01."""

    mean: Tensor  # [..., n_latent]
    logvar: Tensor | None  # [..., n_latent], log σ²

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """z = μ + σ ε with ε from `generator` (AUTOENCODIX, equation 2); the mean where q is a point."""
        if self.logvar is None:
            return self.mean
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return torch.addcmul(self.mean, torch.exp(0.5 * self.logvar), noise)

    def log_density(self, z: Tensor) -> Tensor:
        """log q of every dimension by itself, nats, broadcast over `z` and the posterior [..., n_latent]."""
        logvar = self.logvar
        return -0.5 * ((z - self.mean).square() * torch.exp(-logvar) + logvar + math.log(2 * math.pi))


def as_published(q: Posterior) -> Posterior:
    """The bounds that AUTOENCODIX's first version puts on every posterior: log σ² ≥ 0.1 and means cut at zero.

    Kept for one comparison in notebook 01: with them no latent dimension can become precise, half of the space is
    unused, and the KL never reaches zero. Our models do without.
    """
    return Posterior(torch.where(q.mean < 1e-6, 0.0, q.mean), q.logvar.clamp(0.1, 20.0))


class DenseEncoder(nn.Module):
    """Reads one or several modalities side by side and returns a `Posterior` [batch, n_latent].

    `n_vars`: modality -> number of features, in the order in which they are concatenated. `hidden`: widths of the
    dense blocks. `stochastic=False` gives a point (Vanillix). `transform`: modality -> function applied to its
    values first, for example `torch.log1p` for counts. `bound` may restrict the posterior (`as_published`); by
    default, unlike in the original, means are not rectified and log-variances have no floor. `skip` shows the values
    to the last layer too, beside what the blocks made of them: a linear path, on which `start_at` can place a PCA.
    `noise` is the standard deviation of Gaussian noise added to the values in training, on their scale; it regularises
    like a ridge penalty of n_obs · noise² (Bishop 1995) where samples are few (notebook 04).
    Introduced in notebook 01.
    """

    def __init__(
        self,
        n_vars: Mapping[str, int],
        n_latent: int,
        hidden: Sequence[int],
        dropout: float = 0.1,
        stochastic: bool = True,
        transform: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        bound: Callable[[Posterior], Posterior] | None = None,
        skip: bool = False,
        noise: float = 0.0,
    ):
        super().__init__()
        self.modalities, self.n_latent, self.skip, self.noise = tuple(n_vars), n_latent, skip, noise
        self.stochastic, self.transform, self.bound = stochastic, dict(transform or {}), bound
        widths = [sum(n_vars.values()), *hidden]
        self.body = dense_stack(widths, dropout)
        self.head = linear(widths[-1] + skip * widths[0], n_latent * (2 if stochastic else 1))

    def forward(self, batch: Batch) -> Posterior:
        """Values per modality `batch.x` [batch, n_vars] -> posterior [batch, n_latent]."""
        x = batch.x
        parts = [self.transform[m](x[m]) if m in self.transform else x[m] for m in self.modalities]
        values = disturbed(parts[0] if len(parts) == 1 else torch.cat(parts, -1), self.noise * self.training)
        out = self.head(torch.cat([self.body(values), values], -1) if self.skip else self.body(values))
        q = Posterior(*out.chunk(2, -1)) if self.stochastic else Posterior(out, None)
        return q if self.bound is None else self.bound(q)


class ImageEncoder(nn.Module):
    """Reads pictures of one modality through strided convolutions and returns a `Posterior` [batch, n_latent].

    `shape` is (height, width, channels), of any size from 8 × 8; `width` the channels of the first convolution.
    `stochastic=False` gives a point. `skip` and `noise` as in `DenseEncoder`. Source: AUTOENCODIX, Methods, image VAE.
    Introduced in notebook 04.
    """

    def __init__(
        self,
        modality: str,
        shape: Sequence[int],
        n_latent: int,
        width: int = 16,
        stochastic: bool = True,
        skip: bool = False,
        noise: float = 0.0,
    ):
        super().__init__()
        self.modalities, self.n_latent, self.stochastic = (modality,), n_latent, stochastic
        self.skip, self.noise = skip, noise
        self.body = Convolution(shape, width)
        n_pixels = math.prod(self.body.shape)
        self.head = linear(self.body.n_out + skip * n_pixels, n_latent * (2 if stochastic else 1))

    def forward(self, batch: Batch) -> Posterior:
        """Flat pictures `batch.x[modality]` [batch, height · width · channels] -> posterior [batch, n_latent]."""
        x = disturbed(batch.x[self.modalities[0]], self.noise * self.training)
        out = self.head(torch.cat([self.body(x), x], -1) if self.skip else self.body(x))
        return Posterior(*out.chunk(2, -1)) if self.stochastic else Posterior(out, None)


def disturbed(x: Tensor, sd: float) -> Tensor:
    """Values with Gaussian noise of standard deviation `sd` on them. Introduced in notebook 04."""
    return x + sd * torch.randn_like(x) if sd else x
