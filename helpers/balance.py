"""Weights of the loss terms over a training: fixed schedules, or set so that every term holds a wanted share.

`Schedules` and `Balanced` answer alike, and the training loop knows no more of them: `begin` before the first epoch,
`at` and `last` for weights, `observe` after an epoch, `end` after the last, `state` and `restore` for checkpoints,
`plan` for what two runs must agree on. From epoch `fixed_from` on, nothing but an annealing curve changes them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from helpers.batches import Samples, epoch
from helpers.schedules import Curve, scaled
from helpers.wording import closest

Numbers = dict[str, float]
Look = Callable[[], tuple[Numbers, Numbers]]  # loss terms before training, and the floors of some of them
AT_A_TIME = 1024  # samples, where the untrained model is looked at
STEP = 2.0  # a balanced weight changes at most by this factor in an epoch


@dataclass(frozen=True)
class Shares:
    """Wanted shares of the loss, for `training.fit(weights=Shares({"nll": 0.6, "kl": 0.1, "paired": 0.3}))`.

    The magnitude of a group of terms is Σ |term − floor|, its mean over the train split averaged over past epochs.
    The floor of a reconstruction term is its value for a perfect reconstruction, so that a share counts half the
    deviance, not the constants of a density. The reference group keeps weight 1, and any other has

        weight = (its share / share of the reference) × (magnitude of the reference / its magnitude).

    One look at the untrained model gives the first weights. After that, a weight changes at most twofold in an epoch.

    Parameters
    ----------
    wanted : group -> share; positive, sum 1. A group is a loss term or the part before "/" of several. Terms in no
        group keep weight 1 and count for nothing (the loss of a discriminator, for example).
    reference : the group of weight 1; the first one named, by default.
    anneal : group -> annealing curve, or its name in `schedules`, that multiplies its weight. The share is what the
        group would hold at full weight, so the curve should be near its end when weights are frozen.
    until : part of the training, 0 to 1, after which weights are frozen. Only then do totals on the valid split
        compare and patience counts; with 1 it never does.
    momentum : of the running magnitudes, 0 to below 1: magnitude = momentum × magnitude + (1 − momentum) × new.
    limit : a magnitude counts as no less than 1/limit of its largest so far. A term that vanishes therefore has a
        bounded weight. One that has always been zero keeps weight 1 until it first differs.

    Weighing a term that training can press to zero feeds back: a small KL divergence gets a large weight, which makes
    it smaller still, until nothing is encoded; on small data even a share of 0.05 ended so. Anneal such a term, so
    that it can grow first, `anneal={"kl": "logistic-early"}`, and keep its share at or below 0.1. A share missed by
    more than a factor of two in the end is a warning.

    Raises `ValueError` for shares that are not positive or do not sum to 1, a reference or annealed group without a
    share, an unknown curve, and options out of range. Introduced in notebook 04.
    """

    wanted: Mapping[str, float]
    reference: str | None = None
    anneal: Mapping[str, str | Curve] = field(default_factory=dict)
    until: float = 0.5
    momentum: float = 0.7
    limit: float = 1e4

    def __post_init__(self):
        total = math.fsum(self.wanted.values())
        if not self.wanted or min(self.wanted.values()) <= 0 or not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"shares must be positive and sum to 1, but {dict(self.wanted)} sums to {total:.6g}")
        for name in (*self.anneal, *([] if self.reference is None else [self.reference])):
            if name not in self.wanted:
                near = closest(name, self.wanted)
                raise ValueError(f"{name!r} holds no share{near or f': the groups are {list(self.wanted)}'}")
        if not (0 <= self.until <= 1 and 0 <= self.momentum < 1 and self.limit >= 1):
            raise ValueError(
                f"need 0 <= until <= 1, 0 <= momentum < 1 and limit >= 1, got {self.until}, {self.momentum} and "
                f"{self.limit}"
            )
        self.curves()

    def curves(self) -> dict[str, Curve]:
        """Annealed group -> its curve, (t, T) -> [0, 1]."""
        return {name: scaled(1.0, shape) for name, shape in self.anneal.items()}


class Schedules:
    """Weights that are numbers or curves given beforehand. Introduced in notebook 01."""

    fixed_from = 0

    def __init__(self, weights: Mapping[str, float | Curve], epochs: int):
        self.curves = {name: w if callable(w) else scaled(w) for name, w in weights.items()}
        self.epochs = epochs

    def begin(self, look: Look) -> Numbers:
        """Needs no look at the terms, and no floors."""
        return {}

    def at(self, t: int) -> Numbers:
        """Name -> weight in epoch t, counted from 0."""
        return {name: float(curve(t, self.epochs)) for name, curve in self.curves.items()}

    def last(self) -> Numbers:
        """The weights of the last epoch."""
        return self.at(self.epochs - 1)

    def observe(self, t: int, terms: Mapping[str, float]) -> None:
        """Learns nothing from an epoch."""

    def end(self) -> None:
        """Has nothing to say."""

    def plan(self) -> Any:
        """The weights of all epochs."""
        return [self.at(t) for t in range(self.epochs)]

    def state(self) -> dict[str, Numbers]:
        """Nothing to remember."""
        return {}

    def restore(self, state: Mapping[str, Numbers]) -> None:
        """Nothing to remember."""


class Balanced:
    """Weights that follow `Shares` through one training. Introduced in notebook 04."""

    def __init__(self, shares: Shares, epochs: int):
        self.shares, self.epochs, self.curves = shares, epochs, shares.curves()
        self.reference = shares.reference or next(iter(shares.wanted))
        self.fixed_from = round(shares.until * epochs)
        self.weights = dict.fromkeys(shares.wanted, 1.0)
        self.magnitudes, self.peaks, self.floors = {}, {}, {}

    def begin(self, look: Look) -> Numbers:
        """Set the first weights by one look; returns the floors of the balanced terms, 0 where the model has none."""
        terms, floors = look()
        if unknown := sorted(set(floors) - set(terms)):
            raise ValueError(f"model.floors names {unknown}, but the model's loss terms are {list(terms)}")
        groups = group_of(terms, self.shares.wanted)
        self.floors = {term: floors.get(term, 0.0) for term, group in groups.items() if group is not None}
        self.magnitudes = magnitudes(terms, self.floors, self.shares.wanted)
        self.peaks = dict(self.magnitudes)
        self.weights = self.targets()
        return self.floors

    def at(self, t: int) -> Numbers:
        """Group -> weight in epoch t, counted from 0: the balanced weight times its annealing curve."""
        factor = {name: float(curve(t, self.epochs)) for name, curve in self.curves.items()}
        return {name: w * factor.get(name, 1.0) for name, w in self.weights.items()}

    def last(self) -> Numbers:
        """The balanced weights of now with all annealing done; those of the last epoch once they are frozen."""
        return self.at(self.epochs - 1)

    def observe(self, t: int, terms: Mapping[str, float]) -> None:
        """Learn from the mean terms of epoch t on the train split; weights change as long as they are not frozen."""
        keep = self.shares.momentum
        for name, new in magnitudes(terms, self.floors, self.shares.wanted).items():
            self.magnitudes[name] = keep * self.magnitudes[name] + (1 - keep) * new
            self.peaks[name] = max(self.peaks[name], self.magnitudes[name])
        for name, target in self.targets().items() if t < self.fixed_from else ():
            before = self.weights[name]
            self.weights[name] = min(max(target, before / STEP), before * STEP)

    def end(self) -> None:
        """Warn of groups whose share of the running magnitudes is off by more than a factor of two in the end."""
        parts = {name: w * self.magnitudes[name] for name, w in self.last().items()}
        total, wanted = sum(parts.values()) or 1.0, self.shares.wanted
        shares = {name: part / total for name, part in parts.items()}
        far = [f"{name!r} holds {v:.2g}, not {wanted[name]}" for name, v in shares.items() if _far(v, wanted[name])]
        if far:
            warnings.warn(
                f"shares of the loss were not reached: {'; '.join(far)}. Train for more epochs, raise `until`, or wish "
                "for less of a term that falls to zero",
                stacklevel=3,
            )

    def targets(self) -> Numbers:
        """The weights at which every group would hold its share of the running magnitudes."""
        size = {name: max(m, self.peaks[name] / self.shares.limit) for name, m in self.magnitudes.items()}
        unit = size[self.reference] / self.shares.wanted[self.reference]  # of magnitude, per share
        wanted = {name: share * unit / size[name] for name, share in self.shares.wanted.items() if size[name] * unit}
        return self.weights | wanted | {self.reference: 1.0}

    def plan(self) -> Any:
        """Shares, options and annealing curves."""
        s, curves = self.shares, sorted(self.curves.items())
        anneal = [(name, [float(curve(t, self.epochs)) for t in range(self.epochs)]) for name, curve in curves]
        return [sorted(s.wanted.items()), self.reference, anneal, self.fixed_from, s.momentum, s.limit]

    def state(self) -> dict[str, Numbers]:
        """What the weights to come depend on; JSON keeps every bit of it."""
        names = ("weights", "magnitudes", "peaks", "floors")
        return {name: dict(getattr(self, name)) for name in names}

    def restore(self, state: Mapping[str, Numbers]) -> None:
        """Continue from `state`."""
        for name, values in state.items():
            setattr(self, name, dict(values))


def weighing(weights: Mapping[str, float | Curve] | Shares | None, epochs: int) -> Schedules | Balanced:
    """What `training.fit(weights=…)` was given, ready for a training of so many epochs. Introduced in notebook 04."""
    return Balanced(weights, epochs) if isinstance(weights, Shares) else Schedules(weights or {}, epochs)


def group_of(terms: Iterable[str], names: Collection[str]) -> dict[str, str | None]:
    """Term -> the one of `names` that weighs it, its own or its part before "/"; None where neither is named.

    Raises `ValueError` for names that fit no term. Introduced in notebook 04.
    """
    groups = {term: next((n for n in (term, term.split("/")[0]) if n in names), None) for term in terms}
    if unused := set(names) - set(groups.values()):
        raise ValueError(f"weights for {sorted(unused)}, but the model's loss terms are {list(groups)}")
    return groups


def weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ weight × term; a weight applies to the term of its name, or to all terms "name/…".

    Raises `ValueError` for a weight that no term has. Introduced in notebook 01.
    """
    groups = group_of(terms, weights)
    return torch.stack([v if groups[k] is None else weights[groups[k]] * v for k, v in terms.items()]).sum()


def first_look(model: nn.Module, samples: Samples, noise: torch.Generator, seed: int) -> tuple[Numbers, Numbers]:
    """Loss terms of up to 1024 training samples, drawn by `seed`, and floors over the whole train split.

    `noise` is read and left as it is; batch-norm statistics change. Introduced in notebook 04.
    """
    rows, own = samples.rows("train"), torch.Generator(noise.device)
    own.set_state(noise.get_state())
    some = next(epoch(rows, AT_A_TIME, torch.Generator().manual_seed(seed)))
    model.train()  # batch statistics, as in the epochs to come
    with torch.no_grad():
        terms = {term: float(v) for term, v in model.losses(samples[some], own).items()}
        return terms, mean_floors(model, samples, rows)


def mean_floors(model: nn.Module, samples: Samples, rows: Tensor) -> Numbers:
    """Means over `rows` of what `model.floors(batch)` gives, the least its terms can be; empty without the method.

    Introduced in notebook 04.
    """
    sums: Numbers = {}
    for index in epoch(rows, AT_A_TIME) if hasattr(model, "floors") else ():
        for term, value in model.floors(samples[index]).items():
            sums[term] = sums.get(term, 0.0) + float(value) * len(index)
    return {term: value / len(rows) for term, value in sums.items()}


def magnitudes(terms: Mapping[str, float], floors: Mapping[str, float], names: Collection[str]) -> Numbers:
    """Name -> Σ |term − floor| over the terms that it weighs. Introduced in notebook 04."""
    sizes = dict.fromkeys(names, 0.0)
    for term, name in group_of(terms, names).items():
        if name is not None:
            sizes[name] += abs(terms[term] - floors.get(term, 0.0))
    return sizes


def contributions(
    history: pd.DataFrame, floors: Mapping[str, float] | None = None, outside: Collection[str] = ()
) -> pd.DataFrame:
    """Share of every group of terms in the loss: a tidy table (epoch, split, group, share), shares summing to 1.

    Parameters
    ----------
    history : what `training.fit` returned. A group holds the terms of one weight; terms without a weight are grouped
        by their part before "/" and count once.
    floors : term -> the value that counts as zero, 0 where not named; by default those that `fit` wrote down
        under `Shares`.
    outside : groups that are no part of the loss proper, such as "discriminator"; a training under `Shares` leaves
        out what holds no share by itself.

    The share of a group is weight × Σ |term − floor| over that of all groups, with the weights of that epoch in
    training for both splits; NaN where all are zero. Raises `ValueError` where `floors` or `outside` name what the
    history lacks. Introduced in notebook 04.
    """
    rows, written = _loss_terms(history)
    weights = history[history.term.str.startswith("weight/")]
    names = set(weights.term.str.removeprefix("weight/"))
    groups = {t: name or t.split("/")[0] for t, name in group_of(rows.term.unique(), names).items()}
    _check_known("floors", floors or {}, groups)
    _check_known("outside", outside, groups.values())
    rows = rows.assign(group=rows.term.map(groups))
    rows = rows[~rows.group.isin(list(outside))]
    size = (rows.value - rows.term.map(written if floors is None else floors).fillna(0.0)).abs()
    weight = weights.set_index(["epoch", weights.term.str.removeprefix("weight/")]).value.to_dict()
    factor = [weight.get(key, 1.0) for key in zip(rows.epoch, rows.group, strict=True)]
    parts = rows.assign(share=size * factor).groupby(["epoch", "split", "group"], sort=False)["share"].sum()
    return (parts / parts.groupby(["epoch", "split"]).transform("sum")).reset_index()


def _far(share: float, wanted: float) -> bool:
    return not wanted / 2 <= share <= wanted * 2


def _loss_terms(history: pd.DataFrame) -> tuple[pd.DataFrame, Numbers]:
    """Rows of the balanced loss terms of all splits (recorded numbers are on the valid split alone), and floors."""
    floors = history[history.term.str.startswith("floor/")]
    written = dict(zip(floors.term.str.removeprefix("floor/"), floors.value, strict=True))
    aside = history.term.str.match(r"(weight|floor)/") | (history.term == "total")
    terms = set(history[(history.split == "train") & ~aside].term)
    return history[history.term.isin(terms & set(written) if written else terms)], written


def _check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = sorted(set(known))
    for name in names:
        if name not in known:
            raise ValueError(f"{what} names {name!r}, but the history holds {known}{closest(name, known)}")
