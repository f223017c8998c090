"""Pictures with and without an encoder: the data, the models, and how what they draw is judged."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import sqrtm

from helpers import generation, models, tasks
from helpers.generation import Studio

QUICK = Studio(n_latent=6, width=4, steps=120)


@pytest.fixture(scope="module")
def digits():
    return generation.pictures("digits", 120, n_test=60, n_valid=30)


@pytest.fixture(scope="module")
def seen_by(digits):
    return generation.eyes(digits)


# --- data ----------------------------------------------------------------------------------------------------------


def test_pictures_are_split_at_random_and_alone(digits):
    assert digits.obs["split"].value_counts().to_dict() == {"train": 120, "test": 60, "valid": 30}
    assert list(digits.mod) == ["image"] and generation.pixels(digits, "test").shape == (60, 64)
    other = generation.pictures("digits", 120, n_test=60, n_valid=30, seed=1)
    assert not digits.obs_names.equals(other.obs_names)
    larger = generation.pictures("digits", 500, n_test=60, n_valid=30)
    np.testing.assert_array_equal(generation.pixels(digits, "test"), generation.pixels(larger, "test"))


def test_data_without_pictures_or_with_too_few():
    with pytest.raises(ValueError, match="'sim-regulation' has no modality 'image' with pictures; it has rna"):
        generation.pictures("sim-regulation", 10)
    with pytest.raises(ValueError, match="'digits' has 1797 pictures: too few for 1700 test and 150 valid"):
        generation.pictures("digits", 10, n_test=1700)


# --- scores --------------------------------------------------------------------------------------------------------


def test_the_distance_is_that_of_two_gaussians():
    """Against the formula with scipy's matrix square root, and closed forms."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))
    b = rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4)) + 1
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    told = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert generation.frechet(a, b) == pytest.approx(told)
    assert generation.frechet(a, b) == pytest.approx(generation.frechet(b, a))
    assert generation.frechet(a, a) == pytest.approx(0, abs=1e-8)
    assert generation.frechet(a, a + 2) == pytest.approx(4 * 2**2)
    assert generation.frechet(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx((3 - 1) ** 2 * np.trace(s))
    constant = np.tile(a.mean(0), (10, 1))  # rank zero
    assert generation.frechet(constant, a) == pytest.approx(np.trace(s))


def test_the_distance_needs_two_sets_of_one_width():
    with pytest.raises(ValueError, match=r"samples of one width are needed, got \(5, 3\) and \(5, 2\)"):
        generation.frechet(np.zeros((5, 3)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="two sets of samples"):
        generation.frechet(np.zeros((1, 3)), np.zeros((5, 3)))


def test_cross_entropy_has_a_floor():
    x = np.random.default_rng(0).random((20, 10))
    perfect, worse = generation.pixel_scores(x, x), generation.pixel_scores(x, np.full_like(x, 0.5))
    assert perfect["excess"] == pytest.approx(0, abs=1e-9) and perfect["mse"] == 0
    assert worse["BCE"] == pytest.approx(np.log(2)) and worse["excess"] > 0
    logits = torch.randn(20, 10)
    told = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(x).float())
    assert generation.pixel_scores(x, torch.sigmoid(logits).numpy())["BCE"] == pytest.approx(float(told), rel=1e-5)


def test_the_classifier_knows_digits_and_its_features_tell_noise_apart(digits, seen_by):
    test = generation.pixels(digits, "test")
    truth = digits.obs.loc[digits.obs["split"] == "test", "digit"].astype(str).to_numpy()
    assert (seen_by.predict(test) == truth).mean() > 0.8
    train = seen_by.features(generation.pixels(digits, "train"))
    np.testing.assert_allclose(train.std(0), 1, rtol=1e-6)
    noise = np.random.default_rng(0).permuted(test, axis=1)
    distance = [generation.frechet(seen_by.features(x), seen_by.features(test)) for x in (test[::2], noise)]
    assert distance[1] > 3 * distance[0]


# --- models --------------------------------------------------------------------------------------------------------


def test_all_models_have_the_same_decoder(digits):
    names, sizes = generation.recipes([1, 5]), {}
    assert list(names) == ["decoder", "autoencoder", "DGD, K = 1", "DGD, K = 5", "VAD", "VAE"]
    tiny = Studio(n_latent=6, width=4, steps=1)
    for name in names:
        model, _ = generation.paint(name, digits, tiny, [1, 5])
        sizes[name] = models.n_parameters(model.decoders)
        assert generation.drawn(model) == (name not in ("decoder", "autoencoder"))
    assert len(set(sizes.values())) == 1


@pytest.fixture(scope="module")
def table(digits, seen_by):
    return generation.experiment(digits, seen_by, 120, ["autoencoder", "DGD, K = 5"], [5], QUICK, n_drawn=200)


def test_models_and_controls_are_judged_alike(table):
    rows = table.set_index("model")
    assert list(rows.index) == ["autoencoder", "DGD, K = 5", "PCA", "mean picture", "training pictures"]
    assert rows.loc["DGD, K = 5", "BCE"] < rows.loc["mean picture", "BCE"]
    assert np.isnan(rows.loc["autoencoder", "Fréchet"]) and rows.loc["autoencoder", "Fréchet, fitted"] > 0
    assert rows["Fréchet"].idxmin() == "training pictures" and rows["Fréchet"].idxmax() == "mean picture"


def test_components_draw_pictures(digits):
    model, _ = generation.paint("DGD, K = 5", digits, QUICK, [5])
    x = generation.per_component(model, 3, seed=1)
    assert x.shape == (5, 3, 64) and x.min() >= 0 and x.max() <= 1
    heaviest = int(model.prior.logits.argmax())
    mean = tasks.decode(model, model.prior.mean.detach()[heaviest : heaviest + 1].numpy())["image"]
    np.testing.assert_allclose(x[0, 0], mean[0], atol=1e-6)
    near = generation.per_component(model, 3, seed=1, spread=0.01)
    assert np.abs(near[:, 1] - near[:, 0]).max() < np.abs(x[:, 1] - x[:, 0]).max()


def test_cells_of_a_component_have_its_expression():
    torch.manual_seed(0)
    model = models.scdgd({"rna": 12}, 10, 3, 4, hidden=(8,))
    x = generation.cells(model, 2, 4000, library=500.0)
    assert x.shape == (4000, 12) and (x == np.round(x)).all()
    assert x.sum(1).mean() == pytest.approx(500, rel=0.1)
    expected = tasks.decode(model, model.prior.mean.detach()[2:3].numpy(), {"rna": torch.tensor([[500.0]])})["rna"][0]
    np.testing.assert_allclose(x.mean(0), expected, rtol=0.2)
    np.testing.assert_array_equal(x, generation.cells(model, 2, 4000, library=500.0))


def test_verdicts_on_pictures_say_which_part_holds():
    names = ["decoder", "autoencoder", "DGD, K = 1", "DGD, K = 5", "VAD", "VAE"]
    made = pd.DataFrame(
        {"model": names * 2, "kind": "model", "dataset": "x", "seed": 0, "n_train": [10] * 6 + [90] * 6}
    )
    made["mse"] = [1, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1.0]  # with many pictures the autoencoder catches up
    made["BCE"] = [1, 1, 1, 2, 3, 4] * 2
    made["Fréchet"] = [np.nan, np.nan, 5, 6, 1, 1] * 2
    made["Fréchet, fitted"] = [1, 1, 5, 4, 1, 1.0] * 2
    control = pd.DataFrame([{"model": "mean", "kind": "control", "dataset": "x", "seed": 0, "n_train": 10, "mse": 9.0}])
    few, most = generation.verdicts(pd.concat([made, control], ignore_index=True))
    assert (few["id"], few["verdict"]) == ("D3", "holds") and "mean ratio 3.0" in few["evidence"]
    assert (most["id"], most["verdict"]) == ("D4", "holds in part")
    assert "draws from the prior better than with DGD, K = 1 0 of 2" in most["evidence"]
