"""From data to a posterior over the latent space."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from helpers.batches import Batch, Counts, Samples
from helpers.layers import Convolution, Dropout, dense_stack, linear
from helpers.wording import few

# Adam for codes and mixtures: β as published, since each code is met once per epoch; no weight decay
AT_OWN_PACE = {"betas": (0.5, 0.7), "weight_decay": 0.0}


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


class PartsEncoder(nn.Module):
    """Reads one modality and says three things, side by side: a `Posterior` [batch, 3 n_latent].

    [shared | own | batch]: what all modalities may know, what this one alone knows, and what is due to the batch. The
    first two are read from the dense blocks; the last is `of_batch(n_in)`, `BatchTable` or `BatchHeads`. `n_batches`
    tells the encoder which of so many batches (`batch.covariates[column]`) a sample is from, beside its values, so that
    it can take off what it knows of a batch; without it the encoder is blind. `latent_dropout` acts on what the latent
    layer reads. Source: MIMA, Methods, Model training. Introduced in notebook 07.
    """

    stochastic = True

    def __init__(
        self,
        modality: str,
        n_vars: int,
        n_latent: int,
        hidden: Sequence[int],
        of_batch: Callable[[int], nn.Module],
        column: str,
        n_batches: int = 0,
        dropout: float = 0.1,
        latent_dropout: float = 0.3,
        transform: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.modalities, self.n_latent = (modality,), 3 * n_latent
        self.column, self.n_batches, self.transform = column, n_batches, transform
        self.body = dense_stack([n_vars + n_batches, *hidden], dropout)
        n_in = [n_vars + n_batches, *hidden][-1]
        self.dropout, self.head, self.of_batch = Dropout(latent_dropout), linear(n_in, 4 * n_latent), of_batch(n_in)

    def check(self, samples: Samples) -> None:
        """Raise `ValueError` for samples whose batches it cannot know."""
        n, column = len(self.of_batch.centres), self.column
        if column not in samples.covariates:
            raise ValueError(f"batches are in {column!r}: give training.fit Samples(mdata, covariates=[{column!r}])")
        if int(samples.covariates[column].max()) >= n:
            there = len(samples.categories[column])
            raise ValueError(
                f"the model has {n} batches, the data {there}: build it with batches={{{column!r}: {there}}}"
            )

    def forward(self, batch: Batch) -> Posterior:
        """Values `batch.x[modality]` [batch, n_vars] -> posterior [batch, 3 n_latent]."""
        if self.column not in batch.covariates:
            needed = f"Samples(mdata, covariates=[{self.column!r}])"
            raise ValueError(f"the model reads batches from {self.column!r}: use helpers.latents, or pass {needed}")
        x, code = batch.x[self.modalities[0]], batch.covariates[self.column]
        x = x if self.transform is None else self.transform(x)
        if self.n_batches:
            x = torch.cat([x, one_hot(code, self.n_batches)], -1)
        h = self.dropout(self.body(x))
        mean, logvar = self.head(h).chunk(2, -1)
        q = self.of_batch(h, code)
        return Posterior(torch.cat([mean, q.mean], -1), torch.cat([logvar, q.logvar], -1))


class BatchTable(nn.Module):
    """One Gaussian per batch, the same for all of its samples, so that nothing else can be told by it.

    The means of the batches met in training are kept centred: a latent of zero stands for the average batch, and for a
    batch never met. Samples without a batch (code −1) are N(0, I). Introduced in notebook 07.
    """

    def __init__(self, n_batches: int, n_latent: int):
        super().__init__()
        self.mean = nn.Parameter(0.1 * torch.randn(n_batches, n_latent))
        self.logvar = nn.Parameter(torch.full((n_batches, n_latent), -4.0))
        self.register_buffer("met", torch.zeros(n_batches, 1))

    @property
    def centres(self) -> Tensor:
        """Where the batches are, [n_batches, n_latent]."""
        return self.met * (self.mean - (self.met * self.mean).sum(0) / self.met.sum().clamp(min=1))

    def forward(self, h: Tensor, code: Tensor) -> Posterior:
        """Codes [batch] -> posterior [batch, n_latent]; `h` is not read."""
        if self.training:
            self.met[code[code >= 0]] = 1.0
        known = (code >= 0)[:, None]
        return Posterior(self.centres[code.clamp(min=0)] * known, self.logvar[code.clamp(min=0)] * known)


class BatchHeads(nn.Module):
    """A latent layer for every batch, which reads a sample as the other latents do: the paper's "separate latent space
    for each sample" as we read it.

    `centres` are running means per batch. Samples without a batch (code −1) are N(0, I). Introduced in notebook 07.
    """

    def __init__(self, n_in: int, n_batches: int, n_latent: int, momentum: float = 0.9):
        super().__init__()
        self.layer, self.n_latent, self.momentum = linear(n_in, n_batches * 2 * n_latent), n_latent, momentum
        self.register_buffer("centres", torch.zeros(n_batches, n_latent))

    def forward(self, h: Tensor, code: Tensor) -> Posterior:
        """Hidden features [batch, n_in] and codes [batch] -> posterior [batch, n_latent]."""
        all_of_them = self.layer(h).view(len(h), -1, 2 * self.n_latent)
        chosen = all_of_them[torch.arange(len(h), device=h.device), code.clamp(min=0)] * (code >= 0)[:, None]
        q = Posterior(*chosen.chunk(2, -1))
        if self.training:
            self.move(q.mean.detach(), code)
        return q

    def move(self, mean: Tensor, code: Tensor) -> None:
        """Running means of the batches towards those of some samples."""
        member = one_hot(code, len(self.centres))
        now = member.T @ mean / member.sum(0)[:, None].clamp(min=1)
        self.centres.lerp_(now, (1 - self.momentum) * (member.sum(0) > 0).to(now.dtype)[:, None])


def one_hot(code: Tensor, n: int) -> Tensor:
    """Codes [batch] -> [batch, n], a row of zeros for −1. Introduced in notebook 07."""
    return torch.eye(n, device=code.device)[code.clamp(min=0)] * (code >= 0)[:, None]


def disturbed(x: Tensor, sd: float) -> Tensor:
    """Values with Gaussian noise of standard deviation `sd` on them. Introduced in notebook 04."""
    return x + sd * torch.randn_like(x) if sd else x


class LearnedCodes(nn.Module):
    """A table with one representation per sample in place of an encoder: row `batch.index` of [n_obs, n_latent].

    `n_obs`: rows of the data set, of all splits. Rows start at zero, the least biased place, and are learned with the
    decoder; `start_at` places them elsewhere. By default a code is a point; `stochastic` gives it a log-variance too,
    zero at first (the variational auto-decoder). Gradients are sparse, so that `RowAdam` moves the rows of a batch and
    no others. An optimiser that knows `rate` learns codes that many times as fast as the decoder.

    A code belongs to a sample, so the table remembers what each row was learned from, as the sum of its values over
    `modalities`; other samples, or the same with a modality hidden, are a `ValueError`: `inference.infer` finds codes
    for them. Source: Schuster and Krogh 2021 (Entropy 23:1403), Bojanowski et al. 2018. Introduced in notebook 05.
    """

    rate, habits = 10.0, AT_OWN_PACE

    def __init__(self, modalities: Sequence[str], n_obs: int, n_latent: int, stochastic: bool = False):
        super().__init__()
        self.modalities, self.n_obs, self.n_latent = tuple(modalities), n_obs, n_latent
        self.stochastic = stochastic
        self.table = nn.Embedding(n_obs, n_latent * (2 if stochastic else 1), sparse=True)
        nn.init.zeros_(self.table.weight)
        self.register_buffer("learned_from", torch.full((n_obs,), torch.nan))

    def forward(self, batch: Batch) -> Posterior:
        """Rows `batch.index` [batch] -> posterior [batch, n_latent]."""
        if not self.training:
            self.check(batch)
        found = self.table(batch.index)
        if found.requires_grad:  # noted once they learn from it: the forward pass itself leaves no trace
            found.register_hook(lambda _: self.remember(batch))
        return Posterior(*found.chunk(2, -1)) if self.stochastic else Posterior(found, None)

    def total(self, batch: Batch) -> Tensor:
        """Sum of a sample's values over the modalities that codes are learned from, [batch]."""
        return torch.stack([summed(batch.stored(m), lambda x: x) for m in self.modalities]).sum(0)

    def remember(self, batch: Batch) -> None:
        """Note what the codes of these samples are learned from."""
        self.learned_from[batch.index] = self.total(batch)

    def check(self, batch: Batch) -> None:
        """Raise `ValueError` for samples other than those whose codes were learned. A new table takes any, and where
        gradients are on, as for the valid split in training, so do rows not learned yet."""
        if len(batch) and int(batch.index.max()) >= self.n_obs:
            raise ValueError(
                f"the model has codes of {self.n_obs} samples, and row {int(batch.index.max())} was asked for: "
                "inference.infer(model, data) finds codes for other samples"
            )
        size = torch.stack([summed(batch.stored(m), torch.abs) for m in self.modalities]).sum(0)
        known = self.learned_from[batch.index]
        off = ~((known - self.total(batch)).abs() <= 1e-4 * size + 1e-6)  # sums are rounded
        if torch.is_grad_enabled() or bool(self.learned_from.isnan().all()):
            off = off & ~known.isnan()
        if bool(off.any()):
            raise ValueError(
                f"{int(off.sum())} of {len(batch)} samples have no code in this model, or one from other values or "
                f"modalities (rows {few(batch.index[off].tolist())}): inference.infer(model, data) finds codes"
            )

    def resize(self, n_obs: int) -> None:
        """Make room for other samples; all codes are at zero again. Introduced in notebook 06."""
        old = self.table.weight
        self.n_obs = n_obs
        self.table = nn.Embedding(n_obs, old.shape[1], sparse=True, device=old.device)
        nn.init.zeros_(self.table.weight)
        self.learned_from = torch.full((n_obs,), torch.nan, device=old.device)

    @torch.no_grad()
    def start_at(self, z: Tensor, place: slice = slice(None)) -> None:
        """Place the codes (means) of all samples at z [n_obs, n_latent], or those of their dimensions that are in
        `place`; raises `ValueError` on another shape.
        """
        part = self.table.weight[:, : self.n_latent][:, place]
        if z.shape != part.shape:
            raise ValueError(f"codes are {list(part.shape)}, got {list(z.shape)}")
        part.copy_(z)


def summed(x: Tensor | Counts, what: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of `what` of each value of a sample, [batch]; zeros must stay zeros. Introduced in notebook 05."""
    if isinstance(x, Counts):
        return x.per_row(what(x.value))
    return what(x.detach().float()).sum(-1)


class RowAdam(torch.optim.AdamW):
    """AdamW; and in tables with sparse gradients (`LearnedCodes`), Adam for the rows of the batch alone.

    Each row has its own moments and its own count of steps. A code enters the loss of its own sample only, and each
    sample comes once per epoch, so this gives what one step for all codes at the end of the epoch would give (as
    published), at a cost that does not grow with the data set. Rows have no weight decay: their prior does that.
    Introduced in notebook 05.
    """

    def step(self, closure: Callable | None = None) -> Tensor | None:
        """One step; rows that have no gradient stay exactly where they are."""
        loss = None if closure is None else closure()
        tables = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        tables = [(group, p, p.grad) for group, p in tables if p.grad.is_sparse]
        for group, p, grad in tables:
            self.step_rows(group, p, grad.coalesce())
            p.grad = None  # AdamW takes dense gradients only
        super().step()
        for _, p, grad in tables:
            p.grad = grad
        return loss

    @torch.no_grad()
    def step_rows(self, group: dict, table: nn.Parameter, grad: Tensor) -> None:
        """Adam for the rows of a coalesced sparse gradient."""
        state, row, g = self.state[table], grad.indices()[0], grad.values()
        if not state:
            state["step"] = torch.zeros(len(table), 1, device=table.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        first, second = group["betas"]
        n = state["step"][row] + 1
        m, v = state["exp_avg"][row].lerp(g, 1 - first), state["exp_avg_sq"][row].lerp(g.square(), 1 - second)
        state["step"][row], state["exp_avg"][row], state["exp_avg_sq"][row] = n, m, v
        table[row] -= group["lr"] * (m / (1 - first**n)) / ((v / (1 - second**n)).sqrt() + group["eps"])
