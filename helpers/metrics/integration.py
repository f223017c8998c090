"""Scores of a joint embedding of several batches: biology kept, batches mixed, and both in one table with controls.

`scores` computes everything for one embedding, `table` for several beside their controls. The metrics themselves, with
their definitions, are in `silhouettes`, `biology` and `mixing`, the graphs in `graphs`; `settings` lists them with
their parameters. They run on numpy, scipy, scikit-learn and igraph; `scib_scores` is the same by scib-metrics.

Introduced in notebook 07.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from helpers.metrics import biology, graphs, mixing, silhouettes
from helpers.metrics.graphs import K, Neighbours, Undefined
from helpers.wording import closest, few

# averaged into `bio` and `batch`: what scib-metrics 0.5.10 averages by default
BIO = ("isolated_labels", "kmeans_nmi", "kmeans_ari", "silhouette_label", "clisi")
BATCH = ("bras", "ilisi", "kbet", "graph_connectivity", "pcr_comparison")
# averaged into `mean12`: the twelve of MIMA's figure, made when silhouette_batch had BRAS's place
MIMA_BIO = (*BIO, "leiden_nmi", "leiden_ari")
MIMA_BATCH = ("silhouette_batch", *BATCH[1:])
# the six of the sample-size study (notebook 08), which are not averaged
STUDY = (
    "leiden_nmi",
    "silhouette_label",
    "trajectory",
    "silhouette_batch",
    "silhouette_site",
    "graph_connectivity_undirected",
)
TOTALS = ("bio", "batch", "total", "mean", "total4", "mean12")

_LEIDEN = "Leiden, modularity, 2 iterations, on UMAP weights of 15 neighbours"
_SETTINGS = {
    "isolated_labels": ("bio", "silhouette of the labels that are in the fewest batches, Euclidean, (s + 1) / 2"),
    "leiden_nmi": ("beside", f"{_LEIDEN}; best of resolutions 0.2, 0.4 ... 2.0 by NMI (arithmetic mean)"),
    "leiden_ari": ("beside", "adjusted Rand index of the clusters of leiden_nmi"),
    "leiden_clusters": ("beside", "number of clusters of leiden_nmi: read NMI with it"),
    "leiden_resolution": ("beside", "resolution of leiden_nmi, chosen with the labels"),
    "leiden_nmi_1": ("beside", "NMI of Leiden at resolution 1.0, which nobody chose"),
    "leiden_ari_1": ("beside", "adjusted Rand index at resolution 1.0"),
    "leiden_clusters_1": ("beside", "number of clusters at resolution 1.0"),
    "kmeans_nmi": ("bio", "k-means, k = number of labels, best of 50 starts; NMI (arithmetic mean)"),
    "kmeans_ari": ("bio", "adjusted Rand index of the same clusters"),
    "silhouette_label": ("bio", "cell-type ASW: mean silhouette of the labels, Euclidean, (s + 1) / 2"),
    "clisi": ("bio", "(L - median LISI of the labels) / (L - 1), 90 neighbours, perplexity 30"),
    "trajectory": (
        "study",
        "(Spearman of diffusion pseudotime with the reference + 1) / 2; 15 neighbours",
    ),
    "silhouette_batch": ("study", "batch ASW: 1 - |silhouette of batches within a label|, Euclidean, nearest batch"),
    "silhouette_site": ("study", "the same for sites in place of batches"),
    "bras": ("batch", "as silhouette_batch, cosine distance, all other batches"),
    "ilisi": ("batch", "(median LISI of the batches - 1) / (B - 1), 90 neighbours, perplexity 30"),
    "kbet": ("batch", "chi-squared test at 0.05 per label; 50 neighbours, 100 diffusion components, k0 10 to 70"),
    "graph_connectivity": ("batch", "largest strongly connected part of each label, directed graph of 15 neighbours"),
    "graph_connectivity_undirected": ("study", "largest part of each label connected by an arrow either way"),
    "pcr_comparison": ("batch", "drop in the variance that the batch explains, all components, against `before`"),
    "bio": ("total", f"mean of {', '.join(BIO)}"),
    "batch": ("total", f"mean of {', '.join(BATCH)}"),
    "total": ("total", "0.6 bio + 0.4 batch"),
    "mean": ("total", "(bio + batch) / 2"),
    "total4": ("total", "as total, with batch without pcr_comparison"),
    "mean12": (
        "total",
        "(b + m) / 2; b: bio's and Leiden NMI, ARI; m: batch's, silhouette_batch in place of bras",
    ),
}


def settings() -> pd.DataFrame:
    """What each column of `scores` is: `part` (bio, batch, study, total, or beside another) and `definition`.

    Neighbours are exact, Euclidean, of the embedding as it is (nothing is scaled), the sample itself among them.
    Introduced in notebook 07.
    """
    return pd.DataFrame.from_dict(_SETTINGS, orient="index", columns=["part", "definition"])


def scores(
    z: ArrayLike,
    labels: ArrayLike,
    batch: ArrayLike,
    *,
    before: ArrayLike | None = None,
    site: ArrayLike | None = None,
    pseudotime: ArrayLike | None = None,
    seed: int = 0,
) -> pd.Series:
    """All metrics of one embedding z [n_obs, n_latent], with the totals of `totals`: see `settings` for each.

    labels and batch [n_obs], no missing values. `before` [n_obs, n_vars], data without correction, adds
    `pcr_comparison`; `site` [n_obs] adds `silhouette_site`; `pseudotime` [n_obs], a reference with NaN where there is
    none, adds `trajectory`. All are best at 1.

    A metric without a value is NaN, with its reason in `attrs["notes"]`. Where the labels, batches or `before` are the
    cause (one batch, say), all embeddings lack it, and the means leave it out (`attrs["left_out"]`). Where the
    embedding is the cause (zeros have no variance to compare), it counts as 0, the worst, in the means: a NaN never
    lifts a mean, and no total depends on the other rows of its table.

    Samples that an embedding lacks (NaN rows) raise `ValueError`: score it on the others, and the methods to be
    compared with on the same. Also raises for unequal lengths and missing labels. Introduced in notebook 07.
    """
    given = {"labels": labels, "batch": batch, "site": site}
    z, names = graphs.rows(z), {name: _named(x, name, len(z)) for name, x in given.items() if x is not None}
    near, found, notes, left_out = graphs.nearest(z, K, seed), {}, _remarks(names["labels"]), []
    for columns, metric in metrics_of(z, near, before=before, pseudotime=pseudotime, seed=seed, **names):
        try:
            value = metric()
            found |= value if isinstance(value, dict) else {columns[0]: value}
        except Undefined as error:
            found |= dict.fromkeys(columns, np.nan)
            notes |= dict.fromkeys(columns, str(error))
            left_out += [] if error.embedding else columns
    result = pd.Series(totals(found, left_out) | found, dtype=float)
    result.attrs = {"notes": notes, "left_out": left_out}
    return result


def metrics_of(
    z: np.ndarray,
    near: Neighbours,
    labels: ArrayLike,
    batch: ArrayLike,
    before: ArrayLike | None = None,
    site: ArrayLike | None = None,
    pseudotime: ArrayLike | None = None,
    seed: int = 0,
) -> Iterator[tuple[list[str], Callable[[], float | dict[str, float]]]]:
    """Columns of `scores`, and the call that makes them: a number, or a dict of several columns.

    `near`: `graphs.nearest(z)`; the rest as for `scores`, unchecked. Introduced in notebook 07.
    """
    leiden = [name for name in _SETTINGS if name.startswith("leiden")]
    widths: list[np.ndarray] = []  # silhouettes of the labels, which two metrics need

    def label_widths() -> np.ndarray:
        if not widths:
            widths.append(silhouettes.silhouette_samples(z, labels))
        return widths[0]

    yield ["isolated_labels"], lambda: silhouettes.isolated_labels(z, labels, batch, label_widths())
    yield leiden, lambda: biology.leiden_scores(near, labels, seed=seed)
    yield ["kmeans_nmi", "kmeans_ari"], lambda: biology.kmeans_scores(z, labels, seed)
    yield ["silhouette_label"], lambda: float((label_widths().mean() + 1) / 2)
    yield ["clisi"], lambda: biology.clisi(near, labels)
    if pseudotime is not None:
        yield ["trajectory"], lambda: biology.trajectory(near, _numbers(pseudotime, len(z)), labels, seed=seed)
    yield ["silhouette_batch"], lambda: silhouettes.silhouette_batch(z, labels, batch)
    if site is not None:
        yield ["silhouette_site"], lambda: silhouettes.silhouette_batch(z, labels, site)
    yield ["bras"], lambda: silhouettes.bras(z, labels, batch)
    yield ["ilisi"], lambda: mixing.ilisi(near, batch)
    yield ["kbet"], lambda: mixing.kbet(near, batch, labels, seed)
    yield ["graph_connectivity"], lambda: biology.graph_connectivity(near, labels)
    yield ["graph_connectivity_undirected"], lambda: biology.graph_connectivity(near, labels, directed=False)
    if before is not None:
        yield ["pcr_comparison"], lambda: mixing.pcr_comparison(before, z, batch)


def totals(found: Mapping[str, float], left_out: Collection[str] = ()) -> dict[str, float]:
    """Means of the metrics of one embedding: `TOTALS`.

    `bio` and `batch`: plain means over `BIO` and `BATCH`, of those that are in `found` and not in `left_out`; NaN
    counts as 0. `total` = 0.6 bio + 0.4 batch (scib); `mean` = (bio + batch) / 2; `total4` = total with a batch mean
    without pcr_comparison; `mean12` = as mean, over `MIMA_BIO` and `MIMA_BATCH` (that paper). NaN where a part has
    no metric, as `batch` with one batch: graph connectivity, which looks at labels alone, does not stand for mixing.
    Introduced in notebook 07.
    """

    def mean(names: Collection[str]) -> float:
        values = [found[name] for name in names if name in found and name not in left_out]
        return float(np.mean(np.nan_to_num(values, nan=0.0))) if values else float("nan")

    mixed = [name for name in BATCH if name in found and name not in left_out and name != "graph_connectivity"]
    bio, batch, batch4 = mean(BIO), mean(BATCH if mixed else ()), mean(BATCH[:-1] if mixed else ())
    result = {"bio": bio, "batch": batch, "total": 0.6 * bio + 0.4 * batch, "mean": (bio + batch) / 2}
    return result | {
        "total4": 0.6 * bio + 0.4 * batch4,
        "mean12": (mean(MIMA_BIO) + mean(MIMA_BATCH if mixed else ())) / 2,
    }


def table(
    embeddings: Mapping[str, ArrayLike],
    obs: pd.DataFrame,
    label_key: str,
    batch_key: str,
    *,
    controls: Mapping[str, ArrayLike],
    before: ArrayLike | None = None,
    site_key: str | None = None,
    pseudotime_key: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """`scores` of several embeddings of the same samples, a row each, the controls below.

    `embeddings` and `controls` (see the function of that name; {} for none): name -> [n_obs, n_latent], in the order
    of `obs` [n_obs], which has the columns named by the keys. Columns: `totals`, the metrics, `control` (is it one)
    and `notes` (why a metric has no value, and labels too small for some). Raises `KeyError` for a column that is not
    there, `ValueError` for an embedding that does not fit, named. Introduced in notebook 07.
    """
    keys = {"labels": label_key, "batch": batch_key, "site": site_key, "pseudotime": pseudotime_key}
    columns = {name: _column(obs, key) for name, key in keys.items() if key is not None}
    if twice := sorted(set(embeddings) & set(controls)):
        raise ValueError(f"{few(twice)} is among the embeddings and the controls: rename one")
    found = {}
    for name, z in {**embeddings, **controls}.items():
        try:
            row = scores(z, **columns, before=before, seed=seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        notes = "; ".join(f"{metric}: {why}" for metric, why in row.attrs["notes"].items())
        found[name] = row.to_dict() | {"control": name in controls, "notes": notes}
    result = pd.DataFrame.from_dict(found, orient="index")
    counts = [name for name in result if name.startswith("leiden_clusters")]
    return result.astype(dict.fromkeys(counts, "Int64"))


def controls(
    features: Mapping[str, ArrayLike], labels: ArrayLike, n_latent: int = 20, seed: int = 0
) -> dict[str, np.ndarray]:
    """What every table of embeddings needs beside it: name -> [n_obs, n_latent or fewer].

    "zeros"; "random", standard normal; "PCA <modality>" of each of `features` (modality -> [n_obs, n_vars], normalised
    as the methods get them, measured in all samples); "PCA concatenated", each modality divided by the root of its
    number of features, where there are several; "labels", one-hot, which nothing can beat in biology.
    Raises `ValueError` for samples without a modality. Introduced in notebook 07.
    """
    labels = np.asarray(labels).astype(str)
    dense = {m: np.asarray(x.toarray() if hasattr(x, "toarray") else x, float) for m, x in features.items()}
    for m, x in dense.items():
        if len(x) != len(labels) or not np.isfinite(x).all():
            raise ValueError(f"controls: {m!r} must be measured, without NaN, in each of the {len(labels)} samples")
    found = {"zeros": np.zeros((len(labels), n_latent))}
    found["random"] = np.random.default_rng(seed).normal(size=(len(labels), n_latent))
    found |= {f"PCA {m}": _pca(x, n_latent) for m, x in dense.items()}
    if len(dense) > 1:
        found["PCA concatenated"] = _pca(np.hstack([x / np.sqrt(x.shape[1]) for x in dense.values()]), n_latent)
    return found | {"labels": (labels[:, None] == np.unique(labels)).astype(float)}


def _pca(x: np.ndarray, n_latent: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    return PCA(min(n_latent, *x.shape), random_state=0).fit_transform(x)


def scib_scores(z: ArrayLike, labels: ArrayLike, batch: ArrayLike, *, before: ArrayLike | None = None) -> pd.Series:
    """The metrics of `BIO`, `BATCH`, `MIMA_BIO` and `MIMA_BATCH` by scib-metrics, as its `Benchmarker` calls them.

    Its search for neighbours is approximate and its k-means starts once: numbers differ from those of `scores`, by
    0.06 for k-means (a standard deviation). kBET may take one of two values, see `mixing.kbet`.
    Arguments as for `scores`. Raises `ImportError` where scib-metrics is not installed. Introduced in notebook 07.
    """
    try:
        import scib_metrics as scib
        from scib_metrics.nearest_neighbors import pynndescent
    except ImportError as error:
        raise ImportError("scib-metrics is not installed: pip install scib-metrics==0.5.10") from error
    z = graphs.rows(z)
    labels, batch = _named(labels, "labels", len(z)), _named(batch, "batch", len(z))
    near = pynndescent(z, n_neighbors=min(K, len(z)))
    leiden = scib.nmi_ari_cluster_labels_leiden(near.subset_neighbors(n=15), labels)
    kmeans = scib.nmi_ari_cluster_labels_kmeans(z, labels)
    found = {
        "isolated_labels": scib.isolated_labels(z, labels, batch),
        **{f"leiden_{name}": value for name, value in leiden.items()},
        **{f"kmeans_{name}": value for name, value in kmeans.items()},
        "silhouette_label": scib.silhouette_label(z, labels),
        "clisi": scib.clisi_knn(near, labels),
        "silhouette_batch": scib.silhouette_batch(z, labels, batch),
        "bras": scib.bras(z, labels, batch),
        "ilisi": scib.ilisi_knn(near, batch),
        "kbet": scib.kbet_per_label(near.subset_neighbors(n=50), batch, labels),
        "graph_connectivity": scib.graph_connectivity(near.subset_neighbors(n=15), labels),
    }
    if before is not None:
        found["pcr_comparison"] = scib.pcr_comparison(graphs.rows(before), z, batch, categorical=True)
    return pd.Series(totals(found) | found, dtype=float)


def _named(values: ArrayLike, name: str, n: int) -> np.ndarray:
    """Names as text [n]; raises for another length or missing ones."""
    values = pd.Series(np.asarray(values))
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} values for {n} rows of the embedding: give one for each")
    if values.isna().any():
        raise ValueError(f"{values.isna().sum()} of {n} samples have no value in {name}: leave them out")
    return values.astype(str).to_numpy()


def _numbers(values: ArrayLike, n: int) -> np.ndarray:
    values = np.asarray(values, float)
    if values.shape != (n,):
        raise ValueError(f"pseudotime is of shape {values.shape}, not one value for each of {n} samples")
    return values


def _column(obs: pd.DataFrame, key: str) -> np.ndarray:
    if key not in obs:
        raise KeyError(f"there is no column {key!r} in obs{closest(key, obs.columns)}")
    return obs[key].to_numpy()


def _remarks(labels: np.ndarray) -> dict[str, str]:
    names, size = np.unique(labels, return_counts=True)
    alone = names[size == 1]
    return {"labels": f"{few(alone)} has one sample: silhouette 0, connectivity 1, no kBET"} if len(alone) else {}
