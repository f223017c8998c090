"""Arithmetic on plain or CSR matrices behind `prepare`: feature filters, column scalers, filling.

A filter takes the train matrix [n_obs, n_vars] and a number and returns column positions; a scaler takes a
dense block of columns and returns shift and scale, so that x' = (x - shift) / scale.
Introduced in notebook 01.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

Matrix = np.ndarray | sparse.spmatrix  # dense, or CSR

KEEPS_ZEROS = ("maxabs", "log1p_cp10k", "none")  # scalers under which a CSR matrix stays CSR
MAX_LINKAGE = 6000  # columns clustered in one piece: 6,000 need 0.6 GB for a moment


def columnwise(x: Matrix, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`statistic` of float64 blocks of columns, so that a sparse or wide matrix is never dense as a whole."""
    step = max(1, 2**24 // max(1, x.shape[0]))  # 128 MB
    x = x.tocsc() if sparse.issparse(x) else x
    blocks = (x[:, start : start + step] for start in range(0, max(1, x.shape[1]), step))
    dense = (block.toarray() if sparse.issparse(block) else block for block in blocks)
    return np.concatenate([statistic(block.astype(np.float64)) for block in dense], axis=-1)


def _variance(x: Matrix) -> np.ndarray:
    return columnwise(x, lambda block: block.var(axis=0))


def _mad(x: Matrix) -> np.ndarray:
    from scipy.stats import median_abs_deviation

    return columnwise(x, lambda block: median_abs_deviation(block, axis=0))


def _top(n: int, *scores: np.ndarray) -> np.ndarray:
    """The `n` best by the first score, ties by the next, then by position; in the order of the columns."""
    return np.sort(np.lexsort([-score for score in reversed(scores)])[:n])


def _select_mad(x: Matrix, n: int) -> np.ndarray:
    return _top(n, _mad(x), _variance(x))  # where most values are 0, so is the MAD: ties go by variance


def _select_correlation(x: Matrix, n: int) -> np.ndarray:
    """Medoids of `n` average-linkage clusters of the columns under the distance 1 - |r|.

    More than `MAX_LINKAGE` columns are thinned first in interleaved pieces, as CLARA (Kaufman and Rousseeuw
    1990) does with samples.
    """
    variance = _variance(x)
    keep = np.argsort(-variance, kind="stable")  # interleaved pieces then hold strong and weak features alike
    while keep.size > max(n, MAX_LINKAGE):
        n_pieces = -(-keep.size // MAX_LINKAGE)
        bounds = np.linspace(0, max(n, 3 * keep.size // 4), n_pieces + 1).astype(int)
        pieces = [(keep[i::n_pieces], min(n, bounds[i + 1] - bounds[i])) for i in range(n_pieces)]
        keep = np.concatenate([part[_medoids(x[:, part], k, variance[part])] for part, k in pieces])
    return np.sort(keep[_medoids(x[:, keep], n, variance[keep])]) if n < keep.size else np.sort(keep)


def _correlation(x: Matrix) -> np.ndarray:
    """Pearson's r of the columns [n_vars, n_vars], by blocks of rows, so that a CSR matrix is never dense."""
    mean, gram = columnwise(x, lambda block: block.mean(axis=0)), np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, x.shape[0], 4096):
        rows = x[start : start + 4096]
        z = (rows.toarray() if sparse.issparse(rows) else rows) - mean
        gram += z.T @ z
    size = np.sqrt(gram.diagonal())
    return gram / size / size[:, None]


def _medoids(x: Matrix, n: int, variance: np.ndarray) -> np.ndarray:
    from scipy.cluster.hierarchy import linkage
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial.distance import squareform

    if n >= x.shape[1]:
        return np.arange(x.shape[1])
    distance = np.clip(1 - np.abs(_correlation(x)), 0, None)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    m, merges = len(distance), np.arange(len(distance) - n)  # undoing the last n - 1 merges leaves n clusters
    children, parents = tree[merges, :2].astype(int).T.ravel(), np.tile(m + merges, 2)
    edges = sparse.coo_array((np.ones(children.size), (children, parents)), shape=(2 * m, 2 * m))
    label = connected_components(edges, directed=False)[1][:m]
    order = np.argsort(label, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
    return np.array([_medoid(cluster, distance, variance) for cluster in clusters])


def _medoid(members: np.ndarray, distance: np.ndarray, variance: np.ndarray) -> int:
    cost = distance[np.ix_(members, members)].sum(axis=0)
    best = members[cost <= cost.min() + 1e-9]  # two members always tie: the more variable one stands for both
    return best[np.argmax(variance[best])]


def _select_variance_correlation(x: Matrix, n: int) -> np.ndarray:
    wide = _top(10 * n, _variance(x))
    return wide[_select_correlation(x[:, wide], n)]


# name -> (train matrix, n) -> column positions; constant columns are gone before, except for "none"
SELECTORS: dict[str, Callable[..., np.ndarray]] = {
    "variance": lambda x, n: _top(n, _variance(x)),
    "nonzero_variance": lambda x, n: np.arange(x.shape[1]),
    "mad": _select_mad,
    "correlation": _select_correlation,
    "variance_correlation": _select_variance_correlation,
    "none": lambda x, n: np.arange(x.shape[1]),
}


def _standard(block: np.ndarray) -> np.ndarray:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(block)
    return np.stack([scaler.mean_, scaler.scale_])


def _minmax(block: np.ndarray) -> np.ndarray:
    from sklearn.preprocessing import MinMaxScaler

    scaler = MinMaxScaler().fit(block)
    return np.stack([scaler.data_min_, 1 / scaler.scale_])


def _robust(block: np.ndarray) -> np.ndarray:
    from sklearn.preprocessing import RobustScaler

    scaler = RobustScaler().fit(block)
    return np.stack([scaler.center_, scaler.scale_])


def _maxabs(block: np.ndarray) -> np.ndarray:
    from sklearn.preprocessing import MaxAbsScaler

    return np.stack([np.zeros(block.shape[1]), MaxAbsScaler().fit(block).scale_])


def _identity(block: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros(block.shape[1]), np.ones(block.shape[1])])


# name -> (block [n_obs, m]) -> shift and scale [2, m]
SCALERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "standard": _standard,
    "minmax": _minmax,
    "robust": _robust,
    "maxabs": _maxabs,
    "log1p_cp10k": _identity,
    "none": _identity,
}


def rescale(x: Matrix, shift: np.ndarray, width: np.ndarray, clip: np.ndarray) -> Matrix:
    """(x - shift) / width, clipped, for float32 [n_obs, n_vars]; in place. CSR stays CSR, without shift."""
    if sparse.issparse(x):
        x.data = (x.data / width[x.indices]).astype(np.float32)
        return x
    for start in range(0, len(x), 1024):  # float64 within, without a float64 copy of the whole
        rows = slice(start, start + 1024)
        x[rows] = np.clip((x[rows] - shift) / width, *clip)
    return x


def count(x: Matrix, test: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """How many values of each column pass the test (which zeros never pass)."""
    if sparse.issparse(x):
        return np.bincount(x.indices[test(x.data)], minlength=x.shape[1])
    return test(x).sum(axis=0)


def column_means(x: Matrix, missing: np.ndarray) -> np.ndarray:
    """Means of the values that are not NaN (`missing` counts those that are); 0 where there is none."""
    present = np.maximum(x.shape[0] - missing, 1)
    return columnwise(x, lambda block: np.nansum(block, axis=0)) / present


def fill_gaps(x: Matrix, fill: np.ndarray) -> Matrix:
    """NaN of each column becomes its `fill` [n_vars]; in place."""
    if sparse.issparse(x):
        gaps = np.isnan(x.data)
        x.data[gaps] = fill[x.indices[gaps]]
    else:
        rows, columns = np.nonzero(np.isnan(x))
        x[rows, columns] = fill[columns]
    return x


def library_size(x: Matrix) -> np.ndarray:
    """Sum of each row, without NaN: [n_obs]."""
    if sparse.issparse(x):
        row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
        return np.bincount(row, np.nan_to_num(x.data), x.shape[0])
    return np.nansum(x, axis=1, dtype=np.float64)


def log1p_cp10k(x: Matrix, total: np.ndarray) -> Matrix:
    """log(1 + counts per ten thousand), given library sizes `total` [n_obs]; in place. Empty rows stay 0."""
    factor = (1e4 / np.where(total > 0, total, 1)).astype(np.float32)
    if sparse.issparse(x):
        x.data = np.log1p(x.data * np.repeat(factor, np.diff(x.indptr)))
        return x
    x *= factor[:, None]
    return np.log1p(x, out=x)
