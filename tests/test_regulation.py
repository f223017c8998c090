"""The simulated regulatory network: its formula holds, and what is planted can be found again."""

import numpy as np
import pytest
from mudata import MuData

from helpers import datasets, ontology, regulation


@pytest.fixture(scope="module")
def clean():
    return regulation.network(n_obs=300, n_genes=400, n_regulators=40, noise=0)


def planted(mdata):
    """Activities [n_obs, m], weights [n, m] and edges [n, m]."""
    weights = regulation.weights(mdata).to_numpy()
    names = mdata.uns["truth"]["regulators"]
    edges = [[name in of.split(";") for name in names] for of in mdata["rna"].var["regulators"]]
    return mdata.obsm["truth_regulators"], weights, np.array(edges, float)


# --- form ---


def test_form_and_names():
    mdata = datasets.load("sim-regulation")
    z, w, a = planted(mdata)
    assert mdata["rna"].shape == (600, 1000) and z.shape == (600, 100) and w.shape == a.shape == (1000, 100)
    assert mdata["rna"].X.dtype == np.float32 and mdata["rna"].X.min() == 0 and z.min() > 0
    assert mdata.uns["dataset"]["modalities"] == {"rna": "continuous"}
    assert list(mdata.uns["truth"]["regulators"][[0, 99]]) == ["R001", "R100"]


@pytest.mark.parametrize("density", [0.05, 0.1, 1.0])
def test_edges_are_exactly_the_share_asked_for(density):
    _, w, a = planted(regulation.network(n_obs=10, n_genes=200, n_regulators=40, density=density))
    assert set(np.unique(a)) <= {0, 1} and a.mean() == pytest.approx(density, abs=1e-9)
    assert np.array_equal(w != 0, a == 1), "there is a weight where there is an edge, and nowhere else"


def test_weights_are_uniform_and_activities_gamma():
    z, w, _ = planted(regulation.network())
    weights = w[w != 0]
    assert np.abs(weights).max() <= 1 and abs(weights.mean()) < 0.02 and weights.var() == pytest.approx(1 / 3, rel=0.02)
    assert z.mean() == pytest.approx(regulation.SHAPE, rel=0.02) and z.var() == pytest.approx(
        regulation.SHAPE, rel=0.03
    )
    assert np.abs(np.corrcoef(z.T)[np.triu_indices(100, 1)]).mean() < 0.05, "regulators act independently"


def test_levels_are_thirds_of_the_total_activity(clean):
    mdata = regulation.network(n_obs=3000, n_genes=60, n_regulators=50)
    level, total = mdata.obs["level"], mdata.obsm["truth_regulators"].sum(1)
    assert list(level.cat.categories) == list(regulation.LEVELS) and level.cat.ordered
    assert np.abs(level.value_counts(normalize=True) - 1 / 3).max() < 0.03
    assert np.all(np.diff(level.cat.codes.to_numpy()[np.argsort(total)]) >= 0)
    assert clean.obs["level"].nunique() == 3


def test_it_survives_h5mu_with_its_truth(clean, tmp_path):
    clean.write(tmp_path / "network.h5mu")
    again = datasets.load(tmp_path / "network.h5mu")
    assert np.array_equal(again["rna"].X, clean["rna"].X)
    assert all(np.array_equal(one, two) for one, two in zip(planted(again), planted(clean), strict=True))
    assert again.uns["dataset"]["label_key"] == "level"


# --- the formula ---


def test_expression_is_what_equation_6_says(clean):
    z, w, a = planted(clean)
    for s, i in [(0, 0), (7, 33), (299, 399), (120, 5)]:
        total = sum(a[i, j] * w[i, j] * z[s, j] for j in range(z.shape[1]))
        assert clean["rna"].X[s, i] == pytest.approx(max(total, 0.0), rel=1e-5, abs=1e-6)


def test_noise_is_normal_and_added_before_the_rectifier(clean):
    noisy = regulation.network(n_obs=300, n_genes=400, n_regulators=40, noise=0.2)
    z, w, _ = planted(noisy)
    error, drive = noisy["rna"].X - z @ w.T, z @ w.T
    expressed, border = error[drive > 1], noisy["rna"].X[np.abs(drive) < 0.01]
    assert expressed.std() == pytest.approx(0.2, rel=0.02) and abs(expressed.mean()) < 0.005
    assert np.mean(border == 0) == pytest.approx(0.5, abs=0.05), "noise moves a gene across the border either way"
    assert np.array_equal(z, clean.obsm["truth_regulators"]), "noise changes nothing else"


def test_activities_are_found_again_from_expression_and_weights(clean):
    """By least squares on the genes that are expressed: what a decoder that knows the weights could do at best."""
    z, w, _ = planted(clean)
    x = clean["rna"].X.astype(float)
    found = np.array([np.linalg.lstsq(w[row > 0], row[row > 0], rcond=None)[0] for row in x[:100]])
    assert np.abs(found - z[:100]).max() < 1e-3


def test_weights_are_found_again_from_activities_and_edges(clean):
    """Noise below zero is cut away, so only samples in which a gene is expressed count."""
    z, w, a = planted(clean)
    x = clean["rna"].X.astype(float)
    often = np.flatnonzero((x > 0).sum(0) > 20)
    assert len(often) > 250
    for i in often[:100]:
        on, edges = x[:, i] > 0, a[i] == 1
        assert np.abs(np.linalg.lstsq(z[on][:, edges], x[on, i], rcond=None)[0] - w[i, edges]).max() < 1e-3


# --- the same again ---


def test_the_same_seed_gives_the_same_and_another_seed_another():
    one, same, other = (regulation.network(n_obs=20, n_genes=50, n_regulators=10, seed=s) for s in (3, 3, 4))
    assert np.array_equal(one["rna"].X, same["rna"].X)
    assert not np.array_equal(planted(one)[2], planted(other)[2])


def test_more_samples_leave_the_first_and_the_network_as_they_are():
    few, many = (regulation.network(n_obs=n, n_genes=50, n_regulators=10) for n in (20, 500))
    assert np.array_equal(planted(few)[1], planted(many)[1])
    assert np.array_equal(planted(few)[0], planted(many)[0][:20])
    assert np.allclose(few["rna"].X, many["rna"].X[:20], rtol=1e-6, atol=1e-6)
    assert few.obs["level"].tolist() == many.obs["level"].tolist()[:20]


def test_weights_follow_the_genes_that_are_kept_and_other_data_have_none(clean):
    few = MuData({"rna": clean["rna"][:, [5, 2]].copy()})
    few.uns["truth"] = clean.uns["truth"]
    found = regulation.weights(few)
    assert list(found.index) == ["GENE0006", "GENE0003"] and list(found.columns)[:2] == ["R001", "R002"]
    assert np.array_equal(found, planted(clean)[1][[5, 2]])
    with pytest.raises(ValueError, match="'sim-embryo' has no planted weights; load sim-regulation"):
        regulation.weights(datasets.load("sim-embryo", n_obs=10))


def test_the_edges_make_a_mask_for_a_sparse_decoder(clean):
    edges = planted(clean)[2] == 1
    kept, found = ontology.planted(clean, key="regulators")
    assert list(found.latent_names) == list(regulation.weights(clean))
    assert kept["rna"].n_vars > 390 and np.array_equal(found.members["rna"], edges[edges.any(1)])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n_obs": 9}, "n_obs=9 must be at least 10"),
        ({"n_regulators": 1}, "n_regulators=1 must be at least 2"),
        ({"n_genes": 100}, "fewer than n_genes=100"),
        ({"density": 0.001}, "density=0.001 must be from 0.01"),
        ({"density": 1.1}, "density=1.1 must be from"),
        ({"noise": -0.1}, "noise=-0.1 must be >= 0"),
    ],
)
def test_what_it_cannot_fill_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        regulation.network(**wrong)
