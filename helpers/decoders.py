"""From a latent code to a distribution over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from helpers.layers import dense_stack, linear
from helpers.likelihoods import Bernoulli, Gaussian, NegativeBinomial


class GaussianHead(nn.Module):
    """Hidden features [batch, n_in] -> `Gaussian` [batch, n_vars] of fixed variance.

    The default variance ½ makes the negative log-likelihood the published squared error (plus a constant).
    Introduced in notebook 01.
    """

    likelihood = Gaussian

    def __init__(self, n_in: int, n_vars: int, variance: float = 0.5):
        super().__init__()
        self.variance, self.mean = variance, linear(n_in, n_vars)

    def forward(self, h: Tensor, library: Tensor | None = None) -> Gaussian:
        return Gaussian(self.mean(h), self.variance)


class BernoulliHead(nn.Module):
    """Hidden features [batch, n_in] -> `Bernoulli` [batch, n_vars]. Introduced in notebook 01."""

    likelihood = Bernoulli

    def __init__(self, n_in: int, n_vars: int):
        super().__init__()
        self.logits = linear(n_in, n_vars)

    def forward(self, h: Tensor, library: Tensor | None = None) -> Bernoulli:
        return Bernoulli(self.logits(h))


class NegativeBinomialHead(nn.Module):
    """Hidden features [batch, n_in] -> `NegativeBinomial` [batch, n_vars]: softmax × library, one r per feature.

    Without a `library` [batch, 1] (total counts) it answers per 10,000 counts. The size factor follows scVI
    (observed library). Introduced in notebook 01, used in 05-08.
    """

    likelihood = NegativeBinomial

    def __init__(self, n_in: int, n_vars: int):
        super().__init__()
        self.logits = linear(n_in, n_vars)
        self.log_r = nn.Parameter(torch.randn(n_vars))

    def forward(self, h: Tensor, library: Tensor | None = None) -> NegativeBinomial:
        total = torch.full_like(h[..., :1], 1e4) if library is None else library
        log_share = torch.log_softmax(self.logits(h), -1)
        # an empty sample has no depth to scale by; one count keeps its log finite
        return NegativeBinomial(log_share + total.clamp(min=1).log(), self.log_r)


class DenseDecoder(nn.Module):
    """z [batch, n_latent] -> dense blocks shared by all modalities -> one head per modality.

    `heads`: modality -> a head built for `hidden[-1]` inputs. The answer is a dict modality -> distribution
    [batch, n_vars]. Introduced in notebook 01.
    """

    def __init__(self, n_latent: int, hidden: Sequence[int], heads: Mapping[str, nn.Module], dropout: float = 0.1):
        super().__init__()
        self.body = dense_stack([n_latent, *hidden], dropout)
        self.heads = nn.ModuleDict(heads)

    def forward(self, z: Tensor, library: Mapping[str, Tensor]) -> dict[str, Distribution]:
        h = self.body(z)
        return {name: head(h, library.get(name)) for name, head in self.heads.items()}
