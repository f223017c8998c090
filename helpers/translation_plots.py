"""Figures on cross-modal translation: balance of the loss, aligned latent spaces, pictures from molecules, quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from helpers.plots import CONTROL, MISSING, MODALITY, PALETTE, WIDTH, colours, plt, shades
from helpers.wording import few

# after Paul Tol's muted scheme; reconstruction terms have their modality's colour
TERM = {
    "kl": "0.25",
    "nll": "#88CCEE",  # all modalities together
    "paired": "#DDCC77",
    "class": "#44AA99",
    "adversarial": "#882255",
    "cycle": "#332288",
    "translation": "#999933",
}
GREY_TEXT = "0.45"  # a name in the grey of a control could hardly be read
MOST_PAIRS = 60
Palette = Mapping[str, object] | ScalarMappable  # colours of classes, or a scale for numbers
ADVICE = 0.1  # Joas et al. 2025: KL below 10 % of the loss


def contributions(ax: Axes, table: pd.DataFrame, split: str = "train", advice: float | None = ADVICE) -> Axes:
    """Relative contribution of every term to the loss, 0 ... 100 %, stacked over epochs.

    `table` is that of `balance.contributions`: epoch, split, group (or term), share; seeds are averaged. KL is at the
    bottom, so that the thin line at `advice` (a fraction) says whether it keeps to it; reconstruction terms follow in
    the colour of their modality, then the others. Every epoch is scaled to 100 %; one without shares (NaN) stays empty.
    The legend has the order of the stack. Raises ValueError where the split has no rows, or a share is below zero.
    Introduced in notebook 04.
    """
    rows = table[table.split == split]
    if rows.empty or (rows.share < 0).any():
        found = f"shares below zero in '{split}'" if len(rows) else f"splits {few(table.split.unique())}, not '{split}'"
        raise ValueError(f"contributions: the table has {found}; give that of balance.contributions")
    by = "group" if "group" in rows else "term"
    wide = rows.pivot_table(index="epoch", columns=by, values="share", aggfunc="mean", sort=False).sort_index()
    wide = 100 * wide.div(wide.sum(axis=1).replace(0, np.nan), axis=0).fillna(0)
    order = sorted(wide.columns, key=_place)
    ax.stackplot(wide.index, wide[order].to_numpy().T, labels=order, colors=term_colours(order), lw=0.4, ec="w")
    if advice is not None:
        ax.axhline(100 * advice, color="w", lw=2)  # a pale rim, so that it shows on dark areas too
        ax.axhline(100 * advice, color="k", lw=0.8, ls="--")
    ax.set(xlabel="epoch", ylabel=f"share of the loss ({split}), %", ylim=(0, 100))
    ax.set_xlim(wide.index.min(), max(wide.index.max(), wide.index.min() + 1))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    return ax


def term_colours(terms: Sequence[str]) -> list[str]:
    """A colour per loss term: of its modality, of its kind, or else one that is free. Introduced in notebook 04."""
    known = MODALITY | TERM
    taken = {known.get(term.removeprefix("nll/")) for term in terms}
    free = iter([c for c in PALETTE if c not in taken] + list(plt.get_cmap("tab20b").colors))
    return [known.get(term.removeprefix("nll/")) or next(free) for term in terms]


def _place(term: str) -> int:
    """Height in the stack: KL, reconstruction, then the known terms in their order, then all others."""
    name = "nll" if term.startswith("nll/") else term
    return list(TERM).index(name) if name in TERM else len(TERM)


def as_colours(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Pictures x [n, h*w*c] as colours [n, h, w, 3], clipped to 0 ... 1; missing pixels (NaN) are light grey.

    One channel is grey, two are magenta and green (told apart with any colour vision), three red, green and blue.
    Raises ValueError for other numbers of channels, and for arrays that do not have `shape` = (h, w, c).
    Introduced in notebook 04.
    """
    if len(shape) != 3:
        raise ValueError(f"a picture's shape is height, width and channels, not {tuple(shape)}")
    x, (height, width, channels) = np.asarray(x, float), shape
    if x.ndim != 2 or x.shape[1] != height * width * channels:
        raise ValueError(f"pictures of shape {x.shape} do not have {height} × {width} pixels with {channels} channels")
    if channels not in (1, 2, 3):
        raise ValueError(f"pictures have {channels} channels, and 1 to 3 can be drawn: choose three")
    x = x.reshape(-1, height, width, channels)
    shown = x[..., {1: [0, 0, 0], 2: [0, 1, 0], 3: [0, 1, 2]}[channels]]
    return np.where(np.isnan(shown), float(MISSING), np.clip(shown, 0, 1))


def mosaic(
    ax: Axes,
    rows: Mapping[str, np.ndarray],
    shape: Sequence[int],
    labels: Sequence | None = None,
    controls: Sequence = (),
    xlabel: str = "",
) -> Axes:
    """Pictures side by side: a row per name of `rows` (each [n, h*w*c]), a column per sample, all on one scale 0 ... 1.

    `labels` [n] are written above the columns, below `xlabel`; names in `controls` are grey. Raises ValueError where
    there are no pictures, and where rows or labels differ in number. Introduced in notebook 04.
    """
    n = _count(rows, labels)
    height, width, _ = shape
    gap, finer = max(1, round(0.04 * width)), -(-24 // width)
    room = ((0, 0), (gap, gap), (gap, gap), (0, 0))
    drawn = [as_colours(x, shape).repeat(finer, 1).repeat(finer, 2) for x in rows.values()]  # each [n, h, w, 3]
    tiles = [np.pad(each, room, constant_values=1) for each in drawn]
    whole = np.concatenate([np.concatenate(list(each), axis=1) for each in tiles])
    ax.imshow(whole, extent=(-0.5, n - 0.5, len(rows) - 0.5, -0.5), interpolation="nearest")
    ax.set_aspect((height * finer + 2 * gap) / (width * finer + 2 * gap))
    _name_rows(ax, list(rows), controls)
    ax.set_xticks(range(n), [""] * n if labels is None else written(labels))
    ax.xaxis.set_label_position("top")
    ax.set_xlabel(xlabel)
    ax.tick_params(length=0, labeltop=True, labelbottom=False, pad=1)
    ax.spines[:].set_visible(False)
    return ax


def _count(rows: Mapping[str, np.ndarray], labels: Sequence | None) -> int:
    """Pictures per row; ValueError where rows or labels differ in number, or there are none."""
    counts = {name: len(x) for name, x in rows.items()} | ({} if labels is None else {"labels": len(labels)})
    if len(set(counts.values())) != 1 or not rows or 0 in counts.values():
        raise ValueError(f"every row needs the same number of pictures, one or more, and a label each: got {counts}")
    return next(iter(counts.values()))


def written(labels: Sequence) -> list[str]:
    """Labels as text; floats with as many decimals, 3 at most, as their distance needs. Introduced in notebook 04."""
    values = np.asarray(labels)
    if not pd.api.types.is_float_dtype(values):
        return [str(label) for label in labels]
    near = 0.1 * np.ptp(values) / len(values)  # no label is further from its value
    decimals = next((d for d in range(4) if np.abs(values.round(d) - values).max() <= near), 3)
    return [f"{value:.{decimals}f}" for value in values]


def spaced(n: int, most: int = 10) -> np.ndarray:
    """Positions of at most `most` of `n` samples, evenly spaced. Introduced in notebook 04."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def picture_grid(
    rows: Mapping[str, np.ndarray],
    shape: Sequence[int],
    labels: Sequence | None = None,
    controls: Sequence = (),
    xlabel: str = "",
) -> Figure:
    """A figure of pictures, 7 in wide: what was measured above what models and simple methods make of it.

    `rows`: name -> pictures [n, h*w*c], for example measured, image → image, protein → image; of more than ten samples
    ten are shown, evenly spaced, so that sorted samples show the whole range. Dark pictures are brightened, all rows
    alike, until the first one fills the scale. See `mosaic` for the rest. Introduced in notebook 04.
    """
    some = spaced(_count(rows, labels))
    margin = 0.07 * max(len(line) for name in rows for line in str(name).splitlines())  # for names, in
    width = min(2 * WIDTH, margin + 0.9 * len(some))  # few pictures stay small
    height = (width - margin) / len(some) * len(rows) * shape[0] / shape[1]
    height += 0.15 + 0.17 * (labels is not None) + 0.17 * bool(xlabel)
    fig, ax = plt.subplots(figsize=(width, height), layout="compressed")
    top = min(np.nanquantile(next(iter(rows.values())), 0.999) or 1.0, 1.0)
    shown = {name: np.asarray(x)[some] / top for name, x in rows.items()}
    mosaic(ax, shown, shape, None if labels is None else np.asarray(labels)[some], controls, xlabel)
    return fig


def aligned(
    axes: Sequence[Axes],
    xy: Mapping[str, np.ndarray],
    values: Mapping[str, pd.Series],
    label: str = "class",
    pairs: bool = False,
    axis: str = "UMAP",
) -> Sequence[Axes]:
    """One embedding of several modalities in two panels: coloured by modality, and by `values` (class or time).

    `xy`: modality -> [n, 2], for example a UMAP of all latent means together; `values`: modality -> Series [n] with the
    samples' names as index, numbers for a colour bar, anything else for classes (make the digits 0 ... 9 categorical);
    missing ones are light grey. Marks tell the modality; `pairs` joins a sample's points by thin lines, at most 60,
    evenly spaced among the shared samples. Raises ValueError where lengths or modalities differ or, with `pairs`, no
    sample is shared. Introduced in notebook 04.
    """
    lengths = {m: (len(each), len(values.get(m, ()))) for m, each in xy.items()}
    if wrong := [f"{m}: {a} points and {b} values" for m, (a, b) in lengths.items() if a != b]:
        raise ValueError(f"aligned: every point needs a value; {'; '.join(wrong)}")
    names = np.repeat(list(xy), [len(each) for each in xy.values()])
    points = np.concatenate([np.asarray(each, float) for each in xy.values()])
    every = pd.concat([pd.Series(values[m]).infer_objects() for m in xy], ignore_index=True)
    paints = dict(zip(xy, term_colours([f"nll/{m}" for m in xy]), strict=True)), palette_of(every)
    mark = dict(zip(xy, cycle("o^sD"), strict=False))
    for ax, each, paint, title in zip(axes, (names, every), paints, ("modality", label), strict=True):
        _dots(ax, points, _painted(each, paint), [mark[m] for m in names])
        _key(ax, paint, title, mark)
        _bare(ax, axis)
    if pairs:
        _join(axes[0], xy, {m: pd.Series(values[m]).index for m in xy})
    return axes


def _join(ax: Axes, xy: Mapping[str, np.ndarray], index: Mapping[str, pd.Index]) -> None:
    """Thin lines between a sample's points in one modality and the next."""
    names = list(xy)
    for a, b in zip(names, names[1:], strict=False):
        shared = index[a].intersection(index[b], sort=False)
        if shared.empty:
            raise ValueError(f"aligned: '{a}' and '{b}' share no samples to join; leave pairs=False for unpaired data")
        some = shared[spaced(len(shared), MOST_PAIRS // (len(names) - 1))]
        ends = [np.asarray(xy[m])[index[m].get_indexer(some)] for m in (a, b)]
        ax.add_collection(LineCollection(np.stack(ends, axis=1), colors="0.7", lw=0.5, zorder=0.5))


def _bare(ax: Axes, axis: str) -> None:
    ax.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xticks=[], yticks=[])


def _dots(ax: Axes, xy: np.ndarray, colour: Sequence, marks: Sequence[str] | None = None) -> None:
    """Points [n, 2], each in its own colour (None: missing, light grey, behind the others) and with its own mark."""
    xy, marks = np.asarray(xy, float), np.asarray(["o"] * len(xy) if marks is None else marks)
    order = np.random.default_rng(0).permutation(len(xy))  # so that no class hides the others
    order = sorted(order, key=lambda i: colour[i] is not None)
    for mark in dict.fromkeys(marks):
        some = [i for i in order if marks[i] == mark]
        shown = [MISSING if colour[i] is None else colour[i] for i in some]
        ax.scatter(*xy[some].T, c=shown, marker=mark, s=9, lw=0, alpha=0.8, rasterized=True)


def _key(ax: Axes, paint: Palette, label: str, marks: Mapping | None = None) -> None:
    """A colour bar for numbers, a legend at the right for classes."""
    if not isinstance(paint, Mapping):
        ax.figure.colorbar(paint, ax=ax, label=label, aspect=30, pad=0.02)
        return
    mark = dict.fromkeys(paint, "o") | dict(marks or {})
    dots = [plt.Line2D([], [], marker=mark[n], ls="", ms=4, color=c, label=n) for n, c in paint.items()]
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1), "ncols": 1 + len(dots) // 15}
    ax.legend(handles=dots, title=label, handletextpad=0.1, **place)


def _painted(values: pd.Series, paint: Palette) -> list:
    """A colour per value, None where it is missing."""
    if isinstance(paint, Mapping):
        return [None if pd.isna(value) else paint[str(value)] for value in values]
    return [None if pd.isna(value) else tuple(paint.to_rgba(float(value))) for value in values]


def palette_of(values: pd.Series) -> Palette:
    """A colour scale for numbers; for classes a colour each, the same in every figure that shows the same classes.

    Ordered categories such as stages run from dark to light. Introduced in notebook 04.
    """
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return ScalarMappable(Normalize(values.min(), values.max()))
    if isinstance(values.dtype, pd.CategoricalDtype) and values.dtype.ordered:
        return dict(zip(map(str, values.cat.categories), shades(len(values.cat.categories)), strict=True))
    return colours(sorted(values.dropna().astype(str).unique()))  # once each, so that frequency does not matter


def translated_and_measured(
    axes: Sequence[Axes],
    xy_measured: np.ndarray,
    xy_translated: np.ndarray,
    labels: Sequence,
    label: str = "class",
    labels_translated: Sequence | None = None,
    axis: str = "UMAP",
) -> Sequence[Axes]:
    """A joint embedding of measured and translated profiles, [n, 2] each, in two panels of the same limits.

    The first shows translated samples in colour over the measured as grey rings, the second the reverse. `labels` [n]
    are classes or numbers; `labels_translated` where the translated are other samples. Raises ValueError where lengths
    differ. Introduced in notebook 04.
    """
    other = labels if labels_translated is None else labels_translated
    for what, xy, each in (("measured", xy_measured, labels), ("translated", xy_translated, other)):
        if len(xy) != len(each):
            raise ValueError(f"translated_and_measured: {len(xy)} {what} points and {len(each)} labels: need one each")
    labels, other = pd.Series(labels), pd.Series(other)
    paint = palette_of(pd.concat([labels, other], ignore_index=True))
    sides = (("translated", xy_translated, other), ("measured", xy_measured, labels))
    for ax, (front, back) in zip(axes, (sides, sides[::-1]), strict=False):
        ax.scatter(*np.asarray(back[1]).T, s=9, facecolors="none", edgecolors="0.75", lw=0.5, rasterized=True)
        _dots(ax, front[1], _painted(front[2], paint))
        _bare(ax, axis)
        ax.set_title(f"{front[0]} (rings: {back[0]})")
    _key(axes[1], paint, label)
    return axes


def quality(
    ax: Axes,
    table: pd.DataFrame,
    value: str,
    by: str = "method",
    group: str = "split",
    controls: Sequence = (),
    ceilings: Sequence[str] = (),
    low: float | None = None,
) -> Axes:
    """A row per method from top to bottom: mean of `value` per `group` as a large mark, seeds as small dots.

    Groups differ by their mark, the first filled and the second hollow, so that the grey `controls` can be told apart
    too (which `plots.ladder` cannot do). The methods in `ceilings` are black, and vertical lines at the means of the
    first, one per group, run through all rows. Means below `low` are drawn as triangles at it. The figure should be
    about 0.22 in high per method. Raises ValueError for a ceiling that is not there. Introduced in notebook 04.
    """
    names, groups = list(dict.fromkeys(table[by])), list(dict.fromkeys(table[group]))
    if lacking := [name for name in ceilings if name not in names]:
        raise ValueError(f"quality: no method '{lacking[0]}' to be the ceiling; the table has {few(names)}")
    table = table.dropna(subset=value)
    for g, level in enumerate(groups):
        mark, hollow, line = (("o", False, "-"), ("D", True, "--"), ("s", False, "-."), ("^", True, ":"))[g % 4]
        for i, name in enumerate(names):
            values = table.loc[(table[by] == name) & (table[group] == level), value].to_numpy(float)
            if not len(values):
                continue
            colour = CONTROL if name in controls else "k" if name in ceilings else PALETTE[0]
            at, mean = i + (g - (len(groups) - 1) / 2) * 0.5 / len(groups), values.mean()
            below = low is not None and mean < low
            ax.plot(values, np.full(len(values), at), ".", color=colour, ms=3, alpha=0.6)
            face = {"color": colour, "mfc": "w" if hollow else colour}
            ax.plot(low if below else mean, at, "<" if below else mark, ms=4.5, zorder=3, clip_on=False, **face)
            if name in ceilings[:1]:
                ax.axvline(mean, color="0.4", lw=0.8, ls=line, zorder=0)
        ax.plot([], [], mark, color="k", mfc="w" if hollow else "k", ms=4.5, ls="", label=level)
    _name_rows(ax, names, controls)
    ax.hlines(np.arange(1, len(names)) - 0.5, 0, 1, transform=ax.get_yaxis_transform(), color="0.92", lw=0.6, zorder=0)
    ax.set(xlabel=value, ylim=(len(names) - 0.4, -0.6))
    ax.set_xlim(left=low)
    return ax


def _name_rows(ax: Axes, names: Sequence[str], controls: Sequence) -> None:
    """Names at the left, the first on top; controls in grey."""
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    for tick, name in zip(ax.get_yticklabels(), names, strict=False):  # none where a panel shares its neighbour's
        tick.set_color(GREY_TEXT if name in controls else "k")


def discriminator(ax: Axes, history: pd.DataFrame, chance: float) -> Axes:
    """Accuracy with which the discriminator tells modalities apart, over epochs; `chance` is a dashed line.

    `history` has the columns epoch, split, term, value; drawn are its terms "accuracy" and "accuracy/...", one line per
    term and split. Raises ValueError where there are none. Introduced in notebook 04.
    """
    rows = history[history.term.str.match(r"accuracy(/|$)")]
    if rows.empty:
        raise ValueError("discriminator: the history has no term 'accuracy'; does the model have an adversarial term?")
    part = rows.term.str.removeprefix("accuracy").str.lstrip("/")
    name = (part + ", " + rows.split).where(part.ne("") & part.ne(rows.split), rows.split)
    for (label, each), colour in zip(rows.groupby(name, sort=False), cycle(PALETTE), strict=False):
        mean = each.groupby("epoch").value.mean()  # over seeds
        ax.plot(mean.index, mean, color=colour, label=label)
    ax.axhline(chance, color=CONTROL, ls="--", lw=1, zorder=0, label="chance")
    bottom = min(0.9 * chance, rows.value.min() - 0.03)
    ax.set(xlabel="epoch", ylabel="accuracy of the discriminator", ylim=(bottom, 1.02))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.legend()
    return ax


def balance_trade(
    axes: Sequence[Axes],
    table: pd.DataFrame,
    x: str,
    values: Sequence[str],
    by: str | None = None,
    chance: Mapping[str, float] | None = None,
    advice: float | None = None,
) -> Sequence[Axes]:
    """What the balance of the loss terms does: one panel per column of `values`, against the share `x` (a fraction).

    `table` has a row per run. Lines are means over the runs with one share, bands their range, small dots the runs; one
    line per value of `by` (for example the scenario). `chance`: column -> value of a dashed line; `advice`: a share
    marked by a thin vertical line. Raises ValueError where a column is missing. Introduced in notebook 04.
    """
    if missing := [name for name in (x, *values) if name not in table]:
        raise ValueError(f"balance_trade: no column {few(missing)}; the table has {few(table.columns)}")
    lines = [("", table)] if by is None else list(table.groupby(by, sort=False))
    for ax, value in zip(axes, values, strict=False):
        for (name, rows), colour in zip(lines, cycle(PALETTE), strict=False):
            each = rows.dropna(subset=[x, value]).groupby(x)[value].agg(["mean", "min", "max"])
            ax.fill_between(each.index, each["min"], each["max"], color=colour, alpha=0.2, lw=0)
            ax.plot(each.index, each["mean"], "o-", color=colour, ms=4, label=name)
            ax.plot(rows[x], rows[value], ".", color=colour, ms=2.5, alpha=0.6)
        if value in (chance or {}):
            ax.axhline(chance[value], color=CONTROL, ls="--", lw=1, zorder=0, label="chance")
        if advice is not None:
            ax.axvline(advice, color=CONTROL, lw=0.8, zorder=0)
        ax.set(xlabel=x, ylabel=value)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return axes
