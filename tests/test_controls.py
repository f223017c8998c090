"""Controls are what they say: PCA is optimal among linear codes, zeros is the train mean, all fitted on train."""

import numpy as np
import pytest

from helpers import controls, metrics, models, tasks
from helpers.batches import Samples
from helpers.decoders import BernoulliHead
from helpers.training import fit


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 30)) + 0.2 * rng.normal(size=(300, 30)) + 3
    return x[:200], x[200:]


def test_pca_is_scikit_learns_and_beats_the_others(split):
    from sklearn.decomposition import PCA

    train, test = split
    ours, theirs = controls.pca(train, 3), PCA(3).fit(train)
    expected = theirs.inverse_transform(theirs.transform(test))
    np.testing.assert_allclose(ours.decode(ours.embed(test)), expected, atol=1e-6)
    scores = [
        metrics.explained_variance(test, c.decode(c.embed(test)), train.mean(0))
        for c in (ours, controls.random_projection(train, 3), controls.zeros(train, 3))
    ]
    assert scores[0] > scores[1] > scores[2] == 0


def test_zeros_says_the_train_mean(split):
    train, test = split
    control = controls.zeros(train, 2)
    np.testing.assert_array_equal(control.embed(test), 0)
    np.testing.assert_allclose(control.decode(control.embed(test)), np.broadcast_to(train.mean(0), test.shape))


def test_random_projection_decodes_by_least_squares(split):
    train, _ = split
    control = controls.random_projection(train, 3, seed=4)
    left = train - control.decode(control.embed(train))
    np.testing.assert_allclose(control.embed(train).T @ left, 0, atol=1e-8)  # what is left cannot be explained


def test_samples_have_the_spread_of_the_codes(split):
    control = controls.pca(split[0], 3)
    drawn = control.embed(control.sample(20_000, seed=1))
    np.testing.assert_allclose(drawn.std(0), control.spread, rtol=0.03)
    np.testing.assert_array_equal(control.sample(5, seed=2), control.sample(5, seed=2))


@pytest.mark.parametrize("recipe", [models.varix, models.vanillix])
def test_a_model_can_start_at_pca_and_only_improve(two_modalities, recipe):
    samples = Samples(two_modalities, "cpu")
    x = np.hstack([two_modalities[m].X for m in two_modalities.mod])
    train = samples.rows("train").numpy()
    pca = controls.pca(x[train], 2)
    model = controls.start_at(recipe(samples.n_vars, 2, n_layers=1, skip=True), pca)
    z = tasks.embed(model, samples)
    np.testing.assert_allclose(z, pca.embed(x) / pca.spread, atol=1e-4)
    np.testing.assert_allclose(z[train].std(0), 1, atol=1e-4)
    before = np.hstack(list(tasks.reconstruct(model, samples).values()))
    np.testing.assert_allclose(before, pca.decode(pca.embed(x)), atol=1e-3)
    fit(model, samples, epochs=60, batch_size=32, lr=1e-3, weights={"kl": 0.0} if recipe is models.varix else None)
    after = np.hstack(list(tasks.reconstruct(model, samples).values()))
    assert ((after - x)[train] ** 2).mean() < ((before - x)[train] ** 2).mean()


def test_start_at_says_what_does_not_fit(two_modalities):
    n_vars, rng = {"rna": 30, "protein": 20}, np.random.default_rng(0)
    pca = controls.pca(rng.normal(size=(60, 50)), 3)
    with pytest.raises(ValueError, match="make the model with skip=True"):
        controls.start_at(models.varix(n_vars, 3), pca)
    with pytest.raises(ValueError, match="50 features and 3 dimensions, the model 50 and 2"):
        controls.start_at(models.varix(n_vars, 2, skip=True), pca)
    with pytest.raises(ValueError, match="Gaussian heads"):
        controls.start_at(models.varix(n_vars, 3, skip=True, heads={"rna": BernoulliHead}), pca)


def test_weighted_pca_minimises_the_weighted_error(split):
    """Among codes of its size; with equal weights it is plain PCA."""
    train, test = split
    weight = np.where(np.arange(30) < 10, 1.0, 0.05)
    plain, weighted = controls.pca(train, 2), controls.pca(train, 2, weight)
    error = [((train - c.decode(c.embed(train))) ** 2).mean(0) for c in (plain, weighted)]
    assert (weight * error[1]).sum() < (weight * error[0]).sum() and error[1].sum() > error[0].sum()
    same = controls.pca(train, 2, np.full(30, 3.0))
    np.testing.assert_allclose(same.decode(same.embed(test)), plain.decode(plain.embed(test)), atol=1e-8)


def test_balance_holds_down_what_repeats_itself():
    """Fifty copies of one number rule the first component; their weight undoes it, and weak modalities stay."""
    rng = np.random.default_rng(0)
    rna, copies = rng.normal(size=(400, 60)), np.repeat(rng.normal(size=(400, 1)), 50, axis=1)
    given = {"rna": rna, "cnv": copies, "mutation": 0.1 * rng.normal(size=(400, 5)), "none": 0 * rna}
    found = controls.balance(given, strength=1)
    leading = np.linalg.eigvalsh(np.cov(rna.T, bias=True))[-1]
    assert found["cnv"] == pytest.approx(leading / (50 * copies[:, 0].var()), rel=1e-6) and found["cnv"] < 0.1
    assert found["rna"] == found["mutation"] == found["none"] == 1.0
    assert controls.balance(given)["cnv"] == pytest.approx(found["cnv"] ** 0.5)
    assert controls.balance(given, strength=0) == dict.fromkeys(given, 1.0)


# --- from one modality to another ------------------------------------------------------------------------------------


@pytest.fixture
def paired():
    """400 samples: a target of 30 features that a source of 12 knows through three linear factors."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(400, 3))
    x = z @ rng.normal(size=(3, 12)) + 0.05 * rng.normal(size=(400, 12)) + 5
    y = z @ rng.normal(size=(3, 30)) + 0.1 * rng.normal(size=(400, 30)) - 2
    return x[:300], y[:300], x[300:], y[300:]


def gained(y, y_hat, y_train):
    return metrics.explained_variance(y, y_hat, y_train.mean(0))


def test_the_mean_target_says_the_same_for_all(paired):
    _, y, x_test, y_test = paired
    translator = controls.mean_target(y)
    assert gained(y_test, translator.predict(x_test), y) == 0 and translator.name == "mean"


def test_the_usual_translators_find_a_linear_relation(paired):
    x, y, x_test, y_test = paired
    fitted = controls.translators(x, y)
    assert list(fitted) == ["mean", "nearest neighbour", "15 nearest", "ridge", "PLS"]
    score = {name: gained(y_test, t.predict(x_test), y) for name, t in fitted.items()}
    assert score["ridge"] > 0.98 and score["PLS"] > 0.98
    assert score["ridge"] > score["nearest neighbour"] > 0.7 and score["mean"] == 0
    for translator in fitted.values():  # held-out samples are predicted one by one: nothing is fitted on them
        np.testing.assert_allclose(translator.predict(x_test[:1]), translator.predict(x_test)[:1], atol=1e-9)


def test_nearest_finds_the_sample_itself_and_the_mean_of_its_neighbours(paired):
    x, y, x_test, _ = paired
    np.testing.assert_array_equal(controls.nearest(x, y).predict(x), y)
    z, z_test = (x - x.mean(0)) / x.std(0), (x_test - x.mean(0)) / x.std(0)
    order = np.argsort(((z_test[:, None] - z[None]) ** 2).sum(-1), axis=1)[:, :4]
    np.testing.assert_allclose(controls.nearest(x, y, k=4).predict(x_test), y[order].mean(1))
    np.testing.assert_allclose(controls.nearest(x[:3], y[:3], k=15).predict(x_test)[0], y[:3].mean(0))


def test_units_of_the_source_do_not_matter_and_constant_columns_say_nothing(paired):
    x, y, x_test, _ = paired
    unit = np.logspace(-4, 4, 12)
    still, moved = np.full((300, 1), 0.1), np.linspace(-50, 50, 100)[:, None]
    for make in (controls.nearest, controls.ridge_to_pca, controls.pls_to_pca):
        expected = make(x, y).predict(x_test)
        np.testing.assert_allclose(make(x * unit, y).predict(x_test * unit), expected, atol=1e-6)
        np.testing.assert_allclose(
            make(np.hstack([x, still]), y).predict(np.hstack([x_test, moved])), expected, atol=1e-6
        )


def test_ridge_is_the_closed_form_and_components_hold_it_down(paired):
    x, y, x_test, _ = paired
    z, z_test = (x - x.mean(0)) / x.std(0), (x_test - x.mean(0)) / x.std(0)
    by_hand = np.linalg.solve(z.T @ z + 7 * np.eye(12), z.T @ (y - y.mean(0)))
    direct = controls.ridge_to_pca(x, y, n_components=None, alphas=[7])
    np.testing.assert_allclose(direct.predict(x_test), y.mean(0) + z_test @ by_hand, atol=1e-8)
    axes = np.linalg.svd(y - y.mean(0))[2][:2]
    two = controls.ridge_to_pca(x, y, n_components=2, alphas=[7]).predict(x_test)
    np.testing.assert_allclose(two, y.mean(0) + z_test @ by_hand @ axes.T @ axes, atol=1e-8)
    all_of_them = controls.ridge_to_pca(x, y, n_components=99, alphas=[7]).predict(x_test)
    np.testing.assert_allclose(all_of_them, direct.predict(x_test), atol=1e-8)


def test_noise_is_met_with_a_large_penalty():
    """A source that knows nothing: the chosen penalty brings the prediction to the mean."""
    rng = np.random.default_rng(2)
    x, y, x_test = rng.normal(size=(60, 40)), rng.normal(size=(60, 8)), rng.normal(size=(60, 40))
    chosen = controls.ridge_to_pca(x, y).predict(x_test)
    free = controls.ridge_to_pca(x, y, alphas=[1e-2]).predict(x_test)
    assert ((chosen - y.mean(0)) ** 2).mean() < 0.02 * ((free - y.mean(0)) ** 2).mean()


def test_a_time_course_asks_for_folds_of_neighbouring_samples():
    """With noise shared by neighbours, leaving one out trusts it; folds of runs choose the larger penalty."""
    from sklearn.model_selection import KFold

    rng = np.random.default_rng(3)
    drift = np.repeat(rng.normal(size=(12, 30)), 15, axis=0)  # of 12 stretches of time, in source and target
    x = drift + 0.1 * rng.normal(size=(180, 30))
    y = np.repeat(rng.normal(size=(12, 10)), 15, axis=0)
    alone = controls.ridge_to_pca(x, y).predict(x)
    runs = controls.ridge_to_pca(x, y, folds=KFold(6)).predict(x)
    assert ((runs - y.mean(0)) ** 2).sum() < 0.5 * ((alone - y.mean(0)) ** 2).sum()


def test_pls_takes_given_components_and_few_features(paired):
    from sklearn.cross_decomposition import PLSRegression

    x, y, x_test, _ = paired
    z, z_test = (x - x.mean(0)) / x.std(0), (x_test - x.mean(0)) / x.std(0)
    expected = PLSRegression(2).fit(z, y).predict(z_test)
    found = controls.pls_to_pca(x, y, n_components=None, n_pls=2).predict(x_test)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert controls.pls_to_pca(x[:9, :1], y[:9, :1]).predict(x_test[:, :1]).shape == (100, 1)


def test_by_class_needs_no_pairs():
    """Tumours of three classes and pictures of other samples: the picture of the right class comes out."""
    rng = np.random.default_rng(4)
    centre, pictures = 3 * rng.normal(size=(3, 10)), rng.random((3, 16))
    kind, digit = rng.integers(3, size=200), rng.integers(3, size=90)
    x, y = (
        50 * rng.normal(size=10) + centre[kind] + rng.normal(size=(200, 10)),
        pictures[digit] + 0.01 * rng.normal(size=(90, 16)),
    )
    names = np.array(["c", "a", "b"])
    translator = controls.by_class(x[:150], names[kind[:150]], y, names[digit])
    means = np.stack([y[digit == k].mean(0) for k in range(3)])
    right = np.isclose(translator.predict(x[150:]), means[kind[150:]]).all(1)
    assert right.mean() > 0.95


def test_translators_say_what_does_not_fit(paired):
    x, y, x_test, _ = paired
    with pytest.raises(ValueError, match="300 samples beside 299"):
        controls.ridge_to_pca(x, y[1:])
    with pytest.raises(ValueError, match="no column that varies"):
        controls.nearest(np.ones((300, 2)), y)
    with pytest.raises(ValueError, match="NaN or infinite"):
        controls.pls_to_pca(np.where(x > 6, np.nan, x), y)
    with pytest.raises(ValueError, match="source has 11 features, but 12 were fitted"):
        controls.nearest(x, y).predict(x_test[:, 1:])
    with pytest.raises(ValueError, match="class 'b', 'c' is present in one modality only"):
        controls.by_class(x, ["a", "b"] * 150, y, ["a", "c"] * 150)
    with pytest.raises(ValueError, match="of class 'a': by_class needs two or more"):
        controls.by_class(x, ["a"] * 300, y, ["a"] * 300)
    with pytest.raises(ValueError, match="1 of 300 samples have no class"):
        controls.by_class(x, [None] + ["a", "b"] * 149 + ["a"], y, ["a", "b"] * 150)
