"""How well an embedding tells the annotation of a spot: the classifiers of MIMA's paper, and a faster one.

Methods, "Classification of Pathologist Annotations". Introduced in notebook 07.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.fidelity import within_sample_folds
from helpers.splits import column_of
from helpers.wording import few

# (x_train, y_train, x_test, seed) -> probability [n_test, n_classes], decided [n_test, n_classes], classes sorted
Learner = Callable[[np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
METRICS = ["accuracy", "precision", "recall", "f1"]
LEAVE_ONE_OUT, FOUR_FOLD = "leave one sample out", "four-fold within samples"
MIN_POSITIVE = 3  # test spots of a class below which its metrics are not computed, as in the paper
SURE = 10  # train spots of a class from which a bootstrap may be drawn: fewer, and it could hold none of them


@dataclass(frozen=True)
class Annotations:
    """Predicted annotation of the held-out spots, and how good it is. Introduced in notebook 07."""

    scores: pd.DataFrame  # embedding, scheme, fold, class, accuracy, precision, recall, f1, n_test, n_positive
    labels: dict[str, pd.DataFrame]  # scheme -> [n_obs, n_embeddings], None for spots of classes left out
    left_out: dict[str, dict[str, str]]  # scheme -> class -> why


# ---------------------------------------------------------------- learners


def one_vs_rest(n_bags: int = 10, n_trees: int = 10, n_jobs: int | None = None) -> Learner:
    """A binary classifier per class, as in MIMA's paper: imbalanced-learn's balanced bagging of random forests.

    Each of `n_bags` forests sees all of the rarer side and as many spots of the other; decided means more than half of
    the votes. The paper's are 10 bags of 100 trees (the libraries' defaults): `one_vs_rest(n_trees=100)`, ten times
    slower. Source: MIMA, Methods; imbalanced-learn, `BalancedBaggingClassifier`. Introduced in notebook 07.
    """

    def learn(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        from imblearn.ensemble import BalancedBaggingClassifier
        from sklearn.ensemble import RandomForestClassifier

        columns = []
        for name in np.unique(y):
            forest, enough = RandomForestClassifier(n_trees), min((y == name).sum(), (y != name).sum()) >= SURE
            bags = BalancedBaggingClassifier(
                forest, n_estimators=n_bags, bootstrap=bool(enough), n_jobs=n_jobs, random_state=seed
            )
            columns.append(bags.fit(x, y == name).predict_proba(x_new)[:, 1])
        probability = np.column_stack(columns)
        return probability, probability > 0.5

    return learn


def one_forest(n_trees: int = 50, n_jobs: int | None = None) -> Learner:
    """One random forest for all classes, weighted so that every class counts the same.

    About ten times faster than `one_vs_rest()`; decided is the class with most votes, so that a spot has exactly one.
    Precision tends to be higher and recall lower than there, so compare embeddings, not learners.
    Introduced in notebook 07.
    """

    def learn(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(
            n_trees, min_samples_leaf=5, class_weight="balanced", n_jobs=n_jobs, random_state=seed
        )
        probability = forest.fit(x, y).predict_proba(x_new)
        return probability, probability.argmax(1)[:, None] == np.arange(probability.shape[1])

    return learn


# ---------------------------------------------------------------- cross-validation


def schemes(obs: pd.DataFrame, sample_key: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The two cross-validations of the paper, scheme -> fold of every spot [n_obs].

    "leave one sample out": the fold is the sample; "four-fold within samples": `fidelity.within_sample_folds`.
    Raises ValueError for a single sample, and as `within_sample_folds`. Introduced in notebook 07.
    """
    folds = within_sample_folds(obs, sample_key, seed=seed)
    samples = obs[sample_key].astype(str).to_numpy(str)
    if len(names := np.unique(samples)) < 2:
        raise ValueError(
            f"all spots are of sample {few(names)}: leaving one sample out needs two or more; "
            f"pass folds={{'{FOUR_FOLD}': within_sample_folds(...)}} alone"
        )
    return {LEAVE_ONE_OUT: samples, FOUR_FOLD: (folds + 1).astype(str)}


def predict(
    embeddings: Mapping[str, np.ndarray],
    obs: pd.DataFrame,
    label_key: str,
    sample_key: str,
    folds: Mapping[str, np.ndarray] | None = None,
    learner: Learner | None = None,
    min_spots: int = 12,
    exclude: Iterable[str] = (),
    seed: int = 0,
) -> Annotations:
    """Tell the annotation of every spot from each embedding [n_obs, n_latent], by classifiers that never saw the spot.

    - `folds`: scheme -> fold of every spot [n_obs]; `schemes(obs, sample_key, seed)` by default.
    - `learner`: `one_vs_rest()` by default; `one_forest()` is faster.
    - Left out of training and test, with the reason in `left_out`: classes named in `exclude`, with fewer than
      `min_spots` spots, or all in one fold, which nothing could teach (under leave-one-sample-out: classes of a single
      sample); and spots without a label. Say so beside the numbers.
    - Metrics are of the class against the rest, where the test fold has at least 3 of it; precision is 0 where the
      class was never predicted. Accuracy counts the rest too: a classifier that says "no" has a high one.

    Give random and zeros embeddings as well: with many classes their accuracy is high and their F1 low.
    Embeddings are taken as given: one fitted on all spots has seen the held-out ones, though not their annotation.
    Raises ValueError for a single class or sample, NaN in an embedding, unknown columns, other numbers of rows.
    Introduced in notebook 07.
    """
    learner = one_vs_rest() if learner is None else learner
    embeddings = {name: _checked(name, z, len(obs)) for name, z in embeddings.items()}
    labels = column_of(obs, label_key)
    labels = labels.astype(object).where(labels.notna(), None).map(lambda v: None if v is None else str(v)).to_numpy()
    rows, told, left_out = [], {}, {}
    for scheme, fold in (schemes(obs, sample_key, seed) if folds is None else folds).items():
        fold = np.asarray(fold).astype(str)
        left_out[scheme] = _left_out(labels, fold, min_spots, tuple(exclude))
        used = np.array([v is not None and v not in left_out[scheme] for v in labels])
        if len(names := set(labels[used])) < 2:
            raise ValueError(
                f"{scheme}: class {few(sorted(names)) or 'none'} is all that is left of '{label_key}', two or more are "
                f"needed; left out: {left_out[scheme] or 'none'}"
            )
        told[scheme] = pd.DataFrame(None, index=obs.index, columns=list(embeddings), dtype=object)
        for name, z in embeddings.items():
            found, scores = _crossed(z, labels, fold, used, learner, seed)
            told[scheme][name] = found
            rows += [{"embedding": name, "scheme": scheme} | score for score in scores]
    return Annotations(pd.DataFrame(rows), told, left_out)


def _crossed(
    z: np.ndarray, labels: np.ndarray, fold: np.ndarray, used: np.ndarray, learner: Learner, seed: int
) -> tuple[np.ndarray, list[dict]]:
    """Predicted labels [n_obs] and scores of one embedding over the folds."""
    found, rows = np.full(len(z), None, dtype=object), []
    for name in np.unique(fold[used]):
        train, test = used & (fold != name), used & (fold == name)
        classes = np.unique(labels[train].astype(str))
        probability, decided = learner(z[train], labels[train].astype(str), z[test], seed)
        found[test] = classes.astype(object)[probability.argmax(1)]
        for k, c in enumerate(classes):
            if (truth := labels[test] == c).sum() >= MIN_POSITIVE:
                rows.append({"fold": name, "class": c} | binary_scores(truth, decided[:, k]))
    return found, rows


def binary_scores(truth: np.ndarray, decided: np.ndarray) -> dict[str, float]:
    """accuracy, precision, recall, f1, n_test and n_positive of yes-or-no decisions, both [n] of bool.

    Precision and F1 are 0 where nothing was decided for. Introduced in notebook 07.
    """
    hits, said, there = (truth & decided).sum(), decided.sum(), truth.sum()
    return {
        "accuracy": float((truth == decided).mean()),
        "precision": float(hits / max(said, 1)),
        "recall": float(hits / max(there, 1)),
        "f1": float(2 * hits / max(said + there, 1)),
        "n_test": len(truth),
        "n_positive": int(there),
    }


# ---------------------------------------------------------------- averages


def per_fold(scores: pd.DataFrame) -> pd.DataFrame:
    """Metrics averaged over classes, and n_classes: a row per embedding, scheme and fold. Introduced in notebook 07."""
    grouped = scores.groupby(["embedding", "scheme", "fold"], sort=False)
    return grouped[METRICS].mean().assign(n_classes=grouped["class"].nunique()).reset_index()


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Metrics averaged over classes and then over folds, as in the paper: a row per embedding and scheme.

    "f1 sd" and the like are the standard deviation over folds (n - 1): the paper's claim is about their spread too.
    Introduced in notebook 07.
    """
    grouped = per_fold(scores).groupby(["embedding", "scheme"], sort=False)
    spread = grouped[METRICS].std().add_suffix(" sd")
    return grouped[METRICS].mean().join(spread).assign(n_folds=grouped["fold"].nunique()).reset_index()


def _left_out(labels: np.ndarray, fold: np.ndarray, min_spots: int, exclude: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in sorted({v for v in labels if v is not None}):
        here = labels == name
        if name in exclude:
            found[name] = "excluded by name"
        elif here.sum() < min_spots:
            found[name] = f"{here.sum()} spots, fewer than {min_spots}"
        elif len(set(fold[here])) < 2:
            found[name] = f"all in fold '{fold[here][0]}'"
    return found


def _checked(name: str, z: np.ndarray, n_obs: int) -> np.ndarray:
    z = np.asarray(z)
    if z.ndim != 2 or len(z) != n_obs:
        raise ValueError(f"embedding '{name}' has shape {z.shape}: it must be [{n_obs}, n_latent], a row per spot")
    if missing := int((~np.isfinite(z).all(1)).sum()):
        raise ValueError(f"embedding '{name}' has NaN in {missing} of {n_obs} spots: give only spots that all have")
    return z
