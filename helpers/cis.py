"""Effects of genes on chromatin: by model and without one, against what is known of links, distance and factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from helpers import claims, links, multiome, perturbation
from helpers.models import Model
from helpers.perturbation import Step, gradient_step, published_step
from helpers.wording import few

EDGES = (0, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000)  # base pairs from the TSS
OURS = "correlation in the model"
STEPS = {"gradient step": gradient_step, "published step": published_step}
OWN_GENE = {
    "CD127": "IL7R", "CD14": "CD14", "CD15": "FUT4", "CD16": "FCGR3A", "CD19": "CD19", "CD25": "IL2RA", "CD3": "CD3D",
    "CD4": "CD4", "CD56": "NCAM1", "CD8a": "CD8A", "PD-1": "PDCD1", "TIGIT": "TIGIT",
}  # fmt: skip
CONTROLS = ("Spearman, all cells", "Spearman, within types", "distance alone")


def known_links(mdata: mudata.MuData) -> pd.DataFrame:
    """What links of gene and peak are known: the planted ones with the `types` in which they act (`multiome.links`), or
    the gene that `atac.var` gives for each peak, without types; empty where neither is there.

    Introduced in notebook 06.
    """
    if "links" in mdata.uns.get("truth", {}):
        table = multiome.links(mdata)
        there = table["gene"].isin(mdata["rna"].var_names) & table["peak"].isin(mdata["atac"].var_names)
        return table[there].reset_index(drop=True)
    if "atac" not in mdata.mod or "gene" not in mdata["atac"].var:
        return pd.DataFrame(columns=["gene", "peak"])
    owner = mdata["atac"].var["gene"].dropna().astype(str)
    owner = owner[owner.isin(mdata["rna"].var_names)]
    return pd.DataFrame({"gene": owner.to_numpy(), "peak": owner.index.to_numpy(str)})


def variable_genes(data: mudata.MuData, n: int) -> list[str]:
    """The n genes whose shares of a cell's counts vary most for their mean. Introduced in notebook 06."""
    x = sp.csr_matrix(data["rna"].X, dtype=float)
    share = sp.diags(1e4 / np.maximum(np.asarray(x.sum(1)).ravel(), 1)) @ x
    mean, square = (np.asarray(each.mean(0)).ravel() for each in (share, share.multiply(share)))
    order = np.argsort(-(square - mean**2) / np.maximum(mean, 1e-12), kind="stable")
    return [str(name) for name in data["rna"].var_names[order[:n]]]


def genes_to_ask(data: mudata.MuData, truth: pd.DataFrame, n: int) -> list[str]:
    """Up to n genes whose peaks are worth a look: those with known links, or else the most variable ones that have
    coordinates; none where peaks have none. Introduced in notebook 06.
    """
    if len(truth):
        return list(dict.fromkeys(truth["gene"]))[:n]
    placed = "atac" in data.mod and {"chromosome", "start", "end"} <= {*data["atac"].var}
    if not placed or not {"chromosome", "tss"} <= {*data["rna"].var}:
        return []
    known = data["rna"].var[["chromosome", "tss"]].notna().all(axis=1)
    return [gene for gene in variable_genes(data, data["rna"].n_vars) if known[gene]][:n]


def silenced(
    model: Model,
    data: mudata.MuData,
    genes: Sequence[str],
    by: str,
    window: float = 100_000,
    split: str | None = None,
    step: Step = published_step,
) -> pd.DataFrame:
    """Pairs within the window by gene2peak: silence a gene by a `step` in the cells that express it, and take the mean
    change of each peak (`score`, counts per 10,000). A row per gene, peak and class of `by`: gene, peak, group, score,
    distance; genes that no cell of the split expresses are left out. It passes over the cells for every gene.
    Introduced in notebook 06.
    """
    pairs = links.distance_links(data, list(genes), window=window).drop(columns=["group", "score"])
    rows = data.obs[by].notna().to_numpy() & (split is None or data.obs["split"].eq(split).to_numpy())
    counted = pd.Series(np.asarray(data["rna"].X[rows].sum(0)).ravel() > 0, data["rna"].var_names)
    column, found = data["atac"].var_names, []
    for gene, rows in pairs[pairs["gene"].map(counted).astype(bool)].groupby("gene", observed=True):
        effect = perturbation.perturb(model, data, str(gene), step=step, by=by, split=split, expressing=True)
        each = 1e4 * effect.layers["difference"][:, column.get_indexer(rows["peak"])]
        found += [rows.assign(group=name, score=values) for name, values in zip(effect.obs_names, each, strict=True)]
    columns = ["gene", "peak", "group", "score", "distance"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def rivals(
    model: Model,
    data: mudata.MuData,
    genes: Sequence[str],
    by: str,
    window: float = 100_000,
    split: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Method -> scores of all pairs of these genes and the peaks within the window, a row per gene, peak and group:
    the correlation in the model (`links.link`), gradient and published steps (`silenced`, in the cells of `split`), and
    without a model Spearman's correlation over all cells and within the classes of `by`, and nearness.

    Introduced in notebook 06.
    """
    chosen = list(genes)
    everywhere, within, nearness = CONTROLS
    found = {OURS: links.link(model, data, chosen, by=by, window=window)}
    found |= {name: silenced(model, data, chosen, by, window, split, step) for name, step in STEPS.items()}
    return found | {
        everywhere: links.spearman_links(data, chosen, window=window),
        within: links.spearman_links(data, chosen, by=by, window=window),
        nearness: links.distance_links(data, chosen, window=window),
    }


def agreement(tables: Mapping[str, pd.DataFrame], truth: pd.DataFrame) -> pd.DataFrame:
    """AUROC of known links among all pairs, a row per method: `auroc`, each pair by its largest |score|; and, where it
    is known in which groups links act, `right type`, links of a group by scores of that group, `wrong type`, by scores
    of another, mean over groups, and `acts or not`, one link's groups against each other (`links.specificity`).

    Introduced in notebook 06.
    """
    if truth.empty:
        return pd.DataFrame(columns=["method", "kind", "auroc"])
    rows = []
    for name, table in tables.items():
        each = {"method": name, "kind": "control" if name in CONTROLS else "model"}
        each["auroc"] = links.link_auc(table, truth)
        if "types" in truth and table["group"].nunique() > 1:
            each |= by_type(table, truth) | {"acts or not": links.specificity(table, truth)}
        rows.append(each)
    return pd.DataFrame(rows)


def by_type(table: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """`right type` and `wrong type` of `agreement`: AUROC of the links that act in a group, scored in it and elsewhere,
    among all pairs that are no link anywhere; mean over groups. Introduced in notebook 06.
    """
    from sklearn.metrics import roc_auc_score

    keyed = table.assign(pair=links.keys(table), group=table["group"].astype(str), size=table["score"].abs())
    wide = keyed.pivot_table("size", "pair", "group", observed=True).fillna(0.0)
    acts = pd.Series(truth["types"].str.split(";").to_numpy(), links.keys(truth)).reindex(wide.index)
    none, right, wrong = acts.isna().to_numpy(), [], []
    for group in wide.columns:
        mine = np.array([isinstance(types, list) and group in types for types in acts], bool)
        if not mine.any() or not none.any():
            continue
        scores = {g: roc_auc_score(mine[mine | none], wide.loc[mine | none, g]) for g in wide.columns}
        right.append(scores.pop(group))
        wrong.append(np.mean(list(scores.values())))
    return {"right type": float(np.mean(right)), "wrong type": float(np.mean(wrong))} if right else {}


def by_distance(tables: Mapping[str, pd.DataFrame], edges: Sequence[float] = EDGES) -> pd.DataFrame:
    """Mean |score| of the pairs of each method in bins of distance from the TSS, over its mean in the farthest bin: a
    row per method and bin, `near` and `far` its edges (base pairs), `n` pairs. Introduced in notebook 06.
    """
    found = []
    for name, table in tables.items():
        best = table.assign(size=table["score"].abs(), away=table["distance"].abs())
        mean = best.groupby(pd.cut(best["away"], edges, right=False), observed=True)["size"].agg(["mean", "size"])
        each = mean.reset_index(names="bin")
        last = each["mean"].iloc[-1] if len(each) else np.nan
        for _, row in each.iterrows():
            ratio = row["mean"] / last if last > 0 else np.nan
            found.append((name, row["bin"].left, row["bin"].right, ratio, int(row["size"])))
    return pd.DataFrame(found, columns=["method", "near", "far", "effect", "n"])


def factor_effects(
    model: Model, data: mudata.MuData, factors: pd.DataFrame, split: str | None = "test", **options
) -> pd.DataFrame:
    """What silencing each transcription factor does to the peaks with its motif: a row per factor of the table
    (`gene`, `sign`: 1 activates, −1 represses), with `change`, the mean log2 fold change of those peaks, `others`, of
    peaks with other motifs only, and `right`, whether activators close and repressors open them (difference to others).

    `options` as of `perturbation.perturb`. Needs `motifs` (";"-joined names) in data["atac"].var; raises ValueError
    without it. Introduced in notebook 06.
    """
    if "motifs" not in data["atac"].var:
        raise ValueError(
            f"atac.var has no column 'motifs' with the factors that bind; there are {few(data['atac'].var)}"
        )
    motifs, rows = data["atac"].var["motifs"].astype(str).str.split(";"), []
    for gene, sign in zip(factors["gene"], factors["sign"], strict=True):
        own = np.array([gene in names for names in motifs])
        other = motifs.str.len().gt(0).to_numpy() & motifs.str[0].ne("").to_numpy() & ~own
        if gene not in data["rna"].var_names or not own.any():
            continue
        effect = perturbation.perturb(model, data, gene, split=split, **options).X.mean(0)
        change, others = float(effect[own].mean()), float(effect[other].mean())
        rows.append(
            (gene, "activator" if sign > 0 else "repressor", change, others, bool((change - others) * sign < 0))
        )
    return pd.DataFrame(rows, columns=["gene", "role", "change", "others", "right"])


def displaced(data: mudata.MuData, seed: int = 0) -> mudata.MuData:
    """The data with the places of genes dealt anew, so that no link within a window is true: p-values of `links.link`
    must then be uniform. Introduced in notebook 06.
    """
    moved = data.copy()
    var, columns = moved["rna"].var, ["chromosome", "tss"]
    order = np.random.default_rng(seed).permutation(len(var))
    for column in columns:
        var[column] = var[column].to_numpy()[order]
    return moved


def own_genes(model: Model, data: mudata.MuData, pairs: Mapping[str, str] = OWN_GENE) -> pd.DataFrame:
    """How well the gene of each protein is told from all genes: a row per protein and method, with the rank of its
    gene (1 is first) by |score|, `score`, and `n_genes`. `pairs`: protein -> gene; those that are not there are left
    out. Methods: the correlation in the model, and Spearman's, both over all cells. Introduced in notebook 06.
    """
    whole = data.copy()
    whole.obs["cells"] = "all"
    ours = links.associations(model, whole, target="protein", by="cells")
    table = links.spearman_links(data, target="protein", window=None)
    plain = table.pivot_table("score", "gene", "peak", observed=True).reindex(
        index=ours.obs_names, columns=ours.var_names
    )
    rows = []
    for protein, gene in pairs.items():
        if protein not in ours.var_names or gene not in ours.obs_names:
            continue
        for method, scores in ((OURS, ours.to_df()[protein]), (CONTROLS[0], plain[protein].fillna(0))):
            rank = int((scores.abs() > abs(scores[gene])).sum()) + 1
            rows.append((protein, gene, method, float(scores[gene]), rank, len(scores)))
    return pd.DataFrame(rows, columns=["protein", "gene", "method", "score", "rank", "n_genes"])


# ---------------------------------------------------------------- verdicts


def verdict_on_distance(table: pd.DataFrame, planted: bool) -> dict[str, str]:
    """D15, from `by_distance`: the effect is largest within 2 kb and flat (within a quarter) beyond. Where links were
    `planted`, distance says what was planted. Introduced in notebook 06.
    """
    ours = table[~table["method"].isin(CONTROLS)]
    if ours.empty:
        return claims.untested("D15", "the data have no peaks with coordinates")
    near = ours[ours["near"] == 0].set_index("method")["effect"]
    rest = {name: rows.loc[rows["near"] > 0, "effect"] for name, rows in ours.groupby("method")}
    seen = ", ".join(f"{name} {near.get(name, np.nan):.2f} (beyond, up to {r.max():.2f})" for name, r in rest.items())
    if planted:
        return claims.untested(
            "D15", f"distances of links are planted here; mean |score| within 2 kb over far pairs: {seen}"
        )
    cases = [near.get(name, 0) > r.max() and r.max() < 1.25 for name, r in rest.items()]
    return claims.share("D15", cases, f"largest within 2 kb and flat beyond; over far pairs: {seen}")


def verdict_on_links(table: pd.DataFrame) -> dict[str, str]:
    """D16, from `agreement`: an AUROC of .7 and more in the right cell type, less in the wrong one, and Spearman's at
    chance (below .6). Introduced in notebook 06.
    """
    if "right type" not in table:
        return claims.untested("D16", "no links are known that act in some cell types only")
    rows = table.set_index("method")
    models, plain = rows[rows["kind"] == "model"], rows.loc[CONTROLS[0], "auroc"]
    cases = [*(models["right type"] >= 0.7), *(models["right type"] - models["wrong type"] > 0.05), plain < 0.6]
    seen = ", ".join(
        f"{name} {r['right type']:.2f} right, {r['wrong type']:.2f} wrong" for name, r in models.iterrows()
    )
    return claims.share("D16", cases, f"AUROC of known links: {seen}; Spearman {plain:.2f}")


def verdict_on_factors(table: pd.DataFrame) -> dict[str, str]:
    """D17, from `factor_effects`. Introduced in notebook 06."""
    if table.empty:
        return claims.untested("D17", "the data do not say which factors bind which peaks")
    return claims.share("D17", table["right"], "silenced activators close and repressors open peaks with their motif")
