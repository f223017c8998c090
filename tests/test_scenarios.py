"""The scenarios of notebook 04 and what is kept of every training in them."""

import json
from dataclasses import replace

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

from helpers import crossmodal, datasets, scenarios

TINY = crossmodal.Training(n_latent=3, n_hidden=16, width=2, epochs=2, n_batches=2)


def study(n=120, paired=True, seed=0) -> mudata.MuData:
    """Time moves a profile of 12 genes and a bar in a picture of 9 × 12 pixels; two classes, early and late."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.random(n)) * 10
    rna = np.sin(time[:, None] / np.arange(1, 13)) + 0.05 * rng.normal(size=(n, 12))
    columns = np.arange(12)
    bar = np.exp(-((columns - time[:, None]) ** 2) / 2)[:, None, :].repeat(9, 1).reshape(n, -1)
    names = np.array([f"s{i:03d}" for i in range(n)])
    shown = names if paired else np.array([f"p{i:03d}" for i in range(n)])
    image = ad.AnnData(bar.astype(np.float32), pd.DataFrame(index=shown))
    image.uns["image_shape"] = np.array([9, 12, 1])
    mdata = mudata.MuData({"rna": ad.AnnData(rna.astype(np.float32), pd.DataFrame(index=names)), "image": image})
    known = pd.Series(time, names) if paired else pd.Series(np.r_[time, time], np.r_[names, shown])
    mdata.obs["time"] = known[mdata.obs_names]
    mdata.obs["stage"] = pd.Categorical(np.where(mdata.obs["time"] < 5, "young", "old"), ["young", "old"])
    return mdata


@pytest.fixture(scope="module")
def load():
    """`datasets.load` that knows three studies by path, since a file of 120 samples would be read each time."""

    def given(name, *, label_key="", modalities=(), **options):
        if name not in ("pairs", "classes", "mosaic"):
            return datasets.load(name, label_key=label_key, modalities=modalities, **options)
        mdata = study(paired=name != "classes")
        if name == "mosaic":
            part = mudata.MuData({"rna": mdata["rna"], "image": mdata["image"][:80].copy()})
            part.obs = mdata.obs
            mdata = part
        kinds = {"rna": "continuous", "image": "image"}
        mdata.uns["dataset"] = {"name": name, "sha256": "0", "label_key": label_key, "modalities": kinds}
        return mdata

    return given


@pytest.fixture
def make(load, monkeypatch):
    monkeypatch.setattr(scenarios.datasets, "load", load)

    def of(name, label_key="stage", **options):
        return scenarios.scenario(name, "rna", "image", label_key, device="cpu", **options)

    return of


def test_a_blocked_split_holds_back_whole_stretches(make):
    given = make("pairs", blocks=6)
    split = given.mdata.obs.sort_values("time")["split"].to_numpy()
    changes = (split[1:] != split[:-1]).sum()
    assert given.blocked and given.order == "time" and 2 <= changes <= 5
    random = make("pairs").mdata.obs.sort_values("time")["split"].to_numpy()
    assert (random[1:] != random[:-1]).sum() > 30


def test_without_an_order_the_blocked_split_is_left_out(make, load, monkeypatch):
    def untimed(name, **options):
        mdata = load(name, **options)
        del mdata.obs["time"]
        return mdata

    monkeypatch.setattr(scenarios.datasets, "load", untimed)
    options = {"label_key": "stage", "device": "cpu"}
    with pytest.warns(UserWarning, match="blocked split is left out.*order"):
        found = scenarios.by_split("pairs", "rna", "image", ["random", "blocked"], **options)
    assert list(found) == ["random"]
    with pytest.raises(ValueError, match="splits are random and blocked, not 'rndom'"):
        scenarios.by_split("pairs", "rna", "image", ["rndom"], **options)


def test_only_pairs_are_split_and_the_rest_serves_training(make):
    given = make("mosaic")
    lacking = ~given.mdata.obs_names.isin(given.mdata["image"].obs_names)
    assert lacking.sum() == 40 and (given.mdata.obs["split"][lacking] == "train").all()
    assert len(given.rows("test", "rna", "image")) == 16 and given.paired


def test_a_subset_keeps_both_modalities_of_unpaired_data(make):
    mdata = study(paired=False)[:150].copy()  # 120 profiles and 30 pictures
    part = scenarios.subset(mdata, 80, seed=0)
    assert part.n_obs == 80 and part["image"].n_obs == 30 and part["rna"].n_obs == 50
    assert scenarios.subset(mdata, 0, seed=0) is mdata


def test_given_ids_are_the_split(make):
    names = [f"s{i:03d}" for i in range(120)]
    given = make("pairs", ids={"train": names[:80], "valid": names[80:100], "test": names[100:]})
    assert list(given.rows("test", "rna")) == list(range(100, 120))


def test_what_is_scored_and_coloured(make):
    pairs, classes = make("pairs"), make("classes")
    assert pairs.key == "time" and classes.key == "stage" and not classes.paired
    assert len(scenarios.scored_rows(classes)) == len(classes.rows("test", "rna")) < len(classes.rows("test"))
    assert pairs.classes() == ["young", "old"]
    assert pairs.x("image", "test").shape == (len(scenarios.scored_rows(pairs)), 108)
    table = scenarios.summary({"a": pairs, "b": classes})
    assert table.loc["a", "train pairs"] == 72 and table.loc["b", "train pairs"] == 0


@pytest.mark.parametrize("text", ["sim-bulk", "sim-bulk rna"])
def test_a_scenario_needs_three_words(text):
    with pytest.raises(ValueError, match="written 'data set, source, target'"):
        scenarios.parse(text)
    assert scenarios.parse("my data.h5mu rna image") == ("my data.h5mu", "rna", "image")


def test_simple_methods_read_the_time(make):
    given = make("pairs")
    found = {name: scenarios.score(given, x)["R2 over mean"] for name, x in scenarios.baselines(given).items()}
    assert found["mean"] == pytest.approx(0, abs=0.05) and found["nearest neighbour"] > 0.9
    unpaired = scenarios.baselines(make("classes"))
    assert set(unpaired) == {"mean", "class mean"}
    blocked = scenarios.baselines(make("pairs", blocks=6))
    assert set(blocked) == set(scenarios.baselines(given))


def test_alignment_is_perfect_for_the_same_codes(make):
    given = make("pairs")
    z = np.random.default_rng(0).normal(size=(120, 3)) + given.mdata.obs["time"].to_numpy()[:, None]
    found = scenarios.aligned(given, {"rna": z, "image": z})
    assert found["FOSCTTM"] == 0 and found["modality accuracy"] <= 0.6 and found["label transfer"] > 0.8


def test_a_walk_follows_time_or_leads_from_class_to_class(make):
    given = make("pairs")
    steps, places = scenarios.walk(given, given.mdata.obs[["time"]].to_numpy(), 8)
    assert len(steps) == 8 and (np.diff(places[:, 0]) > 0).all()
    steps, places = scenarios.walk(make("classes"), make("classes").mdata.obs[["time"]].to_numpy(), 4)
    assert steps[0] == "young" and steps[-1] == "old" and len(steps) == len(places) == 5
    np.testing.assert_allclose(places[2], (places[0] + places[-1]) / 2)
    nothing = replace(make("pairs"), label_key="", order="")
    steps, places = scenarios.walk(nothing, given.mdata.obs[["time"]].to_numpy(), 4)
    assert len(steps) == 4 and len(set(np.sign(np.diff(places[:, 0])))) == 1


@pytest.mark.parametrize("name", ["pairs", "classes"])
def test_wanted_shares_sum_to_one_and_name_terms_that_exist(make, name):
    given = make(name)
    for variant in crossmodal.variants(given).values():
        shares = crossmodal.wanted(given, variant, kl=0.1)
        assert sum(shares.wanted.values()) == pytest.approx(1) and shares.wanted["kl"] == 0.1
        model, history = crossmodal.train(given, variant, TINY)  # fit refuses shares of terms that are not there
        assert ("adversarial" in model.penalties) == ("accuracy" in set(history["term"]))


def test_the_plan_has_every_variant_that_is_possible_and_the_study_of_the_balance(make):
    given = {"a": make("pairs"), "b": make("classes")}
    plan = crossmodal.plan(given, ["X-modalix", "from PCA"], [0, 1], "a", [0.1, 0.2], [0.3])
    assert len(plan) == 2 * (2 + 1) + 2 * 2
    assert not any(p["scenario"] == "b" and p["variant"] == "from PCA" for p in plan)
    assert {(p["kl"], p["align"]) for p in plan if "kl" in p} == {(0.1, 0.3), (0.2, 0.3)}


@pytest.mark.parametrize(
    "name, variant", [("pairs", "from PCA"), ("classes", "with cycle"), ("mosaic", "with translation")]
)
def test_an_outcome_holds_what_the_notebook_shows(make, name, variant):
    given = make(name)
    found = crossmodal.outcome(given, variant, TINY)
    n = len(scenarios.scored_rows(given))
    assert found["x_hat"].shape == found["sd"].shape == (n, 108) and np.isfinite(found["x_hat"]).all()
    assert found["z_source"].shape == (given.mdata.n_obs, 3)
    assert found["walk_source"].shape[0] == found["walk_target"].shape[0] == len(json.loads(found["steps"]))
    assert found["centres_source"].shape == found["centres_target"].shape == (2, 108)
    results = [found | {"variant": variant, "seed": 0}]
    shares = crossmodal.kept(results, "shares").groupby("epoch")["share"].sum()
    np.testing.assert_allclose(shares, 1, atol=1e-6)
    table = crossmodal.compare(given, results, TINY)
    assert {"control", "model", "ceiling"} == set(table["kind"])
    pictures, labels, simple = crossmodal.gallery(given, results, [variant])
    assert all(len(x) == len(labels) == n for x in pictures.values()) and set(simple) <= set(pictures)
    xy, about = crossmodal.meeting(given, results[0], lambda x, train: x[:, :2])
    assert all(len(xy[m]) == len(about[m]) == len(given.rows("test", m)) for m in xy)


def test_the_same_seed_gives_the_same_outcome(make):
    given = make("pairs")
    first, second = (crossmodal.outcome(given, "X-modalix", TINY, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first["x_hat"], second["x_hat"])


def test_posterior_draws_disagree_where_the_source_is_silent(make):
    given = make("pairs")
    result = crossmodal.outcome(given, "X-modalix", TINY)
    found = crossmodal.certainty(given, result)
    assert found["sd of draws"] > 0 and found["error"] > 0 and -1 <= found["rank correlation"] <= 1
