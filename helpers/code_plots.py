"""Figures on models without an encoder: curves over load and sample size, components and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from helpers.plots import CONTROL, PALETTE, WIDTH, plt
from helpers.term_plots import shortened
from helpers.translation_plots import GREY_TEXT, Palette, _dots, _key, _painted, mosaic, palette_of
from helpers.wording import few

MARKS = "osD^vP"


def against(
    ax: Axes, table: pd.DataFrame, x: str, y: str, by: str, controls: Sequence[str] = (), log: str = "x"
) -> Axes:
    """Mean of `y` against `x`, a line per value of `by` with its range over seeds; the `controls` in grey.

    `log` names the axes that are logarithmic ("", "x", "y", "xy"). Values that are missing are left out, and so are
    lines without any. A line keeps its colour between panels that show the same table. Raises ValueError for a column
    that is not there, or a control that the table does not have. Introduced in notebook 05.
    """
    if missing := [name for name in (x, y, by) if name not in table]:
        raise ValueError(f"against: no column {few(missing)}; the table has {few(table.columns)}")
    names = list(dict.fromkeys(table[by]))
    if missing := [name for name in controls if name not in names]:
        raise ValueError(f"against: no control {few(missing)} in column '{by}'; there are {few(names)}")
    ours = [name for name in names if name not in controls]
    paint = dict(zip(ours, cycle(PALETTE), strict=False)) | dict.fromkeys(controls, CONTROL)
    for name, mark in zip([*ours, *controls], cycle(MARKS), strict=False):
        rows = table[table[by] == name].dropna(subset=[x, y])
        if rows.empty:
            continue
        each = rows.groupby(x)[y].agg(["mean", "min", "max"])
        ax.fill_between(each.index, each["min"], each["max"], color=paint[name], alpha=0.15, lw=0)
        style = "--" if name in controls else "-"
        ax.plot(each.index, each["mean"], style, marker=mark, color=paint[name], ms=3.5, label=name)
    ax.set(xlabel=x, ylabel=y, xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear")
    if "y" in log:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
    return ax


def key(fig: Figure, axes: Sequence[Axes], title: str = "", columns: int = 5) -> None:
    """One legend below a figure with everything that any of its panels names. Introduced in notebook 05."""
    named: dict[str, object] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True)) | named
    place = {"loc": "outside lower center", "ncols": min(len(named), columns)}
    fig.legend(list(named.values()), list(named), title=title or None, **place)


def ticks(ax: Axes, values: Sequence[float]) -> Axes:
    """Mark these values on the x axis and no others. Introduced in notebook 05."""
    chosen = sorted(set(values))
    ax.set_xticks(chosen, [f"{value:g}" for value in chosen])
    ax.minorticks_off()
    return ax


def composition(ax: Axes, table: pd.DataFrame, label: str = "share of component, %") -> Axes:
    """A heat map of `components.component_table`: a row per component, a column per class, row per cent.

    The numbers of samples, where the table knows them (`attrs["n"]`), stand at the right. Introduced in notebook 05.
    """
    image = ax.imshow(table, aspect="auto", cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    ax.set_yticks(range(len(table)), table.index)
    ax.set_xticks(range(table.shape[1]), shortened(table.columns, 18), rotation=45, ha="right", rotation_mode="anchor")
    ax.set(ylabel=table.index.name or "component")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for i, name in enumerate(table.index):
        if name in table.attrs.get("n", {}):
            ax.text(table.shape[1] - 0.4, i, str(table.attrs["n"][name]), va="center", fontsize=6, color=GREY_TEXT)
    ax.figure.colorbar(image, ax=ax, label=label, aspect=30, pad=0.1)
    return ax


def main_class(table: pd.DataFrame) -> pd.Series:
    """The class that most samples of each component have, from `components.component_table`. Introduced in
    notebook 05.
    """
    return table.idxmax(axis=1).astype(str)


def graph(
    ax: Axes,
    edges: pd.DataFrame,
    xy: Mapping[int, Sequence[float]],
    kinds: Mapping[int, str],
    palette: Mapping[str, object],
    sizes: Mapping[int, int] | None = None,
    nearest: float = 10.0,
) -> Axes:
    """Component means as numbered discs at `xy` (component -> [2]), coloured by main class, joined where they are near.

    `edges` is `components.component_graph`; drawn are those whose `percentile` is at most `nearest`, and always the
    nearest of every component. `sizes` (samples) scale the discs. Raises ValueError where a component of `xy` has no
    class. Introduced in notebook 05.
    """
    if bare := [k for k in xy if k not in kinds]:
        raise ValueError(f"graph: components without a class: {few(bare)}")
    shown = edges[edges["first"].isin(list(xy)) & edges["second"].isin(list(xy))]
    own = [shown[(shown["first"] == k) | (shown["second"] == k)].head(1) for k in xy]
    near = pd.concat([shown[shown["percentile"] <= nearest], *own]).drop_duplicates(["first", "second"])
    lines = [(xy[a], xy[b]) for a, b in zip(near["first"], near["second"], strict=True)]
    ax.add_collection(LineCollection(lines, colors="0.7", lw=0.8, zorder=1))
    most = max((sizes or {}).values(), default=1)
    for k, place in xy.items():
        area = 60 + 140 * (sizes or {}).get(k, most) / most
        ax.scatter(*place, s=area, color=palette[kinds[k]], zorder=2, lw=0)
        ax.annotate(str(k), place, ha="center", va="center", fontsize=6, color="w", zorder=3)
    ax.margins(0.08)
    return ax


def codes(
    ax: Axes,
    xy: np.ndarray,
    values: pd.Series,
    means: np.ndarray | None = None,
    draws: np.ndarray | None = None,
    label: str = "",
    axis: str = "UMAP",
    key: bool = True,
) -> Axes:
    """Codes in a plane, xy [n_obs, 2], coloured by `values` (classes or numbers); component means as black crosses, and
    draws from the prior as small grey dots beneath. Raises ValueError for lengths that differ.

    Introduced in notebook 05.
    """
    if len(xy) != len(values):
        raise ValueError(f"codes: {len(xy)} points and {len(values)} values; every point needs one")
    paint: Palette = palette_of(pd.Series(values))
    if draws is not None:
        ax.scatter(*np.asarray(draws).T, s=4, color="0.8", lw=0, zorder=0, rasterized=True)
    _dots(ax, xy, _painted(pd.Series(values), paint))
    if means is not None:
        ax.plot(*np.asarray(means).T, "X", color="k", mec="w", mew=0.6, ms=6, ls="", zorder=4)
    if key:
        _key(ax, paint, label)
    ax.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xticks=[], yticks=[])
    return ax


def cost(ax: Axes, table: pd.DataFrame, x: str, y: str, name: str = "way") -> Axes:
    """A labelled point per row (for example `load.ways_to_codes`): what is reached, `y`, against what it costs, `x`.

    Rows of the same name are averaged. Introduced in notebook 05.
    """
    mean = table.groupby(name, sort=False)[[x, y]].mean()
    for (way, row), colour, mark in zip(mean.iterrows(), cycle(PALETTE), cycle(MARKS), strict=False):
        ax.plot(row[x], row[y], mark, color=colour, ms=6, label=way, ls="")
    ax.set(xlabel=x, ylabel=y)
    ax.margins(0.15)
    return ax


def component_pictures(drawn: Mapping[str, np.ndarray], shape: Sequence[int], n_components: int = 10) -> Figure:
    """Pictures drawn from components side by side, a panel per model of `drawn`, each [n_components, n, n_vars].

    A column per component of the model, its mean on top; at most `n_components` of them, the first. A model with one
    component shows its draws in a row. Introduced in notebook 05.
    """
    rows = {name: x.shape[1] if len(x) > 1 else 1 for name, x in drawn.items()}
    columns = {name: min(len(x) if len(x) > 1 else x.shape[1], n_components) for name, x in drawn.items()}
    side = (2 * WIDTH - 0.6) / max(columns.values()) * shape[0] / shape[1]
    heights = [side * n for n in rows.values()]
    size = (2 * WIDTH, sum(heights) + 0.25 * len(rows))
    fig, axes = plt.subplots(len(rows), figsize=size, squeeze=False, height_ratios=heights)
    for ax, (name, x) in zip(axes[:, 0], drawn.items(), strict=True):
        x = np.asarray(x) if len(x) > 1 else np.swapaxes(np.asarray(x), 0, 1)
        x = x[: columns[name]]
        lines = {("mean" if i == 0 and len(drawn[name]) > 1 else " " * i): x[:, i] for i in range(rows[name])}
        mosaic(ax, lines, shape)
        ax.set_title(name)
    return fig


def markers_and_cells(
    table: pd.DataFrame, cells: Mapping[str, pd.DataFrame], title: str = "", scale: str = "counts, log(1 + x)"
) -> Figure:
    """One component: its marker genes as bars (`components.markers`), and cells of it in heat maps, a column per gene.

    `cells`: name -> counts [n_cells, n_genes] whose columns include the markers, such as generated beside measured
    ones; all heat maps share one scale. Raises ValueError for a marker that a table of cells lacks.
    Introduced in notebook 05.
    """
    genes = list(table["feature"])
    for name, each in cells.items():
        if lost := [gene for gene in genes if gene not in each]:
            raise ValueError(f"markers_and_cells: the {name} cells lack {few(lost)}")
    ratios = [1.2] + [1.5] * len(cells)
    fig, axes = plt.subplots(1, len(ratios), figsize=(2 * WIDTH, 2.6), width_ratios=ratios, squeeze=False)
    bars, *maps = axes[0]
    bars.barh(range(len(genes)), table["log2_fold"], color=PALETTE[0], height=0.75)
    bars.set_yticks(range(len(genes)), shortened(genes, 16))
    bars.tick_params(axis="y", length=0)
    bars.set(xlabel="log₂ fold over others", ylim=(len(genes) - 0.4, -0.6))
    shown = {name: np.log1p(each[genes].to_numpy(float)) for name, each in cells.items()}
    top = max((x.max() for x in shown.values() if x.size), default=1.0)
    for ax, (name, x) in zip(maps, shown.items(), strict=True):
        image = ax.imshow(x.T, aspect="auto", vmin=0, vmax=top or 1.0, interpolation="nearest")
        ax.set(title=name, xlabel=f"{len(x)} cells", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    if maps:
        fig.colorbar(image, ax=maps, label=scale, aspect=25, pad=0.01)
    fig.suptitle(title, fontsize=8)
    return fig
