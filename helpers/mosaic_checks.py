"""Checks on MIMA's map in notebook 07: what its latents keep, what breaks it, and verdicts on the claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from helpers import claims, fidelity, integration, knowledge, latents, prepare, regions, tissue, views
from helpers.checks import assemble, parts_of
from helpers.models import Model
from helpers.mosaics import OURS, PUBLISHED, Training, components, logged, prepared, scaled, side_by_side

PCA, ITSELF, MEAN = "PCA concatenated", "batch itself", "mean of experts"
OWN_FACTORS, CENTROIDS = "own factors", ("same annotation", "same annotation and sample")
SLACK = 0.02  # of an AUC
NEAR_CHANCE = 0.1  # of the way from chance to perfect, below which a latent counts as not knowing


# ---------------------------------------------------------------- what is kept, what is lost


def kept(latent: Mapping[str, np.ndarray], data: MuData) -> pd.DataFrame:
    """How much of each modality a ridge regression tells from each latent [n_obs, n_latent]: R² on test samples.

    `what`: "features", all prepared features of the modality; and where they are planted its "own factors", which no
    other modality shows. Introduced in notebook 07.
    """
    split, rows = data.obs["split"].to_numpy(str), []
    for m, adata in data.mod.items():
        x = views.placed(np.asarray(adata.X), data.obs_names.get_indexer(adata.obs_names), data.n_obs)
        own = {OWN_FACTORS: data.obsm[f"truth_own_{m}"]} if f"truth_own_{m}" in data.obsm else {}
        for (what, y), (name, z) in ((t, n) for t in ({"features": x} | own).items() for n in latent.items()):
            rows.append({"latent": name, "modality": m, "what": what, "R2": ridge_r2(z, np.asarray(y, float), split)})
    return pd.DataFrame(rows)


def ridge_r2(z: np.ndarray, y: np.ndarray, split: np.ndarray) -> float:
    """R² of y [n_obs, n_vars] on test samples, pooled over its columns, from a ridge regression on z [n_obs, n_latent].

    Rows with NaN are left out; 0 at the least, and NaN without any test sample. Introduced in notebook 07.
    """
    from sklearn.linear_model import RidgeCV

    known = np.isfinite(z).all(1) & np.isfinite(y).all(1)
    train, test = known & (split == "train"), known & (split == "test")
    if train.sum() < 3 or not test.any():
        return float("nan")
    told = RidgeCV(np.logspace(-2, 4, 7)).fit(z[train], y[train]).predict(z[test]).reshape(-1, y.shape[1])
    total = ((y[test] - y[train].mean(0)) ** 2).sum()
    return float(max(0.0, 1 - ((y[test] - told) ** 2).sum() / total)) if total > 0 else float("nan")


def disturbed(model: Model, data: MuData, label_key: str, batch_key: str, seed: int = 0) -> pd.DataFrame:
    """What becomes of the joint latent when one modality of the test samples is another sample's of the same batch.

    A row per broken modality ("none" first) and way of joining: the product of experts, the plain mean of the same
    experts' means, and the product of the others. `accuracy`: share of test samples whose 15 nearest train samples, all
    intact, vote for the right class. Of samples with all modalities; no rows where there are none. Introduced in
    notebook 07.
    """
    whole = np.all([views.measured(data, m) for m in data.mod], axis=0)
    if not whole.any():
        return pd.DataFrame(columns=["broken", "way", "accuracy"])
    data = data if whole.all() else data[whole].copy()
    intact, rows = latents.of(model, data), []
    for broken in ("none", *data.mod):
        found = latents.of(model, data if broken == "none" else shuffled(data, broken, batch_key, seed))
        ways = {"product": ("shared", intact, found), MEAN: ("mean", intact, found)}
        if broken != "none" and len(data.mod) > 1:
            less = latents.of(model, without(data, broken))
            ways["product without it"] = ("shared", less, less)
        for way, (name, near, asked) in ways.items():
            z = [_mean_of_experts(each) if name == "mean" else each["shared"] for each in (near, asked)]
            rows.append({"broken": broken, "way": way, "accuracy": voted(*z, data.obs, label_key)})
    return pd.DataFrame(rows)


def _mean_of_experts(found: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.mean([z for name, z in found.items() if name.startswith("expert/")], axis=0)


def shuffled(data: MuData, modality: str, batch_key: str, seed: int = 0) -> MuData:
    """A copy in which test samples have the values of another test sample of their batch in one modality.

    Introduced in notebook 07.
    """
    rng, found = np.random.default_rng(seed), data.copy()
    adata = found.mod[modality]
    obs = data.obs.loc[adata.obs_names]
    order = np.arange(adata.n_obs)
    for rows in obs[obs["split"] == "test"].groupby(batch_key, observed=True).indices.values():
        at = np.flatnonzero((obs["split"] == "test").to_numpy())[rows]
        order[at] = rng.permutation(at)
    adata.X = adata.X[order]
    return found


def without(data: MuData, modality: str) -> MuData:
    """The data without one modality. Introduced in notebook 07."""
    parts = parts_of(data)
    return assemble(replace(parts, modalities={m: a for m, a in parts.modalities.items() if m != modality}))


def voted(z: np.ndarray, asked: np.ndarray, obs: pd.DataFrame, label_key: str, k: int = 15) -> float:
    """Share of test samples, rows of `asked` [n_obs, n_latent], for whose class the nearest train samples, rows of z
    [n_obs, n_latent], vote. Introduced in notebook 07.
    """
    from sklearn.neighbors import KNeighborsClassifier

    known = obs[label_key].notna().to_numpy() & np.isfinite(z).all(1) & np.isfinite(asked).all(1)
    train, test = (known & (obs["split"] == part).to_numpy() for part in ("train", "test"))
    y = obs[label_key].astype(str).to_numpy()
    near = KNeighborsClassifier(min(k, int(train.sum()))).fit(z[train], y[train])
    return float(near.score(asked[test], y[test]))


def rare_classes(mdata: MuData, label_key: str, n_least: int = 8) -> list[str]:
    """The planted rare classes, or else the rarest one with `n_least` samples. Introduced in notebook 07."""
    size = mdata.obs[label_key].astype(str).where(mdata.obs[label_key].notna()).value_counts()
    if "rare_regions" in mdata.uns.get("truth", {}):
        return [name for name in tissue.rare(mdata) if size.get(name, 0) >= n_least]
    return list(size[size >= n_least].index[-1:])


def rarities(found: Mapping[str, np.ndarray], mdata: MuData, label_key: str, batch_key: str) -> pd.DataFrame:
    """`knowledge.rare` of every class of `rare_classes` in each embedding [n_obs, n_latent]. Introduced in notebook
    07.
    """
    classes = rare_classes(mdata, label_key)
    if not classes:
        return pd.DataFrame(columns=["embedding", "class", "where", "auc", "purity"])
    return pd.concat([knowledge.rare(found, mdata.obs, label_key, name, batch_key) for name in classes])


def ceiling(raw: MuData, log: Sequence[str], n_latent: int = 20) -> dict[str, np.ndarray]:
    """Principal components of the data without batch effects and noise, where the truth is known: what a perfect
    correction could reach. Introduced in notebook 07.
    """
    if any(f"truth_clean_{m}" not in raw.obsm for m in raw.mod):
        return {}
    clean = logged(tissue.clean(raw), log)
    return {"clean data": components(side_by_side(views.inputs(clean)), n_latent)}


def whole_batch(mdata: MuData, batch_key: str) -> str:
    """The first batch whose samples have all modalities, or else the first. Introduced in notebook 07."""
    whole = np.all([views.measured(mdata, m) for m in mdata.mod], axis=0)
    each = pd.Series(whole).groupby(views.batch_of(mdata, batch_key), sort=False).all()
    return str(each.index[each].append(each.index)[0])


def null_check(
    raw: MuData, log: Sequence[str], how: Training, methods: Sequence[str], n_latent: int, seed: int = 0
) -> pd.DataFrame:
    """A batch that is none: one section again, under another label, among the data for MIMA and the other methods.

    A row per method with the numbers of `knowledge.null_batch`. Where the truth is not known the second is an exact
    copy. Introduced in notebook 07.
    """
    batch_key = raw.uns["dataset"]["batch_key"]
    of = whole_batch(raw, batch_key)
    known = all(f"truth_expected_{m}" in raw.obsm for m in raw.mod)
    planted = logged(tissue.null_batch(raw, of, exact=not known, seed=seed), log)
    data = prepared(planted, batch_key, seed=seed)
    is_copy, original = knowledge.twins(planted.obs)
    found = {}
    for variant in (OURS, PUBLISHED):
        found[variant] = latents.of(how.fit(data, batch_key, variant, seed)[0], data)["shared"]
    found |= integration.run(methods, planted, batch_key, n_latent, seed, progress=False).embeddings
    found[PCA] = components(side_by_side(views.inputs(planted)), n_latent)
    whole = {name: z for name, z in found.items() if np.isfinite(z[is_copy]).all() and np.isfinite(z[original]).all()}
    return pd.DataFrame([{"method": n} | knowledge.null_batch(z, is_copy, original) for n, z in whole.items()])


# ---------------------------------------------------------------- held-out predictions


def held_out(
    raw: MuData, how: Training, batch_key: str, n_folds: int = 4, seed: int = 0
) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """Every modality told from each one and from "all", for spots that the model had not seen (`fidelity.four_fold`).

    Returns (source, target) -> [n_obs, n_vars], the folds [n_obs], and what was measured, in the same units: those of
    `mosaics.scaled`. Introduced in notebook 07.
    """

    def train_and_predict(part: MuData) -> dict[tuple[str, str], np.ndarray]:
        data = prepared(part, batch_key)
        model, _ = how.fit(data, batch_key, OURS, seed)
        pairs = [(s, t) for t in data.mod for s in (*data.mod, "all")]
        return {(s, t): _unscaled(model, data, s, scaled_raw[t], values[t], t) for s, t in pairs}

    scaled_raw = scaled(raw)
    values = {m: aligned(np.asarray(a.X), a, raw) for m, a in scaled_raw.mod.items()}
    found, folds = fidelity.four_fold(raw, train_and_predict, batch_key, n_folds, seed=seed)
    return found, folds, values


def aligned(x: np.ndarray, adata: AnnData, mdata: MuData) -> np.ndarray:
    """Rows x of a modality in the order of all samples [n_obs, n_vars], NaN where it lacks one. Introduced in notebook
    07.
    """
    return views.placed(x, mdata.obs_names.get_indexer(adata.obs_names), mdata.n_obs)


def _unscaled(model: Model, data: MuData, source: str, target: AnnData, values: np.ndarray, name: str) -> np.ndarray:
    """What the model tells of the target, in the units of `values` [n_obs, n_vars]; features without variance among
    the train spots, which the model does not have, at their one value.
    """
    x = prepare.inverse(latents.decoded(model, data, name, None if source == "all" else source), data[name])
    train = (data.obs["split"] == "train").to_numpy() & np.isfinite(values).all(1)
    full = np.tile(values[train].mean(0), (len(x), 1)).astype(np.float32)
    full[:, target.var_names.get_indexer(data[name].var_names)] = x
    return full


def typical_maps(
    predicted: Mapping[tuple[str, str], np.ndarray],
    measured: Mapping[str, np.ndarray],
    target: str,
    rows: np.ndarray,
    rank: float,
) -> tuple[int, dict[str, np.ndarray]]:
    """One feature of the target, measured and told from each modality and from all, in some `rows` of the samples.

    `rank` says which feature: 1 the one that is told best from the other modalities (mean r² in these rows), 0.5 the
    median one. Returns its column, and name -> values. Introduced in notebook 07.
    """
    y, sources = measured[target], [s for s, t in predicted if t == target and s != target]
    others = [s for s in sources if s != "all"] or sources
    r2 = np.mean([fidelity.per_feature_r2(y[rows], predicted[s, target][rows]) for s in others], axis=0)
    order = np.argsort(np.nan_to_num(r2))
    at = int(order[round(rank * (len(order) - 1))])
    return at, {"measured": y[rows, at]} | {f"from {s}": predicted[s, target][rows, at] for s in sources}


def annotated(
    found: Mapping[str, np.ndarray], mdata: MuData, label_key: str, batch_key: str, n_trees: int = 50, seed: int = 0
) -> regions.Annotations:
    """`regions.predict` by one forest for all classes, for the samples that have a label and a row in every embedding.

    Introduced in notebook 07.
    """
    rows = np.all([np.isfinite(z).all(1) for z in found.values()], axis=0) & mdata.obs[label_key].notna().to_numpy()
    given = {name: z[rows] for name, z in found.items()}
    forest = regions.one_forest(n_trees)
    return regions.predict(given, mdata.obs[rows], label_key, batch_key, learner=forest, seed=seed)


# ---------------------------------------------------------------- verdicts


def verdict_on_mixing(table: pd.DataFrame) -> dict[str, str]:
    """M1: joint latent and corrected data mix batches and keep annotation apart, against the best PCA.

    Introduced in notebook 07.
    """
    raw = table[table["method"].str.startswith("PCA")].sort_values("total").iloc[-1:]
    ours = table[table["method"].isin([OURS, f"{OURS}, corrected data"])]
    if raw.empty or ours.empty:
        return claims.untested("M1", "no embedding without correction to compare with in this run")
    name, bio, batch = raw["method"].iloc[0], float(raw["bio"].iloc[0]), float(raw["batch"].iloc[0])
    told = "; ".join(f"{m} {r['bio']:.2f} and {r['batch']:.2f}" for m, r in _means(ours, ["bio", "batch"]).iterrows())
    both = (ours["batch"] > batch) & (ours["bio"] >= bio)
    return claims.share(
        "M1", both.to_list(), f"biology and batch better than {name} ({bio:.2f} and {batch:.2f}): {told}"
    )


def verdict_on_prediction(found: pd.DataFrame, modalities: Sequence[str]) -> dict[str, str]:
    """M2: the joint latent tells the annotation better than each modality, with the least spread over folds.

    `found`: `regions.summary`, whose embeddings are named as modalities and "MIMA". Introduced in notebook 07.
    """
    cases, told = [], []
    for scheme, rows in found.groupby("scheme", sort=False):
        f1, sd = (rows.set_index("embedding")[column] for column in ("f1", "f1 sd"))
        alone = [m for m in modalities if m in f1.index]
        best = f1[alone].idxmax()
        cases += [*(f1[OURS] > f1[alone]), *(sd[OURS] <= sd[alone])]
        told.append(f"{scheme} {f1[OURS]:.2f} ± {sd[OURS]:.2f}, {best} {f1[best]:.2f} ± {sd[best]:.2f}")
    return claims.share("M2", cases, f"F1 above, and its spread at most that of, each modality ({'; '.join(told)})")


def verdict_on_translation(table: pd.DataFrame) -> dict[str, str]:
    """M3: translation is nearly as good as reconstruction, and better than the centroids of the annotation.

    `table`: `fidelity.evaluate`. Per pair of modalities four cases: r² at least 0.8 of the reconstruction's, above that
    of the centroid of the annotation, and of that within the sample, and an error smaller than either's.
    Introduced in notebook 07.
    """
    cases, told = [], []
    for _, row in table[table["kind"] == "translation"].iterrows():
        same = table[table["target"] == row["target"]].set_index("kind")
        own, (a, b) = same.loc["reconstruction", "r2"].max(), same.loc[list(CENTROIDS), "r2"]
        cases += [
            row["r2"] >= 0.8 * own,
            row["r2"] > a,
            row["r2"] > b,
            row["mse"] < same.loc[list(CENTROIDS), "mse"].min(),
        ]
        told.append(f"{row['source']} to {row['target']} {row['r2']:.2f} ({own:.2f}; {a:.2f}, {b:.2f})")
    if not cases:
        return claims.untested("M3", "one modality: there is nothing to translate to")
    return claims.share("M3", cases, f"r² of translation (reconstruction; centroids): {', '.join(told)}")


def verdict_on_methods(table: pd.DataFrame) -> dict[str, str]:
    """M4: the best mean of biology and batch among all methods, seed by seed. Introduced in notebook 07."""
    methods = table[~table["control"] | table["method"].str.startswith("PCA")]
    ours = methods.loc[methods["method"] == OURS, "mean"].to_numpy(float)
    others = methods[~methods["method"].str.startswith(OURS)].groupby("method")["mean"].mean()
    if others.empty:
        return claims.untested("M4", "no other method ran")
    best = f"{others.idxmax()} {others.max():.2f}, the best of {len(others)} others"
    what = f"mean of biology and batch {ours.mean():.2f} against {best}"
    return claims.difference("M4", ours, np.full(len(ours), others.max()), what)


def verdict_on_latents(known: pd.DataFrame, label_key: str, batch_key: str) -> dict[str, str]:
    """M5: the shared latent knows the annotation and not the batch, batch latents the batch and no more of the
    annotation than the batch itself does.

    `known`: `knowledge.summary` with the row "batch itself", batches told within each class. Introduced in notebook 07.
    """
    best = known.groupby(["latent", "target"])["over_chance"].max().unstack("target")  # whichever classifier reads more
    shared, itself = best.loc["shared"], best.loc[ITSELF, label_key]
    batch = best[best.index.str.startswith("batch/")]
    cases = [shared[batch_key] < NEAR_CHANCE, shared[label_key] > itself + NEAR_CHANCE]
    cases += [*(batch[batch_key] > 1 - NEAR_CHANCE), *(batch[label_key] < itself + NEAR_CHANCE)]
    told = f"shared: {label_key} {shared[label_key]:.2f}, {batch_key} {shared[batch_key]:.2f}"
    told += f"; batch latents: {label_key} up to {batch[label_key].max():.2f} (the batch itself {itself:.2f})"
    told += f", {batch_key} from {batch[batch_key].min():.2f}"
    return claims.share("M5", cases, f"told above chance (1: perfectly), {told}")


def told_where(rare: pd.DataFrame) -> pd.DataFrame:
    """The rows of `rarities` within the classes' own batches, where knowing the batch is of no help; all rows where no
    class is in one batch only. Introduced in notebook 07.
    """
    own = rare[rare["where"] == "own section"]
    return own if len(own) else rare


def verdict_on_rare(rare: pd.DataFrame, null: pd.DataFrame) -> dict[str, str]:
    """M6: rare classes stay as separable as in the PCA, and a batch that is none is not told from its original.

    Introduced in notebook 07.
    """
    if not len(rare):
        return claims.untested("M6", "no class has enough samples in few enough batches to be called rare")
    auc = told_where(rare).pivot_table("auc", "class", "embedding", sort=False)
    told = [f"{name} {row[OURS]:.2f} (PCA {row[PCA]:.2f})" for name, row in auc.iterrows()]
    nearest = null.set_index("method")["nearest"][OURS]
    cases = [*(auc[OURS] >= auc[PCA] - SLACK), nearest < 0.5 + NEAR_CHANCE]
    told.append(f"copies told from originals {nearest:.2f} (chance 0.5)")
    return claims.share("M6", cases, f"AUC of rare classes: {', '.join(told)}")


def verdict_on_experts(table: pd.DataFrame) -> dict[str, str]:
    """R1: with one modality broken, the product of experts falls below the plain mean of the same experts.

    Introduced in notebook 07.
    """
    wide = table[table["broken"] != "none"].pivot_table("accuracy", "broken", "way", sort=False)
    if len(wide) < 2:
        return claims.untested("R1", "no samples with two modalities, so that there is nothing to join")
    told = "; ".join(f"{m} {row['product']:.2f} against {row[MEAN]:.2f}" for m, row in wide.iterrows())
    return claims.share("R1", (wide["product"] < wide[MEAN]).to_list(), f"accuracy with a broken modality: {told}")


def verdict_on_own(table: pd.DataFrame) -> dict[str, str]:
    """R3: what only one modality shows is told worse from the joint latent than from that modality's own.

    Introduced in notebook 07.
    """
    what = OWN_FACTORS if (table["what"] == OWN_FACTORS).any() else "features"
    wide = table[table["what"] == what].pivot_table("R2", "modality", "latent", sort=False)
    own = np.array([wide.loc[m, f"own/{m}"] for m in wide.index])
    told = "; ".join(f"{m} {s:.2f} against {o:.2f}" for m, s, o in zip(wide.index, wide["shared"], own, strict=True))
    return claims.share("R3", (own > wide["shared"]).to_list(), f"R² of {what}, joint latent against own: {told}")


def _means(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return table.groupby("method", sort=False)[columns].mean()
