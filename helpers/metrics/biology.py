"""Does a joint embedding keep the biology: clusters, neighbourhoods of one label, trajectories.

The silhouettes of labels are in `silhouettes`. Introduced in notebook 07.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from helpers.metrics import graphs
from helpers.metrics.graphs import Neighbours, Undefined, rows

RESOLUTIONS = tuple(step / 5 for step in range(1, 11))  # of scib 1.1 and scib-metrics; NeurIPS 2021: 0.1 to 2.0
N_STARTS = 50  # of k-means
N_COMPONENTS = 15  # of the diffusion map, scanpy's default
N_USED = 10  # of them used for pseudotime, scanpy's default
STATIONARY = 0.9994  # eigenvalue from which a component counts as stationary, scanpy's


def leiden(graph: sparse.csr_matrix, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Leiden clusters of a symmetric weighted graph [n, n] by modularity, two iterations (scanpy's): [n].

    Source: Traag, Waltman and van Eck, Scientific Reports 9 (2019) 5233. Introduced in notebook 07.
    """
    return np.asarray(_leiden(*_edges(graph), resolution, seed))


def _edges(graph: sparse.csr_matrix) -> tuple:
    import igraph

    upper = sparse.triu(graph, 1).tocoo()
    return igraph.Graph(graph.shape[0], np.stack([upper.row, upper.col], axis=1)), upper.data


def _leiden(graph, weights, resolution, seed) -> list[int]:
    import igraph

    igraph.set_random_number_generator(random.Random(seed))
    try:
        return graph.community_leiden("modularity", weights, resolution).membership
    finally:
        igraph.set_random_number_generator(random)


def leiden_scores(
    near: Neighbours, labels: ArrayLike, resolutions: Sequence[float] = RESOLUTIONS, seed: int = 0
) -> dict[str, float]:
    """How well Leiden clusters of the graph of 15 neighbours agree with labels [n_obs].

    Keys: `leiden_nmi` of the best of `resolutions` (chosen by these labels, which flatters; the first of equals), and
    of the same clusters `leiden_ari`, `leiden_clusters` and `leiden_resolution`; `leiden_nmi_1`, `leiden_ari_1`,
    `leiden_clusters_1` at resolution 1.0, which nobody chose. NMI is divided by the arithmetic mean of the entropies:
    it rewards many clusters, so read it with their number. Raises `Undefined` for one label.
    Introduced in notebook 07.
    """
    labels = _two_labels(labels)
    graph = _edges(graphs.connectivities(near.first(15)))
    runs = {r: _agreement(labels, _leiden(*graph, r, seed)) for r in {*resolutions, 1.0}}
    best = max(resolutions, key=lambda r: runs[r]["nmi"])
    found = {f"leiden_{name}": value for name, value in runs[best].items()} | {"leiden_resolution": float(best)}
    return found | {f"leiden_{name}_1": value for name, value in runs[1.0].items()}


def _agreement(labels, clusters) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    scores = {"nmi": normalized_mutual_info_score, "ari": adjusted_rand_score}
    return {name: float(f(labels, clusters)) for name, f in scores.items()} | {"clusters": len(np.unique(clusters))}


def kmeans_scores(z: ArrayLike, labels: ArrayLike, seed: int = 0) -> dict[str, float]:
    """How well k-means with as many clusters as labels [n_obs] agrees with them: `kmeans_nmi`, `kmeans_ari`.

    The best of 50 starts by inertia: single ones, as in scib-metrics, differ by 0.06 (standard deviation of ARI, 800
    blood cells), the best of ten by 0.07, of 50 by 0.01. z [n_obs, n_latent]. Raises `Undefined` for one label.
    Introduced in notebook 07.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    z, labels = rows(z), _two_labels(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than labels: fewer clusters
        clusters = KMeans(len(np.unique(labels)), n_init=N_STARTS, random_state=seed).fit_predict(z)
    found = _agreement(labels, clusters)
    return {f"kmeans_{name}": found[name] for name in ("nmi", "ari")}


def clisi(near: Neighbours, labels: ArrayLike) -> float:
    """cLISI, (L - median LISI of the labels) / (L - 1) for L labels: 1 where neighbours share their label.

    Raises `Undefined` for one label. Introduced in notebook 07.
    """
    labels = _two_labels(labels)
    n = len(np.unique(labels))
    return float((n - np.median(graphs.lisi(near.first(90), labels))) / (n - 1))


def graph_connectivity(near: Neighbours, labels: ArrayLike, directed: bool = True) -> float:
    """Share of a label's samples in its largest connected part of the graph of 15 neighbours, meaned over labels.

    `directed`: parts that are strongly connected by arrows from sample to neighbour, as scib-metrics counts them;
    otherwise an arrow either way connects, as in scib and NeurIPS 2021. scib-metrics counts it as batch correction,
    the sample-size study as biology. Introduced in notebook 07.
    """
    labels, graph = np.asarray(labels).astype(str), graphs.adjacency(near.first(15))
    found = []
    for name in np.unique(labels):
        within = np.flatnonzero(labels == name)
        found.append((graphs.components(graph[within][:, within], directed) == 0).mean())
    return float(np.mean(found))


def diffusion_pseudotime(graph: sparse.csr_matrix, root: int, seed: int = 0) -> np.ndarray:
    """Diffusion distance from node `root` of a connected graph of weights [n, n], from 0 to 1: [n].

    The numbers of scanpy's `dpt` with its defaults. Source: Haghverdi et al., Nature Methods 13 (2016) 845.
    Introduced in notebook 07.
    """
    return _pseudotime(*graphs.diffusion_map(graph, N_COMPONENTS, seed), root)


def _pseudotime(values: np.ndarray, vectors: np.ndarray, root: int) -> np.ndarray:
    values, vectors = values[:N_USED], vectors[:, :N_USED]
    weight = np.where(values < STATIONARY, values / np.where(values < STATIONARY, 1 - values, 1), 1)
    distance = np.linalg.norm((vectors - vectors[root]) * weight, axis=1)
    return distance / (distance.max() or 1)


def trajectory(
    near: Neighbours, pseudotime: ArrayLike, labels: ArrayLike, batch: ArrayLike | None = None, seed: int = 0
) -> float:
    """Trajectory conservation: (Spearman correlation of diffusion pseudotime with a reference + 1) / 2; 0.5 is chance.

    The reference `pseudotime` [n_obs] is NaN where there is none; those samples are left out. Pseudotime is computed
    on the largest connected part of the graph of 15 neighbours; samples outside have 0. The root is that sample, of
    the label with the lowest mean reference, which is most often extreme in the first three diffusion components. 0
    where the part has none. With `batch` [n_obs] the correlations within batches are averaged. Raises `Undefined`
    for fewer than three samples with a reference, or a constant one. Source: NeurIPS 2021 competition; scib
    `trajectory_conservation`. Introduced in notebook 07.
    """
    known = np.isfinite(np.asarray(pseudotime, float))
    reference, labels = np.asarray(pseudotime, float)[known], np.asarray(labels).astype(str)[known]
    if known.sum() < 3 or np.ptp(reference) == 0:
        raise Undefined("trajectory conservation needs three samples with a reference pseudotime that varies")
    graph = graphs.connectivities(near.first(15))[known][:, known]
    inside = np.flatnonzero(graphs.components(graph) == 0)
    start = min(np.unique(labels), key=lambda name: reference[labels == name].mean())
    starts = np.flatnonzero(labels[inside] == start)
    if not len(starts) or len(inside) < 3:
        return 0.0
    values, vectors = graphs.diffusion_map(graph[inside][:, inside], N_COMPONENTS, seed)
    found = np.zeros(len(reference))
    found[inside] = _pseudotime(values, vectors, _root(vectors, starts))
    groups = np.zeros(len(reference)) if batch is None else np.asarray(batch).astype(str)[known]
    return float((np.mean([_spearman(reference[groups == b], found[groups == b]) for b in np.unique(groups)]) + 1) / 2)


def _root(vectors: np.ndarray, starts: np.ndarray) -> int:
    votes = np.zeros(len(starts))
    for component in vectors.T[:3]:
        low = component[starts].mean() < component.mean()
        votes[(np.argmin if low else np.argmax)(component[starts])] += 1
    return starts[np.argmax(votes)]


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; 0 where one does not vary, since it says nothing then."""
    from scipy.stats import rankdata

    a, b = rankdata(a), rankdata(b)
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def _two_labels(labels: ArrayLike) -> np.ndarray:
    labels = np.asarray(labels).astype(str)
    if len(np.unique(labels)) < 2:
        raise Undefined(f"it needs two labels, and all {len(labels)} samples are '{labels[0]}'")
    return labels
