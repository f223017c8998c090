"""From a latent code to a distribution over the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from helpers.layers import LinkedLinear, dense_stack, linear
from helpers.likelihoods import Bernoulli, Foreground, Gaussian, NegativeBinomial, Shares

Layer = Callable[[int, int], nn.Module]


class GaussianHead(nn.Module):
    """Hidden features [batch, n_in] -> `Gaussian` [batch, n_vars] of fixed variance.

    `layer(n_in, n_vars)` makes the last layer of this and the other heads, a full one unless given.

    The default variance ½ makes the negative log-likelihood the published squared error (plus a constant).
    Introduced in notebook 01.
    """

    likelihood = Gaussian

    def __init__(self, n_in: int, n_vars: int, variance: float = 0.5, layer: Layer = linear):
        super().__init__()
        self.variance, self.mean = variance, layer(n_in, n_vars)

    def forward(self, h: Tensor, library: Tensor | None = None) -> Gaussian:
        return Gaussian(self.mean(h), self.variance)


class BernoulliHead(nn.Module):
    """Hidden features [batch, n_in] -> `Bernoulli` [batch, n_vars]. Introduced in notebook 01."""

    likelihood = Bernoulli

    def __init__(self, n_in: int, n_vars: int, layer: Layer = linear):
        super().__init__()
        self.logits = layer(n_in, n_vars)

    def forward(self, h: Tensor, library: Tensor | None = None) -> Bernoulli:
        return Bernoulli(self.logits(h))


class NegativeBinomialHead(nn.Module):
    """Hidden features [batch, n_in] -> `NegativeBinomial` [batch, n_vars]: softmax × library, one r per feature.

    Without a `library` [batch, 1] (total counts) it answers per 10,000 counts. The size factor follows scVI
    (observed library). Introduced in notebook 01, used in 05-08.
    """

    likelihood = NegativeBinomial

    def __init__(self, n_in: int, n_vars: int, layer: Layer = linear):
        super().__init__()
        self.logits = layer(n_in, n_vars)
        self.log_r = nn.Parameter(torch.randn(n_vars))

    def forward(self, h: Tensor, library: Tensor | None = None) -> NegativeBinomial:
        total = torch.full_like(h[..., :1], 1e4) if library is None else library
        # an empty sample has no depth to scale by; one count keeps its log finite
        return NegativeBinomial(Shares.of(self.logits, h, total.clamp(min=1).log()), self.log_r)


class TotalHead(nn.Module):
    """As `NegativeBinomialHead`, but the total count of a sample is decoded too, not read off the data.

    With it the total may change when a gene is silenced. `total` is where it starts, the mean library size. Source: the
    open question of Schuster 2024 (thesis, paper III). Introduced in notebook 06.
    """

    likelihood = NegativeBinomial

    def __init__(self, n_in: int, n_vars: int, total: float = 1e4, layer: Layer = linear):
        super().__init__()
        self.logits, self.log_total = layer(n_in, n_vars), linear(n_in, 1)
        nn.init.constant_(self.log_total.bias, math.log(total))
        self.log_r = nn.Parameter(torch.randn(n_vars))

    def forward(self, h: Tensor, library: Tensor | None = None) -> NegativeBinomial:
        return NegativeBinomial(Shares.of(self.logits, h, self.log_total(h)), self.log_r)


class ForegroundHead(nn.Module):
    """Hidden features [batch, n_in] -> `Foreground` [batch, n_vars]: protein counts over a background.

    Means are decoded as they are, without a library size. Introduced in notebook 06.
    """

    likelihood = Foreground

    def __init__(self, n_in: int, n_vars: int, layer: Layer = linear):
        super().__init__()
        self.background, self.excess, self.share = (layer(n_in, n_vars) for _ in range(3))
        self.log_r = nn.Parameter(torch.randn(n_vars))

    def forward(self, h: Tensor, library: Tensor | None = None) -> Foreground:
        return Foreground(self.background(h), self.excess(h), self.share(h), self.log_r)


class Branch(nn.Module):
    """Layers with ReLU that one modality has for itself, before its head: `head(n_in, n_vars)` of that many widths.

    Introduced in notebook 06.
    """

    def __init__(self, n_in: int, hidden: Sequence[int], n_vars: int, head: Callable[[int, int], nn.Module]):
        super().__init__()
        self.body, self.head = rectified([n_in, *hidden]), head([n_in, *hidden][-1], n_vars)
        self.likelihood = self.head.likelihood

    def forward(self, h: Tensor, library: Tensor | None = None) -> Distribution:
        return self.head(self.body(h), library)


def rectified(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths, each with ReLU; without normalisation or dropout, so that a code found with the
    decoder frozen means what it means in training. Introduced in notebook 05.
    """
    pairs = zip(widths, widths[1:], strict=False)
    return nn.Sequential(*(layer for a, b in pairs for layer in (linear(a, b), nn.ReLU())))


class DenseDecoder(nn.Module):
    """z [batch, n_latent] -> dense blocks shared by all modalities -> one head per modality.

    `heads`: modality -> a head built for `hidden[-1]` inputs, or with `skip`, which shows z itself to the heads too,
    for `hidden[-1] + n_latent`. The answer is a dict modality -> distribution [batch, n_vars].
    Introduced in notebook 01.
    """

    def __init__(
        self,
        n_latent: int,
        hidden: Sequence[int],
        heads: Mapping[str, nn.Module],
        dropout: float = 0.1,
        skip: bool = False,
    ):
        super().__init__()
        self.skip = skip
        self.body = dense_stack([n_latent, *hidden], dropout)
        self.heads = nn.ModuleDict(heads)

    def forward(self, z: Tensor, library: Mapping[str, Tensor]) -> dict[str, Distribution]:
        h = torch.cat([self.body(z), z], -1) if self.skip else self.body(z)
        return {name: head(h, library.get(name)) for name, head in self.heads.items()}


class SumDecoder(nn.Module):
    """Adds up some blocks of z, all of one size, and decodes the sum: z [batch, …] -> dict modality -> distribution.

    `blocks`: their places in z. `decoder` takes z [batch, n_latent]. Source: MIMA, where the shared, the modality's own
    and the batch's latents are "summed up and passed through" the decoder. Introduced in notebook 07.
    """

    def __init__(self, blocks: Sequence[slice], decoder: nn.Module):
        super().__init__()
        self.blocks, self.decoder = tuple(blocks), decoder

    @property
    def heads(self) -> nn.ModuleDict:
        """Modality -> head."""
        return self.decoder.heads

    def forward(self, z: Tensor, library: Mapping[str, Tensor]) -> dict[str, Distribution]:
        return self.decoder(torch.stack([z[..., block] for block in self.blocks]).sum(0), library)


class OntologyDecoder(nn.Module):
    """z -> terms, level by level along an ontology's links -> one head per modality that sees its own terms only.

    `links`: arrays [n_lower, n_upper], from the latent level downwards; none where features hang on the latent terms
    directly. `members`: modality -> [n_vars, n_terms of the lowest level]. `heads`: modality -> head class. Without
    `n_latent`, z [batch, n_terms] is the activity of the top terms; with it, `n_full` fully connected layers lead
    from z [batch, n_latent] to the top terms. `between` makes a non-linearity for every level (`nn.Tanh`; none by
    default, as published: the decoder is then affine, whatever its depth). `nonnegative`: no link may be negative.
    Introduced in notebook 03.
    """

    def __init__(
        self,
        links: Sequence[np.ndarray],
        members: Mapping[str, np.ndarray],
        heads: Mapping[str, type[nn.Module]],
        n_latent: int | None = None,
        n_full: int = 1,
        dropout: float = 0.1,
        between: Callable[[], nn.Module] = nn.Identity,
        nonnegative: bool = False,
    ):
        super().__init__()
        n_lowest = next(iter(members.values())).shape[1]
        n_top = links[0].shape[1] if len(links) else n_lowest
        hidden = dense_stack([n_latent or n_top] + [n_top] * (n_full - 1), dropout)
        self.full = (
            nn.Sequential(*hidden, linear(n_top if n_full > 1 else n_latent, n_top)) if n_latent else nn.Identity()
        )
        self.levels = nn.ModuleList(LinkedLinear(each, nonnegative) for each in links)
        self.between = nn.ModuleList(between() for _ in links)
        linked = {m: lambda n_in, n_vars, m=m: LinkedLinear(members[m], nonnegative) for m in members}
        self.heads = nn.ModuleDict({m: heads[m](n_lowest, len(members[m]), layer=linked[m]) for m in members})

    def activities(self, z: Tensor) -> list[Tensor]:
        """Term activities [batch, n_terms] of every level, from the top downwards."""
        found = [self.full(z)]
        for level, between in zip(self.levels, self.between, strict=True):
            found.append(between(level(found[-1])))
        return found

    def forward(self, z: Tensor, library: Mapping[str, Tensor]) -> dict[str, Distribution]:
        h = self.activities(z)[-1]
        return {name: head(h, library.get(name)) for name, head in self.heads.items()}
