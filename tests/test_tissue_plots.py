"""Figures of notebook 07 show the numbers they are given, where the spots lie, with controls in grey."""

import anndata
import matplotlib
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from helpers import explore, plots
from helpers import tissue_plots as tp

XY = np.stack(np.meshgrid([0.0, 100, 200], [0.0, 100, 200, 300]), -1).reshape(-1, 2)


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


def axis():
    return plots.row()[1][0]


def faces(ax):
    return [to_hex(c) for c in ax.collections[0].get_facecolors()]


def test_spots_are_as_wide_as_they_are_apart_and_run_downwards():
    assert tp.pitch(XY) == 100 and tp.pitch(np.repeat(XY, 2, 0)) == 100 and tp.pitch(XY[:1]) == 1
    ax = tp.spots(axis(), XY, ["r"] * 11 + ["b"], "S1")
    discs = ax.collections[0]
    np.testing.assert_array_equal(discs.get_offsets(), XY)
    np.testing.assert_array_equal(discs.get_widths(), 100.0)
    assert faces(ax) == ["#ff0000"] * 11 + ["#0000ff"] and ax.get_title() == "S1"
    assert ax.get_xlim() == (-100, 300) and ax.get_ylim() == (400, -100) and ax.get_aspect() == 1
    with pytest.raises(ValueError, match="12 spots and 2 colours; every spot needs one"):
        tp.spots(axis(), XY, ["r", "b"])


def test_three_dimensions_become_colours_axis_by_axis():
    z = np.array([[0.0, 10, 5], [4, 20, 5], [1, 15, 5], [np.nan, 1, 1]])
    np.testing.assert_allclose(tp.rgb(z)[:3], [[0, 0, 0.5], [1, 1, 0.5], [0.25, 0.5, 0.5]])
    np.testing.assert_allclose(tp.rgb(z)[3], float(plots.MISSING))
    np.testing.assert_allclose(tp.rgb(3 * z + 7), tp.rgb(z))
    with pytest.raises(ValueError, match=r"three dimensions, not an array of shape \(4, 2\)"):
        tp.rgb(z[:, :2])


def test_each_section_shows_its_own_spots():
    section = ["a"] * 6 + ["b"] * 6
    _, axes = plots.row(2)
    tp.sections(axes, XY, ["r"] * 6 + ["b"] * 6, section, ["b", "a"])
    assert [ax.get_title() for ax in axes] == ["b", "a"]
    assert set(faces(axes[0])) == {"#0000ff"} and len(faces(axes[1])) == 6
    np.testing.assert_array_equal(axes[0].collections[0].get_offsets(), XY[6:])
    with pytest.raises(ValueError, match="no spot lies in 'c'; there are 'a', 'b'"):
        tp.sections(axes, XY, ["r"] * 12, section, ["c"])


def test_rows_of_panels_are_named_once():
    _, axes = plt.subplots(2, 2)
    for ax in axes.flat:
        ax.set_title("S1")
    tp.beside(axes, ["before", "after"])
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["before", "after"]
    assert [ax.get_title() for ax in axes.flat] == ["S1", "S1", "", ""]


def test_predicted_regions_share_the_palette_and_say_how_many_agree():
    annotated = ["stroma"] * 6 + ["tumour"] * 5 + [None]
    predicted = ["stroma"] * 3 + ["tumour"] * 8 + ["stroma"]
    _, axes = plots.row(2)
    tp.regions(axes, XY, {"annotated": annotated, "predicted": predicted})
    assert [ax.get_title() for ax in axes] == ["annotated", f"predicted: {8 / 11:.0%} agree"]
    assert faces(axes[0])[0] == faces(axes[1])[0] != faces(axes[1])[5] == faces(axes[0])[6]
    assert faces(axes[0])[11] == to_hex(plots.MISSING)
    assert [t.get_text() for t in axes[1].get_legend().get_texts()] == ["stroma", "tumour"]


def test_maps_of_a_feature_share_one_scale_and_carry_r2():
    measured = np.arange(12.0)
    maps = {"measured": measured, "from rna": 2 * measured + 1, "flat": np.ones(12), "half": measured.copy()}
    maps["half"][:6] = np.nan
    _, axes = plots.row(4)
    tp.feature_maps(axes, XY, maps, "ion 3")
    titles = [ax.get_title() for ax in axes]
    assert titles == ["measured", "from rna\nr² = 1.00", "flat\n", "half\nr² = 1.00"]
    assert faces(axes[3])[6:] == faces(axes[0])[6:]  # the same value has the same colour
    assert set(faces(axes[3])[:6]) == {to_hex(plots.MISSING)} and faces(axes[1])[11] == faces(axes[0])[11]
    with pytest.raises(ValueError, match="'short' need 12 values"):
        tp.feature_maps(axes, XY, {"measured": measured, "short": measured[:3]})


def test_agreement_is_pearson_squared():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50))
    assert tp.agreement(x, x + y) == pytest.approx(np.corrcoef(x, x + y)[0, 1] ** 2)
    assert tp.agreement(x, -x) == 0 and np.isnan(tp.agreement(x, 0 * x))


def test_planes_have_a_column_per_embedding_and_a_row_per_annotation():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"section": [f"s{i}" for i in range(20)] * 2, "region": ["a", "b"] * 20})
    xy = {"PCA": rng.normal(size=(40, 2)), "MIMA": np.where(np.arange(40)[:, None] < 10, np.nan, 1.0) * [1, 2]}
    _, axes = tp.gallery(2, 2)
    tp.planes(axes, xy, obs)
    assert [ax.get_title() for ax in axes[0]] == ["PCA", "MIMA"] and axes[1, 0].get_ylabel() == "by region"
    assert [len(ax.collections[0].get_offsets()) for ax in axes[1]] == [40, 30]
    assert axes[0, 1].get_legend() is None  # twenty sections are not named
    assert [t.get_text() for t in axes[1, 1].get_legend().get_texts()] == ["a", "b"]


def methods():
    rng = np.random.default_rng(1)
    names = ["MIMA"] * 3 + [f"method {i}" for i in range(12)] + ["zeros", "random"]
    bio, batch = rng.uniform(0.5, 0.6, len(names)), rng.uniform(0.5, 0.6, len(names))
    return pd.DataFrame({"method": names, "bio": bio, "batch": batch})


def test_every_method_is_a_point_with_a_name_that_hides_no_other():
    table = methods()
    fig, ax = plt.subplots(figsize=(5.5, 4))
    tp.trade(ax, table, ["zeros", "random"])
    names = {t.get_text(): t for t in ax.texts if not t.get_text().startswith("total")}
    assert set(names) == set(table["method"]) and len(names) == 15
    boxes = [t.get_window_extent(fig.canvas.get_renderer()) for t in names.values()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert names["zeros"].get_color() == tp.GREY_TEXT != names["MIMA"].get_color()
    mean = table[table["method"] == "MIMA"][["batch", "bio"]].mean()
    drawn = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert any(np.allclose(point, mean) for point in drawn) and len(drawn) == 13
    assert sum(line.get_marker() == "x" for line in ax.lines) == 2


def test_iso_lines_join_equal_totals():
    ax = tp.trade(axis(), methods())
    lines = [line.get_xydata() for line in ax.lines if line.get_color() == "0.9"]
    totals = [0.6 * xy[:, 1] + 0.4 * xy[:, 0] for xy in lines]
    assert all(np.ptp(each) < 1e-12 for each in totals) and any(np.isclose(each[0], 0.6) for each in totals)
    with pytest.raises(ValueError, match="no column 'bio'; the table has 'method'"):
        tp.trade(axis(), pd.DataFrame({"method": ["a"], "batch": [1.0]}))


def test_the_table_of_scores_says_where_there_is_none():
    table = pd.DataFrame({"NMI": [0.5, np.nan], "clusters": [7, 12]}, index=["MIMA", "zeros"])
    ax = tp.score_table(axis(), table, ["zeros"], ["clusters"])
    assert [t.get_text() for t in ax.texts] == ["0.50", "7", "–", "12"]
    shown = ax.images[0].get_array()
    assert shown.mask[:, 1].all() and not shown.mask[0, 0] and ax.images[0].get_clim() == (0, 1)
    assert [t.get_color() for t in ax.get_yticklabels()] == ["k", tp.GREY_TEXT]
    with pytest.raises(ValueError, match="no column 'k'"):
        tp.score_table(axis(), table, plain=["k"])


def test_what_latents_know_stands_beside_chance():
    rows = [(z, t, c, 0.5) for z in ("shared", "PCA") for t in ("region", "section") for c in ("linear", "forest")]
    table = pd.DataFrame(rows, columns=["latent", "target", "classifier", "score"])
    table["chance"] = np.where(table["target"] == "region", 0.25, 0.1)
    _, axes = plots.row(2)
    tp.knowledge(axes, table, controls=["PCA"])
    dashed = [[line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] for ax in axes]
    assert dashed == [[0.25], [0.1]] and axes[0].get_title().startswith("region")
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["shared", "PCA"]


@pytest.fixture
def slides():
    rng = np.random.default_rng(0)
    names = [f"s{i}" for i in range(12)]
    a = anndata.AnnData(rng.normal(size=(12, 3)), pd.DataFrame(index=names))
    b = anndata.AnnData(csr_array(rng.poisson(2.0, (9, 2)).astype("float32")), pd.DataFrame(index=names[3:]))
    a.var_names, b.var_names = ["i0", "i1", "i2"], ["g0", "g1"]
    for layer in ("denoised", "corrected", "from_rna", "corrected_from_rna"):
        a.layers[layer] = rng.normal(size=(12, 3))
    mdata = mudata.MuData({"msi": a, "rna": b})
    mdata.obs["section"] = ["A", "B"] * 6
    mdata.obsm["spatial"] = XY[mdata.obs_names.str[1:].astype(int)]
    return mdata


def test_maps_of_the_explorer_are_the_layers(slides):
    maps = explore.tissue_maps(slides, "msi", "i1", "rna")
    order = slides["msi"].obs_names.get_indexer(slides.obs_names)
    np.testing.assert_array_equal(maps["from rna\ncorrected"], slides["msi"].layers["corrected_from_rna"][order, 1])
    assert list(maps) == [
        "measured",
        "from rna",
        "from rna\ncorrected",
        "from everything",
        "from everything\ncorrected",
    ]
    unmeasured = explore.tissue_maps(slides, "rna", "g0", "msi")
    assert list(unmeasured) == ["measured"] and np.isnan(unmeasured["measured"]).sum() == 3


def test_the_explorer_shows_a_figure_headless_and_menus_otherwise(slides, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUN_DIR", "somewhere")
    chosen = {"msi": ["i2", "i0"], "rna": ["g1"]}
    fig = explore.tissue(slides, chosen, "section")
    assert fig.get_suptitle() == "msi: i2 in A" and fig.axes[0].get_title() == "measured"
    assert len(fig.axes[0].collections[0].get_offsets()) == 6
    with pytest.raises(ValueError, match="modality 'rna' has no feature 'i9'"):
        explore.tissue(slides, {"rna": ["i9"]}, "section")
    plane = slides.obsm["spatial"]
    del slides.obsm["spatial"]
    with pytest.raises(ValueError, match=r"no coordinates in mdata\.obsm"):
        explore.tissue(slides, chosen, "section")
    monkeypatch.delenv("WORKBOOK_RUN_DIR")
    menus = explore.tissue(slides, chosen, "section", xy=plane).children[0].children
    assert [menu.options for menu in menus] == [("A", "B"), ("msi: i2", "msi: i0", "rna: g1"), ("rna", "msi")]
