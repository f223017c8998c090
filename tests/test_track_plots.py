"""Figures of notebook 06 show the numbers they are given."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from helpers import explore, plots
from helpers import track_plots as tp

EFFECTS = pd.DataFrame(
    {
        "gene": ["A", "A", "A", "B"] * 2,
        "peak": ["p1", "p2", "p3", "p1"] * 2,
        "group": ["T"] * 4 + ["B"] * 4,
        "score": [0.5, -1.0, 0.2, 0.1, 0.0, 0.1, -0.2, 0.1],
        "distance": [-20_000, 5_000, 90_000, 300] * 2,
    }
)
GENES = pd.DataFrame({"strand": ["-", "+"]}, index=["A", "B"])
KNOWN = pd.DataFrame({"gene": ["A", "A"], "peak": ["p2", "p3"], "types": ["T;NK", "B"]})


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


def axis():
    return plots.row()[1][0]


def triangles(ax):
    return next(line for line in ax.lines if line.get_marker() == "^").get_xdata().tolist()


def test_track_shows_every_peak_where_it_lies_and_which_way_it_goes():
    mine = EFFECTS[(EFFECTS["gene"] == "A") & (EFFECTS["group"] == "T")]
    ax = tp.track(axis(), mine, "A", "-", ["p2"])
    points = ax.collections[1]
    assert points.get_offsets().tolist() == [[-20.0, 0.5], [5.0, -1.0], [90.0, 0.2]]
    assert [to_hex(c).upper() for c in points.get_facecolors()] == [tp.UP, tp.DOWN, tp.UP]
    assert triangles(ax) == [5.0]
    low, high = ax.get_ylim()
    assert low < -1.0 and high > 1.0 and low == -high
    arrow = next(a for a in ax.texts if a.get_text() == "")
    assert arrow.xy[0] < 0  # the gene is on the reverse strand


def test_track_without_peaks_is_empty_and_stands():
    ax = tp.track(axis(), EFFECTS[:0], "A")
    assert triangles(ax) == [] and np.isfinite(ax.get_ylim()).all()


def test_locus_marks_links_in_the_types_in_which_they_act_on_one_scale():
    fig = tp.locus(EFFECTS, "A", ["T", "B"], GENES, KNOWN)
    first, second = fig.axes
    assert [triangles(ax) for ax in fig.axes] == [[5.0], [90.0]]
    assert first.get_ylim() == second.get_ylim()
    assert [ax.get_title("left") for ax in fig.axes] == ["T", "B"]


def test_locus_marks_links_without_types_everywhere():
    fig = tp.locus(EFFECTS, "A", ["T", "B"], GENES, KNOWN.drop(columns="types"))
    assert [triangles(ax) for ax in fig.axes] == [[5.0, 90.0]] * 2


def test_explore_shows_the_first_gene_headless_and_menus_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBOOK_RUN_DIR", str(tmp_path))
    assert len(explore.links(EFFECTS, GENES, KNOWN).axes) == 2
    with pytest.raises(ValueError, match="no effects to show"):
        explore.links(EFFECTS[:0], GENES)
    monkeypatch.delenv("WORKBOOK_RUN_DIR")
    menus = explore.links(EFFECTS, GENES, KNOWN).children[0].children
    assert [menu.options for menu in menus] == [("A", "B"), ("T", "B")]


def test_decay_has_a_line_per_method_and_controls_are_grey():
    rows = [(m, a, b, e, 5) for m in ("ours", "distance") for a, b, e in ((0, 2000, 3.0), (2000, 8000, 1.0))]
    table = pd.DataFrame(rows, columns=["method", "near", "far", "effect", "n"])
    ax = tp.decay(axis(), table, ["distance"])
    ours, control = ax.lines[:2]
    assert ours.get_ydata().tolist() == [3.0, 1.0] and ours.get_xdata()[1] == pytest.approx(4.0)
    assert control.get_color() == plots.CONTROL and ours.get_color() != plots.CONTROL


def test_dots_are_in_the_rows_of_their_method():
    table = pd.DataFrame({"method": ["a", "b"], "auroc": [0.9, 0.6], "right type": [0.8, np.nan]})
    ax = tp.dots(axis(), table, {"auroc": "o", "right type": "s"}, controls=["b"], chance=0.5)
    found = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines if len(line.get_xdata()) == 1
    }
    assert {(0.9, 0.0), (0.8, 0.0), (0.6, 1.0)} <= found
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"] and ax.yaxis_inverted()


def test_dots_of_several_seeds_are_their_mean_with_each_beside_it():
    table = pd.DataFrame({"method": ["a", "a", "b"], "ari": [0.8, 0.6, 0.5]})
    ax = tp.dots(axis(), table, {"ari": "o"}, "ARI")
    first, each, second = ax.lines
    assert first.get_xdata().tolist() == [pytest.approx(0.7)] and sorted(each.get_xdata()) == [0.6, 0.8]
    assert second.get_xdata().tolist() == [0.5] and ax.get_xlabel() == "ARI" and not ax.get_legend()


def test_effect_map_is_white_at_zero():
    ax = tp.effect_map(axis(), pd.DataFrame([[0.0, -2.0]], index=["T"], columns=["CD4", "CD8"]), "x")
    assert ax.images[0].get_clim() == (-2.0, 2.0)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["CD4", "CD8"]


def test_p_values_are_densities():
    ax = tp.p_values(axis(), {"links": np.linspace(0, 0.05, 40), "chance": [], "others": np.linspace(0, 1, 1000)})
    outlines = {p.get_label(): p.get_path().vertices for p in ax.patches}
    assert outlines["links"][:, 1].max() == pytest.approx(20, rel=0.1)
    assert outlines["others"][:, 1].max() == pytest.approx(1, rel=0.05)
    assert "chance" not in outlines


def test_factors_are_shown_beyond_the_peaks_of_others():
    columns = {"gene": ["x", "y"], "role": ["repressor", "activator"], "change": [0.5, -0.8], "others": [0.1, 0.1]}
    ax = tp.factor_changes(axis(), pd.DataFrame(columns))
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([-0.9, 0.4])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["y", "x"]


def test_losses_take_the_colour_of_their_modality_and_the_style_of_their_method():
    rows = [(k, s, m, 1 + s) for k in ("ours", "VAE") for m in ("rna", "atac") for s in (0.1, 1.0)]
    ax = tp.losses(axis(), pd.DataFrame(rows, columns=["method", "share", "modality", "nll"]), "share", "nll", "x", "y")
    found = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert found["rna, ours"] == (plots.MODALITY["rna"], "-") and found["atac, VAE"] == (plots.MODALITY["atac"], "--")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["10%", "100%"]


def test_ranks_start_at_one():
    columns = {"protein": ["CD3", "CD4"], "method": ["ours"] * 2, "rank": [1, 30], "n_genes": [100] * 2}
    ax = tp.ranks(axis(), pd.DataFrame(columns), [])
    assert ax.lines[0].get_xdata().tolist() == [1, 30] and ax.get_xscale() == "log"
    assert "100" in ax.get_xlabel()


def test_reconstructions_show_seen_counts_above_the_other_half():
    rows = [
        (n, k, m, v) for k, v in (("seen", 1.0), ("other half", 2.0)) for m in ("rna", "atac") for n in ("ours", "PCA")
    ]
    table = pd.DataFrame(rows, columns=["method", "counts", "modality", "nll"]).assign(auprc=0.2)
    axes = tp.reconstructions(plots.grid(6, 3)[1], table, ["PCA"])
    assert [ax.get_title() for ax in axes[:3]] == ["rna, seen", "atac, seen", "atac, seen"]
    assert [float(ax.lines[0].get_xdata()[0]) for ax in axes] == [1, 1, 0.2, 2, 2, 0.2]
    assert axes[0].lines[1].get_color() == plots.CONTROL


def test_planes_are_coloured_by_their_own_column():
    obs = pd.DataFrame({"kind": ["a", "b"], "site": ["s", "s"]})
    axes = tp.code_planes(plots.row(2)[1], {"kind": np.eye(2), "site": np.eye(2)}, obs)
    assert [len(ax.get_legend().get_texts()) for ax in axes] == [2, 1]


def test_translated_has_a_mark_per_way():
    columns = {"source": ["rna", "atac"], "target": ["atac", "rna"], "method": ["m", "m"], "ratio": [1.1, 1.2]}
    ax = tp.translated(axis(), pd.DataFrame(columns))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["rna to atac", "atac to rna"]
    assert {float(line.get_xdata()[0]) for line in ax.lines[:2]} == {1.1, 1.2}


def test_link_scores_show_types_where_they_are_known():
    table = pd.DataFrame({"method": ["ours"], "auroc": [0.9]})
    assert tp.link_scores(axis(), table).get_legend() is None
    ax = tp.link_scores(axis(), table.assign(**{"right type": 0.8, "wrong type": 0.6}))
    assert len(ax.get_legend().get_texts()) == 3
