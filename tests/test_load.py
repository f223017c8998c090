"""The load of a decoder, its experiment on a known network, and what it costs to place new samples."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build

from helpers import inference, load, models, training
from helpers.batches import Samples
from helpers.load import Pace, Paces

SHORT = Paces(Pace(600, (0.02,)), Pace(200, (0.003,)), Pace(200, (0.003, 0.01)))


# --- the load ------------------------------------------------------------------------------------------------------


def test_the_load_is_values_per_unknown():
    assert load.of_decoder(10_000, 1000, 100) == pytest.approx(9.09, abs=0.01)  # as published
    assert load.of_decoder(112, 1000, 100) == pytest.approx(1.0, abs=0.01)
    assert load.of_decoder(50, 20, 4, complexity=30) == 50 * 20 / (30 + 50 * 4)
    assert load.of_encoder(500, 1000, 100) == 0.5


@pytest.mark.parametrize("n_train", [5, 112, 493, 10_000])
def test_encoder_and_decoder_loads_agree_with_the_published_relation(n_train):
    """α_d = (n / m) α_e / (1 + α_e) where both have as many weights."""
    alpha = load.of_encoder(n_train, 1000, 100)
    assert load.of_decoder(n_train, 1000, 100) == pytest.approx(10 * alpha / (1 + alpha))
    assert load.n_samples(load.of_decoder(n_train, 1000, 100), 1000, 100) == n_train


def test_loads_that_cannot_be():
    with pytest.raises(ValueError, match="below n / m = 10, which no number of samples reaches"):
        load.n_samples(10, 1000, 100)
    with pytest.raises(ValueError, match="positive numbers, got 0"):
        load.of_decoder(0, 10, 2)


# --- its parts -----------------------------------------------------------------------------------------------------


def test_training_sets_of_all_sizes_share_network_and_test_samples():
    small, large = (load.simulated(n, 40, 5, n_held=10, density=0.4, seed=3) for n in (8, 30))
    assert small.obs["split"].value_counts().to_dict() == {"train": 8, "valid": 10, "test": 10}
    np.testing.assert_array_equal(small["rna"].X, large["rna"].X[:28])
    np.testing.assert_array_equal(small.uns["truth"]["weights"], large.uns["truth"]["weights"])
    assert (small.obs["split"].to_numpy() == large.obs["split"].to_numpy()[:28]).all()


def test_the_head_is_the_simulation():
    """With the planted weights and activities it gives the data, to float precision."""
    mdata = load.simulated(20, 60, 6, n_held=10, density=0.3)
    weights = mdata.uns["truth"]["weights"]
    head = load.RectifiedHead(weights != 0)
    with torch.no_grad():
        head.drive.strength.copy_(torch.from_numpy(weights[weights != 0]))
        head.drive.bias.zero_()
        told = head(torch.from_numpy(mdata.obsm["truth_regulators"]).float())
    np.testing.assert_allclose(told.mean.numpy(), mdata["rna"].X, atol=1e-4)
    assert told.scale2 == 0.5


def test_agreement_is_the_size_of_the_correlation():
    truth = np.random.default_rng(0).normal(size=(50, 3))
    z = np.column_stack([-2 * truth[:, 0] + 1, truth[:, 1] + truth[:, 2], np.ones(50)])
    found = load.agreement(z, truth)
    assert found[0] == pytest.approx(1) and found[2] == 0
    assert found[1] == pytest.approx(abs(np.corrcoef(z[:, 1], truth[:, 1])[0, 1]))


def test_small_training_sets_take_as_many_steps_as_large_ones():
    pace = Pace(steps=1000, batch_size=32)
    steps = {n: pace.options(n, 0.01, 0)["epochs"] * -(-n // pace.options(n, 0.01, 0)["batch_size"]) for n in (20, 640)}
    assert steps == {20: 1000, 640: 1000}


# --- the experiment ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    return load.experiment(3.0, 0, 120, 10, 0.2, SHORT)


def test_the_decoder_finds_the_regulators_and_the_others_do_not(table):
    rows = table.set_index("model")
    assert rows.loc["decoder", "r"] > 0.98 and rows.loc["decoder", "unexplained"] < 0.02
    assert rows.loc["decoder", "r"] > rows.loc["autoencoder", "r"] > rows.loc["mean", "r"] == 0
    assert rows.loc["decoder", "mse"] < 0.2 * rows.loc[["encoder on it", "autoencoder"], "mse"].min()
    assert rows.loc["mean", "unexplained"] == pytest.approx(1, abs=0.1)
    assert set(table["n_train"]) == {load.n_samples(3.0, 120, 10)}


def test_the_experiment_is_deterministic_and_chooses_its_rate(table):
    again = load.experiment(3.0, 0, 120, 10, 0.2, SHORT)
    np.testing.assert_array_equal(table["mse"], again["mse"])
    assert table.set_index("model").loc["autoencoder", "lr"] in (0.003, 0.01)


def test_verdicts_on_loads_say_which_part_holds():
    rows = [(load, 0, model) for load in (0.5, 1.5, 5.0) for model in ("decoder", "encoder on it", "autoencoder")]
    made = pd.DataFrame(rows, columns=["load", "seed", "model"])
    made["r"], made["unexplained"] = (
        [0.5, 0.3, 0.3, 1.0, 0.5, 0.5, 1.0, 0.9, 0.8],
        [0.5, 1, 1, 0.1, 0.5, 0.5, 0.1, 0.2, 0.3],
    )
    fewer, recovered = load.verdicts(made)
    assert (fewer["id"], fewer["verdict"]) == ("D1", "holds") and "load 1.5 below the autoencoder's at 5" in fewer[
        "evidence"
    ]
    assert (recovered["id"], recovered["verdict"]) == ("D2", "holds in part")
    assert "encoder on it from load 3.3 0 of 1" in recovered["evidence"]


# --- cells ---------------------------------------------------------------------------------------------------------


def cells(n=160, seed=0):
    """Counts of four classes."""
    rng = np.random.default_rng(seed)
    own, share = rng.integers(4, size=n), rng.dirichlet(np.ones(30), size=4)
    mdata = build({"rna": rng.poisson(300 * share[own])}, kinds={"rna": "counts"})
    mdata.obs["kind"] = [f"c{c}" for c in own]
    return mdata


def test_a_subset_keeps_what_is_held_out_and_grows():
    mdata = cells()
    small, large = (load.subset(mdata, n, seed=1) for n in (20, 60))
    for split in ("valid", "test"):
        held = mdata.obs_names[mdata.obs["split"] == split]
        assert small.obs_names[small.obs["split"] == split].equals(held)
    train = [set(part.obs_names[part.obs["split"] == "train"]) for part in (small, large)]
    assert len(train[0]) == 20 and len(train[1]) == 60 and train[0] < train[1]
    with pytest.raises(ValueError, match="n_train=500 must be at least 2, and at most the"):
        load.subset(mdata, 500)


def test_efficiency_compares_methods_on_few_cells():
    table = load.efficiency(cells(), "kind", 40, 4, epochs=20, n_latent=4, hidden=(20,))
    assert set(table["n_train"]) == {40}
    rows = table.set_index("method")
    assert rows.loc["scDGD", "ari"] > 0.9 > 0.3 > rows.loc["random labels", "ari"]


def test_decodings_are_counted():
    mdata = cells()
    samples = Samples(mdata, "cpu")
    torch.manual_seed(0)
    train = samples.rows("train")
    model = models.scdgd(samples.n_vars, len(samples), 3, 4, hidden=(20,), n_train=len(train))
    training.fit(model, samples, epochs=5, batch_size=40, lr=5e-3)
    encoder = inference.amortised(model, samples, epochs=5, batch_size=40, lr=5e-3)
    with load.decodings(model) as rows:
        model.decode(torch.zeros(7, 3))
        model.decode(torch.zeros(2, 3))
    model.decode(torch.zeros(9, 3))  # no longer counted
    assert rows == [7, 2]
    table = load.ways_to_codes(model, samples, encoder).set_index("way")
    assert table.loc["encoder", "decodings"] == 0  # it reads and does not search
    assert table.loc["20 steps, as published", "decodings"] == pytest.approx(4 / 24 + 20, abs=0.2)  # means, then steps
    assert table.loc["search", "decodings"] > 20
    assert table.loc["search", "loss"] <= table.loc["20 steps, as published", "loss"] + 1e-3
    assert table.loc["encoder, then search", "loss"] < table.loc["encoder", "loss"]


def test_verdicts_on_cells_compare_like_with_like():
    methods = ["scDGD", "scDGD, published start", "VAE, k-means"]
    found = pd.DataFrame(
        [(m, k, seed) for m in methods for k in (4, 8) for seed in (0, 1)], columns=["method", "k", "seed"]
    )
    found["ari"] = [0.9, 0.9, 0.8, 0.8, 0.7, 0.8, 0.6, 0.6, 0.5, 0.5, 0.4, 0.4]
    found["rmse"] = [1.0] * 8 + [2.0] * 4
    leiden = pd.DataFrame({"method": "PCA, Leiden", "k": np.nan, "seed": [0, 1], "ari": [0.5, 0.95]})
    starts = pd.DataFrame({"method": list(load.STARTS) * 2, "k": 4, "seed": [0, 0, 1, 1], "ari": [0.1, 0.6, 0.2, 0.75]})
    placed = pd.DataFrame(
        {"way": ["encoder", "search", "encoder, then search"], "nll": [105, 100, 100], "decodings": [0, 60, 20]}
    )
    told = {each["id"]: each for each in load.verdicts_on_cells(pd.concat([found, leiden]), starts, placed, 4)}
    assert {name: each["verdict"] for name, each in told.items()} == {
        "D5": "holds in part", "D6": "holds", "D7": "holds", "D8": "does not hold here",
    }  # fmt: skip
    assert "above Leiden on the PCA 1 of 2" in told["D5"]["evidence"]
    assert "higher with twice as many components 0 of 2" in told["D5"]["evidence"]
    assert "False; search from it half as long: True" in told["D8"]["evidence"]


def test_the_table_of_loads_can_be_read_backwards():
    table = load.table([0.5, 5.0], 1000, 100)
    assert table["training samples"].tolist() == [53, 1000] and table["load of an encoder"].tolist() == [0.053, 1.0]


def test_thoroughness_scales_steps_alone():
    assert Paces().times(0.5) == Paces(Pace(750, epochs=75), Pace(1500, (0.001,)), Pace(3000, (0.01,)))
