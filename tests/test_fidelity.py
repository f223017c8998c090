"""Fidelity of held-out predictions: folds, centroids by hand, planted truth, simple translators, errors."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from helpers import controls, fidelity

FOUR = np.array([0, 1, 0, 1])


@pytest.fixture(scope="module")
def tissue():
    """Four samples of 60 spots: region and a gradient in both modalities, the second with sample offsets."""
    rng = np.random.default_rng(0)
    region, sample = rng.choice(["a", "b", "c"], 240), np.repeat(["s1", "s2", "s3", "s4"], 60)
    centres = pd.DataFrame(rng.normal(size=(3, 4)), index=["a", "b", "c"])
    z = centres.loc[region].to_numpy() + 0.5 * rng.normal(size=(240, 4))
    x = z @ rng.normal(size=(4, 20)) + 0.1 * rng.normal(size=(240, 20))
    y = z @ rng.normal(size=(4, 15)) + 0.1 * rng.normal(size=(240, 15)) + np.repeat(5 * rng.normal(size=(4, 15)), 60, 0)
    return pd.DataFrame({"region": region, "sample": sample}), {"rna": x, "msi": y}


def evaluate(tissue, predict, folds=None, **options):
    obs, measured = tissue
    folds = fidelity.within_sample_folds(obs, "sample") if folds is None else folds
    table = fidelity.evaluate(predict, measured, obs, "region", "sample", folds, **options)
    return table.set_index(["source", "target", "kind"])


# --- folds -----------------------------------------------------------------------------------------------------------


def test_every_spot_is_in_one_fold_within_its_sample():
    obs = pd.DataFrame({"sample": np.repeat(["u", "v", "w"], [40, 9, 6])})
    folds = fidelity.within_sample_folds(obs, "sample", 4, seed=3)
    assert set(folds) == {0, 1, 2, 3}
    sizes = pd.crosstab(obs["sample"], folds)
    assert (sizes.max(1) - sizes.min(1) <= 1).all() and sizes.loc["u"].tolist() == [10] * 4
    assert np.ptp(np.bincount(folds)) <= 2
    np.testing.assert_array_equal(folds, fidelity.within_sample_folds(obs, "sample", 4, seed=3))
    assert (folds != fidelity.within_sample_folds(obs, "sample", 4, seed=4)).any()


def test_folds_say_what_is_wrong():
    obs = pd.DataFrame({"sample": ["u"] * 8 + ["tiny"] * 2 + [None]})
    with pytest.raises(ValueError, match="1 of 11 spots have no 'sample'"):
        fidelity.within_sample_folds(obs, "sample")
    with pytest.raises(ValueError, match="sample 'tiny' has fewer than 4 spots"):
        fidelity.within_sample_folds(obs.dropna(), "sample")
    with pytest.raises(ValueError, match="n_folds is 1"):
        fidelity.within_sample_folds(obs.dropna(), "sample", 1)
    with pytest.raises(ValueError, match="no column 'slide'"):
        fidelity.within_sample_folds(obs, "slide")


def test_four_fold_keeps_what_was_held_out(tissue):
    """A predictor that answers with the number of the call, and cheats on train: only held-out rows are kept."""
    obs, measured = tissue
    obs = obs.set_index(obs.index.astype(str))
    mods = {m: AnnData(x.astype(np.float32), obs=obs[[]]) for m, x in measured.items()}
    for m, adata in mods.items():
        adata.var_names = [f"{m}{j}" for j in range(adata.n_vars)]
    mdata = MuData(mods)
    mdata.obs["sample"], seen = obs["sample"].to_numpy(), []

    def train_and_predict(part):
        test = (part.obs["split"] == "test").to_numpy()
        seen.append(part.obs["split"].value_counts())
        call = np.where(test, len(seen) - 1, -99.0)
        return {("rna", "msi"): np.tile(call[:, None], (1, 15)), "other": np.tile(call[:, None], (1, 2))}

    found, folds = fidelity.four_fold(mdata, train_and_predict, "sample", n_valid=0.2)
    np.testing.assert_array_equal(found["rna", "msi"], np.tile(folds[:, None], (1, 15)))
    assert found["other"].shape == (240, 2) and len(seen) == 4
    assert all(s["test"] == 60 and 15 < s["valid"] < 60 and s.sum() == 240 for s in seen)
    assert "split" not in mdata.obs
    with pytest.raises(ValueError, match=r"fold 0 gave arrays .*\(3, 2\)}, not .*\(240, 2\)"):
        fidelity.four_fold(mdata, lambda part: {"x": np.zeros((3, 2))}, "sample")
    widths = iter([2, 3])
    with pytest.raises(ValueError, match=r"fold 1 gave arrays .*\(240, 3\)}, not .*\(240, 2\)"):
        fidelity.four_fold(mdata, lambda part: {"x": np.zeros((240, next(widths)))}, "sample")


def test_measured_values_have_the_order_of_all_spots():
    whole, part = pd.DataFrame(index=["u", "v", "w"]), pd.DataFrame(index=["w", "u"])
    x, y = np.arange(6.0).reshape(3, 2), np.array([[1.0], [2]])
    var = [pd.DataFrame(index=names) for names in (["g1", "g2"], ["p1"])]
    mdata = MuData({"rna": AnnData(sp.csr_array(x), whole, var[0]), "protein": AnnData(y, part, var[1])})[
        ["u", "v", "w"]
    ]
    found = fidelity.measured(mdata)
    np.testing.assert_array_equal(found["rna"], x)
    np.testing.assert_array_equal(found["protein"][:, 0], [2, np.nan, 1])


def test_variable_features_are_variable_then_abundant():
    x = np.zeros((6, 5))
    x[:, 0] = [0, 10, 0, 10, 0, 10]  # most variable, mean 5
    x[:, 1] = [8, 10, 8, 10, 8, 10]  # variable, mean 9
    x[:, 2] = 100  # most abundant, constant
    x[:, 3] = [0, 3, 0, 3, 0, 3]  # variable, mean 1.5
    for given in (x, sp.csr_array(x), np.vstack([x, np.full(5, np.nan)])):
        np.testing.assert_array_equal(fidelity.variable_features(given, 3, 2), [0, 1])
        np.testing.assert_array_equal(fidelity.variable_features(given), np.arange(5))
    with pytest.raises(ValueError, match="every row has NaN"):
        fidelity.variable_features(np.full((3, 2), np.nan))


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    y = np.array([[0.0, 1], [2, 1], [4, 1]])
    y_hat = np.array([[1.0, 1], [2, 3], [3, 2]])
    np.testing.assert_allclose(fidelity.per_spot_error(y, y_hat), [0.5, 2, 1])
    np.testing.assert_allclose(fidelity.per_feature_r2(y, y_hat), [1, np.nan])
    np.testing.assert_allclose(fidelity.per_feature_r2(y, -y_hat), [0, np.nan])  # runs against it
    np.testing.assert_allclose(fidelity.per_feature_r2(y, 0 * y_hat + 0.1), [0, np.nan])  # says nothing
    found = fidelity.score(y, y_hat, np.array(["s"] * 3), y.mean(0))
    assert found["mse"] == pytest.approx(7 / 6) and found["R2 over mean"] == pytest.approx(1 - 7 / 8)
    assert found["r2"] == 1 and found["n_features"] == 1 and found["n_spots"] == 3


def test_r2_is_the_squared_correlation_and_offsets_of_samples_earn_nothing_within():
    rng = np.random.default_rng(0)
    y, y_hat, samples = rng.normal(size=(300, 4)), rng.normal(size=(300, 4)), np.repeat([0, 1, 2], 100)
    y_hat += 0.5 * y
    expected = [np.corrcoef(y[:, j], y_hat[:, j])[0, 1] ** 2 for j in range(4)]
    np.testing.assert_allclose(fidelity.per_feature_r2(y, y_hat), expected)
    offsets = 20.0 * samples[:, None]
    noise = rng.normal(size=(300, 4))
    assert fidelity.per_feature_r2(y + offsets, noise + offsets).min() > 0.98
    assert fidelity.per_feature_r2(y + offsets, noise + offsets, samples).max() < 0.1


# --- the comparison --------------------------------------------------------------------------------------------------


def test_centroids_by_hand():
    """Fold 0 holds out spots 0 and 2; spots 1 and 3 are all that may be known then, and the other way round."""
    obs = pd.DataFrame({"region": ["a", "a", "b", "b"], "sample": ["s", "s", "s", "t"]})
    y = np.array([[1.0], [2], [4], [8]])
    held = fidelity._held("rna", y, slice(None), obs, "region", "sample", FOUR)
    told = {kind: x[:, 0].tolist() for (_, kind), x in fidelity._annotated(held).items()}
    assert told["same annotation"] == [2, 1, 8, 4]
    assert told["other annotations"] == [8, 4, 2, 1]
    assert told["sample mean"] == [2, 2.5, 2, 2.5]  # spot 3: its sample has no train spot, so the mean of all
    assert told["same annotation and sample"] == [2, 1, 8, 4]  # where the sample has none of the label: all of it
    obs["sample"] = "s"
    y = np.array([[1.0], [2], [4], [8], [100]])
    more = pd.concat([obs, pd.DataFrame({"region": ["a"], "sample": ["t"]})], ignore_index=True)
    held = fidelity._held("rna", y, slice(None), more, "region", "sample", np.array([0, 1, 0, 1, 1]))
    told = {kind: x[:, 0] for (_, kind), x in fidelity._annotated(held).items()}
    assert told["same annotation"][0] == 51 and told["same annotation and sample"][0] == 2


def test_perfect_predictions_score_one_and_are_told_from_controls(tissue):
    table = evaluate(tissue, lambda source, target: tissue[1][target])
    model = table[table.index.get_level_values("kind").isin(["reconstruction", "translation"])]
    assert len(model) == 6 and (model["mse"] == 0).all() and np.allclose(model[["r2", "R2 over mean"]], 1)
    assert {"all", "rna", "msi"} == set(model.index.get_level_values("source"))
    assert (table["n_spots"] == 240).all()
    own, others = (
        table.loc[("annotation", "rna", f"{kind}"), "mse"] for kind in ("same annotation", "other annotations")
    )
    assert 0 < own < table.loc[("none", "rna", "train mean"), "mse"] < others
    assert table.loc[("none", "rna", "train mean"), "R2 over mean"] == pytest.approx(0)


def test_simple_translators_find_the_gradient_the_centroid_cannot(tissue):
    table = evaluate(tissue, lambda source, target: None)
    assert table.loc[("msi", "rna", "ridge within samples"), "r2"] > 0.95
    assert table.loc[("annotation", "rna", "same annotation"), "r2"] < 0.9
    within = table.loc[("rna", "msi", "ridge within samples")]
    assert within["r2"] > 0.99 and within["r2 within"] > 0.95
    assert table.loc[("rna", "msi", "ridge"), "R2 over mean"] < 0.5 < within["R2 over mean"]  # cannot know the sample
    assert (
        table.loc[("none", "msi", "sample mean"), "r2"] > 0.5 > table.loc[("none", "msi", "sample mean"), "r2 within"]
    )
    same = table.loc["annotation"].loc["msi"]["mse"]
    assert same["same annotation and sample"] < same["same annotation"]


def test_nothing_of_a_spot_is_used_to_predict_it(tissue):
    """Held-out target values are replaced by nonsense: no control may change."""
    obs, measured = tissue
    folds = np.where(np.arange(240) % 4 == 0, 0, -1)
    spoiled = {m: np.where((folds == 0)[:, None], 1e6 * np.ones_like(x), x) for m, x in measured.items()}
    told = []
    for data in (measured, spoiled):
        held = fidelity._held("msi", data["msi"], slice(None), obs, "region", "sample", folds)
        ridge = fidelity.simple_translators()["ridge within samples"]
        told.append(fidelity._annotated(held) | {"ridge": fidelity._translated(held, measured["rna"], ridge)})
    for key, x in told[0].items():
        np.testing.assert_array_equal(x, told[1][key])
        assert np.isfinite(x[folds == 0]).all() and np.isnan(x[folds != 0]).all()


def test_missing_modalities_labels_and_chosen_features(tissue):
    obs, measured = tissue[0].copy(), {m: x.copy() for m, x in tissue[1].items()}
    measured["rna"][:30], obs.loc[200:, "region"] = np.nan, None

    def predict(source, target):
        y = measured[target].copy()
        y[np.isnan(measured[source or target]).any(1)] = np.nan
        return np.nan_to_num(y) if source is None else y

    simple = {"ridge": fidelity.pooled(controls.ridge_to_pca)}
    features = {"msi": np.array([1, 4, 5])}
    table = evaluate((obs, measured), predict, np.zeros(240, int) - (np.arange(240) % 2), features=features,
                     translators=simple)  # fmt: skip
    assert table.loc[("rna", "msi", "translation"), ["n_spots", "n_features"]].tolist() == [85, 3]
    assert table.loc[("msi", "rna", "ridge"), ["n_spots", "n_features"]].tolist() == [85, 20]
    assert (table["n_spots"] == 85).all()  # everything on the spots that all can be scored on


def test_a_mosaic_without_whole_spots_is_scored_on_pairs(tissue):
    obs, measured = tissue[0], tissue[1] | {"morphology": tissue[1]["rna"][:, :5].copy()}
    for k, m in enumerate(measured):  # every spot lacks one of three
        measured[m] = np.where((np.arange(240) % 3 == k)[:, None], np.nan, measured[m])

    def predict(source, target):
        return np.where(
            np.isfinite(measured[source or target]).all(1)[:, None], np.nan_to_num(measured[target]), np.nan
        )

    table = evaluate((obs, measured), predict, translators={})
    assert table.loc[("rna", "msi", "translation"), "n_spots"] == 80
    assert table.loc[("annotation", "msi", "same annotation"), "n_spots"] == 160


def test_evaluate_says_what_is_wrong(tissue):
    obs, measured = tissue
    with pytest.raises(ValueError, match="'rna' has 240 rows, obs 240, folds 3"):
        evaluate(tissue, lambda s, t: None, np.zeros(3, int))
    with pytest.raises(ValueError, match=r"rna → rna has shape \(240, 15\), what was measured \(240, 20\)"):
        evaluate(tissue, lambda s, t: measured["msi"])
    with pytest.raises(ValueError, match="rna → rna: 240 of 240 held-out spots have no prediction"):
        evaluate(tissue, lambda s, t: np.full_like(measured[t], np.nan))
    with pytest.raises(ValueError, match="all spots with 'rna' are in fold 0"):
        evaluate(tissue, lambda s, t: None, np.zeros(240, int))
    with pytest.raises(ValueError, match="no held-out spot with 'rna'"):
        evaluate(tissue, lambda s, t: None, np.full(240, -1))
    with pytest.raises(ValueError, match="no column 'annotation'"):
        fidelity.evaluate(lambda s, t: None, measured, obs, "annotation", "sample", np.zeros(240, int))
