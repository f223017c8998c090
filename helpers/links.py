"""Which features answer to which genes: links by the Jacobian of a decoder, and by what needs no model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import nn

from helpers.models import Model
from helpers.perturbation import Cells, columns_of, expected, jacobians, positive, read
from helpers.wording import closest, few

BLOCK = 1 << 23  # numbers of a Jacobian held at a time: 32 MB
PAIRS = 1 << 20  # pairs scored at a time
PEAKS = 1000  # peaks ranked at a time


def associations(
    model: Model,
    data: mudata.MuData,
    genes: str | Sequence[str] | None = None,
    source: str = "rna",
    target: str = "atac",
    by: str | None = None,
    split: str | None = None,
) -> AnnData:
    """How the expected values of all features of `target` go with those of `genes` (None: all), genes × features.

    layers: one per group (classes of `by`, or the mixture's components), −1 … 1, positive where the feature rises with
    the gene: the correlation that the model sees between log expected values among cells of the group,
    J_g S J_pᵀ / √(J_g S J_gᵀ · J_p S J_pᵀ), with J the Jacobian of the decoder, averaged over the cells, and S the
    covariance of their codes; times `openness`, the root of the feature's expected value in the group over that in the
    group where it is largest. X: the mean over groups, weighted by their cells; `uns["n_cells"]` says how many those
    are. It takes one pass over the cells, whatever the number of genes. Introduced in notebook 06.
    """
    cells = read(model, data, [source, target], by, split)
    columns = columns_of(data, source, genes)
    gene, feature = directions(model, cells, source, target)
    each = {name: g[columns] @ p.T for name, g, p in zip(cells.names, gene, feature, strict=True)}
    mean = sum(x * np.float32(n / cells.sizes.sum()) for x, n in zip(each.values(), cells.sizes, strict=True))
    found = AnnData(mean, obs=data[source].var.iloc[columns].copy(), var=data[target].var.copy(), layers=each)
    found.uns["n_cells"] = dict(zip(cells.names, cells.sizes.tolist(), strict=True))
    return found


def link(
    model: Model,
    data: mudata.MuData,
    genes: str | Sequence[str] | None = None,
    source: str = "rna",
    target: str = "atac",
    by: str | None = None,
    window: float | None = 100_000,
    split: str | None = None,
    n_null: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Which features of `target` answer to which genes: a row per gene, peak and group (`by`, as in `associations`).

    Columns: gene, peak, group; score, −1 … 1 as in `associations`; distance, base pairs from the TSS to the middle of
    the peak, positive to the right on the chromosome whatever the strand; p_value; fdr (Benjamini and Hochberg, over
    the table); n_cells of the group. The null of a row: |score| of the same peak, in the same group, with up to
    `n_null` genes of other chromosomes, drawn with `seed`; p = (1 + those at least as large) / (1 + all of them). It
    asks whether the gene goes with the peak more than genes do that cannot touch it, so factors shared with half
    the genome are no evidence.

    `window`: base pairs around the TSS; data[source].var needs chromosome and tss, data[target].var chromosome, start
    and end. None: all pairs, without distances (40 bytes a row: 500 genes × 27,000 peaks take 0.5 GB a group, where
    `associations` takes 0.05), with a null of all genes where there are no chromosomes. Raises ValueError for missing
    coordinates and unknown names; warns of features without coordinates, which are left out. Introduced in notebook 06.
    """
    cells = read(model, data, [source, target], by, split)
    pairs = candidates(data, columns_of(data, source, genes), source, target, window)
    null, columns = Null.drawn(data, source, target, n_null, seed), {}
    gene, feature = directions(model, cells, source, target)
    for name, g, p, n in zip(cells.names, gene, feature, cells.sizes, strict=True):
        score = along(g, p, pairs)
        columns[name] = {"score": score, "p_value": null.p_values(score, pairs, g, p), "n_cells": n}
    found = stacked(data, source, target, pairs, columns)
    found.insert(found.columns.get_loc("p_value") + 1, "fdr", adjusted(found["p_value"].to_numpy()))
    return found


def along(gene: np.ndarray, feature: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Products of the rows of each pair, [n_pairs]."""
    parts = [slice(i, i + PAIRS) for i in range(0, len(pairs.gene), PAIRS)]
    each = [np.einsum("pd,pd->p", gene[pairs.gene[s]], feature[pairs.peak[s]]) for s in parts]
    return np.concatenate([*each, np.zeros(0, np.float32)]).clip(-1, 1)


def stacked(data: mudata.MuData, source: str, target: str, pairs: Pairs, columns: dict[str, dict]) -> pd.DataFrame:
    """A row per pair and group, with what `columns` has for each group."""
    names = {"gene": (data[source].var_names, pairs.gene), "peak": (data[target].var_names, pairs.peak)}
    who = {k: pd.Categorical.from_codes(np.tile(at, len(columns)), known) for k, (known, at) in names.items()}
    group = pd.Categorical.from_codes(np.repeat(np.arange(len(columns)), len(pairs.gene)), list(columns))
    tables = [pd.DataFrame({"distance": pairs.distance} | each) for each in columns.values()]
    return pd.concat([pd.DataFrame(who | {"group": group}), pd.concat(tables, ignore_index=True)], axis=1)


def strongest(table: pd.DataFrame) -> pd.DataFrame:
    """One row per gene and peak: the group of largest |score|, with p × number of groups (at most 1) and fdr anew.

    Introduced in notebook 06.
    """
    size = table["score"].abs().rename("size")
    order = table.assign(size=size).sort_values("size", ascending=False, kind="stable")
    best = order.drop_duplicates(["gene", "peak"]).drop(columns="size").sort_index().reset_index(drop=True)
    if "p_value" in best:
        best["p_value"] = np.minimum(1, best["p_value"] * table["group"].nunique())
        best["fdr"] = adjusted(best["p_value"].to_numpy())
    return best


def directions(model: Model, cells: Cells, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """For each group, mean Jacobians in units in which codes have covariance I, rows of length 1: of the features of
    `source` [n_groups, n_vars, d], and of `target`, times `openness`. The product of two rows is their score."""
    modalities = [*dict.fromkeys([source, target])]
    axes = torch.eye(cells.z.shape[1], device=cells.z.device)[cells.place]
    n_vars = sum(cells.samples.n_vars[m] for m in modalities)
    size = max(1, BLOCK // (n_vars * len(axes)))
    totals = {m: torch.zeros(len(cells.names), cells.samples.n_vars[m], len(axes)).to(cells.z) for m in modalities}
    for k in range(len(cells.names)):
        for at in (cells.group == k).nonzero()[:, 0].split(size):
            for m, slope in jacobians(model, cells.z[at], modalities, axes).items():
                totals[m][k] += slope.sum(0)
    ridge = 1e-6 * cells.covariance.diagonal(dim1=1, dim2=2).mean()
    root = torch.linalg.cholesky(cells.covariance + ridge * torch.eye(len(axes)).to(cells.z))
    turned = {m: nn.functional.normalize(total @ root, dim=-1).cpu().numpy() for m, total in totals.items()}
    return turned[source], turned[target] * openness(model, cells, target)[..., None]


def openness(model: Model, cells: Cells, target: str) -> np.ndarray:
    """√(expected value of a feature in a group / in the group where it is largest), [n_groups, n_vars]; 1 where values
    can be negative. A peak that is closed in a group has little there that a gene could move."""
    if not positive(model.likelihoods[target]):
        return np.ones((len(cells.names), cells.samples.n_vars[target]), np.float32)
    rows = [(cells.group == k).nonzero()[:, 0] for k in range(len(cells.names))]
    means = [sum(expected(model, cells.z[at], target).sum(0) for at in row.split(256)) / len(row) for row in rows]
    level = torch.stack(means)
    return (level / level.amax(0).clamp(min=1e-30)).sqrt().cpu().numpy()


@dataclass(frozen=True)
class Pairs:
    """Pairs of gene and peak, by column, and base pairs between them (NaN where unknown)."""

    gene: np.ndarray
    peak: np.ndarray
    distance: np.ndarray


def candidates(data: mudata.MuData, genes: np.ndarray, source: str, target: str, window: float | None) -> Pairs:
    """Pairs within the window, or all of them without one; sorted by peak, then gene."""
    if window is None:
        peak, gene = (a.ravel() for a in np.meshgrid(np.arange(data[target].n_vars), genes, indexing="ij"))
        return Pairs(gene, peak, np.full(len(gene), np.nan))
    if not window > 0:
        raise ValueError(f"window={window} must be a number of base pairs above 0, or None for all pairs")
    from_tss, middle = coordinates(data, source, ["tss"]), coordinates(data, target, ["start", "end"])
    report_lost(from_tss.iloc[genes], source)
    report_lost(middle, target)
    known, there = from_tss["chromosome"].dropna(), middle["chromosome"].dropna()
    if not known.isin(there.unique()).any():
        raise ValueError(
            f"no chromosome has the same name in {source!r} ({few(known.unique())}) and {target!r} "
            f"({few(there.unique())}): name them alike in var['chromosome']"
        )
    found = []
    for chromosome, peaks in middle.reset_index(drop=True).dropna().groupby("chromosome", observed=True):
        here = genes[(from_tss["chromosome"] == chromosome).to_numpy()[genes]]
        found.append(near(here, from_tss["at"].to_numpy()[here], peaks["at"], window))
    gene, peak, distance = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.lexsort([gene, peak])
    return Pairs(gene[order], peak[order], distance[order])


def report_lost(where: pd.DataFrame, modality: str) -> None:
    """Warn of features without coordinates; raise ValueError where none has any."""
    lost = where.index[where["at"].isna()]
    if len(lost) == len(where):
        raise ValueError(f"no coordinates for {few(lost)} of {modality!r}; window=None takes all pairs")
    if len(lost):
        warnings.warn(f"left out of links for want of coordinates, of {modality!r}: {few(lost)}", stacklevel=4)


def near(genes: np.ndarray, tss: np.ndarray, peaks: pd.Series, window: float) -> tuple[np.ndarray, ...]:
    """Pairs on one chromosome: gene, peak (index of `peaks`, whose values are places), and peak − TSS."""
    peaks = peaks.sort_values()
    first = peaks.searchsorted(tss - window)
    count = peaks.searchsorted(tss + window, side="right") - first
    at = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    return np.repeat(genes, count), peaks.index.to_numpy()[at], peaks.to_numpy()[at] - np.repeat(tss, count)


def coordinates(data: mudata.MuData, modality: str, columns: Sequence[str]) -> pd.DataFrame:
    """chromosome, and `at`, the mean of the columns, base pairs; NaN where one of them is missing."""
    var = data[modality].var
    if lost := [c for c in ["chromosome", *columns] if c not in var]:
        raise ValueError(
            f"modality {modality!r} has no coordinates: var lacks {few(lost)}, which a window needs; window=None takes "
            "all pairs"
        )
    at = var[list(columns)].astype(float).mean(axis=1, skipna=False).where(var["chromosome"].notna())
    return pd.DataFrame({"chromosome": var["chromosome"].astype(object), "at": at})


def adjusted(p: np.ndarray) -> np.ndarray:
    """False discovery rates (Benjamini and Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return false_discovery_control(p) if len(p) else p


# --- the null ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Null:
    """Genes that cannot act on a peak in cis, for each peak."""

    genes: np.ndarray  # [n_null] columns
    apart: np.ndarray  # [n_peaks, n_null] on another chromosome

    @classmethod
    def drawn(cls, data: mudata.MuData, source: str, target: str, n: int, seed: int) -> Null:
        """`n` genes at random; all count as apart where chromosomes are not known."""
        genes = np.random.default_rng(seed).permutation(data[source].n_vars)[:n]
        if any("chromosome" not in data[m].var for m in (source, target)):
            return cls(genes, np.ones((data[target].n_vars, len(genes)), bool))
        of_gene, of_peak = (data[m].var["chromosome"].astype(str).to_numpy() for m in (source, target))
        apart = of_peak[:, None] != of_gene[genes]
        if not apart.any(1).all():
            raise ValueError(
                "the null needs genes on other chromosomes than each peak's, and there are none: raise n_null"
            )
        return cls(genes, apart)

    def p_values(self, score: np.ndarray, pairs: Pairs, gene: np.ndarray, feature: np.ndarray) -> np.ndarray:
        """(1 + null scores at least as large) / (1 + null scores), for |score| of pairs; a pair is not its own null."""
        used, row = np.unique(pairs.peak, return_inverse=True)
        apart = self.apart[used]
        by_chance = np.sort(np.where(apart, np.abs(feature[used] @ gene[self.genes].T), -1), axis=1).astype(float)
        flat = (
            by_chance + 4.0 * np.arange(len(used))[:, None]
        ).ravel()  # one sorted list, four apart from peak to peak
        below = flat.searchsorted(np.abs(score) - 1e-6 + 4.0 * row)
        larger, n = len(self.genes) * (row + 1) - below, apart.sum(1)[row]
        at = np.full(len(gene), -1)
        at[self.genes] = np.arange(len(self.genes))
        itself = (at[pairs.gene] >= 0) & apart[row, at[pairs.gene]]
        return (1 + larger - itself) / (1 + n - itself)


# --- without a model -----------------------------------------------------------------------------------------------


def spearman_links(
    data: mudata.MuData,
    genes: str | Sequence[str] | None = None,
    source: str = "rna",
    target: str = "atac",
    by: str | None = None,
    window: float | None = 100_000,
    split: str | None = None,
) -> pd.DataFrame:
    """Spearman's correlation of gene and peak over all cells, or within the classes of `by`: gene, peak, group, score,
    distance, n_cells, as in `link`. Counts are taken as shares of their cell's total. Introduced in notebook 06.
    """
    if by is not None and by not in data.obs:
        raise ValueError(f"column {by!r} is not in obs{closest(by, data.obs.columns)}; there are {few(data.obs)}")
    pairs = candidates(data, columns_of(data, source, genes), source, target, window)
    rows = np.ones(data.n_obs, bool) if split is None else (data.obs["split"] == split).to_numpy()
    rows &= data.obs_names.isin(data[source].obs_names) & data.obs_names.isin(data[target].obs_names)
    if not rows.any():
        raise ValueError(f"no cell with both {source!r} and {target!r} is in split {split!r}")
    kind = pd.Series("all", data.obs_names) if by is None else data.obs[by]
    names = [str(name) for name in kind[rows].astype("category").cat.remove_unused_categories().cat.categories]
    scores = {}
    for name in names:
        some = data[rows & (kind.astype(str) == name).to_numpy()]
        scores[name] = pairwise(ranks(some, source, np.unique(pairs.gene)), some, target, pairs), some.n_obs
    return stacked(data, source, target, pairs, {k: {"score": v, "n_cells": n} for k, (v, n) in scores.items()})


def pairwise(gene_ranks: np.ndarray, some: mudata.MuData, target: str, pairs: Pairs) -> np.ndarray:
    """Correlation of ranks for each pair, some peaks at a time."""
    score, row = np.zeros(len(pairs.gene), np.float32), np.unique(pairs.gene, return_inverse=True)[1]
    used, column = np.unique(pairs.peak, return_inverse=True)
    for first in range(0, len(used), PEAKS):
        part = slice(*column.searchsorted([first, first + PEAKS]))  # pairs are sorted by peak
        together = gene_ranks.T @ ranks(some, target, used[first : first + PEAKS])
        score[part] = together[row[part], column[part] - first]
    return score


def ranks(some: mudata.MuData, modality: str, columns: np.ndarray) -> np.ndarray:
    """Ranks of features among the cells [n_cells, n_columns], centred and of length 1; zeros for constant ones."""
    from scipy.stats import rankdata

    x = some[modality].X
    x = sp.csr_matrix(x) if sp.issparse(x) else np.asarray(x)
    chosen = x[:, columns].toarray() if sp.issparse(x) else x[:, columns]
    if some.uns.get("dataset", {}).get("modalities", {}).get(modality) == "counts":
        chosen = chosen / np.maximum(np.asarray(x.sum(1)).reshape(-1, 1), 1)
    rank = rankdata(chosen, axis=0)
    rank = rank - rank.mean(0)
    length = np.linalg.norm(rank, axis=0)
    return (rank / np.where(length > 0, length, 1)).astype(np.float32)


def distance_links(
    data: mudata.MuData,
    genes: str | Sequence[str] | None = None,
    source: str = "rna",
    target: str = "atac",
    window: float = 100_000,
) -> pd.DataFrame:
    """Pairs within a window by nearness alone: gene, peak, group ("all"), score = 1 − |distance| / window, distance.

    Introduced in notebook 06.
    """
    if not window:
        raise ValueError("nearness needs a window: give a number of base pairs")
    pairs = candidates(data, columns_of(data, source, genes), source, target, window)
    return stacked(data, source, target, pairs, {"all": {"score": 1 - np.abs(pairs.distance) / window}})


# --- against known links -------------------------------------------------------------------------------------------


def link_auc(table: pd.DataFrame, truth: pd.DataFrame) -> float:
    """How well |score| tells the links of `truth` (gene, peak) from the table's other pairs: AUROC.

    A pair of several groups counts with its largest |score|. Links that are not in the table do not count. Raises
    ValueError where all pairs are links, or none is. Introduced in notebook 06.
    """
    from sklearn.metrics import roc_auc_score

    best = strongest(table[["gene", "peak", "score"]])
    linked = keys(best).isin(keys(truth))
    if linked.all() or not linked.any():
        raise ValueError(
            f"{linked.sum()} of {len(linked)} pairs of the table are known links: an AUROC needs others too"
        )
    return float(roc_auc_score(linked, best["score"].abs()))


def specificity(table: pd.DataFrame, truth: pd.DataFrame) -> float:
    """How well |score| tells the groups in which a known link acts from those in which it does not: AUROC.

    `truth`: gene, peak, types (";"-joined names of groups). Of the table, only known links count. Raises ValueError
    where none of them is there, or they act everywhere or nowhere. Introduced in notebook 06.
    """
    from sklearn.metrics import roc_auc_score

    types = dict(zip(keys(truth), truth["types"].str.split(";"), strict=True))
    mine = table[keys(table).isin(list(types))]
    acts = np.array([g in types[k] for g, k in zip(mine["group"].astype(str), keys(mine), strict=True)], bool)
    if not len(acts) or acts.all() or not acts.any():
        raise ValueError(
            f"known links act in {acts.sum()} of {len(acts)} rows: an AUROC needs some where they do not too"
        )
    return float(roc_auc_score(acts, mine["score"].abs()))


def keys(table: pd.DataFrame) -> pd.Index:
    """Gene and peak of each row as one name."""
    return pd.Index(table["gene"].astype(str) + "\t" + table["peak"].astype(str))
