"""Figures on the terms of an ontology-constrained autoencoder: how active, how robust, how many repetitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike

from helpers.plots import CONTROL, MISSING, PALETTE, WIDTH, colours, plt
from helpers.wording import few

LONGEST = 32  # characters of a term's name in a figure
FRAME = "0.35"


def short(name: object, longest: int = LONGEST) -> str:
    """A name of at most `longest` characters: cut, at the end of a word where that loses few letters, and "…".

    Introduced in notebook 03.
    """
    text = " ".join(str(name).split())
    if len(text) <= longest:
        return text
    cut = text[: longest - 1]
    at_word = cut.rfind(" ") if text[longest - 1] != " " else len(cut)
    return (cut[:at_word] if at_word > longest - 8 else cut).rstrip(" ,;:-(") + "…"


def shortened(names: Sequence, longest: int = LONGEST) -> list[str]:
    """`short` names that still differ: those that would be alike keep their end. Introduced in notebook 03."""
    names = [str(name) for name in names]
    brief = [short(name, longest) for name in names]
    half = (longest - 1) // 2
    apart = [f"{name[: longest - 1 - half].rstrip()}…{name[-half:].lstrip()}" for name in names]
    return [a if brief.count(b) > 1 and len(n) > longest else b for n, b, a in zip(names, brief, apart, strict=True)]


def ridges(
    ax: Axes,
    values: ArrayLike,
    groups: Sequence,
    by: Sequence | None = None,
    palette: Mapping | None = None,
    label: str = "activity",
    overlap: float = 1.6,
    least: int = 5,
) -> Axes:
    """Density of a term's activity, values [n_obs], one ridge per group such as tissue or subtype.

    Groups are ordered by their median, the highest on top, with name and number of samples at the left. `by` [n_obs]
    draws one density per class into every ridge, for example by sex; `palette` gives classes (without `by`: groups)
    their colours. Densities have Gaussian kernels (Scott's bandwidth), each as high as `overlap` rows; with `by` all of
    a ridge share a scale, so that areas compare. Fewer than `least` samples, or none that differ, are shown as points.
    Missing values, groups and classes are left out. The figure should be about 0.22 in high per group.
    Raises ValueError where lengths differ or nothing is left. Introduced in notebook 03.
    """
    table = pd.DataFrame({"value": np.asarray(values, float), "group": _labels(groups, values, "groups")})
    table["by"] = "" if by is None else _labels(by, values, "by")
    table = table.replace([np.inf, -np.inf], np.nan).dropna()
    if table.empty:
        raise ValueError("ridges: no sample has a value, a group and a class")
    order = table.groupby("group").value.median().sort_values(kind="stable").index  # lowest first: drawn at the bottom
    classes = sorted(table.by.unique())  # not by frequency: "female" has one colour in all figures
    shown = [PALETTE[0]] if by is None else PALETTE
    palette = palette or dict(zip(order if by is None else classes, cycle(shown), strict=False))
    for height, name in reversed(list(enumerate(order))):  # from the top, so that a ridge lies before the one behind it
        rows = table[table.group == name]
        parts = [(palette[name], rows)] if by is None else [(palette[c], r) for c, r in rows.groupby("by")]
        _ridge(
            ax,
            height,
            [(colour, r.value.to_numpy()) for colour, r in parts],
            overlap,
            least,
            len(order) - height,
            by is None,
        )
    counts = table.group.value_counts()
    ax.set_yticks(range(len(order)), [f"{short(name)} ({counts[name]})" for name in order])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(label, loc="right")  # long names leave a narrow axes, and room to the left of it
    ax.set_ylim(-0.3, len(order) - 1 + overlap + 0.1)
    if by is not None:
        _legend_above(ax, {name: palette[name] for name in classes})
    return ax


def _ridge(ax: Axes, height: float, parts: list[tuple], overlap: float, least: int, order: int, alone: bool) -> None:
    from scipy.stats import gaussian_kde

    curves = {}
    for i, (colour, values) in enumerate(parts):
        if len(values) < least or np.ptp(values) <= 1e-9 * np.abs(values).max():
            ax.plot(values, np.full(len(values), height + 0.12), "|", color=colour, ms=5, zorder=order + 0.5)
            continue
        kernel = gaussian_kde(values)
        pad = 3 * np.sqrt(kernel.covariance[0, 0])  # beyond it the density is next to nothing
        x = np.linspace(values.min() - pad, values.max() + pad, 200)
        curves[i] = colour, x, kernel(x)
    top = max((density.max() for *_, density in curves.values()), default=1)
    for colour, x, density in curves.values():
        y = height + overlap * density / top
        ax.fill_between(x, height, y, color=colour, alpha=0.75 if alone else 0.5, lw=0, zorder=order)
        ax.plot(x, y, color="w" if alone else colour, lw=0.8, zorder=order + 0.1)
    ax.axhline(height, color="0.8", lw=0.5, zorder=order - 0.1)


def _labels(labels: Sequence, values: ArrayLike, what: str) -> list:
    """Labels as text, None where missing; ValueError where there is not one per value."""
    if len(labels) != np.size(values) or np.ndim(values) != 1:
        raise ValueError(f"values have shape {np.shape(values)} and there are {len(labels)} {what}: need one each")
    labels = pd.Series(np.asarray(labels, dtype=object))
    return labels.astype(str).where(labels.notna(), None).tolist()


def _legend_above(ax: Axes, palette: Mapping) -> None:
    dots = [plt.Line2D([], [], marker="s", ls="", ms=5, color=c, label=short(n)) for n, c in palette.items()]
    widest = max(len(short(name)) for name in palette)
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2}
    ax.legend(handles=dots, ncols=max(1, 40 // (widest + 4)), handletextpad=0.1, columnspacing=1, **place)


def heat(
    ax: Axes,
    table: pd.DataFrame,
    sizes: Mapping | None = None,
    label: str = "mean |r| over repetitions",
    xlabel: str = "",
    bar: bool = True,
) -> Axes:
    """Robustness of terms (rows) at values of a hyperparameter (columns), colours fixed to 0 ... 1.

    Rows are ordered by `sizes` (term -> number of features, shown behind the name), the largest on top; without it they
    stay as they are. Cells carry their value where there are 60 or fewer; NaN is grey; `bar` adds the colour bar. The
    figure should be about 0.18 in high per term. Raises ValueError for values outside 0 ... 1 and terms without a size.
    Introduced in notebook 03.
    """
    values = table.to_numpy(float)
    if np.nanmin(values, initial=0) < -1e-9 or np.nanmax(values, initial=1) > 1 + 1e-9:
        raise ValueError("heat: values lie outside 0 ... 1; the colours are fixed to that range")
    if sizes is not None:
        if unknown := [term for term in table.index if term not in sizes]:
            raise ValueError(f"heat: no size for {few(unknown)}")
        table = table.loc[sorted(table.index, key=lambda term: -sizes[term])]
    names = shortened(table.index)
    if sizes is not None:
        names = [f"{name} ({sizes[term]:g})" for name, term in zip(names, table.index, strict=True)]
    cmap = plt.get_cmap("viridis").with_extremes(bad=MISSING)
    image = ax.imshow(np.ma.masked_invalid(table), aspect="auto", cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
    columns = [_as_text(column) for column in table.columns]
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, columns)) > 12 else {}
    ax.set_xticks(range(len(columns)), columns, **slant)
    ax.set_yticks(range(len(table)), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(xlabel or str(table.columns.name or ""))
    if table.size <= 60:
        _write_values(ax, table.to_numpy(float))
    if bar:
        _colour_bar(image, ax, label)
    return ax


def _colour_bar(image: AxesImage, ax: Axes | list[Axes], label: str, location: str = "top") -> None:
    where = {"location": location, "ticks": [0, 0.5, 1], "aspect": 25, "pad": 0.02}
    place = {"loc": "right"} if location == "top" else {}
    plt.colorbar(image, ax=ax, **where).set_label(label, **place)


def landscape(robust: pd.DataFrame, r2: pd.Series, sizes: Mapping) -> Figure:
    """Robustness of every term under many settings, below what they do to the model as a whole.

    `robust`: terms x (panel, value), a panel for each hyperparameter, as for `heat`; `r2`: (panel, value) -> R2, drawn
    above with the median robustness, against the same values. Introduced in notebook 03.
    """
    panels = list(dict.fromkeys(name for name, _ in robust.columns))
    widths = [max(robust[name].shape[1], 3) for name in panels]
    shape = {"figsize": (2 * WIDTH, 2 + 0.15 * len(robust)), "height_ratios": (1.1, 0.15 * len(robust))}
    fig, axes = plt.subplots(2, len(panels), sharex="col", sharey="row", squeeze=False, width_ratios=widths, **shape)
    for i, name in enumerate(panels):
        heat(axes[1, i], robust[name], sizes, xlabel=name, bar=False)
        lines = {
            "median |r|": robust[name].median(),
            "R²": r2.get(name, pd.Series(dtype=float)).reindex(robust[name].columns),
        }
        for (label, values), colour in zip(lines.items(), ("k", PALETTE[4]), strict=True):
            ordered = all(isinstance(value, int | float) for value in robust[name].columns)
            axes[0, i].plot(range(len(values)), values, "o-" if ordered else "o", ms=3, color=colour, label=label)
        axes[0, i].tick_params(labelbottom=False)
    axes[0, 0].set_ylim(min(0, r2.min()) - 0.05, 1.05)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    _colour_bar(axes[1, 0].images[0], list(axes[1]), "mean |r|", "right")
    return fig


def _write_values(ax: Axes, values: np.ndarray) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color="w" if value < 0.6 else "k")


def _as_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def against(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    names: Sequence,
    xlabel: str = "features of the term",
    ylabel: str = "mean |r| over repetitions",
    n_named: int = 3,
    error: tuple[ArrayLike, ArrayLike] | None = None,
) -> Axes:
    """Scatter of terms, e.g. robustness against size, with Spearman's rho and its p value in the title where both vary.

    The `n_named` highest, the `n_named` lowest and the `n_named` largest in `x` carry their names, unless a name would
    lie over another. `x` is logarithmic where it is positive and spans a factor of 30 or more. `error` = (low, high)
    draws intervals of `y`. Terms with a NaN are left out. Raises ValueError where lengths differ or none is left.
    Introduced in notebook 03.
    """
    from scipy.stats import spearmanr

    x, y = np.asarray(x, float), np.asarray(y, float)
    if not x.shape == y.shape == (len(names),):
        raise ValueError(
            f"against: x has shape {x.shape}, y {y.shape}, and there are {len(names)} names: need one each"
        )
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        raise ValueError("against: no term has both numbers")
    if error is not None:
        ax.vlines(x[known], *(np.asarray(e, float)[known] for e in error), color="0.8", lw=1, zorder=0)
    ax.plot(x[known], y[known], "o", ms=3.5, color=PALETTE[0], mew=0, alpha=0.8)
    if x[known].min() > 0 and x[known].max() >= 30 * x[known].min():
        ax.set_xscale("log")
    ax.margins(x=0.12, y=0.12)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if known.sum() > 2 and np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0:
        rho = spearmanr(x[known], y[known])
        ax.set_title(f"Spearman ρ = {rho.statistic:.2f}, p = {rho.pvalue:.2g}")
    x, y, brief = x[known], y[known], np.asarray(shortened(names), dtype=object)[known]
    by_y, by_x = np.argsort(y, kind="stable"), np.argsort(x, kind="stable")
    wanted = zip(by_y[::-1][:n_named], by_y[:n_named], by_x[::-1][:n_named], strict=True)  # best, worst, largest
    _name_points(ax, x, y, {i: brief[i] for three in wanted for i in three})
    return ax


def _name_points(ax: Axes, x: np.ndarray, y: np.ndarray, names: Mapping[int, str]) -> None:
    """Names beside some of the points; what would lie over another name, a point or the frame stays nameless."""
    figure, taken = ax.figure, []
    figure.canvas.draw()  # places of text are known only once the layout is
    renderer, frame = figure.canvas.get_renderer(), ax.get_window_extent()
    dots = ax.transData.transform(np.column_stack([x, y]))
    for i, name in names.items():
        sides = ("left", "right") if dots[i, 0] < (frame.x0 + frame.x1) / 2 else ("right", "left")
        for dy, side in [(dy, side) for dy in (0, 6, -6, 11, -11) for side in sides]:
            where = {
                "xytext": (4 if side == "left" else -4, dy),
                "textcoords": "offset points",
                "va": "center_baseline",
            }
            text = ax.annotate(name, (x[i], y[i]), ha=side, fontsize=6, color=FRAME, **where)
            box = text.get_window_extent(renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not box.count_contains(dots) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def intervals(
    ax: Axes,
    mean: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    names: Sequence,
    groups: Sequence | None = None,
    palette: Mapping | None = None,
    label: str = "consensus activity, sd",
) -> Axes:
    """Consensus activity with its interval, one row per name: chosen samples, terms, or groups; [n] each.

    Ordered by `mean`, the highest on top; `groups` colours rows by class, with a legend. A grey line marks zero, the
    mean over all samples. The figure should be about 0.18 in high per row. Raises ValueError where lengths differ.
    Introduced in notebook 03.
    """
    mean, low, high = (np.asarray(v, float) for v in (mean, low, high))
    if not mean.shape == low.shape == high.shape == (len(names),):
        shapes = f"{mean.shape}, {low.shape} and {high.shape}"
        raise ValueError(f"intervals: mean, low and high have shapes {shapes} for {len(names)} names: need one each")
    order, brief = np.argsort(mean, kind="stable"), shortened(names)
    labels = ["" for _ in names] if groups is None else [g or "unknown" for g in _labels(groups, mean, "groups")]
    palette = dict(palette or ({"": PALETTE[0]} if groups is None else colours(labels))) | {"unknown": MISSING}
    ax.axvline(0, color=CONTROL, lw=0.8, zorder=0)
    for height, i in enumerate(order):
        ax.plot([low[i], high[i]], [height, height], color=palette[labels[i]], lw=1.4, solid_capstyle="butt")
        ax.plot(mean[i], height, "o", ms=3.5, color=palette[labels[i]])
    ax.set_yticks(range(len(order)), [brief[i] for i in order])
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(label, loc="right")
    ax.set_ylim(-0.7, len(order) - 0.3)
    if groups is not None:
        _legend_above(ax, {name: palette[name] for name in dict.fromkeys(labels)})
    return ax


def per_group(values: ArrayLike, groups: Sequence) -> pd.DataFrame:
    """Mean of values [n_obs] per group with the 95 % t interval over its samples: group, mean, low, high, n.

    For `intervals(ax, t["mean"], t.low, t.high, t.group)`. Groups of one sample have no interval (NaN).
    Introduced in notebook 03.
    """
    from scipy.stats import t

    table = pd.DataFrame({"value": np.asarray(values, float), "group": _labels(groups, values, "groups")}).dropna()
    found = table.groupby("group").value.agg(["mean", "sem", "size"]).reset_index()
    reach = t.ppf(0.975, (found["size"] - 1).clip(lower=1)) * found.pop("sem")
    return found.assign(low=found["mean"] - reach, high=found["mean"] + reach).rename(columns={"size": "n"})


def stability(ax: Axes, table: pd.DataFrame, target: float | None = 0.9) -> Axes:
    """Spearman's rho between rankings by disjoint sets of repetitions, against their number.

    `table` is that of `robustness.repetitions_needed`: one line per ranking with the 5th to 95th percentile of draws as
    a band; `target` is a grey line. Introduced in notebook 03.
    """
    words = {"samples": "samples within a term", "terms": "terms by robustness"}
    for (name, rows), colour in zip(table.groupby("ranking", sort=False), PALETTE, strict=False):
        ax.fill_between(rows.n, rows.low, rows.high, color=colour, alpha=0.2, lw=0)
        ax.plot(rows.n, rows.spearman, "o-", ms=3.5, color=colour, label=words.get(name, name))
    if target is not None:
        ax.axhline(target, color=CONTROL, lw=0.8, ls="--", zorder=0)
    ax.set_xticks(sorted(table.n.unique()))
    ax.set(xlabel="repetitions in each of two sets", ylabel="Spearman ρ between the sets")
    ax.set_ylim(min(0, table.low.min() - 0.05), 1.03)
    ax.legend(loc="lower right")
    return ax


def top_features(ax: Axes, attribution: ArrayLike, members: ArrayLike, names: Sequence, n: int = 12) -> Axes:
    """The `n` features with the largest attribution to a term, [n_vars] each; members in colour, others grey.

    The figure should be about 0.16 in high per feature. Introduced in notebook 03.
    """
    attribution, members = np.asarray(attribution, float), np.asarray(members, bool)
    top = np.argsort(-attribution, kind="stable")[:n]
    ax.barh(range(len(top)), attribution[top], color=[PALETTE[0] if members[i] else CONTROL for i in top], height=0.75)
    ax.set_yticks(range(len(top)), [short(names[i], 24) for i in top])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xlabel("mean |attribution|", loc="right")
    bars = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (PALETTE[0], CONTROL)]
    ax.legend(bars, ["of the term", "others"], loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    ax.locator_params(axis="x", nbins=3)
    return ax


def rated(
    ax: Axes, values: Mapping[str, ArrayLike], names: Sequence, controls: Sequence = (), label: str = "AUC"
) -> Axes:
    """One number per term and repetition, values kind -> [n_rep, n_terms]: the means, and dots.

    Kinds that are `controls` are grey. Terms stay in their order. Introduced in notebook 03.
    """
    colour, marks = iter(PALETTE), iter("x+^v")
    for kind, each in values.items():
        each, grey = np.atleast_2d(np.asarray(each, float)), kind in controls
        style = {"color": CONTROL if grey else next(colour), "marker": next(marks) if grey else "o"}
        ax.plot(range(each.shape[1]), each.mean(0), ls="", ms=4, label=kind, zorder=2 - grey, **style)
        if not grey:
            ax.plot(np.tile(range(each.shape[1]), len(each)), each.ravel(), ".", ms=2, alpha=0.6, color=style["color"])
    ax.set_xticks(range(len(names)), shortened(names, 20), rotation=90, fontsize=6 if len(names) > 16 else None)
    ax.set_ylabel(label)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handletextpad=0.1, columnspacing=1)
    return ax


def tall(n_rows: int, per_row: float = 0.2, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure with one axes, high enough for `n_rows` named rows. Introduced in notebook 03."""
    return plt.subplots(figsize=(width, 0.8 + per_row * n_rows))
