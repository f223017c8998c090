"""Tissue sections seen by three measurements on the same spots, with regions, gradients and batch effects all known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from scipy.special import softmax

from helpers.checks import Parts, assemble, part, parts_of
from helpers.wording import closest, few

REGIONS = {  # lineage, and log odds in sections near the tumour and far from it
    "stroma": ("stroma", 0.1, 0.4),
    "normal epithelium": ("gland", -0.5, 0.7),
    "atrophy": ("gland", -0.3, 0.3),
    "PIN": ("gland", 0.2, -0.1),
    "inflammation": ("immune", -0.3, -0.2),
    "tumour ISUP 3": ("tumour", 0.5, -1.0),
    "tumour ISUP 5": ("tumour", 0.3, -1.3),
}
RARE = {"tumour ISUP 2": "tumour", "tumour ISUP 4": "tumour"}  # each in one section near the tumour
ALL = (*REGIONS, *RARE)
SITES = ("near", "far")
SPACING = 100.0  # micrometres from one spot to the next, on a hexagonal grid as of Visium
PATCH, SMOOTH = 230.0, 150.0  # micrometres over which regions, and factors within them, stay alike
WAVES = 80  # that a smooth field is made of
BLEND = 0.25  # how gradually regions pass into each other, in standard deviations of the fields that bound them
GRAINY = 0.5  # share of a factor's variance that differs from spot to spot
PATIENT = 0.5  # standard deviation of the log odds of a region over patients
N_GRADIENTS, N_OWN = 3, 3  # shared factors beside the programme of regions; factors of one modality alone
LINEAGE = 0.35  # share of a region's programme that it has in common with its lineage
SEPARATION = 3.0  # length of a region's programme, in standard deviations of a gradient
LOADS = {"rna": 0.30, "msi": 0.32, "morphology": 0.40}  # of a factor on a feature that it moves, as standard deviation
TOUCHED = 0.35  # share of the features that a factor moves
ANSWERS = {"linear": 2, "saturating": 1, "rectified": 1}  # how features follow the factors, and how many to one another
FULL = 0.8  # where a saturating answer levels off
# Standard deviations over sections, times `batch`; on the logarithmic scale but for morphology, which has its own units
GAIN = {"rna": 0.2, "msi": 0.8, "morphology": 0.12}  # of each feature; morphology: of the contrast of a feature
WHOLE = {"rna": 0.4, "msi": 0.5, "morphology": 0.15}  # of all at once: library size, laser power, two stains
CONTRAST = 0.25  # of the slope of an ion's log intensity
TURN = 0.15  # radians, about, by which morphology's features are rotated into each other
AMBIENT = 0.15  # largest share of a spot's rna that comes from the whole section
CEILING = (1.0, 3.0)  # log of a section's detector limit over the median intensity, from and to
INTERACTION = 0.15  # of loadings, as a share of their size
NOISE = {"rna": 0.1, "msi": 0.35, "morphology": 0.45}  # dispersion; coefficient of variation; standard deviation


def tissue(
    n_patients: int = 8,
    n_spots: int = 120,
    n_genes: int = 300,
    n_ions: int = 200,
    n_morphology: int = 64,
    depth: float = 2000.0,
    batch: float = 1.0,
    bend: float = 1.0,
    interaction: float = 1.0,
    gradient: float = 1.0,
    own: float = 1.0,
    noise: float = 1.0,
    seed: int = 0,
) -> MuData:
    """Spots of two sections (near the tumour and far from it) of each patient, measured in three ways.

    Modalities: `rna` [n_obs, n_genes] counts (CSR), about `depth` a spot; `msi` [n_obs, n_ions] positive ion
    intensities; `morphology` [n_obs, n_morphology] features of a picture. n_obs = n_patients * 2 * n_spots.

    Shared factors move all three: a programme of nine dimensions for the regions, which pass gradually into each
    other, and `N_GRADIENTS` gradients, smooth in space, which a region's mean does not know. `N_OWN` factors of each
    modality, as smooth, are in no other. Features follow their factors linearly, or level off, or answer one way.

    Batch effects differ by section and modality. `rna`: library size, gain of each gene, ambient rna. `msi`, strongest:
    gain and contrast of each ion on the log scale, laser power, a detector that saturates. `morphology`: stain,
    contrast, rotation. In all, a section changes the loadings of the shared factors (an interaction of batch and
    biology). Regions are unevenly spread over sites and patients, so that batch and biology are confounded in part, as
    in the paper; and as neighbouring spots are alike, even data without batch effects tell sections apart above chance.

    Strengths, each 1 by default and 0 for none: `batch` (of all batch effects), `bend` (detector), `interaction`,
    `gradient` (of the gradients, over the regions), `own` (of the modalities' own factors), `noise` (of the
    measurement; counts stay Poisson with 0).

    `obs`: region (the larger part of the spot), section (the batch), patient, site. `obsm["spatial"]` [n_obs, 2]: right
    and down in micrometres, of each section from its own corner. Truth: `obsm["truth_shared"]` [n_obs, 12],
    `obsm["truth_own_<modality>"]` [n_obs, 3], and what `clean`, `rare` and `null_batch` read; `var["answer"]`.

    The same arguments give identical arrays, and more patients hold the fewer ones. Raises ValueError for sizes or
    strengths it cannot fill. Source: the design of MIMA's prostate data, doi:10.5281/zenodo.17369670. Introduced in
    notebook 07.
    """
    sizes = {"rna": n_genes, "msi": n_ions, "morphology": n_morphology}
    strengths = _Strengths(depth, batch, bend, interaction, gradient, own, noise)
    _check(n_patients, n_spots, sizes, strengths)
    rules = {m: _rules(np.random.default_rng([seed, 1, k]), m, n, own) for k, (m, n) in enumerate(sizes.items())}
    home = np.random.default_rng([seed, 3]).permutation(min(n_patients, 4))  # so that more patients leave it there
    places = {region: int(patient) for region, patient in zip(RARE, home, strict=False)}
    common = _Tissue(rules, _programmes(np.random.default_rng([seed, 2])), places)
    numbers = [(patient, site) for patient in range(n_patients) for site in range(len(SITES))]
    sections = [_section(seed, *number, n_spots, common, strengths) for number in numbers]
    return assemble(_together(sections, common, strengths))


def clean(mdata: MuData) -> MuData:
    """The same spots and features as the tissue has them: expected values without batch effects and noise.

    `rna` in counts at the mean depth, `msi` in intensities, `morphology` in its own units; what a corrected output
    should look like. `prepare.transform(clean(raw), prepared)` brings it to the scale of a model. Features may have
    been selected. Raises ValueError for data without this truth. Introduced in notebook 07.
    """
    parts = parts_of(mdata)
    for m, adata in mdata.mod.items():
        parts.modalities[m] = part(_truth(mdata, "clean", m), adata.obs_names, adata.var.copy())
    return assemble(replace(parts, sha256=""))


def rare(mdata: MuData) -> dict[str, str]:
    """The planted rare regions, and the one section in which each is. ValueError for data without this truth.

    Introduced in notebook 07.
    """
    truth = mdata.uns.get("truth", {})
    if "rare_regions" not in truth:
        raise ValueError(f"{_name(mdata)} has no planted rare regions; only data of sim-spatial have them")
    return dict(zip(map(str, truth["rare_regions"]), map(str, truth["rare_sections"]), strict=True))


def null_batch(mdata: MuData, of: str, exact: bool = False, seed: int = 0) -> MuData:
    """The data and once more one batch `of` them, under the label "<of> again": a batch without an effect of its own.

    Its spots are measured again: same expected values, new noise. `exact` copies the values, which any data allow.
    Spots of it are named "<spot> again", and `obs["twin"]` says for both of a pair which spot it is ("" for others). A
    correction should leave the two as alike as two measurements are. Raises ValueError for an unknown batch, and for
    data without truth unless `exact`. Introduced in notebook 07.
    """
    key = str(mdata.uns.get("dataset", {}).get("batch_key", ""))
    if key not in mdata.obs:
        raise ValueError(f"{_name(mdata)} has no batch column; load it with batch_key=")
    batches, rows = mdata.obs[key].astype(str), np.flatnonzero(mdata.obs[key].astype(str) == of)
    if not len(rows):
        raise ValueError(f"'{key}' has no batch '{of}'{closest(of, batches.unique())}; it has {few(batches.unique())}")
    names = mdata.obs_names.append(mdata.obs_names[rows] + " again")
    obs = pd.concat([mdata.obs, mdata.obs.iloc[rows]]).set_axis(names)
    labels = [*batches, *[f"{of} again"] * len(rows)]
    obs[key] = pd.Categorical(labels, categories=list(dict.fromkeys(labels)))
    twin = np.where(batches == of, mdata.obs_names, "")
    obs["twin"] = np.concatenate([twin, twin[rows]])
    parts, rng = parts_of(mdata), None if exact else np.random.default_rng(seed)
    found = {m: _twice(mdata, m, mdata.obs_names[rows], rng) for m in mdata.mod}
    obsm = {name: np.concatenate([values, values[rows]]) for name, values in parts.obsm.items()}
    return assemble(replace(parts, modalities=found, obs=obs, obsm=obsm, sha256=""))


def _twice(mdata: MuData, modality: str, names: pd.Index, rng: np.random.Generator | None) -> AnnData:
    """A modality with rows for the second batch below: its values, or with `rng` a second measurement."""
    adata = mdata[modality]
    names = names[names.isin(adata.obs_names)]
    again = adata[names].X
    if rng is not None:
        expected = _truth(mdata, "expected", modality)[adata.obs_names.get_indexer(names)]
        again = MEASURED[modality](rng, expected, float(mdata.uns["truth"]["noise"]))
    stack = sp.vstack if sp.issparse(adata.X) else np.concatenate
    return part(stack([adata.X, again]), adata.obs_names.append(names + " again"), adata.var.copy(), **adata.uns)


def _truth(mdata: MuData, what: str, modality: str) -> np.ndarray:
    """Planted values, clean or expected, of the samples and features that a modality still has."""
    adata, key = mdata[modality], f"truth_{what}_{modality}"
    if key not in mdata.obsm:
        raise ValueError(f"{_name(mdata)} has no planted values of '{modality}'; only data of sim-spatial have them")
    if "prepare" in adata.uns:
        raise ValueError(f"'{modality}' is prepared and the planted values are not; take the data before prepare")
    columns = pd.Index(mdata.uns["truth"][f"features_{modality}"], dtype=str).get_indexer(adata.var_names)
    if (columns < 0).any():
        raise ValueError(f"'{modality}' has features that the truth lacks: {few(adata.var_names[columns < 0])}")
    return np.asarray(mdata.obsm[key])[mdata.obs_names.get_indexer(adata.obs_names)][:, columns]


def _name(mdata: MuData) -> str:
    return f"'{mdata.uns.get('dataset', {}).get('name', 'this data set')}'"


@dataclass(frozen=True)
class _Strengths:
    depth: float
    batch: float
    bend: float
    interaction: float
    gradient: float
    own: float
    noise: float


def _check(n_patients: int, n_spots: int, sizes: Mapping[str, int], strengths: _Strengths) -> None:
    if n_patients < 2 or n_spots < 60:
        raise ValueError(f"n_patients={n_patients} must be at least 2 and n_spots={n_spots} a section at least 60")
    if narrow := [m for m, n in sizes.items() if n < 20]:
        raise ValueError(f"{few(narrow)} must have at least 20 features")
    if strengths.depth < 50:
        raise ValueError(f"depth={strengths.depth} must be at least 50 counts a spot, or some spots would be empty")
    if wrong := [name for name, value in vars(strengths).items() if not value >= 0]:
        raise ValueError(f"{wrong[0]}={getattr(strengths, wrong[0])} must be >= 0")


# --- what is the same in all sections ---


@dataclass(frozen=True)
class _Rules:
    """How the features of a modality follow the factors."""

    level: np.ndarray  # [n_vars]
    shared: np.ndarray  # [n_shared, n_vars]
    own: np.ndarray  # [N_OWN, n_vars]
    answer: np.ndarray  # [n_vars], of ANSWERS
    stains: np.ndarray  # [2, n_vars], directions of a stain


def _rules(rng: np.random.Generator, modality: str, n: int, own: float) -> _Rules:
    def loads(k: int) -> np.ndarray:
        return LOADS[modality] * rng.normal(size=(k, n)) * (rng.random((k, n)) < TOUCHED)

    level = {"rna": rng.normal(0, 1.0, n), "msi": rng.normal(3, 1.0, n), "morphology": np.zeros(n)}[modality]
    shared, alone = loads(len(ALL) + N_GRADIENTS), own * 1.5 * loads(N_OWN)
    shared[len(ALL) :] *= 1.5  # few gradients, but broad ones
    answer = rng.permutation(np.resize(np.repeat(list(ANSWERS), list(ANSWERS.values())), n))
    return _Rules(level, shared, alone, answer, rng.normal(size=(2, n)))


@dataclass(frozen=True)
class _Tissue:
    """What all sections have in common."""

    rules: dict[str, _Rules]
    programmes: np.ndarray  # [n_regions, n_regions]
    rare: dict[str, int]  # region -> patient


def _programmes(rng: np.random.Generator) -> np.ndarray:
    """Means of the regions [n_regions, n_regions] in the first factors, as far apart as their lineages say."""
    lineage = [*(about[0] for about in REGIONS.values()), *RARE.values()]
    common = {name: rng.normal(size=len(ALL)) for name in dict.fromkeys(lineage)}
    near = np.array([common[name] / np.linalg.norm(common[name]) for name in lineage])
    alone = np.linalg.qr(rng.normal(size=(len(ALL), len(ALL))))[0]
    return SEPARATION * (np.sqrt(LINEAGE) * near + np.sqrt(1 - LINEAGE) * alone)


# --- a section ---

_Part = tuple[pd.DataFrame, dict[str, np.ndarray], dict[str, np.ndarray | sp.csr_matrix]]  # obs, obsm, X


def _section(seed: int, patient: int, site: int, n_spots: int, tissue: _Tissue, s: _Strengths) -> _Part:
    """One section; its streams are its own, so that neither other sections nor strengths change what is drawn."""
    streams = [np.random.default_rng([seed, 4, patient, site, k]) for k in range(4)]
    habit = PATIENT * np.random.default_rng([seed, 5, patient]).normal(size=len(REGIONS))
    odds = habit + [about[1 + site] for about in REGIONS.values()]
    spatial = _grid(streams[0], n_spots)
    planted = [region for region, home in tissue.rare.items() if home == patient and site == 0]
    blend = _regions(streams[0], spatial, odds, planted)
    shared = np.hstack([blend @ tissue.programmes, s.gradient * _fields(streams[1], spatial, N_GRADIENTS)])
    name = _section_name(patient, site)
    about = {"region": np.array(ALL)[blend.argmax(1)], "section": name, "patient": name[:3], "site": SITES[site]}
    obs = pd.DataFrame(about, index=[f"{name}-{i + 1:03d}" for i in range(n_spots)])
    obsm, x = {"spatial": spatial, "truth_shared": shared}, {}
    for m, rule in tissue.rules.items():
        own = _fields(streams[1], spatial, N_OWN)
        changed = INTERACTION * s.interaction * s.batch * streams[2].normal(size=rule.shared.shape)
        eta, moved = (_answered(rule, shared @ (rule.shared * (1 + c)) + own @ rule.own) for c in (0, changed))
        obsm[f"truth_own_{m}"], obsm[f"truth_clean_{m}"] = own, CLEAN[m](rule, eta, s).astype(np.float32)
        obsm[f"truth_expected_{m}"] = SEEN[m](streams[2], rule, moved, s).astype(np.float32)
        x[m] = MEASURED[m](streams[3], obsm[f"truth_expected_{m}"], s.noise)
    return obs, obsm, x


def _section_name(patient: int, site: int) -> str:
    return f"P{patient + 1:02d}-{SITES[site]}"


def _grid(rng: np.random.Generator, n: int) -> np.ndarray:
    """Places [n, 2] of a hexagonal grid within an uneven round outline, in micrometres from its corner."""
    side = int(1.6 * np.sqrt(n)) + 3
    row, column = np.divmod(np.arange(side * side), side)
    place = SPACING * np.column_stack([column + 0.5 * (row % 2), np.sqrt(0.75) * row])
    away = place - place.mean(0)
    angle, phase = np.arctan2(away[:, 1], away[:, 0]), rng.uniform(0, 2 * np.pi, 2)
    reach = 1 + 0.15 * np.sin(2 * angle + phase[0]) + 0.08 * np.sin(3 * angle + phase[1])
    kept = np.sort(np.argsort(np.linalg.norm(away, axis=1) / reach, kind="stable")[:n])
    return place[kept] - place[kept].min(0)


def _waves(rng: np.random.Generator, spatial: np.ndarray, n: int, length: float) -> np.ndarray:
    """Smooth random fields [n_spots, n] of unit variance, alike over `length`: sums of waves (Rahimi & Recht 2007)."""
    wave = rng.normal(size=(2, WAVES, n)) / length
    angle = np.einsum("sd,dwn->swn", spatial, wave) + rng.uniform(0, 2 * np.pi, (WAVES, n))
    return np.cos(angle).sum(1) * np.sqrt(2 / WAVES)


def _fields(rng: np.random.Generator, spatial: np.ndarray, n: int) -> np.ndarray:
    """Factors [n_spots, n]: smooth but for a part that every spot has for itself."""
    smooth = _waves(rng, spatial, n, SMOOTH)
    return np.sqrt(1 - GRAINY) * smooth + np.sqrt(GRAINY) * rng.normal(size=smooth.shape)


def _regions(rng: np.random.Generator, spatial: np.ndarray, odds: np.ndarray, planted: list[str]) -> np.ndarray:
    """How much of each region is in a spot [n_spots, n_regions]; the largest is its annotation."""
    share = np.exp(odds) / np.exp(odds).sum()
    score = _waves(rng, spatial, len(odds), PATCH)
    for _ in range(40):  # until the patches cover what the odds ask for
        there = np.bincount(score.argmax(1), minlength=len(odds)) / len(score)
        score = score + 0.25 * np.log((share + 0.01) / (there + 0.01))
    blend = np.zeros((len(score), len(ALL)))
    blend[:, : len(odds)] = softmax(score / BLEND, axis=1)
    for region in planted:
        centre = spatial[score[:, list(REGIONS).index("tumour ISUP 3")].argmax()]
        inside = np.argsort(np.linalg.norm(spatial - centre, axis=1), kind="stable")[: max(12, len(score) // 8)]
        blend[inside] *= 0.1
        blend[inside, ALL.index(region)] += 0.9
    return blend


def _answered(rule: _Rules, signal: np.ndarray) -> np.ndarray:
    """What features make of their factors [n_spots, n_vars], without their level."""
    level_off, one_way = FULL * np.tanh(signal / FULL), np.maximum(signal, 0)
    return np.where(rule.answer == "saturating", level_off, np.where(rule.answer == "rectified", one_way, signal))


# --- what a machine makes of it: expected values with batch effects, then noise ---


def _seen_rna(rng: np.random.Generator, rule: _Rules, eta: np.ndarray, s: _Strengths) -> np.ndarray:
    gain = s.batch * GAIN["rna"] * rng.normal(size=rule.level.size)
    share, ambient = softmax(rule.level + eta + gain, axis=1), min(1.0, s.batch * AMBIENT) * rng.random()
    share = (1 - ambient) * share + ambient * share.mean(0)
    size = s.batch * WHOLE["rna"] * rng.normal() + 0.25 * rng.normal(size=(len(eta), 1))
    return s.depth * np.exp(size) * share


def _seen_msi(rng: np.random.Generator, rule: _Rules, eta: np.ndarray, s: _Strengths) -> np.ndarray:
    gain = GAIN["msi"] * rng.normal(size=rule.level.size) + WHOLE["msi"] * rng.normal()
    slope = np.exp(s.batch * CONTRAST * rng.normal(size=rule.level.size))
    intensity = np.exp(rule.level + slope * eta + s.batch * gain)
    ceiling = np.median(intensity) * np.exp(rng.uniform(*CEILING))
    return intensity / (1 + s.batch * s.bend * intensity / ceiling)


def _seen_morphology(rng: np.random.Generator, rule: _Rules, eta: np.ndarray, s: _Strengths) -> np.ndarray:
    n = rule.level.size
    skew = TURN * s.batch * rng.normal(size=(n, n)) / np.sqrt(n)
    slope = np.exp(s.batch * GAIN["morphology"] * rng.normal(size=n))
    stain = s.batch * WHOLE["morphology"] * rng.normal(size=2) @ rule.stains
    return rule.level + (slope * eta) @ scipy.linalg.expm(np.triu(skew, 1) - np.triu(skew, 1).T) + stain


def _count(rng: np.random.Generator, expected: np.ndarray, noise: float) -> sp.csr_matrix:
    """Negative binomial counts: Poisson around a rate that varies as a gamma distribution."""
    rate = expected * _spread(rng, expected.shape, noise * NOISE["rna"])
    return sp.csr_matrix(rng.poisson(rate), dtype=np.float32)


def _spread(rng: np.random.Generator, shape: tuple[int, ...], variance: float) -> np.ndarray:
    """Positive factors of mean 1 and the given variance."""
    return rng.gamma(1 / variance, variance, shape) if variance > 0 else np.ones(shape)


CLEAN = {
    "rna": lambda rule, eta, s: s.depth * softmax(rule.level + eta, axis=1),
    "msi": lambda rule, eta, s: np.exp(rule.level + eta),
    "morphology": lambda rule, eta, s: rule.level + eta,
}
SEEN = {"rna": _seen_rna, "msi": _seen_msi, "morphology": _seen_morphology}
MEASURED = {
    "rna": _count,
    "msi": lambda rng, x, noise: (x * _spread(rng, x.shape, (noise * NOISE["msi"]) ** 2)).astype(np.float32),
    "morphology": lambda rng, x, noise: (x + noise * NOISE["morphology"] * rng.normal(size=x.shape)).astype(np.float32),
}


def _together(sections: list[_Part], tissue: _Tissue, s: _Strengths) -> Parts:
    obs = pd.concat([obs for obs, _, _ in sections])
    for column in obs:
        obs[column] = pd.Categorical(obs[column], list(ALL) if column == "region" else obs[column].unique())
    obsm = {key: np.concatenate([obsm[key] for _, obsm, _ in sections]) for key in sections[0][1]}
    shared = [*(f"programme {i + 1}" for i in range(len(ALL))), *(f"gradient {i + 1}" for i in range(N_GRADIENTS))]
    truth = {"shared": np.array(shared), "noise": s.noise, "rare_regions": np.array(list(tissue.rare))}
    truth["rare_sections"] = np.array([_section_name(patient, 0) for patient in tissue.rare.values()])
    modalities = {}
    for (m, rule), word in zip(tissue.rules.items(), ("GENE", "mz", "image"), strict=True):
        truth[f"features_{m}"] = np.array([f"{word}{i + 1:03d}" for i in range(len(rule.level))])
        x = [x[m] for _, _, x in sections]
        x = sp.vstack(x, format="csr") if sp.issparse(x[0]) else np.concatenate(x)
        modalities[m] = part(x, obs.index, pd.DataFrame({"answer": rule.answer}, index=truth[f"features_{m}"]))
    keys = {"label_key": "region", "batch_key": "section"}
    kinds = {m: "counts" if m == "rna" else "continuous" for m in modalities}
    return Parts(modalities, obs, "sim-spatial", **keys, kinds=kinds, obsm=obsm, uns={"truth": truth})
