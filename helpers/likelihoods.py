"""What a decoder says about the data: distributions with exact `log_prob` in nats per value.

They follow `torch.distributions`: `log_prob`, `mean`, `variance`, `sample`. The reconstruction term of every
model is `-p.log_prob(x).sum(-1)`. `saturated(x)` is the log density of x where the mean is x itself, the most that
any mean can give it; half the deviance is `(p.saturated(x) - p.log_prob(x)).sum(-1)`, zero for a perfect
reconstruction (McCullagh and Nelder 1989, section 2.3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from helpers.batches import Samples

N_TABLE = 16  # counts up to here are looked up, larger ones are computed; the fastest of 4 … 64 on count matrices


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


class NegativeBinomial(Distribution):
    """Counts with mean μ and variance μ + μ²/r.

    Shapes: `log_mean` [batch, n_vars] natural logarithm of μ; `log_r` [n_vars] or [batch, n_vars] of the inverse
    dispersion r. The gamma terms are computed on non-zero counts only, since they vanish at x = 0. Value and
    gradient are exact (tested against scipy). Introduced in notebook 01, used throughout 05-08.
    """

    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_r: Tensor):
        self.log_mean, self.log_r = log_mean, log_r
        super().__init__(batch_shape=log_mean.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean + (2 * self.log_mean - self.log_r).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability, nats, of the shape of `value`."""
        return _NegativeBinomialLogProb.apply(value, self.log_mean, self.log_r)

    def saturated(self, value: Tensor) -> Tensor:
        """Log probability of a Poisson distribution of mean x: the limit r → ∞, which no r surpasses, so that a
        learned dispersion cannot fall below it. Nats, of the shape of `value`. Introduced in notebook 04."""
        return torch.special.xlogy(value, value) - value - torch.lgamma(value + 1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        r = self.log_r.detach().exp().expand(shape)
        return torch.poisson(torch._standard_gamma(r) / r * self.mean.detach())


def check_support(model: nn.Module, samples: Samples) -> None:
    """Raise `ValueError` where data lie outside the support of their likelihood: negative counts, values not in 0…1.

    Introduced in notebook 01.
    """
    for name, likelihood in getattr(model, "likelihoods", {}).items():
        if name not in samples.modalities:
            continue
        low, high = (
            getattr(likelihood.support, "lower_bound", None),
            getattr(likelihood.support, "upper_bound", None),
        )
        values = samples.modalities[name].rows.values
        least, most = (float(v) for v in values.aminmax()) if len(values) else (0.0, 0.0)
        if (low is not None and least < low) or (high is not None and most > high):
            below = 0 if low is None else int((values < low).sum())
            above = 0 if high is None else int((values > high).sum())
            raise ValueError(
                f"modality {name!r} holds {below} values below {low} and {above} above {high}, which "
                f"{likelihood.__name__} cannot describe: give raw counts, rescale, or choose another head"
            )


class _NegativeBinomialLogProb(torch.autograd.Function):
    """log p = (x + r)·log σ(l) − x·l + G(x, r), with l = log r − log μ and G = log Γ(x+r)/(Γ(r) x!)."""

    @staticmethod
    def forward(ctx, x: Tensor, log_mean: Tensor, log_r: Tensor) -> Tensor:
        r, logit = log_r.exp(), log_r - log_mean
        gamma, slope = _gamma_term(x, r)
        log_zero = F.logsigmoid(logit)  # log r/(r+μ); much faster on CPUs than softplus
        ctx.save_for_backward(x, r, logit, log_zero, slope)
        return torch.addcmul(gamma, x + r, log_zero).addcmul_(x, logit, value=-1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, r, logit, log_zero, slope = ctx.saved_tensors
        to_mean = torch.addcmul(x, x + r, torch.sigmoid(-logit), value=-1).mul_(grad)
        to_r = (slope + log_zero).mul_(r).mul_(grad).sub_(to_mean)
        return None, to_mean, to_r.sum_to_size(r.shape)


def _gamma_term(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """G(x, r) = log Γ(x+r) − log Γ(r) − log x! and dG/dr, both of x's shape."""
    if r.dim() > 1:
        return _gamma_nonzero(x, r)
    tables = _gamma_tables(r)  # value and slope, [n_vars, N_TABLE + 1] each
    column = x.clamp(max=N_TABLE).trunc_()
    rest = (x - column).flatten().nonzero().squeeze(1)  # counts beyond the table, values that are no integers
    at = column.add_(torch.arange(len(r), device=x.device) * (N_TABLE + 1)).int().flatten()
    gamma, grad = (t.flatten().index_select(0, at) for t in tables)
    if len(rest):
        some_x, some_r = x.flatten()[rest], r[rest % len(r)]
        gamma[rest] = _gamma_exact(some_x, some_r)
        grad[rest] = torch.digamma(some_x + some_r) - torch.digamma(some_r)
    return gamma.view_as(x), grad.view_as(x)


def _gamma_tables(r: Tensor) -> tuple[Tensor, Tensor]:
    """G(k, r) and dG/dr for k = 0 … N_TABLE as running sums over r + j, [n_vars, N_TABLE + 1] each."""
    j = torch.arange(N_TABLE, device=r.device, dtype=r.dtype)
    steps = r[:, None] + j  # [n_vars, N_TABLE]
    value = F.pad((steps / (j + 1)).log_().cumsum(1), (1, 0))
    slope = F.pad(steps.reciprocal_().cumsum(1), (1, 0))
    return value, slope


def _gamma_nonzero(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The same where r differs by sample: computed on the non-zero counts alone."""
    at = x.nonzero(as_tuple=True)
    some_x, some_r = x[at], r.expand_as(x)[at]
    gamma, slope = torch.zeros_like(x), torch.zeros_like(x)
    gamma[at] = _gamma_exact(some_x, some_r)
    slope[at] = torch.digamma(some_x + some_r) - torch.digamma(some_r)
    return gamma, slope


def _gamma_exact(x: Tensor, r: Tensor) -> Tensor:
    return torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
