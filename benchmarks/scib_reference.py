"""Values of scib-metrics for small made-up embeddings, to which `helpers.metrics.integration` is held in its test.

    python benchmarks/scib_reference.py      # where scib-metrics 0.5.10 is installed; writes tests/scib_reference.json

The file holds the data too, so that the test needs neither this program nor scib-metrics. Neighbours are exact
(scikit-learn), so that definitions are compared and not searches. Leiden is run with 20 seeds, k-means started 50
times (scib-metrics: once) and the start with the least inertia taken, so that luck is not compared either. Labels are
named by falling size: kBET of 0.5.10 carries the number of diffusion components that its smallest label so far allows
over to the labels that follow.
"""

import json
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scib_metrics as scib
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

OUT = Path(__file__).parents[1] / "tests" / "scib_reference.json"


def embedding(sizes: list[list[int]], apart: float, shift: float, n_latent: int, seed: int) -> dict:
    """Gaussian clouds: sizes[label][batch] samples, `apart` between labels, `shift` between batches."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), np.sum(sizes, axis=1))
    batch = np.concatenate([np.repeat(np.arange(len(row)), row) for row in sizes])
    centre = apart * rng.normal(size=(len(sizes), n_latent))[labels]
    moved = rng.normal(size=(len(sizes[0]), n_latent))[batch]
    noise = rng.normal(size=centre.shape)
    order = rng.permutation(len(labels))
    return {
        "z": np.round(centre + shift * moved + noise, 3)[order],
        "before": np.round(centre + 2 * moved + noise, 3)[order],
        "labels": np.array([f"type{k}" for k in labels])[order],
        "batch": np.array([f"batch{k}" for k in batch])[order],
    }


DATA = {
    "distinct": lambda: embedding([[60, 40, 20], [40, 20, 10], [20, 20, 20], [20, 10, 0]], 1.5, 0.4, 6, 0),
    "overlapping": lambda: embedding([[50, 30], [30, 20], [20, 30], [25, 15], [15, 15], [9, 1]], 0.8, 1.0, 5, 1),
    "well mixed": lambda: embedding([[50, 30, 20, 10], [20, 20, 20, 20], [30, 0, 0, 0], [4, 3, 1, 0]], 1.2, 0.0, 8, 2),
}


def nearest(z: np.ndarray, k: int) -> NeighborsResults:
    distance, index = NearestNeighbors(n_neighbors=k).fit(z).kneighbors(z)
    return NeighborsResults(indices=index, distances=distance.astype(np.float32))


def values(z: np.ndarray, before: np.ndarray, labels: np.ndarray, batch: np.ndarray) -> dict[str, float]:
    near = nearest(z, 90)
    at = {k: near.subset_neighbors(n=k) for k in (15, 50)}
    found = scib.utils.KMeans(len(np.unique(labels)), n_init=50).fit(z)
    return {
        "isolated_labels": scib.isolated_labels(z, labels, batch),
        "kmeans_nmi": normalized_mutual_info_score(labels, found.labels_),
        "kmeans_ari": adjusted_rand_score(labels, found.labels_),
        "silhouette_label": scib.silhouette_label(z, labels),
        "clisi": scib.clisi_knn(near, labels),
        "silhouette_batch": scib.silhouette_batch(z, labels, batch),
        "bras": scib.bras(z, labels, batch),
        "ilisi": scib.ilisi_knn(near, batch),
        "kbet": scib.kbet_per_label(at[50], batch, labels),
        "graph_connectivity": scib.graph_connectivity(at[15], labels),
        "pcr_comparison": scib.pcr_comparison(before, z, batch, categorical=True),
    }


def leiden(z: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """Over seeds: at the best of the resolutions, and at 1.0 (`_1`)."""
    near = nearest(z, 15)
    best = [scib.nmi_ari_cluster_labels_leiden(near, labels, seed=seed) for seed in range(20)]
    fixed = [scib.nmi_ari_cluster_labels_leiden(near, labels, False, seed=seed) for seed in range(20)]
    found = {f"leiden_{name}": [float(run[name]) for run in best] for name in ("nmi", "ari")}
    return found | {f"leiden_{name}_1": [float(run[name]) for run in fixed] for name in ("nmi", "ari")}


def main() -> None:
    warnings.simplefilter("ignore")
    found = {}
    for name, make in DATA.items():
        data = make()
        near = nearest(data["z"], 90)
        found[name] = {
            "data": {key: value.tolist() for key, value in data.items()},
            "scores": {key: float(value) for key, value in values(**data).items()},
            "leiden": leiden(data["z"], data["labels"]),
            "weights": near.subset_neighbors(n=15).knn_graph_connectivities.sum(axis=1).A1.astype(float).tolist(),
            "lisi": scib.lisi_knn(near, data["labels"]).astype(float).tolist(),
        }
    packages = {name: version(name) for name in ("scib-metrics", "jax", "umap-learn", "numpy", "igraph")}
    OUT.write_text(json.dumps({"command": "benchmarks/scib_reference.py", "versions": packages, "sets": found}) + "\n")


if __name__ == "__main__":
    main()
