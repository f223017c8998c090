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
