"""The scenarios of notebook 04: data with a source and a target, simple methods and scores. One interface for pictures
and profiles, pairs and classes, the embedded sets and a user's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from mudata import MuData

from helpers import alignment, controls, datasets, prepare, translation
from helpers.batches import Samples
from helpers.wording import few


class Unordered(ValueError):
    """Blocks of time were asked for, and nothing tells the time."""


@dataclass(frozen=True)
class Scenario:
    """Prepared data in which `target` is to be told from `source`. Introduced in notebook 04."""

    name: str
    mdata: MuData
    samples: Samples
    source: str
    target: str
    label_key: str  # classes, "" where there are none
    order: str = ""  # a column with a number, such as time, "" where there is none
    blocked: bool = False  # whole stretches of the order are held back

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) where the target is pictures."""
        return self.samples.shapes.get(self.target)

    @property
    def paired(self) -> bool:
        """Whether some samples have both modalities."""
        return len(self.rows("train", self.source, self.target)) > 0

    @property
    def key(self) -> str:
        """The column of obs by which samples are coloured and sorted: the order where there are pairs, or the class."""
        return self.order if self.order and self.paired else self.label_key

    def about(self, rows: np.ndarray) -> pd.Series:
        """Order or class of the samples at `rows`; empty texts where nothing is known."""
        obs = self.mdata.obs.iloc[rows]
        return obs[self.key] if self.key else pd.Series("", obs.index)

    def rows(self, split: str, *modalities: str) -> np.ndarray:
        """Row numbers of the samples of a split that have all of the modalities."""
        here = self.mdata.obs["split"].to_numpy() == split
        has = (self.mdata.obs_names.isin(self.mdata[m].obs_names) for m in modalities)
        return np.flatnonzero(np.logical_and.reduce([here, *has]))

    def x(self, modality: str, split: str, *also: str) -> np.ndarray:
        """Prepared values [n, n_vars] of the samples of a split that have the modality (and those of `also`)."""
        rows = torch.from_numpy(self.rows(split, modality, *also))
        return self.samples[rows].x[modality].cpu().numpy()

    def labels(self, split: str, *modalities: str) -> np.ndarray:
        """Classes of the same samples."""
        return self.mdata.obs[self.label_key].astype(str).to_numpy()[self.rows(split, *modalities)]

    def classes(self) -> list[str]:
        """Classes that both modalities have in training, in their own order where they have one."""
        known = self.mdata.obs[self.label_key].astype("category").cat.categories.astype(str)
        common = set(self.labels("train", self.source)) & set(self.labels("train", self.target))
        return [name for name in known if name in common]

    def values(self, split: str, *modalities: str) -> np.ndarray:
        """The ordering number (time) of the same samples."""
        return self.mdata.obs[self.order].to_numpy(float)[self.rows(split, *modalities)]


def scenario(
    dataset: str,
    source: str,
    target: str,
    label_key: str = "",
    order: str = "",
    n_features: int = 300,
    blocks: int = 0,
    ids: Mapping[str, Iterable[str]] | None = None,
    n_samples: int = 0,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Scenario:
    """Load, split and prepare: profiles are filtered by variance and standardised on train, pictures stay as they are.

    `dataset`: a name of the registry or a path; `order` a column of obs with a number (time), found by itself where
    it is called "time". `blocks` cuts the ordered samples into so many runs, each of which belongs to one split;
    otherwise the split is random, stratified by class. `ids`: split -> sample names instead. Where only some samples
    have both modalities, these are split and the others serve training. `n_samples`: a random subset of so many.
    Raises ValueError for modalities that are not there. Introduced in notebook 04.
    """
    mdata = datasets.load(dataset, label_key=label_key, modalities=(source, target))
    mdata = subset(mdata, n_samples, seed)
    label_key = mdata.uns["dataset"]["label_key"]
    order = order or ("time" if "time" in mdata.obs else "")
    mdata = splitted(mdata, (source, target), label_key, order, blocks, ids, seed)
    pictures = [m for m in mdata.mod if "image_shape" in mdata[m].uns]
    select = {m: "none" if m in pictures else "variance" for m in mdata.mod}
    scale = {m: "none" if m in pictures else "standard" for m in mdata.mod}
    kept = {m: None if m in pictures else n_features for m in mdata.mod}
    mdata = prepare.fit_transform(mdata, select, kept, scale)
    samples = Samples(mdata, device, covariates=[label_key] if label_key else [])
    name = dataset if dataset in datasets.registry() else "your data"
    return Scenario(f"{name}: {source} → {target}", mdata, samples, source, target, label_key, order, blocks > 0)


def by_split(
    dataset: str, source: str, target: str, splits: Sequence[str], n_blocks: int = 12, **options
) -> dict[str, Scenario]:
    """The same data under a "random" split and one in "blocked" stretches of its order, as asked for.

    Without an order "blocked" is left out, with a warning. `options` as in `scenario`. Introduced in notebook 04.
    """
    if wrong := [s for s in splits if s not in ("random", "blocked")]:
        raise ValueError(f"splits are random and blocked, not {few(wrong)}")
    found = {}
    for split in splits:
        try:
            found[split] = scenario(dataset, source, target, blocks=n_blocks * (split == "blocked"), **options)
        except Unordered as error:
            warnings.warn(f"the blocked split is left out: {error}", stacklevel=2)
    return found


def summary(given: Mapping[str, Scenario]) -> pd.DataFrame:
    """How many samples of the target each split has, and whether there are pairs. Introduced in notebook 04."""
    sizes = {s: [len(g.rows(s, g.target)) for g in given.values()] for s in ("train", "valid", "test")}
    pairs = [len(g.rows("train", g.source, g.target)) for g in given.values()]
    return pd.DataFrame({"what": [g.name for g in given.values()]} | sizes | {"train pairs": pairs}, index=list(given))


def parse(text: str) -> tuple[str, str, str]:
    """ "tcga-brca rna cnv" -> data set, source, target; a path may hold spaces. Introduced in notebook 04."""
    words = text.rsplit(maxsplit=2)
    if len(words) != 3:
        raise ValueError(
            f"a scenario is written 'data set, source, target', such as 'sim-bulk methylation rna'; got {text!r}"
        )
    return tuple(words)


def subset(mdata: MuData, n_samples: int, seed: int) -> MuData:
    """A random subset of `n_samples` (0, or more than there are: all), in the same order.

    Samples with the same modalities are drawn together, as many of each kind as of the others where there are enough,
    so that a large modality cannot crowd out a small one. Introduced in notebook 04.
    """
    if not 0 < n_samples < mdata.n_obs:
        return mdata
    kind = sum(mdata.obs_names.isin(adata.obs_names) * 2**k for k, adata in enumerate(mdata.mod.values()))
    order = np.random.default_rng(seed).permutation(mdata.n_obs)
    turn = pd.Series(kind[order]).groupby(kind[order]).cumcount()  # the first of every kind, then the second, …
    return mdata[np.sort(order[np.argsort(turn, kind="stable")[:n_samples]])].copy()


def splitted(
    mdata: MuData,
    both: Sequence[str],
    label_key: str,
    order: str,
    blocks: int,
    ids: Mapping[str, Iterable[str]] | None,
    seed: int,
) -> MuData:
    """`mdata` with obs["split"], drawn among the samples that have both modalities where there are some."""
    if ids is not None:
        return prepare.split(mdata, ids=ids)
    has = np.logical_and.reduce([mdata.obs_names.isin(mdata[m].obs_names) for m in both])
    part = mdata[has].copy() if has.any() and not has.all() else mdata
    if blocks:
        if not order:
            raise Unordered("blocks need a column of obs with an order, such as time: name it with order=")
        part.obs["block"] = pd.qcut(part.obs[order].rank(method="first"), blocks, labels=False).astype(str)
        part = prepare.split(part, group="block", seed=seed)
    else:
        part = prepare.split(part, stratify=label_key or None, seed=seed)
    mdata.obs["split"] = part.obs["split"].reindex(mdata.obs_names).fillna("train")
    return mdata


# ---------------------------------------------------------------- what a translation is held against


def scored_rows(given: Scenario) -> np.ndarray:
    """Rows of the test samples whose translation is scored: those with source and target, or without pairs all that
    have the source. Introduced in notebook 04.
    """
    return given.rows("test", given.source, *([given.target] if given.paired else []))


def baselines(given: Scenario) -> dict[str, np.ndarray]:
    """What simple methods say of the scored test samples: `controls.translators` for pairs, else the mean target of
    the class that is read from the source. Under a blocked split their penalties are chosen over stretches of the
    training samples too. Introduced in notebook 04.
    """
    from sklearn.model_selection import KFold

    x_test = given.samples[torch.from_numpy(scored_rows(given))].x[given.source].cpu().numpy()
    if given.paired:
        x, y = (given.x(m, "train", given.source, given.target) for m in (given.source, given.target))
        time = np.argsort(given.values("train", given.source, given.target)) if given.blocked else slice(None)
        fitted = controls.translators(x[time], y[time], KFold(5) if given.blocked else None)
    else:
        x, y = given.x(given.source, "train"), given.x(given.target, "train")
        classes = given.labels("train", given.source), given.labels("train", given.target)
        by_class = controls.by_class(x, classes[0], y, classes[1])
        fitted = {"mean": controls.mean_target(y), by_class.name: by_class}
    return {name: control.predict(x_test) for name, control in fitted.items()}


def reader(given: Scenario, seed: int = 0, most: int = 100) -> translation.Reader | None:
    """A network that learned from the true train pictures to tell time, or the class where there is no time.

    Trained for its usual number of epochs, and `most` at most. None where the target is no picture, or nothing is
    known to tell. Introduced in notebook 04.
    """
    if given.shape is None or not (given.order or given.label_key):
        return None
    x = given.x(given.target, "train")
    if given.order and given.paired:
        y, epochs = given.values("train", given.target), min(40, most)
        return translation.image_regressor(x, y, given.shape, seed, epochs)
    return translation.image_classifier(x, given.labels("train", given.target), given.shape, seed, min(10, most))


def score(given: Scenario, x_hat: np.ndarray, read: translation.Reader | None = None) -> dict[str, float]:
    """Scores of translations [n, n_vars] of the scored test samples: against the truth where there are pairs, and what
    the reader makes of them. Introduced in notebook 04.
    """
    found: dict[str, float] = {}
    rows = scored_rows(given)
    mean = given.x(given.target, "train").mean(0)
    if given.paired:
        x = given.samples[torch.from_numpy(rows)].x[given.target].cpu().numpy()
        scores = translation.profile_scores if given.shape is None else translation.image_scores
        found |= scores(x, x_hat, mean, *([given.shape] if given.shape else []))
    if read is not None:
        column, y = given.key, given.about(rows)
        y = y.to_numpy(float) if column == given.order else y.astype(str).to_numpy()
        found |= {f"{k} of {column}": v for k, v in read.scores(y, read.predict(x_hat)).items()}
    return found


def aligned(given: Scenario, z: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How well the latent spaces of source and target agree, on test samples of z, modality -> [n_obs, n_latent].

    "FOSCTTM" for pairs; "label transfer", the balanced accuracy of classes carried from the source's side to the
    target's by nearest neighbours; "modality accuracy" of an independent classifier, 0.5 where the two cannot be told
    apart. Introduced in notebook 04.
    """
    here = {m: z[m][given.rows("test", m)] for m in (given.source, given.target)}
    found = {"modality accuracy": alignment.modality_accuracy(here)}
    if given.paired:
        found["FOSCTTM"] = alignment.foscttm(*(z[m][scored_rows(given)] for m in here))
    if given.label_key:
        (z_from, z_to), (y_from, y_to) = here.values(), (given.labels("test", m) for m in here)
        found["label transfer"] = alignment.label_transfer(z_from, y_from, z_to, y_to)["balanced_accuracy"]
    return found


def walk(given: Scenario, z: np.ndarray, n: int = 16) -> tuple[list[str], np.ndarray]:
    """A way through the source's latent space: names and positions [n, n_latent] of its steps.

    Along time, where there is an order: the mean of the training samples in each of `n` stretches. Otherwise from
    class centre to class centre, in straight lines; without classes along the first principal axis.
    Introduced in notebook 04.
    """
    rows = given.rows("train", given.source)
    timed = bool(given.order) and given.key == given.order
    if timed or not given.label_key:
        along = given.values("train", given.source) if timed else controls.pca(z[rows], 1).embed(z[rows])[:, 0]
        stretches = np.array_split(np.argsort(along), min(n, len(rows)))
        return [f"{along[s].mean():.3g}" for s in stretches], np.stack([z[rows[s]].mean(0) for s in stretches])
    centres = alignment.centres(z[rows], given.labels("train", given.source)).loc[given.classes()]
    steps = max(1, n // max(len(centres) - 1, 1))
    path = [(a, b, t / steps) for a, b in zip(centres.index, centres.index[1:], strict=False) for t in range(steps)]
    names = [a if t == 0 else f"{a} → {b} {t:.0%}" for a, b, t in path] + [centres.index[-1]]
    places = [(1 - t) * centres.loc[a] + t * centres.loc[b] for a, b, t in path] + [centres.iloc[-1]]
    return names, np.stack(places)
