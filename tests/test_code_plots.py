"""Figures on learned codes show the numbers that they are given, with controls in grey."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from helpers import code_plots, explore, plots


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


def line(ax, name):
    return next(each for each in ax.lines if each.get_label() == name)


def test_lines_are_means_over_seeds_and_controls_are_grey():
    table = pd.DataFrame({"load": [1, 1, 5, 5, 1, 5], "r": [0.2, 0.4, 0.8, 1.0, 0.0, 0.0]})
    table["model"] = ["ours"] * 4 + ["mean"] * 2
    ax = code_plots.against(plt.subplot(), table, "load", "r", "model", ["mean"])
    assert line(ax, "ours").get_ydata() == pytest.approx([0.3, 0.9]) and ax.get_xscale() == "log"
    assert line(ax, "mean").get_color() == plots.CONTROL and line(ax, "mean").get_linestyle() == "--"
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(0.2) and band.max() == pytest.approx(1.0)
    assert [t.get_text() for t in code_plots.ticks(ax, table["load"]).get_xticklabels()] == ["1", "5"]


def test_lines_without_values_are_left_out_and_colours_stay():
    table = pd.DataFrame({"n": [1, 1, 1], "a": [1.0, np.nan, 3.0], "b": [1.0, 2.0, 3.0], "m": ["x", "y", "z"]})
    left, right = (code_plots.against(plt.subplot(1, 2, i + 1), table, "n", y, "m", log="") for i, y in enumerate("ab"))
    assert [each.get_label() for each in left.lines] == ["x", "z"]
    assert line(left, "z").get_color() == line(right, "z").get_color()
    with pytest.raises(ValueError, match="no column 'c'; the table has 'n', 'a', 'b', 'm'"):
        code_plots.against(plt.subplot(), table, "n", "c", "m")
    with pytest.raises(ValueError, match="no control 'w' in column 'm'"):
        code_plots.against(plt.subplot(), table, "n", "a", "m", ["w"])


def test_one_legend_names_what_any_panel_shows():
    fig, (left, right) = plt.subplots(1, 2)
    left.plot([1], label="a"), right.plot([1], label="b"), right.plot([2], label="a")
    code_plots.key(fig, [left, right], "which")
    assert sorted(text.get_text() for text in fig.legends[0].get_texts()) == ["a", "b"]
    assert fig.legends[0].get_title().get_text() == "which"


def test_the_heat_map_is_the_table():
    table = pd.DataFrame([[90.0, 10.0], [0.0, 100.0]], index=pd.Index([3, 0], name="cluster"), columns=["B", "T"])
    table.attrs["n"] = {3: 40, 0: 7}
    ax = code_plots.composition(plt.subplot(), table)
    np.testing.assert_array_equal(ax.images[0].get_array(), table)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["3", "0"] and ax.get_ylabel() == "cluster"
    assert [t.get_text() for t in ax.texts] == ["40", "7"]
    assert code_plots.main_class(table).to_dict() == {3: "B", 0: "T"}


def test_near_components_are_joined_and_no_one_stands_alone():
    edges = pd.DataFrame(
        [(0, 1, 0.1, 20.0), (1, 2, 0.5, 60.0), (0, 2, 0.6, 100.0)],
        columns=["first", "second", "distance", "percentile"],
    )
    xy = {0: (0.0, 0.0), 1: (1.0, 0.0), 2: (2.0, 1.0)}
    ax = code_plots.graph(plt.subplot(), edges, xy, dict.fromkeys(xy, "B"), {"B": "#ff0000"}, {0: 10, 1: 20, 2: 5}, 30)
    drawn = {tuple(map(tuple, segment)) for segment in ax.collections[0].get_segments()}
    assert drawn == {
        ((0.0, 0.0), (1.0, 0.0)),
        ((1.0, 0.0), (2.0, 1.0)),
    }  # the near pair, and the nearest of component 2
    assert [t.get_text() for t in ax.texts] == ["0", "1", "2"]
    sizes = [each.get_sizes()[0] for each in ax.collections[1:]]
    assert sizes[1] == max(sizes) and sizes[2] == min(sizes)
    with pytest.raises(ValueError, match="components without a class: '2'"):
        code_plots.graph(plt.subplot(), edges, xy, {0: "B", 1: "B"}, {"B": "r"})


def test_codes_means_and_draws_share_a_plane():
    xy, values = np.random.default_rng(0).normal(size=(30, 2)), pd.Series(["a", "b", None] * 10)
    ax = code_plots.codes(plt.subplot(), xy, values, means=xy[:3], draws=xy[:5], label="type")
    assert len(ax.collections[0].get_offsets()) == 5 and len(ax.collections[1].get_offsets()) == 30
    np.testing.assert_array_equal(np.column_stack(ax.lines[0].get_data()), xy[:3])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    with pytest.raises(ValueError, match="30 points and 2 values"):
        code_plots.codes(plt.subplot(), xy, pd.Series(["a", "b"]))


def test_costs_are_averaged_by_name():
    table = pd.DataFrame({"way": ["a", "b", "a"], "decodings": [1.0, 5.0, 3.0], "nll": [9.0, 7.0, 8.0]})
    ax = code_plots.cost(plt.subplot(), table, "decodings", "nll")
    assert line(ax, "a").get_xydata().tolist() == [[2.0, 8.5]] and line(ax, "b").get_xydata().tolist() == [[5.0, 7.0]]
    assert to_hex(line(ax, "a").get_color()) != to_hex(line(ax, "b").get_color())


def test_components_are_columns_with_their_mean_on_top():
    drawn = {"one": np.full((1, 6, 64), 0.5), "many": np.random.default_rng(0).random((12, 3, 64))}
    fig = code_plots.component_pictures(drawn, (8, 8, 1), n_components=5)
    single, several = fig.axes
    assert several.get_yticklabels()[0].get_text() == "mean" and several.get_title() == "many"
    assert single.get_xlim()[1] == several.get_xlim()[1] == 4.5
    assert several.get_ylim()[0] == 2.5 and single.get_ylim()[0] == 0.5


@pytest.fixture
def component():
    table = pd.DataFrame({"feature": ["g1", "g2"], "log2_fold": [3.0, 1.0]})
    cells = pd.DataFrame(np.arange(12.0).reshape(4, 3), columns=["g2", "g0", "g1"])
    return table, {"generated": cells, "measured": cells.head(2)}


def test_markers_stand_beside_cells_of_the_component(component):
    fig = code_plots.markers_and_cells(*component, title="component 3")
    bars, generated, measured = fig.axes[:3]
    assert [bar.get_width() for bar in bars.patches] == [3.0, 1.0]
    np.testing.assert_allclose(generated.images[0].get_array(), np.log1p([[2, 5, 8, 11], [0, 3, 6, 9]]))
    assert generated.images[0].get_clim() == measured.images[0].get_clim()
    assert measured.get_xlabel() == "2 cells"
    with pytest.raises(ValueError, match="the generated cells lack 'g1'"):
        code_plots.markers_and_cells(component[0], {"generated": pd.DataFrame({"g2": [1.0]})})


def test_the_explorer_shows_one_component_or_a_menu(component, monkeypatch):
    table, cells = component
    markers, beside = {"0: B": table, "1: T": table.iloc[::-1]}, {"1: T": cells, "0: B": cells}
    monkeypatch.setenv("WORKBOOK_RUN_DIR", "somewhere")
    fig = explore.components(markers, beside)
    assert fig.get_suptitle() == "component 0: B"
    monkeypatch.delenv("WORKBOOK_RUN_DIR")
    menu = explore.components(markers, beside).children[0].children[0]
    assert menu.options == ("0: B", "1: T")
    with pytest.raises(ValueError, match="both are needed of each"):
        explore.components(markers, {"0: B": cells})
