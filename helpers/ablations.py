"""multiDGD with less to go by: fewer cells, fewer features, one batch never seen, or no covariate model.

Each setting is a training of its own, whose `outcome` holds what the tables below are made of; `sweeps.sweep` keeps
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import mudata
import numpy as np
import pandas as pd

from helpers import claims, components, inference, tasks
from helpers.batches import Samples
from helpers.models import Model
from helpers.multimodal import (
    TOLERANCE,
    Training,
    basal_codes,
    covariate_classes,
    mean_profile,
    per_cell,
    predictor,
    train,
    train_vae,
)
from helpers.priors import parts_of

OURS, PLAIN, VAE = "multiDGD", "without covariate", "VAE, same decoder"
CONTROLS = (
    "PCA", "mean profile", "30 neighbours", "communities of a PCA", "k-means of a PCA", "neighbours in a PCA",
    "most frequent batch",
)  # fmt: skip
Outcome = Mapping[str, object]
Setting = Mapping[str, object]


def plan(
    seeds: Sequence[int],
    batches: Sequence[str] = (),
    shares: Sequence[float] = (),
    features: float = 0.5,
    with_covariate: bool = True,
) -> list[dict]:
    """Settings: three models per seed; of the first seed also multiDGD and VAE with `shares` of the cells and of the
    most frequent features (0: left out), and multiDGD without each of `batches`. Introduced in notebook 06.
    """
    whole = {"share": 1.0, "features": 1.0, "left": ""}
    kinds = [OURS, PLAIN, VAE] if with_covariate else [OURS, VAE]
    first = {"seed": int(seeds[0])}
    settings = [{"model": kind, **whole, "seed": int(seed)} for seed in seeds for kind in kinds]
    settings += [{"model": kind, **whole, "share": share} | first for share in shares for kind in (OURS, VAE)]
    settings += [{"model": kind, **whole, "features": features} | first for kind in (OURS, VAE) if features]
    return settings + [{"model": OURS, **whole, "left": batch} | first for batch in batches]


def altered(
    mdata: mudata.MuData, share: float = 1.0, features: float = 1.0, left: str = "", batch_key: str = "", seed: int = 0
) -> mudata.MuData:
    """The data with less to learn from: a `share` of train and valid cells, the most frequent `features` (a share of
    each modality's), or without the batch `left` in train and valid. Cells that are left out have split "unused".

    Introduced in notebook 06.
    """
    data = mdata.copy()
    split = data.obs["split"].astype(str).to_numpy(copy=True)
    seen = np.isin(split, ["train", "valid"])
    if left:
        split[seen & (data.obs[batch_key].astype(str) == left).to_numpy()] = "unused"
        names = data.obs[batch_key].astype("category")
        data.obs[batch_key] = names.cat.remove_categories([c for c in names.cat.categories if str(c) == left])
    for name in ("train", "valid") if share < 1 else ():
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(split == name))
        split[rows[max(4, round(share * len(rows))) :]] = "unused"
    data.obs["split"] = split
    if features < 1:
        kept = frequent(data, features)
        data = mudata.MuData({m: data[m][:, columns].copy() for m, columns in kept.items()})
        data.obs, data.uns = mdata.obs.assign(split=split), dict(mdata.uns)
    return data


def frequent(mdata: mudata.MuData, share: float) -> dict[str, np.ndarray]:
    """The columns of each modality that most train cells have counts of, in their order. Introduced in notebook 06."""
    train, found = (mdata.obs["split"] == "train").to_numpy(), {}
    for m, adata in mdata.mod.items():
        seen = np.asarray((adata.X[train] > 0).mean(0)).ravel()
        found[m] = np.sort(np.argsort(-seen, kind="stable")[: max(1, round(share * adata.n_vars))])
    return found


def outcome(mdata: mudata.MuData, how: Training, batch_key: str, setting: Setting, part: float = 0.5) -> dict:
    """Train by a setting of `plan`, on data as `altered` makes them, and score the test cells.

    Arrays: `nll/<modality>` [n_test], nats per cell; `frequent/<modality>`, the same of the most frequent features (a
    `part` of each modality's) given their total; `z` [n_obs, n_latent], codes without the part of the covariate;
    `component` and `batch` [n_obs], where the model has those. Fewer cells get as many more epochs, ten times at the
    most. Without a batch, test cells are those of the batch: found among the known ones, and with a class of their own
    (`added/<modality>`). Introduced in notebook 06.
    """
    data = altered(mdata, setting["share"], setting["features"], setting["left"], batch_key, setting["seed"])
    if setting["left"]:
        away = data.obs["split"].eq("test") & mdata.obs[batch_key].astype(str).ne(setting["left"])
        data.obs["split"] = data.obs["split"].mask(away, "unused")
    told = setting["model"] != PLAIN and batch_key and data.obs[batch_key].nunique() > 1
    key = batch_key if told else ""
    epochs = round(how.epochs / max(setting["share"], 0.1))
    options = {"seed": setting["seed"], "epochs": epochs}
    model, _ = train_vae(data, how, **options) if setting["model"] == VAE else train(data, how, key, **options)
    samples = Samples(
        data, next(model.parameters()).device, covariates=[key] if key and setting["model"] != VAE else []
    )
    found = {f"nll/{m}": per_cell(predictor(model), samples, m) for m in samples.n_vars}
    found |= of_frequent(model, samples, mdata, setting["features"], part)
    if setting["left"]:
        known = inference.add_class(model, samples, batch_key, "test", tolerance=TOLERANCE) if key else model
        return found | {f"added/{m}": per_cell(predictor(known), samples, m) for m in samples.n_vars}
    return found | (latent(model, samples, key) if setting["share"] == setting["features"] == 1 else {})


def of_frequent(model: Model, samples: Samples, mdata: mudata.MuData, features: float, part: float) -> dict:
    """`frequent/<modality>` of `outcome`, for models of all features and of that part of them."""
    columns = frequent(mdata, part)
    found = [m for m in samples.n_vars if m != "protein" and (features == 1 or features == part)]
    chosen = {m: columns[m] if features == 1 else np.arange(samples.n_vars[m]) for m in found}
    return {f"frequent/{m}": per_cell(predictor(model), samples, m, columns=each) for m, each in chosen.items()}


def latent(model: Model, samples: Samples, key: str) -> dict[str, np.ndarray]:
    """`z`, `component` and `batch` of `outcome`."""
    found = {"z": basal_codes(model, samples)}
    if parts_of(model.prior):
        found["component"] = tasks.cluster(model, samples)
    if key in parts_of(model.prior):
        found["batch"] = covariate_classes(model, samples, key, None)
    return found


def whole(results: Sequence[Outcome], kind: str = OURS) -> list[Outcome]:
    """The results of a kind of model that saw everything, a seed each. Introduced in notebook 06."""
    return [r for r in results if r["model"] == kind and r["share"] == r["features"] == 1 and not r["left"]]


# ---------------------------------------------------------------- tables


def clusters(
    results: Sequence[Outcome],
    mdata: mudata.MuData,
    label_key: str,
    communities: Callable[[np.ndarray], np.ndarray],
    split: str = "train",
    n_latent: int = 20,
) -> pd.DataFrame:
    """Agreement of clusters with `label_key` (`ari`, `nmi`), a row per method and seed; cells with a label only.

    The components of multiDGD, `communities` (codes -> clusters) of the same codes and of the VAE's, and controls:
    communities and k-means of a PCA, the latter with as many clusters as there are labels. Introduced in notebook 06.
    """
    from sklearn.cluster import KMeans

    rows = (mdata.obs["split"].eq(split) & mdata.obs[label_key].notna()).to_numpy()
    label, found = mdata.obs[label_key].astype(str).to_numpy()[rows], []
    for r in whole(results):
        found.append(("components", "model", r["seed"], r["component"][rows]))
        found.append(("communities of its codes", "model", r["seed"], communities(r["z"][rows])))
    for r in whole(results, VAE):
        found.append(("communities of VAE codes", "model", r["seed"], communities(r["z"][rows])))
    z, k = components.pca_codes(Samples(mdata, "cpu"), n_latent)[rows], len(np.unique(label))
    found.append(("communities of a PCA", "control", 0, communities(z)))
    found.append(("k-means of a PCA", "control", 0, KMeans(k, n_init=10, random_state=0).fit_predict(z)))
    return pd.DataFrame([{"method": m, "kind": kind, "seed": s} | agreement(label, own) for m, kind, s, own in found])


def agreement(label: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """ARI and NMI of clusters with labels, and the number of clusters. Introduced in notebook 06."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    scores = {"ari": adjusted_rand_score(label, own), "nmi": normalized_mutual_info_score(label, own)}
    return scores | {"clusters": len(np.unique(own))}


def mixing(
    results: Sequence[Outcome], mdata: mudata.MuData, batch_key: str, label_key: str = "", n_latent: int = 20
) -> pd.DataFrame:
    """Whether the codes of all cells tell the batch, which they should not, and the label, which they should: shares
    of ten neighbours of the same one, above what is expected by chance (`same_neighbours`). A row per method and seed.

    Introduced in notebook 06.
    """
    codes = [(kind, "model", r["seed"], r["z"]) for kind in (OURS, PLAIN, VAE) for r in whole(results, kind)]
    codes.append(("PCA", "control", 0, components.pca_codes(Samples(mdata, "cpu"), n_latent)))
    rows, columns = [], {"same batch": batch_key} | ({"same label": label_key} if label_key else {})
    for method, kind, seed, z in codes:
        known = {name: mdata.obs[key].notna().to_numpy() for name, key in columns.items()}
        each = {name: same_neighbours(z[known[name]], mdata.obs[key][known[name]]) for name, key in columns.items()}
        rows.append({"method": method, "kind": kind, "seed": seed} | each)
    return pd.DataFrame(rows)


def same_neighbours(z: np.ndarray, labels: Sequence, k: int = 10) -> float:
    """The share of the `k` nearest neighbours that have a sample's own label, minus the share of that label among all
    other samples; mean over samples: 0 where labels are mixed. Introduced in notebook 06.
    """
    from sklearn.neighbors import NearestNeighbors

    code = pd.factorize(np.asarray(labels, dtype=object).astype(str))[0]
    near = NearestNeighbors(n_neighbors=min(k, len(z) - 1)).fit(z).kneighbors(return_distance=False)
    share = (np.bincount(code)[code] - 1) / (len(code) - 1)
    return float(((code[near] == code[:, None]).mean(1) - share).mean())


def recovered(results: Sequence[Outcome], mdata: mudata.MuData, batch_key: str, n_latent: int = 20) -> pd.DataFrame:
    """Shares of the test cells of each batch whose code lies at the component of their batch, without its label: a row
    per method, seed and batch. Controls: 15 nearest train cells in a PCA, and always the most frequent batch.

    Introduced in notebook 06.
    """
    from sklearn.neighbors import KNeighborsClassifier

    batch = mdata.obs[batch_key].astype("category")
    code, names = batch.cat.codes.to_numpy(), batch.cat.categories
    learn, test = (mdata.obs["split"].eq(name).to_numpy() & (code >= 0) for name in ("train", "test"))
    z = components.pca_codes(Samples(mdata, "cpu"), n_latent)
    told = [(OURS, "model", r["seed"], r["batch"][test]) for r in whole(results) if "batch" in r]
    near = KNeighborsClassifier(min(15, learn.sum())).fit(z[learn], code[learn]).predict(z[test])
    most = np.full(test.sum(), np.bincount(code[learn]).argmax())
    told += [("neighbours in a PCA", "control", 0, near), ("most frequent batch", "control", 0, most)]
    rows = [(who, i) for who in told for i in np.unique(code[test])]
    return pd.DataFrame(
        {"method": m, "kind": kind, "seed": s, "batch": names[i], "right": (own == i)[code[test] == i].mean()}
        for (m, kind, s, own), i in rows
    )


def unseen(results: Sequence[Outcome], mdata: mudata.MuData, batch_key: str) -> pd.DataFrame:
    """The loss of test cells of a batch that was left out, over that of the model that saw it: mean over cells, a row
    per batch, modality and method (`placed` among the known classes, with a class `added`). Control: the mean profile.

    Introduced in notebook 06.
    """
    full, rows, samples = whole(results)[0], [], Samples(mdata, "cpu")
    left = [r for r in results if r["left"]]
    batch = mdata.obs.loc[mdata.obs["split"].eq("test"), batch_key].astype(str).to_numpy() if left else []
    for m in samples.n_vars if left else ():
        flat = per_cell(mean_profile(samples), samples, m)
        for r in left:
            own = batch == r["left"]
            seen = full[f"nll/{m}"][own]
            each = {"placed": r[f"nll/{m}"], "class added": r[f"added/{m}"], "mean profile": flat[own]}
            for method, nll in each.items():
                kind = "control" if method == "mean profile" else "model"
                rows.append((r["left"], m, method, kind, float(np.mean(nll / seen))))
    return pd.DataFrame(rows, columns=["batch", "modality", "method", "kind", "ratio"])


def efficiency(results: Sequence[Outcome], modalities: Sequence[str]) -> pd.DataFrame:
    """Loss against the share of cells trained on: a row per model, share and modality, with `nll`, nats per test cell,
    and `ratio` over the same model trained on all cells, mean over cells. Introduced in notebook 06.
    """
    rows, seed = [], whole(results)[0]["seed"]
    for kind in (OURS, VAE):
        full = next(r for r in whole(results, kind) if r["seed"] == seed)
        some = [r for r in results if r["model"] == kind and r["features"] == 1 and not r["left"] and r["seed"] == seed]
        for r, m in ((r, m) for r in some for m in modalities):
            nll = r[f"nll/{m}"]
            rows.append((kind, r["share"], m, nll.mean(), float(np.mean(nll / full[f"nll/{m}"]))))
    columns = ["method", "share", "modality", "nll", "ratio"]
    return pd.DataFrame(rows, columns=columns).sort_values("share", kind="stable", ignore_index=True)


def feature_efficiency(results: Sequence[Outcome], modalities: Sequence[str]) -> pd.DataFrame:
    """What the rarer features are good for: the loss on the most frequent ones, given their total, of models of all
    features and of those alone, nats per test cell. Introduced in notebook 06.
    """
    rows, seed = [], whole(results)[0]["seed"]
    for kind in (OURS, VAE) if any(r["features"] < 1 for r in results) else ():
        some = [r for r in results if r["model"] == kind and r["share"] == 1 and not r["left"] and r["seed"] == seed]
        for r, m in ((r, m) for r in some for m in modalities if f"frequent/{m}" in r):
            used = "all" if r["features"] == 1 else f"the most frequent {r['features']:.0%}"
            rows.append((kind, used, m, float(r[f"frequent/{m}"].mean())))
    return pd.DataFrame(rows, columns=["method", "features", "modality", "nll"])


# ---------------------------------------------------------------- verdicts


def verdict_on_fit(scores: pd.DataFrame) -> dict[str, str]:
    """D9, from `multimodal.evaluate`: needs MultiVI, which is not part of this environment; what can be said instead.

    Introduced in notebook 06.
    """
    peaks = scores[scores["modality"] == "atac"].set_index("method")
    seen = "; ".join(
        f"{name} {row.nll:.1f} nats" for name, row in scores.groupby("method", sort=False).sum(True).iterrows()
    )
    ranked = "; AUPRC " + ", ".join(f"{name} {v:.3f}" for name, v in peaks["auprc"].items()) if len(peaks) else ""
    return claims.untested("D9", f"MultiVI is not installed here; beside a VAE and controls: {seen}{ranked}")


def verdict_on_clusters(table: pd.DataFrame) -> dict[str, str]:
    """D10, from `clusters`, with the VAE in MultiVI's place. Introduced in notebook 06."""
    ari = {name: rows["ari"].to_numpy() for name, rows in table.groupby("method")}
    ours, theirs = ari["components"], ari["communities of VAE codes"]
    spread = f"; sd over seeds {ours.std():.3f} against {theirs.std():.3f}"
    return claims.difference("D10", ours, theirs, f"ARI of components against communities of VAE codes{spread}")


def verdict_on_batches(mixed: pd.DataFrame, told: pd.DataFrame) -> dict[str, str]:
    """D11, from `mixing` and `recovered`. Introduced in notebook 06."""
    if mixed.empty:
        return claims.untested("D11", "the data have a single batch")
    same = {name: rows["same batch"].to_numpy() for name, rows in mixed.groupby("method")}
    right = {name: rows.groupby("seed")["right"].mean().to_numpy() for name, rows in told.groupby("method")}
    cases = [*(same[OURS] < same[PLAIN]), *(right[OURS] > right["neighbours in a PCA"].mean())]
    what = (
        f"less of the batch in the code than without its model ({same[OURS].mean():.3f} and {same[PLAIN].mean():.3f}), "
    )
    return claims.share(
        "D11", cases, what + f"and batches of test cells told better than by neighbours ({right[OURS].mean():.2f})"
    )


def verdict_on_efficiency(few: pd.DataFrame, features: pd.DataFrame) -> dict[str, str]:
    """D12, from `efficiency` and `feature_efficiency`: whether the advantage over the VAE grows. Introduced in
    notebook 06.
    """
    gain = few.pivot_table("nll", "share", ["modality", "method"]).sort_index()
    gain = {m: gain[m][VAE] - gain[m][OURS] for m in gain.columns.levels[0]}
    cases = [each.iloc[0] > each.iloc[-1] for each in gain.values() if len(each) > 1]
    wide = features.pivot_table("nll", ["modality", "features"], "method")
    for m in dict.fromkeys(features["modality"]):
        more = wide.loc[m][VAE] - wide.loc[m][OURS]
        cases.append(more["all"] > more.drop("all").iloc[0])
    what = "advantage over the VAE larger with fewest cells than with all, and with all features than with some"
    return claims.share("D12", cases, what)


def verdict_on_translation(table: pd.DataFrame) -> dict[str, str]:
    """D13, from `multimodal.translations`: nearer to the reconstruction than to the mean profile. Introduced in
    notebook 06.
    """
    wide = table.pivot_table("ratio", ["source", "target"], "method")
    cases = wide["the model"] - 1 < 0.5 * (wide["mean profile"] - 1)
    seen = ", ".join(
        f"{a} to {b} {row['the model']:.3f} ({row['mean profile']:.3f})" for (a, b), row in wide.iterrows()
    )
    return claims.share("D13", cases, f"loss over that of reconstruction (in brackets the mean profile's): {seen}")


def verdict_on_unseen(table: pd.DataFrame) -> dict[str, str]:
    """D14, from `unseen`: at most half of what a mean profile would lose. Introduced in notebook 06."""
    if table.empty:
        return claims.untested("D14", "no batch was left out")
    wide = table.pivot_table("ratio", ["batch", "modality"], "method")
    placed, flat = wide["placed"], wide["mean profile"]
    grown = [100 * (ratio.mean() - 1) for ratio in (placed, flat)]
    what = f"placed without fine-tuning, the loss grows by {grown[0]:.1f} % (mean profile {grown[1]:.1f} %)"
    return claims.share("D14", placed - 1 < 0.5 * (flat - 1), what)
