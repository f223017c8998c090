"""Plots draw what they are given, and the slider swaps pictures that were drawn beforehand."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")
from matplotlib import pyplot as plt

from helpers import explore, plots
from helpers.schedules import CURVES


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    rows = [{"weight": w, "seed": s, "kind": k} for w in (0.0, 0.1, 1.0) for s in range(3) for k in ("KL", "MMD")]
    return pd.DataFrame(rows).assign(a=lambda t: t.weight + rng.random(len(t)), b=lambda t: rng.random(len(t)))


def test_every_modality_has_a_colour_of_its_own():
    assert len(set(plots.MODALITY.values())) == len(plots.MODALITY) == 8
    assert plots.CONTROL not in plots.MODALITY.values()


def test_colours_go_to_the_commonest_classes_first_and_missing_labels_are_grey():
    labels = ["b"] * 5 + ["a"] * 9 + [None] * 3
    palette = plots.colours(labels)
    assert list(palette) == ["a", "b"] and palette["a"] == plots.PALETTE[0]
    _, (ax,) = plots.row()
    plots.latent_plane(ax, np.random.default_rng(0).normal(size=(17, 2)), pd.Categorical(labels))
    drawn = {matplotlib.colors.to_hex(c) for c in ax.collections[0].get_facecolors()}
    grey = matplotlib.colors.to_hex(plots.MISSING)
    assert drawn == {plots.PALETTE[0].lower(), plots.PALETTE[1].lower(), grey}


def test_many_classes_still_get_colours():
    assert len(plots.colours([str(i) for i in range(32)])) == 32


def test_curves_strips_and_profiles_carry_their_data():
    _, axes = plots.row(3)
    plots.curves(axes[0], CURVES, 20)
    assert len(axes[0].lines) == len(CURVES) == 7
    table = pd.DataFrame(np.arange(6.0).reshape(2, 3), index=[0.0, 1.0], columns=[1, 2, 3])
    plots.strips(axes[1], table, "R²")
    np.testing.assert_array_equal(axes[1].images[0].get_array(), table)
    assert [t.get_text() for t in axes[1].get_yticklabels()] == ["0", "1"]
    profile = pd.DataFrame(np.random.default_rng(0).normal(size=(2, 50)), index=["x", "y"])
    plots.profiles(axes[1:], profile, profile, n=10)
    assert axes[2].images[0].get_array().shape == (2, 10)


def test_points_and_bars_are_means_over_seeds(scores):
    _, axes = plots.row(4)
    one = scores[scores.kind == "KL"]
    plots.spread(axes[0], one, "a", "b", "weight")
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), one.groupby("weight").b.mean())
    plots.bars(axes[1], scores, "a", "kind", controls=["MMD"])
    assert [bar.get_height() for bar in axes[1].patches] == pytest.approx(list(scores.groupby("kind").a.mean()))
    assert axes[1].patches[1].get_facecolor()[:3] == (0.6, 0.6, 0.6)  # a control is grey
    plots.grouped_bars(axes[2], scores, "a", "weight", "kind", "β")
    assert len(axes[2].patches) == 6
    plots.path(axes[3], one, "a", "b", "weight", "k", "KL")
    plots.control_points(axes[3], pd.DataFrame({"kind": ["PCA", "zeros"], "a": [1, np.nan], "b": [2, 1]}), "a", "b")
    assert [t.get_text() for t in axes[3].texts] == ["0", "0.1", "1", "PCA"]  # a control without a value is left out


def test_loss_terms_and_grids(scores):
    rows = [(e, "valid", t, 10.0 - e) for e in range(3) for t in ("nll/rna", "kl", "total", "weight/kl")]
    fig, axes = plots.grid(3, columns=2)
    assert len(axes) == 3 and len(fig.axes) == 4
    plots.terms(axes[0], pd.DataFrame(rows, columns=["epoch", "split", "term", "value"]))
    assert [line.get_label() for line in axes[0].lines] == ["nll/rna", "kl"]
    plots.grid_map(axes[1], np.array([[-1.0, 2.0], [0.0, 1.0]]), np.array([-1.0, 1.0]), "rna", "GENE1")
    assert axes[1].images[0].get_clim() == (-2.0, 2.0)  # zero is white


def picture(option):
    fig, (ax,) = plots.row()
    ax.set_title(str(option))
    return fig


def test_headless_slider_is_one_figure(monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUN_DIR", "anywhere")
    assert explore.slider("β", [0.0, 1.0], picture, start=1.0).axes[0].get_title() == "1.0"


def test_slider_swaps_pictures_drawn_beforehand(monkeypatch):
    monkeypatch.delenv("WORKBOOK_RUN_DIR", raising=False)
    drawn = []
    box = explore.slider("β", [0.0, 1.0, 10.0], lambda option: drawn.append(option) or picture(option))
    handle, image = box.children
    before = bytes(image.value)
    assert drawn == [0.0, 1.0, 10.0] and before.startswith(b"\x89PNG") and handle.description == "β"
    handle.value = 10.0
    assert bytes(image.value) != before and len(drawn) == 3  # nothing is computed when the slider moves


def test_ladder_and_ranks_show_every_row():
    rows = [(m, g, 0.1 * i + 0.05 * k) for i, m in enumerate("abc") for g in (2, 8) for k in range(3)]
    table = pd.DataFrame(rows, columns=["model", "dimensions", "score"])
    fig, axes = plots.row(2)
    plots.ladder(axes[0], table, "score", "model", "dimensions", controls=["c"])
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["a", "b", "c"]
    assert axes[0].get_legend_handles_labels()[1] == ["2", "8"]
    large = [line for line in axes[0].lines if line.get_markersize() == 5 and len(line.get_xdata())]
    means = sorted(float(line.get_xdata()[0]) for line in large)
    np.testing.assert_allclose(means, sorted(table.groupby(["model", "dimensions"]).score.mean()))
    found = pd.DataFrame({"rank": [1.5, 3], "low": [1, 2.5], "high": [2, 3.5]}, index=["ours", "PCA"])
    plots.ranks(axes[1], found, controls=["PCA"])
    assert [t.get_text() for t in axes[1].get_yticklabels()] == ["ours", "PCA"]
    assert axes[1].lines[-1].get_color() == plots.CONTROL
    plt.close(fig)


def test_menus_draw_once_per_choice(monkeypatch):
    drawn = []

    def draw(model, size):
        drawn.append((model, size))
        fig, (ax,) = plots.row()
        ax.set(title=f"{model}, {size}")
        return fig

    monkeypatch.delenv("WORKBOOK_RUN_DIR", raising=False)
    box = explore.choose({"model": ["varix", "ontix"], "size": [2, 8]}, draw)
    menus, image = box.children[0].children, box.children[1]
    before = bytes(image.value)
    menus[0].value = "ontix"
    assert bytes(image.value) != before and [m.description for m in menus] == ["model", "size"]
    menus[0].value = "varix"
    assert bytes(image.value) == before and drawn == [("varix", 2), ("ontix", 2)]
    monkeypatch.setenv("WORKBOOK_RUN_DIR", "somewhere")
    assert isinstance(explore.choose({"model": ["varix"], "size": [2]}, draw), plt.Figure)


@pytest.fixture
def walk():
    times = np.linspace(0, 7, 15)
    profile = pd.DataFrame({f"TF{k}": (1 + k % 2) * np.exp(-((times - k / 3) ** 2)) for k in range(20)})
    return times, {"protein": profile}, {"protein → image": np.repeat(times[:, None] / 7, 24, axis=1)}


def test_a_walk_shows_what_changes_most_in_order_of_its_peak(walk):
    _, profiles, _ = walk
    shown = explore.changing(profiles["protein"], 5)
    assert set(shown) == set(profiles["protein"].var().nlargest(5).index)
    assert (np.diff(shown.to_numpy().argmax(0)) >= 0).all()


def test_steps_of_a_walk_share_their_scale(walk):
    _, profiles, frames = walk
    first, last = (explore.walk_step(at, profiles, frames, (6, 4, 1), "time") for at in (0, 14))
    assert first.axes[0].get_xlim() == last.axes[0].get_xlim()
    heights = [bar.get_width() for bar in last.axes[0].patches]
    assert heights == pytest.approx(list(explore.changing(profiles["protein"]).iloc[14]))
    assert [float(np.max(fig.axes[1].images[0].get_array())) for fig in (first, last)] == [0.0, 1.0]
    assert last.axes[1].get_title() == "protein → image" and first.axes[1].images[0].get_clim() is not None


def test_the_translator_swaps_steps_drawn_beforehand(monkeypatch, walk):
    times, profiles, frames = walk
    monkeypatch.delenv("WORKBOOK_RUN_DIR", raising=False)
    drawn, draw = [], explore.walk_step
    monkeypatch.setattr(explore, "walk_step", lambda at, *rest: drawn.append(at) or draw(at, *rest))
    some = {name: profile[:3] for name, profile in profiles.items()}
    box = explore.translator("hours", times[:3], some, {k: x[:3] for k, x in frames.items()}, (6, 4, 1), start=1)
    handle, image = box.children
    before = bytes(image.value)
    assert handle.value == "0.5" and handle.description == "hours" and drawn == [0, 1, 2]
    handle.value = "1.0"
    assert bytes(image.value) != before and drawn == [0, 1, 2]  # nothing is drawn when the slider moves


def test_the_headless_translator_is_a_strip_of_the_whole_walk(monkeypatch, walk):
    times, profiles, frames = walk
    monkeypatch.setenv("WORKBOOK_RUN_DIR", "anywhere")
    fig = explore.translator("hours", times, profiles, frames, (6, 4, 1))
    heat, pictures = fig.axes[:2]
    np.testing.assert_allclose(
        heat.images[0].get_array().T, explore.changing(profiles["protein"]).iloc[plots_of(times)]
    )
    assert [t.get_text() for t in pictures.get_xticklabels()][:2] == ["0.0", "1.0"]
    assert [t.get_text() for t in pictures.get_yticklabels()] == ["protein → image"] and not plt.get_fignums()
    alone = explore.translator("hours", times, profiles, {})  # profile to profile: no pictures
    assert len(alone.axes[0].get_xticklabels()) == 10 and alone.axes[0].get_xlabel() == "hours"


def plots_of(times):
    return np.linspace(0, len(times) - 1, 10).round().astype(int)


def test_a_walk_that_does_not_fit_is_refused(walk):
    times, profiles, frames = walk
    with pytest.raises(ValueError, match="14 positions need as many decoded steps each"):
        explore.translator("hours", times[1:], profiles, frames, (6, 4, 1))
    with pytest.raises(ValueError, match=r"need shape=\(height, width, channels\)"):
        explore.translator("hours", times, profiles, frames)
    with pytest.raises(ValueError, match="positions are alike when written: 'a', 'a'"):
        explore.translator("class", ["a"] * 15, profiles, frames, (6, 4, 1))
