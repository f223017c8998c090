"""The negative binomial in closed form, value and gradient, for dense counts and for counts that stay sparse.

log p(x | μ, r) = G(x, r) + x log μ/(r+μ) + r log r/(r+μ) with G(x, r) = log Γ(x+r)/(Γ(r) x!), which is 0 at x = 0:
of a sparse matrix, only the last term is needed for every feature. Tested against scipy and finite differences.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.batches import Counts

N_TABLE = 16  # counts up to here are looked up, larger ones are computed; the fastest of 4 … 64 on count matrices


def of_dense(x: Tensor, log_mean: Tensor, log_r: Tensor) -> Tensor:
    """log p of counts x [batch, n_vars], of their shape, nats; log r [n_vars] or [batch, n_vars].

    Introduced in notebook 01.
    """
    return _DenseCounts.apply(x, log_mean, log_r)


def of_stored(counts: Counts, logits: Tensor, log_total: Tensor, log_r: Tensor) -> Tensor:
    """log p of every sample [batch], nats, where μ = softmax(logits) · total: logits [batch, n_vars] or [1, n_vars],
    log totals [batch, 1] or [1, 1], log r [n_vars]. No dense counts are made. Introduced in notebook 06.
    """
    given = (logits, log_total, log_r) if torch.is_grad_enabled() else (v.detach() for v in (logits, log_total, log_r))
    logits, log_total, log_r = given
    return _StoredCounts.apply(counts, logits.expand(counts.shape), log_total.expand(len(counts), 1), log_r)


class _StoredCounts(torch.autograd.Function):
    """With odds o = μ/r and q = 1/(1+o), a feature without count adds −r log(1+o), a stored count G − x log(1+1/o)
    on top. Slopes are formed together with the value, up to the factor that comes back: two dense arrays are kept.
    """

    @staticmethod
    def forward(ctx, counts: Counts, logits: Tensor, log_total: Tensor, log_r: Tensor) -> Tensor:
        r, column = log_r.exp(), counts.column
        top = logits.amax(-1, keepdim=True)
        odds = (logits - top).exp_()
        size = log_total - odds.sum(-1, keepdim=True).log_()  # log μ = logits − top + size
        at = logits.reshape(-1)[counts.place] + (size - top).squeeze(1)[counts.row] - log_r[column]  # log o of counts
        gamma, slope = _gamma_stored(counts.value, column, r)
        odds.mul_(size.exp()).mul_((-log_r).exp_())
        log_one = torch.log1p(odds)
        value = counts.per_row(gamma - counts.value * F.softplus(-at)) - log_one @ r
        if any(ctx.needs_input_grad):
            ctx.counts = counts
            pull = counts.value * torch.sigmoid(-at)  # x q of every stored count
            ctx.save_for_backward(*_slopes(odds, log_one, r, log_total, counts, pull), pull, slope, r)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor):
        counts = ctx.counts
        to_logits, to_total, both, pull, slope, r = ctx.saved_tensors
        per_count = grad[counts.row]
        dense = (to_logits * grad[:, None]).view(-1)
        dense.index_add_(0, counts.place, pull * per_count)
        to_r = None
        if ctx.needs_input_grad[3]:
            to_r = r * (grad.sum() - grad @ both)
            to_r.index_add_(0, counts.column, (r[counts.column] * slope - pull) * per_count)
        return None, dense.view_as(to_logits), (to_total * grad)[:, None], to_r


def _slopes(
    odds: Tensor, log_one: Tensor, r: Tensor, log_total: Tensor, counts: Counts, pull: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """d log p / d logits [batch, n_vars] without the stored counts' own share, d log p / d log total [batch], and
    q + log(1+o) [batch, n_vars], from which the slope in r follows. `odds` and `log_one` are overwritten.
    """
    q = (odds + 1).reciprocal_()
    mean = odds.mul_(r)
    both = log_one.add_(q)
    to_total = counts.per_row(pull) - torch.linalg.vecdot(mean, q)
    return q.add_((to_total * torch.exp(-log_total[:, 0]))[:, None]).mul_(mean).neg_(), to_total, both


class _DenseCounts(torch.autograd.Function):
    """log p of dense counts, of their shape: (x + r)·log σ(l) − x·l + G(x, r), with l = log r − log μ."""

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
    low = x.clamp(max=N_TABLE).trunc_()
    rest = (x - low).flatten().nonzero().squeeze(1)
    at = low.add_(torch.arange(len(r), device=x.device) * (N_TABLE + 1)).int().flatten()
    value, slope = _looked_up(at, x.flatten(), rest, rest % len(r), r)
    return value.view_as(x), slope.view_as(x)


def _gamma_stored(x: Tensor, column: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """G(x, r) and dG/dr of single counts x [n_stored] of features `column` [n_stored], with r [n_vars]."""
    low = x.clamp(max=N_TABLE).trunc_()
    rest = (x - low).nonzero().squeeze(1)
    return _looked_up((column * (N_TABLE + 1)).add_(low.to(column.dtype)), x, rest, column[rest], r)


def _looked_up(at: Tensor, x: Tensor, rest: Tensor, column: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Entries `at` of the tables, and computed ones for the `rest`: counts beyond them, values that are no integers."""
    value, slope = (table.flatten().index_select(0, at) for table in _gamma_tables(r))
    if len(rest):
        some_x, some_r = x[rest], r[column]
        value[rest] = _gamma_exact(some_x, some_r)
        slope[rest] = torch.digamma(some_x + some_r) - torch.digamma(some_r)
    return value, slope


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
    """In double precision: the three terms of a large count nearly cancel."""
    wide = x.dtype if x.device.type == "mps" else torch.double  # Apple's devices have no double precision
    large, r2 = x.to(wide), r.to(wide)
    return (torch.lgamma(large + r2) - torch.lgamma(r2) - torch.lgamma(large + 1)).to(r.dtype)
