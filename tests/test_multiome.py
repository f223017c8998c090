"""The simulated multiome: every planted structure can be found again, and what is not planted is not there."""

import mudata
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from helpers import datasets, multiome

TRAIN, TEST = slice(0, 1000), slice(1000, None)


@pytest.fixture(scope="module")
def cells():
    return datasets.load("sim-multiome")


@pytest.fixture(scope="module")
def logged(cells):
    """log(1 + counts at mean depth), dense, per modality."""
    dense = {name: adata.X.toarray() for name, adata in cells.mod.items()}
    return {name: np.log1p(x / x.sum(1, keepdims=True) * x.sum(1).mean()) for name, x in dense.items()}


@pytest.fixture(scope="module")
def directions(logged):
    """30 principal components [n_obs, 30] of each modality, features standardised, fitted on the train rows."""
    found = {}
    for name, x in logged.items():
        x = (x - x[TRAIN].mean(0)) / (x[TRAIN].std(0) + 1e-6)
        found[name] = PCA(30, svd_solver="randomized", random_state=0).fit(x[TRAIN]).transform(x)
    return found


@pytest.fixture(scope="module")
def within(cells, logged):
    """Correlation of each gene with each peak among the cells of one type: {type: [n_genes, n_peaks]}."""
    kinds = cells.obs["cell_type"].to_numpy()
    return {
        kind: correlation(logged["rna"][kinds == kind], logged["atac"][kinds == kind])
        for kind in cells.obs["cell_type"].cat.categories
    }


def standard(x):
    x = x - x.mean(0)
    return x / (x.std(0) + 1e-12)


def correlation(x, y):
    return standard(x).T @ standard(y) / len(x)


def pairs(cells):
    """Indices of the genes and peaks of the planted links."""
    table = multiome.links(cells)
    return table, cells["rna"].var_names.get_indexer(table["gene"]), cells["atac"].var_names.get_indexer(table["peak"])


def from_tss(cells):
    """Distance [n_genes, n_peaks] of peaks from the TSS, infinite between chromosomes."""
    genes, peaks = cells["rna"].var, cells["atac"].var
    middle = (peaks["start"] + peaks["end"]).to_numpy() / 2
    same = genes["chromosome"].to_numpy()[:, None] == peaks["chromosome"].to_numpy()
    return np.where(same, middle - genes["tss"].to_numpy()[:, None], np.inf)


# --- form ---


def test_form_and_names(cells):
    assert cells["rna"].shape == (1500, 400) and cells["atac"].shape == (1500, 3000)
    for adata in cells.mod.values():
        x = adata.X
        assert sp.issparse(x) and x.format == "csr" and x.dtype == np.float32 and x.has_sorted_indices
        assert np.array_equal(x.data, np.round(x.data)) and x.data.min() >= 1
        assert x.sum(1).min() > 0 and x.sum(0).min() > 0, "no cell and no feature is empty"
    about = cells.uns["dataset"]
    assert about["modalities"] == {"rna": "counts", "atac": "counts"}
    assert (about["label_key"], about["batch_key"]) == ("cell_type", "site")


def test_chromatin_is_sparse_and_expression_is_not(cells):
    density = {name: adata.X.nnz / np.prod(adata.shape) for name, adata in cells.mod.items()}
    assert 0.04 < density["atac"] < 0.06 and 0.4 < density["rna"] < 0.7


def test_library_sizes_are_the_depths_asked_for(cells):
    deep = multiome.multiome(n_obs=200, rna_depth=3000, atac_depth=600)
    for mdata, wanted in ((cells, (1200, 170)), (deep, (3000, 600))):
        for j, name in enumerate(("rna", "atac")):
            total, depth = np.asarray(mdata[name].X.sum(1)).ravel(), mdata.obsm["truth_depth"][:, j]
            assert depth.mean() == pytest.approx(wanted[j]) and total.mean() == pytest.approx(wanted[j], rel=0.02)
            assert np.corrcoef(total, depth)[0, 1] > 0.85 and depth.std() / depth.mean() > 0.2


def test_genes_and_peaks_have_their_place(cells):
    genes, peaks = cells["rna"].var, cells["atac"].var
    assert (genes["end"] > genes["start"]).all() and (genes["start"] > 0).all()
    assert genes["tss"].equals(genes["start"].where(genes["strand"] == "+", genes["end"]).rename("tss"))
    names = peaks["chromosome"] + ":" + peaks["start"].astype(str) + "-" + peaks["end"].astype(str)
    assert list(names) == list(peaks.index) and peaks.index.is_unique and (peaks["start"] > 0).all()
    for place in (genes, peaks):
        first = "tss" if "tss" in place else "start"
        assert (place.groupby("chromosome")[first].diff().dropna() > 0).all(), "in genomic order"
        assert place["chromosome"].nunique() == 6 and place["chromosome"].is_monotonic_increasing
    apart = peaks.groupby("chromosome")["start"].diff().dropna()
    assert apart.min() >= multiome.WIDTH + multiome.GAP, "peaks do not overlap"
    assert peaks["role"].value_counts().to_dict() == {r: round(3000 * s) for r, s in multiome.ROLES.items()}


def test_the_table_of_links_says_where_they_are(cells):
    table, gene, peak = pairs(cells)
    assert len(table) == 450 and table["peak"].is_unique and table["gene"].nunique() == 280
    assert set(cells["atac"].var["role"].iloc[peak]) == {"enhancer"}
    assert np.array_equal(from_tss(cells)[gene, peak], table["distance"])
    types = table["types"].str.split(";")
    assert set(types.explode()) == set(cells.obs["cell_type"].cat.categories) and set(types.map(len)) == {1, 2}
    assert set(table["sign"]) == {-1.0, 1.0} and (table["sign"] < 0).mean() == pytest.approx(0.15, abs=0.04)
    assert table["strength"].between(0.8, 1.2).all()


def test_links_are_rarer_far_from_the_gene_and_decoys_lie_as_far(cells):
    table, gene, _ = pairs(cells)
    away = table["distance"].abs()
    assert away.max() <= multiome.WINDOW and abs((table["distance"] > 0).mean() - 0.5) < 0.07
    counts = np.histogram(away, [0, 20e3, 40e3, 60e3, 100e3])[0]
    assert np.all(np.diff(counts) < 0) and counts[1] / counts[0] == pytest.approx(np.exp(-20 / 25), abs=0.12)
    decoys = np.abs(from_tss(cells)[:, cells["atac"].var["role"] == "decoy"])
    nearest = np.sort(np.abs(decoys[gene] - away.to_numpy()[:, None]), axis=1)[:, : multiome.N_DECOYS]
    assert nearest.max() < multiome.JITTER + 5000 and np.median(nearest) < multiome.JITTER


def test_pseudotime_runs_through_the_stages_of_the_lineage(cells):
    time, kind = cells.obs["pseudotime"], cells.obs["cell_type"]
    assert time.notna().equals(kind.isin(multiome.LINEAGE)) and time.min() >= 0 and time.max() <= 1
    assert list(kind[time.sort_values().dropna().index].drop_duplicates()) == list(multiome.LINEAGE)
    assert kind.value_counts().min() >= 100 and cells.obs["site"].value_counts().min() >= 100


def test_it_survives_h5mu_with_its_truth(cells, tmp_path):
    cells.write(tmp_path / "multiome.h5mu")
    for again in (mudata.read_h5mu(tmp_path / "multiome.h5mu"), datasets.load(tmp_path / "multiome.h5mu")):
        for name in cells.mod:
            assert again[name].X.format == "csr" and (again[name].X != cells[name].X).nnz == 0
            assert again[name].var.astype(str).equals(cells[name].var.astype(str))
        assert multiome.links(again).equals(multiome.links(cells))
        assert multiome.factors(again).equals(multiome.factors(cells))
        assert np.array_equal(again.obsm["truth_factors"], cells.obsm["truth_factors"])
        assert np.array_equal(again.obs["pseudotime"], cells.obs["pseudotime"], equal_nan=True)


# --- what is planted is found again ---


@pytest.mark.parametrize("name", ["rna", "atac"])
def test_types_are_found_by_neighbours_in_principal_components(cells, directions, name):
    z, kind = directions[name], cells.obs["cell_type"].to_numpy()
    assert KNeighborsClassifier(15).fit(z[TRAIN], kind[TRAIN]).score(z[TEST], kind[TEST]) > 0.94


@pytest.mark.parametrize(("name", "least"), [("rna", 0.93), ("atac", 0.9)])
def test_pseudotime_is_in_both_modalities(cells, directions, name, least):
    time = cells.obs["pseudotime"].to_numpy()
    z, train = directions[name], np.arange(len(time)) < 1000
    model = RidgeCV(np.logspace(-2, 4, 13)).fit(z[train & ~np.isnan(time)], time[train & ~np.isnan(time)])
    assert model.score(z[~train & ~np.isnan(time)], time[~train & ~np.isnan(time)]) > least


@pytest.mark.parametrize(("name", "least"), [("rna", 0.9), ("atac", 0.6)])
def test_sites_are_in_both_modalities(cells, directions, name, least):
    z, site = directions[name], cells.obs["site"].to_numpy()
    commonest = cells.obs["site"].value_counts(normalize=True).max()
    assert LogisticRegression(max_iter=500).fit(z[TRAIN], site[TRAIN]).score(z[TEST], site[TEST]) > least > commonest


def test_every_factor_is_in_expression(cells, directions):
    z, truth = directions["rna"], cells.obsm["truth_factors"]
    found = RidgeCV(np.logspace(-2, 4, 13)).fit(z[TRAIN], truth[TRAIN]).predict(z[TEST])
    assert r2_score(truth[TEST], found, multioutput="raw_values").min() > 0.7


def test_activities_have_unit_spread_within_a_type_and_types_differ(cells):
    truth, kind = cells.obsm["truth_factors"], cells.obs["cell_type"].to_numpy()
    names = [one for one in np.unique(kind) if one not in multiome.LINEAGE]
    assert np.mean([truth[kind == one].std(0) for one in names]) == pytest.approx(1, abs=0.03)
    assert np.std([truth[kind == one].mean(0) for one in names], axis=0).mean() > 0.25


def test_links_act_in_their_types_only_and_decoys_not_at_all(cells, within):
    table, gene, peak = pairs(cells)
    found = np.array([within[kind][gene, peak] * table["sign"] for kind in within]).T  # [links, types]
    acts = np.array([[kind in types.split(";") for kind in within] for types in table["types"]])
    assert found[acts].mean() > 0.17 and np.mean(found[acts] > 0) > 0.93
    assert abs(found[~acts].mean()) < 0.01
    decoy, near = (cells["atac"].var["role"] == "decoy").to_numpy(), np.abs(from_tss(cells)) <= multiome.WINDOW
    mean = np.array([of_type[near & decoy].mean() for of_type in within.values()])
    assert np.abs(mean).max() < 0.02, "decoys follow no gene near them on average"


def test_decoys_move_as_much_as_links(cells, logged):
    """So that a peak's own variance does not give the links away."""
    role, variance = cells["atac"].var["role"].to_numpy(), logged["atac"].var(0)
    ratio = variance[role == "enhancer"].mean() / variance[role == "decoy"].mean()
    assert 0.9 < ratio < 1.1
    assert roc_auc_score(
        role[np.isin(role, ["enhancer", "decoy"])] == "enhancer", variance[np.isin(role, ["enhancer", "decoy"])]
    ) == pytest.approx(0.5, abs=0.05)


def test_who_knows_the_factors_ranks_links_above_correlation_and_distance(cells, logged):
    """Candidates: all peaks within 100 kb. Score: covariance through the factors, the largest over types."""
    kinds, scores = cells.obs["cell_type"].to_numpy(), []
    for kind in np.unique(kinds):
        z = standard(cells.obsm["truth_factors"][kinds == kind])
        gene, peak = (ridge(z, logged[m][kinds == kind]) for m in ("rna", "atac"))
        scores.append(np.abs((gene / np.linalg.norm(gene, axis=0)).T @ peak))
    distance = np.abs(from_tss(cells))
    near, linked = distance <= multiome.WINDOW, np.zeros(distance.shape, bool)
    linked[pairs(cells)[1:]] = True
    spearman = np.abs(correlation(*(rankdata(logged[m], axis=0) for m in ("rna", "atac"))))
    known, all_cells, alone = (roc_auc_score(linked[near], s[near]) for s in (np.max(scores, 0), spearman, -distance))
    assert known > 0.9 and known > all_cells + 0.15 and known > alone + 0.15 and min(all_cells, alone) > 0.55


def ridge(z, x):
    """Coefficients [n_factors, n_features] of x on z [n_obs, n_factors]."""
    return np.linalg.solve(z.T @ z + 10 * np.eye(z.shape[1]), z.T @ (x - x.mean(0)))


def test_factors_open_or_close_the_peaks_with_their_motif(cells, within):
    table, motifs = multiome.factors(cells), cells["atac"].var["motifs"].to_numpy()
    assert list(table["gene"][:2]) == ["TF01", "TF02"] and (table["sign"] < 0).sum() == 4
    mean = np.mean(list(within.values()), axis=0)[cells["rna"].var_names.get_indexer(table["gene"])]
    for j, (name, sign) in enumerate(zip(table["gene"], table["sign"], strict=True)):
        assert (motifs == name).sum() == 50
        assert sign * mean[j, motifs == name].mean() > 0.05
        assert abs(mean[j, motifs == ""].mean()) < 0.01


def test_factors_raise_or_lower_their_targets(cells, logged):
    kind, of = cells.obs["cell_type"].to_numpy(), cells["rna"].var["factors"].str.split(";")
    x = logged["rna"].copy()
    for one in np.unique(kind):
        x[kind == one] -= x[kind == one].mean(0)
    found = correlation(x, cells.obsm["truth_factors"])
    table = multiome.factors(cells)
    for j, (name, sign) in enumerate(zip(table["gene"], table["sign"], strict=True)):
        main = (of.str[0] == name) & (cells["rna"].var_names != name)
        assert main.sum() >= 20 and np.all(sign * found[main, j] > 0) and sign * found[main, j].mean() > 0.3
        assert found[cells["rna"].var_names == name, j] > 0.5, (
            "a factor's own gene follows its activity, whatever its sign"
        )
        rest = ~of.map(lambda names, name=name: name in names)
        assert roc_auc_score(main[main | rest], sign * found[main | rest, j]) > 0.99


def test_neighbours_have_other_main_factors(cells):
    main = cells["rna"].var["factors"].str.split(";").str[0]
    assert (main.to_numpy()[1:] == main.to_numpy()[:-1]).mean() < 0.03


# --- noise, sizes, and the same again ---


@pytest.mark.parametrize("dispersion", [0.0, 0.5])
def test_counts_are_negative_binomial(dispersion):
    """One rate of 4 for all: the variance is 4 + dispersion * 16."""
    rng = np.random.default_rng(0)
    x = multiome._counts(rng, np.ones((2000, 1), np.float32), np.zeros((1, 100)), np.full(2000, 400.0), dispersion)
    values = x.toarray()
    assert values.mean() == pytest.approx(4, rel=0.01) and values.var() == pytest.approx(4 + dispersion * 16, rel=0.02)


def test_noise_spreads_counts_and_changes_nothing_else():
    quiet, loud = (multiome.multiome(n_obs=400, noise=noise) for noise in (0, 4))
    assert np.array_equal(quiet.obsm["truth_factors"], loud.obsm["truth_factors"])
    assert multiome.links(quiet).equals(multiome.links(loud)) and quiet.obs.equals(loud.obs)
    fano = [np.mean(m["rna"].X.toarray().var(0) / m["rna"].X.toarray().mean(0)) for m in (quiet, loud)]
    assert fano[1] > 1.3 * fano[0]


def test_drawing_in_blocks_leaves_no_seam(monkeypatch):
    monkeypatch.setattr(multiome, "BLOCK", 40_000)  # 13 cells of 3000 peaks
    mdata = multiome.multiome(n_obs=300)
    total = np.asarray(mdata["atac"].X.sum(1)).ravel()
    assert mdata["atac"].shape == (300, 3000) and np.corrcoef(total, mdata.obsm["truth_depth"][:, 1])[0, 1] > 0.85


def test_the_same_seed_gives_the_same_and_another_seed_another():
    sizes = {"n_obs": 100, "n_genes": 60, "n_peaks": 300}
    one, same, other = (multiome.multiome(**sizes, seed=seed) for seed in (3, 3, 4))
    for name in ("rna", "atac"):
        assert (one[name].X != same[name].X).nnz == 0
        assert (one[name].X != other[name].X).nnz > 100
    assert one.uns["dataset"]["sha256"] == same.uns["dataset"]["sha256"]


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_obs": 40, "n_genes": 16, "n_peaks": 100, "n_types": 4, "n_sites": 1, "n_factors": 4},
        {"n_obs": 160, "n_genes": 60, "n_peaks": 6000, "n_types": 16, "n_sites": 5},
    ],
    ids=["smallest", "crowded"],
)
def test_extreme_sizes_are_filled(sizes):
    mdata = multiome.multiome(**sizes)
    assert mdata["rna"].shape == (sizes["n_obs"], sizes["n_genes"]) and mdata["atac"].n_vars == sizes["n_peaks"]
    assert mdata.obs["cell_type"].nunique() == sizes["n_types"] and mdata.obs["site"].nunique() == sizes["n_sites"]
    assert multiome.links(mdata)["distance"].abs().max() <= multiome.WINDOW and mdata["atac"].var_names.is_unique
    assert all(np.asarray(adata.X.sum(1)).min() > 0 for adata in mdata.mod.values())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n_types": 3}, "n_types=3 must be from 4 to 16"),
        ({"n_obs": 70}, "n_obs=70 is too few for 8 types; at least 80"),
        ({"n_genes": 40}, "n_factors=12 must be from 4 to a quarter of n_genes=40"),
        ({"n_factors": 3}, "n_factors=3 must be from 4"),
        ({"n_peaks": 50}, "n_peaks=50 must be from 100"),
        ({"n_peaks": 50_000}, "to 100 for each of n_genes=400"),
        ({"n_sites": 0}, "n_sites=0 must be at least 1"),
        ({"atac_depth": 10}, "atac_depth=10 must be at least 50 counts per cell"),
        ({"rna_depth": 0}, "rna_depth=0 must be at least 50"),
        ({"noise": -1}, "noise=-1 must be >= 0"),
    ],
)
def test_what_it_cannot_fill_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        multiome.multiome(**wrong)


@pytest.mark.parametrize(("read", "what"), [(multiome.links, "links"), (multiome.factors, "factors")])
def test_other_data_have_no_planted_tables(read, what):
    with pytest.raises(ValueError, match=f"'sim-embryo' has no planted {what}; only data of sim-multiome"):
        read(datasets.load("sim-embryo", n_obs=10))
