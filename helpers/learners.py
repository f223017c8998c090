"""Learners that tell an annotation from an embedding, and their scores with bootstrap intervals.

Classification, regression and survival; every learner standardises its input by the train samples. Settings are
fixed, the same for every embedding: what is compared are embeddings, not tuned learners. Introduced in notebook 02.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

LEARNERS = ("linear", "forest", "svm")
METRICS = {"classification": ("auc", "balanced_accuracy"), "regression": ("r2",), "survival": ("c_index",)}
MAX_ITER = 5000
MAX_COX = 50  # columns of a Cox model
COX_PENALTY = 0.3  # on TCGA BRCA and GBMLGG the C-index moves by less than .03 between 0.1 and 1


@dataclass(frozen=True)
class Prediction:
    """What a learner says of n test samples. Introduced in notebook 02."""

    score: np.ndarray  # [n, n_classes] one per class; [n] predicted value; [n] log hazard ratio
    classes: np.ndarray | None  # [n_classes], those of the train split
    converged: bool


# ---------------------------------------------------------------- learners


def predict(kind: str, learner: str, x: np.ndarray, y: np.ndarray, x_new: np.ndarray, seed: int = 0) -> Prediction:
    """Fit on x [n_train, n_dimensions] and predict x_new [n_new, n_dimensions].

    - kind "classification": y [n_train] of class names, weighted so that every class counts the same; learners
      "linear" (logistic regression, C = 1), "forest" (100 trees, depth <= 10, leaves >= 2), "svm" (RBF kernel,
      C = 1; its scores are votes of the decision surfaces between pairs of classes, finer by their distances).
    - kind "regression": y [n_train] of numbers; ridge regression, whose penalty is chosen by leave-one-out on
      train, forest, and support vector regression on the standardised y.
    - kind "survival": y [n_train, 2] of time and event (1 = seen, 0 = censored); learner "linear" only: `cox`.

    `converged` is False where an optimiser stopped early; no warning is shown then. Introduced in notebook 02.
    """
    if kind == "survival":
        return _predict_survival(x, y, x_new)
    model = _estimator(kind, learner, seed)
    converged = _fit(model, x, y)
    if kind == "regression":
        return Prediction(model.predict(x_new), None, converged)
    score = model.predict_proba(x_new) if hasattr(model, "predict_proba") else model.decision_function(x_new)
    score = np.column_stack([-score, score]) if score.ndim == 1 else score
    return Prediction(score, model.classes_, converged)


def _estimator(kind: str, learner: str, seed: int) -> Any:
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC, SVR

    # sqrt for regression too: a third of 3,000 features would take a minute per ten forests, for the same score
    trees = {"n_estimators": 100, "max_depth": 10, "min_samples_leaf": 2, "max_features": "sqrt", "random_state": seed}
    if kind == "classification":
        balanced = {"class_weight": "balanced"}
        estimators = {
            "linear": LogisticRegression(max_iter=MAX_ITER, **balanced),
            "forest": RandomForestClassifier(**trees, **balanced),
            "svm": SVC(decision_function_shape="ovr", break_ties=True, **balanced),
        }
    else:
        estimators = {
            "linear": RidgeCV(np.logspace(-1, 5, 13)),
            "forest": RandomForestRegressor(**trees),
            "svm": TransformedTargetRegressor(SVR(), transformer=StandardScaler()),
        }
    return make_pipeline(StandardScaler(), estimators[learner])


def _fit(model: Any, x: np.ndarray, y: np.ndarray) -> bool:
    """Fit, and say whether the optimiser converged instead of warning; other warnings are passed on."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, y)
    unconverged = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    for other in (w for w in caught if w not in unconverged):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return not unconverged


def _predict_survival(x: np.ndarray, y: np.ndarray, x_new: np.ndarray) -> Prediction:
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    if min(x.shape) > MAX_COX:
        scaler = make_pipeline(scaler, PCA(MAX_COX, random_state=0), StandardScaler()).fit(x)
    beta, converged = cox(scaler.transform(x), y[:, 0], y[:, 1])
    return Prediction(scaler.transform(x_new) @ beta, None, converged)


def cox(x: np.ndarray, time: np.ndarray, event: np.ndarray, penalty: float = COX_PENALTY) -> tuple[np.ndarray, bool]:
    """Log hazard ratios [n_vars] of lifelines' Cox model with a ridge penalty, and whether it converged.

    `x` [n_obs, n_vars] should be standardised, `event` 1 where it was seen and 0 where the sample was censored. More
    than `MAX_COX` columns are given to it as so many principal components of train, since its time grows with the
    square of their number. Cox (1972), ties as Efron (1977). Introduced in notebook 02.
    """
    import pandas as pd
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    varies = x.std(axis=0) > 1e-8  # a collapsed dimension says nothing, and lifelines would stop at it
    table = pd.DataFrame(x[:, varies]).assign(time=time, event=event)
    beta = np.zeros(x.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            beta[varies] = CoxPHFitter(penalizer=penalty).fit(table, "time", "event").params_ if varies.any() else 0
        except (ConvergenceError, RuntimeWarning, np.linalg.LinAlgError):
            return beta, False
    return beta, True


# ---------------------------------------------------------------- scores


def evaluate(
    kind: str, y: np.ndarray, prediction: Prediction, n_bootstrap: int = 200, seed: int = 0
) -> list[dict[str, Any]]:
    """A dict metric, value, low, high, chance for each of `METRICS[kind]`.

    `low` and `high` are the 2.5th and 97.5th percentile over `n_bootstrap` resamples of the test samples, with the
    predictions as they are (no refit); NaN for none. Samples are drawn within each class, and within those with and
    without an event, so that no draw loses a class or all events. Introduced in notebook 02.
    """
    strata = {"classification": y, "regression": np.zeros(len(y)), "survival": y[:, 1] if y.ndim == 2 else y}[kind]
    weight = np.vstack([np.ones(len(y)), bootstrap_weights(strata, n_bootstrap, seed)])
    rows = []
    for metric, (values, chance) in _SCORES[kind](y, prediction, weight).items():
        low, high = np.nanquantile(values[1:], [0.025, 0.975]) if n_bootstrap else (np.nan, np.nan)
        rows.append({"metric": metric, "value": values[0], "low": low, "high": high, "chance": chance})
    return rows


def bootstrap_weights(strata: np.ndarray, n_draws: int, seed: int = 0) -> np.ndarray:
    """How often each of n samples is drawn, [n_draws, n], when every stratum [n] is resampled within itself.

    Efron & Tibshirani (1993); stratified as pROC does for AUC. Introduced in notebook 02.
    """
    rng = np.random.default_rng(seed)
    weight = np.zeros((n_draws, len(strata)))
    for name in np.unique(strata):
        rows = np.flatnonzero(strata == name)
        weight[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=n_draws)
    return weight


def pairwise_auc(y: np.ndarray, score: np.ndarray, classes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Macro one-vs-one AUC for each row of sample weights [n_draws, n]: [n_draws].

    The mean over ordered pairs of classes (i, j) of the probability that the score of class i [n, n_classes] is
    higher for a sample of i than for one of j, ties counted half (Hand & Till 2001). Over classes that are in `y`
    and in `classes`; NaN where there are fewer than two. Introduced in notebook 02.
    """
    rows = {i: np.flatnonzero(y == name) for i, name in enumerate(classes) if (y == name).any()}
    pairs = [(i, j) for i in rows for j in rows if i != j]
    values = []
    for i, j in pairs:
        both = np.concatenate([rows[i], rows[j]])
        values.append(_auc(score[both, i], len(rows[i]), weight[:, both]))
    return np.mean(values, axis=0) if pairs else np.full(len(weight), np.nan)


def _auc(score: np.ndarray, n_positive: int, weight: np.ndarray) -> np.ndarray:
    """AUC of the first `n_positive` samples against the others, for each row of weights [n_draws, n]."""
    order = np.argsort(score, kind="stable")
    start = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)  # of each distinct score
    positive, weight = order < n_positive, weight[:, order]
    above = np.add.reduceat(weight * positive, start, axis=1)
    below = np.add.reduceat(weight * ~positive, start, axis=1)
    won = (above * (below.cumsum(axis=1) - below / 2)).sum(axis=1)
    return won / (above.sum(axis=1) * below.sum(axis=1))


def concordance(y: np.ndarray, risk: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Harrell's C-index for each row of sample weights [n_draws, n]: [n_draws].

    Among pairs where one sample, y [n, 2] of time and event, is known to have had the event before the other, the
    share in which its risk [n] is higher, ties counted half. NaN where there is no such pair. Harrell et al.
    (1982). Introduced in notebook 02.
    """
    time, event = y[:, 0], y[:, 1].astype(bool)
    dying = np.flatnonzero(event)
    agree, pairs = np.zeros(len(weight)), np.zeros(len(weight))
    for rows in np.array_split(dying, 1 + len(dying) * len(y) // 10**7):  # bounds memory
        t, r = time[rows, None], risk[rows, None]
        first = (t < time) | ((t == time) & ~event)
        agree += ((weight[:, rows] @ (first * ((r > risk) + (r == risk) / 2))) * weight).sum(axis=1)
        pairs += ((weight[:, rows] @ first.astype(float)) * weight).sum(axis=1)
    return np.divide(agree, pairs, out=np.full(len(weight), np.nan), where=pairs > 0)


def _classification(y: np.ndarray, prediction: Prediction, weight: np.ndarray) -> dict:
    correct = prediction.classes[prediction.score.argmax(axis=1)] == y
    names = np.unique(y)
    recalls = [weight[:, y == name] @ correct[y == name] / (y == name).sum() for name in names]
    auc = pairwise_auc(y, prediction.score, prediction.classes, weight)
    return {"auc": (auc, 0.5), "balanced_accuracy": (np.mean(recalls, axis=0), 1 / len(names))}


def _regression(y: np.ndarray, prediction: Prediction, weight: np.ndarray) -> dict:
    centre = weight @ y / weight.sum(axis=1)
    total = (weight * (y - centre[:, None]) ** 2).sum(axis=1)
    error = weight @ (y - prediction.score) ** 2
    r2 = 1 - np.divide(error, total, out=np.full(len(weight), np.nan), where=total > 0)
    return {"r2": (r2, 0.0)}


def _survival(y: np.ndarray, prediction: Prediction, weight: np.ndarray) -> dict:
    return {"c_index": (concordance(y, prediction.score, weight), 0.5)}


_SCORES = {"classification": _classification, "regression": _regression, "survival": _survival}
