"""Metrics against closed forms, brute force and known values."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from helpers import metrics

rng = np.random.default_rng


# ---------------------------------------------------------------- reconstruction


def test_r2_agrees_with_scikit_learn_and_has_known_values():
    x = rng(0).normal(size=(9, 30))
    x_hat = x + rng(1).normal(size=x.shape) * 0.5
    np.testing.assert_allclose(
        metrics.r2_per_sample(x, x_hat), r2_score(x.T, x_hat.T, multioutput="raw_values"), rtol=1e-12
    )
    assert metrics.r2(x, x) == 1
    assert metrics.r2(x, np.repeat(x.mean(axis=1, keepdims=True), 30, axis=1)) == pytest.approx(0)
    assert metrics.r2(x, -x) < 0


def test_constant_samples_are_counted_not_hidden():
    x = rng(0).normal(size=(4, 5))
    x[2] = 0.1  # its float mean is not exactly 0.1
    with pytest.warns(UserWarning, match="1 of 4 samples are constant"):
        value = metrics.r2(x, 0.9 * x)
    assert np.isnan(metrics.r2_per_sample(x, x)).tolist() == [False, False, True, False]
    assert value == pytest.approx(np.delete(metrics.r2_per_sample(x, 0.9 * x), 2).mean())
    with pytest.raises(ValueError, match="each of the 3 samples"):
        metrics.r2(np.ones((3, 4)), np.ones((3, 4)))


def test_explained_variance():
    x = rng(0).normal(size=(50, 6)) + np.arange(6)
    x_hat = x + 0.1
    by_hand = 1 - 50 * 6 * 0.01 / ((x - x.mean(axis=0)) ** 2).sum()
    assert metrics.explained_variance(x, x_hat) == pytest.approx(by_hand)
    centre = x.mean(axis=0) + 3
    assert metrics.explained_variance(x, np.tile(centre, (50, 1)), centre) == pytest.approx(0)
    assert metrics.explained_variance(x, np.tile(centre, (50, 1))) < 0  # a constant fitted elsewhere is no better
    with pytest.raises(ValueError, match="does not vary"):
        metrics.explained_variance(np.ones((3, 2)), np.zeros((3, 2)))


def test_reconstruction_error_of_arrays_csr_torch_and_dicts():
    x, x_hat = np.arange(6.0).reshape(2, 3), np.zeros((2, 3))
    expected = (0 + 1 + 4 + 9 + 16 + 25) / 6
    assert metrics.reconstruction_error(x, x_hat) == pytest.approx(expected)
    assert metrics.reconstruction_error(sparse.csr_matrix(x), x_hat) == pytest.approx(expected)
    tensor = torch.tensor(x, dtype=torch.bfloat16, requires_grad=True)
    assert metrics.reconstruction_error(tensor, x_hat) == pytest.approx(expected)
    assert metrics.reconstruction_error({"rna": x, "cnv": x}, {"rna": x, "cnv": x_hat}) == {
        "rna": 0,
        "cnv": pytest.approx(expected),
    }
    with pytest.raises(ValueError, match=r"x has \['rna'\], x_hat has \['cnv'\]"):
        metrics.reconstruction_error({"rna": x}, {"cnv": x})
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\) and x_hat \(3, 2\)"):
        metrics.reconstruction_error(x, x.T)


# ---------------------------------------------------------------- latent space


def brute_coverage(z):
    """Both definitions by loops over samples and explicit bin edges."""
    n, n_latent = z.shape
    b = 1
    while (b + 1) ** n_latent <= n:
        b += 1
    cells = []
    for row in z:
        cell = []
        for value, column in zip(row, z.T, strict=True):
            edges = [column.min() + k * (column.max() - column.min()) / b for k in range(b + 1)]
            cell.append(max(k for k in range(b) if value >= edges[k] or k == 0))
        cells.append(tuple(cell))
    per_dimension = [len({cell[d] for cell in cells}) / b for d in range(n_latent)]
    return sum(per_dimension) / n_latent, len(set(cells)) / b**n_latent


@pytest.mark.parametrize("n, n_latent", [(7, 1), (50, 1), (50, 2), (64, 2), (64, 3), (125, 3), (81, 4), (90, 6)])
@pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "uniform"])
def test_coverage_against_brute_force(n, n_latent, draw):
    z = getattr(rng(n), draw)(size=(n, n_latent))
    per_dimension, joint = brute_coverage(z)
    assert metrics.coverage_per_dimension(z) == pytest.approx(per_dimension)
    assert metrics.coverage_joint(z) == pytest.approx(joint)


@pytest.mark.parametrize("n_latent, side", [(1, 100), (2, 10), (3, 10), (4, 5)])
def test_a_uniform_grid_is_covered_wholly(n_latent, side):
    axes = np.meshgrid(*[np.linspace(-2, 5, side)] * n_latent)
    z = np.stack([axis.ravel() for axis in axes], axis=1)  # side^n_latent samples: roots must be exact
    assert metrics.coverage_per_dimension(z) == 1 and metrics.coverage_joint(z) == 1


def test_one_point_covers_one_cell_and_a_line_covers_a_diagonal():
    point = np.full((100, 2), 3.0)
    assert metrics.coverage_per_dimension(point) == pytest.approx(0.1)
    assert metrics.coverage_joint(point) == pytest.approx(0.01)
    line = np.repeat(np.linspace(0, 1, 100)[:, None], 2, axis=1)
    assert metrics.coverage_per_dimension(line) == 1 and metrics.coverage_joint(line) == pytest.approx(0.1)


def test_which_definition_gives_one_half_for_a_gaussian():
    """The paper expects 0.5: true of one dimension, and of the joint grid for about 100 samples, else not."""

    def mean(score, n, n_latent):
        return np.mean([score(rng(seed).normal(size=(n, n_latent))) for seed in range(30)])

    assert mean(metrics.coverage_per_dimension, 1000, 1) == pytest.approx(0.49, abs=0.02)
    assert mean(metrics.coverage_per_dimension, 1000, 2) == pytest.approx(0.955, abs=0.02)
    assert mean(metrics.coverage_joint, 100, 2) == pytest.approx(0.51, abs=0.02)
    assert mean(metrics.coverage_joint, 1000, 2) == pytest.approx(0.38, abs=0.02)
    uniform = [metrics.coverage_joint(rng(seed).uniform(size=(1000, 2))) for seed in range(30)]
    assert np.mean(uniform) == pytest.approx(1 - np.exp(-1), abs=0.03)  # n balls in n boxes


def test_coverage_does_not_exist_below_two_bins():
    z = rng(0).normal(size=(15, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metrics.coverage_per_dimension(z)) and np.isnan(metrics.coverage_joint(z))
    for score in (metrics.coverage_joint, metrics.coverage_per_dimension, metrics.total_correlation):
        with pytest.raises(ValueError, match="1 values are NaN or infinite"):
            score(np.array([[0.0, 1], [np.nan, 2], [3, 4], [5, 6]]))
        with pytest.raises(ValueError, match=r"z has shape \(4,\)"):
            score(np.arange(4.0))


def with_covariance(n, covariance):
    """Samples whose empirical covariance is exactly `covariance`."""
    z = rng(0).normal(size=(n, len(covariance)))
    z -= z.mean(axis=0)
    white = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return white @ np.linalg.cholesky(covariance).T


@pytest.mark.parametrize("rho", [0.0, 0.3, -0.9, 0.999])
def test_total_correlation_of_two_gaussians(rho):
    z = with_covariance(200, np.array([[1, rho], [rho, 1.0]])) * [1e-3, 1e4] + [5, -7]
    assert metrics.total_correlation(z) == pytest.approx(-0.5 * np.log(1 - rho**2), abs=1e-9)


def test_total_correlation_by_definition_and_for_collapsed_dimensions():
    factor = rng(1).normal(size=(5, 5))
    covariance = factor @ factor.T + np.eye(5)
    z = with_covariance(300, covariance)
    expected = 0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1])
    assert metrics.total_correlation(z) == pytest.approx(expected)
    collapsed = np.hstack([z, np.full((300, 1), 0.1), 1e-7 * rng(2).normal(size=(300, 1))])
    assert metrics.total_correlation(collapsed) == pytest.approx(expected)
    assert metrics.total_correlation(np.ones((50, 3))) == 0
    assert metrics.total_correlation(np.hstack([np.ones((50, 1)), z[:50, :1]])) == 0
    assert metrics.total_correlation(z[:, [0, 1, 0]]) == np.inf
    by_chance = np.mean([metrics.total_correlation(rng(s).normal(size=(400, 4))) for s in range(50)])
    assert by_chance == pytest.approx(4 * 3 / (4 * 400), rel=0.2)


def test_active_units():
    means = rng(0).normal(size=(500, 4)) * np.sqrt([1, 0.02, 0.005, 0]) + 10
    assert metrics.active_units(means) == 2
    assert metrics.active_units(means, threshold=0.001) == 3


# ---------------------------------------------------------------- generated samples


def brute_halves(real, generated):
    pool, label = np.concatenate([real, generated]), np.repeat([0, 1], len(real))
    distance = ((pool[:, None] - pool[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(distance, np.inf)
    same = label == label[distance.argmin(axis=1)]
    return same[: len(real)].mean(), same[len(real) :].mean()


def test_two_sample_accuracies_against_brute_force():
    real, generated = rng(0).normal(size=(40, 3)), rng(1).normal(0.5, 1, size=(40, 3))
    got = metrics.two_sample_nn(real, generated)
    assert (got["accuracy_real"], got["accuracy_generated"]) == pytest.approx(brute_halves(real, generated))
    assert got["accuracy"] == pytest.approx((got["accuracy_real"] + got["accuracy_generated"]) / 2)
    assert got == metrics.two_sample_nn(real, generated)
    fixed = rng(2).normal(size=(3, 2))
    got = metrics.two_sample_nn(real, generated, projection=fixed)
    assert (got["accuracy_real"], got["accuracy_generated"]) == pytest.approx(
        brute_halves(real @ fixed, generated @ fixed)
    )


def test_two_samples_of_one_distribution():
    results = [
        metrics.two_sample_nn(rng(s).normal(size=(60, 4)), rng(1000 + s).normal(size=(80, 4)), 99, seed=s)
        for s in range(120)
    ]
    assert np.mean([r["accuracy"] for r in results]) == pytest.approx(59 / 119, abs=0.02)
    p = np.array([r["p_value"] for r in results])
    assert results[0]["n"] == 60
    assert (p <= 0.1).mean() < 0.2 and (p <= 0.5).mean() == pytest.approx(0.5, abs=0.15)


def test_two_sample_departures():
    real = rng(0).normal(size=(150, 10))
    apart = metrics.two_sample_nn(real, rng(1).normal(size=(150, 10)) + 5)
    assert apart["accuracy"] == 1 and apart["p_value"] == pytest.approx(1 / 201)
    copies = metrics.two_sample_nn(real, real + 1e-3 * rng(1).normal(size=real.shape))
    assert copies["accuracy"] < 0.05 and copies["p_value"] < 0.01
    wide = rng(0).normal(size=(150, 60))
    central = metrics.two_sample_nn(wide, 0.5 * rng(2).normal(size=wide.shape))  # like means without noise
    assert central["accuracy"] == pytest.approx(0.5, abs=0.05) and central["p_value"] < 0.01
    assert central["accuracy_real"] < 0.05 and central["accuracy_generated"] > 0.95
    collapsed = metrics.two_sample_nn(real, np.tile(real[:1] + 1, (150, 1)))
    assert collapsed["accuracy_generated"] > 0.95 and collapsed["p_value"] < 0.01


def test_ties_favour_neither_set():
    def draw(seed):
        return rng(seed).integers(0, 3, size=(60, 2)).astype(float)  # nine values: every sample has many twins

    halves = [metrics.two_sample_nn(draw(s), draw(s + 999), 1, seed=s) for s in range(60)]
    for key in ("accuracy_real", "accuracy_generated"):
        assert np.mean([half[key] for half in halves]) == pytest.approx(59 / 119, abs=0.06)


def test_two_sample_errors_and_principal_axes():
    with pytest.raises(ValueError, match=r"shape \(5, 3\) and \(5, 2\)"):
        metrics.two_sample_nn(np.ones((5, 3)), np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        metrics.two_sample_nn(np.ones((1, 3)), np.ones((5, 3)))
    x = rng(0).normal(size=(100, 8)) * [10, 5, 1, 1, 1, 1, 1, 1]
    axes = metrics.principal_axes(x, 2)
    np.testing.assert_allclose(axes.T @ axes, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(np.abs(axes[:2]), np.eye(2), atol=0.1)
    assert metrics.principal_axes(x).shape == (8, 8)


# ---------------------------------------------------------------- labels


def labelled(n, seed, gap=4.0):
    y = rng(seed).choice(["α", "b", "c"], n, p=[0.6, 0.3, 0.1])
    centre = {"α": (0, 0), "b": (gap, 0), "c": (0, gap)}
    return np.array([centre[name] for name in y]) + rng(seed + 1).normal(size=(n, 2)), y


@pytest.mark.parametrize("score", [metrics.knn_label_accuracy, metrics.logistic_accuracy])
def test_label_scores_between_noise_and_certainty(score):
    z_train, y_train = labelled(400, 0)
    z_test, y_test = labelled(300, 10)
    good = score(z_train, y_train, z_test, y_test)
    assert good["balanced_accuracy"] > 0.85 and good["auc"] > 0.97 and good["n_missing"] == 0
    noise = score(rng(5).normal(size=(400, 2)), y_train, rng(6).normal(size=(300, 2)), y_test)
    assert noise["balanced_accuracy"] == pytest.approx(1 / 3, abs=0.12)
    assert noise["auc"] == pytest.approx(0.5, abs=0.12)


def test_knn_score_agrees_with_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    z_train, y_train = labelled(200, 0, gap=1.5)
    z_test, y_test = labelled(150, 10, gap=1.5)
    judge = KNeighborsClassifier(7).fit(z_train, y_train)
    got = metrics.knn_label_accuracy(z_train, y_train, z_test, y_test, k=7)
    assert got["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y_test, judge.predict(z_test)))
    auc = roc_auc_score(y_test, judge.predict_proba(z_test), multi_class="ovo", average="macro")
    assert got["auc"] == pytest.approx(auc)
    two = y_train != "c", y_test != "c"
    judge.fit(z_train[two[0]], y_train[two[0]])
    got = metrics.knn_label_accuracy(z_train[two[0]], y_train[two[0]], z_test[two[1]], y_test[two[1]], k=7)
    binary = roc_auc_score(y_test[two[1]] == "α", judge.predict_proba(z_test[two[1]])[:, 1])
    assert got["auc"] == pytest.approx(1 - binary if judge.classes_[1] == "b" else binary)


@pytest.mark.parametrize("score", [metrics.knn_label_accuracy, metrics.logistic_accuracy])
def test_missing_unseen_and_single_labels(score):
    z_train, y_train = labelled(60, 0)
    z_test, y_test = labelled(50, 10)
    full = score(z_train, y_train, z_test, y_test)
    holes = y_train.astype(object)
    holes[:5] = None, np.nan, None, None, None
    assert score(z_train, holes, z_test, y_test)["n_missing"] == 5
    assert score(z_train[5:], y_train[5:], z_test, y_test)["balanced_accuracy"] == pytest.approx(
        score(z_train, holes, z_test, y_test)["balanced_accuracy"]
    )
    strange = score(z_train, y_train, np.vstack([z_test, [[50.0, 50]]]), [*y_test, "unseen"])
    assert strange["balanced_accuracy"] == pytest.approx(full["balanced_accuracy"] * 3 / 4)
    assert strange["auc"] == pytest.approx(full["auc"])
    keep = y_test != "c"  # a class that only train has is no class of the test split
    part = score(z_train, y_train, z_test[keep] + [0, 1.5], y_test[keep])
    assert part["balanced_accuracy"] > 0.6 and 0.5 < part["auc"] <= 1
    with pytest.raises(ValueError, match=r"the test split has a single class \(b\)"):
        score(z_train, y_train, z_test, ["b"] * 50)
    with pytest.raises(ValueError, match="no label at all"):
        score(z_train, [None] * 60, z_test, y_test)
    with pytest.raises(ValueError, match=r"50 test samples have labels of shape \(49,\)"):
        score(z_train, y_train, z_test, y_test[1:])


def test_k_is_cut_to_the_number_of_train_samples():
    z, y = np.array([[0.0], [0.1], [5.0]]), ["a", "a", "b"]
    assert metrics.knn_label_accuracy(z, y, z, y, k=15)["balanced_accuracy"] == 0.5  # always the majority


# ---------------------------------------------------------------- repetitions


def test_spread():
    assert metrics.spread([1, 2, 3, 4]) == pytest.approx((2.5, np.sqrt(5 / 3)))
    mean, sd = metrics.spread(value for value in [7])
    assert mean == 7 and np.isnan(sd)
    with pytest.raises(ValueError, match="no values"):
        metrics.spread([])


def test_importing_metrics_is_light():
    heavy = "{'sklearn', 'scipy', 'pandas', 'matplotlib', 'anndata', 'torch'}"
    code = f"import sys, helpers.metrics; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
