"""Figures on terms carry their data, in the right order, and nothing is cut off at the frame of the figure."""

import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy import stats

matplotlib.use("agg")
from matplotlib import pyplot as plt

from helpers import plots, term_plots

LONG = [
    "Metabolism of proteins",
    "Organelle biogenesis and maintenance of mitochondria in the cell",
    "Extracellular matrix organization",
    "Transport of small molecules",
    "Gene expression (Transcription)",
    "X",
]


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


@pytest.fixture
def tissue():
    rng = np.random.default_rng(0)
    groups = rng.choice(LONG[:4], 300)
    return rng.normal(size=300) + np.array([LONG.index(g) for g in groups]), groups, rng.choice(["f", "m"], 300)


def assert_whole(fig):
    """Everything that is drawn lies inside of the figure."""
    fig.canvas.draw()
    box, frame = fig.get_tightbbox(), fig.bbox_inches
    assert box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= frame.width + 0.01 and box.y1 <= frame.height + 0.01, box


def labels(ax):
    return [t.get_text() for t in ax.get_yticklabels()]


# --- names ---------------------------------------------------------------------------------------------------------


def test_names_are_cut_at_a_word_where_that_loses_little():
    assert term_plots.short("Metabolism of proteins") == "Metabolism of proteins"
    assert term_plots.short("x" * 32) == "x" * 32 and term_plots.short("x" * 40) == "x" * 31 + "…"
    assert term_plots.short("Regulation of the immune response in mice") == "Regulation of the immune respon…"
    assert term_plots.short("Regulation of immune responses (adaptive)") == "Regulation of immune responses…"
    assert term_plots.short("Extracellular matrix organization") == "Extracellular matrix organizati…"
    assert term_plots.short("a  b\nc", 10) == "a b c" and term_plots.short(7) == "7"
    assert max(len(term_plots.short(name, n)) for name in LONG for n in (8, 16, 32)) <= 32


def test_names_that_would_be_alike_keep_their_end():
    names = ["Signalling by receptor tyrosine kinases, type one", "Signalling by receptor tyrosine kinases, type two"]
    brief = term_plots.shortened([*names, "DNA repair"])
    assert len(set(brief)) == 3 and brief[2] == "DNA repair" and all(len(name) <= 32 for name in brief)
    assert brief[0].startswith("Signalling") and brief[0].endswith("type one")


# --- ridges --------------------------------------------------------------------------------------------------------


def test_ridges_are_ordered_by_median_and_are_scipys_densities(tissue):
    values, groups, _ = tissue
    fig, ax = term_plots.tall(4)
    assert term_plots.ridges(ax, values, groups, overlap=1.5) is ax
    medians = pd.Series(values).groupby(groups).median().sort_values()
    counts = pd.Series(groups).value_counts()
    assert labels(ax) == [f"{term_plots.short(name)} ({counts[name]})" for name in medians.index]
    for line in (line for line in ax.lines if len(line.get_xdata()) == 200):
        height = round(line.get_ydata().min())
        assert line.get_ydata()[[0, -1]].max() < height + 0.02  # a density ends at zero
        density = stats.gaussian_kde(values[groups == medians.index[height]])(line.get_xdata())
        np.testing.assert_allclose(line.get_ydata(), height + 1.5 * density / density.max(), rtol=1e-9)
    assert_whole(fig)


def test_two_classes_share_the_scale_of_their_ridge(tissue):
    values, groups, sex = tissue
    fig, ax = term_plots.tall(4)
    term_plots.ridges(ax, values, groups, by=sex, label="activity of chromosome X, standard deviations")
    curves = [line for line in ax.lines if len(line.get_xdata()) == 200]
    assert len(curves) == 8 and [t.get_text() for t in ax.get_legend().get_texts()] == ["f", "m"]
    assert [c.get_color() for c in curves[:2]] == plots.PALETTE[:2]  # in order of the alphabet, not of frequency
    areas = [np.trapezoid(c.get_ydata(), c.get_xdata()) for c in curves[-2:]]
    tops = [c.get_ydata().max() for c in curves[-2:]]
    assert areas[0] == pytest.approx(areas[1], rel=0.05) and max(tops) == pytest.approx(1.6)
    assert_whole(fig)


def test_few_or_equal_values_are_points_and_missing_ones_are_left_out():
    values = np.array([*np.linspace(0, 1, 20), 5.0, 6.0, 3.0, 3.0, 3.0, 3.0, 3.0, np.nan, 1.0])
    groups = ["many"] * 20 + ["few"] * 2 + ["equal"] * 5 + ["few", None]
    _, ax = term_plots.tall(3)
    term_plots.ridges(ax, values, groups)
    assert labels(ax) == ["many (20)", "equal (5)", "few (2)"]
    points = [line for line in ax.lines if line.get_marker() == "|"]
    assert sorted(len(p.get_xdata()) for p in points) == [2, 5]


def test_ridges_refuse_what_does_not_fit():
    _, ax = term_plots.tall(2)
    with pytest.raises(ValueError, match=r"values have shape \(3,\) and there are 2 groups"):
        term_plots.ridges(ax, np.ones(3), ["a", "b"])
    with pytest.raises(ValueError, match="there are 1 by"):
        term_plots.ridges(ax, np.ones(3), ["a", "b", "c"], by=["f"])
    with pytest.raises(ValueError, match="no sample has a value"):
        term_plots.ridges(ax, np.full(2, np.nan), ["a", "b"])


# --- heat ----------------------------------------------------------------------------------------------------------


def robust(n_columns=5):
    values = np.random.default_rng(0).random((len(LONG), n_columns))
    values[2, 1] = np.nan
    return pd.DataFrame(values, index=LONG, columns=[0.001, 0.01, 0.1, 0.5, 1.0][:n_columns]).rename_axis(columns="β")


def test_heat_orders_terms_by_size_and_fixes_the_colours():
    table, sizes = robust(), dict(zip(LONG, [10, 60, 20, 50, 30, 40], strict=True))
    fig, ax = term_plots.tall(6)
    term_plots.heat(ax, table, sizes)
    order = sorted(LONG, key=lambda name: -sizes[name])
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), table.loc[order].to_numpy())
    assert ax.images[0].get_clim() == (0, 1) and ax.get_xlabel() == "β"
    assert labels(ax)[0] == "Organelle biogenesis and mainte… (60)" and labels(ax)[-1] == "Metabolism of proteins (10)"
    shown = sorted(float(t.get_text()) for t in ax.texts)
    np.testing.assert_allclose(shown, np.sort(table.stack().to_numpy()), atol=0.0051)
    assert_whole(fig)


def test_heat_writes_no_values_into_many_cells_and_keeps_the_order_without_sizes():
    table = pd.concat([robust()] * 3).set_axis([f"term {i}" for i in range(18)])
    fig, ax = term_plots.tall(18)
    term_plots.heat(ax, table, xlabel="learning rate")
    assert not ax.texts and labels(ax) == list(table.index) and ax.get_xlabel() == "learning rate"
    assert_whole(fig)


def test_heat_refuses_other_ranges_and_unknown_terms():
    _, ax = term_plots.tall(6)
    with pytest.raises(ValueError, match=r"outside 0 \.\.\. 1"):
        term_plots.heat(ax, robust() - 0.5)
    with pytest.raises(ValueError, match="no size for 'Metabolism of proteins'"):
        term_plots.heat(ax, robust(), dict.fromkeys(LONG[1:], 1))


# --- scatter -------------------------------------------------------------------------------------------------------


def test_against_tells_spearman_and_names_extremes_that_do_not_overlap():
    rng = np.random.default_rng(0)
    names = [f"{LONG[i % 5]} {i}" for i in range(40)]
    x, y = np.exp(rng.normal(4, 1.5, 40)), rng.random(40)
    y[7] = np.nan
    fig, ax = plt.subplots(figsize=(3.5, 2.5))
    term_plots.against(ax, x, y, names, error=(y - 0.1, y + 0.1))
    known = np.isfinite(y)
    rho = stats.spearmanr(x[known], y[known])
    assert ax.get_title() == f"Spearman ρ = {rho.statistic:.2f}, p = {rho.pvalue:.2g}"
    assert ax.get_xscale() == "log" and len(ax.lines[0].get_xdata()) == 39
    brief = term_plots.shortened(names)
    assert {t.get_text() for t in ax.texts} <= set(brief) and 3 <= len(ax.texts) <= 9
    assert brief[int(np.nanargmax(y))] in [t.get_text() for t in ax.texts]
    fig.canvas.draw()
    boxes = [t.get_window_extent() for t in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    dots = ax.transData.transform(np.column_stack([x, y])[known])
    assert not any(box.count_contains(dots) for box in boxes)
    assert_whole(fig)


def test_against_is_linear_over_a_narrow_range_and_names_nothing_if_asked():
    _, ax = plt.subplots()
    term_plots.against(ax, [1, 2, 3, 4], [1, 2, 3, 5], list("abcd"), "size", "R²", n_named=0)
    assert ax.get_xscale() == "linear" and not ax.texts and ax.get_xlabel() == "size" and ax.get_ylabel() == "R²"
    with pytest.raises(ValueError, match="there are 3 names: need one each"):
        term_plots.against(ax, [1, 2], [1, 2], list("abc"))
    with pytest.raises(ValueError, match="no term has both numbers"):
        term_plots.against(ax, [1, 2, np.nan], [np.nan, np.nan, 3], list("abc"))
    _, ax = plt.subplots()
    term_plots.against(ax, [1, 2, np.nan], [1, 2, 3], list("abc"))  # two terms have no rank correlation, but a place
    assert ax.get_title() == "" and len(ax.lines[0].get_xdata()) == 2


# --- intervals and stability ---------------------------------------------------------------------------------------


def test_intervals_are_drawn_in_order_of_the_mean():
    mean = np.array([0.5, -1.0, 2.0, 0.1, 0.2, -2.0])
    fig, ax = term_plots.tall(6)
    term_plots.intervals(ax, mean, mean - 0.3, mean + 0.6, LONG, groups=[*"aabb", "a long name of a class", None])
    assert labels(ax) == [term_plots.short(LONG[i]) for i in np.argsort(mean)]
    bars = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] != 0]
    drawn = [b for b in bars if not np.allclose(b, 0)]
    expected = [[m - 0.3, m + 0.6] for m in np.sort(mean)]
    assert all(any(np.allclose(b, e) for b in drawn) for e in expected[1:])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b", "a long name of a class", "unknown"]
    assert_whole(fig)
    with pytest.raises(ValueError, match=r"for 2 names: need one each"):
        term_plots.intervals(ax, mean, mean, mean, ["a", "b"])


def test_intervals_per_group_are_students():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=31), ["a"] * 20 + ["b"] * 10 + ["c"]
    found = term_plots.per_group([*values, 9.0], [*groups, None])
    low, high = stats.t.interval(0.95, 19, loc=values[:20].mean(), scale=stats.sem(values[:20]))
    assert found.group.tolist() == ["a", "b", "c"] and found.n.tolist() == [20, 10, 1]
    assert (found.low[0], found.high[0]) == (pytest.approx(low), pytest.approx(high))
    assert np.isnan(found.low[2]) and found["mean"][2] == values[30]
    fig, ax = term_plots.tall(3)
    term_plots.intervals(ax, found["mean"], found.low, found.high, found.group)
    assert ax.get_legend() is None
    assert_whole(fig)


def test_stability_draws_one_line_per_ranking_and_its_band():
    rows = [(r, n, 1 - 0.3 / n, 0.9 - 0.3 / n, 1.0, 50) for n in (1, 2, 3) for r in ("samples", "terms")]
    table = pd.DataFrame(rows, columns=["ranking", "n", "spearman", "low", "high", "draws"])
    fig, ax = plt.subplots(figsize=(3.5, 2.5))
    term_plots.stability(ax, table, target=0.8)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["samples within a term", "terms by robustness"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.7, 0.85, 0.9])
    assert len(ax.collections) == 2 and set(ax.lines[-1].get_ydata()) == {0.8}
    assert_whole(fig)
    term_plots.stability(plt.subplots()[1], table, target=None)


# --- many settings, controls, drivers ------------------------------------------------------------------------------


def test_a_landscape_has_a_panel_per_hyperparameter_and_the_median_above():
    rng = np.random.default_rng(0)
    columns = pd.MultiIndex.from_tuples(
        [("lr", 1e-5), ("lr", 0.1), ("for comparison", "Ontix"), ("for comparison", "x")]
    )
    robust = pd.DataFrame(rng.random((6, 4)), LONG, columns)
    r2 = pd.Series([-0.1, 0.5, 0.5], columns[:3])  # a control may have none
    fig = term_plots.landscape(robust, r2, dict(zip(LONG, range(6, 0, -1), strict=True)))
    above, below = fig.axes[:2], fig.axes[2:4]
    np.testing.assert_allclose(above[0].lines[0].get_ydata(), robust["lr"].median())
    np.testing.assert_allclose(above[1].lines[1].get_ydata(), [0.5, np.nan])
    np.testing.assert_allclose(below[1].images[0].get_array(), robust["for comparison"])
    assert [ax.get_xlabel() for ax in below] == ["lr", "for comparison"]
    assert above[0].lines[0].get_linestyle() == "-" and above[1].lines[0].get_linestyle() == "None"
    assert_whole(fig)


def test_rated_terms_show_means_repetitions_and_grey_controls():
    values = {"ours": np.array([[0.6, 0.9], [0.8, 0.9]]), "chance": np.array([[0.5, 0.5]])}
    fig, ax = plt.subplots()
    term_plots.rated(ax, values, ["chr1", "chrX"], ["chance"])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.7, 0.9])
    np.testing.assert_allclose(np.sort(ax.lines[1].get_ydata()), [0.6, 0.8, 0.9, 0.9])
    assert ax.lines[2].get_color() == plots.CONTROL and ax.lines[0].get_color() == plots.PALETTE[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["chr1", "chrX"]
    assert_whole(fig)


def test_top_features_are_the_largest_and_members_are_coloured():
    fig, ax = term_plots.tall(3)
    term_plots.top_features(ax, [0.1, 0.9, 0.5, 0.2], [True, True, False, False], ["a", "b", "c", "d"], n=3)
    assert labels(ax) == ["b", "c", "d"]
    assert [bar.get_width() for bar in ax.patches] == [0.9, 0.5, 0.2]
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours[0] == plots.PALETTE[0].lower() and len(set(colours[1:])) == 1 and colours[1] != colours[0]
    assert_whole(fig)


def test_heat_without_a_bar_has_one_axes():
    fig, ax = plt.subplots()
    term_plots.heat(ax, pd.DataFrame([[0.5, 1.0]], ["x"]), bar=False)
    assert len(fig.axes) == 1


def test_terms_of_one_size_have_no_rank_correlation_and_no_warning():
    _, ax = plt.subplots()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        term_plots.against(ax, [16, 16, 16], [0.1, 0.5, 0.9], ["a", "b", "c"])
    assert ax.get_title() == ""
