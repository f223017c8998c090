"""Predicted features of held-out spots against the measured ones, beside what the annotation alone would say.

The study of MIMA's paper (results, "translation"; Supplementary Figure 4B): is a translated spot nearer to the measured
one than the centroid of its annotation is? Every number here is of spots that the predictor had not seen.
Introduced in notebook 07.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData

from helpers import controls
from helpers.splits import SPLITS, column_of
from helpers.wording import few

Predict = Callable[[str | None, str], "np.ndarray | None"]  # (source or None for all, target) -> [n_obs, n_vars]
Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (train [n_obs], test [n_obs]) -> [n_test, n_vars]
# (x_train, y_train, samples_train) -> (x, samples) -> y_hat
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Callable[[np.ndarray, np.ndarray], np.ndarray]]
MIN_VARIANCE = 1e-12  # of a feature relative to its mean square, below which it is constant but for rounding


# ---------------------------------------------------------------- what is held out


def within_sample_folds(obs: pd.DataFrame, sample_key: str, n_folds: int = 4, seed: int = 0) -> np.ndarray:
    """The fold 0 ... n_folds - 1 of every spot [n_obs], each sample's spots dealt at random to folds of equal size.

    The "4CV" of MIMA's paper. Spots next to each other land in different folds, so that a smooth map is easier to fill
    in than a section never seen: read it beside leaving out whole samples.
    Raises ValueError for an unknown column, spots without a sample, fewer than two folds, and samples with fewer spots
    than folds. Introduced in notebook 07.
    """
    samples = _names(obs, sample_key)
    if n_folds < 2:
        raise ValueError(f"n_folds is {n_folds}: two or more are needed to hold something out")
    names, codes = np.unique(samples, return_inverse=True)
    sizes = np.bincount(codes)
    if (small := names[sizes < n_folds]).size:
        raise ValueError(f"sample {few(small)} has fewer than {n_folds} spots: leave it out, or take fewer folds")
    rng, folds = np.random.default_rng(seed), np.empty(len(samples), int)
    for code in range(len(names)):
        rows = rng.permutation(np.flatnonzero(codes == code))
        folds[rows] = (np.arange(len(rows)) + code) % n_folds  # a start that moves on, so that sizes stay equal
    return folds


def four_fold(
    mdata: MuData,
    train_and_predict: Callable[[MuData], Mapping[Hashable, np.ndarray]],
    sample_key: str,
    n_folds: int = 4,
    n_valid: float = 0.1,
    seed: int = 0,
) -> tuple[dict[Hashable, np.ndarray], np.ndarray]:
    """Predictions of every spot by a model that had not seen it, and the folds [n_obs] (`within_sample_folds`).

    `train_and_predict` is called once per fold with a copy of `mdata` whose obs["split"] says "test" for the spots held
    out, "valid" for the share `n_valid` of the others, drawn at random, and "train". It fits what it needs, scalers
    included, and returns arrays [n_obs, n_vars] by name, e.g. by (source, target), in units and of features that do not
    depend on the fold (`prepare.inverse`; select features beforehand). Of these the rows held out are kept: whole
    tissue maps from held-out predictions.
    Raises ValueError as `within_sample_folds`, and for arrays of other shapes or names than in the first fold.
    Introduced in notebook 07.
    """
    folds, found = within_sample_folds(mdata.obs, sample_key, n_folds, seed), {}
    rng = np.random.default_rng(seed)
    for fold in range(n_folds):
        part, chance = mdata.copy(), rng.random(mdata.n_obs)
        split = np.where(folds == fold, "test", np.where(chance < n_valid, "valid", "train"))
        part.obs["split"] = pd.Categorical(split, categories=SPLITS)
        predicted = {key: np.asarray(x) for key, x in train_and_predict(part).items()}
        if fold == 0:
            found = {key: np.full(x.shape, np.nan, np.float32) for key, x in predicted.items()}
        shapes = {key: (mdata.n_obs, *x.shape[1:]) for key, x in found.items()}
        if (given := {key: x.shape for key, x in predicted.items()}) != shapes:
            raise ValueError(f"fold {fold} gave arrays {given}, not {shapes}: give every fold all spots and one width")
        for key, x in predicted.items():
            found[key][folds == fold] = x[folds == fold]
    return found, folds


def measured(mdata: MuData) -> dict[str, np.ndarray]:
    """The values of each modality [n_obs, n_vars], dense, in the order of all spots; NaN rows for spots without it.

    Introduced in notebook 07.
    """
    found = {}
    for m, adata in mdata.mod.items():
        x = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
        found[m] = np.full((mdata.n_obs, adata.n_vars), np.nan, np.float32)
        found[m][mdata.obs_names.get_indexer(adata.obs_names)] = x
    return found


def variable_features(x: np.ndarray, n_variable: int = 2000, n: int = 1000) -> np.ndarray:
    """Columns of x [n_obs, n_vars], dense or sparse, in their order: of the `n_variable` with the largest variance, the
    `n` with the highest mean. All where there are no more than that.

    The choice of MIMA's paper (Methods, "Highly variable features selection"), meant for values where more is more:
    log-normalised counts, ion intensities. Rows with NaN are left out; give train rows to choose on train only.
    Raises ValueError where no row is measured. Introduced in notebook 07.
    """
    x = x.toarray() if hasattr(x, "toarray") else np.asarray(x)
    x = x[np.isfinite(x).all(1)].astype(float)
    if not len(x):
        raise ValueError("variable_features: every row has NaN or infinite values, so no feature can be chosen")
    variable = np.argsort(-x.var(0), kind="stable")[:n_variable]
    return np.sort(variable[np.argsort(-x[:, variable].mean(0), kind="stable")[:n]])


# ---------------------------------------------------------------- scores


def per_spot_error(y: np.ndarray, y_hat: np.ndarray) -> np.ndarray:
    """Mean squared error of every spot over its features [n_obs], in squared units of y. Introduced in notebook 07."""
    return ((np.asarray(y, float) - y_hat) ** 2).mean(1)


def per_feature_r2(y: np.ndarray, y_hat: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
    """Squared Pearson correlation of every feature [n_vars] over the spots, measured against predicted.

    With `samples` [n_obs] both are taken around their sample's mean first: differences between samples, batch effects
    among them, then earn nothing. 0 where the prediction is constant or runs against the measured feature (a square
    would hide the sign); NaN where the measured feature is constant. Introduced in notebook 07.
    """
    y, y_hat = np.asarray(y, float), np.asarray(y_hat, float)
    groups = np.zeros(len(y), int) if samples is None else np.asarray(samples)
    a, b = (values - _centroids(values, groups, groups, None) for values in (y, y_hat))
    square = [(part**2).sum(0) for part in (a, b)]
    floor = [MIN_VARIANCE * (values**2).sum(0) for values in (y, y_hat)]
    varies, says = (s > f for s, f in zip(square, floor, strict=True))
    r = (a * b).sum(0) / np.sqrt(np.where(varies & says, square[0] * square[1], 1))
    return np.where(varies, np.where(says, np.maximum(r, 0) ** 2, 0.0), np.nan)


def score(y: np.ndarray, y_hat: np.ndarray, samples: np.ndarray, centre: np.ndarray) -> dict[str, float]:
    """How near the prediction y_hat comes to the measured y, both [n_obs, n_vars], over the spots given.

    mse and its sd over spots; r2 and "r2 within", the mean of `per_feature_r2` over the features that vary, over all
    spots and around the means of their samples [n_obs]; "R2 over mean", 1 - SSE / SST pooled over spots and features,
    SST around `centre`, the train mean [n_vars] or [n_obs, n_vars]; n_spots and n_features (those that vary).
    Introduced in notebook 07.
    """
    error, total = per_spot_error(y, y_hat), ((y - centre) ** 2).sum()
    r2, within = per_feature_r2(y, y_hat), per_feature_r2(y, y_hat, samples)
    return {
        "mse": float(error.mean()),
        "mse sd": float(error.std()),
        "r2": _mean(r2),
        "r2 within": _mean(within),
        "R2 over mean": float(1 - error.sum() * y.shape[1] / total) if total > 0 else np.nan,
        "n_spots": len(y),
        "n_features": int(np.isfinite(r2).sum()),
    }


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


# ---------------------------------------------------------------- simple translators


def pooled(fit: Callable[[np.ndarray, np.ndarray], controls.Translator]) -> Fit:
    """A translator of `controls` that does not know from which sample a spot is. Introduced in notebook 07."""

    def fitted(x: np.ndarray, y: np.ndarray, samples: np.ndarray) -> Callable:
        translator = fit(x, y)
        return lambda x_new, samples_new: translator.predict(x_new)

    return fitted


def within_samples(fit: Callable[[np.ndarray, np.ndarray], controls.Translator]) -> Fit:
    """A translator of `controls` that knows the sample: from the source around its sample's train mean to the target
    around its own, which is then added. A sample without train spots takes the mean of all. Introduced in notebook 07.
    """

    def fitted(x: np.ndarray, y: np.ndarray, samples: np.ndarray) -> Callable:
        def around(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
            return _centroids(values, samples, wanted, values.mean(0))

        translator = fit(x - around(x, samples), y - around(y, samples))
        return lambda x_new, wanted: translator.predict(x_new - around(x, wanted)) + around(y, wanted)

    return fitted


def simple_translators() -> dict[str, Fit]:
    """The bars that a model should pass: 15 nearest neighbours and ridge regression to 20 components of the target,
    each pooled over samples and within them. Introduced in notebook 07.
    """
    fits = {"15 nearest": partial(controls.nearest, k=15), "ridge": controls.ridge_to_pca}
    known = {f"{name} within samples": within_samples(fit) for name, fit in fits.items()}
    return {name: pooled(fit) for name, fit in fits.items()} | known


# ---------------------------------------------------------------- the comparison


@dataclass(frozen=True)
class Held:
    """One target, and which of its spots are scored. Introduced in notebook 07."""

    y: np.ndarray  # [n_obs, n_vars], NaN for spots without the modality
    labels: np.ndarray  # [n_obs] annotation, "" for none
    samples: np.ndarray  # [n_obs]
    folds: np.ndarray  # [n_obs] when a spot was held out; -1 never
    present: np.ndarray  # [n_obs] the target was measured
    rows: np.ndarray  # [n_obs] scored: measured, held out, and its annotation is among the train spots of its fold

    def out_of_fold(self, fill: Fill, also: np.ndarray | None = None) -> np.ndarray:
        """What `fill` says of each fold's scored spots [n_obs, n_vars], fitted on those of other folds; else NaN."""
        found, also = np.full(self.y.shape, np.nan), self.present if also is None else also
        for fold in np.unique(self.folds[self.rows]):
            test, train = self.rows & also & (self.folds == fold), self.present & also & (self.folds != fold)
            if test.any() and train.sum() > 1:
                found[test] = fill(train, test)
        return found


def evaluate(
    predict: Predict,
    measured: Mapping[str, np.ndarray],
    obs: pd.DataFrame,
    label_key: str,
    sample_key: str,
    folds: np.ndarray,
    features: Mapping[str, np.ndarray] | None = None,
    translators: Mapping[str, Fit] | None = None,
) -> pd.DataFrame:
    """Fidelity of predictions for held-out spots: a row per source, target and kind with the numbers of `score`.

    Parameters
    ----------
    predict : (source, target) -> predicted target [n_obs, n_vars], made without the spot's own fold; source None means
        from all modalities. None for what is not predicted; NaN rows where the source was not measured.
    measured : modality -> values [n_obs, n_vars] in the units of the predictions, NaN rows where not measured.
    folds : [n_obs], from `four_fold`; or 0 for the test split and -1 for spots never held out.
    features : modality -> columns to score, e.g. `variable_features`; all by default.
    translators : name -> fit, `simple_translators()` by default; {} for none.

    Kinds: "reconstruction" (source the target itself, or "all"), "translation", the translators; and, with the source
    "annotation", which they are told as a pathologist would: "same annotation" (centroid of the train spots with the
    spot's label), "same annotation and sample" (of those in the spot's sample, where there are any), "other
    annotations" (mean of the train spots with other labels); with the source "none", "train mean" and "sample mean".
    The paper takes centroids over all other spots, held-out ones among them; here over train spots alone. All kinds are
    scored on the same spots, those with a label and all modalities; in a mosaic without such spots, on those that have
    source and target (n_spots tells). Centroids and translators learn from whatever train spots they can use.
    Raises ValueError for arrays that do not fit, missing predictions, and targets without a held-out spot.
    Introduced in notebook 07.
    """
    translators = simple_translators() if translators is None else translators
    rows, whole = [], np.all([np.isfinite(x).all(1) for x in measured.values()], axis=0)
    for target, y in measured.items():
        columns = slice(None) if features is None or target not in features else features[target]
        held = _held(target, np.asarray(y, float), columns, obs, label_key, sample_key, folds)
        held = replace(held, rows=held.rows & whole) if (held.rows & whole).any() else held
        centre = held.out_of_fold(lambda train, test, y=held.y: y[train].mean(0))
        told = {("none", "train mean"): centre} | _annotated(held)
        told |= _predicted(predict, held, target, columns, measured)
        for source, x in measured.items():
            if source != target:
                told |= {(source, name): _translated(held, x, fit) for name, fit in translators.items()}
        for (source, kind), y_hat in told.items():
            seen = held.rows & np.isfinite(y_hat).all(1)
            numbers = score(held.y[seen], y_hat[seen], held.samples[seen], centre[seen]) if seen.any() else {}
            rows.append({"source": source, "target": target, "kind": kind} | numbers)
    return pd.DataFrame(rows)


def _held(
    target: str,
    y: np.ndarray,
    columns: np.ndarray | slice,
    obs: pd.DataFrame,
    label_key: str,
    sample_key: str,
    folds: np.ndarray,
) -> Held:
    if not len(y) == len(obs) == len(folds):
        raise ValueError(f"'{target}' has {len(y)} rows, obs {len(obs)}, folds {len(folds)}: give the same spots")
    labels, samples = column_of(obs, label_key), _names(obs, sample_key)
    labels = labels.astype(object).where(labels.notna(), "").astype(str).to_numpy()
    present, y, folds = np.isfinite(y).all(1), y[:, columns], np.asarray(folds)
    rows = present & (folds >= 0) & (labels != "")
    for fold in np.unique(folds[rows]):
        known = np.unique(labels[present & (folds != fold)])
        if not known.size:
            raise ValueError(f"all spots with '{target}' are in fold {fold}: none is left to compare with")
        rows &= (folds != fold) | np.isin(labels, known)
    if not rows.any():
        raise ValueError(f"no held-out spot with '{target}' has an annotation in '{label_key}' that train spots share")
    return Held(y, labels, samples, folds, present, rows)


def _annotated(held: Held) -> dict[tuple[str, str], np.ndarray]:
    """What the annotation and the sample alone would say of the target."""
    y, labels, samples = held.y, held.labels, held.samples
    both = np.char.add(np.char.add(samples.astype(str), "\x1f"), labels)

    def same(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return _centroids(y[train], labels[train], labels[test], None)

    def same_sample(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return _centroids(y[train], both[train], both[test], same(train, test))

    def sample(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return _centroids(y[train], samples[train], samples[test], y[train].mean(0))

    def others(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        train = train & (labels != "")
        names, codes = np.unique(labels[test], return_inverse=True)
        rest = [train & (labels != name) for name in names]
        return np.stack([y[r].mean(0) if r.any() else np.full(y.shape[1], np.nan) for r in rest])[codes]

    told = {"same annotation": same, "same annotation and sample": same_sample, "other annotations": others}
    found = {("annotation", kind): held.out_of_fold(fill) for kind, fill in told.items()}
    return found | {("none", "sample mean"): held.out_of_fold(sample)}


def _predicted(
    predict: Predict, held: Held, target: str, columns: np.ndarray | slice, measured: Mapping[str, np.ndarray]
) -> dict[tuple[str, str], np.ndarray]:
    """What the model says, from each source and from all."""
    found = {}
    for source in (target, *(m for m in measured if m != target), None):
        if (y_hat := predict(source, target)) is None:
            continue
        y_hat, name = np.asarray(y_hat, float), "all" if source is None else source
        if y_hat.shape != np.shape(measured[target]):
            raise ValueError(
                f"{name} → {target} has shape {y_hat.shape}, what was measured {np.shape(measured[target])}"
            )
        wanted = held.rows if source is None else held.rows & np.isfinite(measured[source]).all(1)
        if lacking := int((~np.isfinite(y_hat[wanted]).all(1)).sum()):
            raise ValueError(f"{name} → {target}: {lacking} of {wanted.sum()} held-out spots have no prediction")
        kind = "reconstruction" if source in (None, target) else "translation"
        found[name, kind] = np.where(wanted[:, None], y_hat[:, columns], np.nan)
    return found


def _translated(held: Held, x: np.ndarray, fit: Fit) -> np.ndarray:
    """What a simple translator says, fitted on the train spots of each fold that have source and target."""
    x = np.asarray(x, float)

    def fill(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return fit(x[train], held.y[train], held.samples[train])(x[test], held.samples[test])

    return held.out_of_fold(fill, held.present & np.isfinite(x).all(1))


def _centroids(values: np.ndarray, groups: np.ndarray, wanted: np.ndarray, otherwise: np.ndarray | None) -> np.ndarray:
    """The mean of the group of `values` that each of `wanted` names [n_wanted, n_vars]; `otherwise` where none is."""
    names, codes = np.unique(groups, return_inverse=True)
    member = sp.csr_array((np.ones(len(values)), (codes, np.arange(len(values)))))
    means = (member @ values) / np.bincount(codes)[:, None]
    place = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    if otherwise is None:
        return means[place]
    return np.where((names[place] == wanted)[:, None], means[place], otherwise)


def _names(obs: pd.DataFrame, column: str) -> np.ndarray:
    values = column_of(obs, column)
    if missing := int(values.isna().sum()):
        raise ValueError(f"{missing} of {len(obs)} spots have no '{column}': leave them out")
    return values.astype(str).to_numpy(str)
