"""Paired expression and chromatin accessibility of single cells, in which every link of gene and peak is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData

from helpers.checks import Parts, assemble, part

LINEAGE = ("proerythroblast", "erythroblast", "normoblast")  # one after the other along pseudotime
CELL_TYPES = (
    *LINEAGE, "CD4 T", "CD8 T", "naive B", "transitional B", "CD14 monocyte", "CD16 monocyte", "NK", "ILC", "HSC",
    "MEP", "plasma", "cDC", "pDC",
)  # fmt: skip
ROLES = {"enhancer": 0.15, "decoy": 0.3, "motif": 0.2, "marker": 0.15, "background": 0.2}  # shares of all peaks
N_DECOYS = 2  # for each link
WINDOW = 100_000  # base pairs from a TSS within which links and decoys lie
NEAR, DECAY = 1_000, 25_000  # base pairs: links begin there, and grow rarer by a factor e over the second
JITTER = 2_000  # base pairs by which a decoy's distance may differ from its link's
SPACING = 150_000  # base pairs from one TSS to the next, on average
WIDTH, GAP = 500, 100  # base pairs of a peak, and at least between two
LINKED = 0.7  # share of genes with links
SILENCERS = 0.15  # share of links whose peak closes where its gene is expressed
CONFOUNDED = 0.5  # share of decoys that are open in the same types as their link
SPREAD = {"rna": 0.15, "atac": 0.3}  # dispersion of the negative binomial: variance = mean + dispersion * mean^2
OPEN = 1.8  # log accessibility of links and decoys in the types in which they act, over the others
SITE = {"rna": 0.2, "atac": 0.3}  # standard deviation of a site's effects, on a logarithmic scale
BLOCK = 1 << 22  # counts drawn together, so that a large simulation needs little more memory than its result


def multiome(
    n_obs: int = 1500,
    n_genes: int = 400,
    n_peaks: int = 3000,
    n_types: int = 8,
    n_sites: int = 3,
    n_factors: int = 12,
    rna_depth: float = 1200.0,
    atac_depth: float = 170.0,
    noise: float = 1.0,
    seed: int = 0,
) -> MuData:
    """Cells with paired counts of genes (`rna`) and of chromatin accessibility (`atac`), both CSR.

    Expected counts are a cell's depth times a softmax over features of cell type (three types are stages of one
    lineage and blend along pseudotime), site, and the activities of `n_factors` transcription factors. A factor's own
    gene follows its activity. Activators raise their target genes and open the peaks with their motif, in all types;
    repressors lower and close them. Every other gene is a target of two factors, one of them its main one.

    A link ties a peak to a gene: in one or two cell types, and nowhere else, the peak opens (sign 1) or closes (-1)
    with what the factors do to the gene. Links lie within 100 kb of the TSS, rarer with distance. Each has two decoys
    at its distance from the same gene, which move as much, but with a factor that does not act on the gene; half of
    them in the same types, where they are open too. What else follows the factors of a gene, such as a peak with the
    motif of one or the link of a neighbour, covaries with it without being linked: an indirect effect.

    `rna_depth`, `atac_depth`: mean counts per cell. `noise` scales the dispersion of the negative binomial; with 0
    counts are Poisson. `obs`: cell_type, site, pseudotime (0..1, NaN outside the lineage). `rna.var`: chromosome,
    start, end, tss, strand (base pairs), factors (that act on the gene, the main one first, ";"-joined); `atac.var`:
    chromosome, start, end, motifs (factors that bind; ""), role; peaks are named chromosome:start-end.

    Truth: `obsm["truth_factors"]` [n_obs, n_factors] activities (unit standard deviation within a type),
    `obsm["truth_depth"]` [n_obs, 2] expected counts, and in `uns["truth"]` the tables that `links` and `factors` read.

    The same arguments give identical arrays. Raises ValueError for sizes, depths or noise it cannot fill.
    Introduced in notebook 06.
    """
    _check_sizes(n_obs, n_genes, n_peaks, n_types, n_sites, n_factors)
    _check_depths(rna_depth, atac_depth, noise)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    sign = np.where(np.arange(n_factors) % 3 == 2, -1.0, 1.0)  # of a factor; every third one represses
    genes, targets = _genes(streams[0], n_genes, sign)
    gene_effects = _gene_effects(streams[1], targets, n_types, n_sites)
    chromatin = _chromatin(streams[2], genes, targets, sign, (n_peaks, n_types, n_sites))
    obs, blend = _cells(streams[3], n_obs, n_types, n_sites)
    activity = _activities(streams[4], blend, n_factors)
    design, depth = _design(obs, blend, activity), _depths(streams[4], obs, (rna_depth, atac_depth))
    rna = _counts(streams[5], design, gene_effects, depth[:, 0], noise * SPREAD["rna"])
    atac = _counts(streams[5], design, chromatin.effects, depth[:, 1], noise * SPREAD["atac"])
    modalities = {"rna": part(rna, obs.index, genes), "atac": part(atac, obs.index, chromatin.peaks)}
    regulators = {"gene": np.array(_factor_names(n_factors)), "sign": sign}
    truth = {"links": chromatin.links, "factors": regulators, "depth": np.array(list(SPREAD))}
    found = {"obsm": {"truth_factors": activity, "truth_depth": depth}, "uns": {"truth": truth}}
    keys = {"label_key": "cell_type", "batch_key": "site", "kinds": {"rna": "counts", "atac": "counts"}}
    return assemble(Parts(modalities, obs, "sim-multiome", **keys, **found))


def links(mdata: MuData) -> pd.DataFrame:
    """The planted links: gene, peak, types (";"-joined), sign, strength, distance (base pairs, right of the TSS > 0).

    One row a link; in the types named, the log accessibility of the peak moves by sign * strength where the log
    expression of the gene moves by one standard deviation (within a type, by its factors). Raises ValueError for data
    without such a table. Introduced in notebook 06.
    """
    return _table(mdata, "links", ["gene", "peak", "types", "sign", "strength", "distance"])


def factors(mdata: MuData) -> pd.DataFrame:
    """The planted transcription factors: gene, sign (1 activates, -1 represses), in the order of `truth_factors`.

    Raises ValueError for data without such a table. Introduced in notebook 06.
    """
    return _table(mdata, "factors", ["gene", "sign"])


def _table(mdata: MuData, name: str, columns: list[str]) -> pd.DataFrame:
    """The table in the order of `columns`, which files do not keep."""
    found = mdata.uns.get("truth", {}).get(name)
    if not isinstance(found, Mapping):
        known = str(mdata.uns.get("dataset", {}).get("name", "this data set"))
        raise ValueError(f"'{known}' has no planted {name}; only data of sim-multiome have them")
    return pd.DataFrame({column: np.asarray(found[column]) for column in columns})


def _check_sizes(n_obs: int, n_genes: int, n_peaks: int, n_types: int, n_sites: int, n_factors: int) -> None:
    if not len(LINEAGE) < n_types <= len(CELL_TYPES):
        raise ValueError(f"n_types={n_types} must be from {len(LINEAGE) + 1} to {len(CELL_TYPES)}")
    if n_obs < 10 * n_types:
        raise ValueError(f"n_obs={n_obs} is too few for {n_types} types; at least {10 * n_types} are needed")
    if not 4 <= n_factors <= n_genes // 4:
        raise ValueError(f"n_factors={n_factors} must be from 4 to a quarter of n_genes={n_genes}")
    if not 100 <= n_peaks <= 100 * n_genes:
        raise ValueError(f"n_peaks={n_peaks} must be from 100 to 100 for each of n_genes={n_genes}")
    if n_sites < 1:
        raise ValueError(f"n_sites={n_sites} must be at least 1")


def _check_depths(rna_depth: float, atac_depth: float, noise: float) -> None:
    for name, depth in (("rna_depth", rna_depth), ("atac_depth", atac_depth)):
        if depth < 50:
            raise ValueError(f"{name}={depth} must be at least 50 counts per cell, or some cells would be empty")
    if noise < 0:
        raise ValueError(f"noise={noise} must be >= 0")


# --- genes ---


def _factor_names(n: int) -> list[str]:
    return [f"TF{f + 1:02d}" for f in range(n)]


def _named(weights: np.ndarray) -> list[str]:
    """The factors with a weight in each row, joined by ";", the heaviest first."""
    names = np.array(_factor_names(weights.shape[1]))
    return [";".join(names[np.argsort(-row, kind="stable")][: np.count_nonzero(row)]) for row in weights]


def _genes(rng: np.random.Generator, n: int, sign: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Genes in genomic order, and what the factors do to their log expression [n, n_factors], rows of length 1."""
    chromosome = np.sort(np.arange(n) % min(6, n // 10))
    along = np.cumsum(SPACING * rng.gamma(4, 1 / 4, n)).astype(int)
    tss = along - along[np.searchsorted(chromosome, chromosome)] + 2 * WINDOW
    length = np.clip(rng.lognormal(np.log(20_000), 0.8, n), 2_000, 90_000).astype(int)
    forward = rng.random(n) < 0.5
    own = rng.choice(n, len(sign), replace=False)  # genes of the factors themselves
    names = np.array([f"GENE{i + 1:04d}" for i in range(n)], dtype=object)
    names[own] = _factor_names(len(sign))
    ends = {"start": np.where(forward, tss, tss - length), "end": np.where(forward, tss + length, tss), "tss": tss}
    genes = pd.DataFrame({"chromosome": [f"chr{c + 1}" for c in chromosome], **ends}, index=pd.Index(names, dtype=str))
    targets = _targets(rng, n, sign)
    targets[own] = np.eye(len(sign))
    genes["strand"], genes["factors"] = np.where(forward, "+", "-"), _named(np.abs(targets))
    return genes, targets


def _targets(rng: np.random.Generator, n: int, sign: np.ndarray) -> np.ndarray:
    """Two factors for each gene [n, n_factors]; main ones of neighbours differ, so that their links do too."""
    main = np.concatenate([rng.permutation(len(sign)) for _ in range(-(-n // len(sign)))])[:n]
    second = (main + rng.integers(1, len(sign), n)) % len(sign)
    targets = np.zeros((n, len(sign)))
    targets[np.arange(n), main], targets[np.arange(n), second] = 0.9, np.sqrt(1 - 0.9**2)
    return targets * sign


def _gene_effects(rng: np.random.Generator, targets: np.ndarray, n_types: int, n_sites: int) -> np.ndarray:
    """On log expression, [n_types + n_sites + n_factors, n_genes]: the first columns of `_design`."""
    n = len(targets)
    is_factor = (targets == 1).any(1)
    level = rng.normal(0, 0.9, n)
    level = np.where(is_factor, np.abs(level), level)  # a factor that is not seen could not be silenced
    profile = 0.9 * _profiles(rng, n_types, n) * (rng.random(n) < 0.5)
    answer = np.where(is_factor, 0.9, rng.uniform(0.5, 0.9, n))
    return np.vstack([level + profile, SITE["rna"] * rng.normal(size=(n_sites, n)), (answer[:, None] * targets).T])


def _profiles(rng: np.random.Generator, n_types: int, n: int) -> np.ndarray:
    """What tells types apart [n_types, n], of unit variance; a pair such as CD4 and CD8 T cells shares half of it.

    Stages of the lineage are no pairs: they are alike because cells blend from one into the next.
    """
    first = len(LINEAGE)
    pair = np.r_[:first, first + np.arange(n_types - first) // 2]
    return np.sqrt(0.5) * (rng.normal(size=(n_types, n)) + rng.normal(size=(n_types, n))[pair])


# --- chromatin ---


@dataclass
class _Chromatin:
    """What is planted in `atac`, peaks in genomic order."""

    peaks: pd.DataFrame  # chromosome, start, end, role, motifs; by name
    effects: np.ndarray  # on log accessibility, [columns of `_design`, n_peaks]
    links: dict[str, np.ndarray]  # the columns of the table


def _chromatin(rng: np.random.Generator, genes: pd.DataFrame, targets, sign, sizes: tuple[int, int, int]) -> _Chromatin:
    """Links first, then their decoys in N_DECOYS blocks, then all other peaks; in genomic order only at the end."""
    n_peaks, n_types, n_sites = sizes
    role = _roles(n_peaks)
    n_links = int((role == "enhancer").sum())
    owner = np.resize(rng.permutation(len(genes))[: round(LINKED * len(genes))], n_links)
    peaks, distance = _places(rng, genes, owner, role)
    acts = _acting(rng, n_links, n_types)
    size = rng.uniform(0.8, 1.2, len(acts))
    direction = np.where(rng.random(len(acts)) < SILENCERS, -1.0, 1.0)
    toward = np.vstack([targets[owner], *(_another(rng, targets[owner]) for _ in range(N_DECOYS))])
    linked = np.zeros((n_types, len(sign), n_peaks))
    linked[..., : len(acts)] = acts.T[:, None] * ((size * direction)[:, None] * toward).T
    motifs = _motifs(rng, role, len(sign))
    peaks["motifs"] = _named(motifs)
    bound = (motifs * sign * rng.uniform(0.5, 1.0, (n_peaks, 1))).T
    site = SITE["atac"] * rng.normal(size=(n_sites, n_peaks))
    effects = np.vstack([_openness(rng, role, acts), site, bound, linked.reshape(-1, n_peaks)])
    names = {"gene": genes.index[owner].to_numpy(str), "peak": peaks.index[:n_links].to_numpy(str)}
    types = np.array([";".join(np.array(CELL_TYPES[:n_types])[row]) for row in acts[:n_links]])
    numbers = {"sign": direction[:n_links], "strength": size[:n_links], "distance": distance}
    order = np.lexsort([peaks["start"], peaks["chromosome"]])
    return _Chromatin(peaks.iloc[order], effects[:, order], names | {"types": types} | numbers)


def _roles(n: int) -> np.ndarray:
    count = {role: int(share * n) for role, share in ROLES.items()}
    count["decoy"] = N_DECOYS * count["enhancer"]
    count["background"] += n - sum(count.values())
    return np.repeat(list(count), list(count.values()))


def _places(rng: np.random.Generator, genes: pd.DataFrame, owner: np.ndarray, role: np.ndarray):
    """Table of peaks by name, and the distances [n_links] of links from the TSS of their gene."""
    code, names = pd.factorize(genes["chromosome"])
    tss = genes["tss"].to_numpy()
    span = genes.groupby("chromosome", sort=False)["tss"].max().to_numpy() + 2 * WINDOW
    reach = 1 - np.exp(-(0.95 * WINDOW - NEAR - JITTER) / DECAY)
    away = NEAR - DECAY * np.log(1 - reach * rng.random(len(owner)))
    away = np.concatenate([away, *(_near(rng, away) for _ in range(N_DECOYS))])
    copied = np.tile(owner, 1 + N_DECOYS)
    free = rng.choice(len(span), len(role) - len(copied), p=span / span.sum())
    chromosome = np.concatenate([code[copied], free])
    centre = np.concatenate([tss[copied] + rng.choice([-1, 1], len(copied)) * away, span[free] * rng.random(len(free))])
    start = _apart(chromosome, np.maximum(centre - WIDTH / 2, 1).astype(int))
    peaks = pd.DataFrame({"chromosome": names[chromosome], "start": start, "end": start + WIDTH, "role": role})
    peaks.index = peaks["chromosome"] + ":" + peaks["start"].astype(str) + "-" + peaks["end"].astype(str)
    return peaks, (start[: len(owner)] + WIDTH // 2 - tss[owner]).astype(float)


def _near(rng: np.random.Generator, away: np.ndarray) -> np.ndarray:
    return np.maximum(away + rng.uniform(-JITTER, JITTER, len(away)), NEAR)


def _apart(chromosome: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Starts moved to the right, where needed, until no peaks of a chromosome overlap."""
    line = chromosome * 10**10 + start
    order = np.argsort(line, kind="stable")
    steps = (WIDTH + GAP) * np.arange(len(line))
    moved = np.empty_like(line)
    moved[order] = np.maximum.accumulate(line[order] - steps) + steps
    return moved - chromosome * 10**10


def _acting(rng: np.random.Generator, n_links: int, n_types: int) -> np.ndarray:
    """In which types links and their decoys act, [(1 + N_DECOYS) * n_links, n_types]: one type, or two."""
    shape = ((1 + N_DECOYS) * n_links, n_types)
    rank = rng.random(shape).argsort(1).argsort(1)
    acts = rank < np.where(rng.random((shape[0], 1)) < 0.4, 2, 1)
    same = rng.random((shape[0], 1)) < CONFOUNDED
    return np.where(same, np.tile(acts[:n_links], (1 + N_DECOYS, 1)), acts)


def _another(rng: np.random.Generator, targets: np.ndarray) -> np.ndarray:
    """For each row one factor that does nothing in it."""
    chosen = np.where(targets == 0, rng.random(targets.shape), -1).argmax(1)
    return np.eye(targets.shape[1])[chosen]


def _motifs(rng: np.random.Generator, role: np.ndarray, n_factors: int) -> np.ndarray:
    motifs, rows = np.zeros((len(role), n_factors)), np.flatnonzero(role == "motif")
    motifs[rows, rng.permutation(np.resize(np.arange(n_factors), len(rows)))] = 1
    return motifs


def _openness(rng: np.random.Generator, role: np.ndarray, acts: np.ndarray) -> np.ndarray:
    """Log accessibility of each type [n_types, n_peaks]."""
    n_types = acts.shape[1]
    own = np.where(role == "marker", 1.0, 0.2) * _profiles(rng, n_types, len(role))
    own[:, : len(acts)] += OPEN * acts.T
    return rng.normal(0, 0.5, len(role)) + own


# --- cells ---


def _cells(rng: np.random.Generator, n: int, n_types: int, n_sites: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Annotation of the cells, and how much of each type is in them [n, n_types]: one type, or a blend of stages."""
    first, n_lineage = len(LINEAGE), round(0.35 * n)
    rest = np.geomspace(2, 1, n_types - first)
    ends = np.round(np.cumsum(rest / rest.sum()) * (n - n_lineage)).astype(int)
    kind = first + np.searchsorted(ends, np.arange(n - n_lineage), side="right")
    time = (np.arange(n_lineage) + rng.random(n_lineage)) / n_lineage
    middle = (np.arange(first) + 0.5) / first
    blend = np.zeros((n, n_types))
    blend[:n_lineage, :first] = np.stack([np.interp(time, middle, row) for row in np.eye(first)], 1)
    blend[n_lineage:] = np.eye(n_types)[kind]
    kind = np.concatenate([(time * first).astype(int), kind])
    share = rng.dirichlet(np.full(n_sites, 4.0), size=n_types).cumsum(1)
    site = np.minimum((rng.random(n)[:, None] > share[kind]).sum(1), n_sites - 1)
    order = rng.permutation(n)
    obs = pd.DataFrame({"cell_type": pd.Categorical.from_codes(kind, list(CELL_TYPES[:n_types]))})
    obs["site"] = pd.Categorical.from_codes(site, [f"site {s + 1}" for s in range(n_sites)])
    obs["pseudotime"] = np.concatenate([time, np.full(n - n_lineage, np.nan)])
    names = [f"cell{i + 1:05d}" for i in range(n)]
    return obs.iloc[order].set_axis(names), blend[order]


def _activities(rng: np.random.Generator, blend: np.ndarray, n_factors: int) -> np.ndarray:
    """Activities of the factors [n, n_factors]: types differ in their means, cells of one type independently."""
    means = 0.5 * rng.normal(size=(blend.shape[1], n_factors))
    return blend @ means + rng.normal(size=(len(blend), n_factors))


def _depths(rng: np.random.Generator, obs: pd.DataFrame, mean: tuple[float, float]) -> np.ndarray:
    """Expected counts of each cell [n, 2]; a cell that gives much RNA tends to give much chromatin, and so do sites."""
    both, alone = rng.normal(size=(len(obs), 1)), rng.normal(size=(len(obs), 2))
    site = rng.uniform(-0.25, 0.25, (obs["site"].cat.categories.size, 2))[obs["site"].cat.codes]
    depth = np.exp(0.25 * (both + alone) + site)
    return depth * mean / depth.mean(0)


def _design(obs: pd.DataFrame, blend: np.ndarray, activity: np.ndarray) -> np.ndarray:
    """What moves the features: blend of types, site, activities, and activities within each type (for links)."""
    kind, site = (np.eye(obs[key].cat.categories.size)[obs[key].cat.codes] for key in ("cell_type", "site"))
    within = (kind[:, :, None] * activity[:, None]).reshape(len(obs), -1)
    return np.hstack([blend, site, activity, within]).astype(np.float32)


def _counts(rng: np.random.Generator, design: np.ndarray, effects: np.ndarray, depth: np.ndarray, dispersion: float):
    """Negative binomial counts [n, n_features], CSR: Poisson around a rate that varies as a gamma distribution."""
    effects, blocks = effects.astype(np.float32), []
    step = max(1, BLOCK // effects.shape[1])
    for i in range(0, len(design), step):
        rate = np.exp(design[i : i + step, : len(effects)] @ effects)
        rate *= depth[i : i + step, None] / rate.sum(1, keepdims=True)
        if dispersion > 0:
            rate *= dispersion * rng.standard_gamma(1 / dispersion, rate.shape, dtype=np.float32)
        blocks.append(sp.csr_matrix(rng.poisson(rate), dtype=np.float32))
    return sp.vstack(blocks, format="csr")
