"""The contest of notebook 02: who takes part on which modalities, and that its numbers are those of the parts."""

import dataclasses

import numpy as np
import pytest
from conftest import build

from helpers import datasets, metrics, prepare, sweeps, tasks, zoo


@pytest.fixture(scope="module")
def bulk():
    mdata = datasets.load("sim-bulk", n_obs=150, n_rna=60, n_methylation=50, n_mutation=50)
    return prepare.fit_transform(prepare.split(mdata, stratify="cancer_type"), n_features=40)


@pytest.fixture(scope="module")
def contest(bulk):
    given = zoo.inputs(bulk, ["rna", "rna+mutation"], "auto", "cpu")
    return zoo.Contest(
        given, zoo.architectures([1.0, 0.01, 0.1]), "logistic-mid", 1e-3, {"epochs": 2, "batch_size": 30}
    )


def test_inputs_share_what_was_prepared(bulk, contest):
    given = contest.given
    assert list(given) == ["rna", "rna+mutation", "rna+methylation+mutation"]
    np.testing.assert_array_equal(given["rna+mutation"].x, np.hstack([bulk["rna"].X, bulk["mutation"].X]))
    assert given["rna"].samples.n_vars == {"rna": bulk["rna"].n_vars}
    assert (
        set(given["rna+mutation"].balance) == {"rna", "mutation"} and max(given["rna+mutation"].balance.values()) == 1
    )
    every = zoo.inputs(bulk, ["every"], "chromosomes", "cpu")
    assert len(every) == 7 and list(zoo.inputs(bulk, ["each"], "auto", "cpu")) == [
        *bulk.mod,
        "rna+methylation+mutation",
    ]
    with pytest.raises(ValueError, match="there is no modality 'proteins'"):
        zoo.inputs(bulk, ["rna+proteins"], "auto", "cpu")
    assert every["methylation"].ontology.latent_names[0].startswith("chr")


def test_who_takes_part(contest):
    assert list(contest.zoo) == [
        "vanillix",
        "varix β=1",
        "varix β=0.01",
        "varix β=0.1",
        "stackix",
        "ontix",
        "varix from PCA",
    ]
    cells = contest.cells([2, 8])
    assert len(cells) == 2 * (6 * 3 + 2) and ("rna", "stackix", 2) not in cells
    assert contest.zoo["stackix"].beta == 0.1 and contest.zoo["vanillix"].beta is None
    weights = contest.zoo["varix from PCA"].weights(contest.given["rna+mutation"], "no-annealing")
    assert weights["kl"](0, 10) == 0.1 and set(weights) == {"kl", "nll/rna", "nll/mutation"}


@pytest.mark.parametrize("error", [ValueError("no feature is known"), ConnectionError("no server")])
def test_ontix_is_left_out_where_there_are_no_terms(error, monkeypatch):
    def by_name(*_, **__):
        raise error

    monkeypatch.setattr(zoo.terms, "by_name", by_name)
    mdata = build({"protein": np.random.default_rng(0).normal(size=(40, 6))})
    with pytest.warns(UserWarning, match=f"Ontix is left out for protein: {error}"):
        given = zoo.inputs(mdata, ["protein"], "auto", "cpu")
    contest = zoo.Contest(given, zoo.architectures([0.1]), "logistic-mid", 1e-3, {})
    assert {kind for _, kind, _ in contest.cells([2])} == {"vanillix", "varix β=0.1", "varix from PCA"}
    if isinstance(error, OSError):
        with pytest.raises(ConnectionError):
            zoo.inputs(mdata, ["protein"], "reactome", "cpu")


@pytest.mark.parametrize("kind", ["vanillix", "varix β=0.1", "stackix", "ontix", "varix from PCA"])
def test_training_scores_the_test_split(contest, kind):
    name = "rna+mutation"
    setting = {"data": name, "model": kind, "n_latent": 3, "config": "tuned", "seed": 1, "lr": 1e-3, "dropout": 0.2}
    found, again = contest.train(setting), contest.train(setting)
    given = contest.given[name]
    assert found["z"].shape == (150, 3) and np.array_equal(found["z"], again["z"]) and found["R²"] == again["R²"]
    assert found["R²"] < metrics.r2(given.x[given.rows("test")], given.x[given.rows("test")])
    assert ("R² of codes" in found) == (kind == "stackix")


def test_from_pca_begins_at_balanced_pca(contest):
    given = contest.given["rna+mutation"]
    model, pca = zoo.from_pca(given, 4).eval(), given.pca(4, balanced=True)
    np.testing.assert_allclose(tasks.embed(model, given.samples), pca.embed(given.x) / pca.spread, atol=1e-4)
    test = given.rows("test")
    x_hat = np.hstack([*tasks.reconstruct(model, given.samples, "test").values()])
    assert given.r2(x_hat) == pytest.approx(given.r2(pca.decode(pca.embed(given.x[test]))), abs=1e-4)


def test_predictions_stand_beside_random_features(bulk, contest, tmp_path):
    given = contest.given["rna"]
    setting = {"data": "rna", "model": "vanillix", "n_latent": 3, "config": "default", "seed": 0}
    results = sweeps.sweep([setting], contest.train, tmp_path)
    rows = [*results, *zoo.baselines(given, 3, 4, False, 0)]
    assert [row["model"] for row in rows] == ["vanillix", "PCA", "balanced PCA", *(f"random {k}" for k in range(1, 5))]
    options = {"columns": ["cancer_type", "age"], "learners": ["linear"], "n_bootstrap": 20}
    everything, above = zoo.predictions(rows, bulk, **options)
    assert set(above["model"]) == {"vanillix", "PCA", "balanced PCA"} and set(above["metric"]) == {"auc", "r2"}
    assert len(everything) == 7 * 3 and set(zoo.KEYS) <= set(everything)
    drawn = everything[everything["model"].str.startswith("random") & everything["metric"].eq("r2")]["value"]
    one = above[above["model"].eq("PCA") & above["metric"].eq("r2")].iloc[0]
    assert one["over_random"] == pytest.approx((one["value"] - drawn.mean()) / drawn.std())


def test_tuning_names_a_study_per_cell_and_tries_the_defaults_first(contest, tmp_path):
    found = contest.tune(("rna", "ontix", 2), 1, tmp_path / "studies.db", 0)
    assert found.name.startswith("rna, ontix, 2 (") and set(found.params) == {
        "lr",
        "weight_decay",
        "dropout",
        "factor",
        "n_layers",
    }
    assert found.params == {"lr": 1e-3, "weight_decay": 1e-3, "dropout": 0.1, "factor": 4.0, "n_layers": 2}
    assert contest.tune(("rna", "varix from PCA", 2), 1, tmp_path / "studies.db", 0).params["n_layers"] == 1
    longer = dataclasses.replace(contest, common=contest.common | {"epochs": 3})  # another study, not an error
    assert longer.tune(("rna", "ontix", 2), 1, tmp_path / "studies.db", 0).trials["epochs"].item() == 3
