"""What the components of a mixture stand for: merged into clusters, and as tables of cell types, graph and genes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import mudata
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers import controls, fusion, inference, models, penalties, tasks, training
from helpers.batches import Samples
from helpers.decoders import NegativeBinomialHead
from helpers.encoders import DenseEncoder
from helpers.models import Model
from helpers.models.dgd import start_at, without_encoder
from helpers.priors import BASAL, GaussianMixture, StandardNormal, parts_of
from helpers.wording import closest, few

Data = Samples | mudata.MuData
TOLERANCE = 0.01  # nats per cell to which the study searches codes of test cells


@torch.no_grad()
def merges(
    prior: GaussianMixture, z: np.ndarray | Tensor, space: np.ndarray | None = None
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Components joined two by two until one cluster is left: the steps, and the clusters [n_components] before the
    first and after each of them.

    Each sample of `z` [n_obs, n_latent] belongs to the component of highest posterior. In `space` [n_obs, d] (the
    codes themselves unless given) clusters are Gaussians of one common diagonal covariance. Each step takes the pair
    whose union has the highest integrated classification likelihood, ICL = Σ_k n_k log(n_k / n) − n/2 Σ_d log(W_d / n)
    − K d / 2 log n, W_d the sum of squares within clusters. The halves of one Gaussian are worth joining: log 2 = 0.69
    nats per sample for not saying which half, against ½ log(1 / (1 − 2/π)) = 0.51 lost by the wider variance. Clusters
    with a gap between them are not.

    Give a `space` that the mixture has not shaped, such as the PCA that codes started at (`pca_codes`): training draws
    codes to their component, so that in the codes themselves every component ends as a clump of its own. Components
    without samples follow the one that is most probable at their mean.

    Steps: `n_clusters` that it leaves, `first` and `second` (component numbers, the lowest of each cluster), `gain`
    in ICL (nats). Raises `ValueError` where `space` has other samples than `z`, or values that are not finite.
    Source: ICL of Biernacki, Celeux and Govaert 2000; merging as Baudry et al. 2010. Introduced in notebook 05.
    """
    own, x = component_of(prior, z), np.asarray(z if space is None else space, dtype=float)
    if x.ndim != 2 or len(x) != len(own) or not np.isfinite(x).all():
        raise ValueError(f"space must be finite and have a row for each of {len(own)} codes, got shape {list(x.shape)}")
    x = x[:, np.ptp(x, axis=0) > 0]
    used = np.unique(own)
    member = (own[:, None] == used).astype(float)  # [n_obs, n_used]
    size, mean = member.sum(0), (member.T @ x) / member.sum(0)[:, None]
    within = ((x - mean[member.argmax(1)]) ** 2).sum(0)
    head = used[prior.joint(prior.mean).cpu().numpy()[:, used].argmax(1)]
    head[used] = used
    steps, found = [], [head]
    while len(used) > 1:
        gain, i, j, between = best_pair(size, mean, within)
        steps.append((len(used) - 1, used[i], used[j], gain))
        mean[i] = (size[i] * mean[i] + size[j] * mean[j]) / (size[i] + size[j])
        size[i], within = size[i] + size[j], within + between
        found.append(np.where(found[-1] == used[j], used[i], found[-1]))
        size, mean, used = (np.delete(values, j, 0) for values in (size, mean, used))
    return pd.DataFrame(steps, columns=["n_clusters", "first", "second", "gain"]), found


def merged(
    prior: GaussianMixture, z: np.ndarray | Tensor, space: np.ndarray | None = None, n_clusters: int | None = None
) -> np.ndarray:
    """Clusters of components, [n_components] whole numbers from 0: `merged(...)[component]` are those of samples.

    Overlapping components are joined as in `merges`, with its parameters, for as long as that raises the ICL, or until
    `n_clusters` are left. Clusters are numbered from the largest. Raises `ValueError` for more clusters than
    components that hold samples, and as `merges`. Introduced in notebook 05.
    """
    steps, found = merges(prior, z, space)
    n_used = len(steps) + 1
    if n_clusters is not None and not 1 <= n_clusters <= n_used:
        raise ValueError(f"n_clusters is {n_clusters}; {n_used} components hold samples, so choose 1 to {n_used}")
    worth = (steps.gain.to_numpy() > 0).cumprod().sum()  # steps before the first that costs
    head = found[worth if n_clusters is None else n_used - n_clusters]
    heads, count = np.unique(head[component_of(prior, z)], return_counts=True)
    rank = np.argsort(np.argsort(-count, kind="stable"))
    return rank[np.searchsorted(heads, head)]


def best_pair(size: np.ndarray, mean: np.ndarray, within: np.ndarray) -> tuple[float, int, int, np.ndarray]:
    """The pair of clusters whose union has the highest ICL: its gain, i < j, and the sum of squares [d] that it adds.

    `size` [k], `mean` [k, d], `within` [d], the sum of squares within all clusters. Introduced in notebook 05.
    """
    n, (i, j) = size.sum(), np.triu_indices(len(size), 1)
    both = size[i] + size[j]  # [pairs]
    between = (size[i] * size[j] / both)[:, None] * (mean[i] - mean[j]) ** 2  # [pairs, d]
    unsaid = both * np.log(both) - size[i] * np.log(size[i]) - size[j] * np.log(size[j])
    floor = np.maximum(within, 1e-12 * (within + between.max(0)) + 1e-300)  # where each cluster is a point
    gain = unsaid + 0.5 * mean.shape[1] * np.log(n) - 0.5 * n * np.log1p(between / floor).sum(1)
    best = int(gain.argmax())
    return float(gain[best]), int(i[best]), int(j[best]), between[best]


@torch.no_grad()
def component_of(prior: GaussianMixture, z: np.ndarray | Tensor) -> np.ndarray:
    """The component of highest posterior of codes z [n_obs, n_latent], [n_obs]. Introduced in notebook 05."""
    codes = torch.as_tensor(z, dtype=prior.mean.dtype, device=prior.mean.device)
    return prior.responsibilities(codes).argmax(-1).cpu().numpy()


def component_table(
    model: Model, data: Data, label: str, split: str | None = "train", clusters: np.ndarray | None = None
) -> pd.DataFrame:
    """How the samples of each component fall on the classes of a column: rows components that hold samples, columns
    classes, row per cent; `attrs["n"]` their numbers of samples.

    `clusters` [n_components], from `merged`, makes the rows clusters. Rows stand in the order of their main classes, so
    that a heat map shows a diagonal. Samples without a class do not count; classes nobody has are left out. Raises
    `ValueError` for a column that is not there and for a model without components. Introduced in notebook 05.
    """
    kind = classes(data, label, split)
    prior, z = mixture_of(model, tasks.embed(model, data, split))
    own = component_of(prior, z)
    name = "component" if clusters is None else "cluster"
    own = pd.Series(own if clusters is None else np.asarray(clusters)[own], name=name)
    counts = pd.crosstab(own, pd.Series(kind, name=label))
    main = counts.to_numpy().argmax(1)
    counts = counts.iloc[np.lexsort((-counts.to_numpy().max(1), main))]
    table = 100 * counts.div(counts.sum(axis=1), axis=0)
    table.attrs["n"] = {int(k): int(n) for k, n in counts.sum(axis=1).items()}
    return table


def component_graph(prior: GaussianMixture, components: Sequence[int] | None = None) -> pd.DataFrame:
    """Distances between the means of components, a row per pair, nearest first: `first`, `second`, `distance` (latent
    units), and `percentile`, the share (%) of pairs that lie at most as far apart.

    Draw `percentile <= 5` for neighbours, `> 95` for the far ends. `components`: only those, for instance the ones that
    hold samples; the others lie where they started. Raises `ValueError` for fewer than two or unknown ones. Introduced
    in notebook 05.
    """
    chosen = np.arange(prior.n_components) if components is None else np.unique(components)
    if len(chosen) < 2 or chosen[0] < 0 or chosen[-1] >= prior.n_components:
        raise ValueError(f"a graph needs two or more of {prior.n_components} components, got {few(chosen.tolist())}")
    mean = prior.mean.detach().cpu().double().numpy()
    i, j = np.triu_indices(len(chosen), 1)
    distance = np.linalg.norm(mean[chosen[i]] - mean[chosen[j]], axis=1)
    edges = pd.DataFrame({"first": chosen[i], "second": chosen[j], "distance": distance})
    edges["percentile"] = 100 * edges.distance.rank(method="max", pct=True)
    return edges.sort_values("distance", kind="stable", ignore_index=True)


def markers(
    model: Model,
    component: int | Sequence[int],
    names: Sequence[str],
    n: int = 10,
    modality: str = "rna",
    clusters: np.ndarray | None = None,
) -> pd.DataFrame:
    """The `n` features that a component's decoded mean raises most over the others': `feature`, `log2_fold`,
    `expected` and `elsewhere`, expected counts per 10,000; the fold is of both plus one count.

    Elsewhere is the mean of all other components, weighted by their π. Several components, or a cluster's number
    together with `clusters` [n_components] from `merged`, are weighted in the same way. `names` [n_vars] of the
    modality. Raises `ValueError` for unknown components and modalities, no component left to compare with, and names
    that are not as many as features. Introduced in notebook 05.
    """
    if modality not in model.likelihoods:
        known = list(model.likelihoods)
        raise ValueError(f"the model has no modality {modality!r}{closest(modality, known)}; there are {few(known)}")
    prior, at = mixture_of(model)
    wanted = np.atleast_1d(component)
    inside = np.isin(np.arange(prior.n_components) if clusters is None else np.asarray(clusters), wanted)
    if not inside.any() or inside.all() or inside.sum() < len(wanted):
        raise ValueError(f"component {component} is unknown or leaves no other: there are {prior.n_components} in all")
    means = np.zeros((prior.n_components, model.prior.n_latent), np.float32)
    means[:, at] = prior.mean.detach().cpu().numpy()
    decoded = tasks.decode(model, means)[modality].astype(float)
    if len(names) != decoded.shape[1]:
        raise ValueError(f"{len(names)} names for {decoded.shape[1]} features of modality {modality!r}")
    weight = torch.softmax(prior.logits.detach(), 0).cpu().numpy()
    expected, elsewhere = (np.average(decoded[rows], axis=0, weights=weight[rows]) for rows in (inside, ~inside))
    found = {"feature": np.asarray(names), "log2_fold": np.log2((expected + 1) / (elsewhere + 1))}
    table = pd.DataFrame(found | {"expected": expected, "elsewhere": elsewhere})
    return table.sort_values("log2_fold", ascending=False, kind="stable", ignore_index=True).head(n)


def mixture_of(model: Model, z: np.ndarray | None = None) -> tuple[GaussianMixture, np.ndarray | slice]:
    """The mixture that clusters samples, and its part of codes z [n_obs, n_latent] (without z: where that part is).

    Of several priors (`priors.Together`) the basal one. Raises `ValueError` without one. Introduced in notebook 05.
    """
    parts = parts_of(model.prior)
    if BASAL not in parts:
        raise ValueError("the model's prior has no components: use models.dgd, models.scdgd or models.multidgd")
    at, prior = parts[BASAL]
    return prior, at if z is None else z[:, at]


def classes(data: Data, label: str, split: str | None = None) -> np.ndarray:
    """The class of every sample, or of those of a split, as text, None where there is none: [n].

    From a MuData's obs or from `Samples(covariates=[label])`. Raises `ValueError` for a column that is not there.
    Introduced in notebook 05.
    """
    samples = data if isinstance(data, Samples) else Samples(data, "cpu", covariates=[label])
    if label not in samples.covariates:
        raise ValueError(f"the classes are in column {label!r}: give Samples(mdata, covariates=[{label!r}])")
    names = np.array([*map(str, samples.categories[label]), None], dtype=object)  # code -1 is the last
    found = names[samples.covariates[label].cpu().numpy()]
    return found if split is None else found[samples.rows(split).cpu().numpy()]


def pca_codes(samples: Samples, n_latent: int = 20) -> np.ndarray:
    """Codes of all samples [n_obs, n_latent] from a PCA of the train split: log1p of counts per 10,000, modalities
    side by side, each with a total variance of one where there are several. For `models.dgd.start_at` and `merges`.
    Raises `ValueError` for more dimensions than samples or features. Introduced in notebook 05.
    """
    train, parts = samples.rows("train").cpu().numpy(), []
    most = min(len(train), sum(samples.n_vars.values()))
    if n_latent > most:
        raise ValueError(f"a PCA of {most} train samples or features has no {n_latent} dimensions: lower n_latent")
    for m, x in samples[torch.arange(len(samples))].x.items():
        counted = samples.modalities[m].library is not None
        values = (torch.log1p(1e4 * x / x.sum(1, keepdim=True).clamp(min=1)) if counted else x).cpu().numpy()
        total = np.sqrt(values[train].var(0).sum()) if len(samples.modalities) > 1 else 1.0
        parts.append(values / (total or 1.0))
    x = np.hstack(parts)
    return controls.pca(x[train], n_latent).embed(x).astype(np.float32)


# ---------------------------------------------------------------- the study


def as_published(model: Model, z: np.ndarray, rows: Tensor, seed: int) -> None:
    """Codes at zero and means anywhere in the ball: what a new `models.scdgd` is. Introduced in notebook 05."""


def from_pca(model: Model, z: np.ndarray, rows: Tensor, seed: int) -> None:
    """Codes at a PCA and components at its clusters (`models.dgd.start_at`). Introduced in notebook 05."""
    start_at(model, z, rows, seed=seed)


def codes_from_pca(model: Model, z: np.ndarray, rows: Tensor, seed: int) -> None:
    """Codes at a PCA, half the ball's radius long, and the rest as published. Introduced in notebook 05."""
    length = np.sqrt(np.square(z[rows.cpu().numpy()]).sum(1).mean())
    model.encoders[0].start_at(torch.as_tensor(0.5 * model.prior.softball.scale / length * z))


def codes_from_noise(model: Model, z: np.ndarray, rows: Tensor, seed: int) -> None:
    """Codes from a Gaussian, half the ball's radius long, and the rest as published. Introduced in notebook 05."""
    codes_from_pca(model, np.random.default_rng(seed).normal(size=z.shape), rows, seed)


Start = Callable[[Model, np.ndarray, Tensor, int], None]
STARTS: Mapping[str, Start] = {"scDGD, published start": as_published, "scDGD": from_pca}


@dataclass(frozen=True)
class Study:
    """Samples, their classes and PCA codes, and how every model of the study is trained. Introduced in notebook 05."""

    samples: Samples
    truth: np.ndarray  # [n_train] class of each train sample, None where unknown
    z: np.ndarray  # [n_obs, n_latent] PCA codes
    hidden: Sequence[int]
    options: Mapping[str, float]  # of training.fit

    def fitted(self, make: Callable[[], Model], seed: int, start: Start = as_published) -> Model:
        """A model made, started and trained with one seed."""
        torch.manual_seed(seed)
        model = make()
        start(model, self.z, self.samples.rows("train"), seed)
        training.fit(model, self.samples, seed=seed, progress=False, **self.options)
        return model

    def row(self, method: str, k: int | None, seed: int, own: np.ndarray, fit: dict | None = None) -> dict:
        """One row of the table: clusters `own` [n_train] against the classes of those that have one."""
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        known = np.array([name is not None for name in self.truth])
        pair = self.truth[known].astype(str), own[known]
        scores = {"ari": adjusted_rand_score(*pair), "nmi": normalized_mutual_info_score(*pair)}
        return {"method": method, "k": k, "seed": seed} | scores | {"n_clusters": len(np.unique(own))} | (fit or {})


def clusterings(
    data: Data,
    label: str,
    ks: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2, 3),
    epochs: int = 100,
    n_latent: int = 20,
    hidden: Sequence[int] = (100, 100, 100),
    batch_size: int = 128,
    lr: float = 2e-3,
    starts: Mapping[str, Start] = STARTS,
    peers: bool = True,
) -> pd.DataFrame:
    """Ways to cluster counts, compared with a column of classes on the train split: a row per method × k × seed.

    For each of `starts` (name -> function of model, PCA codes, train rows and seed) and each number of components in
    `ks` a scDGD: its components, the same merged (`merged`, in the space of the PCA), and communities of its codes
    (`communities`). `peers`: also communities (which have no k) and k-means of the PCA, k-means of a VAE with the same
    decoder and likelihood, and random labels.

    Columns: method, k, seed, `ari`, `nmi`, `n_clusters` (that have samples), and of the test split, decoded at one
    code per cell (found by `inference.infer`; the VAE's mean): `nll` (nats per cell, summed over features), `rmse`
    (root of the mean over all counts) and `rmse_per_cell` (mean over cells of each one's root); NaN where nothing is
    decoded. Raises `ValueError` where a modality holds other than counts, and as `classes` and `pca_codes`. Introduced
    in notebook 05.
    """
    samples = data if isinstance(data, Samples) else Samples(data, "cpu", covariates=[label])
    truth, z = classes(samples, label, "train"), pca_codes(samples, n_latent)
    options = {"epochs": epochs, "batch_size": min(batch_size, len(truth)), "lr": lr, "weight_decay": 1e-4}
    study = Study(samples, truth, z, tuple(hidden), options)
    rows = [row for seed in seeds for row in (peer_rows(study, ks, seed) if peers else ())]
    runs = product(starts.items(), ks, seeds)
    rows += [row for (name, start), k, seed in runs for row in dgd_rows(study, name, start, k, seed)]
    return pd.DataFrame(rows).astype({"k": "Int64"})


def dgd_rows(study: Study, name: str, start: Start, k: int, seed: int) -> Iterator[dict]:
    """Rows of one scDGD of k components: as it is, merged, and by communities of its codes."""
    samples, rows = study.samples, study.samples.rows("train").cpu().numpy()
    sizes = (samples.n_vars, len(samples), study.z.shape[1], k, study.hidden)
    model = study.fitted(lambda: models.scdgd(*sizes, n_train=len(rows)), seed, start)
    z = tasks.embed(model, samples, "train")
    own, new = component_of(model.prior, z), inference.infer(model, samples, "test", tolerance=TOLERANCE)
    fit = reconstruction(new, samples)
    yield study.row(name, k, seed, own, fit)
    yield study.row(f"{name}, merged", k, seed, merged(model.prior, z, study.z[rows])[own], fit)
    yield study.row(f"{name}, Leiden", k, seed, communities(z, seed), fit)


def peer_rows(study: Study, ks: Sequence[int], seed: int) -> Iterator[dict]:
    """Rows of what a scDGD is compared with, for one seed."""
    from sklearn.cluster import KMeans

    z = study.z[study.samples.rows("train").cpu().numpy()]
    yield study.row("PCA, Leiden", None, seed, communities(z, seed))
    model = study.fitted(lambda: vae(study.samples.n_vars, z.shape[1], study.hidden), seed)
    mean, fit = tasks.embed(model, study.samples, "train"), reconstruction(model, study.samples)
    for k in ks:
        yield study.row("PCA, k-means", k, seed, KMeans(k, n_init=10, random_state=seed).fit_predict(z))
        yield study.row("VAE, k-means", k, seed, KMeans(k, n_init=10, random_state=seed).fit_predict(mean), fit)
        yield study.row("random labels", k, seed, np.random.default_rng(seed).integers(k, size=len(z)))


def vae(n_vars: Mapping[str, int], n_latent: int, hidden: Sequence[int]) -> Model:
    """A VAE with the decoder and head of `models.scdgd` and a mirrored encoder. Introduced in notebook 05."""
    encoder = DenseEncoder(n_vars, n_latent, hidden[::-1], transform=dict.fromkeys(n_vars, torch.log1p))
    decoders = without_encoder(n_vars, n_latent, hidden, dict.fromkeys(n_vars, NegativeBinomialHead), None, 0)
    return Model([encoder], fusion.concatenate, StandardNormal(n_latent), decoders, {"kl": penalties.kl})


def communities(z: np.ndarray, seed: int = 0, n_neighbours: int = 20, resolution: float = 0.8) -> np.ndarray:
    """Leiden communities of codes z [n_obs, d], [n_obs] whole numbers from 0, the largest first.

    On the graph of shared nearest neighbours (Jaccard index of 1/15 or more), with Seurat's defaults, iterated until
    nothing changes. Source: Traag, Waltman and van Eck 2019; Stuart et al. 2019. Introduced in notebook 05.
    """
    import igraph
    from sklearn.neighbors import kneighbors_graph

    k = min(n_neighbours, len(z) - 1)
    near = kneighbors_graph(z, k, include_self=True)
    shared = (near @ near.T).tocoo()
    jaccard = shared.data / (2 * k - shared.data)
    kept = (jaccard >= 1 / 15) & (shared.row < shared.col)
    graph = igraph.Graph(len(z), np.stack([shared.row, shared.col], 1)[kept])
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden("modularity", jaccard[kept], resolution, n_iterations=-1).membership
    finally:
        igraph.set_random_number_generator(random)
    _, own, size = np.unique(found, return_inverse=True, return_counts=True)
    return np.argsort(np.argsort(-size, kind="stable"))[own]


@torch.no_grad()
def reconstruction(model: Model, samples: Samples, split: str = "test") -> dict[str, float]:
    """`nll`, `rmse` and `rmse_per_cell` of a split decoded at the codes' means (see `clusterings`), over all measured
    counts. NaN where the split is empty. Introduced in notebook 05.
    """
    nll, squares, counts = [], [], []
    for batch in tasks.passes(model, samples, split, 1024):
        found = model.decode(tasks.z_of(model, batch), batch.library)
        seen = {m: batch.mask[m].float() for m in found}
        nll.append(sum(-p.log_prob(batch.x[m]).sum(-1) * seen[m] for m, p in found.items()))
        squares.append(sum((p.mean - batch.x[m]).square().sum(-1) * seen[m] for m, p in found.items()))
        counts.append(sum(seen[m] * batch.x[m].shape[1] for m in found))
    n, s, c = (torch.cat(parts).double() for parts in (nll, squares, counts))
    found = {"nll": n.mean(), "rmse": (s.sum() / c.sum()).sqrt(), "rmse_per_cell": (s / c).sqrt().mean()}
    return {name: value.item() for name, value in found.items()}
