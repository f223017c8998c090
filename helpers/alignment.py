"""Do modalities meet in the latent space? Numbers for embeddings of the same samples, or classes, from several sides.

Embeddings are posterior means of held-out samples, [n_obs, n_latent] per modality. Introduced in notebook 04.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from helpers.wording import few

CHUNK = 4_000_000  # distances held in memory at a time


def foscttm(z_a: ArrayLike, z_b: ArrayLike) -> float:
    """Fraction of samples closer than the true match, mean over samples and both directions: 0 perfect, 0.5 chance.

    Row i of z_a and of z_b [n_obs, n_latent] is the same sample. A sample as far away as the true match counts half,
    so that embeddings which collapsed to one point score 0.5. Euclidean distances, in blocks of bounded memory.
    Source: Liu et al., WABI 2019 (MMD-MA); Singh and Demetci et al., SCOT.
    Raises ValueError for different shapes, fewer than two samples, and NaN. Introduced in notebook 04.
    """
    from scipy.spatial.distance import cdist

    z_a, z_b = _embedding(z_a, "z_a"), _embedding(z_b, "z_b")
    if z_a.shape != z_b.shape or len(z_a) < 2:
        raise ValueError(f"foscttm: z_a has shape {z_a.shape} and z_b {z_b.shape}; give the same two or more samples")
    n = len(z_a)
    blocks = np.array_split(np.arange(n), -(-n * n // CHUNK))
    match = np.concatenate([cdist(z_a[rows], z_b[rows]).diagonal() for rows in blocks])  # [n] to the true match
    worse = 0.0  # samples closer than the match, over both directions; ties count half
    for rows in blocks:
        distance = cdist(z_a[rows], z_b)
        for bar in (match[rows, None], match[None, :]):
            worse += (distance < bar).sum() + ((distance == bar).sum() - len(rows)) / 2  # the match ties with itself
    return float(worse / (2 * n * (n - 1)))


def label_transfer(
    z_from: ArrayLike, y_from: Iterable, z_to: ArrayLike, y_to: Iterable, k: int = 5
) -> dict[str, float]:
    """How well the `k` nearest samples of one modality tell the labels of another's: z [n_obs, n_latent], y [n_obs].

    Returns accuracy, balanced_accuracy (mean recall over the classes of y_to) and F1 (weighted by class size).
    Samples without a label are left out; a class of y_to that y_from lacks cannot be told and counts as wrong.
    `k` is cut to the number of samples. Raises ValueError for labels or latent dimensions that do not fit, and
    where the two share no class. Introduced in notebook 04.
    """
    from sklearn.metrics import accuracy_score, f1_score, recall_score
    from sklearn.neighbors import KNeighborsClassifier

    z_from, y_from = _labelled(z_from, y_from, "from")
    z_to, y_to = _labelled(z_to, y_to, "to")
    if z_from.shape[1] != z_to.shape[1]:
        raise ValueError(f"label_transfer: embeddings have {z_from.shape[1]} and {z_to.shape[1]} dimensions, not equal")
    if not set(y_from) & set(y_to):
        known, wanted = few(sorted(set(y_from))), few(sorted(set(y_to)))
        raise ValueError(f"label_transfer: the modalities share no class ({known} against {wanted}): check the labels")
    told = KNeighborsClassifier(min(k, len(z_from))).fit(z_from, y_from).predict(z_to)
    classes = np.unique(y_to)
    return {
        "accuracy": float(accuracy_score(y_to, told)),
        "balanced_accuracy": float(recall_score(y_to, told, labels=classes, average="macro")),
        "F1": float(f1_score(y_to, told, labels=classes, average="weighted")),
    }


def modality_accuracy(z_by_modality: Mapping[str, ArrayLike], folds: int = 5, seed: int = 0) -> float:
    """Balanced accuracy with which a logistic regression tells the modality of an embedding, held out.

    z [n_obs, n_latent] per modality; chance is 1 / number of modalities, which means well mixed, and 1 apart. A judge
    of its own, independent of the discriminator that a model trains with; being linear, it sees embeddings that lie
    in different places, not those that differ in spread alone. A row number is in the same fold for all modalities:
    if one half of a well aligned pair were trained on, the other would be told wrong, and the score fall below chance.
    Raises ValueError for fewer than two modalities, other dimensions, or fewer than `folds` samples in one.
    Introduced in notebook 04.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    z, modality, fold = _pooled(z_by_modality, folds, seed)
    told = np.empty_like(modality)
    for held in range(folds):
        judge = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        told[fold == held] = judge.fit(z[fold != held], modality[fold != held]).predict(z[fold == held])
    return float(recall_score(modality, told, average="macro"))


def centres(z: ArrayLike, labels: Iterable, how: str | Callable = "median") -> pd.DataFrame:
    """The centre of each class in the latent space: [n_classes, n_latent], classes as index, in their own order.

    `how` is anything that pandas' `agg` takes; the paper's figures decode medians. Samples without a label are left
    out. Raises ValueError where labels and z [n_obs, n_latent] do not fit, or no sample has a label.
    Introduced in notebook 04.
    """
    z, labels = _embedding(z, "z"), pd.Series(labels).reset_index(drop=True)
    if len(labels) != len(z):
        raise ValueError(f"centres: {len(z)} samples have {len(labels)} labels; give one each")
    if labels.isna().all():
        raise ValueError("centres: no sample has a label; choose another column")
    table = pd.DataFrame(z, columns=[f"z{i + 1}" for i in range(z.shape[1])])
    return table.groupby(labels.rename("class"), observed=True).agg(how)


def _pooled(z_by_modality: Mapping[str, ArrayLike], folds: int, seed: int) -> tuple[np.ndarray, ...]:
    """All embeddings [n, n_latent], the modality [n] of each as a number, and its fold [n]."""
    z = {name: _embedding(values, name) for name, values in z_by_modality.items()}
    if len(z) < 2 or len({values.shape[1] for values in z.values()}) > 1:
        shapes = {name: values.shape for name, values in z.items()}
        raise ValueError(f"modality_accuracy: two or more modalities of equal n_latent are needed, not {shapes}")
    if folds < 2 or (small := [name for name, values in z.items() if len(values) < folds]):
        at_fault = "folds" if folds < 2 else few(small)
        raise ValueError(f"modality_accuracy: {folds} folds need 2 or more, and as many samples; {at_fault} is too few")
    rows = max(map(len, z.values()))
    runs = np.tile(np.arange(folds), (-(-rows // folds), 1))  # every `folds` rows hold each fold once
    fold = np.random.default_rng(seed).permuted(runs, axis=1).ravel()
    modality = np.repeat(np.arange(len(z)), [len(values) for values in z.values()])
    return np.concatenate([*z.values()]), modality, np.concatenate([fold[: len(values)] for values in z.values()])


def _labelled(z: ArrayLike, y: Iterable, which: str) -> tuple[np.ndarray, np.ndarray]:
    z, y = _embedding(z, f"z_{which}"), np.asarray(list(y), dtype=object)
    if len(y) != len(z):
        raise ValueError(f"label_transfer: z_{which} has {len(z)} samples and y_{which} {len(y)} labels; give one each")
    known = ~pd.isna(y)
    if not known.any():
        raise ValueError(f"label_transfer: y_{which} holds no label at all; choose another column")
    return z[known], y[known].astype(str)


def _embedding(z: ArrayLike, name: str) -> np.ndarray:
    z = np.asarray(z.detach().cpu() if hasattr(z, "detach") else z, dtype=float)
    if z.ndim != 2 or z.size == 0 or not np.isfinite(z).all():
        raise ValueError(f"{name}, of shape {z.shape}, must be finite numbers [n_obs, n_latent]")
    return z
