"""The negative binomial in closed form, value and gradient, for dense counts and for counts that stay sparse.

log p(x | μ, r) = G(x, r) + x log μ/(r+μ) + r log r/(r+μ) with G(x, r) = log Γ(x+r)/(Γ(r) x!), which is 0 at x = 0:
of a sparse matrix, only the last term is needed for every feature. Tested against scipy and finite differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from helpers.batches import Counts

N_TABLE = 16  # counts up to here are looked up, larger ones are computed; the fastest of 4 … 64 on count matrices
KEPT = 1 << 28  # bytes of arrays that wait to be used again
PIECE = 1 << 18  # values that a processor works on at a time


def of_dense(x: Tensor, log_mean: Tensor, log_r: Tensor) -> Tensor:
    """log p of counts x [batch, n_vars], of their shape, nats; log r [n_vars] or [batch, n_vars].

    Introduced in notebook 01.
    """
    return _DenseCounts.apply(x, log_mean, log_r)


def of_stored(counts: Counts, logits: Tensor, log_total: Tensor, log_r: Tensor) -> Tensor:
    """log p of every sample [batch], nats, where μ = softmax(logits) · total: logits [batch, n_vars] or [1, n_vars],
    log totals [batch, 1] or [1, 1], log r [n_vars]. No dense counts are made. Introduced in notebook 06.
    """
    total = log_total.expand(len(counts), 1)
    with torch.autocast(logits.device.type, enabled=False):
        return _OfLogits.apply(counts, *_plain(log_r.dtype, logits.expand(counts.shape), total, log_r))


def of_layer(counts: Counts, h: Tensor, layer: nn.Linear, log_total: Tensor, log_r: Tensor) -> Tensor:
    """The same where logits are a linear layer's answer to h [batch, n_in] or [1, n_in], which is never kept.

    Introduced in notebook 06.
    """
    total = log_total.expand(len(counts), 1)
    with torch.autocast(h.device.type, enabled=False):
        return _OfLayer.apply(counts, *_plain(log_r.dtype, h, layer.weight, layer.bias, total, log_r))


def _plain(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """In one precision, and without gradients where they are off, which a function of one's own does not see."""
    return [t.to(dtype) if torch.is_grad_enabled() else t.detach().to(dtype) for t in tensors]


class Lease:
    """Arrays of the shape, type and device of another, to write on; their memory is used again once the lease is gone.

    On a CPU fresh memory costs more than the arithmetic done on it; at most `KEPT` bytes wait to be used again. Other
    devices' allocators do the same by themselves. Introduced in notebook 06.
    """

    free: ClassVar[list[Tensor]] = []

    def __init__(self, like: Tensor, n: int):
        self.flat = [self.found(like) for _ in range(n)]
        self.arrays = [flat[: like.numel()].view(like.shape) for flat in self.flat]

    def found(self, like: Tensor) -> Tensor:
        """A flat array that is free and large enough, but not more than twice as large; else a new one."""
        for k, flat in enumerate(self.free):
            if like.numel() <= flat.numel() <= 2 * like.numel() and flat.dtype == like.dtype:
                return self.free.pop(k)
        return torch.empty(like.numel(), dtype=like.dtype, device=like.device)

    def __del__(self) -> None:
        if getattr(self, "flat", None) and self.flat[0].device.type == "cpu":
            self.free += self.flat
            while sum(flat.nbytes for flat in self.free) > KEPT:
                self.free.pop(0)


class _OfLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, counts: Counts, logits: Tensor, log_total: Tensor, log_r: Tensor) -> Tensor:
        return _value(ctx, counts, logits, log_total, log_r)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        _, lease, to_total, *_ = ctx.kept
        return None, lease.arrays[0] * grad[:, None], (to_total * grad)[:, None], _slope_in_r(ctx, grad)


class _OfLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, counts: Counts, h: Tensor, weight: Tensor, bias: Tensor, log_total: Tensor, log_r: Tensor):
        lease = Lease(h.new_empty(()).expand(len(h), len(weight)), 1)
        logits = torch.mm(h, weight.T, out=lease.arrays[0]).add_(bias)
        ctx.save_for_backward(h, weight)
        return _value(ctx, counts, logits.expand(counts.shape), log_total, log_r)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (h, weight), needed, (_, lease, to_total, *_) = ctx.saved_tensors, ctx.needs_input_grad, ctx.kept
        slopes, weighed = lease.arrays[0], grad[:, None]
        to_h = (slopes @ weight).mul_(weighed) if needed[1] else None
        to_h = to_h.sum(0, keepdim=True) if needed[1] and len(h) < len(grad) else to_h
        to_weight = slopes.T @ (h * weighed) if needed[2] else None
        to_bias = grad @ slopes if needed[3] else None
        return None, to_h, to_weight, to_bias, to_total[:, None] * weighed, _slope_in_r(ctx, grad)


def _value(ctx, counts: Counts, logits: Tensor, log_total: Tensor, log_r: Tensor) -> Tensor:
    """log p [batch]; in `ctx.kept` what the gradients need, formed together with it up to the factor that comes back:
    by logits, and q + log(1+o), from which that by r follows (both [batch, n_vars] and leased).
    """
    sloped, r = any(ctx.needs_input_grad), log_r.exp()
    gamma, slope = _gamma_stored(counts.value, counts.column, r)
    kept, value, to_total = (
        Lease(logits, 2 * sloped),
        torch.empty_like(log_total[:, 0]),
        torch.empty_like(log_total[:, 0]),
    )
    pull = torch.empty_like(gamma)
    for rows, stored in _pieces(counts, logits):
        part = Counts(counts.length[rows], counts.column[stored], counts.value[stored], counts.n_vars)
        out = (value[rows], to_total[rows], pull[stored], *(array[rows] for array in kept.arrays))
        _piece(part, gamma[stored], logits[rows], log_total[rows], log_r, r, out)
    if sloped:
        ctx.kept = counts, kept, to_total, pull, slope, r
    return value


def _pieces(counts: Counts, logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows, and their stored counts, in pieces that stay in a processor's cache; all at once on other devices."""
    n = max(1, PIECE // counts.n_vars) if logits.device.type == "cpu" else len(counts)
    if n >= len(counts):
        yield slice(None), slice(None)
        return
    starts = [0, *counts.length.cumsum(0)[n - 1 :: n].tolist()]
    for k, a in zip(range(0, len(counts), n), starts, strict=False):
        b = starts[k // n + 1] if k // n + 1 < len(starts) else len(counts.value)
        yield slice(k, k + n), slice(a, b)


def _piece(counts: Counts, gamma: Tensor, logits: Tensor, log_total: Tensor, log_r: Tensor, r: Tensor, out) -> None:
    """Values of some rows and, where arrays for them are given, their slopes; all written to `out`.

    With odds o = μ/r and q = 1/(1+o), a feature without count adds −r log(1+o), a stored count G − x log(1+1/o) on top.
    """
    value, to_total, pull, *arrays = out
    total, lease = log_total.exp(), Lease(logits, 3)
    share, odds, log_one = lease.arrays
    torch.softmax(logits, -1, out=share)
    log_sum = logits.amax(-1) - share.amax(-1).log_()  # many times as fast as logsumexp
    at = logits.reshape(-1).index_select(0, counts.place) - log_r.index_select(0, counts.column)
    at += (log_total[:, 0] - log_sum).index_select(0, counts.row)  # log o of every stored count
    torch.mul(share, total, out=odds).mul_((-log_r).exp_())
    torch.log1p(odds, out=log_one)
    value.copy_(counts.per_row(gamma - counts.value * F.softplus(-at)) - log_one @ r)
    if arrays:
        slopes, both = arrays
        torch.mul(counts.value, torch.sigmoid(-at), out=pull)  # x q of every stored count
        q = odds.add_(1).reciprocal_()
        torch.add(log_one, q, out=both)
        to_total.copy_(counts.per_row(pull) - total[:, 0] * torch.linalg.vecdot(share, q))
        torch.mul(q.mul_(total).add_(to_total[:, None]).neg_(), share, out=slopes)
        slopes.view(-1).scatter_add_(0, counts.place, pull)


def _slope_in_r(ctx, grad: Tensor) -> Tensor | None:
    """Gradient by log r [n_vars], given that by the values [batch]."""
    if not ctx.needs_input_grad[-1]:
        return None
    counts, lease, _, pull, slope, r = ctx.kept
    found = r * (grad.sum() - grad @ lease.arrays[1])
    each = (r.index_select(0, counts.column) * slope - pull).mul_(grad.index_select(0, counts.row))
    return found.scatter_add_(0, counts.column.long(), each)


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
    @once_differentiable
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
    value, slope = _looked_up(at, x.flatten(), rest, rest % len(r), r, N_TABLE)
    return value.view_as(x), slope.view_as(x)


def _gamma_stored(x: Tensor, column: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """G(x, r) and dG/dr of single counts x [n_stored] of features `column` [n_stored], with r [n_vars]."""
    n = max(1, min(N_TABLE, int(x.max()))) if len(x) and x.device.type == "cpu" else N_TABLE  # devices would wait
    low = x.clamp(max=n).trunc_()
    rest = (x - low).nonzero().squeeze(1)
    return _looked_up((column * (n + 1)).add_(low.to(column.dtype)), x, rest, column[rest], r, n)


def _looked_up(at: Tensor, x: Tensor, rest: Tensor, column: Tensor, r: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Entries `at` of tables up to n, and computed ones for the `rest`: counts beyond, values that are no integers."""
    value, slope = (table.flatten().index_select(0, at) for table in _gamma_tables(r, n))
    if len(rest):
        some_x, some_r = x[rest], r[column]
        value[rest] = _gamma_exact(some_x, some_r)
        slope[rest] = torch.digamma(some_x + some_r) - torch.digamma(some_r)
    return value, slope


def _gamma_tables(r: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """G(k, r) and dG/dr for k = 0 … n as running sums over r + j, [n_vars, n + 1] each."""
    j = torch.arange(n, device=r.device, dtype=r.dtype)
    steps = r[:, None] + j  # [n_vars, n]
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
