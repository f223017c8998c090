"""Neighbour graphs of an embedding, on which half of the integration metrics are computed.

One exact search for the nearest neighbours serves all metrics; the first 15, 50 or 90 of them are taken as needed.
Rows that are equal to the last digit (a collapsed embedding, or zeros) are no trouble: which of them are neighbours
is drawn by a seed, so that no order of the file decides. Introduced in notebook 07.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.sparse import csgraph

K = 90  # neighbours searched for, each sample among its own
ROWS = 20_000  # rows worked on at once
DENSE = 500  # nodes up to which all eigenvectors are computed


class Undefined(ValueError):
    """A metric has no value for these labels, batches or data, or, with `embedding`, for this embedding.

    Introduced in notebook 07.
    """

    def __init__(self, reason: str, embedding: bool = False) -> None:
        super().__init__(reason)
        self.embedding = embedding


@dataclass(frozen=True)
class Neighbours:
    """Nearest neighbours of every sample, itself first. Introduced in notebook 07."""

    index: np.ndarray  # [n_obs, k] row numbers
    distance: np.ndarray  # [n_obs, k] Euclidean, ascending

    def first(self, k: int) -> Neighbours:
        """The first `k` of them, the sample itself among them (all where there are fewer)."""
        return Neighbours(self.index[:, :k], self.distance[:, :k])


def rows(z: ArrayLike) -> np.ndarray:
    """An embedding as float64 [n_obs, n_latent].

    Raises `ValueError` for another shape, or for NaN or infinite values, with the number of rows that have them.
    Introduced in notebook 07.
    """
    z = np.ascontiguousarray(z, dtype=float)
    if z.ndim != 2 or 0 in z.shape:
        raise ValueError(f"an embedding is [n_obs, n_latent], not of shape {z.shape}")
    bad = ~np.isfinite(z).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(z)} rows of the embedding are NaN or infinite, the first of them row "
            f"{np.flatnonzero(bad)[0]}: leave samples that were not embedded out, of labels and batches too"
        )
    return z


def nearest(z: ArrayLike, k: int = K, seed: int = 0) -> Neighbours:
    """The `k` nearest rows of every row of z [n_obs, n_latent], itself among them and first, by Euclidean distance.

    Exact (scikit-learn, brute force in blocks), where scib-metrics searches approximately; `k` is cut to n_obs. Equal
    distances are ordered by `seed`; where more than `k` rows are equal, the neighbours are drawn from them. Raises
    `ValueError` as `rows` does. Introduced in notebook 07.
    """
    from sklearn.neighbors import NearestNeighbors

    z, rng = rows(z), np.random.default_rng(seed)
    k = min(k, len(z))
    distance, index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(z).kneighbors(z)
    point = np.unique(z, axis=0, return_inverse=True)[1].reshape(-1)
    distance[point[index] == point[:, None]] = 0  # and not 1e-8, from rounding
    index, distance = _itself_first(index, distance, rng)
    _draw_among_equals(index, distance, point, rng)
    return Neighbours(index, distance)


def _itself_first(index, distance, rng) -> tuple[np.ndarray, np.ndarray]:
    """Rows sorted by distance, ties at random, but the sample itself (which many equal ones may hide) in front."""
    own = np.arange(len(index))
    hidden = ~(index == own[:, None]).any(axis=1)
    index[hidden, -1] = own[hidden]
    key = np.where(index == own[:, None], -1.0, distance)
    order = np.lexsort((rng.random(key.shape, dtype=np.float32), key), axis=1)
    distance[hidden, -1] = 0
    return np.take_along_axis(index, order, 1), np.take_along_axis(distance, order, 1)


def _draw_among_equals(index, distance, point, rng) -> None:
    """Where more rows are equal than there are neighbours: steps around a shuffled ring of them, in place."""
    k, size = index.shape[1], np.bincount(point)
    for group in np.flatnonzero(size > k):
        ring = rng.permutation(np.flatnonzero(point == group))
        steps = 1 + rng.choice(len(ring) - 1, k - 1, replace=False)
        for start in range(0, len(ring), ROWS):
            at = np.arange(start, min(start + ROWS, len(ring)))
            index[ring[at], 1:] = ring[(at[:, None] + steps) % len(ring)]
        distance[ring] = 0


def adjacency(near: Neighbours) -> sparse.csr_matrix:
    """Directed graph from every sample to its neighbours, without loops, ones: [n_obs, n_obs].

    Introduced in notebook 07.
    """
    return _graph(near, np.ones(near.index.shape, np.float32))


def connectivities(near: Neighbours) -> sparse.csr_matrix:
    """Symmetric weights in (0, 1] between neighbours, as UMAP and scanpy weigh them: [n_obs, n_obs].

    exp(-(d - rho) / sigma) with rho the distance to the nearest other point, sigma such that the weights of the k
    neighbours add up to log2 k; both directions joined by a + b - ab. The same numbers as
    `umap.umap_.fuzzy_simplicial_set`, without its compilation. Source: McInnes et al., arXiv:1802.03426, section 3.1.
    Introduced in notebook 07.
    """
    parts = [_memberships(near.distance[start : start + ROWS]) for start in range(0, len(near.index), ROWS)]
    graph = _graph(near, np.concatenate(parts))
    return (graph + graph.T - graph.multiply(graph.T)).tocsr()


def _graph(near: Neighbours, weight: np.ndarray) -> sparse.csr_matrix:
    n, k = near.index.shape
    weight = np.where(near.index == np.arange(n)[:, None], 0, weight)
    graph = sparse.csr_matrix((weight.ravel(), near.index.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    graph.eliminate_zeros()
    return graph


def _memberships(distance: np.ndarray) -> np.ndarray:
    n, k = distance.shape
    others = distance[:, 1:]
    nearest_other = np.where(others > 0, others, np.inf).min(axis=1, initial=np.inf)
    rho = np.where(np.isfinite(nearest_other), nearest_other, 0)
    beyond = np.maximum(others - rho[:, None], 0)

    def total(sigma: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.exp(-beyond[at] / sigma[:, None]).sum(axis=1)

    least = 1e-3 * np.where(rho > 0, distance.mean(axis=1), distance.mean())
    sigma = np.maximum(solve(total, np.log2(k), n), np.maximum(least, np.finfo(float).tiny))
    return np.hstack([np.zeros((n, 1)), np.exp(-beyond / sigma[:, None])])


def solve(
    value: Callable[[np.ndarray, np.ndarray], np.ndarray], target: float, n: int, tolerance: float = 1e-5
) -> np.ndarray:
    """The scale of each of `n` rows at which an increasing function is at `target`, by doubling, then bisection: [n].

    `value` gets scales and the numbers of their rows. After 64 steps the last scale is taken as it is.
    Introduced in notebook 07.
    """
    low, high, scale, open_ = np.zeros(n), np.full(n, np.inf), np.ones(n), np.arange(n)
    for _ in range(64):
        off = value(scale[open_], open_) - target
        unmet = np.abs(off) >= tolerance
        open_, off = open_[unmet], off[unmet]
        if not len(open_):
            break
        high[open_[off > 0]] = scale[open_[off > 0]]
        low[open_[off < 0]] = scale[open_[off < 0]]
        bounded = np.isfinite(high[open_])
        scale[open_] = np.where(bounded, (low[open_] + np.where(bounded, high[open_], 0)) / 2, 2 * scale[open_])
    return scale


def diffusion_map(graph: sparse.csr_matrix, n_components: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Largest eigenvalues [c] and eigenvectors [n, c] of the density-normalised transition matrix, descending.

    The first eigenvalue is 1. At most n - 1 components of a graph of n nodes, each of which needs an edge. The same
    normalisation as scanpy's. Source: Coifman et al., PNAS 102 (2005) 7426. Introduced in notebook 07.
    """
    n_components = min(n_components, graph.shape[0] - 1)
    kernel = _scaled(graph.astype(float), 1)
    transitions = _scaled(kernel, 0.5)
    if graph.shape[0] <= DENSE:
        values, vectors = np.linalg.eigh(transitions.toarray())
    else:
        start = np.random.default_rng(seed).random(graph.shape[0])
        values, vectors = sparse.linalg.eigsh(transitions, k=n_components, which="LM", v0=start)
    kept = np.sort(np.argsort(-np.abs(values))[:n_components])[::-1]
    return values[kept], vectors[:, kept]


def _scaled(graph: sparse.csr_matrix, power: float) -> sparse.csr_matrix:
    scale = sparse.diags(np.asarray(graph.sum(axis=0)).ravel() ** -power)
    return (scale @ graph @ scale).tocsr()


def lisi(near: Neighbours, groups: ArrayLike, perplexity: float | None = None) -> np.ndarray:
    """Local inverse Simpson index: how many of the groups [n_obs] a sample sees around itself, 1 ... n_groups: [n_obs].

    Neighbours are weighed by exp(-distance / scale), the scale such that the entropy is log `perplexity` (k // 3 if
    not given). Source: Korsunsky et al., Nature Methods 16 (2019) 1289; scib-metrics `lisi_knn`.
    Introduced in notebook 07.
    """
    names, code = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    perplexity = perplexity or max(1, near.index.shape[1] // 3)
    if near.index.shape[1] < 2:
        raise Undefined("LISI needs at least two samples")
    found = [
        _lisi(near.distance[at, 1:], code[near.index[at, 1:]], len(names), perplexity)
        for at in (slice(start, start + ROWS) for start in range(0, len(code), ROWS))
    ]
    return np.concatenate(found)


def _lisi(distance: np.ndarray, code: np.ndarray, n_groups: int, perplexity: float) -> np.ndarray:
    n, beyond = len(distance), distance - distance.min(axis=1, keepdims=True)

    def entropy(scale: np.ndarray, at: np.ndarray) -> np.ndarray:
        power = beyond[at] / scale[:, None]
        weight = np.exp(-power)
        total = weight.sum(axis=1)
        return np.log(total) + (power * weight).sum(axis=1) / total

    weight = np.exp(-beyond / solve(entropy, np.log(perplexity), n)[:, None])
    weight /= weight.sum(axis=1, keepdims=True)
    cell = np.arange(n)[:, None] * n_groups + code
    share = np.bincount(cell.ravel(), weight.ravel(), n * n_groups).reshape(n, n_groups)
    return 1 / (share**2).sum(axis=1)


def components(graph: sparse.csr_matrix, directed: bool = False) -> np.ndarray:
    """Number of the connected part that each node is in, the largest part 0: [n]; `directed`: strongly connected.

    Introduced in notebook 07.
    """
    part = csgraph.connected_components(graph, directed=directed, connection="strong")[1]
    order = np.argsort(-np.bincount(part), kind="stable")
    return np.argsort(order)[part]
