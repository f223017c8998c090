"""Does a joint embedding mix the batches: neighbourhoods, kBET, variance explained by the batch.

The silhouettes of batches are in `silhouettes`. All of these are 1 for what knows nothing, too: read them beside the
controls. Introduced in notebook 07.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.stats import chi2

from helpers.metrics import graphs
from helpers.metrics.graphs import Neighbours, Undefined, rows

ALPHA = 0.05  # level of kBET's test
N_COMPONENTS = 100  # of the diffusion map in which kBET looks for neighbours
SMALLEST = 10  # samples of a label below which kBET leaves it out
ONE = 1 - 3e-8  # an eigenvalue that is 1 in single precision


def ilisi(near: Neighbours, batch: ArrayLike) -> float:
    """iLISI, (median LISI of the batches - 1) / (B - 1) for B batches: 1 where all are met equally often.

    Raises `Undefined` for one batch. Introduced in notebook 07.
    """
    n = len(np.unique(_two_batches(batch, "iLISI")))
    return float((np.median(graphs.lisi(near.first(90), batch)) - 1) / (n - 1))


def kbet(near: Neighbours, batch: ArrayLike, labels: ArrayLike, seed: int = 0) -> float:
    """kBET: share of samples around which the batches are as frequent as in the whole label, meaned over labels.

    For each label, on its part of the graph of 50 neighbours: k0 = a quarter of the mean batch size there, 10 to 70,
    and the sample itself are its neighbourhood, by distance in 100 diffusion components; chi-squared test at 0.05.
    Labels with fewer than 10 samples or one batch are left out; where the label's graph falls apart, parts below 3 k0
    are left out, and the label scores 0 if that loses a quarter of it. Raises `Undefined` where no label is left.

    As `kbet_per_label` of scib-metrics 0.5.10 with two repairs. There a small label cuts the number of components for
    all labels after it in the alphabet; here each has its own. And there an eigenvalue that rounding leaves beside 1
    gets a weight of ten million, so that one embedding has two values, by the luck of a random start; here it is 1.
    Source: Büttner et al., Nature Methods 16 (2019) 43.
    Introduced in notebook 07.
    """
    batch, labels = np.asarray(batch).astype(str), np.asarray(labels).astype(str)
    graph, found = graphs.connectivities(near.first(50)), []
    for name in np.unique(labels):
        within = np.flatnonzero(labels == name)
        if len(within) >= SMALLEST and len(np.unique(batch[within])) > 1:
            found.append(_accepted(graph[within][:, within], batch[within], seed))
    if not found:
        raise Undefined(f"kBET needs a label with {SMALLEST} samples of two batches, and there is none")
    return float(np.mean(found))


def _accepted(graph: sparse.csr_matrix, batch: np.ndarray, seed: int) -> float:
    """Share of a label's samples that pass; 0 where too much of its graph lies in small parts."""
    k0 = int(np.clip(len(batch) / len(np.unique(batch)) // 4, 10, 70))
    part = graphs.components(graph)
    if part.max() > 0:
        kept = np.flatnonzero(np.bincount(part)[part] >= 3 * k0)
        if len(kept) < 0.75 * len(batch):
            return 0.0
        graph, batch = graph[kept][:, kept], batch[kept]
    values, vectors = graphs.diffusion_map(graph, N_COMPONENTS, seed)
    scale = np.where(values >= ONE, 1, values / np.where(values >= ONE, 1, 1 - values))
    around = graphs.nearest(vectors * scale, k0 + 1, seed)
    return float((_p_values(around.index, batch) >= ALPHA).mean())


def _p_values(index: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Chi-squared test of the batches at `index` [n, k] against their frequency in `batch` [n]: [n]."""
    names, code = np.unique(batch, return_inverse=True)
    expected = np.bincount(code) / len(code) * index.shape[1]
    seen = np.stack([(code[index] == b).sum(axis=1) for b in range(len(names))], axis=1)
    return chi2.sf(((seen - expected) ** 2 / expected).sum(axis=1), len(names) - 1)


def pcr(x: ArrayLike, batch: ArrayLike) -> float:
    """Share of the variance of x [n_obs, n_vars] that the batch explains, 0 ... 1.

    Principal component regression over all components, whose sum does not depend on the axes: the variance between
    batches over all variance, and no component is needed. Raises `Undefined` for one batch, and where x does not
    vary. Source: Büttner et al., Nature Methods 16 (2019) 43. Introduced in notebook 07.
    """
    x, batch = rows(x), _two_batches(batch, "PCR")
    x = x - x.mean(axis=0)
    total = (x**2).sum()
    if total == 0:
        raise Undefined("PCR is a share of variance, and there is none: all rows are equal", embedding=True)
    between = sum((batch == b).sum() * (x[batch == b].mean(axis=0) ** 2).sum() for b in np.unique(batch))
    return float(between / total)


def pcr_comparison(before: ArrayLike, after: ArrayLike, batch: ArrayLike) -> float:
    """How much less of the variance the batch explains than before, (before - after) / before, negative cut to 0.

    `before` [n_obs, n_vars]: the data, or their principal components, without correction; `after` [n_obs, n_latent].
    Raises `Undefined` for one batch, where the batch explained nothing before, and where one does not vary.
    Introduced in notebook 07.
    """
    if len(np.asarray(before)) != len(np.asarray(after)):
        raise ValueError(f"before has {len(np.asarray(before))} samples, after {len(np.asarray(after))}: give the same")
    try:
        first = pcr(before, batch)
    except Undefined as error:
        raise Undefined(f"before correction: {error}") from error
    if first < 1e-12:
        raise Undefined("PCR comparison: the batch explains nothing of the data before, so nothing can be removed")
    return max(0.0, (first - pcr(after, batch)) / first)


def _two_batches(batch: ArrayLike, metric: str) -> np.ndarray:
    batch = np.asarray(batch).astype(str)
    if len(np.unique(batch)) < 2:
        raise Undefined(f"{metric} needs two batches, and all {len(batch)} samples are in '{batch[0]}'")
    return batch
