"""Scores of translations against their definitions, and a reader that finds what pictures show."""

import numpy as np
import pytest

from helpers import embryo, translation

SHAPE = (7, 9, 2)


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    x = rng.random((12, 126))
    return x, (x + 0.1 * rng.normal(size=x.shape)).clip(0, 1), rng.random(126)


# --- pictures ------------------------------------------------------------------------------------------------------


def test_image_scores_are_their_definitions(pictures):
    x, x_hat, mean = pictures
    found = translation.image_scores(x, x_hat, mean, SHAPE)
    per_image = [1 - ((a - b) ** 2).sum() / ((a - a.mean()) ** 2).sum() for a, b in zip(x, x_hat, strict=True)]
    assert found["mse"] == pytest.approx(np.mean((x - x_hat) ** 2))
    assert found["R2 per image"] == pytest.approx(np.median(per_image))
    assert found["R2 over mean"] == pytest.approx(1 - ((x - x_hat) ** 2).sum() / ((x - mean) ** 2).sum())
    assert 0 < found["SSIM"] < 1
    perfect = translation.image_scores(x, x, mean, SHAPE)
    assert perfect == {"mse": 0, "R2 per image": 1, "R2 over mean": 1, "SSIM": pytest.approx(1)}
    assert translation.image_scores(x, np.tile(mean, (12, 1)), mean, SHAPE)["R2 over mean"] == 0


def structural_similarity(a, b):
    """Of two windows, as Wang et al. 2004 write it, for values of 0 to 1 and sample covariances."""
    (var_a, cov), (_, var_b) = np.cov(a.ravel(), b.ravel())
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
    return likeness * (2 * cov + c2) / (var_a + var_b + c2)


@pytest.mark.parametrize(("shape", "side"), [((7, 7, 2), 7), ((5, 5, 1), 5), ((3, 3, 3), 3)])
def test_ssim_is_the_published_formula_in_one_window(shape, side):
    """A picture of the window's size holds one window per channel; channels come last in the layout."""
    rng = np.random.default_rng(1)
    x, x_hat = rng.random((2, 4, np.prod(shape)))
    one_by_one = [
        structural_similarity(a.reshape(side, side, -1)[..., c], b.reshape(side, side, -1)[..., c])
        for a, b in zip(x, x_hat, strict=True)
        for c in range(shape[2])
    ]
    found = translation.image_scores(x, x_hat, x.mean(0), shape)["SSIM"]
    assert found == pytest.approx(np.mean(one_by_one), abs=1e-9)


def test_small_pictures_get_a_small_window_and_tiny_ones_none():
    rng = np.random.default_rng(2)
    for shape, there in (((6, 9, 1), True), ((4, 5, 1), True), ((2, 8, 1), False)):
        x, x_hat = rng.random((2, 3, np.prod(shape)))
        assert np.isfinite(translation.image_scores(x, x_hat, x.mean(0), shape)["SSIM"]) == there


def test_blank_pictures_do_not_rule_the_median(pictures):
    x, x_hat, mean = pictures
    blank, dark = np.zeros((1, 126)), 1e-6 * x[:1]
    x, x_hat = np.vstack([x, dark]), np.vstack([x_hat, x_hat[:1]])
    expected = translation.image_scores(x, x_hat, mean, SHAPE)["R2 per image"]
    found = translation.image_scores(np.vstack([x, blank]), np.vstack([x_hat, blank]), mean, SHAPE)["R2 per image"]
    assert found == expected > 0.5


def test_image_scores_say_what_does_not_fit(pictures):
    x, x_hat, mean = pictures
    with pytest.raises(ValueError, match=r"shape \(12, 126\) and the translation \(11, 126\)"):
        translation.image_scores(x, x_hat[1:], mean, SHAPE)
    with pytest.raises(ValueError, match=r"126 values cannot have the shape \(7, 9, 3\)"):
        translation.image_scores(x, x_hat, mean, (7, 9, 3))
    with pytest.raises(ValueError, match=r"train split's mean, \[126\]"):
        translation.image_scores(x, x_hat, mean[:9], SHAPE)
    with pytest.raises(ValueError, match="holds 1 NaN or infinite"):
        translation.image_scores(x, np.where(np.arange(126 * 12).reshape(12, 126) == 3, np.nan, x_hat), mean, SHAPE)
    with pytest.raises(ValueError, match="leave those pictures out"):
        translation.image_scores(np.where(x > 0.999, np.nan, x), x_hat, mean, SHAPE)


# --- profiles ------------------------------------------------------------------------------------------------------


@pytest.fixture
def profiles():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 6)) + np.arange(6)
    return x, x + 0.5 * rng.normal(size=x.shape), x.mean(0)


def test_profile_scores_are_their_definitions(profiles):
    x, x_hat, mean = profiles
    found = translation.profile_scores(x, x_hat, mean)
    r = [np.corrcoef(x[:, j], x_hat[:, j])[0, 1] for j in range(6)]
    per_sample = 1 - ((x - x_hat) ** 2).sum(1) / ((x - x.mean(1, keepdims=True)) ** 2).sum(1)
    assert found == {
        "mse": pytest.approx(np.mean((x - x_hat) ** 2)),
        "Pearson r": pytest.approx(np.median(r)),
        "R2 over mean": pytest.approx(1 - ((x - x_hat) ** 2).sum() / ((x - mean) ** 2).sum()),
        "R2 per sample": pytest.approx(np.median(per_sample)),
    }


def test_what_was_not_measured_does_not_count(profiles):
    x, x_hat, mean = profiles
    holes = np.random.default_rng(4).random(x.shape) < 0.3
    found = translation.profile_scores(np.where(holes, np.nan, x), x_hat, mean)
    wild = translation.profile_scores(np.where(holes, np.nan, x), np.where(holes, 99.0, x_hat), mean)
    assert found == wild
    seen = [~holes[:, j] for j in range(6)]
    r = [np.corrcoef(x[s, j], x_hat[s, j])[0, 1] for j, s in enumerate(seen)]
    assert found["Pearson r"] == pytest.approx(np.median(r))
    assert found["mse"] == pytest.approx(((x - x_hat)[~holes] ** 2).mean())
    by_sample = [
        1 - ((x[i, s] - x_hat[i, s]) ** 2).sum() / ((x[i, s] - x[i, s].mean()) ** 2).sum() for i, s in enumerate(~holes)
    ]
    assert found["R2 per sample"] == pytest.approx(np.median(by_sample))


def test_a_prediction_that_never_varies_correlates_with_nothing(profiles):
    x, x_hat, mean = profiles
    found = translation.profile_scores(x, np.tile(mean, (40, 1)), mean)
    assert found["Pearson r"] == 0 and found["R2 over mean"] == 0
    half = np.where(np.arange(6) < 4, mean + 1e-9 * x, x_hat)  # rounding is not variation
    assert translation.profile_scores(x, half, mean)["Pearson r"] == 0
    constant = np.where(np.arange(6) < 4, 1.0, x)  # measured values that never vary have no correlation: left out
    expected = translation.profile_scores(x[:, 4:], x_hat[:, 4:], mean[4:])["Pearson r"]
    assert translation.profile_scores(constant, x_hat, mean)["Pearson r"] == pytest.approx(expected)


def test_profile_scores_say_what_does_not_fit(profiles):
    x, x_hat, mean = profiles
    with pytest.raises(ValueError, match=r"both must be \[n_obs, n_vars\]"):
        translation.profile_scores(x, x_hat[:, 1:], mean)
    with pytest.raises(ValueError, match="holds no measured value"):
        translation.profile_scores(np.full_like(x, np.nan), x_hat, mean)
    with pytest.raises(ValueError, match="holds 240 NaN"):
        translation.profile_scores(x, np.full_like(x, np.nan), mean)


# --- readers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """Real digits 0-4 at 32 x 32, every third held out."""
    from skimage.transform import resize
    from sklearn.datasets import load_digits

    bunch = load_digits(n_class=5)
    x = np.stack([resize(image / 16, (32, 32), order=1) for image in bunch.images]).reshape(-1, 1024)
    train = np.arange(len(x)) % 3 > 0
    return x[train], bunch.target[train], x[~train], bunch.target[~train]


@pytest.fixture(scope="module")
def digit_reader(digits):
    return translation.image_classifier(*digits[:2], (32, 32, 1), epochs=5)


def test_a_reader_learns_real_digits(digits, digit_reader):
    _, _, x, y = digits
    found = translation.reader_scores(digit_reader, x, x, y)
    assert found["accuracy"] >= 0.97 and found["F1"] >= 0.97
    assert found["accuracy of true"] == found["accuracy"] and found["F1 of true"] == found["F1"]


def test_translations_are_read_for_what_they_show(digits, digit_reader):
    """Class means of the right class are read right; those of the next class are not, though the truth is."""
    x_train, y_train, x, y = digits
    means = np.stack([x_train[y_train == k].mean(0) for k in range(5)])
    right = translation.reader_scores(digit_reader, x, means[y], y)
    wrong = translation.reader_scores(digit_reader, x, means[(y + 1) % 5], y)
    assert right["accuracy"] == 1 and wrong["accuracy"] == 0 and wrong["accuracy of true"] >= 0.97


def test_f1_is_weighted_by_class_size(digit_reader):
    y, told = np.array(["0", "0", "0", "1"]), np.array(["0", "0", "1", "1"])
    assert digit_reader.scores(y, told) == {"accuracy": 0.75, "F1": pytest.approx((3 * 0.8 + 2 / 3) / 4)}


def test_a_reader_tells_the_time_of_an_embryo():
    data = embryo.embryo(n_obs=240, seed=1)
    x, time, shape = data["image"].X, data.obs["time"].to_numpy(), data["image"].uns["image_shape"]
    reader = translation.image_regressor(x[:160], time[:160], shape, epochs=15)
    found = translation.reader_scores(reader, x[160:], x[160:][::-1], time[160:])
    assert found["R2 of true"] > 0.95 and found["MAE of true"] < 0.35
    assert found["R2"] < 0 and found["MAE"] > 1  # other embryos' pictures show other times
    expected = np.abs(reader.predict(x[160:]) - time[160:]).mean()
    assert found["MAE of true"] == pytest.approx(expected)


def test_a_reader_looks_past_exposure_and_reads_the_same_with_the_same_seed():
    """Where a spot lies, in pictures that are not square and have two channels, learnt from 60 of them."""
    rng = np.random.default_rng(5)
    row, column, exposure = rng.uniform(1, 6, size=90), rng.uniform(1, 10, size=90), rng.uniform(0.2, 1, size=(90, 1))
    away = (np.arange(8)[:, None] - row[:, None, None]) ** 2 + (np.arange(12) - column[:, None, None]) ** 2
    x = (np.exp(-away / 4)[..., None] * [1, 0.5]).reshape(90, 192)
    x, darker = exposure * x, 0.5 * exposure * x
    readers = [translation.image_regressor(x[:60], column[:60], (8, 12, 2), seed=s) for s in (3, 3, 4)]
    first, again, other = (reader.predict(x[60:]) for reader in readers)
    assert readers[0].scores(column[60:], first)["R2"] > 0.95
    assert readers[0].scores(column[60:], readers[0].predict(darker[60:]))["R2"] > 0.95
    assert (first == again).all() and (first != other).any()


def test_readers_say_what_they_cannot_learn_from():
    x, y = np.random.default_rng(6).random((10, 64)), np.arange(10.0)
    with pytest.raises(ValueError, match="all pictures are of class 'a'"):
        translation.image_classifier(x, ["a"] * 10, (8, 8, 1))
    with pytest.raises(ValueError, match="some pictures have no label"):
        translation.image_classifier(x, [None, *"abababab", "a"], (8, 8, 1))
    with pytest.raises(ValueError, match="finite numbers that vary"):
        translation.image_regressor(x, np.ones(10), (8, 8, 1))
    with pytest.raises(ValueError, match="values from 0 to 1"):
        translation.image_regressor(255 * x, y, (8, 8, 1))
    with pytest.raises(ValueError, match=r"do not fit the shape \(8, 8, 3\)"):
        translation.image_regressor(x, y, (8, 8, 3))
    with pytest.raises(ValueError, match="and 9 answers"):
        translation.image_regressor(x, y[1:], (8, 8, 1))
    reader = translation.Reader(lambda x: x[:, 0], translation._number_scores)
    with pytest.raises(ValueError, match="10 true, 9 translated pictures and 10 answers"):
        translation.reader_scores(reader, x, x[1:], y)
