"""Robustness of terms: closed forms, invariances, and planted terms found again."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers import robustness


def repeated(shared, n_rep=10, n_obs=400, seed=0, flip=True):
    """Activities [n_rep, n_obs, n_terms] whose repetitions correlate by `shared` [n_terms], and the truth behind."""
    rng = np.random.default_rng(seed)
    shared = np.asarray(shared)
    truth = rng.normal(size=(n_obs, len(shared)))
    noise = rng.normal(size=(n_rep, n_obs, len(shared)))
    z = np.sqrt(shared) * truth + np.sqrt(1 - shared) * noise
    scale = rng.uniform(0.1, 9, size=(n_rep, 1, len(shared)))
    sign = rng.choice([-1, 1], size=(n_rep, 1, len(shared))) if flip else 1
    return scale * sign * z + rng.normal(size=scale.shape), truth


# --- what to train ----------------------------------------------------------------------------------------------


def test_a_plan_changes_one_hyperparameter_at_a_time():
    base, grid = {"lr": 0.1, "beta": 1.0}, {"lr": [0.1, 0.2], "beta": [1.0, 3.0]}
    found = pd.DataFrame(
        robustness.plan(base, grid, {"beside": {"same": {}, "both": {"lr": 9, "beta": 9}}}, 2, {"same": 4})
    )
    assert list(found.groupby(["panel", "value"], sort=False).size()) == [2, 2, 2, 2, 4, 2]
    assert list(found[found.value == 0.2].lr) == [0.2, 0.2] and list(found[found.value == 3.0].lr) == [0.1, 0.1]
    assert list(found[found.value == "same"].repetition) == [0, 1, 2, 3]
    assert len(found.drop(columns=["panel", "value"]).drop_duplicates()) == 4 + 2 + 2 + 2  # the baseline once


# --- agreement of repetitions --------------------------------------------------------------------------------------


def test_correlations_are_those_of_numpy_for_every_pair():
    z, _ = repeated([0.2, 0.9, 0.5], n_rep=5, n_obs=30)
    found = robustness.correlations(z)
    for row, (i, j) in zip(found, itertools.combinations(range(5), 2), strict=True):
        np.testing.assert_allclose(row, [np.corrcoef(z[i, :, t], z[j, :, t])[0, 1] for t in range(3)], rtol=1e-10)
    np.testing.assert_allclose(robustness.robustness(z), np.abs(found).mean(0))


def test_robustness_ignores_sign_scale_and_shift_and_the_order_of_repetitions():
    z, _ = repeated([0.3, 0.8])
    rng = np.random.default_rng(1)
    other = z * rng.choice([-3.0, 0.2], size=(10, 1, 2)) + rng.normal(size=(10, 1, 2))
    np.testing.assert_allclose(robustness.robustness(other), robustness.robustness(z), rtol=1e-9)
    np.testing.assert_allclose(robustness.robustness(z[::-1]), robustness.robustness(z), rtol=1e-9)


def test_the_planted_correlation_is_found_and_noise_scores_by_chance():
    z, _ = repeated([0.0, 0.5, 0.95, 1.0], n_obs=4000)
    np.testing.assert_allclose(robustness.robustness(z), [0.8 / np.sqrt(4000), 0.5, 0.95, 1], atol=0.02)


def test_a_collapsed_term_has_no_correlation_and_is_told():
    z, _ = repeated([0.5, 0.5, 0.5], n_rep=4)
    z[1, :, 0] = 0.01
    z[:, :, 2] = 7.0 + 1e-9 * z[:, :, 2]  # rounding is no variation
    with pytest.warns(UserWarning, match="2 of 3 terms are constant in some repetition"):
        r = robustness.correlations(z)
    assert np.isnan(r[:, 0]).sum() == 3 and not np.isnan(r[:, 1]).any() and np.isnan(r[:, 2]).all()
    with pytest.warns(UserWarning):
        found = robustness.robustness(z)
        rows = robustness.table(z, ["a", "b", "c"])
    assert found[0] == pytest.approx(np.nanmean(np.abs(r[:, 0]))) and np.isnan(found[2])
    assert rows.n_constant.tolist() == [1, 0, 4]


def test_the_interval_is_the_jackknife_over_repetitions():
    z, _ = repeated([0.4, 0.7], n_rep=6, n_obs=50)
    rows = robustness.table(z, ["a", "b"], [10, 20])
    without = np.array([robustness.robustness(np.delete(z, i, axis=0)) for i in range(6)])
    error = np.sqrt(5 / 6 * ((without - without.mean(0)) ** 2).sum(0))
    middle = robustness.robustness(z)
    np.testing.assert_allclose(rows.robustness, middle)
    np.testing.assert_allclose(rows.high - rows.robustness, stats.t.ppf(0.975, 5) * error, rtol=1e-9)
    np.testing.assert_allclose(rows.robustness - rows.low, stats.t.ppf(0.975, 5) * error, rtol=1e-9)
    assert list(rows.columns) == ["term", "robustness", "low", "high", "n_constant", "size"]
    assert rows.term.tolist() == ["a", "b"] and rows["size"].tolist() == [10, 20]


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Repetitions of unequal quality w: r_ij = w_i w_j, so the expected |r| over pairs is E[w]^2."""
    rng = np.random.default_rng(0)
    w = rng.uniform(0.5, 1.0, size=(8, 1, 400))
    z = w * rng.normal(size=(1, 600, 400)) + np.sqrt(1 - w**2) * rng.normal(size=(8, 600, 400))
    rows = robustness.table(z, range(400))
    covered = ((rows.low <= 0.75**2) & (0.75**2 <= rows.high)).mean()
    assert 0.9 < covered < 0.99
    pairs = np.abs(robustness.correlations(z))
    naive = 1.96 * pairs.std(0, ddof=1) / np.sqrt(len(pairs))  # as if pairs were independent
    assert (np.abs(pairs.mean(0) - 0.75**2) <= naive).mean() < covered - 0.05


def test_two_repetitions_have_no_interval():
    rows = robustness.table(repeated([0.5, 0.9], n_rep=2)[0], ["a", "b"])
    assert rows.robustness.notna().all() and rows.low.isna().all() and rows["size"].isna().all()


# --- one activity from many ----------------------------------------------------------------------------------------


def test_aligned_repetitions_are_standardised_and_agree():
    z, truth = repeated([0.6, 0.9, 0.3])
    aligned = robustness.align(z)
    np.testing.assert_allclose(aligned.mean(1), 0, atol=1e-10)
    np.testing.assert_allclose(aligned.std(1), 1)
    agree = np.einsum("rot,ot->rt", aligned, truth)
    assert (np.abs(np.sign(agree).sum(0)) == 10).all()
    np.testing.assert_allclose(np.abs(robustness.correlations(z)), robustness.correlations(aligned), atol=1e-10)


def test_most_repetitions_keep_their_sign_and_the_first_does_in_a_tie():
    z, _ = repeated([0.9], n_rep=4, flip=False)
    sign = np.array([-1, 1, 1, 1])[:, None, None]
    np.testing.assert_allclose(robustness.align(sign * z), robustness.align(z))
    sign = np.array([-1, 1, 1, -1])[:, None, None]
    np.testing.assert_allclose(robustness.align(sign * z), -robustness.align(z))


def test_a_reference_gives_the_sign_whatever_the_repetitions_had():
    z, truth = repeated([0.6, 0.9, 0.3])
    flips = np.random.default_rng(3).choice([-1, 1], size=(10, 1, 3))
    aligned = robustness.align(z, reference=truth + 100)
    np.testing.assert_allclose(robustness.align(flips * z, reference=truth + 100), aligned)
    assert (np.einsum("rot,ot->rt", aligned, truth) > 0).all()
    with pytest.raises(ValueError, match=r"reference has shape \(3, 400\), but must have \(400, 3\)"):
        robustness.align(z, reference=truth.T)


def test_the_consensus_is_nearer_to_the_truth_than_any_repetition():
    z, truth = repeated([0.2, 0.5, 0.8], n_obs=4000)
    found = robustness.consensus(z, reference=truth)
    own = robustness.right_terms(z[:1], truth)
    assert (robustness.right_terms(found.mean, truth) > own).all()
    share = np.array([0.2, 0.5, 0.8])  # r of the mean of n with the truth: sqrt(n r / (1 + (n - 1) r))
    np.testing.assert_allclose(
        robustness.right_terms(found.mean, truth), np.sqrt(10 * share / (1 + 9 * share)), atol=0.02
    )


def test_the_interval_of_the_consensus_is_the_t_interval():
    z, _ = repeated([0.5, 0.9], n_rep=6, n_obs=50)
    found, aligned = robustness.consensus(z), robustness.align(z)
    low, high = stats.t.interval(0.95, 5, loc=aligned.mean(0), scale=stats.sem(aligned, axis=0))
    np.testing.assert_allclose(found.mean, aligned.mean(0))
    np.testing.assert_allclose(found.low, low, rtol=1e-9)
    np.testing.assert_allclose(found.high, high, rtol=1e-9)


def test_a_repetition_in_which_a_term_collapsed_has_no_say_in_its_consensus():
    z, truth = repeated([0.9, 0.9], n_rep=5)
    z[2, :, 0] = 0.0
    with pytest.warns(UserWarning, match="1 of 2 terms"):
        found = robustness.consensus(z, truth)
    expected = robustness.consensus(np.delete(z, 2, axis=0), truth)
    np.testing.assert_allclose(found.mean[:, 0], expected.mean[:, 0])
    np.testing.assert_allclose(found.high[:, 0], expected.high[:, 0])


# --- how many ------------------------------------------------------------------------------------------------------


def test_agreement_grows_with_repetitions_as_spearman_and_brown_say():
    z, _ = repeated([0.5] * 4, n_rep=16, n_obs=600)
    found = robustness.repetitions_needed(z, target=0.85, draws=20)
    rows = found.table[found.table.ranking == "samples"]
    expected = rows.n * 0.5 / (1 + (rows.n - 1) * 0.5)
    np.testing.assert_allclose(rows.spearman, expected - 0.01, atol=0.025)  # rho of a Gaussian lies just below r
    assert rows.n.tolist() == list(range(1, 9)) and (rows.low <= rows.spearman).all()
    assert (rows.spearman <= rows.high).all() and found.needed["samples"] in (6, 7)
    assert (
        found.words["samples"]
        == f"the ranking of samples is stable (Spearman >= 0.85) from n = {found.needed['samples']} repetitions on"
    )


def test_clearly_different_terms_are_ranked_by_few_repetitions():
    z, _ = repeated(np.linspace(0.05, 0.95, 12), n_obs=600)
    found = robustness.repetitions_needed(z, draws=10)
    assert found.needed["terms"] == 2
    assert found.table[found.table.ranking == "terms"].n.tolist() == [2, 3, 4, 5]


def test_what_is_not_reached_is_said_in_words():
    z, _ = repeated([0.3] * 12, n_rep=8)
    found = robustness.repetitions_needed(z, draws=20, target=0.95)
    assert found.needed == {"terms": None, "samples": None}
    assert "terms is not stable with 4 repetitions" in found.words["terms"]
    guess = int(found.words["samples"].split()[-1])
    assert guess == pytest.approx(19 * 0.7 / 0.3, rel=0.15)  # k with k r / (1 + (k - 1) r) = 0.95
    few_terms = robustness.repetitions_needed(z[:, :, :2], draws=5)
    assert "fewer than three" in few_terms.words["terms"] and few_terms.needed["terms"] is None


def test_draws_are_repeatable_and_noise_is_never_stable():
    z, _ = repeated([0.0] * 5, n_rep=6)
    first, second = (robustness.repetitions_needed(z, draws=10, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first.table, second.table)
    assert first.table[first.table.ranking == "samples"].spearman.max() < 0.1


@pytest.mark.parametrize(("n_rep", "k_max"), [(3, None), (8, 5), (8, 1)])
def test_too_few_repetitions_for_two_halves(n_rep, k_max):
    with pytest.raises(ValueError, match=f"between 2 and half of the {n_rep} repetitions"):
        robustness.repetitions_needed(repeated([0.5] * 3, n_rep=n_rep)[0], k_max)


# --- robust and right ----------------------------------------------------------------------------------------------


def test_right_terms_are_correlations_with_the_truth():
    z, truth = repeated([0.3, 0.8])
    by_hand = [[abs(np.corrcoef(z[r, :, t], truth[:, t])[0, 1]) for t in range(2)] for r in range(10)]
    np.testing.assert_allclose(robustness.right_terms(z, truth), np.mean(by_hand, 0))
    np.testing.assert_allclose(robustness.right_terms(z[0], truth), by_hand[0])
    assert np.isnan(robustness.right_terms(np.ones((5, 1)), np.arange(5.0)[:, None])).all()
    with pytest.raises(ValueError, match=r"truth has shape \(400, 1\), but must have \(400, 2\)"):
        robustness.right_terms(z, truth[:, :1])
    with pytest.raises(ValueError, match=r"z has shape \(400,\)"):
        robustness.right_terms(z[0, :, 0], truth)


def test_robust_is_not_right_where_repetitions_agree_on_the_wrong_thing():
    z, truth = repeated(np.linspace(0.1, 0.9, 15))
    robust = robustness.robustness(z)
    honest = robustness.are_robust_terms_right(robust, robustness.right_terms(z, truth))
    assert honest["spearman"] > 0.95 and honest["low"] > 0.8 and honest["n"] == 15
    other = robustness.are_robust_terms_right(robust, robustness.right_terms(z, repeated([0.5] * 15, seed=9)[1]))
    assert other["low"] < 0 < other["high"]


def test_the_interval_of_spearman_is_bonetts_and_leaves_nan_out():
    rng = np.random.default_rng(0)
    a = rng.normal(size=21)
    b = a + rng.normal(size=21)
    found = robustness.are_robust_terms_right(np.append(a, np.nan), np.append(b, 1.0))
    rho = stats.spearmanr(a, b).statistic
    reach = stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / 18)
    assert found["n"] == 21 and found["spearman"] == pytest.approx(rho)
    assert found["low"] == pytest.approx(np.tanh(np.arctanh(rho) - reach), rel=1e-5)
    assert found["high"] == pytest.approx(np.tanh(np.arctanh(rho) + reach), rel=1e-5)
    assert robustness.are_robust_terms_right(a, a)["high"] <= 1
    with pytest.raises(ValueError, match="needs at least 4 terms with both numbers, found 3"):
        robustness.are_robust_terms_right(a[:3], b[:3])
    with pytest.raises(ValueError, match=r"both must be \[n_terms\]"):
        robustness.are_robust_terms_right(a, b[:-1])


# --- the report ----------------------------------------------------------------------------------------------------


def test_the_report_says_which_terms_to_trust():
    shared = [0.1, 0.95, 0.6, 0.8]
    z, truth = repeated(shared, n_obs=1500)
    found = robustness.report(z, ["a", "b", "c", "d"], [5, 50, 20, 30], truth=truth)
    assert found.term.tolist() == ["b", "d", "c", "a"] and found["size"].tolist() == [50, 30, 20, 5]
    assert found.trust[0] == "yes" and found.trust[3] == "no"
    expected = 10 * np.array([0.95, 0.8, 0.6, 0.1]) / (1 + 9 * np.array([0.95, 0.8, 0.6, 0.1]))
    np.testing.assert_allclose(found.reliability, expected, atol=0.03)
    assert found.width.is_monotonic_increasing and found.right.is_monotonic_decreasing
    assert set(found.attrs["stability"]) == {"terms", "samples"}


def test_the_report_makes_no_promises_from_two_repetitions():
    found = robustness.report(repeated([0.95, 0.1], n_rep=2)[0], ["a", "b"])
    assert found.trust.tolist() == ["unclear", "unclear"] and found.attrs["stability"] == {}
    assert "right" not in found


@pytest.mark.parametrize(
    ("activities", "message"),
    [
        (np.ones((3, 4)), r"shape \(3, 4\); they must be \[n_rep, n_obs, n_terms\]"),
        (np.ones((1, 9, 2)), "at least two repetitions"),
        (np.ones((4, 2, 2)), "three samples"),
        (np.full((3, 5, 2), np.nan), "hold 30 NaN or infinite values: leave out failed trainings"),
    ],
)
def test_wrong_activities(activities, message):
    for function in (robustness.correlations, robustness.align, robustness.consensus):
        with pytest.raises(ValueError, match=message):
            function(activities)


def test_names_and_sizes_must_fit():
    z, _ = repeated([0.5, 0.5])
    with pytest.raises(ValueError, match="there are 1 names for 2 terms: 'a'"):
        robustness.table(z, ["a"])
    with pytest.raises(ValueError, match="there are 3 sizes for 2 terms"):
        robustness.report(z, ["a", "b"], [1, 2, 3])
