"""Silhouettes of labels and of batches, in blocks: no matrix of all distances is ever held.

The sums of distances from every sample to every group are matrix products of a block of distances with the groups'
indicators. For n_obs up to 20,000 in float64, above in float32. Introduced in notebook 07.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from helpers.metrics.graphs import Undefined, rows

BLOCK = 2_000  # samples on each side of a block of distances: 16 or 32 MB
EXACT = 20_000  # samples up to which float64 is used

Sums = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # (z, group of each sample, n_groups) -> [n_obs, n_groups]


def euclidean_sums(z: np.ndarray, code: np.ndarray, n_groups: int) -> np.ndarray:
    """Sum of Euclidean distances from each row of z [n_obs, n_latent] to the rows of each group: [n_obs, n_groups].

    Introduced in notebook 07.
    """
    n, dtype = len(z), np.float64 if len(z) <= EXACT else np.float32
    z = (z - z.mean(axis=0)).astype(dtype)
    square, one = (z**2).sum(axis=1, keepdims=True), np.ones((n, 1), dtype)
    left, right = np.hstack([-2 * z, square, one]), np.hstack([z, one, square])  # left @ right.T: squared distances
    member, sums = np.eye(n_groups, dtype=dtype)[code], np.zeros((n, n_groups))
    blocks = [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]
    for number, a in enumerate(blocks):
        for b in blocks[number:]:
            distance = left[a] @ right[b].T
            np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
            if a == b:
                np.fill_diagonal(distance, 0)
            else:
                sums[b] += distance.T @ member[a]
            sums[a] += distance @ member[b]
    return sums


def cosine_sums(z: np.ndarray, code: np.ndarray, n_groups: int) -> np.ndarray:
    """Sum of cosine distances from each row of z [n_obs, n_latent] to the rows of each group: [n_obs, n_groups].

    Linear in the directions, so that one product with the groups' summed directions does. A row of zeros has no
    direction and lies at distance 1 from all others. Introduced in notebook 07.
    """
    length = np.linalg.norm(z, axis=1, keepdims=True)
    direction = z / np.where(length > 0, length, 1)
    member = np.eye(n_groups)[code]
    sums = member.sum(axis=0) - direction @ (member.T @ direction).T
    itself = 1 - (direction**2).sum(axis=1, keepdims=True)  # 1 for a row of zeros, else rounding
    return np.maximum(sums - member * itself, 0)


def nearest_other(sums: np.ndarray, size: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Mean distance to the nearest other group: [n_obs]. Introduced in notebook 07."""
    mean = sums / size
    mean[np.arange(len(code)), code] = np.inf
    return mean.min(axis=1)


def all_others(sums: np.ndarray, size: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Mean distance to all samples of other groups: [n_obs]. Introduced in notebook 07."""
    own = sums[np.arange(len(code)), code]
    return (sums.sum(axis=1) - own) / (len(code) - size[code])


def silhouette_samples(
    z: ArrayLike, groups: ArrayLike, sums: Sums = euclidean_sums, other: Callable[..., np.ndarray] = nearest_other
) -> np.ndarray:
    """Silhouette of every sample, (b - a) / max(a, b), from -1 to 1: [n_obs].

    a: mean distance to the other samples of its group; b: to another group (`other`). 0 for a group of one sample and
    where both are 0. z [n_obs, n_latent], groups [n_obs]. The defaults are those of scikit-learn.
    Raises `Undefined` for a single group, `ValueError` as `graphs.rows`. Source: Rousseeuw 1987.
    Introduced in notebook 07.
    """
    z, (names, code) = rows(z), np.unique(np.asarray(groups).astype(str), return_inverse=True)
    if len(names) < 2:
        raise Undefined(f"a silhouette needs two groups, and all {len(code)} samples are in '{names[0]}'")
    size = np.bincount(code)
    found = sums(z, code, len(names))
    a = found[np.arange(len(code)), code] / np.maximum(size[code] - 1, 1)
    b = other(found, size, code)
    widest = np.maximum(a, b)
    return np.where((size[code] > 1) & (widest > 0), (b - a) / np.where(widest > 0, widest, 1), 0)


def silhouette_label(z: ArrayLike, labels: ArrayLike) -> float:
    """Cell-type ASW: mean silhouette of the labels, moved to 0 ... 1; 0.5 says no more than chance.

    z [n_obs, n_latent], labels [n_obs]. Source: Luecken et al., Nature Methods 19 (2022) 41.
    Introduced in notebook 07.
    """
    return float((silhouette_samples(z, labels).mean() + 1) / 2)


def isolated_labels(z: ArrayLike, labels: ArrayLike, batch: ArrayLike, widths: np.ndarray | None = None) -> float:
    """Mean silhouette, moved to 0 ... 1, of the labels that are in the fewest batches, averaged over those labels.

    All labels where all are in equally many. The silhouette version of scib-metrics, not the F1 of scib. `widths`
    [n_obs]: `silhouette_samples` of the labels, if known. Raises `Undefined` for fewer than two labels or batches.
    Introduced in notebook 07.
    """
    labels, batch = np.asarray(labels).astype(str), np.asarray(batch).astype(str)
    if len(np.unique(batch)) < 2:
        raise Undefined(f"isolated labels need two batches, and all {len(batch)} samples are in '{batch[0]}'")
    widths = silhouette_samples(z, labels) if widths is None else widths
    names = np.unique(labels)
    n_batches = np.array([len(np.unique(batch[labels == name])) for name in names])
    rarest = names[n_batches == n_batches.min()]
    return float(np.mean([(widths[labels == name].mean() + 1) / 2 for name in rarest]))


def silhouette_batch(
    z: ArrayLike,
    labels: ArrayLike,
    batch: ArrayLike,
    sums: Sums = euclidean_sums,
    other: Callable[..., np.ndarray] = nearest_other,
) -> float:
    """Batch ASW: 1 - |silhouette of the batches within a label|, meaned over its samples, then over labels; 1 is best.

    Labels in one batch only, or with as many batches as samples, are left out. Noise and zeros score near 1: never
    read it alone. For sites give them as `batch`. z [n_obs, n_latent], labels and batch [n_obs]. Raises `Undefined`
    where no label is left. Source: Luecken et al., Nature Methods 19 (2022) 41. Introduced in notebook 07.
    """
    z, labels, batch = rows(z), np.asarray(labels).astype(str), np.asarray(batch).astype(str)
    found = []
    for name in np.unique(labels):
        within = labels == name
        if 1 < len(np.unique(batch[within])) < within.sum():
            found.append(1 - np.abs(silhouette_samples(z[within], batch[within], sums, other)).mean())
    if not found:
        raise Undefined("batch silhouettes need a label with samples of two batches, and there is none")
    return float(np.mean(found))


def bras(z: ArrayLike, labels: ArrayLike, batch: ArrayLike) -> float:
    """Batch removal adapted silhouette: `silhouette_batch` by cosine distance to all other batches' samples.

    Which does not mistake batches nested in one another for removed ones. 1 is best; noise and zeros score near 1.
    Source: Rautenstrauch and Ohler, Nature Biotechnology 2025. Introduced in notebook 07.
    """
    return silhouette_batch(z, labels, batch, cosine_sums, all_others)
