"""Annotation told from embeddings: known answers, what is left out, leave-one-out is honest, errors."""

import numpy as np
import pandas as pd
import pytest

from helpers import regions
from helpers.regions import FOUR_FOLD, LEAVE_ONE_OUT

FAST = {"n_bags": 3, "n_trees": 3}


@pytest.fixture(scope="module")
def tissue():
    """Four samples of 60 spots in three regions, one of which ("rare") is in a single sample."""
    rng = np.random.default_rng(0)
    region = rng.choice(["stroma", "tumour"], 240, p=[0.7, 0.3])
    region[:16] = "rare"
    obs = pd.DataFrame({"region": region, "sample": np.repeat(["s1", "s2", "s3", "s4"], 60)})
    obs.index = [f"spot{i}" for i in range(240)]
    one_hot = pd.get_dummies(obs["region"]).to_numpy(float)
    return obs, one_hot + 0.1 * rng.normal(size=(240, 3)), rng.normal(size=(240, 3))


@pytest.fixture(scope="module")
def told(tissue):
    obs, z, _ = tissue
    return regions.predict({"truth": z}, obs, "region", "sample", learner=regions.one_vs_rest(**FAST))


def test_a_perfect_embedding_scores_one(told):
    table = regions.summary(told.scores).set_index(["embedding", "scheme"])
    assert (table.loc[("truth", LEAVE_ONE_OUT), regions.METRICS] == 1).all()
    assert table.loc[("truth", FOUR_FOLD), "recall"] == 1 and table.loc[("truth", FOUR_FOLD), "f1"] > 0.9
    assert table["n_folds"].unique().tolist() == [4] and table.loc[("truth", LEAVE_ONE_OUT), "f1 sd"] == 0


def test_more_trees_and_one_forest_are_perfect_within_samples_and_controls_are_not(tissue):
    obs, z, noise = tissue
    folds = {FOUR_FOLD: regions.schemes(obs, "sample")[FOUR_FOLD]}

    def f1(learner, **embeddings):
        found = regions.predict(embeddings, obs, "region", "sample", folds, learner)
        return regions.summary(found.scores).set_index("embedding")["f1"]

    assert f1(regions.one_vs_rest(8, 4), truth=z)["truth"] > 0.97
    forest = f1(regions.one_forest(20), truth=z, zeros=np.zeros((240, 2)), random=noise)
    assert forest["truth"] > 0.97 and forest["zeros"] < 0.4 and forest["random"] < 0.5


def test_a_class_of_one_sample_is_left_out_of_leave_one_out_and_told_within(told, tissue):
    assert told.left_out == {LEAVE_ONE_OUT: {"rare": "all in fold 's1'"}, FOUR_FOLD: {}}
    assert set(told.scores.query("scheme == @LEAVE_ONE_OUT")["class"]) == {"stroma", "tumour"}
    labels, obs = told.labels[FOUR_FOLD], tissue[0]
    assert (labels["truth"] == obs["region"]).mean() > 0.97 and labels.index.equals(obs.index)
    assert told.labels[LEAVE_ONE_OUT]["truth"].isna().tolist() == (obs["region"] == "rare").tolist()


def test_folds_are_samples_and_within_samples(told):
    scores = told.scores.query("embedding == 'truth'")
    assert set(scores.query("scheme == @LEAVE_ONE_OUT")["fold"]) == {"s1", "s2", "s3", "s4"}
    assert set(scores.query("scheme == @FOUR_FOLD")["fold"]) == {"1", "2", "3", "4"}
    assert set(scores.query("scheme == @FOUR_FOLD")["n_test"]) == {60}
    assert (scores["n_positive"] >= 3).all()


def test_a_sample_left_out_is_not_learned_from(tissue):
    """Labels of sample s4 are spoiled: what is said of s4 stays the same, and is right."""
    obs, z, _ = tissue
    spoiled = obs.copy()
    spoiled.loc[obs["sample"] == "s4", "region"] = np.random.default_rng(1).choice(["stroma", "tumour"], 60)
    folds = {LEAVE_ONE_OUT: obs["sample"].to_numpy()}
    said = [
        regions.predict({"z": z}, o, "region", "sample", folds, regions.one_forest(10)).labels[LEAVE_ONE_OUT]["z"]
        for o in (obs, spoiled)
    ]
    here = (obs["sample"] == "s4").to_numpy()
    assert said[0][here].tolist() == said[1][here].tolist() == obs["region"][here].tolist()


@pytest.mark.parametrize("learner", [regions.one_vs_rest(**FAST), regions.one_forest(10)])
def test_learners_are_deterministic_and_find_a_class_of_two(learner):
    rng = np.random.default_rng(2)
    y = np.repeat(["a", "b", "c"], [60, 40, 2])
    x = pd.get_dummies(pd.Series(y)).to_numpy(float) * 5 + 0.5 * rng.normal(size=(102, 3))
    probability, decided = learner(x, y, x, 0)
    again = learner(x, y, x, 0)
    np.testing.assert_array_equal(probability, again[0])
    assert probability.shape == decided.shape == (102, 3) and decided.dtype == bool
    assert (probability.argmax(1) == np.repeat([0, 1, 2], [60, 40, 2])).mean() > 0.97 and decided[-2:, 2].all()


def test_one_forest_decides_for_one_class_each(tissue):
    obs, z, _ = tissue
    _, decided = regions.one_forest(5)(z, obs["region"].to_numpy(str), z, 0)
    assert (decided.sum(1) == 1).all()


def test_binary_scores_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    rng = np.random.default_rng(0)
    truth, decided = rng.random(50) < 0.3, rng.random(50) < 0.4
    found = regions.binary_scores(truth, decided)
    expected = precision_recall_fscore_support(truth, decided, average="binary")[:3]
    np.testing.assert_allclose([found[m] for m in regions.METRICS], [accuracy_score(truth, decided), *expected])
    nothing = regions.binary_scores(truth, np.zeros(50, bool))
    assert nothing["precision"] == nothing["f1"] == nothing["recall"] == 0


def test_few_positives_are_not_scored_and_averages_are_over_classes_then_folds():
    obs = pd.DataFrame({"region": ["a"] * 10 + ["b"] * 10 + ["c"] * 4, "sample": ["s"] * 24})
    folds = {"two": np.array([0, 1] * 10 + [0, 0, 1, 1])}
    z = pd.get_dummies(obs["region"]).to_numpy(float)
    found = regions.predict({"z": z}, obs, "region", "sample", folds, regions.one_vs_rest(**FAST), min_spots=4)
    assert set(found.scores["class"]) == {"a", "b"}  # two of c in each fold: known, predicted, not scored
    assert set(found.labels["two"]["z"]) == {"a", "b", "c"}
    table = pd.DataFrame({"embedding": "z", "scheme": "x", "fold": ["1", "1", "2"], "class": ["a", "b", "a"]})
    table = table.assign(accuracy=1.0, precision=1.0, recall=1.0, f1=[0.0, 1.0, 1.0])
    assert regions.per_fold(table)[["f1", "n_classes"]].to_numpy().tolist() == [[0.5, 2], [1, 1]]
    row = regions.summary(table).iloc[0]
    assert row["f1"] == 0.75 and row["f1 sd"] == pytest.approx(0.125**0.5) and row["n_folds"] == 2


def test_classes_can_be_left_out_by_name_or_size_and_unlabelled_spots_are(tissue):
    obs, z, _ = tissue
    obs = obs.assign(region=obs["region"].where(np.arange(240) > 2))
    more = regions.predict({"z": z}, obs, "region", "sample", min_spots=14, learner=regions.one_forest(5))
    assert more.left_out[FOUR_FOLD] == {"rare": "13 spots, fewer than 14"}
    found = regions.predict({"z": z}, obs, "region", "sample", exclude=["rare"], learner=regions.one_forest(5))
    assert found.left_out[FOUR_FOLD] == {"rare": "excluded by name"}
    assert found.labels[FOUR_FOLD]["z"].isna().sum() == 16
    assert set(found.labels[FOUR_FOLD]["z"].dropna()) == {"stroma", "tumour"}


def test_predict_says_what_is_wrong(tissue):
    obs, z, _ = tissue
    with pytest.raises(ValueError, match="all spots are of sample 's1': leaving one sample out needs two"):
        regions.predict({"z": z[:60]}, obs[:60], "region", "sample")
    with pytest.raises(ValueError, match="class 'stroma' is all that is left of 'region', two or more"):
        regions.predict({"z": z}, obs.assign(region="stroma"), "region", "sample")
    with pytest.raises(ValueError, match="class none is all that is left"):
        regions.predict({"z": z}, obs, "region", "sample", min_spots=500)
    with pytest.raises(ValueError, match="embedding 'z' has NaN in 240 of 240 spots"):
        regions.predict({"z": np.where(z > 9, z, np.nan)}, obs, "region", "sample")
    with pytest.raises(ValueError, match=r"embedding 'z' has shape \(5, 3\): it must be \[240, n_latent\]"):
        regions.predict({"z": z[:5]}, obs, "region", "sample")
    with pytest.raises(ValueError, match="no column 'label'"):
        regions.predict({"z": z}, obs, "label", "sample")
