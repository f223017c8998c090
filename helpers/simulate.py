"""Embedded data with known truth: generators that need no download and return what they planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
from mudata import MuData

from helpers.checks import Parts, assemble, part

# Rounded numbers of protein-coding genes per human chromosome: the sizes that make some chromosomes informative.
CHROMOSOMES = {
    **{"1": 2050, "2": 1250, "3": 1075, "4": 750, "5": 880, "6": 1040, "7": 920, "8": 680, "9": 780, "10": 730},
    **{"11": 1300, "12": 1030, "13": 320, "14": 820, "15": 600, "16": 860, "17": 1180, "18": 270, "19": 1470},
    **{"20": 540, "21": 230, "22": 490, "X": 840, "Y": 60},
}
CENTROMERE = {"13": 0.15, "14": 0.15, "15": 0.15, "21": 0.2, "22": 0.2, "Y": 0.25}  # elsewhere 0.4
N_Y = 6  # at least so many genes on Y, else sex could not be read from it

CANCER_TYPES = (  # name, share of females
    ("breast", 0.99), ("lung", 0.45), ("colon", 0.48), ("kidney", 0.35), ("ovary", 1.0), ("prostate", 0.0),
    ("brain", 0.42), ("skin", 0.4), ("liver", 0.33), ("stomach", 0.36), ("uterus", 1.0), ("thyroid", 0.73),
    ("bladder", 0.27), ("pancreas", 0.45), ("testis", 0.0), ("sarcoma", 0.55),
)  # fmt: skip
PATHWAYS = (
    "cell cycle", "immune response", "hypoxia", "DNA repair", "interferon", "angiogenesis", "lipid metabolism",
    "apoptosis", "cell adhesion", "hormone signalling", "translation", "neuronal", "glycolysis", "oxidative stress",
    "chromatin", "autophagy", "calcium signalling", "vesicle transport", "coagulation", "muscle",
)  # fmt: skip
HAZARD = {"cell cycle": 0.7, "hypoxia": 0.5, "immune response": -0.6}  # log hazard per unit of activity


def bulk(
    n_obs: int = 1000,
    n_rna: int = 600,
    n_methylation: int = 500,
    n_mutation: int = 400,
    n_types: int = 8,
    n_pathways: int = 12,
    n_sites: int = 6,
    noise: float = 1.0,
    missing: float = 0.0,
    seed: int = 0,
) -> MuData:
    """Bulk tumours: three modalities driven by planted pathway activities, copy number, sex and site.

    Modalities: `rna` log2(1 + expression) [n_obs, n_rna]; `methylation` beta values in 0..1, falling where the same
    gene is expressed; `mutation` the score M_i = SNV_i / (CDS_i / mean CDS) + |log2 CNA_i| of the AUTOENCODIX paper
    (its equation 3). They share gene names. Of the genes in pathways, 60 % answer along a saturating, switch-like
    curve with a threshold of their own, so that one activity bends the data through several principal components.

    `obs`: cancer_type, sex, age (years), stage, survival_months, event (1 = died; proportional hazards), site.
    `var`: pathways (";"-joined, may overlap or be empty), chromosome, cytoband. Truth: `obsm["truth_pathways"]`
    [n_obs, n_pathways] (about unit scale) and `obsm["truth_log_hazard"]` [n_obs, 1]; their names in `uns["truth"]`.
    `noise` scales measurement noise; `missing` is the share of samples that lack one modality, drawn at random.

    The same arguments give identical arrays. Raises ValueError for sizes it cannot fill.
    Introduced in notebook 01.
    """
    sizes = {"rna": n_rna, "methylation": n_methylation, "mutation": n_mutation}
    _check_sizes(n_obs, sizes, n_types, n_pathways, n_sites, noise, missing)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(10)]
    pathways = [PATHWAYS[p] if p < len(PATHWAYS) else f"pathway {p + 1}" for p in range(n_pathways)]
    genes, member = _genes(streams[0], int(1.25 * max(sizes.values())), pathways)
    obs, kind = _patients(streams[1], n_obs, n_types, n_sites)
    activity = _activities(streams[2], kind, n_types, n_pathways)
    cna = _copy_number(streams[3], genes, kind, n_types, activity[:, pathways.index("DNA repair")])
    signal = _readout(streams[4], activity, member)  # [n_obs, n_universe], what pathways do to expression
    values = {
        "rna": _expression(streams[5], genes, obs, signal, cna, noise),
        "methylation": _methylation(streams[6], genes, obs, signal, noise),
        "mutation": _mutation(streams[7], kind, n_types, cna, activity[:, pathways.index("DNA repair")]),
    }
    hazard = _survival(streams[8], obs, activity, pathways, kind, n_types)
    modalities = {}
    for name, n in sizes.items():
        chosen = _choose(streams[9], genes, n)
        measured = _measured(name, n_obs, missing, seed)
        x, var = values[name][np.ix_(measured, chosen)], genes.iloc[chosen][["pathways", "chromosome", "cytoband"]]
        modalities[name] = part(x, obs.index[measured], var)
    truth = {"pathways": np.array(pathways), "log_hazard": np.array(["log hazard"])}
    kinds = {"rna": "continuous", "methylation": "unit", "mutation": "continuous"}
    obsm = {"truth_pathways": activity, "truth_log_hazard": hazard[:, None]}
    keys = {"label_key": "cancer_type", "batch_key": "site"}
    return assemble(Parts(modalities, obs, "sim-bulk", kinds=kinds, obsm=obsm, uns={"truth": truth}, **keys))


def _check_sizes(n_obs, sizes, n_types, n_pathways, n_sites, noise, missing) -> None:
    if not 2 <= n_types <= len(CANCER_TYPES):
        raise ValueError(f"n_types={n_types} must be from 2 to {len(CANCER_TYPES)}")
    if n_obs < 3 * n_types:
        raise ValueError(f"n_obs={n_obs} is too few for {n_types} types; at least {3 * n_types} are needed")
    if n_pathways < 4:
        raise ValueError(f"n_pathways={n_pathways} must be at least 4")
    if small := [f"n_{name}={n}" for name, n in sizes.items() if n < 50]:
        raise ValueError(f"{', '.join(small)}: every modality needs at least 50 features")
    if n_sites < 1 or noise < 0 or not 0 <= missing <= 1:
        raise ValueError(f"n_sites={n_sites} must be >= 1, noise={noise} >= 0 and missing={missing} in 0..1")


def _genes(rng: np.random.Generator, n: int, pathways: list[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """The genes that modalities draw from, in genomic order, and which pathways [n, n_pathways] they belong to."""
    share = np.array(list(CHROMOSOMES.values()), float)
    n_y = max(N_Y, round(n * share[-1] / share.sum()))
    chromosome = rng.choice(list(CHROMOSOMES)[:-1], size=n - n_y, p=share[:-1] / share[:-1].sum())
    genes = pd.DataFrame({"chromosome": np.append(chromosome, np.repeat("Y", n_y)), "position": rng.random(n)})
    rank = {name: i for i, name in enumerate(CHROMOSOMES)}
    genes = genes.sort_values(["chromosome", "position"], key=lambda c: c.map(rank) if c.dtype == object else c)
    genes.index = pd.Index([f"GENE{i + 1:04d}" for i in range(n)])
    genes["cytoband"] = [_band(c, x) for c, x in zip(genes["chromosome"], genes["position"], strict=True)]
    member = _membership(rng, n, len(pathways)) & (genes["chromosome"] != "Y").to_numpy()[:, None]
    genes["pathways"] = [";".join(np.array(pathways)[row]) for row in member]
    return genes, member


def _band(chromosome: str, position: float) -> str:
    """Cytoband such as 17q21: arm, region and band counted from the centromere outwards."""
    middle = CENTROMERE.get(chromosome, 0.4)
    arm, away = ("p", (middle - position) / middle) if position < middle else ("q", (position - middle) / (1 - middle))
    return f"{chromosome}{arm}{('11', '13', '21', '31')[min(3, int(4 * away))]}"


def _membership(rng: np.random.Generator, n: int, n_pathways: int) -> np.ndarray:
    """Three quarters of the genes belong to a pathway, a quarter of those to a second one; sizes are unequal."""
    size = np.geomspace(3, 1, n_pathways)
    member = np.zeros((n, n_pathways), bool)
    for order, share in enumerate((0.75, 0.25)):
        inside = rng.random(n) < share if order == 0 else (rng.random(n) < share) & member.any(1)
        member[inside, rng.choice(n_pathways, size=int(inside.sum()), p=size / size.sum())] = True
    return member


def _patients(rng: np.random.Generator, n: int, n_types: int, n_sites: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Annotation of the samples and their type's number [n]; types are of unequal, sites of type-dependent share."""
    kind = rng.permutation(_shares(np.geomspace(4, 1, n_types), n))
    female = rng.random(n) < np.array([share for _, share in CANCER_TYPES])[kind]
    site_share = rng.dirichlet(np.full(n_sites, 3.0), size=n_types).cumsum(1)
    site = np.minimum((rng.random(n)[:, None] > site_share[kind]).sum(1), n_sites - 1)
    age = np.clip(rng.normal(rng.uniform(52, 68, n_types)[kind], 11), 18, 92)
    names = [name for name, _ in CANCER_TYPES[:n_types]]
    obs = pd.DataFrame(
        {
            "cancer_type": pd.Categorical.from_codes(kind, names),
            "sex": pd.Categorical(np.where(female, "female", "male")),
            "age": age.round(1),
            "site": pd.Categorical([f"site {s + 1}" for s in site]),
        },
        index=[f"S{i + 1:05d}" for i in range(n)],
    )
    return obs, kind


def _shares(weight: np.ndarray, n: int) -> np.ndarray:
    """Class numbers [n] in the proportions of `weight`, every class at least three times."""
    count = 3 + np.floor((n - 3 * weight.size) * weight / weight.sum()).astype(int)
    count[: n - count.sum()] += 1
    return np.repeat(np.arange(weight.size), count)


def _activities(rng: np.random.Generator, kind: np.ndarray, n_types: int, n_pathways: int) -> np.ndarray:
    """Pathway activities [n, n_pathways]: a profile per type, half of it shared with the type's neighbour."""
    profile = rng.normal(0, 1.0, size=(n_types, n_pathways))
    shared = rng.normal(0, 1.0, size=((n_types + 1) // 2, n_pathways))[np.arange(n_types) // 2]
    profile = np.where(rng.random((n_types, n_pathways)) < 0.65, shared, profile)
    profile -= profile.mean(0)
    common = 0.35 * rng.normal(size=(kind.size, 2)) @ rng.normal(size=(2, n_pathways))  # pathways act together
    return 0.8 * profile[kind] + common + 0.7 * rng.normal(size=(kind.size, n_pathways))


def _readout(rng: np.random.Generator, activity: np.ndarray, member: np.ndarray) -> np.ndarray:
    """What the activities do to each gene [n, n_genes]: a line for some genes, a switch for most."""
    n_genes = member.shape[0]
    sign = np.where(rng.random(member.shape) < 0.9, 1.0, -1.0)
    weight = member * sign * rng.uniform(0.6, 1.2, member.shape) / np.sqrt(np.maximum(member.sum(1, keepdims=True), 1))
    drive = activity @ weight.T
    threshold, slope = rng.normal(0, 1, n_genes), rng.uniform(3, 7, n_genes)
    switch = 1.3 * np.tanh(0.5 * slope * (drive - threshold)) * member.any(1)
    return np.where(rng.random(n_genes) < 0.6, switch, drive)


def _copy_number(rng: np.random.Generator, genes: pd.DataFrame, kind, n_types: int, repair: np.ndarray) -> np.ndarray:
    """log2 copy-number ratio [n, n_genes]: recurrent arms per type, and random segments, more where repair is low."""
    arms, arm = np.unique([band.rstrip("0123456789") for band in genes["cytoband"]], return_inverse=True)
    instability = np.exp(-0.5 * repair)  # [n]
    recurrent = rng.random((n_types, arms.size)) < 0.2
    odds = np.where(recurrent, 0.6, 0.04)[kind] * np.minimum(instability, 1.5)[:, None]
    direction = rng.choice([-0.8, 0.6], size=(n_types, arms.size))[kind]
    cna = ((rng.random(odds.shape) < odds) * direction)[:, arm]
    chromosome, position = pd.factorize(genes["chromosome"])[0], genes["position"].to_numpy()
    sample = np.repeat(np.arange(kind.size), rng.poisson(3 * instability))
    where, start = rng.integers(chromosome.max() + 1, size=sample.size), rng.random(sample.size)
    length, height = rng.exponential(0.15, sample.size), rng.normal(0, 0.7, sample.size)
    for s, c, a, n, h in zip(sample, where, start, length, height, strict=True):
        first, last = np.searchsorted(chromosome, [c, c + 1])
        inside = first + np.searchsorted(position[first:last], [a, a + n])
        cna[s, inside[0] : inside[1]] += h
    return cna


def _expression(rng: np.random.Generator, genes, obs, signal, cna, noise: float) -> np.ndarray:
    """log2(1 + expression) [n, n_genes]: noise is larger where expression is low; sex shows on X and Y."""
    n, n_genes = signal.shape
    level = np.clip(rng.normal(5, 2, n_genes), 0.5, 12)
    female, chromosome = (obs["sex"] == "female").to_numpy(), genes["chromosome"].to_numpy()
    x = level + signal + rng.uniform(0.2, 0.9, n_genes) * cna + _site_effect(rng, obs, n_genes, 0.1)
    escapes = (chromosome == "X") & (rng.random(n_genes) < 0.3)  # from inactivation: two active copies in females
    x += np.outer(female, escapes * rng.uniform(0.4, 1.0, n_genes))
    x[:, chromosome == "Y"] += 2
    x[np.ix_(female, chromosome == "Y")] = -3  # no such gene: background
    spread = 0.35 + 0.9 * np.exp(-level / 3)
    return np.log2(1 + np.exp2(x + noise * spread * rng.normal(size=(n, n_genes))))


def _methylation(rng: np.random.Generator, genes, obs, signal, noise: float) -> np.ndarray:
    """Beta values [n, n_genes]: promoters open or closed, more closed where the gene is silenced."""
    n, n_genes = signal.shape
    level = np.where(rng.random(n_genes) < 0.6, rng.normal(-1.2, 0.7, n_genes), rng.normal(1.2, 0.7, n_genes))
    follows = rng.uniform(0.3, 1.1, n_genes) * (rng.random(n_genes) < 0.85)
    female, chromosome = (obs["sex"] == "female").to_numpy(), genes["chromosome"].to_numpy()
    m = level - follows * signal + _site_effect(rng, obs, n_genes, 0.07)
    m += np.outer(female, (chromosome == "X") * rng.uniform(0.5, 1.5, n_genes))  # the inactive copy is methylated
    m[np.ix_(female, chromosome == "Y")] = 0
    m += noise * 0.45 * rng.normal(size=(n, n_genes))
    return 1 / (1 + np.exp(-m))


def _mutation(rng: np.random.Generator, kind, n_types: int, cna, repair) -> np.ndarray:
    """Mutation score [n, n_genes]: variants per relative coding length, plus the absolute log2 copy number."""
    n_genes = cna.shape[1]
    length = rng.lognormal(0, 0.6, n_genes)
    length /= length.mean()
    driver = rng.random((n_types, n_genes)) < 0.02
    rate = 0.03 * np.exp(-0.6 * repair)[:, None] * length + (driver * rng.uniform(0.2, 0.6, driver.shape))[kind]
    return rng.poisson(rate) / length + np.abs(cna)


def _site_effect(rng: np.random.Generator, obs: pd.DataFrame, n_genes: int, size: float) -> np.ndarray:
    codes = obs["site"].cat.codes.to_numpy()
    return size * rng.normal(size=(codes.max() + 1, n_genes))[codes]


def _survival(rng: np.random.Generator, obs: pd.DataFrame, activity, pathways: list[str], kind, n_types: int):
    """Add stage, survival_months and event to obs; the log hazard [n] of a proportional-hazards model (Cox 1972)."""
    weight = np.array([HAZARD.get(name, 0.0) for name in pathways])
    hazard = activity @ weight + 0.03 * (obs["age"].to_numpy() - 60) + rng.normal(0, 0.4, n_types)[kind]
    death = 90 * (rng.exponential(size=kind.size) / np.exp(hazard)) ** (1 / 1.2)  # Weibull, months
    follow_up = rng.uniform(6, 120, kind.size)
    obs["survival_months"] = np.minimum(death, follow_up).round(2)
    obs["event"] = (death <= follow_up).astype(np.int64)
    seen = np.digitize(hazard + 0.8 * rng.normal(size=kind.size), [-0.6, 0.5, 1.4])
    obs["stage"] = pd.Categorical(np.array(["I", "II", "III", "IV"])[seen], ["I", "II", "III", "IV"])
    return hazard


def _choose(rng: np.random.Generator, genes: pd.DataFrame, n: int) -> np.ndarray:
    """n gene numbers in genomic order, all of Y among them."""
    on_y = (genes["chromosome"] == "Y").to_numpy()
    others = rng.permutation(np.flatnonzero(~on_y))[: n - on_y.sum()]
    return np.sort(np.append(others, np.flatnonzero(on_y)))


def _measured(name: str, n_obs: int, missing: float, seed: int) -> np.ndarray:
    """Row numbers of the samples that have a modality; `missing` of all lack one of the three."""
    rng = np.random.default_rng([seed, 1])
    lacking = rng.permutation(n_obs)[: round(missing * n_obs)]
    which = rng.integers(3, size=lacking.size)
    number = ("rna", "methylation", "mutation").index(name)
    return np.setdiff1d(np.arange(n_obs), lacking[which == number])
