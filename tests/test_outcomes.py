"""Predicting annotation from embeddings: scores against scikit-learn and lifelines, planted signals, bad input."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import build
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from helpers import annotation, learners, metrics, outcomes, tasks
from helpers.annotation import Task

rng = np.random.default_rng
PAM = Task("subtype", "classification", ("subtype",))
AGE = Task("age", "regression", ("age",))
OS = Task("os", "survival", ("os_months", "os_event"))


def planted(n=240, seed=0) -> tuple[np.ndarray, pd.DataFrame]:
    """Codes [n, 4] that know the subtype (1st and 2nd), the age (3rd) and the hazard (4th), and the annotation."""
    r = rng(seed)
    z = r.normal(size=(n, 4))
    code = r.integers(0, 3, n)
    z[:, 0] += 3 * (code == 1)
    z[:, 1] += 3 * (code == 2)
    death, censored = r.exponential(np.exp(-1.5 * z[:, 3])), r.exponential(2, n)
    obs = pd.DataFrame(
        {
            "split": pd.Categorical(np.resize(["train", "train", "valid", "test"], n)),
            "subtype": pd.Categorical(np.array(["A", "B", "C"])[code]),
            "age": 60 + 10 * z[:, 2] + 3 * r.normal(size=n),
            "os_months": 12 * np.minimum(death, censored),
            "os_event": (death <= censored).astype(int),
        },
        index=[f"s{i}" for i in range(n)],
    )
    return z, obs


def all_tasks(z, obs, method="planted", **options):
    options = {"n_bootstrap": 20, "learners": ("linear",)} | options
    return tasks.predict_labels({method: z}, obs, **options)


def values(table):
    return table.set_index(["task", "learner", "metric"])["value"]


# ---------------------------------------------------------------- scores against known values


def ones(n):
    return np.ones((1, n))


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_that_of_scikit_learn_and_of_metrics(ties):
    y, score = rng(0).choice(list("abcd"), 90), rng(1).dirichlet(np.ones(4), 90)
    if ties:
        score = np.round(score * 4) / 4
        score /= score.sum(axis=1, keepdims=True)
        theirs = metrics.quality._pairwise_auc(y, score, np.array(list("abcd")))
    else:
        theirs = roc_auc_score(y, score, multi_class="ovo", average="macro")
    ours = learners.pairwise_auc(y, score, np.array(list("abcd")), ones(90))
    assert ours == pytest.approx(theirs, abs=1e-12)
    two = np.isin(y, ["a", "b"])
    binary = np.column_stack([-score[two, 1], score[two, 1]])
    ours = learners.pairwise_auc(y[two], binary, np.array(["a", "b"]), ones(two.sum()))
    assert ours == pytest.approx(roc_auc_score(y[two] == "b", score[two, 1]))


def test_auc_is_over_classes_that_train_and_test_share():
    y, score, classes = rng(0).choice(list("abx"), 60), rng(1).random((60, 3)), np.array(list("abc"))
    shared = np.isin(y, ["a", "b"])
    expected = metrics.quality._pairwise_auc(y[shared], score[shared][:, :2], classes[:2])
    assert learners.pairwise_auc(y, score, classes, ones(60)) == pytest.approx(expected)
    assert np.isnan(learners.pairwise_auc(np.repeat("a", 60), score, classes, ones(60))).all()


@pytest.mark.parametrize("kind", ["classification", "regression", "survival"])
def test_a_weight_counts_a_sample_so_many_times(kind):
    n = 50
    weight = rng(2).multinomial(n, np.full(n, 1 / n), size=3).astype(float)
    for row in weight:
        rows = np.repeat(np.arange(n), row.astype(int))
        if kind == "classification":
            y, score = np.resize(list("abc"), n), np.round(rng(0).random((n, 3)), 1)
            ours = learners.pairwise_auc(y, score, np.array(list("abc")), row[None])
            theirs = metrics.quality._pairwise_auc(y[rows], score[rows], np.array(list("abc")))
        elif kind == "regression":
            y, guess = rng(0).normal(size=(2, n))
            ours = learners._regression(y, learners.Prediction(guess, None, True), row[None])["r2"][0]
            theirs = r2_score(y[rows], guess[rows])
        else:
            y = np.column_stack([rng(0).integers(1, 30, n), rng(1).integers(0, 2, n)]).astype(float)
            risk = np.round(rng(3).normal(size=n), 1)
            ours = learners.concordance(y, risk, row[None])
            theirs = concordance_index(y[rows, 0], -risk[rows], y[rows, 1])
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_c_index_of_a_perfect_an_inverted_and_a_random_risk():
    r = rng(0)
    hazard = r.normal(size=2000)
    time, event = r.exponential(np.exp(-hazard)), r.random(2000) < 0.7
    y = np.column_stack([time, event])
    assert learners.concordance(y, -time, ones(2000)) == 1
    assert learners.concordance(y, time, ones(2000)) == 0
    assert learners.concordance(y, np.zeros(2000), ones(2000)) == 0.5
    assert learners.concordance(y, r.normal(size=2000), ones(2000)) == pytest.approx(0.5, abs=0.02)
    assert learners.concordance(y, hazard, ones(2000)) == pytest.approx(concordance_index(time, -hazard, event))
    assert np.isnan(learners.concordance(np.array([[1.0, 0], [2, 0]]), np.zeros(2), ones(2)))


def test_scores_of_a_prediction_are_those_of_scikit_learn():
    y, classes = rng(0).choice(list("abc"), 80, p=[0.6, 0.3, 0.1]), np.array(list("abc"))
    score = rng(1).dirichlet(np.ones(3), 80)
    rows = {r["metric"]: r for r in learners.evaluate("classification", y, learners.Prediction(score, classes, True))}
    assert rows["auc"]["value"] == pytest.approx(roc_auc_score(y, score, multi_class="ovo"))
    assert rows["balanced_accuracy"]["value"] == pytest.approx(
        balanced_accuracy_score(y, classes[score.argmax(axis=1)])
    )
    assert (rows["auc"]["chance"], rows["balanced_accuracy"]["chance"]) == (0.5, pytest.approx(1 / 3))


def test_bootstrap_keeps_strata_and_without_draws_there_is_no_interval():
    strata = np.array(["a"] * 5 + ["b"] * 3 + ["c"])
    weight = learners.bootstrap_weights(strata, 100, seed=1)
    for name, size in {"a": 5, "b": 3, "c": 1}.items():
        assert (weight[:, strata == name].sum(axis=1) == size).all()
    np.testing.assert_array_equal(weight, learners.bootstrap_weights(strata, 100, seed=1))
    assert (weight != learners.bootstrap_weights(strata, 100, seed=2)).any()
    row = learners.evaluate("regression", np.arange(9.0), learners.Prediction(np.ones(9), None, True), n_bootstrap=0)
    assert np.isnan([row[0]["low"], row[0]["high"]]).all()


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for k in range(200):  # AUC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2) = 0.7602
        score = rng(k).normal(size=120) + np.repeat([1, 0], 60)
        prediction = learners.Prediction(np.column_stack([-score, score]), np.array(["no", "yes"]), True)
        row = learners.evaluate("classification", np.repeat(["yes", "no"], 60), prediction, 200, seed=k)[0]
        covered += row["low"] <= 0.7602 <= row["high"]
    assert 0.88 <= covered / 200 <= 0.99


# ---------------------------------------------------------------- learners


@pytest.mark.parametrize("n_vars", [4, 20])
def test_cox_is_the_ridge_cox_of_lifelines_with_ties(n_vars):
    r = rng(0)
    x = r.normal(size=(80, n_vars))
    time, event = np.ceil(8 * r.exponential(np.exp(-x[:, 0]))), r.random(80) < 0.6
    x = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)  # as lifelines does inside, where it penalises
    table = pd.DataFrame(x).assign(time=time, event=event)
    theirs = CoxPHFitter(penalizer=0.3).fit(table, "time", "event").params_.to_numpy()
    ours, converged = learners.cox(x, time, event, penalty=0.3)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert converged and len(np.unique(time)) < 40 and np.abs(ours[0]) > 0.1


def test_cox_finds_planted_hazards():
    r = rng(1)
    x = r.normal(size=(3000, 3))
    time, censored = r.exponential(np.exp(-x @ [1.0, -0.5, 0])), r.exponential(2, 3000)
    beta, _ = learners.cox(x, np.minimum(time, censored), time <= censored, penalty=0)
    np.testing.assert_allclose(beta, [1, -0.5, 0], atol=0.08)


@pytest.mark.parametrize("learner", learners.LEARNERS)
def test_every_learner_finds_what_was_planted_and_nothing_in_noise(learner):
    z, obs = planted(400)
    found = values(all_tasks(z, obs, learners=learner, columns=["subtype", "age"]))
    noise = values(all_tasks(rng(9).normal(size=z.shape), obs, learners=learner, columns=["subtype", "age"]))
    assert found["subtype", learner, "auc"] > 0.9 and found["subtype", learner, "balanced_accuracy"] > 0.8
    assert found["age", learner, "r2"] > 0.6
    assert 0.35 < noise["subtype", learner, "auc"] < 0.65 and noise["age", learner, "r2"] < 0.1


def test_survival_finds_what_was_planted():
    z, obs = planted(400)
    hidden = z.copy()
    hidden[:, 3] = rng(5).normal(size=400)
    assert values(all_tasks(z, obs, columns="os"))["os", "linear", "c_index"] > 0.75
    assert values(all_tasks(hidden, obs, columns="os"))["os", "linear", "c_index"] < 0.6


@pytest.mark.parametrize("kind", [PAM, AGE, OS], ids=lambda task: task.kind)
def test_units_of_an_embedding_and_of_a_target_do_not_matter(kind):
    z, obs = planted(160)
    settings = outcomes.Settings(n_bootstrap=0)
    scaled = obs.assign(age=1e4 * obs["age"] - 7, os_months=30 * obs["os_months"])
    first = outcomes.score(z, obs, kind, settings)
    second = outcomes.score(z * [1e-4, 1e5, 3, 1] + [0, 1, -9, 2], scaled, kind, settings)
    for a, b in zip(first, second, strict=True):
        slack = 0.05 if a["learner"] == "forest" else 1e-3  # a rounded threshold may move a sample
        assert a["value"] == pytest.approx(b["value"], abs=slack), a["learner"]


def test_an_optimiser_that_stops_early_is_a_flag_and_no_warning(monkeypatch):
    z, obs = planted()
    monkeypatch.setattr(learners, "MAX_ITER", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = all_tasks(z, obs, columns=["subtype", "age", "os"]).set_index("task")["converged"]
    assert not table["subtype"].any() and table["age"].all() and table["os"].all()


def test_cox_flags_what_it_cannot_fit_and_passes_over_dead_dimensions():
    r = rng(2)
    x, time = r.normal(size=(60, 2)), r.exponential(size=60)
    twice = np.hstack([x, x])
    assert not learners.cox(twice, time, np.ones(60), penalty=0)[1]  # no single answer
    dead = np.hstack([x, np.zeros((60, 1))])
    beta, converged = learners.cox(dead, time, np.ones(60))
    assert converged and beta[2] == 0 and (beta[:2] != 0).all()
    wide = learners.predict(
        "survival", "linear", r.normal(size=(60, 200)), np.c_[time, np.ones(60)], r.normal(size=(9, 200))
    )
    assert wide.converged and wide.score.shape == (9,)


def test_other_warnings_of_a_learner_are_passed_on():
    class Noisy:
        def fit(self, x, y):
            warnings.warn("look here", UserWarning, stacklevel=2)

    with pytest.warns(UserWarning, match="look here"):
        assert learners._fit(Noisy(), None, None)


# ---------------------------------------------------------------- tasks


def annotated() -> pd.DataFrame:
    obs = planted(80)[1]
    r = rng(3)
    obs["smoker"] = r.random(80) < 0.5
    obs["grade"] = r.integers(1, 4, 80).astype(float)
    obs.loc["s3", "grade"] = np.nan
    obs["n_nodes"] = r.integers(0, 40, 80)
    obs["mixed"] = pd.Series(list(r.normal(size=80)), dtype=object, index=obs.index)
    obs["survival_months"], obs["event"] = r.exponential(10, 80), pd.array(np.resize([0, 1], 80), dtype="Int64")
    obs.loc["s5", "event"] = pd.NA
    return obs


def test_kinds_are_detected():
    found = {task.name: (task.kind, task.columns) for task in annotation.find_tasks(annotated())}
    assert found == {
        "subtype": ("classification", ("subtype",)),
        "age": ("regression", ("age",)),
        "smoker": ("classification", ("smoker",)),
        "grade": ("classification", ("grade",)),  # whole numbers that a missing value has turned into floats
        "n_nodes": ("regression", ("n_nodes",)),
        "mixed": ("regression", ("mixed",)),
        "os": ("survival", ("os_months", "os_event")),
        "survival": ("survival", ("survival_months", "event")),
    }


def test_kinds_and_survival_can_be_given():
    obs = annotated()
    found = annotation.find_tasks(obs, ["grade", "os", "os_months"], kinds={"grade": "regression"})
    assert [(t.name, t.kind) for t in found] == [
        ("grade", "regression"),
        ("os", "survival"),
        ("os_months", "regression"),
    ]
    found = {t.name: t for t in annotation.find_tasks(obs, survival={"death": ["os_months", "event"]})}
    assert found["death"] == Task("death", "survival", ("os_months", "event"))
    assert "os" not in found and found["survival_months"].kind == "regression"
    assert "os_event" in {t.name for t in annotation.find_tasks(obs, kinds={"os_event": "classification"})}
    y, known = annotation.labels(obs, Task("event", "regression", ("event",)))
    assert (~known).sum() == 1 and set(y[known]) == {0, 1}


def test_what_cannot_be_scored_is_left_out_with_one_warning():
    obs = annotated().assign(cohort="BRCA", empty=np.nan, visit=pd.Timestamp("2020-01-01"))
    obs["patient"] = obs.index
    with pytest.warns(UserWarning) as caught:
        names = [t.name for t in annotation.find_tasks(obs)]
    assert not {"cohort", "empty", "visit", "patient"} & set(names) and "age" in names
    assert len(caught) == 1 and "'cohort' (there is one class (BRCA) in the train split)" in str(caught[0].message)


def one_class_in_test(obs):
    obs["x"] = np.where((obs["split"] == "test") | (np.arange(len(obs)) % 3 == 0), "LumA", "Basal")


def nothing_shared(obs):
    obs["x"] = [f"{split}{k % 2}" for k, split in enumerate(np.repeat(obs["split"].astype(str).to_numpy()[:4], 20))]
    obs["split"] = np.repeat(obs["split"].astype(str).to_numpy()[:4], 20)


def events(train, test):
    def spoil(obs):
        obs["x_event"] = np.where(obs["split"] == "test", test, train)
        obs["x_months"] = 1.0

    return spoil


def column(values):
    def spoil(obs):
        obs["x"] = values if np.ndim(values) == 0 else np.resize(np.array(values, dtype=object), len(obs))

    return spoil


def negative_time(obs):
    events(1, 1)(obs)
    obs["x_months"] = -1.0


def no_label_in_test(obs):
    obs["x"] = np.where(obs["split"] == "test", np.nan, rng(0).normal(size=len(obs)))


BAD = [
    (one_class_in_test, None, r"there is one class \(LumA\) in the test split"),
    (nothing_shared, None, "the train and test splits share fewer than two classes"),
    (events(0, 0), None, "there are no events in the train split"),
    (events(1, 0), None, "there are no events in the test split"),
    (events(2, 1), None, "events other than 0 and 1 are in the train split"),
    (negative_time, None, "negative times are in the train split"),
    (column(1.5), None, r"the value is constant \(1.5\) in the train split"),
    (column([0.5, np.inf, 1.5]), None, "it has infinite values"),
    (column(["old", "young", "old"]), {"x": "regression"}, "its values are not numbers"),
    (column(pd.Timestamp("2020-01-01")), None, "it holds dates"),
    (no_label_in_test, None, "no sample of the test split has a label"),
]


@pytest.mark.parametrize(("spoil", "kinds", "message"), BAD, ids=[message[:30] for *_, message in BAD])
def test_a_named_task_that_cannot_be_scored_is_an_error(spoil, kinds, message):
    z, obs = planted(80)
    spoil(obs)
    with pytest.raises(ValueError, match=f"'x' cannot be scored: {message}"):
        all_tasks(z, obs, columns=["x"], kinds=kinds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["subtyp"]}, "there is no 'subtyp' to predict; did you mean 'subtype'"),
        ({"columns": ["split"]}, "there is no 'split' to predict"),
        ({"columns": []}, "no column can be scored: there is none"),
        ({"kinds": {"age": "numbers"}}, r"kinds\['age'\] is 'numbers', not 'classification' or 'regression'"),
        ({"kinds": {"os": "survival"}}, r"give survival=\{'os': \(time, event\)\}"),
        ({"kinds": {"aeg": "regression"}}, "kinds names 'aeg', which is no task here; did you mean 'age'"),
        ({"survival": {"os": "os_months"}}, r"survival\['os'\] must be the columns \(time, event\)"),
        ({"survival": {"os": ["os_months", "dead"]}}, "there is no column 'dead' in obs"),
        ({"learners": ["boosting"]}, "unknown learner 'boosting'; choose from 'linear', 'forest', 'svm'"),
        ({"learners": []}, "no learner is named"),
        ({"learners": ["svm"]}, r"survival \('os'\) has the learner 'linear' only"),
        ({"scored_on": "tset"}, "scored_on is 'tset'; it must be one of 'train', 'valid', 'test'"),
        ({"n_bootstrap": -1}, "n_bootstrap is -1"),
    ],
)
def test_bad_options_are_errors(options, message):
    z, obs = planted(80)
    with pytest.raises(ValueError, match=message):
        all_tasks(z, obs, **options)


def test_bad_embeddings_are_errors():
    z, obs = planted(80)
    with pytest.raises(ValueError, match=r"embedding 'planted' has shape \(79, 4\); it must be \[80, n_dimensions\]"):
        all_tasks(z[1:], obs)
    with pytest.raises(ValueError, match="embedding 'planted' has 2 values that are NaN or infinite"):
        all_tasks(np.where(np.arange(320).reshape(80, 4) < 2, np.nan, z), obs)
    with pytest.raises(ValueError, match="there are no embeddings"):
        tasks.predict_labels({}, obs)
    with pytest.raises(ValueError, match=r"obs has no column 'split'; run prepare\.split first"):
        all_tasks(z, obs.drop(columns="split"))


# ---------------------------------------------------------------- tables


def test_the_table_is_tidy_and_the_same_for_a_mudata():
    z, obs = planted()
    mdata = build({"rna": z})
    mdata.obs = obs
    table = all_tasks(z, mdata, learners=learners.LEARNERS)
    assert list(table.columns) == ["method", *outcomes.COLUMNS]
    assert list(table.columns[1:9]) == ["task", "kind", "learner", "metric", "value", "low", "high", "chance"]
    assert len(table) == 3 * 2 + 3 + 1 and not table.duplicated(["task", "learner", "metric"]).any()
    assert (table["low"] <= table["high"]).all() and table["value"].between(table["low"], table["high"]).mean() > 0.8
    assert (table["n_train"] == 120).all() and (table["n_test"] == 60).all() and (table["n_dimensions"] == 4).all()
    pd.testing.assert_frame_equal(table, all_tasks(z, obs, learners=learners.LEARNERS))
    pd.testing.assert_frame_equal(table, all_tasks(sparse.csr_matrix(z), obs, learners=learners.LEARNERS))


def test_missing_labels_are_left_out_of_their_task_only():
    z, obs = planted()
    alone = all_tasks(z, obs, columns=["age"])
    gaps = obs.assign(subtype=obs["subtype"].where(rng(0).random(240) > 0.4))
    both = all_tasks(z, gaps, columns=["subtype", "age"])
    pd.testing.assert_frame_equal(both[both["task"] == "age"].reset_index(drop=True), alone)
    row, used = both[both["task"] == "subtype"].iloc[0], gaps["split"] != "valid"
    assert row["n_missing"] == gaps.loc[used, "subtype"].isna().sum() > 20
    assert row["n_train"] + row["n_test"] + row["n_missing"] == used.sum()
    known = gaps["subtype"].notna().to_numpy()
    by_hand = all_tasks(z[known], gaps[known], columns=["subtype"])
    np.testing.assert_array_equal(both[both["task"] == "subtype"]["value"], by_hand["value"])


def test_only_the_named_splits_are_looked_at():
    z, obs = planted()
    blind = z.copy()
    blind[(obs["split"] == "valid").to_numpy()] = 1e6
    pd.testing.assert_frame_equal(all_tasks(z, obs), all_tasks(blind, obs))
    on_valid = all_tasks(z, obs, scored_on="valid")
    swapped = obs.assign(split=obs["split"].map({"train": "train", "valid": "test", "test": "valid"}))
    pd.testing.assert_frame_equal(on_valid, all_tasks(z, swapped))


def test_two_processes_give_the_table_of_one():
    z, obs = planted(120)
    options = {"learners": learners.LEARNERS, "columns": ["subtype", "age", "os"]}
    pd.testing.assert_frame_equal(all_tasks(z, obs, jobs=1, **options), all_tasks(z, obs, jobs=2, **options))


def test_a_stopped_call_goes_on_and_only_what_changed_is_done_again(tmp_path, monkeypatch):
    z, obs = planted(80)
    done, score = [], outcomes.score

    def counted(z, obs, task, settings):
        done.append(task.name)
        if stop and len(done) == 3:
            raise KeyboardInterrupt
        return score(z, obs, task, settings)

    monkeypatch.setattr(outcomes, "score", counted)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        all_tasks(z, obs, folder=tmp_path)
    stop, done[:] = False, []
    table = all_tasks(z, obs, folder=tmp_path)
    assert len(done) == 1  # two of three were kept
    pd.testing.assert_frame_equal(table, all_tasks(z, obs))
    done[:] = []
    pd.testing.assert_frame_equal(table, all_tasks(z, obs, folder=tmp_path))
    assert done == [] and len(list(tmp_path.iterdir())) == 3
    changed = obs.assign(age=obs["age"] + 1)
    all_tasks(z, changed, folder=tmp_path)
    assert done == ["age"]
    for other in ({"z": z + 1e-9, "obs": obs}, {"z": z, "obs": obs, "seed": 1}, {"z": z, "obs": obs, "n_bootstrap": 0}):
        done[:] = []
        all_tasks(**other, folder=tmp_path)
        assert len(done) == 3


@pytest.mark.parametrize("content", ["", '[{"task": "age"', "[]", '[{"task": "age"}]', "3", '{"rows": 1}', "\udcff"])
def test_a_damaged_file_is_computed_again(tmp_path, content):
    z, obs = planted(80)
    table = all_tasks(z, obs, columns="age", folder=tmp_path, n_bootstrap=0)
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    assert kept[0]["low"] is None  # strict JSON has no NaN
    file.write_bytes(content.encode(errors="surrogateescape"))
    pd.testing.assert_frame_equal(all_tasks(z, obs, columns="age", folder=tmp_path, n_bootstrap=0), table)
    assert json.loads(file.read_text()) == kept


# ---------------------------------------------------------------- performance over random, controls


def made_table(scores, n_dimensions=8, **columns) -> pd.DataFrame:
    rows = [{"method": m, "value": v, "low": v - 0.1, "high": v + 0.1} for m, v in scores]
    fixed = {"task": "age", "learner": "linear", "metric": "r2", "n_dimensions": n_dimensions}
    return pd.DataFrame(rows).assign(**fixed | columns)


def test_over_random_by_hand():
    table = made_table([("varix", 0.7), ("random 1", 0.1), ("random 2", 0.2), ("random 3", 0.6)])
    row = outcomes.over_random(table).iloc[0]
    sd = np.sqrt((0.2**2 + 0.1**2 + 0.3**2) / 2)
    assert (row["method"], row["n_random"], row["reason"]) == ("varix", 3, "")
    assert row["random_mean"] == pytest.approx(0.3) and row["random_sd"] == pytest.approx(sd)
    assert row["over_random"] == pytest.approx(0.4 / sd)
    assert (row["over_random_low"], row["over_random_high"]) == (pytest.approx(0.3 / sd), pytest.approx(0.5 / sd))


def test_over_random_compares_like_with_like():
    first = made_table([("varix", 0.7), ("random 1", 0.1), ("random 2", 0.3)], split=0)
    second = made_table([("varix", 0.7), ("random 1", 0.5), ("random 2", 0.9)], split=1)
    wide = made_table([("all", 0.9)], n_dimensions=2900, split=0)
    single = made_table([("varix", 0.7), ("random 1", 0.1)], split=0, n_dimensions=2)
    flat = made_table([("varix", 0.7), ("random 1", 0.1), ("random 2", 0.1)], split=0, n_dimensions=3)
    found = outcomes.over_random(pd.concat([first, second, wide, single, flat]), by="split")
    assert found["random_mean"].tolist()[:2] == [pytest.approx(0.2), pytest.approx(0.7)]
    assert found["reason"].tolist() == [
        "",
        "",
        "no random features with as many dimensions",
        "a single random draw",
        "all random draws score the same",
    ]
    assert found["over_random"].notna().tolist() == [True, True, False, False, False]
    pooled = outcomes.over_random(pd.concat([first, second]))
    assert pooled["random_mean"].tolist() == [pytest.approx(0.45)] * 2


def test_over_random_needs_random_features_and_known_columns():
    table = made_table([("varix", 0.7)])
    with pytest.raises(ValueError, match="no method's name begins with 'random '"):
        outcomes.over_random(table)
    with pytest.raises(ValueError, match="the table has no column 'lerner'; did you mean 'learner'"):
        outcomes.over_random(table, by=["lerner"])


def test_a_planted_embedding_is_far_above_random_features():
    z, obs = planted()
    x = np.hstack([z, rng(1).normal(size=(240, 200))])
    sets = {"planted": z, **outcomes.random_features(x, 4, draws=8)}
    table = tasks.predict_labels(sets, obs, columns=["subtype", "age"], learners="linear", n_bootstrap=0)
    assert (outcomes.over_random(table)["over_random"] > 3).all()


def test_random_features_are_columns_drawn_without_replacement():
    x = np.arange(60.0).reshape(3, 20)
    drawn = outcomes.random_features(x, 20, draws=2)
    assert list(drawn) == ["random 1", "random 2"]
    np.testing.assert_array_equal(drawn["random 2"], x)  # all of them, each once
    drawn, fewer = outcomes.random_features(x, 5, seed=3), outcomes.random_features(sparse.csr_matrix(x), 5, 2, seed=3)
    assert len(drawn) == 20 and len({tuple(d[0]) for d in drawn.values()}) > 15
    for name in fewer:
        np.testing.assert_array_equal(drawn[name], fewer[name])
    assert (outcomes.random_features(x, 5, 1, seed=4)["random 1"] != drawn["random 1"]).any()
    with pytest.raises(ValueError, match="cannot draw 20 times 21 of 20 features"):
        outcomes.random_features(x, 21)


def test_umap_is_fitted_on_train_only():
    program = """
import warnings
import numpy as np
from helpers import outcomes
x = np.random.default_rng(0).normal(size=(40, 5))
x[::2] += 10
train = np.arange(40) < 30
moved = np.where(train[:, None], x, 0)
with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    z, again, other = outcomes.umap(x, train, 2), outcomes.umap(x, train, 2), outcomes.umap(moved, train, 2)
assert z.shape == (40, 2) and np.isfinite(z).all()
assert (z == again).all() and (z[train] == other[train]).all() and (z[~train] != other[~train]).any()
centre = [z[:30:2].mean(0), z[1:30:2].mean(0)]
near = [np.linalg.norm(z[30:] - c, axis=1) for c in centre]
assert ((near[0] < near[1]) == (np.arange(30, 40) % 2 == 0)).all()
print("fine")
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}  # compiling takes ten seconds, these forty points two
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert process.stdout == "fine\n", process.stderr
    with pytest.raises(ValueError, match="umap: 3 train samples are too few for 2 dimensions"):
        outcomes.umap(np.zeros((9, 4)), np.arange(9) < 3, 2)


def test_ranking_counts_wins_and_resamples_tasks():
    cells = [(t, learner, m) for t in ("age", "sex", "stage") for learner in ("linear", "svm") for m in "abc"]
    table = pd.DataFrame(cells, columns=["task", "learner", "method"])
    table["metric"] = "auc"
    table["value"] = table["method"].map({"a": 0.9, "b": 0.8, "c": 0.7})
    table.loc[(table.task == "age") & (table.method == "a"), "value"] = 0.1  # a is last in one task of three
    found = outcomes.ranking(table)
    assert list(found.index) == ["b", "a", "c"] or list(found.index) == ["a", "b", "c"]
    assert found.loc["a", "rank"] == pytest.approx((1 + 1 + 3) / 3) and found.loc["a", "first"] == pytest.approx(2 / 3)
    assert found.loc["a", "low"] == 1 and found.loc["a", "high"] == 3 and found.loc["c", "low"] == 2
    with pytest.raises(ValueError, match="in every cell"):
        outcomes.ranking(table.drop_duplicates(["task", "learner"]).assign(method=["a", "b"] * 3))
