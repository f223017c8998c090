"""Expression that regulators drive through a sparse network, with activities, edges and weights known."""

from __future__ import annotations

import numpy as np
import pandas as pd
from mudata import MuData
from scipy.special import gammaincinv

from helpers.checks import Parts, assemble, part

SHAPE = 2.0  # of the gamma distribution of activities, at scale 1; the paper does not print its own
LEVELS = ("low", "middle", "high")  # of a sample's total activity, a third of all samples each


def network(
    n_obs: int = 600,
    n_genes: int = 1000,
    n_regulators: int = 100,
    density: float = 0.1,
    noise: float = 0.2,
    seed: int = 0,
) -> MuData:
    """Expression of genes under regulators, the simulation of Schuster & Krogh 2021 (Entropy 23:1403, equation 6).

    x_i = ReLU(sum_j a_ij w_ij z_j + e_i) with edges a_ij of 0 or 1, a share `density` of them 1; weights w_ij uniform
    in -1..1 (strength and sign); activities z_j >= 0 from a gamma distribution; e_i normal with standard deviation
    `noise`. The paper describes 0.2 and uses 0 where it varies the load of the decoder. It prints neither the range
    of the weights nor the parameters of the gamma distribution: those are chosen here (`SHAPE`, scale 1).

    Modality: `rna` [n_obs, n_genes] >= 0. `rna.var["regulators"]` names the regulators of each gene, which a sparse
    decoder may know: `ontology.planted(mdata, key="regulators")` makes a mask of them. Genes that nearly all of their
    regulators lower are 0 everywhere. Truth: `obsm["truth_regulators"]` [n_obs, n_regulators] activities, named in
    `uns["truth"]`, and what `weights` reads. `obs`: level (of the total activity: low, middle, high). The network
    depends on the seed and its own sizes alone, and more samples leave the first ones as they are: training sets of
    several sizes can share their network and test samples.

    The same arguments give identical arrays. Raises ValueError for sizes, density or noise that make no network.
    Introduced in notebook 05.
    """
    _check_network(n_obs, n_genes, n_regulators, density, noise)
    wiring, cells, errors = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    edges = _edges(wiring, n_genes, n_regulators, density)
    strength = edges * wiring.uniform(-1, 1, edges.shape)
    activity = cells.gamma(SHAPE, size=(n_obs, n_regulators))
    drive = activity @ strength.T + noise * errors.standard_normal((n_obs, n_genes))
    names = [f"sample{i + 1:05d}" for i in range(n_obs)]
    genes = np.array([f"GENE{i + 1:04d}" for i in range(n_genes)])
    regulators = np.array([f"R{j + 1:03d}" for j in range(n_regulators)])
    var = pd.DataFrame({"regulators": [";".join(regulators[row]) for row in edges]}, index=genes)
    rna = part(np.maximum(drive, 0), names, var)
    obs = pd.DataFrame({"level": _levels(activity)}, index=names)
    truth = {"regulators": regulators, "genes": genes, "weights": strength}
    found = {"kinds": {"rna": "continuous"}, "obsm": {"truth_regulators": activity}, "uns": {"truth": truth}}
    return assemble(Parts({"rna": rna}, obs, "sim-regulation", label_key="level", **found))


def weights(mdata: MuData) -> pd.DataFrame:
    """The planted weights of the genes that are still in `rna`, [genes, regulators]; 0 where there is no edge.

    Raises ValueError for data without them. Introduced in notebook 05.
    """
    truth = mdata.uns.get("truth", {})
    if "weights" not in truth or "rna" not in mdata.mod:
        name = str(mdata.uns.get("dataset", {}).get("name", "this data set"))
        raise ValueError(f"'{name}' has no planted weights; load sim-regulation")
    planted = pd.DataFrame(truth["weights"], list(truth["genes"]), list(truth["regulators"]))
    return planted.loc[mdata["rna"].var_names]


def _check_network(n_obs: int, n_genes: int, n_regulators: int, density: float, noise: float) -> None:
    if n_obs < 10:
        raise ValueError(f"n_obs={n_obs} must be at least 10")
    if not 2 <= n_regulators < n_genes:
        raise ValueError(f"n_regulators={n_regulators} must be at least 2 and fewer than n_genes={n_genes}")
    if not 1 / n_regulators <= density <= 1:
        raise ValueError(f"density={density} must be from {1 / n_regulators:g} (one regulator a gene) to 1")
    if noise < 0:
        raise ValueError(f"noise={noise} must be >= 0; it is a standard deviation")


def _edges(rng: np.random.Generator, n_genes: int, n_regulators: int, density: float) -> np.ndarray:
    """Which regulator acts on which gene [n_genes, n_regulators]: exactly the share `density` of all pairs."""
    n = n_genes * n_regulators
    return (rng.permutation(n) < round(density * n)).reshape(n_genes, n_regulators)


def _levels(activity: np.ndarray) -> pd.Categorical:
    """Thirds of the total activity by its own gamma distribution, so that they do not depend on the other samples."""
    edges = gammaincinv(SHAPE * activity.shape[1], [1 / 3, 2 / 3])
    return pd.Categorical.from_codes(np.digitize(activity.sum(1), edges), list(LEVELS), ordered=True)
