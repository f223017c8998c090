"""What `simulate.bulk` plants is found again, and what it promises holds."""

import mudata
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from helpers import simulate

MODALITIES = ("rna", "methylation", "mutation")


@pytest.fixture(scope="module")
def bulk():
    return simulate.bulk(seed=3)


def standardised(x):
    return (x - x.mean(0)) / (x.std(0) + 1e-6)


def correlation(a, b):
    """Pearson r of matching columns."""
    return (standardised(np.asarray(a)) * standardised(np.asarray(b))).mean(0)


def test_default_has_the_promised_shape(bulk):
    assert {m: bulk[m].shape for m in bulk.mod} == {
        "rna": (1000, 600),
        "methylation": (1000, 500),
        "mutation": (1000, 400),
    }
    assert all(bulk[m].X.dtype == np.float32 and np.isfinite(bulk[m].X).all() for m in bulk.mod)
    assert bulk.uns["dataset"]["modalities"] == {"rna": "continuous", "methylation": "unit", "mutation": "continuous"}
    assert (bulk.uns["dataset"]["label_key"], bulk.uns["dataset"]["batch_key"]) == ("cancer_type", "site")
    assert not any(column.startswith(MODALITIES) for column in bulk.obs)


def test_values_lie_in_their_ranges(bulk):
    assert bulk["rna"].X.min() >= 0
    assert 0 <= bulk["methylation"].X.min() < 0.1 and 0.9 < bulk["methylation"].X.max() <= 1
    assert bulk["mutation"].X.min() >= 0
    assert bulk.obs["age"].between(18, 92).all() and (bulk.obs["survival_months"] > 0).all()
    assert set(bulk.obs["event"]) == {0, 1}


def test_same_seed_gives_identical_arrays_and_another_seed_does_not(bulk):
    again, other = simulate.bulk(seed=3), simulate.bulk(seed=4)
    for name in MODALITIES:
        assert np.array_equal(bulk[name].X, again[name].X)
        assert bulk[name].var.equals(again[name].var)
        assert not np.array_equal(bulk[name].X, other[name].X)
    assert bulk.obs.equals(again.obs)
    assert np.array_equal(bulk.obsm["truth_pathways"], again.obsm["truth_pathways"])
    assert bulk.uns["dataset"]["sha256"] == again.uns["dataset"]["sha256"] != other.uns["dataset"]["sha256"]


@pytest.mark.parametrize(("modality", "at_least"), [("rna", 0.9), ("methylation", 0.85)])
def test_planted_activities_are_recovered_on_held_out_samples(bulk, modality, at_least):
    x, truth = standardised(bulk[modality].X), bulk.obsm["truth_pathways"]
    fitted = Ridge(300).fit(x[:600], truth[:600])
    recovered = r2_score(truth[600:], fitted.predict(x[600:]), multioutput="raw_values")
    assert recovered.min() > at_least - 0.15 and recovered.mean() > at_least


def test_members_of_a_pathway_follow_its_activity(bulk):
    member = bulk["rna"].var["pathways"].str.get_dummies(";")
    x = standardised(bulk["rna"].X)
    for i, pathway in enumerate(bulk.uns["truth"]["pathways"]):
        score = x[:, member[pathway].to_numpy() == 1].mean(1)
        assert np.corrcoef(score, bulk.obsm["truth_pathways"][:, i])[0, 1] > 0.8


def test_part_of_the_readout_saturates(bulk):
    """Genes of one pathway: a curve explains some of them far better than a line, as PCA cannot."""
    truth, gain = bulk.obsm["truth_pathways"], []
    for i, pathway in enumerate(bulk.uns["truth"]["pathways"]):
        genes = (bulk["rna"].var["pathways"] == pathway).to_numpy()
        a, x = truth[:, i], bulk["rna"].X[:, genes]
        line, curve = (np.polynomial.polynomial.polyfit(a, x, deg) for deg in (1, 5))
        left = [((x - np.polynomial.polynomial.polyval(a, c).T) ** 2).mean(0) for c in (line, curve)]
        gain.append(1 - left[1] / left[0])
    gain = np.concatenate(gain)
    assert 0.2 < (gain > 0.15).mean() < 0.9


def test_memberships_overlap_and_leave_some_genes_out(bulk):
    count = bulk["rna"].var["pathways"].str.split(";").map(lambda names: len([n for n in names if n]))
    assert set(count) == {0, 1, 2}
    named = {name for names in bulk["rna"].var["pathways"] for name in names.split(";")} - {""}
    assert named == set(bulk.uns["truth"]["pathways"])


def test_cancer_types_are_unequal_and_overlap_a_little(bulk):
    labels = bulk.obs["cancer_type"]
    share = labels.value_counts(normalize=True)
    assert len(share) == 8 and share.max() > 2 * share.min()
    z = PCA(20, random_state=0).fit_transform(standardised(bulk["rna"].X))
    accuracy = cross_val_score(KNeighborsClassifier(15), z, labels, cv=5).mean()
    assert share.max() + 0.3 < accuracy < 0.97


def test_methylation_falls_where_the_same_gene_is_expressed(bulk):
    rna, methylation = bulk["rna"], bulk["methylation"]
    on_sex = rna.var_names[rna.var["chromosome"].isin(["X", "Y"])]
    shared = rna.var_names[rna.var["pathways"] != ""].intersection(methylation.var_names).difference(on_sex)
    r = correlation(rna[:, shared].X, methylation[:, shared].X)
    shuffled = correlation(rna[:, shared].X, methylation[:, np.roll(shared, 1)].X)
    assert len(shared) > 100 and np.median(r) < -0.4 and abs(np.median(shuffled)) < 0.15


def test_copy_number_comes_in_segments_along_chromosomes(bulk):
    x, band = bulk["mutation"].X, bulk["mutation"].var["cytoband"].to_numpy()
    within = correlation(x[:, :-1], x[:, 1:])[band[:-1] == band[1:]]
    across = correlation(x, np.roll(x, x.shape[1] // 2, axis=1))
    assert np.median(within) > 0.3 and abs(np.median(across)) < 0.1


def test_copy_number_has_dosage_in_expression(bulk):
    """What pathways leave unexplained goes together between neighbours on a chromosome, as their copy number does."""
    x, band, truth = bulk["rna"].X, bulk["rna"].var["cytoband"].to_numpy(), bulk.obsm["truth_pathways"]
    features = np.hstack([truth, truth**2, truth**3])
    left = x - Ridge(1).fit(features, x).predict(features)
    within = correlation(left[:, :-1], left[:, 1:])[(band[:-1] == band[1:]) & (band[1:] != "Yq11")]
    across = correlation(left, np.roll(left, left.shape[1] // 2, axis=1))
    assert np.median(within) > 0.04 + np.median(across)


def test_sex_is_read_from_y_genes_and_x_responds(bulk):
    rna, female = bulk["rna"], (bulk.obs["sex"] == "female").to_numpy()
    y = rna.X[:, (rna.var["chromosome"] == "Y").to_numpy()].mean(1)
    assert ((y < 2) == female).mean() == 1.0
    assert y[female].max() < 1 < y[~female].min()
    types = bulk.obs.groupby("cancer_type", observed=True)["sex"].apply(lambda s: (s == "female").mean())
    assert types["ovary"] == 1 and types["prostate"] == 0 and 0.2 < types["lung"] < 0.7
    x_genes = (bulk["methylation"].var["chromosome"] == "X").to_numpy()
    gap = bulk["methylation"].X[female].mean(0) - bulk["methylation"].X[~female].mean(0)
    assert gap[x_genes].mean() > 0.05 > abs(gap[~x_genes & (bulk["methylation"].var["chromosome"] != "Y")].mean())


def test_high_hazard_dies_earlier_and_survival_follows_the_planted_pathways(bulk):
    hazard, obs = bulk.obsm["truth_log_hazard"][:, 0], bulk.obs
    concordance = concordance_index(obs["survival_months"].to_numpy(), obs["event"].to_numpy(), hazard)
    assert 0.65 < concordance < 0.9
    names = list(bulk.uns["truth"]["pathways"])
    log_time = np.log(obs["survival_months"].to_numpy())
    effect = Ridge(1).fit(bulk.obsm["truth_pathways"], log_time).coef_  # a longer life where the hazard is lower
    for pathway, weight in simulate.HAZARD.items():
        assert np.sign(effect[names.index(pathway)]) == -np.sign(weight)
        assert abs(effect[names.index(pathway)]) > 0.1
    assert obs.groupby("stage", observed=True)["event"].mean().is_monotonic_increasing


def concordance_index(time, event, risk):
    """Harrell's C: of the pairs whose order of death is known, how many died in the order of their risk."""
    first = (time[:, None] < time[None]) & (event[:, None] == 1)
    return (risk[:, None] > risk[None])[first].mean()


def test_features_are_annotated_with_chromosomes_of_realistic_size(bulk):
    var = bulk["rna"].var
    assert set(var["chromosome"]) <= {*map(str, range(1, 23)), "X", "Y"}
    assert (var["chromosome"] == "1").sum() > 3 * (var["chromosome"] == "21").sum()
    assert all(
        band.startswith(c) and band[len(c)] in "pq" for c, band in zip(var["chromosome"], var["cytoband"], strict=True)
    )
    assert len(bulk["rna"].var_names.intersection(bulk["mutation"].var_names)) > 100


def test_site_has_a_small_effect(bulk):
    x = standardised(bulk["rna"].X)
    groups = bulk.obs["site"].cat.codes.to_numpy()
    residual = x - np.vstack([x[bulk.obs["cancer_type"] == t].mean(0) for t in bulk.obs["cancer_type"]])
    between = np.var([residual[groups == g].mean(0) for g in set(groups)], axis=0).mean()
    null = np.random.default_rng(0).permutation(groups)
    chance = np.var([residual[null == g].mean(0) for g in set(null)], axis=0).mean()
    assert 1.3 * chance < between < 0.05


def test_noise_is_larger_where_expression_is_low(bulk):
    clean = simulate.bulk(seed=3, noise=0.0)["rna"].X
    spread, level = (bulk["rna"].X - clean).std(0), clean.mean(0)
    on_y = (bulk["rna"].var["chromosome"] == "Y").to_numpy()
    assert np.corrcoef(spread[~on_y & (level > 1.5)], level[~on_y & (level > 1.5)])[0, 1] < -0.5


def test_missing_makes_a_mosaic_in_which_no_sample_is_lost():
    mosaic = simulate.bulk(n_obs=200, n_rna=100, n_methylation=80, n_mutation=60, missing=0.3)
    assert mosaic.n_obs == 200
    assert sum(200 - mosaic[m].n_obs for m in MODALITIES) == 60
    assert all(mosaic[m].n_obs < 200 for m in MODALITIES)
    whole = simulate.bulk(n_obs=200, n_rna=100, n_methylation=80, n_mutation=60)
    assert np.array_equal(mosaic["rna"].X, whole["rna"][mosaic["rna"].obs_names].X)
    assert mosaic.obs.equals(whole.obs)


def test_sizes_are_free_and_wrong_ones_are_refused():
    small = simulate.bulk(n_obs=60, n_rna=60, n_methylation=50, n_mutation=90, n_types=16, n_pathways=25, n_sites=1)
    assert [small[m].n_vars for m in MODALITIES] == [60, 50, 90]
    assert small.obs["cancer_type"].value_counts().min() >= 3 and small.obsm["truth_pathways"].shape == (60, 25)
    for wrong in ({"n_obs": 10}, {"n_types": 17}, {"n_rna": 20}, {"n_pathways": 2}, {"noise": -1}, {"missing": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            simulate.bulk(**wrong)


def test_survives_h5mu(bulk, tmp_path):
    bulk.write(tmp_path / "bulk.h5mu")
    back = mudata.read_h5mu(tmp_path / "bulk.h5mu")
    assert list(back.uns["truth"]["pathways"]) == list(bulk.uns["truth"]["pathways"])
    assert np.array_equal(back.obsm["truth_pathways"], bulk.obsm["truth_pathways"])
