"""Integration metrics: held to scib-metrics, scikit-learn, scanpy and arithmetic; bad input is named."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from helpers.metrics import biology, graphs, integration, mixing, silhouettes
from helpers.metrics.graphs import Undefined

REFERENCE = json.loads((Path(__file__).parent / "scib_reference.json").read_text())["sets"]
# k-means has one optimum that everybody finds only where the clouds are apart
KMEANS = {"distinct": 1e-3, "overlapping": 0.015, "well mixed": 0.01}
# by scib-metrics itself only where it is installed
WAYS = [integration.scores, *([integration.scib_scores] if importlib.util.find_spec("scib_metrics") else [])]


@pytest.fixture(params=REFERENCE)
def reference(request):
    """Name, arrays z, before, labels, batch, and what scib-metrics says of them."""
    found = REFERENCE[request.param]
    return request.param, {key: np.array(value) for key, value in found["data"].items()}, found


def clouds(n: int = 60, apart: float = 8.0, shift: float = 0.0, seed: int = 0):
    """Three labels × two batches of `n` samples in four dimensions, the batches moved by `shift`: z, labels, batch."""
    rng = np.random.default_rng(seed)
    labels, batch = np.repeat(["a", "b", "c"], 2 * n), np.tile(np.repeat(["x", "y"], n), 3)
    centre = apart * np.eye(4)[np.repeat([0, 1, 2], 2 * n)]
    return rng.normal(size=(6 * n, 4)) + centre + shift * (batch == "y")[:, None] * np.eye(4)[3], labels, batch


# ---------------------------------------------------------------- held to others


def test_scores_are_those_of_scib_metrics(reference):
    name, data, expected = reference
    found = integration.scores(**data)
    for metric, value in expected["scores"].items():
        tolerance = KMEANS[name] if metric.startswith("kmeans") else 1e-3
        assert found[metric] == pytest.approx(value, abs=tolerance), metric


def test_leiden_agrees_with_scib_metrics_over_seeds(reference):
    _, data, expected = reference
    near = graphs.nearest(data["z"])
    runs = pd.DataFrame([biology.leiden_scores(near, data["labels"], seed=seed) for seed in range(8)])
    for column, theirs in expected["leiden"].items():  # standard deviations over seeds are about 0.02 and 0.06
        tolerance = 0.02 if "nmi" in column else 0.05
        assert runs[column].mean() == pytest.approx(np.mean(theirs), abs=tolerance), column


def test_weights_are_those_of_umap_and_lisi_that_of_scib_metrics(reference):
    _, data, expected = reference
    near = graphs.nearest(data["z"])
    weights = graphs.connectivities(near.first(15))
    np.testing.assert_allclose(weights.sum(axis=1).A1, expected["weights"], atol=1e-4)
    np.testing.assert_allclose(graphs.lisi(near, data["labels"]), expected["lisi"], atol=1e-3)
    assert abs(weights - weights.T).max() == 0 and weights.diagonal().max() == 0


@pytest.mark.parametrize("compute", WAYS, ids=lambda compute: compute.__name__)
def test_every_way_to_compute_them_gives_the_same(reference, compute):
    _, data, expected = reference
    found = compute(**data)
    for metric, value in expected["scores"].items():
        if not metric.startswith(("kmeans", "kbet")):  # which scib-metrics leaves to the luck of one start
            assert found[metric] == pytest.approx(value, abs=0.01), metric
    assert found["total4"] == pytest.approx(integration.totals(found)["total4"])


def test_without_scib_metrics_the_way_to_get_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scib_metrics", None)
    with pytest.raises(ImportError, match=r"pip install scib-metrics==0\.5\.10"):
        integration.scib_scores(*clouds(5))


@pytest.mark.parametrize(("metric", "sums"), [("euclidean", "euclidean_sums"), ("cosine", "cosine_sums")])
def test_silhouettes_are_those_of_scikit_learn(monkeypatch, metric, sums):
    from sklearn.metrics import silhouette_samples

    z, labels, _ = clouds(20, apart=2.0)
    labels = np.where(np.arange(len(z)) == 3, "alone", labels)
    expected = silhouette_samples(z, labels, metric=metric)
    monkeypatch.setattr(silhouettes, "BLOCK", 17)  # blocks of unequal size
    np.testing.assert_allclose(
        silhouettes.silhouette_samples(z, labels, getattr(silhouettes, sums)), expected, atol=1e-10
    )
    monkeypatch.setattr(silhouettes, "EXACT", 10)  # float32
    np.testing.assert_allclose(
        silhouettes.silhouette_samples(z + 100, labels), silhouette_samples(z, labels), atol=1e-4
    )


def test_all_others_weighs_samples_and_not_groups():
    z, code = np.array([[0.0], [2.0], [10.0], [20.0], [30.0]]), np.array([0, 0, 1, 2, 2])
    found = silhouettes.silhouette_samples(z, code, other=silhouettes.all_others)
    a, b = 2.0, (10 + 20 + 30) / 3
    assert found[0] == pytest.approx((b - a) / b)
    assert found[2] == 0  # alone in its group


def test_pcr_is_the_regression_on_all_principal_components():
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression

    z, _, batch = clouds(20, shift=3.0)
    fitted = PCA().fit(z)
    codes, dummy = fitted.transform(z), (batch == "y")[:, None].astype(float)
    r2 = [LinearRegression().fit(dummy, code).score(dummy, code) for code in codes.T]
    assert mixing.pcr(z, batch) == pytest.approx(np.average(r2, weights=fitted.explained_variance_))


def test_pseudotime_is_scanpys():
    import anndata as ad
    import scanpy as sc

    rng = np.random.default_rng(0)
    t = np.sort(rng.random(150))
    graph = graphs.connectivities(
        graphs.nearest(np.stack([3 * t, np.sin(3 * t)], 1) + 0.05 * rng.normal(size=(150, 2)), 15)
    )
    data = ad.AnnData(np.zeros((150, 1), np.float32), obsp={"connectivities": graph, "distances": graph})
    keys = {"connectivities_key": "connectivities", "distances_key": "distances"}
    data.uns["neighbors"] = keys | {"params": {"n_neighbors": 15, "method": "umap"}}
    sc.tl.diffmap(data, random_state=0)
    data.uns["iroot"] = 7
    sc.tl.dpt(data)
    ours = biology.diffusion_pseudotime(graph, 7)
    np.testing.assert_allclose(ours, data.obs["dpt_pseudotime"], atol=1e-3)
    assert np.corrcoef(ours, abs(t - t[7]))[0, 1] > 0.9


# ---------------------------------------------------------------- graphs


def test_neighbours_are_the_nearest_and_oneself_is_first():
    z, _, _ = clouds(20, apart=1.0)
    near, distance = graphs.nearest(z, 12), cdist(z, z)
    np.testing.assert_allclose(near.distance, np.sort(distance, axis=1)[:, :12], atol=1e-6)
    np.testing.assert_array_equal(near.index[:, 0], np.arange(len(z)))
    assert near.first(5).index.shape == (120, 5)
    assert graphs.nearest(z[:7]).index.shape == (7, 7)


def test_among_equal_rows_neighbours_are_drawn_and_not_taken_in_order():
    z = np.repeat([[0.0, 1.0], [0.1, 5.3]], [400, 12], axis=0)
    near = graphs.nearest(z, 30)
    assert near.distance[:400].max() == 0
    assert (np.sort(near.index[:400], axis=1)[:, 1:] > np.sort(near.index[:400], axis=1)[:, :-1]).all()  # no repeats
    assert np.bincount(near.index[:400].ravel(), minlength=412)[:400].std() == 0  # everybody is met equally often
    np.testing.assert_array_equal(near.index[:, 0], np.arange(412))
    assert (near.distance[400:, :12] == 0).all() and (near.distance[400:, 12:] > 4).all()
    np.testing.assert_array_equal(near.index, graphs.nearest(z, 30).index)
    assert not np.array_equal(near.index, graphs.nearest(z, 30, seed=1).index)


def test_copies_of_samples_are_neighbours_at_zero():
    z = np.repeat(np.random.default_rng(0).normal(size=(40, 5)) * 1e3, 3, axis=0)
    near = graphs.nearest(z, 10)
    assert (near.distance[:, :3] == 0).all() and (near.distance[:, 3:] > 0).all()
    assert (near.index[:, :3] // 3 == np.arange(120)[:, None] // 3).all()


def test_lisi_counts_the_groups_around():
    far = np.repeat([0.0, 1e4], 50)[:, None] + np.random.default_rng(0).random((100, 1))
    half, apart = np.tile(["x", "y"], 50), np.repeat(["x", "y"], 50)
    near = graphs.nearest(far, 40)
    np.testing.assert_allclose(graphs.lisi(near, apart), 1)
    assert 1.6 < np.median(graphs.lisi(near, half)) <= 2
    equal = graphs.Neighbours(np.arange(4) + np.zeros((4, 1), int), np.zeros((4, 4)))
    np.testing.assert_allclose(graphs.lisi(equal, ["x", "y", "z", "z"]), 1 / (1 / 9 + 4 / 9), atol=1e-9)


def test_diffusion_map_solves_the_eigenproblem_dense_and_sparse(monkeypatch):
    graph = graphs.connectivities(graphs.nearest(clouds(20, apart=1.0)[0], 15))
    values, vectors = graphs.diffusion_map(graph, 8)
    assert values[0] == pytest.approx(1) and (np.diff(values) < 0).all()
    monkeypatch.setattr(graphs, "DENSE", 10)
    again, others = graphs.diffusion_map(graph, 8)
    np.testing.assert_allclose(again, values, atol=1e-10)
    np.testing.assert_allclose(abs((vectors * others).sum(axis=0)), 1, atol=1e-6)


# ---------------------------------------------------------------- what scores say


def test_a_batch_effect_and_its_removal_are_seen():
    shifted, labels, batch = clouds(shift=15.0)
    removed = clouds()[0]
    before, after = (integration.scores(z, labels, batch, before=shifted) for z in (shifted, removed))
    assert (after[list(integration.BATCH)] > before[list(integration.BATCH)]).all()
    assert before["pcr_comparison"] == 0 and after["pcr_comparison"] > 0.95
    assert before["ilisi"] == pytest.approx(0, abs=0.01) and after["ilisi"] > 0.8
    assert before["kbet"] < 0.05 and after["kbet"] > 0.9
    assert before["graph_connectivity_undirected"] == 0.5  # each label in two halves
    assert after["leiden_nmi"] == after["kmeans_nmi"] == 1 and after["leiden_clusters"] == 3


def test_kbet_accepts_what_is_mixed_at_about_its_level():
    z, labels, batch = clouds(200)
    assert mixing.kbet(graphs.nearest(z), np.random.default_rng(3).permutation(batch), labels) > 0.9


def test_kbet_rejects_a_label_that_falls_into_pieces():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 2)) + 100 * np.repeat(np.arange(12), 5)[:, None]  # pieces smaller than 3 k0 = 30
    labels, batch = np.full(60, "a"), np.tile(["x", "y", "x", "y", "x"], 12)
    assert mixing.kbet(graphs.nearest(z, 5), batch, labels) == 0
    whole, half = rng.normal(size=(600, 2)), np.tile(["x", "y"], 300)  # beside 600 others they are left out
    alone = mixing.kbet(graphs.nearest(whole, 9), half, np.full(600, "a"))
    beside = graphs.nearest(np.vstack([whole, z[:40] + 1e4]), 9)
    assert graphs.components(graphs.connectivities(beside)).max() > 0
    found = mixing.kbet(beside, np.append(half, batch[:40]), np.full(640, "a"))
    assert found == pytest.approx(alone) and found > 0.8


def test_isolated_labels_are_those_in_the_fewest_batches():
    z, labels, batch = clouds(apart=6.0)
    batch[labels == "c"] = "x"
    widths = silhouettes.silhouette_samples(z, labels)
    expected = (widths[labels == "c"].mean() + 1) / 2
    assert silhouettes.isolated_labels(z, labels, batch) == pytest.approx(expected)


def test_graph_connectivity_by_hand():
    index = np.array([[0, 1], [1, 0], [2, 1], [3, 4], [4, 3], [5, 0]])
    near, labels = graphs.Neighbours(index, np.ones((6, 2))), ["a", "a", "a", "b", "b", "b"]
    assert biology.graph_connectivity(near, labels) == pytest.approx(2 / 3)  # 2 -> 1 has no way back
    assert biology.graph_connectivity(near, labels, directed=False) == pytest.approx((1 + 2 / 3) / 2)


def test_a_trajectory_is_found_again_and_noise_has_none():
    rng = np.random.default_rng(0)
    t = rng.random(300)
    z = np.stack([5 * t, np.sin(4 * t), np.zeros(300)], axis=1) + 0.1 * rng.normal(size=(300, 3))
    stage, reference = np.floor(4 * t).astype(int), np.where(rng.random(300) < 0.2, np.nan, t)
    assert biology.trajectory(graphs.nearest(z), reference, stage) > 0.97
    assert biology.trajectory(graphs.nearest(z), reference, stage, rng.choice(["x", "y"], 300)) > 0.97
    assert biology.trajectory(graphs.nearest(-z), reference, stage) > 0.97
    assert abs(biology.trajectory(graphs.nearest(rng.normal(size=(300, 3))), reference, stage) - 0.5) < 0.2


def test_a_trajectory_without_its_start_scores_zero():
    t = np.linspace(0, 1, 60)
    z = np.where(t < 0.3, 1000, 0)[:, None] + t[:, None]
    assert biology.trajectory(graphs.nearest(z, 10), t, np.where(t < 0.3, "start", "later")) == 0


def test_scores_are_the_same_twice():
    z, labels, batch = clouds(20, apart=1.0)
    pd.testing.assert_series_equal(integration.scores(z, labels, batch), integration.scores(z, labels, batch))


# ---------------------------------------------------------------- totals and tables


def test_totals_by_hand():
    found = dict(zip(integration.BIO, [0.1, 0.2, 0.3, 0.4, 0.5], strict=True))
    found |= dict(zip(integration.BATCH, [0.6, 0.7, 0.8, 0.9, 0.0], strict=True))
    found |= {"leiden_nmi": 1.0, "leiden_ari": 0.3, "silhouette_batch": 1.0}
    expected = {"bio": 0.3, "batch": 0.6, "total": 0.42, "mean": 0.45, "total4": 0.18 + 0.4 * 0.75}
    expected["mean12"] = (2.8 / 7 + 3.4 / 5) / 2
    assert integration.totals(found) == pytest.approx(expected)


def test_a_nan_never_lifts_a_mean():
    found = dict.fromkeys([*integration.BIO, *integration.BATCH, "leiden_nmi", "leiden_ari", "silhouette_batch"], 0.5)
    full = integration.totals(found)
    for name in found:
        lacking = integration.totals(found | {name: np.nan})
        assert lacking == pytest.approx(integration.totals(found | {name: 0.0}))
        assert all(lacking[part] <= full[part] for part in full)
    left_out = integration.totals(found | {"kbet": np.nan}, ["kbet"])
    assert left_out == pytest.approx(full)


def test_controls_are_what_they_say_and_stand_in_the_table():
    z, labels, batch = clouds(25, apart=3.0)
    rng = np.random.default_rng(0)
    features = {"rna": z @ rng.normal(size=(4, 12)), "protein": sparse.csr_matrix(z)}
    controls = integration.controls(features, labels, n_latent=5)
    assert list(controls) == ["zeros", "random", "PCA rna", "PCA protein", "PCA concatenated", "labels"]
    assert [x.shape[1] for x in controls.values()] == [5, 5, 5, 4, 5, 3]
    joint = np.hstack([features["rna"] / np.sqrt(12), z / 2])
    largest = np.linalg.eigvalsh(np.cov(joint.T))[-1]
    assert controls["PCA concatenated"][:, 0].var(ddof=1) == pytest.approx(largest)
    obs = pd.DataFrame({"type": labels, "batch": pd.Categorical(batch)})
    table = integration.table({"ours": z}, obs, "type", "batch", controls=controls, before=controls["PCA rna"])
    assert list(table.index) == ["ours", *controls] and table["control"].tolist() == [False] + 6 * [True]
    assert set(table) == set(integration.scores(z, labels, batch, before=z).index) | {"control", "notes"}
    zeros, perfect = table.loc["zeros"], table.loc["labels"]
    assert zeros["silhouette_batch"] == zeros["bras"] == 1 and zeros["silhouette_label"] == 0.5
    assert np.isnan(zeros["pcr_comparison"]) and "all rows are equal" in zeros["notes"]
    assert zeros["batch"] == pytest.approx(zeros[list(integration.BATCH[:-1])].sum() / 5)
    assert perfect[list(integration.BIO)].min() > 0.999 and perfect["leiden_clusters"] == 3
    assert table["bio"].idxmin() in ("zeros", "random") and table["bio"].idxmax() in ("ours", "labels")


def test_columns_are_in_the_settings():
    z, labels, batch = clouds(15)
    t = np.linspace(0, 1, len(z))
    found = integration.scores(z, labels, batch, before=z, site=batch, pseudotime=t)
    assert set(found.index) == set(integration.settings().index)
    assert found[list(integration.STUDY)].notna().all()
    assert found["silhouette_site"] == found["silhouette_batch"]


# ---------------------------------------------------------------- bad input


def test_one_batch_is_noted_and_left_out_of_the_means():
    z, labels, _ = clouds(20)
    found = integration.scores(z, labels, np.full(len(z), "x"), before=z)
    lacking = {"isolated_labels", "silhouette_batch", "bras", "ilisi", "kbet", "pcr_comparison"}
    assert lacking == set(found.attrs["left_out"])
    assert set(found.index[found.isna()]) == lacking | {"batch", "total", "mean", "total4", "mean12"}
    assert "all 120 samples are in 'x'" in found.attrs["notes"]["ilisi"]
    assert found["graph_connectivity"] > 0.98 and found["bio"] > 0.9
    assert integration.table({"ours": z}, pd.DataFrame({"t": labels, "b": "x"}), "t", "b", controls={})["notes"].item()


@pytest.mark.parametrize(
    "call",
    [
        lambda z, near, labels, one: mixing.ilisi(near, one),
        lambda z, near, labels, one: mixing.kbet(near, one, labels),
        lambda z, near, labels, one: mixing.pcr_comparison(z, z, one),
        lambda z, near, labels, one: silhouettes.bras(z, labels, one),
        lambda z, near, labels, one: silhouettes.isolated_labels(z, labels, one),
    ],
)
def test_metrics_that_need_two_batches_say_so(call):
    z, labels, _ = clouds(10)
    with pytest.raises(Undefined, match="two batches"):
        call(z, graphs.nearest(z), labels, np.full(len(z), "x"))


def test_metrics_that_need_two_labels_say_so():
    z, _, batch = clouds(10)
    found = integration.scores(z, np.full(len(z), "a"), batch)
    assert "two labels" in found.attrs["notes"]["clisi"] and np.isnan(found["bio"]) and found["batch"] > 0


def test_a_label_of_one_sample_is_scored_and_noted():
    z, labels, batch = clouds(20)
    labels = np.where(np.arange(len(z)) == 0, "alone", labels)
    found = integration.scores(z, labels, batch)
    assert found.notna().all() and "'alone' has one sample" in found.attrs["notes"]["labels"]


def test_before_without_a_batch_effect_has_nothing_to_remove():
    z = np.tile(clouds(10)[0], (2, 1))
    with pytest.raises(Undefined, match="nothing of the data before"):
        mixing.pcr_comparison(z, z, np.repeat(["x", "y"], len(z) // 2))


def test_what_does_not_fit_is_named():
    z, labels, batch = clouds(10)
    obs = pd.DataFrame({"type": labels, "batch": batch})
    holes = np.where(np.arange(len(z))[:, None] < 4, np.nan, z)
    with pytest.raises(ValueError, match=r"MIMA: 4 of 60 rows .* row 0: leave samples that were not embedded out"):
        integration.table({"MIMA": holes}, obs, "type", "batch", controls={})
    with pytest.raises(ValueError, match="labels has 60 values for 50 rows"):
        integration.scores(z[:50], labels, batch)
    with pytest.raises(ValueError, match="1 of 60 samples have no value in batch"):
        integration.scores(z, labels, np.where(np.arange(60) == 5, None, batch.astype(object)))
    with pytest.raises(KeyError, match="did you mean 'batch'"):
        integration.table({}, obs, "type", "batches", controls={})
    with pytest.raises(ValueError, match="'zeros' is among the embeddings and the controls"):
        integration.table({"zeros": z}, obs, "type", "batch", controls={"zeros": z})
    with pytest.raises(ValueError, match="'rna' must be measured"):
        integration.controls({"rna": holes}, labels)
    with pytest.raises(ValueError, match="not of shape"):
        graphs.nearest(z[:, 0])
    with pytest.raises(ValueError, match="before has 50 samples, after 60"):
        mixing.pcr_comparison(z[:50], z, batch)
    with pytest.raises(Undefined, match="reference pseudotime that varies"):
        biology.trajectory(graphs.nearest(z), np.full(60, np.nan), labels)
