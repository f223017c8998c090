"""What a decoder says about the data: distributions with exact `log_prob` in nats per value.

They follow `torch.distributions`: `log_prob`, `mean`, `variance`, `sample`. The reconstruction term of every
model is `-log_likelihood(p, x)`, that is `-p.log_prob(x).sum(-1)`, also of counts that stay sparse. `saturated(x)` is
the log density of x where the mean is x itself, the most that any mean can give it; half the deviance is
`(p.saturated(x) - p.log_prob(x)).sum(-1)`, zero for a perfect reconstruction (McCullagh and Nelder 1989, section 2.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from helpers import negative_binomial
from helpers.batches import Counts, Samples
from helpers.wording import few


def log_likelihood(p: Distribution, x: Tensor | Counts) -> Tensor:
    """log p(x) of every sample, nats [batch]: summed over features, of dense values [batch, n_vars] or stored counts.

    Introduced in notebook 06.
    """
    if isinstance(x, Tensor):
        return p.log_prob(x).sum(-1)
    return p.log_prob_of(x) if hasattr(p, "log_prob_of") else p.log_prob(x.dense()).sum(-1)


class Gaussian(Distribution):
    """Normal distribution of one fixed or learned variance per value or feature.

    With variance ½ the negative log-density is the squared error plus ½ log π: the mean-squared-error loss of
    AUTOENCODIX, in nats. Shapes: `mean` [..., n_vars], `variance` a number or [n_vars]. Introduced in notebook 01.
    """

    support = constraints.real
    has_rsample = False

    def __init__(self, mean: Tensor, variance: Tensor | float = 0.5):
        self.loc, self.scale2 = mean, variance
        super().__init__(batch_shape=mean.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return torch.as_tensor(self.scale2, dtype=self.loc.dtype, device=self.loc.device).expand_as(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats, of the shape of `value`."""
        log = torch.log(self.scale2) if isinstance(self.scale2, Tensor) else math.log(self.scale2)
        return (value - self.loc).square() * (-0.5 / self.scale2) - 0.5 * (log + math.log(2 * math.pi))

    def saturated(self, value: Tensor) -> Tensor:
        """−½ log 2πσ², nats, of the shape of `value`. Introduced in notebook 04."""
        return Gaussian(value, self.scale2).log_prob(value)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc.detach() + noise * self.variance.detach().sqrt()


class Bernoulli(Distribution):
    """Binary or unit-interval values from logits [..., n_vars]: binary cross-entropy in nats.

    For values strictly between 0 and 1 this is the cross-entropy the original uses, not a normalised density.
    Introduced in notebook 01.
    """

    support = constraints.unit_interval

    def __init__(self, logits: Tensor):
        self.logits = logits
        super().__init__(batch_shape=logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        """Negative cross-entropy, nats, of the shape of `value`."""
        return value * self.logits - F.softplus(self.logits)

    def saturated(self, value: Tensor) -> Tensor:
        """x log x + (1 − x) log(1 − x), nats, of the shape of `value`; 0 at 0 and 1. Introduced in notebook 04."""
        return torch.xlogy(value, value) + torch.xlogy(1 - value, 1 - value)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return torch.bernoulli(self.mean.detach().expand(self._extended_shape(sample_shape)))


@dataclass(frozen=True)
class Shares:
    """Log means of counts as the log-softmax of logits plus the logarithm of a total.

    `source` [batch, n_vars] are the logits, or with a linear `layer` its input [batch, n_in]: sparse counts then never
    need them all at once. One row may stand for all of a batch. Introduced in notebook 06.
    """

    source: Tensor
    log_total: Tensor  # [batch, 1] log of the expected sum of all counts
    layer: nn.Linear | None = None

    @cached_property
    def logits(self) -> Tensor:
        """[batch, n_vars]"""
        return self.source if self.layer is None else self.layer(self.source)

    @property
    def shape(self) -> torch.Size:
        """(batch, n_vars)"""
        n_vars = self.source.shape[-1] if self.layer is None else self.layer.out_features
        return torch.broadcast_shapes((*self.source.shape[:-1], n_vars), self.log_total.shape)

    @classmethod
    def of(cls, layer: nn.Module, h: Tensor, log_total: Tensor) -> Shares:
        """What a last layer makes of h [batch, n_in]."""
        plain = type(layer) is nn.Linear and layer.bias is not None and h.dim() == 2
        return cls(h, log_total, layer) if plain else cls(layer(h), log_total)


class NegativeBinomial(Distribution):
    """Counts with mean μ and variance μ + μ²/r.

    Shapes: `log_mean` [batch, n_vars] natural logarithm of μ, or `Shares` of a total; `log_r` [n_vars] or
    [batch, n_vars] of the inverse dispersion r. The gamma terms are computed on non-zero counts only, since they vanish
    at x = 0. Value and gradient are exact (tested against scipy). Introduced in notebook 01, used throughout 05-08.
    """

    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor | Shares, log_r: Tensor):
        self.shares = log_mean if isinstance(log_mean, Shares) else None
        self.given = None if self.shares else log_mean
        self.log_r = log_r
        super().__init__(batch_shape=log_mean.shape, validate_args=False)

    @property
    def log_mean(self) -> Tensor:
        """log μ [batch, n_vars]."""
        return self.given if self.shares is None else torch.log_softmax(self.shares.logits, -1) + self.shares.log_total

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        log_mean = self.log_mean
        return log_mean.exp() + (2 * log_mean - self.log_r).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability, nats, of the shape of `value`."""
        return negative_binomial.of_dense(value, self.log_mean, self.log_r)

    def log_prob_of(self, counts: Counts) -> Tensor:
        """Log probability of every sample, nats [batch], from its stored counts alone; dense values are not made."""
        if self.shares is None or self.log_r.dim() > 1:
            return self.log_prob(counts.dense()).sum(-1)
        shares = self.shares
        if shares.layer is None:
            return negative_binomial.of_stored(counts, shares.logits, shares.log_total, self.log_r)
        return negative_binomial.of_layer(counts, shares.source, shares.layer, shares.log_total, self.log_r)

    def saturated(self, value: Tensor) -> Tensor:
        """Log probability of a Poisson distribution of mean x: the limit r → ∞, which no r surpasses, so that a
        learned dispersion cannot fall below it. Nats, of the shape of `value`. Introduced in notebook 04."""
        return torch.special.xlogy(value, value) - value - torch.lgamma(value + 1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        r = self.log_r.detach().exp().expand(shape)
        return torch.poisson(torch._standard_gamma(r) / r * self.mean.detach())


class Foreground(Distribution):
    """Counts of a protein: background with probability π, else more of it, foreground; both negative binomial.

    Shapes [batch, n_vars]: `log_background` and `log_excess`, natural logarithms of the background's mean and of what
    the foreground has beyond it; `logits` of π; `log_r` [n_vars]. Source: totalVI (Gayoso et al. 2021), equation of the
    protein likelihood; background and foreground are both decoded here. Introduced in notebook 06.
    """

    support = constraints.nonnegative_integer

    def __init__(self, log_background: Tensor, log_excess: Tensor, logits: Tensor, log_r: Tensor):
        self.background = NegativeBinomial(log_background, log_r)
        self.foreground = NegativeBinomial(torch.logaddexp(log_background, log_excess), log_r)
        self.logits = logits
        super().__init__(batch_shape=logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        share = torch.sigmoid(self.logits)
        return share * self.background.mean + (1 - share) * self.foreground.mean

    @property
    def variance(self) -> Tensor:
        share, low, high = torch.sigmoid(self.logits), self.background, self.foreground
        within = share * low.variance + (1 - share) * high.variance
        return within + share * (1 - share) * (high.mean - low.mean).square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability, nats, of the shape of `value`."""
        low = F.logsigmoid(self.logits) + self.background.log_prob(value)
        return torch.logaddexp(low, F.logsigmoid(-self.logits) + self.foreground.log_prob(value))

    def saturated(self, value: Tensor) -> Tensor:
        """As of `NegativeBinomial`, which no mixture of two surpasses."""
        return self.background.saturated(value)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        low, high = self.background.sample(sample_shape), self.foreground.sample(sample_shape)
        return torch.where(torch.rand_like(low) < torch.sigmoid(self.logits), low, high)


def check_support(model: nn.Module, samples: Samples) -> None:
    """Raise `ValueError` where data lie outside the support of their likelihood: negative or broken counts, samples
    without any count, values not in 0…1. Introduced in notebook 01.
    """
    for name, likelihood in getattr(model, "likelihoods", {}).items():
        if name not in samples.modalities:
            continue
        support, values = likelihood.support, samples.modalities[name].rows.values
        low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
        least, most = (float(v) for v in values.aminmax()) if len(values) else (0.0, 0.0)
        if (low is not None and least < low) or (high is not None and most > high):
            below = 0 if low is None else int((values < low).sum())
            above = 0 if high is None else int((values > high).sum())
            raise ValueError(
                f"modality {name!r} holds {below} values below {low} and {above} above {high}, which "
                f"{likelihood.__name__} cannot describe: give raw counts, rescale, or choose another head"
            )
        if support is constraints.nonnegative_integer:
            check_counts(name, samples)


def check_counts(name: str, samples: Samples) -> None:
    """Raise `ValueError` for counts that are no whole numbers, and for samples of which nothing was counted.

    Introduced in notebook 06.
    """
    modality = samples.modalities[name]
    broken = sum(int((part != part.trunc()).sum()) for part in modality.rows.values.flatten().split(1 << 22))
    if broken:
        raise ValueError(
            f"modality {name!r} holds {broken} values that are no whole numbers: a likelihood of counts needs raw "
            "counts, not normalised or logarithmic ones"
        )
    if modality.library is None:
        raise ValueError(
            f"modality {name!r} is modelled as counts, but the data do not say that it holds counts: load them by "
            f"datasets.load, or set mdata.uns['dataset'] = {{'modalities': {{{name!r}: 'counts'}}}}"
        )
    measured = (modality.position >= 0).nonzero()[:, 0]
    empty = measured[modality.library[modality.position[measured], 0] == 0]
    if len(empty):
        raise ValueError(
            f"{len(empty)} samples have not one count in modality {name!r}: "
            f"{few(samples.obs_names[empty.cpu().numpy()])}; leave them out, or take the modality from them"
        )
