"""Figures of notebook 07: maps of tissue, embeddings by batch and region, and methods between biology and batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from helpers.plots import CONTROL, MISSING, PALETTE, WIDTH, colours, latent_plane, plt
from helpers.term_plots import shortened
from helpers.translation_plots import GREY_TEXT, quality
from helpers.wording import few

MOST_NAMED = 12  # classes in a legend; more, such as sections, are told apart but not named
REACHES = (7, 11, 16, 23, 32, 44, 60, 80)  # points from a dot to its name
TOTAL = {"bio": 0.6, "batch": 0.4}  # weights of the total (Luecken et al. 2022)

# ---------------------------------------------------------------- tissue


def pitch(xy: np.ndarray) -> float:
    """Median distance from a spot of `xy` [n, 2] to the nearest other one, in its units; 1 for a single spot.

    Introduced in notebook 07.
    """
    from scipy.spatial import cKDTree

    places = np.unique(np.asarray(xy, float), axis=0)
    return float(np.median(cKDTree(places).query(places, k=2)[0][:, 1])) if len(places) > 1 else 1.0


def spots(ax: Axes, xy: np.ndarray, colour: Sequence, title: str = "") -> Axes:
    """Spots of tissue at `xy` [n, 2], discs as wide as the spots are apart, each in its own colour (`colour`: n of
    them, names or [n, 3]). As in images, the second coordinate runs downwards.

    Raises ValueError where there is not one colour per spot. Introduced in notebook 07.
    """
    xy = np.asarray(xy, float)
    if len(colour) != len(xy):
        raise ValueError(f"spots: {len(xy)} spots and {len(colour)} colours; every spot needs one")
    width = np.full(len(xy), pitch(xy))
    where = {"units": "xy", "offsets": xy, "offset_transform": ax.transData}
    ax.add_collection(
        EllipseCollection(width, width, 0 * width, facecolors=list(colour), lw=0, rasterized=True, **where)
    )
    low, high = xy.min(0) - width[:1], xy.max(0) + width[:1]
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)
    return ax


def rgb(z: np.ndarray) -> np.ndarray:
    """Three dimensions z [n_obs, 3], such as a 3-D UMAP, as red, green and blue, each from 0 at its least to 1 at its
    largest value; rows with NaN are light grey. Similar spots get similar colours (MIMA, Methods, "3D-RGB UMAP").

    Raises ValueError for other numbers of dimensions. Introduced in notebook 07.
    """
    z = np.asarray(z, float)
    if z.ndim != 2 or z.shape[1] != 3:
        raise ValueError(f"rgb: colours need three dimensions, not an array of shape {z.shape}")
    known = np.isfinite(z).all(1)
    painted = np.full(z.shape, float(MISSING))
    if known.any():
        low, width = z[known].min(0), np.ptp(z[known], axis=0)
        painted[known] = np.where(width > 0, (z[known] - low) / np.where(width > 0, width, 1), 0.5)
    return painted


def sections(
    axes: Sequence[Axes], xy: np.ndarray, colour: Sequence, section: Sequence, names: Sequence
) -> Sequence[Axes]:
    """The sections `names` of a tissue side by side, one per axes: spots `xy` [n_obs, 2] in `colour` (n_obs colours),
    `section` [n_obs] says where each lies. Raises ValueError for a section without spots.

    Introduced in notebook 07.
    """
    where = np.asarray(section).astype(str)
    if lost := [name for name in names if str(name) not in set(where)]:
        raise ValueError(f"sections: no spot lies in {few(lost)}; there are {few(dict.fromkeys(where))}")
    colour = list(colour)
    for ax, name in zip(axes, names, strict=False):
        rows = np.flatnonzero(where == str(name))
        spots(ax, np.asarray(xy)[rows], [colour[i] for i in rows], str(name))
    return axes


def atlas(
    axes: np.ndarray, xy: np.ndarray, paint: Mapping[str, Sequence], section: Sequence, names: Sequence
) -> np.ndarray:
    """The same sections in several colourings, a row of panels each: `paint` is name -> a colour per spot.

    `axes` [n_colourings, n_sections]; else as `sections`. Introduced in notebook 07.
    """
    for row, colour in zip(axes, paint.values(), strict=True):
        sections(row, xy, colour, section, names)
    beside(axes, list(paint))
    return axes


def beside(rows: Sequence[Sequence[Axes]], names: Sequence[str]) -> None:
    """A name at the left of each row of panels, whose titles stay in the first row only. Introduced in notebook 07."""
    for k, (axes, name) in enumerate(zip(rows, names, strict=True)):
        axes[0].set_ylabel(name)
        for ax in axes if k else ():
            ax.set_title("")


def same_rows(axes: Sequence[Axes]) -> None:
    """Names of rows at the first panel alone, where all panels have the same rows. Introduced in notebook 07."""
    for ax in list(axes)[1:]:
        ax.set_yticklabels([])


def painted(labels: Sequence, palette: Mapping[str, object]) -> list:
    """A colour of the palette per label, light grey where it is missing or has none. Introduced in notebook 07."""
    return [MISSING if pd.isna(label) else palette.get(str(label), MISSING) for label in labels]


def legend(ax: Axes, palette: Mapping[str, object], title: str = "") -> None:
    """The classes of a palette at the right of a panel, where they are not too many. Introduced in notebook 07."""
    if len(palette) <= MOST_NAMED:
        dots = [plt.Line2D([], [], marker="o", ls="", ms=4, color=c, label=n) for n, c in palette.items()]
        ax.legend(handles=dots, title=title or None, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.1)


def regions(
    axes: Sequence[Axes], xy: np.ndarray, maps: Mapping[str, Sequence], title: str = "region"
) -> Sequence[Axes]:
    """Maps of classes over the same spots `xy` [n, 2], for example annotated and predicted; one palette for all.

    From the second map on, the title says how many of the spots that have a class in both agree with the first.
    Introduced in notebook 07.
    """
    each = {name: pd.Series(np.asarray(labels, dtype=object)) for name, labels in maps.items()}
    palette = colours(sorted(pd.concat(each.values()).dropna().astype(str).unique()))
    first = next(iter(each.values()))
    for ax, (name, labels) in zip(axes, each.items(), strict=False):
        known = first.notna() & labels.notna()
        same = (first[known].astype(str) == labels[known].astype(str)).mean()
        spots(ax, xy, painted(labels, palette), name if labels is first else f"{name}: {same:.0%} agree")
    legend(list(axes)[len(each) - 1], palette, title)
    return axes


def agreement(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Pearson correlation of x [n] and y [n] over the entries that both have, 0 where they run against each
    other; NaN where one does not vary.

    Introduced in notebook 07.
    """
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return float("nan")
    return float(max(np.corrcoef(x[known], y[known])[0, 1], 0) ** 2)


def feature_maps(
    axes: Sequence[Axes], xy: np.ndarray, maps: Mapping[str, np.ndarray], label: str = "", cmap: str = "viridis"
) -> Sequence[Axes]:
    """One feature on the tissue, a panel per entry of `maps` (name -> values [n]), all on one colour scale.

    The first is the measured one, whose middle 98 % set the scale; the others carry their squared correlation with it.
    NaN is light grey. Raises ValueError where a map has not one value per spot. Introduced in notebook 07.
    """
    maps = {name: np.asarray(values, float) for name, values in maps.items()}
    if wrong := [name for name, values in maps.items() if values.shape != (len(xy),)]:
        raise ValueError(f"feature_maps: {few(wrong)} need {len(xy)} values, one per spot")
    measured = next(iter(maps.values()))
    shown = measured if np.isfinite(measured).any() else np.concatenate(list(maps.values()))
    low, high = np.nanpercentile(shown, [1, 99]) if np.isfinite(shown).any() else (0, 1)
    scale = ScalarMappable(
        Normalize(low, high if high > low else low + 1), plt.get_cmap(cmap).with_extremes(bad=MISSING)
    )
    for ax, (name, values) in zip(axes, maps.items(), strict=False):
        r2 = "" if values is measured else f"\nr² = {agreement(values, measured):.2f}"
        spots(ax, xy, scale.to_rgba(np.ma.masked_invalid(values)), name + r2.replace("r² = nan", ""))
    plt.colorbar(scale, ax=list(axes), label=label, aspect=25, pad=0.01, shrink=0.8)
    return axes


# ---------------------------------------------------------------- embeddings


def planes(axes: np.ndarray, xy: Mapping[str, np.ndarray], obs: pd.DataFrame, axis: str = "UMAP") -> np.ndarray:
    """Embeddings in a plane, a column of panels each (`xy`: name -> [n_obs, 2]), a row of panels per column of `obs`.

    `axes` [n_columns, n_embeddings]. Rows with NaN, unmeasured samples, are left out. Up to twelve classes are named.
    Introduced in notebook 07.
    """
    for row, column in zip(axes, obs.columns, strict=True):
        palette = colours(sorted(obs[column].dropna().astype(str).unique()))
        for ax, (name, each) in zip(row, xy.items(), strict=True):
            known = np.isfinite(each).all(1)
            latent_plane(ax, np.asarray(each)[known], obs.loc[known, column].tolist(), name, palette)
            ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
        legend(row[-1], palette, column)
    beside(axes, [f"by {column}" for column in obs.columns])
    for ax in axes[-1]:
        ax.set_xlabel(f"{axis} 1, 2")
    return axes


def trade(ax: Axes, table: pd.DataFrame, controls: Sequence[str] = (), by: str = "method") -> Axes:
    """Conservation of biology against removal of batches, a point per method, mean over its rows, which are small dots.

    `table` has the columns `by`, "bio" and "batch"; `controls` are grey crosses. Grey lines join points of the same
    total, 0.6 bio + 0.4 batch. Every point carries its name, none over another. Raises ValueError where a column is
    missing. Introduced in notebook 07.
    """
    if missing := [name for name in (by, *TOTAL) if name not in table]:
        raise ValueError(f"trade: no column {few(missing)}; the table has {few(table.columns)}")
    table = table.dropna(subset=list(TOTAL))
    mean = table.groupby(by, sort=False)[list(TOTAL)].mean()
    for name, point in mean.iterrows():
        colour = CONTROL if name in controls else PALETTE[0]
        rows = table[table[by] == name]
        if len(rows) > 1:
            ax.plot(rows["batch"], rows["bio"], ".", color=colour, ms=3, alpha=0.6)
        ax.plot(point["batch"], point["bio"], "x" if name in controls else "o", color=colour, ms=5)
    ax.margins(0.16)
    ax.set(xlabel="removal of batches", ylabel="conservation of biology")
    _iso_lines(ax)
    _name_every(ax, mean["batch"].to_numpy(), mean["bio"].to_numpy(), list(mean.index), controls)
    return ax


def _iso_lines(ax: Axes) -> None:
    """Lines of equal total every 0.1, with their value at the right edge."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    x = np.array([left, right])
    for total in np.arange(0.1, 1.01, 0.1):
        y = (total - TOTAL["batch"] * x) / TOTAL["bio"]
        ax.plot(x, y, color="0.9", lw=0.8, zorder=0)
        if bottom < y[1] < top:
            ax.annotate(
                f"total {total:.1f}",
                (right, y[1]),
                (2, 0),
                textcoords="offset points",
                fontsize=5,
                color=GREY_TEXT,
                va="center",
            )
    ax.set(xlim=(left, right), ylim=(bottom, top))


def _name_every(ax: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], controls: Sequence[str]) -> None:
    """A name at every point, at the nearest place where it hides no other name and no point; a line where it is far."""
    figure, taken = ax.figure, []
    figure.canvas.draw()  # places of text are known only once the layout is
    renderer, frame = figure.canvas.get_renderer(), ax.get_window_extent()
    dots = ax.transData.transform(np.column_stack([x, y]))
    crowd = [np.hypot(*(dots - dot).T).round(3).tolist() for dot in dots]
    for i in sorted(range(len(names)), key=lambda i: sorted(crowd[i])[:2]):  # the most crowded first
        where = {"xytext": (REACHES[0], 0), "textcoords": "offset points", "va": "center_baseline"}
        text = ax.annotate(names[i], (x[i], y[i]), fontsize=6, **where)
        text.set_color(GREY_TEXT if names[i] in controls else "k")
        ways = [(reach, angle) for reach in REACHES for angle in range(0, 360, 30)]
        free = (way for way in ways if _is_free(_place(text, *way, renderer), dots, taken, frame))
        reach, angle = next(free, ways[0])
        taken.append(_place(text, reach, angle, renderer))
        if reach > REACHES[1]:
            near = ax.transData.inverted().transform(np.clip(dots[i], taken[-1].min, taken[-1].max))
            ax.plot([x[i], near[0]], [y[i], near[1]], color="0.7", lw=0.5, zorder=0.5)


def _place(text: plt.Annotation, reach: float, angle: float, renderer: object) -> object:
    """Move a name `reach` points away in a direction (degrees) and return the box that it then fills."""
    dx, dy = reach * np.cos(np.radians(angle)), reach * np.sin(np.radians(angle))
    text.set_position((dx, dy))
    text.set_ha("left" if dx > 0.3 * reach else "right" if dx < -0.3 * reach else "center")
    return text.get_window_extent(renderer)


def _is_free(box: object, dots: np.ndarray, taken: Sequence, frame: object) -> bool:
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return inside and not box.count_contains(dots) and not any(box.overlaps(other) for other in taken)


# ---------------------------------------------------------------- tables and scores


def score_table(ax: Axes, table: pd.DataFrame, controls: Sequence[str] = (), plain: Sequence[str] = ()) -> Axes:
    """Methods (rows) by metrics (columns) as a heat map from 0 to 1 with the numbers in it; NaN is grey and says so.

    The columns in `plain`, such as the number of clusters, are numbers of another kind and carry no colour. Names of
    the `controls` are grey. The figure should be about 0.17 in high per method. Raises ValueError for a column in
    `plain` that is not there. Introduced in notebook 07.
    """
    if missing := [name for name in plain if name not in table]:
        raise ValueError(f"score_table: no column {few(missing)}; the table has {few(table.columns)}")
    values = table.to_numpy(float)
    scores = np.ma.masked_array(values, mask=np.tile(table.columns.isin(plain), (len(table), 1)))
    ax.imshow(scores, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    for (i, j), value in np.ndenumerate(values):
        is_plain = table.columns[j] in plain
        if not np.isfinite(value):
            ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, color=MISSING, lw=0))
        text = "–" if not np.isfinite(value) else f"{value:.0f}" if is_plain else f"{value:.2f}"
        dark = np.isfinite(value) and not is_plain and value < 0.6
        ax.text(j, i, text, ha="center", va="center", fontsize=5.5, color="w" if dark else "k")
    ax.set_xticks(range(table.shape[1]), shortened(table.columns, 22), rotation=45, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(table)), table.index)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for tick, name in zip(ax.get_yticklabels(), table.index, strict=True):
        tick.set_color(GREY_TEXT if name in controls else "k")
    return ax


def knowledge(
    axes: Sequence[Axes],
    table: pd.DataFrame,
    value: str = "score",
    controls: Sequence[str] = (),
    label: str = "",
) -> Sequence[Axes]:
    """What each latent knows, a panel per target: a row per latent, held-out scores of each classifier, folds as dots.

    `table` has the columns latent, target, classifier, chance and `value`; chance is a dashed line. Introduced in
    notebook 07.
    """
    for ax, (target, rows) in zip(axes, table.groupby("target", sort=False), strict=False):
        quality(
            ax, rows, value, by="latent", group="classifier", controls=[c for c in controls if c in set(rows["latent"])]
        )
        ax.axvline(rows["chance"].mean(), color=CONTROL, ls="--", lw=1, zorder=0)
        ax.set(title=target, xlim=(-0.03, 1.03), xlabel=label or value)
    return axes


def fidelity(
    axes: Sequence[Axes], table: pd.DataFrame, value: str, label: str, controls: Sequence[str]
) -> Sequence[Axes]:
    """How well each modality is told, a panel per target: a row per source and kind of `fidelity.evaluate`, what
    a model tells in colour and the kinds in `controls` in grey. Introduced in notebook 07.
    """
    ways = table["kind"].where(table["source"].isin(["none", "annotation"]), table["kind"] + " from " + table["source"])
    table = table.assign(way=ways, kinds="")
    grey = list(table.loc[table["kind"].isin(controls), "way"].unique())
    for ax, (target, rows) in zip(axes, table.groupby("target", sort=False), strict=False):
        rows = rows.sort_values(value, ascending=False)
        quality(ax, rows, value, by="way", group="kinds", controls=[name for name in grey if name in set(rows["way"])])
        ax.set(title=target, xlabel=label)
    return axes


def gallery(n_rows: int, n_columns: int, size: float = 1.5, legend_width: float = 0.8) -> tuple[Figure, np.ndarray]:
    """Panels of `size` inches in rows and columns, with room for a legend at the right. Introduced in notebook 07."""
    side = min(size, (2 * WIDTH - legend_width) / n_columns)
    shape = (n_columns * side + legend_width, n_rows * (side + 0.1) + 0.2)
    fig, axes = plt.subplots(n_rows, n_columns, figsize=shape, squeeze=False)
    return fig, axes
