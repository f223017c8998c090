"""The simulated embryo: what is planted can be found again in either modality, and noise is only noise."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV

from helpers import datasets, embryo

TRAIN, TEST = slice(0, 220), slice(220, None)


@pytest.fixture(scope="module")
def embryos():
    return embryo.embryo()


@pytest.fixture(scope="module")
def clean():
    return embryo.embryo(noise=0)


def r2(x, found, mean):
    """R² over the mean of the train rows."""
    return 1 - ((x - found) ** 2).sum() / ((x - mean) ** 2).sum()


def found_again(x, y):
    """R² on held-out rows of a ridge regression from x [n, p] to y [n]."""
    scale = x[TRAIN].std(0) + 1e-12
    model = RidgeCV(np.logspace(-2, 4, 13)).fit(x[TRAIN] / scale, y[TRAIN])
    return model.score(x[TEST] / scale, y[TEST])


def main_directions(x, n):
    """Principal components [n_obs, n] of x, fitted on the train rows."""
    return PCA(n, svd_solver="randomized", random_state=0).fit(x[TRAIN]).transform(x)


def n_nuclei(image):
    """Local maxima of a picture [height, width] that are clearly brighter than the egg."""
    middle = image[1:-1, 1:-1]
    around = [image[1 + i : image.shape[0] - 1 + i, 1 + j : image.shape[1] - 1 + j] for i, j in OTHERS]
    return int((np.all([middle >= other for other in around], axis=0) & (middle > 0.35)).sum())


OTHERS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


# --- form ---


def test_form_and_names(embryos):
    assert embryos["protein"].shape == (300, 120) and embryos["image"].shape == (300, 4096)
    assert list(embryos["image"].uns["image_shape"]) == [64, 64, 1]
    assert list(embryos["image"].var_names[[0, 65]]) == ["pixel_0_0", "pixel_1_1"]
    assert embryos.uns["dataset"]["modalities"] == {"protein": "continuous", "image": "image"}
    assert embryos.uns["dataset"]["label_key"] == "stage" and embryos.uns["dataset"]["batch_key"] == ""
    assert embryos["image"].X.min() >= 0 and embryos["image"].X.max() <= 1 and embryos["protein"].X.min() >= 0


def test_stages_follow_time_in_order(embryos):
    stage, time = embryos.obs["stage"], embryos.obs["time"].to_numpy()
    assert list(stage.cat.categories) == list(embryo.STAGES) and stage.cat.ordered
    assert stage.value_counts().min() >= 20 and time.min() >= 0 and time.max() <= embryo.HOURS
    assert np.all(np.diff(stage.cat.codes.to_numpy()[np.argsort(time)]) >= 0)


def test_truth_is_returned_and_time_is_uniform(embryos):
    truth = embryos.obsm["truth_factors"]
    assert list(embryos.uns["truth"]["factors"]) == ["time", "brightness", "tilt"] and truth.shape == (300, 3)
    assert np.array_equal(truth[:, 0], embryos.obs["time"])
    counts = np.histogram(truth[:, 0], 7, (0, 7))[0]
    assert counts.min() > 25 and np.abs(truth[:, 1:]).max() <= 2
    assert np.abs(np.corrcoef(truth.T)[np.triu_indices(3, 1)]).max() < 0.2


def test_the_same_seed_gives_the_same_and_another_seed_another():
    one, same, other = (embryo.embryo(n_obs=20, seed=seed) for seed in (3, 3, 4))
    for name in ("protein", "image"):
        assert np.array_equal(one[name].X, same[name].X)
        assert not np.array_equal(one[name].X, other[name].X)


def test_it_survives_h5mu_with_its_truth(embryos, tmp_path):
    embryos.write(tmp_path / "embryo.h5mu")
    again = datasets.load(tmp_path / "embryo.h5mu")
    assert np.array_equal(again["image"].X, embryos["image"].X)
    assert list(again["image"].uns["image_shape"]) == [64, 64, 1]
    assert np.array_equal(again.obsm["truth_factors"], embryos.obsm["truth_factors"])
    assert list(again.uns["truth"]["factors"]) == list(embryo.FACTORS)
    assert list(again.obs["stage"].cat.categories) == list(embryo.STAGES)


@pytest.mark.parametrize("size", [16, (48, 64), (64, 48), [30, 50]])
def test_pictures_of_other_sizes_show_the_same_embryo(size):
    mdata = embryo.embryo(n_obs=12, size=size)
    height, width = (size, size) if isinstance(size, int) else size
    assert mdata["image"].shape == (12, height * width)
    assert list(mdata["image"].uns["image_shape"]) == [height, width, 1]
    edge = embryo.picture(np.linspace(0, 7, 8), 2, 2, size).reshape(-1, height, width)
    border = np.concatenate([edge[:, [0, -1]].reshape(8, -1), edge[:, :, [0, -1]].reshape(8, -1)], 1)
    assert border.max() < 0.12, "the egg must not be cut off"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n_obs": 9}, "n_obs=9"),
        ({"n_protein": 3}, "n_protein=3"),
        ({"noise": -1}, "noise=-1"),
        ({"size": 8}, "size=8 16 pixels"),
        ({"size": (1, 2, 3)}, "must be a whole number of pixels, or a pair"),
    ],
)
def test_what_it_cannot_fill_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        embryo.embryo(**wrong)


# --- the picture ---


@pytest.mark.parametrize(("time", "n"), [(0.0, 1), (0.75, 2), (1.5, 4), (2.1, 8), (2.8, 16), (3.5, 32), (4.3, 64)])
def test_the_number_of_nuclei_doubles(time, n):
    """Counted in large pictures, since 64 nuclei nearly touch in 64 x 64 pixels."""
    assert n_nuclei(embryo.picture(time, 0, 0, 161).reshape(161, 161)) == n


def test_without_noise_the_image_is_the_picture_of_the_factors(clean):
    expected = embryo.picture(*clean.obsm["truth_factors"].T)
    assert np.array_equal(clean["image"].X, expected)


def test_the_ceiling_is_high_but_below_one(embryos):
    x, known = embryos["image"].X, embryo.picture(*embryos.obsm["truth_factors"].T)
    assert 0.85 < r2(x[TEST], known[TEST], x[TRAIN].mean(0)) < 0.96


def test_pictures_change_smoothly_and_at_all_hours():
    film = embryo.picture(np.linspace(0, 7, 141), 0, 0)  # every 3 minutes; the norm of a picture is 10 to 17
    assert np.linalg.norm(film[1:] - film[:-1], axis=1).max() < 2
    assert np.linalg.norm(film[5:] - film[:-5], axis=1).min() > 0.2  # no quarter of an hour without change


def test_brightness_brightens_and_keeps_the_form():
    dim, bright = (embryo.picture(5.0, b, 0)[0] for b in (-2, 2))
    inside = embryo.picture(5.0, 0, 0)[0] > 0.3
    assert np.all(bright[inside] > dim[inside]) and bright.max() < 1
    assert np.corrcoef(dim, bright)[0, 1] > 0.95


def test_tilt_turns_the_long_axis_by_so_many_degrees():
    def axis(image):
        y, x = np.indices(image.shape) - 31.5
        weight = image / image.sum()
        return 0.5 * np.degrees(np.arctan2(2 * (weight * x * y).sum(), (weight * (x * x - y * y)).sum()))

    angles = [axis(embryo.picture(4.2, 0, tilt).reshape(64, 64)) for tilt in (-2, -1, 0, 1, 2)]
    assert np.allclose(-np.diff(angles), embryo.DEGREES, atol=0.1)  # rows count downwards


def test_numbers_and_arrays_may_be_mixed_and_chunks_leave_no_trace():
    time = np.linspace(0, 7, embryo.CHUNK + 5)
    all_at_once, alone = embryo.picture(time, 0.5, 0, 32), embryo.picture(time[-1], 0.5, 0, 32)
    assert all_at_once.shape == (len(time), 1024) and np.allclose(all_at_once[-1], alone[0], atol=1e-6)


# --- what is planted is found again ---


@pytest.mark.parametrize(("factor", "least"), [("time", 0.98), ("brightness", 0.9), ("tilt", 0.85)])
def test_each_factor_is_in_the_transcription_factors(embryos, factor, least):
    y = embryos.obsm["truth_factors"][:, embryo.FACTORS.index(factor)]
    assert found_again(embryos["protein"].X, y) > least


@pytest.mark.parametrize(("factor", "least"), [("time", 0.9), ("brightness", 0.6), ("tilt", 0.8)])
def test_each_factor_is_in_the_image(embryos, factor, least):
    y = embryos.obsm["truth_factors"][:, embryo.FACTORS.index(factor)]
    assert found_again(main_directions(embryos["image"].X, 30), y) > least


def test_roles_say_what_moves_a_transcription_factor(clean):
    truth, x, var = clean.obsm["truth_factors"], clean["protein"].X, clean["protein"].var
    forest = RandomForestRegressor(30, random_state=0)
    for role in embryo.ROLES:
        columns = np.flatnonzero(var["role"] == role)
        assert len(columns) == round(120 * embryo.ROLES[role])
        z = np.log(x[:, columns] + 1e-6)
        known = forest.fit(truth[TRAIN], z[TRAIN]).score(truth[TEST], z[TEST])
        only_time = forest.fit(truth[TRAIN, :1], z[TRAIN]).score(truth[TEST, :1], z[TEST])
        if role == "none":
            assert known < 0.1
        else:
            assert known > 0.85 and (known - only_time > 0.1) == (role != "time"), role


def test_transcription_factors_span_orders_of_magnitude_and_peak_when_they_say(clean):
    x, var = clean["protein"].X, clean["protein"].var
    assert np.ptp(np.log10(x.max(0))) > 2.5 and var["peak"].isna().equals(var["role"] == "none")
    time, inside = clean.obs["time"].to_numpy(), (var["role"] == "time") & var["peak"].between(1, 6)
    correlation = [abs(np.corrcoef(np.abs(time - peak), x[:, j])[0, 1]) for j, peak in enumerate(var["peak"])]
    steep = [abs(np.corrcoef(time, x[:, j])[0, 1]) for j in range(120)]
    assert (np.maximum(correlation, steep)[inside] > 0.6).all()


def test_noise_does_what_it_says(embryos, clean):
    louder = embryo.embryo(noise=2.0)
    quiet, peak = clean["protein"].X, clean["protein"].X.max(0)
    one, two = (np.abs((m["protein"].X - quiet) / peak).mean() for m in (embryos, louder))
    assert 1.6 < two / one < 2.1  # not quite twice: nothing falls below 0
    one, two = (np.square(m["image"].X - clean["image"].X).mean() for m in (embryos, louder))
    assert 2 < two / one < 4.2
    assert np.array_equal(embryos.obsm["truth_factors"], clean.obsm["truth_factors"])


def test_image_noise_is_nothing_that_transcription_factors_know(embryos):
    """What is left of the image when the truth is taken away cannot be predicted from protein."""
    x, z = embryos["image"].X, embryos["protein"].X
    rest = x - embryo.picture(*embryos.obsm["truth_factors"].T)
    main = main_directions(rest, 3)
    assert max(found_again(z, main[:, k]) for k in range(3)) < 0.15
