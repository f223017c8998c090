"""Codes for samples that a model without an encoder was not trained on, and what one reads off the codes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import mudata
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers import tasks
from helpers.batches import Batch, Samples
from helpers.encoders import LearnedCodes, Posterior
from helpers.likelihoods import check_support
from helpers.models import Model
from helpers.models.dgd import learned
from helpers.priors import GaussianMixture
from helpers.wording import closest, few

N_DRAWS = 8  # of a posterior, in pairs ±ε, where a code has a variance
PATIENCE = 5  # steps without a better loss, after which a sample goes on from its best code at half the pace
BETAS = (0.7, 0.9)  # of Adam: a few past steps, since there is no noise to average out
HALVINGS = 5  # of the pace, after which its code counts as found


def infer(
    model: Model,
    data: Samples | mudata.MuData,
    split: str | None = None,
    modalities: Sequence[str] | None = None,
    steps: int = 500,
    tolerance: float = 1e-3,
    lr: float | None = None,
    starts: int = 1,
    batch_size: int = 512,
    seed: int = 0,
) -> Model:
    """The same model with codes for these samples in place of those it was trained with; decoder and prior are shared
    and stay as they are, and `tasks` take it as any other.

    Each sample starts at the component mean that explains it best (at zero without a mixture) and descends its own
    −log p(x | z) − log p(z), both of weight 1, by Adam, at half the pace whenever it stops to improve by `tolerance`
    nats, until it has done so five times or `steps` are used up (a warning says for how many samples). Only measured
    modalities enter the loss, and of those only `modalities` where they are named: codes for a translation must not
    have seen its target.
    Codes with a variance minimise the negative ELBO over eight fixed draws.

    `starts`: descend from that many component means, the best ones, and keep the best end (bulkDGD descends from all).
    `split` finds codes for its samples alone; the others keep theirs, where these are the data the model was trained
    on, and have none otherwise. `lr`: first step in latent units, half the components' mean standard deviation unless
    given (0.1 without a mixture). The published search takes 10 to 20 steps of 0.01 without a test of convergence.

    Raises `ValueError` for a model with encoders, modalities that are not there, samples with none of them, other
    features than the model's, and values outside a likelihood's support. Introduced in notebook 05.
    """
    old, device = table_of(model), next(model.parameters()).device
    samples = data if isinstance(data, Samples) else Samples(data, device)
    rows = torch.arange(len(samples)) if split is None else samples.rows(split)
    read = modalities_read(model, samples, rows, modalities)
    check_features(model, samples, read)
    new = LearnedCodes(read, len(samples), old.n_latent, old.stochastic).to(device)
    if split is not None and len(samples) == old.n_obs and {*read} == {*old.modalities}:
        new.load_state_dict(old.state_dict())
    search = Search(model.eval(), read, steps, tolerance, lr, starts, seed)
    for index in rows.split(batch_size):
        batch = samples[index]
        with torch.no_grad():
            new.table.weight[batch.index] = search.run(batch)
            new.remember(batch)
    if search.unfinished:
        warnings.warn(
            f"{search.unfinished} of {len(rows)} codes still improved by more than {tolerance} nats after {steps} "
            "steps: raise steps= or tolerance=",
            stacklevel=2,
        )
    return learned(new, model.prior, model.decoders, model.penalties).eval()


def codes(model: Model, data: Samples | mudata.MuData, split: str | None = None, **options) -> np.ndarray:
    """Codes [n_obs, n_latent] found for all samples or those of a split, with the decoder frozen (`infer`, which takes
    the `options`). Introduced in notebook 05.
    """
    samples = data if isinstance(data, Samples) else Samples(data, next(model.parameters()).device)
    table = table_of(infer(model, samples, split, **options)).table.weight.detach()
    rows = slice(None) if split is None else samples.rows(split).to(table.device)
    return table[rows][:, : table_of(model).n_latent].cpu().numpy()


def cluster(
    model: Model, data: Samples | mudata.MuData, split: str | None = None, key: str | None = None
) -> np.ndarray:
    """The component of highest posterior probability, [n_obs] whole numbers from 0, of all samples or of a split.

    `key` writes them to `data.obs[key]` as categories, where `data` is a MuData and no split is asked for. The model
    needs codes of these samples (`infer`). Raises `ValueError` where its prior has no components. Introduced in
    notebook 05.
    """
    if not isinstance(model.prior, GaussianMixture):
        raise ValueError("the model's prior has no components to cluster by: use models.dgd or models.scdgd")
    if key is not None and (split is not None or isinstance(data, Samples)):
        raise ValueError("key= writes to a MuData's obs and needs all of its samples: pass the MuData, without split")
    z = torch.from_numpy(tasks.embed(model, data, split)).to(model.prior.mean.device)
    with torch.no_grad():
        component = model.prior.responsibilities(z).argmax(-1).cpu().numpy()
    if key is not None:
        data.obs[key] = pd.Categorical(component, categories=range(model.prior.n_components))
    return component


class Search:
    """Finds codes batch by batch with everything else frozen, and counts those that did not converge.

    Introduced in notebook 05.
    """

    def __init__(
        self,
        model: Model,
        read: Sequence[str],
        steps: int = 500,
        tolerance: float = 1e-3,
        lr: float | None = None,
        starts: int = 1,
        seed: int = 0,
    ):
        lr = first_step(model) if lr is None else lr
        if min(steps, starts) < 1 or min(tolerance, lr) <= 0:
            raise ValueError(
                f"need steps >= 1, starts >= 1, tolerance > 0 and lr > 0, got {steps}, {starts}, {tolerance} and {lr}"
            )
        self.model, self.read, self.steps, self.tolerance, self.lr = model, tuple(read), steps, tolerance, lr
        self.starts = starts
        self.stochastic, self.unfinished = table_of(model).stochastic, 0
        noise = torch.randn(N_DRAWS // 2, model.prior.n_latent, generator=torch.Generator().manual_seed(seed))
        self.noise = torch.cat([noise, -noise]).to(next(model.parameters()).device)

    def loss(self, code: Tensor, batch: Batch) -> Tensor:
        """−log p(x | z) − log p(z) per sample, nats [batch]; with a variance, the negative ELBO. No prior, no term."""
        if not self.stochastic:
            mixture = isinstance(self.model.prior, GaussianMixture)
            return self.nll(code, batch) - (self.model.prior.log_prob(code) if mixture else 0.0)
        q = Posterior(*code.chunk(2, -1))
        draws = [q.mean + torch.exp(0.5 * q.logvar) * noise for noise in self.noise]
        each = [self.nll(z, batch) + self.model.prior.kl(q, z) for z in draws]
        return torch.stack(each).mean(0)

    def nll(self, z: Tensor, batch: Batch) -> Tensor:
        """−log p(x | z) of the modalities that were measured and are read, [batch]."""
        found = self.model.decode(z, batch.library)
        return torch.stack([-found[m].log_prob(batch.x[m]).sum(-1) * batch.mask[m] for m in self.read]).sum(0)

    @torch.no_grad()
    def candidates(self, batch: Batch) -> Tensor:
        """Component means, best first: [starts, batch, n_latent], with log-variances where codes have. Zero where
        there is no mixture.
        """
        zero = torch.zeros(1, self.model.prior.n_latent, device=batch.index.device)
        means = self.model.prior.mean if isinstance(self.model.prior, GaussianMixture) else zero
        wide = torch.cat([means, torch.zeros_like(means)], -1) if self.stochastic else means
        scores = torch.stack([self.loss(mean.expand(len(batch), -1), batch) for mean in wide])  # [k, batch]
        return wide[scores.argsort(0)[: self.starts]].clone()

    def run(self, batch: Batch) -> Tensor:
        """The best codes found, [batch, n_latent] (twice as wide where codes have a variance)."""
        found, losses, unfinished = zip(*(self.descend(start, batch) for start in self.candidates(batch)), strict=True)
        best = torch.stack(losses).argmin(0)
        row = torch.arange(len(batch), device=best.device)
        self.unfinished += int(torch.stack(unfinished)[best, row].sum())
        return torch.stack(found)[best, row]

    def descend(self, start: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [batch, n_latent] found from one start each, their losses [batch], and who did not converge [batch]."""
        found, losses = start.clone(), torch.zeros(len(batch), device=start.device)
        going = torch.arange(len(batch), device=start.device)  # samples not done yet
        state = Descent.at(start, self.lr)
        for _ in range(self.steps):
            state = state.after(*self.look(state.code, batch), self.tolerance)
            found[going], losses[going] = state.best, state.lowest
            keep = (state.pace[:, 0] > self.lr * 0.5 ** (HALVINGS + 0.5)).nonzero()[:, 0]
            if len(keep) < len(going):
                state, going, batch = state.rows(keep), going[keep], batch[keep]
            if not len(going):
                break
        return found, losses, torch.zeros_like(losses, dtype=torch.bool).index_fill(0, going, True)

    @torch.enable_grad()
    def look(self, code: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses [batch] and their slopes in the codes."""
        code = code.detach().requires_grad_()
        loss = self.loss(code, batch)
        return loss.detach(), torch.autograd.grad(loss.sum(), code)[0]


class Descent(NamedTuple):
    """Adam for samples that know nothing of each other: each keeps its best code and has its own pace.

    Introduced in notebook 05.
    """

    code: Tensor  # [n, n_latent] where to look next
    best: Tensor  # [n, n_latent]
    lowest: Tensor  # [n] loss of the best
    pace: Tensor  # [n, 1]
    idle: Tensor  # [n] steps without a better loss
    moments: Tensor  # [n, n_latent, 2]
    count: Tensor  # [n, 1] steps since the moments began

    @classmethod
    def at(cls, code: Tensor, lr: float) -> Descent:
        """Before the first look."""
        zero, one = torch.zeros_like(code[:, 0]), torch.ones_like(code[:, :1])
        return cls(code, code, zero + torch.inf, lr * one, zero, torch.zeros(*code.shape, 2).to(code), 0 * one)

    def rows(self, keep: Tensor) -> Descent:
        """Some of the samples."""
        return Descent(*(value[keep] for value in self))

    def after(self, loss: Tensor, slope: Tensor, tolerance: float) -> Descent:
        """The next state, given losses [n] and slopes [n, n_latent] at `code`; those idle for long go back to their
        best and on at half the pace.
        """
        best = torch.where((loss < self.lowest)[:, None], self.code, self.best)
        idle = torch.where(loss < self.lowest - tolerance, 0, self.idle + 1)
        stuck = (idle >= PATIENCE)[:, None]
        first, second = BETAS
        m = torch.lerp(self.moments[..., 0], slope, 1 - first)
        v = torch.lerp(self.moments[..., 1], slope.square(), 1 - second)
        count = self.count + 1
        ahead = self.code - self.pace * (m / (1 - first**count)) / ((v / (1 - second**count)).sqrt() + 1e-12)
        return Descent(
            code=torch.where(stuck, best, ahead),
            best=best,
            lowest=torch.minimum(loss, self.lowest),
            pace=torch.where(stuck, 0.5 * self.pace, self.pace),
            idle=torch.where(stuck[:, 0], 0, idle),
            moments=torch.stack([m, v], -1) * ~stuck[..., None],
            count=count * ~stuck,
        )


def first_step(model: Model) -> float:
    """Half the mean standard deviation of the components, 0.1 without a mixture. Introduced in notebook 05."""
    if not isinstance(model.prior, GaussianMixture):
        return 0.1
    return 0.5 * float(torch.exp(-0.5 * model.prior.neg_log_var.detach()).mean())


def table_of(model: Model) -> LearnedCodes:
    """The codes of a model; raises `ValueError` where it has encoders. Introduced in notebook 05."""
    if len(model.encoders) != 1 or not isinstance(model.encoders[0], LearnedCodes):
        raise ValueError("the model has encoders: tasks.embed reads its codes of new samples directly")
    return model.encoders[0]


def modalities_read(model: Model, samples: Samples, rows: Tensor, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The modalities that codes are found from; raises `ValueError` where one is unknown or a sample has none.

    Introduced in notebook 05.
    """
    known = [m for m in model.likelihoods if m in samples.modalities]
    if lost := [m for m in wanted or () if m not in known]:
        raise ValueError(
            f"model and data share no modality {lost[0]!r}{closest(lost[0], known)}; there are {few(known)}"
        )
    read = tuple(m for m in known if wanted is None or m in wanted)
    if not read:
        raise ValueError(f"the data have none of the model's modalities {few(model.likelihoods)}")
    seen = torch.stack([samples.modalities[m].position[rows.to(samples.home)] >= 0 for m in read]).any(0).cpu()
    if not bool(seen.all()):
        names = samples.obs_names[rows.cpu().numpy()[~seen.numpy()]]
        raise ValueError(f"{len(names)} samples have no value of {' or '.join(read)}: {few(names)}; leave them out")
    return read


def check_features(model: Model, samples: Samples, read: Sequence[str]) -> None:
    """Raise `ValueError` where data have other features than the model, or values that it cannot describe.

    Introduced in notebook 05.
    """
    check_support(model, samples)
    with torch.no_grad():
        told = model.decode(torch.zeros(2, model.prior.n_latent, device=next(model.parameters()).device))
    for m in read:
        if (n := told[m].batch_shape[-1]) != samples.n_vars[m]:
            raise ValueError(
                f"modality {m!r} has {samples.n_vars[m]} features and the model {n}: prepare the data as those it was "
                "trained on"
            )
