"""Figures of cross-modal translation show the numbers that they are given, on scales that can be compared."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from helpers import plots
from helpers import translation_plots as tp


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


def share_table(shares, epochs=5):
    rows = [(e, s, t, v) for e in range(epochs) for s in ("train", "valid") for t, v in shares.items()]
    return pd.DataFrame(rows, columns=["epoch", "split", "term", "share"])


def top_of(area):
    """Upper edge of a stacked area at its last epoch."""
    points = area.get_paths()[0].vertices
    return points[points[:, 0] == points[:, 0].max(), 1].max()


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# --- contributions of the loss terms -------------------------------------------------------------------------------


def test_contributions_stack_to_a_hundred_with_kl_at_the_bottom_and_a_line_at_ten():
    shares = {"nll/protein": 0.4, "adversarial": 0.1, "nll/image": 0.3, "kl": 0.05, "paired": 0.1, "novel": 0.05}
    _, (ax,) = plots.row()
    tp.contributions(ax, share_table(shares))
    areas = {area.get_label(): area for area in ax.collections}
    assert list(areas) == ["kl", "nll/protein", "nll/image", "paired", "adversarial", "novel"]
    np.testing.assert_allclose([top_of(a) for a in areas.values()], [5, 45, 75, 85, 95, 100])
    assert to_hex(areas["nll/image"].get_facecolor()[0]) == plots.MODALITY["image"].lower()
    assert ax.lines[-1].get_ydata()[0] == 10 and ax.get_ylim() == (0, 100)
    assert legend_of(ax)[::-1] == list(areas)  # the legend is read from the top, as the stack is


def test_contributions_scale_every_epoch_average_seeds_and_read_groups():
    one, two = share_table({"nll": 30.0, "kl": 10.0}), share_table({"nll": 10.0, "kl": 10.0})
    both = pd.concat([one, two]).rename(columns={"term": "group"})
    both.loc[both.epoch == 0, "share"] = np.nan  # nothing in the loss yet: balance.contributions gives NaN
    _, (ax,) = plots.row()
    tp.contributions(ax, both, "valid", advice=None)
    np.testing.assert_allclose([top_of(area) for area in ax.collections], [100 / 3, 100])
    assert len(ax.lines) == 0 and "valid" in ax.get_ylabel()


def test_contributions_refuse_a_split_without_rows_and_negative_shares():
    _, (ax,) = plots.row()
    with pytest.raises(ValueError, match="splits 'train', 'valid', not 'test'"):
        tp.contributions(ax, share_table({"kl": 1.0}), "test")
    with pytest.raises(ValueError, match="shares below zero in 'train'"):
        tp.contributions(ax, share_table({"kl": 1.0, "nll": -0.1}))


def test_terms_have_colours_of_their_own_and_the_same_in_every_figure():
    terms = [f"nll/{m}" for m in plots.MODALITY] + list(tp.TERM)
    assert len({to_hex(c) for c in tp.term_colours(terms)}) == len(terms)
    assert tp.term_colours(["kl"]) == tp.term_colours(["a", "kl"])[1:]
    with_unknown = ["nll/rna", "nll/lipids", "mystery"]
    assert len(set(tp.term_colours(with_unknown))) == 3


# --- pictures ------------------------------------------------------------------------------------------------------


def test_pictures_keep_their_layout_channels_and_scale():
    x = np.arange(12.0).reshape(1, 12) / 10  # two rows, three columns, two channels
    shown = tp.as_colours(x, (2, 3, 2))
    assert shown.shape == (1, 2, 3, 3)
    np.testing.assert_allclose(shown[0, 1, 0], [0.6, 0.7, 0.6])  # magenta and green
    assert shown.max() == 1.0  # 1.1 is clipped
    np.testing.assert_allclose(tp.as_colours(x, (2, 2, 3))[0, 0, 1], [0.3, 0.4, 0.5])
    grey = tp.as_colours(np.array([[-1.0, 0.5, np.nan, 2.0]]), (2, 2, 1))[0]
    np.testing.assert_allclose(grey[..., 0], [[0, 0.5], [float(plots.MISSING), 1]])
    assert np.ptp(grey, axis=-1).max() == 0


def test_a_mosaic_has_a_row_per_name_a_column_per_sample_and_room_between():
    x = np.array([[0.0] * 32, [0.5] * 32, [1.0] * 32])  # 4 x 8 pixels
    _, (ax,) = plots.row()
    tp.mosaic(ax, {"measured": x, "mean": x[::-1]}, (4, 8, 1), [0.0, 2.5, 5.0], ["mean"], "time, hours")
    whole, finer = np.asarray(ax.images[0].get_array()), 3  # small pictures are drawn larger, for narrow gaps
    assert whole.shape == (2 * (4 * finer + 2), 3 * (8 * finer + 2), 3)
    centres = whole[[7, 21]][:, [13, 39, 65], 0]
    np.testing.assert_array_equal(centres, [[0, 0.5, 1], [1, 0.5, 0]])
    assert (whole[:, 25:27] == 1).all()
    labels = ax.get_yticklabels()
    assert [t.get_text() for t in labels] == ["measured", "mean"]
    assert [t.get_color() for t in labels] == ["k", tp.GREY_TEXT]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.0", "2.5", "5.0"]
    assert ax.get_aspect() == pytest.approx(14 / 26)  # pixels stay square


def test_a_grid_shows_ten_of_many_samples_from_first_to_last_and_fits_the_page():
    x = np.repeat(np.linspace(0, 1, 37)[:, None], 6 * 4, axis=1)
    fig = tp.picture_grid({"measured": x, "protein → image": x}, (6, 4, 1), np.arange(37))
    assert fig.get_size_inches()[0] <= 2 * plots.WIDTH
    names = [t.get_text() for t in fig.axes[0].get_xticklabels()]
    assert len(names) == 10 and names[0] == "0" and names[-1] == "36"
    fig.canvas.draw()
    inside, whole = fig.get_tightbbox(fig.canvas.get_renderer()), fig.get_size_inches()
    assert inside.x0 >= 0 and inside.y0 >= 0 and inside.x1 <= whole[0] and inside.y1 <= whole[1]  # nothing is clipped


def test_class_centres_from_either_side_are_a_grid_with_a_class_per_column():
    rows = {"image → image": np.eye(5, 64), "rna → image": np.eye(5, 64)}
    fig = tp.picture_grid(rows, (8, 8, 1), ["LumA", "LumB", "Basal", "Her2", "Normal"])
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()][-1] == "Normal"
    assert fig.get_size_inches()[0] < 2 * plots.WIDTH  # five pictures do not fill a page


def test_pictures_that_do_not_fit_are_refused():
    x = np.zeros((3, 16))
    with pytest.raises(ValueError, match=r"shape \(3, 16\) do not have 5 × 4 pixels with 1 channels"):
        tp.picture_grid({"a": x}, (5, 4, 1))
    with pytest.raises(ValueError, match="4 channels, and 1 to 3 can be drawn"):
        tp.picture_grid({"a": x}, (2, 2, 4))
    with pytest.raises(ValueError, match="height, width and channels"):
        tp.as_colours(x, (4, 4))
    for rows, labels in (({"a": x, "b": x[:2]}, None), ({"a": x}, ["one"]), ({}, None), ({"a": x[:0]}, None)):
        with pytest.raises(ValueError, match="same number of pictures, one or more"):
            tp.picture_grid(rows, (4, 4, 1), labels)


def test_times_are_written_with_the_decimals_they_need():
    assert tp.written(np.linspace(0, 7, 15))[:3] == ["0.0", "0.5", "1.0"]
    assert tp.written([0.0, 120.0, 240.0]) == ["0", "120", "240"]
    assert tp.written([0.01, 0.02, 0.03]) == ["0.01", "0.02", "0.03"] and tp.written([0.0, 2.5])[1] == "2.5"
    assert tp.written([3, 12]) == ["3", "12"] and tp.written(["a", None]) == ["a", "None"]
    assert tp.written([2.0]) == ["2"] and tp.written([1 / 3]) == ["0.333"]
    irregular = np.sort(np.random.default_rng(0).uniform(0, 7, 10))
    assert tp.written(irregular) == [f"{t:.1f}" for t in irregular]


def test_spaced_holds_both_ends_and_repeats_nothing():
    assert list(tp.spaced(4)) == [0, 1, 2, 3] and list(tp.spaced(1)) == [0]
    for n in (11, 37, 260):
        some = tp.spaced(n)
        assert len(some) == 10 and some[0] == 0 and some[-1] == n - 1 and np.ptp(np.diff(some)) <= 1


# --- latent spaces -------------------------------------------------------------------------------------------------


@pytest.fixture
def latent():
    rng = np.random.default_rng(0)
    xy = {"protein": rng.normal(size=(100, 2)), "image": rng.normal(size=(80, 2))}
    names = {"protein": [f"s{i}" for i in range(100)], "image": [f"s{i}" for i in range(20, 100)]}
    return xy, names


def drawn(ax):
    """Colours of all points by place."""
    pairs = [(tuple(xy), to_hex(c)) for s in ax.collections if s.get_offsets().size for xy, c in colours_of(s)]
    return dict(pairs)


def colours_of(scatter):
    return zip(np.round(scatter.get_offsets(), 9), scatter.get_facecolors(), strict=True)


def test_an_aligned_space_is_coloured_by_modality_and_by_class(latent):
    xy, names = latent
    values = {m: pd.Series(np.where(each[:, 0] > 0, "late", "early"), names[m], dtype=object) for m, each in xy.items()}
    values["image"].iloc[0] = None
    _, axes = plots.row(2)
    tp.aligned(axes, xy, values, "stage")
    by_modality, by_class = drawn(axes[0]), drawn(axes[1])
    assert len(by_modality) == len(by_class) == 180
    for m, each in xy.items():
        assert {by_modality[tuple(p)] for p in np.round(each, 9)} == {plots.MODALITY[m].lower()}
    rest = np.concatenate([xy["protein"], xy["image"][1:]])
    for late in (True, False):
        found = {by_class[tuple(p)] for p in np.round(rest[(rest[:, 0] > 0) == late], 9)}
        assert found == {plots.PALETTE[int(late)].lower()}  # in order of name: early, late
    assert by_class[tuple(np.round(xy["image"][0], 9))] == to_hex(plots.MISSING)
    assert legend_of(axes[0]) == ["protein", "image"] and legend_of(axes[1]) == ["early", "late"]
    marks = [len(s.get_paths()[0].vertices) for s in axes[1].collections]
    assert len(set(marks)) == 2  # circles and triangles


def test_time_has_a_colour_bar_that_holds_for_all_modalities(latent):
    xy, names = latent
    values = {m: pd.Series(each[:, 0], names[m]) for m, each in xy.items()}
    fig, axes = plots.row(2)
    tp.aligned(axes, xy, values, "time, hours", pairs=True)
    bar = fig.axes[-1]
    assert bar.get_ylabel() == "time, hours"
    every = np.concatenate([each[:, 0] for each in xy.values()])
    np.testing.assert_allclose(bar.get_ylim(), (every.min(), every.max()))
    latest = np.concatenate(list(xy.values()))[every.argmax()]
    assert drawn(axes[1])[tuple(np.round(latest, 9))] == to_hex(plt.get_cmap("viridis")(1.0))


def test_lines_join_the_same_sample_and_are_not_too_many(latent):
    xy, names = latent
    values = {m: pd.Series(0.0, names[m]) for m in xy}
    _, axes = plots.row(2)
    tp.aligned(axes, xy, values, pairs=True)
    lines = next(c for c in axes[0].collections if isinstance(c, matplotlib.collections.LineCollection))
    assert len(lines.get_segments()) == tp.MOST_PAIRS
    partner = {tuple(xy["protein"][i + 20]): xy["image"][i] for i in range(80)}
    for start, end in lines.get_segments():
        np.testing.assert_array_equal(partner[tuple(start)], end)


def test_points_without_values_and_unpaired_lines_are_refused(latent):
    xy, names = latent
    values = {m: pd.Series("a", names[m]) for m in xy}
    _, axes = plots.row(2)
    with pytest.raises(ValueError, match="image: 80 points and 0 values"):
        tp.aligned(axes, xy, {"protein": values["protein"]})
    apart = values | {"image": pd.Series("a", [f"digit{i}" for i in range(80)])}
    with pytest.raises(ValueError, match="'protein' and 'image' share no samples to join; leave pairs=False"):
        tp.aligned(axes, xy, apart, pairs=True)


def test_a_class_has_one_colour_whatever_its_frequency():
    few_a, many_a = pd.Series(["a", "b", "b"]), pd.Series(["a", "a", "b", None])
    assert tp.palette_of(few_a) == tp.palette_of(many_a) == dict(zip("ab", plots.PALETTE, strict=False))
    stages = pd.Series(pd.Categorical(["late", "early"], ["early", "late"], ordered=True))
    assert tp.palette_of(stages) == dict(zip(["early", "late"], plots.shades(2), strict=True))
    assert len(tp.palette_of(pd.Series([str(i) for i in range(32)]))) == 32


def test_translated_and_measured_swap_places_on_one_palette():
    rng = np.random.default_rng(0)
    measured, translated = rng.normal(size=(30, 2)), rng.normal(size=(30, 2))
    labels = np.repeat(["LumA", "LumB", "Basal"], 10)
    _, axes = plots.row(2)
    tp.translated_and_measured(axes, measured, translated, labels, "subtype")
    for ax, front, back in zip(axes, (translated, measured), (measured, translated), strict=True):
        rings, dots = ax.collections
        np.testing.assert_array_equal(rings.get_offsets(), back)
        assert len(rings.get_facecolors()) == 0  # hollow
        assert {tuple(p) for p in dots.get_offsets()} == {tuple(p) for p in front}
        colour = {tuple(p): to_hex(c) for p, c in colours_of(dots)}
        assert {colour[tuple(p)] for p in np.round(front[:10], 9)} == {plots.PALETTE[1].lower()}  # Basal, LumA, LumB
    assert axes[0].get_legend() is None and legend_of(axes[1]) == ["Basal", "LumA", "LumB"]
    with pytest.raises(ValueError, match="20 translated points and 30 labels"):
        tp.translated_and_measured(axes, measured, translated[:20], labels)
    tp.translated_and_measured(axes, measured, translated[:20], labels, labels_translated=labels[:20])


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def scores():
    means = {"image → image": (0.96, 0.90), "X-modalix": (0.92, 0.82), "PLS": (0.90, 0.76), "mean image": (0.0, -0.5)}
    rows = [
        (name, split, seed, mean[k] + 0.01 * (seed - 1))
        for name, mean in means.items()
        for k, split in enumerate(("random", "blocked"))
        for seed in range(3)
    ]
    return pd.DataFrame(rows, columns=["method", "split", "seed", "R²"])


def large(ax):
    return [line for line in ax.lines if line.get_markersize() == 4.5 and len(line.get_xdata())]


def test_quality_shows_means_seeds_and_the_ceiling_of_each_split(scores):
    _, (ax,) = plots.row()
    tp.quality(ax, scores, "R²", controls=["PLS", "mean image"], ceilings=["image → image"])
    found = {(round(float(m.get_ydata()[0])), m.get_marker()): m for m in large(ax)}
    assert len(found) == 8
    means = scores.groupby(["method", "split"])["R²"].mean()
    assert found[1, "o"].get_xdata()[0] == pytest.approx(means["X-modalix", "random"])
    assert found[1, "D"].get_xdata()[0] == pytest.approx(means["X-modalix", "blocked"])
    assert found[2, "D"].get_color() == plots.CONTROL and found[2, "D"].get_markerfacecolor() == "w"
    assert found[1, "o"].get_color() == plots.PALETTE[0] and found[0, "o"].get_color() == "k"
    ceilings = [line.get_xdata()[0] for line in ax.lines if list(line.get_ydata()) == [0, 1]]
    np.testing.assert_allclose(ceilings, [0.96, 0.90])
    assert ax.get_legend_handles_labels()[1] == ["random", "blocked"]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(dict.fromkeys(scores.method))
    seeds = [line for line in ax.lines if line.get_marker() == "."]
    assert sorted(np.concatenate([line.get_xdata() for line in seeds])) == sorted(scores["R²"])


def test_a_mean_below_the_axis_is_a_triangle_at_its_end_and_the_ceiling_must_be_there(scores):
    _, axes = plots.row(2, sharey=True)
    tp.quality(axes[0], scores, "R²", low=-0.1)
    assert [m.get_xdata()[0] for m in large(axes[0]) if m.get_marker() == "<"] == [-0.1]
    assert axes[0].get_xlim()[0] == -0.1
    tp.quality(axes[1], scores.replace("blocked", np.nan).dropna(), "R²")  # panels may share their names
    with pytest.raises(ValueError, match="no method 'VAE' to be the ceiling; the table has 'image → image'"):
        tp.quality(axes[1], scores, "R²", ceilings=["VAE"])


def test_the_discriminator_is_drawn_per_split_over_chance():
    rows = [(e, "valid", t, v) for e in range(4) for t, v in (("accuracy", 0.9 - 0.1 * e), ("kl", 5.0))]
    rows += [(e, "train", "accuracy", 0.8) for e in range(4)]
    history = pd.DataFrame(rows, columns=["epoch", "split", "term", "value"])
    _, axes = plots.row(2)
    tp.discriminator(axes[0], history, 0.5)
    lines = {line.get_label(): line.get_ydata() for line in axes[0].lines}
    assert list(lines) == ["valid", "train", "chance"] and list(lines["chance"]) == [0.5, 0.5]
    np.testing.assert_allclose(lines["valid"], [0.9, 0.8, 0.7, 0.6])
    named = history.assign(term=history.term.replace("accuracy", "accuracy/image"))
    tp.discriminator(axes[1], named, 1 / 3)
    assert legend_of(axes[1]) == ["image, valid", "image, train", "chance"]
    with pytest.raises(ValueError, match="no term 'accuracy'"):
        tp.discriminator(axes[1], history[history.term == "kl"], 0.5)


def test_the_balance_trade_has_a_line_per_scenario_with_its_spread_over_seeds():
    rows = [
        (share, seed, scenario, 1 - share + 0.01 * seed, share / 2)
        for share in (0.05, 0.1, 0.4)
        for seed in range(3)
        for scenario in ("embryo", "digits")
    ]
    table = pd.DataFrame(rows, columns=["share of KL", "seed", "scenario", "R²", "FOSCTTM"])
    _, axes = plots.row(2)
    tp.balance_trade(axes, table, "share of KL", ["R²", "FOSCTTM"], "scenario", {"FOSCTTM": 0.5}, advice=0.1)
    means = [line for line in axes[0].lines if line.get_linestyle() == "-" and line.get_marker() == "o"]
    assert [line.get_label() for line in means] == ["embryo", "digits"]
    np.testing.assert_allclose(means[0].get_xydata(), [[0.05, 0.96], [0.1, 0.91], [0.4, 0.61]])
    band = axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.6) and band[:, 1].max() == pytest.approx(0.97)
    assert "chance" in axes[1].get_legend_handles_labels()[1]
    assert "chance" not in axes[0].get_legend_handles_labels()[1]
    assert [line for line in axes[0].lines if list(line.get_xdata()) == [0.1, 0.1]]
    axes[0].figure.canvas.draw()
    assert "10.0%" in [t.get_text() for t in axes[0].get_xticklabels()]
    with pytest.raises(ValueError, match="no column 'SSIM'"):
        tp.balance_trade(axes, table, "share of KL", ["SSIM"])


def test_dark_pictures_are_brightened_alike():
    dark = np.linspace(0, 0.2, 5 * 64).reshape(5, 64)
    fig = tp.picture_grid({"measured": dark, "half": dark / 2}, (8, 8, 1))
    drawn = fig.axes[0].images[0].get_array()
    first, second = np.split(drawn, 2)
    assert first[first < 1].max() > 0.95  # white is the frame
    assert second[second < 1].max() == pytest.approx(0.5, abs=0.02)
    plt.close(fig)
