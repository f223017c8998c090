"""What a latent space knows: annotation and batch told from it by held-out classifiers, beside chance.

Also two checks that a correction does neither too much nor too little: a rare region should stay apart, and a copy of a
section under another batch label should come to lie on the original. Introduced in notebook 07.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from helpers.splits import column_of
from helpers.wording import few

Classifier = Callable[[int], Any]  # seed -> an unfitted classifier of scikit-learn
EVERYWHERE = "all"  # in the column "within", where nothing was held fixed


# ---------------------------------------------------------------- classifiers


def logistic(seed: int = 0) -> Any:
    """A linear reader: logistic regression on standardised dimensions, classes weighted equally.

    Standardising lets it read a dimension that hardly varies, too. Introduced in notebook 07.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000, random_state=seed)
    )


def svm(seed: int = 0) -> Any:
    """A non-linear reader: support vectors with an RBF kernel on standardised dimensions, classes weighted equally.

    Time grows with the square of the number of spots. Introduced in notebook 07.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(class_weight="balanced", random_state=seed))


def forest(seed: int = 0) -> Any:
    """Another non-linear reader, blind to the scale of a dimension: 50 random trees, classes weighted equally.

    Weaker and slower than `svm` on the latents of a few thousand spots. Introduced in notebook 07.
    """
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(50, min_samples_leaf=5, class_weight="balanced", random_state=seed)


CLASSIFIERS: Mapping[str, Classifier] = {"logistic": logistic, "svm": svm}


# ---------------------------------------------------------------- what each latent knows


def knows(
    latents: Mapping[str, np.ndarray],
    obs: pd.DataFrame,
    columns: Sequence[str],
    within: str | None = None,
    classifiers: Mapping[str, Classifier] | None = None,
    n_folds: int = 4,
    n_most: int = 4000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well each column of obs can be told from each latent [n_obs, n_latent], on spots held out.

    Returns a row per latent, target, within, classifier and fold: balanced_accuracy; `permuted`, the same after the
    labels were shuffled; chance, 1 / n_classes; over_chance, (balanced accuracy - chance) / (1 - chance), 0 at
    chance and 1 when perfect, so that tasks with different numbers of classes can be averaged; n_obs, n_classes,
    n_missing (spots left out for NaN in the latent or no value in the column) and n_rare (left out because their class
    has fewer than `n_folds` spots).

    Where sections differ in composition, batch can be told from biology alone, and a shared latent that is right knows
    it. `within=label_key` therefore tells every other column separately within each class of that column: batch given
    the region. Classes there with fewer than two batches of `n_folds` spots are left out.
    `classifiers`: name -> seed -> classifier; `CLASSIFIERS` by default, a linear and a non-linear one: a batch that the
    linear one cannot see may still be there. Folds are of single spots, stratified by the column, the same for all
    latents without NaN; neighbouring spots are alike, so that a label read here is easier than in a section left out
    (`regions.predict`). Of more than `n_most` spots so many are drawn at random.
    A latent that is measured in a single class of a column, as in a mosaic, is left out for it with a warning.
    Raises ValueError for a latent without a whole row or of other length, unknown columns, and where nothing is left.
    Introduced in notebook 07.
    """
    rows, untold, classifiers = [], [], CLASSIFIERS if classifiers is None else classifiers
    for name, z in latents.items():
        z, whole = _whole(name, z, len(obs))
        for column in columns:
            known = whole & column_of(obs, column).notna().to_numpy()
            drawn = _some(known, n_most, seed)
            kept = list(_parts(obs, column, None if column == within else within, drawn, n_folds))
            if not kept:
                untold.append(_nothing(obs, column, within, known, name, n_folds))
            for part, spots, n_rare in kept:
                about = {"latent": name, "target": column, "within": part}
                sizes = {"n_obs": len(spots), "n_missing": int((~known).sum()), "n_rare": n_rare}
                y = obs[column].iloc[spots].astype(str).to_numpy(str)
                for kind, make in classifiers.items():
                    for fold, numbers in enumerate(_told(z[spots], y, make, n_folds, seed)):
                        rows.append(about | {"classifier": kind, "fold": fold} | numbers | sizes)
    if not rows:
        raise ValueError(f"nothing can be told: {'; '.join(untold) or 'no latents or no columns were given'}")
    if untold:
        warnings.warn(f"left out: {'; '.join(untold)}", stacklevel=2)
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means of `knows` over folds and then over the classes of `within`, each counted the same.

    A row per latent, target and classifier: balanced_accuracy, permuted, chance, over_chance, "over_chance sd" over
    folds (of the means over classes), n_parts, n_obs and n_missing. Introduced in notebook 07.
    """
    numbers = ["balanced_accuracy", "permuted", "chance", "over_chance"]
    keys = ["latent", "target", "classifier"]
    folds = table.groupby([*keys, "fold"], sort=False)[numbers].mean().groupby(keys, sort=False)
    parts = table[table["fold"] == 0].groupby(keys, sort=False)
    counts = {
        "n_parts": parts["within"].nunique(),
        "n_obs": parts["n_obs"].sum(),
        "n_missing": parts["n_missing"].max(),
    }
    spread = folds["over_chance"].std().rename("over_chance sd")
    return folds.mean().join(spread).assign(**counts).reset_index()


def _some(known: np.ndarray, n_most: int, seed: int) -> np.ndarray:
    rows, drawn = np.flatnonzero(known), np.zeros_like(known)
    drawn[rows if len(rows) <= n_most else np.random.default_rng(seed).choice(rows, n_most, replace=False)] = True
    return drawn


def _parts(
    obs: pd.DataFrame, column: str, within: str | None, known: np.ndarray, n_folds: int
) -> Iterator[tuple[str, np.ndarray, int]]:
    """Name, rows, and number left out as rare, of each part of the spots in which the column has two classes."""
    groups = np.full(len(obs), EVERYWHERE, object) if within is None else column_of(obs, within).to_numpy(object)
    y = obs[column].astype(str).to_numpy(str)
    for group in pd.unique(pd.Series(groups[known]).dropna()):
        spots = np.flatnonzero(known & (groups == group))
        codes = np.unique(y[spots], return_inverse=True)[1]
        often = np.bincount(codes) >= n_folds
        if often.sum() >= 2:
            yield str(group), spots[often[codes]], int((~often[codes]).sum())


def _told(z: np.ndarray, y: np.ndarray, make: Classifier, n_folds: int, seed: int) -> Iterator[dict[str, float]]:
    """Balanced accuracy of each fold, as it is and with all labels shuffled."""
    chance = 1 / len(np.unique(y))
    right = _recalls(z, y, make, n_folds, seed)
    shuffled = _recalls(z, np.random.default_rng(seed).permutation(y), make, n_folds, seed)
    for found, permuted in zip(right, shuffled, strict=True):
        over = (found - chance) / (1 - chance)
        numbers = {"balanced_accuracy": found, "permuted": permuted, "chance": chance, "over_chance": over}
        yield numbers | {"n_classes": round(1 / chance)}


def _recalls(z: np.ndarray, y: np.ndarray, make: Classifier, n_folds: int, seed: int) -> list[float]:
    from sklearn.metrics import recall_score
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(z, y)
    told = ((test, make(seed).fit(z[train], y[train]).predict(z[test])) for train, test in folds)
    return [float(recall_score(y[test], y_hat, average="macro", zero_division=0)) for test, y_hat in told]


def _nothing(obs: pd.DataFrame, column: str, within: str | None, known: np.ndarray, latent: str, n_folds: int) -> str:
    names = sorted(obs[column][known].astype(str).unique())
    if len(names) < 2:
        return f"the spots that latent '{latent}' has are all of {column} {few(names) or 'unknown'}, two are needed"
    where = "" if within in (None, column) else f" within any class of '{within}'"
    return f"of latent '{latent}' no two classes of '{column}' have {n_folds} spots each{where}, one per fold"


# ---------------------------------------------------------------- a rare region


def rare(
    embeddings: Mapping[str, np.ndarray],
    obs: pd.DataFrame,
    label_key: str,
    rare_class: str,
    batch_key: str,
    k: int = 15,
    n_folds: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Is the rare class of `label_key` still apart in each embedding [n_obs, n_latent]? Compare with a raw PCA.

    A row per embedding and place, "own section" (the batches it occurs in) and "all": purity, the mean share of rare
    spots among the nearest neighbours of a rare spot (`k`, but no more than there are other rare spots, so that 1 can
    be reached), and its chance; auc of a held-out logistic regression, rare against the rest, mean over folds, with its
    sd; n_rare, n_others and k. NaN rows and spots without a label are left out, n_missing.
    Raises ValueError for a class that is not there or has fewer than 4 spots, or 4 others, in its own batches.
    Introduced in notebook 07.
    """
    labels = column_of(obs, label_key)
    is_rare, batches = (labels.astype(str) == str(rare_class)).to_numpy(), column_of(obs, batch_key)
    if not is_rare.any():
        raise ValueError(f"there is no '{rare_class}' in '{label_key}'; there are: {few(labels.dropna().unique())}")
    own, rows = batches.isin(batches[is_rare].unique()).to_numpy(), []
    for name, z in embeddings.items():
        z, whole = _whole(name, z, len(obs))
        whole &= labels.notna().to_numpy()
        for where, here in (("own section", whole & own), (EVERYWHERE, whole)):
            n_rare = int((here & is_rare).sum())
            if min(n_rare, here.sum() - n_rare) < 4:
                others = int(here.sum()) - n_rare
                raise ValueError(
                    f"'{name}' has {n_rare} spots of '{rare_class}' and {others} others in {where}: 4 each are needed"
                )
            about = {"embedding": name, "class": rare_class, "where": where, "n_missing": int((~whole).sum())}
            rows.append(about | separation(z[here], is_rare[here], k, n_folds, seed))
    return pd.DataFrame(rows)


def separation(z: np.ndarray, is_rare: np.ndarray, k: int = 15, n_folds: int = 4, seed: int = 0) -> dict[str, float]:
    """purity, chance, auc, "auc sd", n_rare, n_others and k of the spots `is_rare` [n] in z [n, n_latent]; see `rare`.

    Introduced in notebook 07.
    """
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neighbors import NearestNeighbors

    n, n_rare = len(z), int(is_rare.sum())
    k = min(k, n_rare - 1)
    neighbours = NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z[is_rare], return_distance=False)
    itself = neighbours == np.flatnonzero(is_rare)[:, None]
    itself[~itself.any(1), -1] = True  # among equal spots it may miss itself: then the last one goes
    purity = is_rare[neighbours[~itself]].mean()
    folds = StratifiedKFold(min(n_folds, n_rare, n - n_rare), shuffle=True, random_state=seed).split(z, is_rare)
    auc = [_auc(is_rare[test], _margin(z[train], is_rare[train], z[test], seed)) for train, test in folds]
    return {
        "purity": float(purity),
        "chance": (n_rare - 1) / (n - 1),
        "auc": float(np.mean(auc)),
        "auc sd": float(np.std(auc)),
        "n_rare": n_rare,
        "n_others": n - n_rare,
        "k": k,
    }


def _margin(z: np.ndarray, y: np.ndarray, z_new: np.ndarray, seed: int) -> np.ndarray:
    return logistic(seed).fit(z, y).decision_function(z_new)


def _auc(y: np.ndarray, margin: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, margin))


# ---------------------------------------------------------------- a batch that is none


def twins(obs: pd.DataFrame, key: str = "twin") -> tuple[np.ndarray, np.ndarray]:
    """Which rows are copies [n_obs], and the row of the original of each copy [n_copies], for `null_batch`.

    Read from the column that `tissue.null_batch` writes: for both of a pair the name of the original, "" for others.
    Raises ValueError where it is missing, names a spot that is not there, or has no copies. Introduced in notebook 07.
    """
    twin = column_of(obs, key).fillna("").astype(str).to_numpy(str)
    is_copy = (twin != "") & (twin != obs.index.astype(str).to_numpy(str))
    of = pd.Index(obs.index.astype(str)).get_indexer(twin[is_copy])
    if not is_copy.any():
        raise ValueError(f"no spot is a copy of another in '{key}': plant a null batch first")
    if (of < 0).any():
        raise ValueError(f"'{key}' names originals that are not in the data: {few(np.unique(twin[is_copy][of < 0]))}")
    return is_copy, of


def null_batch(
    z: np.ndarray, is_copy: np.ndarray, of: np.ndarray, k: int = 15, n_folds: int = 4, seed: int = 0
) -> dict[str, float]:
    """Does a copy of a section, given as another batch, lie on the original in z [n_obs, n_latent]?

    `is_copy` [n_obs] says which rows are copies, `of` [n_copies] the row of the original of each, in their order.

    - distance: mean distance of a copy to its original; spread: of two different originals; ratio: the former by the
      latter, 0 where copies lie on originals and about 1 where a copy might be anyone's. Even without any correction it
      is above 0 where the copy was measured anew: compare with a PCA. NaN where originals do not differ.
    - own: share of copies whose nearest original is their own, ties shared out; own_chance 1 / n_pairs.
    - nearest and logistic: accuracy of telling copies from originals, by `k` neighbours and linearly, on pairs held out
      (copy and original together, so that no twin gives the answer). 0.5 is chance; more means that the correction has
      pushed apart what is the same.

    Raises ValueError for NaN, fewer than 2 `n_folds` pairs, and originals that are copies or out of range.
    Introduced in notebook 07.
    """
    from scipy.spatial.distance import cdist, pdist
    from sklearn.neighbors import KNeighborsClassifier

    z, is_copy, of = _pairs(z, is_copy, of, 2 * n_folds)
    copies, originals, n = z[is_copy], z[of], len(of)
    apart = cdist(copies, originals)
    distance, spread = float(np.diag(apart).mean()), float(pdist(z[np.unique(of)]).mean())
    nearest_ones = apart <= apart.min(1, keepdims=True)
    own = np.diag(nearest_ones) / nearest_ones.sum(1)
    makes = {"nearest": lambda: KNeighborsClassifier(min(k, n)), "logistic": lambda: logistic(seed)}
    told = {name: _copy_told(copies, originals, make, n_folds, seed) for name, make in makes.items()}
    ratio = distance / spread if spread > 0 else np.nan
    numbers = {"distance": distance, "spread": spread, "ratio": ratio, "own": float(own.mean()), "own_chance": 1 / n}
    return numbers | told | {"n_pairs": n}


def _copy_told(copies: np.ndarray, originals: np.ndarray, make: Callable, n_folds: int, seed: int) -> float:
    from sklearn.model_selection import KFold

    right = []
    for train, test in KFold(n_folds, shuffle=True, random_state=seed).split(copies):
        model = make().fit(np.vstack([copies[train], originals[train]]), np.repeat([1, 0], len(train)))
        right += [model.predict(copies[test]) == 1, model.predict(originals[test]) == 0]
    return float(np.concatenate(right).mean())


def _pairs(z: np.ndarray, is_copy: np.ndarray, of: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, is_copy, of = np.asarray(z, float), np.asarray(is_copy, bool), np.asarray(of, int)
    if z.ndim != 2 or is_copy.shape != (len(z),) or len(of) != is_copy.sum():
        raise ValueError(
            f"z has shape {z.shape}, is_copy {is_copy.shape} with {is_copy.sum()} copies, of {len(of)} originals: "
            f"give one original per copy"
        )
    if len(of) < least:
        raise ValueError(f"the null batch has {len(of)} pairs: {least} or more are needed to hold some out")
    if of.min() < 0 or of.max() >= len(z) or is_copy[of].any():
        raise ValueError("the original of a copy must be a row that is no copy itself")
    if not np.isfinite(z[is_copy]).all() or not np.isfinite(z[of]).all():
        raise ValueError("the null batch has NaN in the embedding: give only pairs that both have one")
    return z, is_copy, of


def _whole(name: str, z: np.ndarray, n_obs: int) -> tuple[np.ndarray, np.ndarray]:
    """The latent, and which of its rows have no NaN."""
    z = np.asarray(z, float)
    if z.ndim != 2 or len(z) != n_obs:
        raise ValueError(f"latent '{name}' has shape {z.shape}: it must be [{n_obs}, n_latent], a row per spot")
    whole = np.isfinite(z).all(1)
    if not whole.any():
        raise ValueError(f"latent '{name}' has NaN in every row: leave it out")
    return z, whole
