"""Codes for samples that a model without an encoder was not trained on, and what one reads off the codes."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mudata
import numpy as np
import torch
from torch import Tensor, nn

from helpers import tasks, training
from helpers.batches import Batch, Samples
from helpers.encoders import LearnedCodes, Posterior
from helpers.likelihoods import check_support, log_likelihood
from helpers.models import Model
from helpers.models.dgd import learned, reader_for
from helpers.priors import BASAL, GaussianMixture, Together, parts_of
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
    start: Model | None = None,
    seed: int = 0,
) -> Model:
    """The same model with codes for these samples in place of those it was trained with; decoder and prior are shared
    and stay as they are, and `tasks` take it as any other.

    Each sample starts at the component mean that explains it best (at zero without a mixture; with covariates, the
    basal component first, then each covariate's, so that sums and not products of components are tried), or where the
    encoder of `start` puts it (`amortised`), and descends its own
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
    rows = tasks.rows_of(samples, split)
    read = modalities_read(model, samples, rows, modalities)
    check_features(model, samples, read)
    new = LearnedCodes(read, len(samples), old.n_latent, old.stochastic).to(device)
    if split is not None and len(samples) == old.n_obs and {*read} == {*old.modalities}:
        new.load_state_dict(old.state_dict())
    search = Search(model.eval(), read, steps, tolerance, lr, starts, seed, start)
    with frozen(model):
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
    return learned(new, model.prior, model.decoders, model.penalties).like(model).eval()


def codes(model: Model, data: Samples | mudata.MuData, split: str | None = None, **options) -> np.ndarray:
    """Codes [n_obs, n_latent] found for all samples or those of a split, with the decoder frozen (`infer`, which takes
    the `options`). Introduced in notebook 05.
    """
    samples = data if isinstance(data, Samples) else Samples(data, next(model.parameters()).device)
    table = table_of(infer(model, samples, split, **options)).table.weight.detach()
    rows = slice(None) if split is None else samples.rows(split).to(table.device)
    return table[rows][:, : table_of(model).n_latent].cpu().numpy()


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
        start: Model | None = None,
    ):
        if min(steps, starts) < 1 or not min(tolerance, 1.0 if lr is None else lr) > 0:
            raise ValueError(
                f"need steps >= 1, starts >= 1, tolerance > 0 and lr > 0, got {steps}, {starts}, {tolerance} and {lr}"
            )
        self.model, self.read, self.steps, self.tolerance = model, tuple(read), steps, tolerance
        self.lr = first_step(model, lr)
        self.starts, self.start = starts, None if start is None else start.eval()
        if hidden := [m for e in (start.encoders if start else ()) for m in e.modalities if m not in self.read]:
            raise ValueError(
                f"the encoder to start from reads {few(hidden)}, and codes are to be found from {few(self.read)}: "
                "train it with inference.amortised(..., modalities=...)"
            )
        self.stochastic, self.unfinished = table_of(model).stochastic, 0
        noise = torch.randn(N_DRAWS // 2, model.prior.n_latent, generator=torch.Generator().manual_seed(seed))
        self.noise = torch.cat([noise, -noise]).to(next(model.parameters()).device)

    def loss(self, code: Tensor, batch: Batch) -> Tensor:
        """−log p(x | z) − log p(z) per sample, nats [batch]; with a variance, the negative ELBO. No prior, no term."""
        if not self.stochastic:
            return self.nll(code, batch) - (self.model.prior.log_prob(code) if parts_of(self.model.prior) else 0.0)
        q = Posterior(*code.chunk(2, -1))
        draws = [q.mean + torch.exp(0.5 * q.logvar) * noise for noise in self.noise]
        each = [self.nll(z, batch) + self.model.prior.kl(q, z) for z in draws]
        return torch.stack(each).mean(0)

    def nll(self, z: Tensor, batch: Batch) -> Tensor:
        """−log p(x | z) of the modalities that were measured and are read, [batch]."""
        found = self.model.decode(z, batch.library)
        each = [-log_likelihood(found[m], batch.stored(m)) * batch.mask[m] for m in self.read]
        return torch.stack(each).sum(0)

    @torch.no_grad()
    def candidates(self, batch: Batch) -> Tensor:
        """Where to start, best first: [starts, batch, n_latent], with log-variances where codes have."""
        if self.start is not None:
            return self.widened(tasks.z_of(self.start, batch.showing(*self.read))[None])
        found = self.centre()
        for name, (place, mixture) in parts_of(self.model.prior).items():
            n = self.starts if name == BASAL else 1
            found = torch.cat([self.best(z, batch, place, mixture.mean, n) for z in found])
        return self.widened(found.expand(-1, len(batch), -1))

    def centre(self) -> Tensor:
        """The middle of all components, 0 without any: [1, 1, n_latent]."""
        z = torch.zeros(1, 1, self.model.prior.n_latent, device=self.noise.device)
        for place, mixture in parts_of(self.model.prior).values():
            z[..., place] = torch.softmax(mixture.logits, 0) @ mixture.mean
        return z

    def best(self, z: Tensor, batch: Batch, place: slice, means: Tensor, n: int) -> Tensor:
        """Codes z [batch, n_latent] (one for all: [1, n_latent]) with the n means in `place` that explain most, best
        first: [n, batch, n_latent].
        """
        tried = z.repeat(len(means), 1, 1)
        tried[..., place] = means[:, None]
        scores = torch.stack([self.loss(self.widened(one), batch) for one in tried])  # [k, batch]
        chosen = means[scores.argsort(0)[:n]]  # [n, batch, width of the part]
        found = z.expand(len(batch), -1).repeat(len(chosen), 1, 1)
        found[..., place] = chosen
        return found

    def widened(self, z: Tensor) -> Tensor:
        """Codes with log-variances of zero where the model's have some."""
        return torch.cat([z, torch.zeros_like(z)], -1) if self.stochastic else z.clone()

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
            keep = (state.pace[:, 0] > self.lr[0] * 0.5 ** (HALVINGS + 0.5)).nonzero()[:, 0]
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
    pace: Tensor  # [n, n_latent]
    idle: Tensor  # [n] steps without a better loss
    moments: Tensor  # [n, n_latent, 2]
    count: Tensor  # [n, 1] steps since the moments began

    @classmethod
    def at(cls, code: Tensor, lr: Tensor) -> Descent:
        """Before the first look."""
        zero, one = torch.zeros_like(code[:, 0]), torch.ones_like(code[:, :1])
        return cls(code, code, zero + torch.inf, one * lr, zero, torch.zeros(*code.shape, 2).to(code), 0 * one)

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


def first_step(model: Model, lr: float | None = None) -> Tensor:
    """Step per latent dimension [n_latent], or twice as many where codes have a variance: `lr`, or half the mean
    standard deviation of the components of its part, 0.1 without a mixture. Introduced in notebook 05.
    """
    step = torch.full((model.prior.n_latent,), 0.1 if lr is None else lr, device=next(model.parameters()).device)
    for place, mixture in parts_of(model.prior).values() if lr is None else ():
        step[place] = 0.5 * torch.exp(-0.5 * mixture.neg_log_var.detach()).mean()
    return step.repeat(1 + table_of(model).stochastic)


@contextlib.contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Nothing of the model can learn inside the block, and no slopes of its weights are computed.

    Introduced in notebook 05.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in learning:
            p.requires_grad_(False)
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)


def amortised(
    model: Model,
    data: Samples | mudata.MuData,
    encoder: nn.Module | None = None,
    hidden: Sequence[int] = (100,),
    modalities: Sequence[str] | None = None,
    **settings,
) -> Model:
    """An encoder for a model that was trained without one: it learns on the train split, by the same loss, while
    decoder and prior stay as they are. The result is a model like any other, which reads new samples at once; as
    `infer(start=)` it tells the search where to begin.

    `encoder`: Batch -> Posterior; unless given a `DenseEncoder` with `hidden` layers that reads `modalities` (all that
    codes were learned from), log(1 + x) of counts. Covariates of the model come from a MuData's obs. `settings` as of
    `training.fit` (epochs=, lr=, patience= …). Source: the encoder on a frozen decoder of Schuster and Krogh 2021,
    proposed for the DGD in the thesis of Schuster 2024. Introduced in notebook 05.
    """
    device = next(model.parameters()).device
    samples = data if isinstance(data, Samples) else Samples(data, device, covariates=covariates_of(model))
    read = tuple(modalities or table_of(model).modalities)
    own = encoder or reader_for(model, {m: samples.n_vars[m] for m in read}, hidden)
    rest = copy.deepcopy([model.prior, model.decoders])
    for part in rest:
        part.requires_grad_(False)
    found = Model([own], model.fuse, rest[0], rest[1], model.penalties).like(model)
    found.recipe = {"name": "", "arguments": {}}
    if encoder is None and model.recipe["name"]:
        given = {"base": model.recipe["name"], "n_vars": {m: samples.n_vars[m] for m in read}, "hidden": tuple(hidden)}
        found.recipe = {"name": "with_encoder", "arguments": given | {"given": model.recipe["arguments"]}}
    training.fit(found, samples, **settings)
    return found


def add_class(
    model: Model, data: Samples | mudata.MuData, covariate: str, split: str | None = None, **options
) -> Model:
    """The model with one more class of a covariate, that of these samples, and with their codes (`infer`, which takes
    the `options`): a batch that the model has not seen gets a component of its own, and nothing else changes.

    The samples first find their place with that covariate left free (one wide component), then the new component is put
    around them, and they find their place in it. Without it, a batch is placed among the known ones. Raises
    `ValueError` for an unknown covariate. Source: the package multiDGD learns such a component by gradient and discards
    it. Introduced in notebook 06.
    """
    known = covariates_of(model)
    if covariate not in known:
        raise ValueError(f"the model has no covariate {covariate!r}{closest(covariate, known)}; it has {few(known)}")
    old = model.prior.parts[covariate]
    anywhere = GaussianMixture(old.n_latent, 1, "fixed", sd=old.softball.scale).to(old.mean.device)
    anywhere.mean.data.zero_()
    z = codes(with_part(model, covariate, anywhere), data, split, **options)[:, model.prior.place[covariate]]
    more = old.extended(torch.from_numpy(z))
    found = with_part(
        infer(with_part(model, covariate, more.only(old.n_components)), data, split, **options), covariate, more
    )
    if sizes := model.recipe["arguments"].get("covariates"):
        given = model.recipe["arguments"] | {"covariates": {**sizes, covariate: more.n_components}}
        found.recipe = model.recipe | {"arguments": given}
    return found.eval()


def with_part(model: Model, name: str, mixture: GaussianMixture) -> Model:
    """The model with another mixture for one part of its prior; all else is shared. Introduced in notebook 06."""
    prior = Together(model.prior.parts | {name: mixture})
    return learned(table_of(model), prior, model.decoders, model.penalties).like(model)


def covariates_of(model: Model) -> list[str]:
    """Covariates that have a part of the latent space. Introduced in notebook 06."""
    return [name for name in parts_of(model.prior) if name != BASAL]


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
    model.check_features(samples)
