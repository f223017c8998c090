"""The study of notebook 07: every method gets the same samples and features, and verdicts follow from the numbers."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from helpers import integration, mosaics, tissue, views
from helpers import mosaic_checks as checks
from helpers.checks import Parts, assemble, part


def mosaic(n=90, seed=0):
    """Two modalities and three batches: a has both, b lacks proteins, c lacks rna; two classes that both show."""
    rng = np.random.default_rng(seed)
    names = np.array([f"s{i}" for i in range(n)])
    obs = pd.DataFrame({"batch": np.repeat(["a", "b", "c"], n // 3), "type": ["x", "y"] * (n // 2)}, index=names)
    level = np.where(obs["type"] == "x", 1.0, 6.0)[:, None]
    rna = rng.poisson(level ** np.array([1, -1] * 4) * 4 + 1).astype("float32")
    ions = np.exp(level / 3 + rng.normal(size=(n, 5)))
    has_rna, has_ions = (obs["batch"] != "c").to_numpy(), (obs["batch"] != "b").to_numpy()
    found = {
        "rna": part(csr_matrix(rna[has_rna]), names[has_rna], [f"g{i}" for i in range(8)]),
        "msi": part(ions[has_ions], names[has_ions], [f"i{i}" for i in range(5)]),
    }
    kinds = {"rna": "counts", "msi": "continuous"}
    return assemble(Parts(found, obs, "mosaic", label_key="type", batch_key="batch", kinds=kinds))


@pytest.fixture(scope="module")
def slides():
    return tissue.tissue(n_patients=2, n_spots=60, n_genes=30, n_ions=20, n_morphology=20)


# ---------------------------------------------------------------- data


def test_batches_samples_and_features_are_chosen():
    data = mosaics.chosen(mosaic(), "batch", n_batches=2, n_samples=40, n_features=3, seed=1)
    assert data.n_obs == 40 and set(data.obs["batch"]) == {"a", "b"}
    assert {m: a.n_vars for m, a in data.mod.items()} == {"rna": 3, "msi": 3}
    assert data.obs_names.equals(mosaics.chosen(mosaic(), "batch", 2, 40, 3, 1).obs_names)
    assert data.uns["dataset"]["modalities"] == {"rna": "counts", "msi": "continuous"}


def test_integration_needs_batches():
    data = mosaic()
    with pytest.raises(ValueError, match="'batch' has one batch, 'a': integration needs two or more"):
        mosaics.chosen(data, "batch", n_batches=1)
    with pytest.raises(ValueError, match="name one with batch_key=, such as 'batch', 'type'"):
        mosaics.chosen(data, "")


def test_intensities_are_logged_once_and_counts_never():
    data = mosaic()
    logged = mosaics.logged(data, ["msi"])
    np.testing.assert_allclose(logged["msi"].X, np.log1p(data["msi"].X), rtol=1e-5)
    assert (logged["rna"].X != data["rna"].X).nnz == 0 and data["msi"].X.max() > logged["msi"].X.max()
    with pytest.raises(ValueError, match="'rna' holds counts"):
        mosaics.logged(data, ["rna"])
    with pytest.raises(ValueError, match="no modality 'mis'; did you mean 'msi'"):
        mosaics.logged(data, ["mis"])
    logged["msi"].X[0, 0] = -1
    with pytest.raises(ValueError, match="'msi' has values below 0"):
        mosaics.logged(logged, ["msi"])


def test_scaled_values_are_those_that_linear_methods_get():
    data = mosaic()
    scaled = mosaics.scaled(data)
    wanted = views.inputs(data, ["rna"], standardise=False)["rna"]
    np.testing.assert_allclose(scaled["rna"].X, wanted[data.obs_names.get_indexer(scaled["rna"].obs_names)], rtol=1e-6)
    np.testing.assert_array_equal(scaled["msi"].X, data["msi"].X)
    assert set(scaled.uns["dataset"]["modalities"].values()) == {"continuous"}


def test_prepared_data_are_standardised_on_train_and_keep_a_split():
    data = mosaics.prepared(mosaic(), "batch")
    train = data["rna"].X[(data.obs["split"] == "train").loc[data["rna"].obs_names]]
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(0), 1, atol=1e-4)
    assert data.obs["split"].value_counts().to_dict() == {"train": 72, "valid": 9, "test": 9}
    given = mosaic()
    given.obs["split"] = np.where(np.arange(90) % 3 == 0, "test", np.where(np.arange(90) % 3 == 1, "valid", "train"))
    assert (mosaics.prepared(given, "batch").obs["split"] == given.obs["split"]).all()


def test_the_overview_says_what_neighbours_share():
    table = mosaics.overview(mosaic(), "type", "batch")
    assert table["samples"].to_dict() == {"rna": 60, "msi": 60} and table.loc["rna", "features"] == 8
    assert table.loc["rna", "same class"] > 0.9 > table.loc["rna", "class by chance"] == pytest.approx(0.5)


def test_modalities_side_by_side_weigh_the_same():
    x = mosaics.side_by_side({"a": np.ones((4, 100)), "b": np.ones((4, 4))})
    assert x.shape == (4, 104) and (x[:, :100] ** 2).sum() == pytest.approx((x[:, 100:] ** 2).sum())


def test_planes_leave_unmeasured_samples_out():
    x = np.random.default_rng(0).normal(size=(30, 6))
    x[:5] = np.nan
    for found in (mosaics.components(x, 3), mosaics.plane(x, 3, with_umap=False)):
        assert np.isnan(found[:5]).all() and np.isfinite(found[5:]).all() and found.shape == (30, 3)


# ---------------------------------------------------------------- scores


def results(n=90, seeds=(0, 1)):
    rng = np.random.default_rng(5)
    rows = [(mosaics.OURS, s) for s in seeds] + [(mosaics.PUBLISHED, 0), (mosaics.UNIMODAL, 0)]
    made = []
    for variant, s in rows:
        z = rng.normal(size=(n, 3)) + s
        made.append({"variant": variant, "seed": s, "shared": z, "own/rna": z - 1, "corrected": z + 1})
    return made


def test_rivals_are_named_and_keep_their_seeds():
    runs = integration.Runs(embeddings={"Harmony": np.zeros((90, 3))})
    found = mosaics.rivals(results(), runs)
    assert {name: len(z) for name, z in found.items()} == {
        "MIMA": 2,
        "MIMA, corrected data": 2,
        "MIMA, as published": 1,
        "MIMA, only rna": 1,
        "Harmony": 1,
    }
    np.testing.assert_array_equal(found["MIMA, corrected data"][1], found["MIMA"][1] + 1)
    np.testing.assert_array_equal(found["MIMA, only rna"][0], results()[3]["own/rna"])


def test_all_methods_are_scored_on_the_samples_that_all_place():
    data, found = mosaic(), {"MIMA": [z["shared"] for z in results()[:2]], "Harmony": [np.ones((90, 2))]}
    found["Harmony"][0][:4] = np.nan
    data.obs["batch"] = ["p", "q"] * 45  # batches among the samples that have both modalities
    table = mosaics.benchmark(found, data, "type", "batch", n_latent=2)
    assert table["method"].tolist()[:3] == ["MIMA", "MIMA", "Harmony"] and table["seed"].tolist()[:3] == [0, 1, 0]
    assert mosaics.control_names(table) == ["zeros", "random", "PCA rna", "PCA msi", "PCA concatenated", "labels"]
    shown = mosaics.shown(table)
    assert list(shown.index[:2]) == list(shown.loc[["MIMA", "Harmony"]].sort_values("total").index[::-1])
    assert shown.loc["MIMA", "total"] == pytest.approx(table["total"][:2].mean())
    assert list(shown.columns[:2]) == ["leiden_nmi", "leiden_clusters"]
    with pytest.raises(ValueError, match="no sample has a label and all modalities"):
        mosaics.benchmark({"MIMA": [np.full((90, 2), np.nan)]}, data, "type", "batch")


def test_a_mosaic_is_scored_whole_for_those_who_place_everyone():
    found = {"MIMA": [results()[0]["shared"]], "Harmony": [np.full((90, 2), np.nan)]}
    table = mosaics.benchmark_mosaic(found, mosaic(), "type", "batch")
    assert table["method"].tolist() == ["MIMA", "zeros", "random", "labels"]
    assert "pcr_comparison" not in table


# ---------------------------------------------------------------- checks


def test_ridge_finds_what_is_linear_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    z, split = rng.normal(size=(200, 3)), np.array(["train"] * 150 + ["test"] * 50)
    y = z @ rng.normal(size=(3, 4))
    assert checks.ridge_r2(z, y, split) > 0.99
    assert checks.ridge_r2(rng.normal(size=(200, 3)), y, split) < 0.05
    assert np.isnan(checks.ridge_r2(z * np.nan, y, split))


def test_own_factors_are_asked_for_where_they_are_planted(slides):
    data = mosaics.prepared(mosaics.logged(slides, ["msi"]), "section")
    table = checks.kept({"truth": data.obsm["truth_own_msi"], "nothing": np.zeros((data.n_obs, 2))}, data)
    own = table[table["what"] == checks.OWN_FACTORS].set_index(["latent", "modality"])["R2"]
    assert own["truth", "msi"] > 0.99 and own["truth", "rna"] < 0.3 and own["nothing", "msi"] == 0
    assert set(table["what"]) == {"features", checks.OWN_FACTORS}


def test_test_samples_swap_values_within_their_batch_and_no_others():
    data = mosaics.prepared(mosaic(), "batch")
    broken = checks.shuffled(data, "rna", "batch", seed=3)
    before, after = (pd.DataFrame(d["rna"].X, index=d["rna"].obs_names) for d in (data, broken))
    test = data.obs["split"] == "test"
    moved = (before != after).any(axis=1)
    assert moved.any() and not moved[~test.loc[before.index]].any()
    for name, rows in data.obs.loc[before.index][test.loc[before.index]].groupby("batch").groups.items():
        assert sorted(before.loc[rows].sum(axis=1).round(4)) == sorted(after.loc[rows].sum(axis=1).round(4)), name
    np.testing.assert_array_equal(broken["msi"].X, data["msi"].X)


def test_votes_are_of_train_neighbours():
    obs = pd.DataFrame({"type": ["x"] * 20 + ["y"] * 20 + ["x", "y"], "split": ["train"] * 40 + ["test"] * 2})
    z = np.r_[np.zeros(20), np.ones(20), 0.1, 0.9][:, None]
    assert checks.voted(z, z, obs, "type") == 1
    assert checks.voted(z, 1 - z, obs, "type") == 0


def test_rare_classes_are_planted_or_else_the_rarest(slides):
    assert set(checks.rare_classes(slides, "region")) <= {"tumour ISUP 2", "tumour ISUP 4"}
    data = mosaic()
    data.obs["type"] = ["x"] * 80 + ["y"] * 9 + ["z"]
    assert checks.rare_classes(data, "type") == ["y"]


def test_the_ceiling_is_known_where_the_truth_is(slides):
    assert checks.ceiling(mosaic(), ["msi"]) == {}
    z = checks.ceiling(slides, ["msi"], 5)["clean data"]
    assert z.shape == (slides.n_obs, 5) and np.isfinite(z).all()


def test_the_copied_batch_has_all_modalities_where_one_has():
    data = mosaic()
    assert checks.whole_batch(data, "batch") == "a"
    assert checks.whole_batch(data[30:].copy(), "batch") == "b"


def test_maps_are_of_the_feature_of_that_rank():
    y = np.random.default_rng(0).normal(size=(40, 3))
    noise = np.random.default_rng(1).normal(size=(40, 3))
    told = {("rna", "msi"): y + noise * [3.0, 0.1, 1.0], ("all", "msi"): y, ("msi", "msi"): y, ("msi", "rna"): y}
    rows = np.arange(40) < 30
    best, maps = checks.typical_maps(told, {"msi": y}, "msi", rows, 1.0)
    assert best == 1 and list(maps) == ["measured", "from rna", "from all"]
    np.testing.assert_array_equal(maps["from rna"], told["rna", "msi"][:30, 1])
    assert checks.typical_maps(told, {"msi": y}, "msi", rows, 0.5)[0] == 2


# ---------------------------------------------------------------- models


def tiny(**settings):
    sizes = {"n_latent": 2, "hidden": [8], "narrow": 0}
    return mosaics.plan("batch", sizes, {"adversary": 1, "mixing": 0}, 3.0, epochs=2, batch_size=32, **settings)


def test_variants_have_the_terms_that_they_should_and_weigh_them():
    how, n_vars = tiny(beta=0.1), {"rna": 8, "msi": 5}
    ours, published = how.variants[mosaics.OURS], how.variants[mosaics.PUBLISHED]
    assert (
        ours.weights(n_vars, 0.1)["translation/rna to msi"]
        == 3 * published.weights(n_vars, 0.1)["translation/rna to msi"]
    )
    assert ours.weights(n_vars, 0.1)["adversary"] == 1 and "adversary" not in published.weights(n_vars, 0.1)
    data = mosaics.prepared(mosaic(), "batch")
    terms = {name: set(how.fit(data, "batch", name, 0)[0].penalties) for name in how.variants}
    assert terms[mosaics.OURS] - terms[mosaics.PUBLISHED] == {"adversary"}
    assert "translation" not in terms[mosaics.UNIMODAL] and "mixing" not in terms[mosaics.OURS]


def test_an_outcome_keeps_latents_and_the_same_seed_gives_the_same():
    data, setting = mosaics.prepared(mosaic(), "batch"), {"variant": mosaics.OURS, "seed": 3}
    made = mosaics.outcome(data, tiny(), "batch", setting)
    assert made["shared"].shape == (90, 2) and np.isfinite(made["shared"]).all()
    assert np.isnan(made["own/rna"][60:]).all() and np.isfinite(made["corrected"][:30]).all()
    again = mosaics.outcome(data, tiny(), "batch", setting)
    np.testing.assert_array_equal(made["shared"], again["shared"])


def test_a_broken_modality_is_looked_at_where_all_are_measured():
    data = mosaics.prepared(mosaic(180), "batch")
    model, _ = tiny().fit(data, "batch", mosaics.OURS, 0)
    table = checks.disturbed(model, data, "type", "batch")
    assert table["way"].tolist() == ["product", checks.MEAN, *["product", checks.MEAN, "product without it"] * 2]
    assert table["accuracy"].between(0, 1).all()
    assert checks.disturbed(model, data[60:].copy(), "type", "batch").empty


def test_held_out_predictions_are_in_the_units_of_the_data():
    data = mosaics.logged(mosaic(120), ["msi"])
    told, folds, measured = checks.held_out(data, tiny(), "batch", n_folds=2)
    assert set(told) == {(s, t) for s in ("rna", "msi", "all") for t in ("rna", "msi")}
    assert np.isnan(measured["msi"]).any(1).sum() == 40 and set(folds) == {0, 1}
    has = np.isfinite(measured["msi"]).all(1)
    np.testing.assert_allclose(told["all", "msi"][has].mean(0), measured["msi"][has].mean(0), rtol=0.3)
    assert np.isnan(told["rna", "msi"][80:]).all()  # batch c has no rna to tell it from


def test_a_batch_that_is_none_is_planted_for_all_methods():
    data = mosaic()
    data = data[data.obs["batch"] != "c"].copy()
    table = checks.null_check(data, ["msi"], tiny(), ["Harmony"], 2, 0)
    assert set(table["method"]) >= {mosaics.OURS, mosaics.PUBLISHED, checks.PCA}
    exact = table.set_index("method").loc[checks.PCA]
    assert exact["distance"] == pytest.approx(0, abs=1e-5) and exact["n_pairs"] == 30


# ---------------------------------------------------------------- verdicts


def scores(**ours):
    rows = [{"method": "PCA concatenated", "bio": 0.6, "batch": 0.3, "control": True}]
    rows += [{"method": "Harmony", "bio": 0.6, "batch": 0.6, "control": False}]
    rows += [{"method": "random", "bio": 0.3, "batch": 0.99, "control": True}]
    rows += [{"method": "MIMA", "bio": b, "batch": t, "control": False} for b, t in ours["mima"]]
    table = pd.DataFrame(rows)
    return table.assign(mean=table[["bio", "batch"]].mean(axis=1), total=0.6 * table["bio"] + 0.4 * table["batch"])


def test_mixing_counts_only_with_biology_kept():
    assert checks.verdict_on_mixing(scores(mima=[(0.7, 0.5)] * 3))["verdict"] == "holds"
    assert checks.verdict_on_mixing(scores(mima=[(0.5, 0.9)] * 3))["verdict"] == "does not hold here"


def test_the_best_other_method_is_the_bar_and_noise_is_none():
    good, bad = (
        checks.verdict_on_methods(scores(mima=[(0.7, 0.6)] * 3)),
        checks.verdict_on_methods(scores(mima=[(0.6, 0.5)])),
    )
    assert good["verdict"] == "holds" and "Harmony 0.60, the best of 2 others" in good["evidence"]
    assert bad["verdict"] == "does not hold here"


def known(shared, batch):
    rows = [("shared", "region", shared[0]), ("shared", "section", shared[1]), ("batch itself", "region", 0.3)]
    rows += [("batch itself", "section", 1.0), ("batch/rna", "region", batch[0]), ("batch/rna", "section", batch[1])]
    return pd.DataFrame(rows, columns=["latent", "target", "over_chance"])


def test_latents_are_apart_when_each_knows_its_own():
    assert checks.verdict_on_latents(known((0.8, 0.05), (0.35, 1.0)), "region", "section")["verdict"] == "holds"
    leaky = checks.verdict_on_latents(known((0.8, 0.6), (0.7, 1.0)), "region", "section")
    assert leaky["verdict"] == "does not hold here" and "section 0.60" in leaky["evidence"]


def test_translation_is_held_against_both_centroids():
    rows = [("rna", "msi", "translation", 0.5, 1.0), ("msi", "msi", "reconstruction", 0.6, 0.9)]
    rows += [
        ("annotation", "msi", "same annotation", 0.3, 2.0),
        ("annotation", "msi", "same annotation and sample", 0.4, 1.5),
    ]
    table = pd.DataFrame(rows, columns=["source", "target", "kind", "r2", "mse"])
    assert checks.verdict_on_translation(table)["verdict"] == "holds"
    table.loc[0, "r2"] = 0.35
    assert checks.verdict_on_translation(table)["verdict"] == "does not hold here"  # two of four
    assert checks.verdict_on_translation(table[1:])["verdict"] == "cannot be tested"


def test_other_verdicts_follow_from_their_tables():
    f1 = pd.DataFrame({"scheme": ["s"] * 2, "embedding": ["rna", "MIMA"], "f1": [0.5, 0.6], "f1 sd": [0.1, 0.05]})
    assert checks.verdict_on_prediction(f1, ["rna"])["verdict"] == "holds"
    ways = [
        ("none", "product", 1),
        ("rna", "product", 0.2),
        ("rna", checks.MEAN, 0.6),
        ("msi", "product", 0.3),
        ("msi", checks.MEAN, 0.4),
    ]
    broken = pd.DataFrame(ways, columns=["broken", "way", "accuracy"])
    assert checks.verdict_on_experts(broken)["verdict"] == "holds"
    assert checks.verdict_on_experts(broken[:3])["verdict"] == "cannot be tested"
    kept = pd.DataFrame({"latent": ["shared", "own/rna"], "modality": "rna", "what": "features", "R2": [0.3, 0.5]})
    assert checks.verdict_on_own(kept)["verdict"] == "holds"
    rare = pd.DataFrame({"embedding": ["MIMA", checks.PCA], "class": "z", "where": "all", "auc": [0.99, 1.0]})
    null = pd.DataFrame({"method": ["MIMA"], "nearest": [0.52]})
    assert checks.verdict_on_rare(rare, null)["verdict"] == "holds"
    assert checks.verdict_on_rare(rare, null.assign(nearest=0.9))["verdict"] == "does not hold here"


def test_rare_classes_are_judged_in_their_own_batch_where_they_have_one():
    rows = [("MIMA", "own section", 0.8), ("MIMA", "all", 0.99), ("PCA concatenated", "own section", 0.9)]
    table = pd.DataFrame(rows, columns=["embedding", "where", "auc"])
    assert checks.told_where(table)["auc"].to_list() == [0.8, 0.9]
    assert len(checks.told_where(table[table["where"] == "all"])) == 1


def test_no_rare_class_gives_an_empty_table_and_no_verdict(slides):
    data = slides.copy()
    data.obs["region"] = [f"r{i}" for i in range(data.n_obs)]
    del data.uns["truth"]
    table = checks.rarities({"z": np.zeros((data.n_obs, 2))}, data, "region", "section")
    assert table.empty
    assert checks.verdict_on_rare(table, pd.DataFrame())["verdict"] == "cannot be tested"


def test_sparse_intensities_are_made_dense():
    data = mosaic()
    data.mod["msi"].X = csr_matrix(data["msi"].X)
    kept = mosaics.chosen(data, "batch", n_features=3)
    assert kept["msi"].n_vars == 3 and isinstance(mosaics.scaled(data)["msi"].X, np.ndarray)
