"""The study of notebook 07: MIMA and its variants on data of several modalities and batches, complete or a mosaic."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from mudata import MuData

from helpers import integration, latents, models, outcomes, prepare, spatial, training, views
from helpers.batches import Samples
from helpers.checks import assemble, part, parts_of
from helpers.metrics import integration as scoring
from helpers.models import Model
from helpers.models.mima import mean_squared
from helpers.wording import closest, few

OURS, PUBLISHED, UNIMODAL = "MIMA", "MIMA, as published", "MIMA, only"
LONG = 100  # epochs above which the learning rate comes to rest; in shorter trainings adversaries would not keep up
CORRECTED = "corrected"  # principal components of corrected data, beside the latents of a model


# ---------------------------------------------------------------- data


def chosen(
    mdata: MuData, batch_key: str, n_batches: int = 0, n_samples: int = 0, n_features: int = 0, seed: int = 0
) -> MuData:
    """The first `n_batches` batches, of their samples `n_samples` at random, and the `n_features` of each modality that
    vary most on the scale of `scaled` (0: all). Samples may lack modalities.

    Features are chosen on all samples, once and for all methods alike. Raises ValueError for fewer than two batches,
    and for coordinates, where there are any, that cannot be drawn. Introduced in notebook 07.
    """
    if "spatial" in mdata.obsm:
        spatial.coordinates(mdata)
    if not batch_key:
        columns = [name for name in mdata.obs if mdata.obs[name].nunique() > 1]
        raise ValueError(f"no column says what the batches are: name one with batch_key=, such as {few(columns)}")
    batch = views.batch_of(mdata, batch_key)
    names = list(dict.fromkeys(batch))[: n_batches or None]
    if len(names) < 2:
        raise ValueError(f"'{batch_key}' has one batch, {few(names)}: integration needs two or more")
    rows = np.flatnonzero(np.isin(batch, names))
    if 0 < n_samples < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, n_samples, replace=False))
    data = mdata if len(rows) == mdata.n_obs else mdata[rows].copy()
    if not n_features or all(adata.n_vars <= n_features for adata in data.mod.values()):
        return data
    found = {}
    for m, adata in scaled(data).mod.items():
        at = np.sort(np.argsort(-np.asarray(adata.X).var(0), kind="stable")[:n_features])
        found[m] = data.mod[m][:, at].copy()
    return assemble(replace(parts_of(data), modalities=found))


def logged(mdata: MuData, names: Sequence[str]) -> MuData:
    """A copy in which the values x of the modalities `names`, such as intensities, are log(1 + x).

    Raises ValueError for an unknown modality, counts (which methods put on a logarithmic scale themselves), and values
    below 0. Introduced in notebook 07.
    """
    parts = parts_of(mdata)
    found = dict(parts.modalities)
    for name in names:
        if name not in found:
            raise ValueError(f"log: there is no modality '{name}'{closest(name, found)}; there are {few(found)}")
        if views.kind_of(mdata, name) == "counts":
            raise ValueError(f"log: '{name}' holds counts, whose logarithm is taken anyway; leave it out")
        adata = found[name]
        x = np.asarray(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X)
        if (x < 0).any():
            raise ValueError(f"log: '{name}' has values below 0; leave it out")
        found[name] = part(np.log1p(x), adata.obs_names, adata.var.copy(), **adata.uns)
    return assemble(replace(parts, modalities=found))


def scaled(mdata: MuData) -> MuData:
    """Counts as methods without a likelihood of counts see them: log(1 + counts per 10,000), proteins the centred log
    ratio (`views.inputs`); other modalities as they are, but dense. Introduced in notebook 07.
    """
    parts = parts_of(mdata)
    found = {m: dense(adata) for m, adata in parts.modalities.items()}
    counted = [m for m in mdata.mod if views.kind_of(mdata, m) == "counts"]
    for m, x in views.inputs(mdata, counted, standardise=False).items():
        rows = mdata.obs_names.get_indexer(found[m].obs_names)
        found[m] = part(x[rows], found[m].obs_names, found[m].var.copy())
    return assemble(replace(parts, modalities=found, kinds=parts.kinds | dict.fromkeys(counted, "continuous")))


def dense(adata: AnnData) -> AnnData:
    """The same values as an array. Introduced in notebook 07."""
    if not sp.issparse(adata.X):
        return adata
    return part(adata.X.toarray(), adata.obs_names, adata.var.copy(), **adata.uns)


def prepared(mdata: MuData, batch_key: str, seed: int = 0) -> MuData:
    """`scaled` values, split 80 : 10 : 10 within batches and standardised on the train split; a split that is there
    stays. Introduced in notebook 07.
    """
    data = scaled(mdata)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(constant|cannot appear).*")
        if "split" not in data.obs:
            data = prepare.split(data, (0.8, 0.1, 0.1), stratify=batch_key, seed=seed)
        return prepare.fit_transform(data, select="variance", n_features=None, scale="standard")


def overview(mdata: MuData, label_key: str, batch_key: str, n_latent: int = 20, k: int = 15) -> pd.DataFrame:
    """Per modality: features, samples and batches that have it, and how many of a sample's `k` nearest, in a PCA of it,
    have the sample's class and batch, beside what chance gives. Introduced in notebook 07.
    """
    from sklearn.neighbors import NearestNeighbors

    table = {}
    for m, x in views.inputs(mdata).items():
        rows = np.isfinite(x).all(1) & mdata.obs[label_key].notna().to_numpy()
        z = components(x[rows], n_latent)
        near = NearestNeighbors(n_neighbors=min(k, rows.sum() - 1)).fit(z).kneighbors(return_distance=False)
        table[m] = {"features": mdata[m].n_vars, "samples": mdata[m].n_obs}
        for what, key in (("class", label_key), ("batch", batch_key)):
            names = mdata.obs.loc[rows, key].astype(str).to_numpy()
            share = pd.Series(names).value_counts(normalize=True)
            table[m] |= {f"same {what}": (names[near] == names[:, None]).mean(), f"{what} by chance": (share**2).sum()}
    return pd.DataFrame(table).T.astype({"features": int, "samples": int})


def side_by_side(x: Mapping[str, np.ndarray]) -> np.ndarray:
    """Modalities [n_obs, n_vars] of equal weight side by side, each over the root of its number of features.

    Introduced in notebook 07.
    """
    return np.hstack([np.asarray(values, np.float32) / np.sqrt(values.shape[1]) for values in x.values()])


def components(x: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """The first `n` principal components [n_obs, n] of the rows of x [n_obs, n_vars] without NaN, NaN in the others.

    Introduced in notebook 07.
    """
    from sklearn.decomposition import PCA

    whole = np.isfinite(x).all(1)
    n = min(n, int(whole.sum()), x.shape[1])
    return views.placed(PCA(n, random_state=seed).fit_transform(x[whole]), np.flatnonzero(whole), len(x))


def plane(z: np.ndarray, n: int = 2, with_umap: bool = True, seed: int = 0) -> np.ndarray:
    """A UMAP [n_obs, n] of the rows of z [n_obs, n_latent] without NaN, or their principal components.

    Introduced in notebook 07.
    """
    whole = np.isfinite(z).all(1)
    if not with_umap or whole.sum() < n + 2:
        return components(z, n, seed)
    found = outcomes.umap(z[whole], np.ones(whole.sum(), bool), n, seed)
    return views.placed(found, np.flatnonzero(whole), len(z))


# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class Variant:
    """A model of notebook 07, not yet built, and what its loss weighs. Introduced in notebook 07."""

    build: Callable[[Samples], Model]
    translation: float = 1.0  # factor on the paper's weight
    separation: Mapping[str, float] = field(default_factory=dict)  # weights of terms that the paper has not

    def weights(self, n_vars: Mapping[str, int], beta: float) -> dict[str, float]:
        """Weights of the loss terms: squared errors as the paper's, translation times a factor, and `separation`."""
        given = mean_squared(n_vars, beta)
        told = {name: self.translation * w for name, w in given.items() if name.startswith("translation/")}
        return given | told | dict(self.separation)


@dataclass(frozen=True)
class Training:
    """How the models of notebook 07 are trained. Introduced in notebook 07."""

    variants: Mapping[str, Variant]
    beta: float = 0.01  # weight of the KL terms
    epochs: int = 60
    batch_size: int = 128
    lr: float = 2e-3

    def fit(self, data: MuData, batch_key: str, variant: str, seed: int) -> tuple[Model, pd.DataFrame]:
        """Build and train a variant; the model and its history."""
        samples, chosen = Samples(data, covariates=[batch_key]), self.variants[variant]
        torch.manual_seed(seed)
        model = chosen.build(samples)
        weights = chosen.weights(samples.n_vars, self.beta)
        weights = {name: w for name, w in weights.items() if name.split("/")[0] in ("nll", *model.penalties)}
        size = min(self.batch_size, len(samples.rows("train")) // 2)
        decay = "cosine" if self.epochs > LONG else "none"
        settings = {"epochs": self.epochs, "batch_size": size, "lr": self.lr, "decay": decay, "seed": seed}
        return model, training.fit(model, samples, weights=weights, device=samples.device, progress=False, **settings)


def plan(
    batch_key: str,
    sizes: Mapping[str, Any],
    separation: Mapping[str, float],
    translation: float = 1.0,
    prior_expert: bool = True,
    **settings: float,
) -> Training:
    """MIMA with the terms of `separation` (adversary, mixing, orthogonal: their weights, 0 for none) and `translation`
    weighed so many times, with or without the `prior_expert`; as published; and of one modality at a time. `sizes` of
    all (n_latent, hidden, narrow), `settings` of `Training`. Introduced in notebook 07.
    """
    used = {name: float(weight) for name, weight in separation.items() if weight}
    apart = {"table": True, "told": True, "latent_dropout": 0.1}
    hidden = {"adversary": used["adversary"]} if "adversary" in used else {}

    def built(make: Callable[..., Model], **switches: Any) -> Callable[[Samples], Model]:
        return lambda samples: make(samples.n_vars, {batch_key: samples.n_classes[batch_key]}, **sizes, **switches)

    alone = built(models.mima_unimodal, **apart, adversary=bool(hidden))
    ours = built(models.mima, **apart, **dict.fromkeys(used, True), prior_expert=prior_expert)
    variants = {
        OURS: Variant(ours, translation, used),
        PUBLISHED: Variant(built(models.mima)),
        UNIMODAL: Variant(alone, separation=hidden),
    }
    return Training(variants, **settings)


def outcome(data: MuData, how: Training, batch_key: str, setting: Mapping) -> dict[str, np.ndarray]:
    """What is kept of one training (`sweeps.sweep`), `setting`: variant and seed. Its latents, and the principal
    components of the corrected data. Introduced in notebook 07.
    """
    model, _ = how.fit(data, batch_key, setting["variant"], setting["seed"])
    found = latents.of(model, data)
    corrected = {m: latents.decoded(model, data, m, corrected=True) for m in data.mod}
    return found | {CORRECTED: components(side_by_side(corrected), found["shared"].shape[1])}


# ---------------------------------------------------------------- embeddings and their scores


def latents_of(made: Sequence[Mapping], variant: str = OURS) -> list[dict[str, np.ndarray]]:
    """The latents kept of one variant, a dict per seed, in the order of the sweep. Introduced in notebook 07."""
    same = [each for each in made if each["variant"] == variant]
    return [{name: z for name, z in each.items() if name not in ("variant", "seed")} for each in same]


def rivals(made: Sequence[Mapping], runs: integration.Runs) -> dict[str, list[np.ndarray]]:
    """Method -> its embeddings [n_obs, n_latent], one per seed: MIMA's joint latent and its corrected data, as
    published, of one modality, and the methods of `runs`. Introduced in notebook 07.
    """
    found = {OURS: [z["shared"] for z in latents_of(made)]}
    found[f"{OURS}, corrected data"] = [z[CORRECTED] for z in latents_of(made)]
    found[PUBLISHED] = [z["shared"] for z in latents_of(made, PUBLISHED)]
    alone = latents_of(made, UNIMODAL)
    for name in [name for name in (alone[0] if alone else ()) if name.startswith("own/")]:
        found[f"{UNIMODAL} {name.removeprefix('own/')}"] = [z[name] for z in alone]
    return found | {name: [z] for name, z in runs.embeddings.items()}


def benchmark(
    found: Mapping[str, Sequence[np.ndarray]],
    raw: MuData,
    label_key: str,
    batch_key: str,
    n_latent: int = 20,
    ceiling: Mapping[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Scores of several methods (`rivals`) and the controls, a row per method and seed (`metrics.integration.table`).
    `ceiling`: further embeddings that count as controls, such as that of data without batch effects.

    All are scored on the same samples: those that have a label and all modalities, and that every method places.
    Raises ValueError where there are none. Introduced in notebook 07.
    """
    x = views.inputs(raw)
    rows = raw.obs[label_key].notna().to_numpy() & np.isfinite(side_by_side(x)).all(1)
    rows &= np.all([np.isfinite(z).all(1) for seeds in found.values() for z in seeds], axis=0)
    if not rows.any():
        raise ValueError("no sample has a label and all modalities and is placed by every method: name fewer methods")
    x = {m: values[rows] for m, values in x.items()}
    obs = raw.obs[rows]
    controls = scoring.controls(x, obs[label_key], n_latent) | {n: z[rows] for n, z in (ceiling or {}).items()}
    return _scored(found, rows, obs, label_key, batch_key, controls, side_by_side(x))


def benchmark_mosaic(
    found: Mapping[str, Sequence[np.ndarray]], raw: MuData, label_key: str, batch_key: str, n_latent: int = 20
) -> pd.DataFrame:
    """The same on all labelled samples, whatever was measured of them, for the methods that place every one.

    There is no PCA to compare with and no `pcr_comparison`: no feature is known of all. Introduced in notebook 07.
    """
    whole = {name: seeds for name, seeds in found.items() if all(np.isfinite(z).all() for z in seeds)}
    rows = raw.obs[label_key].notna().to_numpy()
    obs = raw.obs[rows]
    controls = scoring.controls({}, obs[label_key], n_latent)
    return _scored(whole, rows, obs, label_key, batch_key, controls, None)


def _scored(found, rows, obs, label_key, batch_key, controls, before) -> pd.DataFrame:
    each = {f"{name}\t{k}": z[rows] for name, seeds in found.items() for k, z in enumerate(seeds)}
    table = scoring.table(each, obs, label_key, batch_key, controls=controls, before=before)
    parts = [name.split("\t") for name in table.index]
    seeds = [int(part[1]) if len(part) > 1 else 0 for part in parts]
    return table.assign(method=[part[0] for part in parts], seed=seeds).reset_index(drop=True)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of the scores that are averaged, with the number of clusters beside the NMI: what a heat map of
    `benchmark` shows, the best total first, controls last. Introduced in notebook 07.
    """
    columns = ["leiden_nmi", "leiden_clusters", *(c for c in (*scoring.BIO, *scoring.BATCH) if c != "leiden_nmi")]
    columns = [c for c in columns if c in table] + ["bio", "batch", "total", "total4", "mean"]
    mean = table.groupby(["control", "method"])[columns].mean().astype(float)
    mean = mean.sort_values("total", ascending=False).sort_index(level="control", kind="stable", sort_remaining=False)
    return mean.droplevel("control").rename_axis(None)


def control_names(table: pd.DataFrame) -> list[str]:
    """The controls in a table of `benchmark`. Introduced in notebook 07."""
    return list(dict.fromkeys(table.loc[table["control"], "method"]))
