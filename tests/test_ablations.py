"""Settings with less to learn from: what each leaves out, and the tables made of their outcomes."""

import numpy as np
import pandas as pd
import pytest
from test_multimodal import cells

from helpers import ablations
from helpers.ablations import OURS, PLAIN, VAE
from helpers.multimodal import Training

HOW = Training(n_latent=3, n_components=2, hidden=(8,), epochs=4, batch_size=16, patience=None)


# --- data ----------------------------------------------------------------------------------------------------------


def test_altered_thins_train_and_valid_only():
    mdata = cells()
    before = mdata.obs["split"].value_counts()
    data = ablations.altered(mdata, share=0.5)
    after = data.obs["split"].value_counts()
    assert after["train"] == round(before["train"] / 2) and after["test"] == before["test"]
    assert (mdata.obs["split"] != "unused").all()
    smaller = ablations.altered(mdata, share=0.25).obs["split"] == "train"
    assert set(smaller[smaller].index) <= set(data.obs_names[data.obs["split"] == "train"])


def test_altered_forgets_the_class_of_a_batch_that_is_left_out():
    data = ablations.altered(cells(), left="s2", batch_key="site")
    kept = data.obs["split"].isin(["train", "valid"])
    assert list(data.obs["site"].cat.categories) == ["s1", "s3"] and data.obs["site"][kept].notna().all()
    assert data.obs["site"][data.obs["split"] == "test"].isna().any()


def test_altered_keeps_the_features_that_most_cells_have():
    mdata = cells()
    data = ablations.altered(mdata, features=0.5)
    seen = np.asarray((mdata["atac"].X[(mdata.obs["split"] == "train").to_numpy()] > 0).mean(0)).ravel()
    kept = mdata["atac"].var_names.isin(data["atac"].var_names)
    assert data["atac"].n_vars == 10 and seen[kept].min() >= seen[~kept].max()


def test_same_neighbours_is_zero_by_chance_and_high_for_clumps():
    rng = np.random.default_rng(0)
    label = np.repeat(["a", "b"], 200)
    assert abs(ablations.same_neighbours(rng.normal(size=(400, 3)), label)) < 0.05
    apart = rng.normal(size=(400, 3)) + 20 * (label == "a")[:, None]
    assert ablations.same_neighbours(apart, label) == pytest.approx(1 - 199 / 399)


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    mdata = cells(n=120)
    settings = ablations.plan([0, 1], ["s2"], [0.5], 0.5)
    return mdata, settings, [{**s, **ablations.outcome(mdata, HOW, "site", s)} for s in settings]


def test_plan_trains_everything_on_every_seed_and_the_rest_once():
    settings = ablations.plan([3, 4], ["s1", "s2"], [0.1, 0.5], 0.5)
    whole = [s for s in settings if s["share"] == s["features"] == 1 and not s["left"]]
    assert {(s["model"], s["seed"]) for s in whole} == {(m, s) for m in (OURS, PLAIN, VAE) for s in (3, 4)}
    rest = [s for s in settings if s not in whole]
    assert len(rest) == 2 * 2 + 2 + 2 and {s["seed"] for s in rest} == {3}
    assert PLAIN not in {s["model"] for s in ablations.plan([0], with_covariate=False)}
    assert len(ablations.plan([0], features=0)) == 3


def test_outcomes_score_the_same_cells(results):
    mdata, _, made = results
    n_test, of_s2 = (
        (mdata.obs["split"] == "test").sum(),
        ((mdata.obs["split"] == "test") & (mdata.obs["site"] == "s2")).sum(),
    )
    for result in made:
        n = of_s2 if result["left"] else n_test
        assert len(result["nll/rna"]) == len(result["nll/atac"]) == n and np.isfinite(result["nll/rna"]).all()
    left = next(r for r in made if r["left"])
    assert "added/rna" in left and "z" not in left
    full = ablations.whole(made)[0]
    assert full["z"].shape == (120, 3) and full["component"].shape == full["batch"].shape == (120,)
    assert "component" not in ablations.whole(made, VAE)[0] and "batch" not in ablations.whole(made, PLAIN)[0]


def test_tables_of_the_settings(results):
    mdata, _, made = results
    clusters = ablations.clusters(
        made, mdata, "cell_type", lambda z: (z[:, 0] > np.median(z[:, 0])).astype(int), n_latent=3
    )
    assert {"model", "control"} == set(clusters["kind"]) and clusters["ari"].between(-1, 1).all()
    mixing = ablations.mixing(made, mdata, "site", "cell_type", 3)
    assert len(mixing) == 7 and mixing["same batch"].between(-1, 1).all()
    told = ablations.recovered(made, mdata, "site", 3)
    frequent = told[told["method"] == "most frequent batch"]
    assert sorted(frequent["right"]) == [0, 0, 1]
    unseen = ablations.unseen(made, mdata, "site")
    assert len(unseen) == 6 and (unseen["ratio"] > 0).all() and set(unseen["batch"]) == {"s2"}
    few = ablations.efficiency(made, ["rna", "atac"])
    assert np.allclose(few.loc[few["share"] == 1, "ratio"], 1) and len(few) == 8
    features = ablations.feature_efficiency(made, ["rna", "atac"])
    assert set(features["features"]) == {"all", "the most frequent 50%"} and len(features) == 8


def test_tables_are_empty_where_nothing_was_left_out(results):
    mdata, _, made = results
    some = ablations.whole(made) + ablations.whole(made, VAE)
    assert ablations.unseen(some, mdata, "site").empty and ablations.feature_efficiency(some, ["rna"]).empty
    few = ablations.efficiency(some, ["rna"])
    assert (
        ablations.verdict_on_efficiency(few, ablations.feature_efficiency(some, ["rna"]))["verdict"]
        == "cannot be tested"
    )


def test_the_same_setting_gives_the_same_outcome(results):
    mdata, settings, made = results
    again = ablations.outcome(mdata, HOW, "site", settings[0])
    np.testing.assert_array_equal(again["nll/rna"], made[0]["nll/rna"])


def test_without_a_batch_column_there_is_no_covariate():
    mdata = cells()
    found = ablations.outcome(mdata, HOW, "", ablations.plan([0], with_covariate=False)[0])
    assert "batch" not in found and "component" in found


# --- verdicts ------------------------------------------------------------------------------------------------------


def test_verdicts_follow_from_their_tables(results):
    mdata, _, made = results
    scores = pd.DataFrame(
        {"method": ["a", "b"], "modality": ["rna", "atac"], "nll": [1.0, 2.0], "auprc": [np.nan, 0.2]}
    )
    assert ablations.verdict_on_fit(scores)["verdict"] == "cannot be tested"
    ari = [("components", s, v) for s, v in ((0, 0.9), (1, 0.92))] + [
        ("communities of VAE codes", s, 0.5) for s in (0, 1)
    ]
    found = ablations.verdict_on_clusters(pd.DataFrame(ari, columns=["method", "seed", "ari"]))
    assert found["verdict"] == "holds" and "0.010 against 0.000" in found["evidence"]
    assert ablations.verdict_on_batches(pd.DataFrame(), pd.DataFrame())["verdict"] == "cannot be tested"
    mixing, told = ablations.mixing(made, mdata, "site", "", 3), ablations.recovered(made, mdata, "site", 3)
    assert "of 4 cases" in ablations.verdict_on_batches(mixing, told)["evidence"]
    few, features = ablations.efficiency(made, ["rna", "atac"]), ablations.feature_efficiency(made, ["rna", "atac"])
    assert "of 4 cases" in ablations.verdict_on_efficiency(few, features)["evidence"]


@pytest.mark.parametrize(("ratio", "verdict"), [(1.02, "holds"), (1.09, "does not hold here")])
def test_nearly_as_well_is_nearer_to_the_reconstruction_than_to_the_mean(ratio, verdict):
    columns = {"source": ["rna"] * 2, "target": ["atac"] * 2, "method": ["the model", "mean profile"]}
    table = pd.DataFrame(columns | {"ratio": [ratio, 1.1]})
    assert ablations.verdict_on_translation(table)["verdict"] == verdict
    columns = {"batch": ["s1"] * 2, "modality": ["rna"] * 2, "method": ["placed", "mean profile"]}
    assert ablations.verdict_on_unseen(pd.DataFrame(columns | {"ratio": [ratio, 1.1]}))["verdict"] == verdict
    assert ablations.verdict_on_unseen(pd.DataFrame())["verdict"] == "cannot be tested"
