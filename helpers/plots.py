"""House style for figures: axes in, axes out; one colour per modality through all eight notebooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, HEIGHT = 3.5, 2.5  # inches; a row of panels is twice as wide
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6BB1", "#B8A000"]  # after Okabe, Ito
MODALITY = dict(
    zip(("rna", "methylation", "mutation", "protein", "cnv", "atac", "image", "mirna"), PALETTE, strict=True)
)
CONTROL = "0.6"  # controls (random, zeros, PCA) are grey in every comparison
MISSING = "0.85"


def use_style() -> None:
    """Set matplotlib's defaults to the house style. Introduced in notebook 01."""
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, HEIGHT),
            "figure.dpi": 110,
            "savefig.dpi": 200,
            "figure.constrained_layout.use": True,
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": mpl.cycler(color=PALETTE),
            "legend.frameon": False,
            "legend.fontsize": 7,
            "lines.linewidth": 1.4,
            "image.cmap": "viridis",
            "svg.fonttype": "none",
        }
    )


def row(n: int = 1, height: float = HEIGHT, **options) -> tuple[Figure, np.ndarray]:
    """A row of `n` axes: one of 3.5 × 2.5 in, or a row 7 in wide. Introduced in notebook 01."""
    fig, axes = plt.subplots(1, n, figsize=(WIDTH if n == 1 else 2 * WIDTH, height), squeeze=False, **options)
    return fig, axes[0]


def grid(n: int, columns: int = 4, height: float = 1.8) -> tuple[Figure, list[Axes]]:
    """`n` axes in rows of `columns`, 7 in wide; the places left over stay empty. Introduced in notebook 01."""
    rows = -(-n // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(2 * WIDTH, rows * height), squeeze=False)
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    return fig, list(axes.flat[:n])


def shades(n: int, cmap: str = "viridis") -> list:
    """`n` ordered colours for an ordered quantity such as β. Introduced in notebook 01."""
    return [mpl.colormaps[cmap](v) for v in np.linspace(0.0, 0.85, n)]


def curves(ax: Axes, named: Mapping[str, Callable[[float, float], float]], epochs: int) -> Axes:
    """Weight against epoch for annealing curves (t, T) -> weight. Introduced in notebook 01."""
    t = np.arange(epochs + 1)
    styles = ["-", "-", "-", "--", "--", "--", ":"]
    for (name, curve), style in zip(named.items(), styles, strict=False):
        ax.plot(t, [curve(i, epochs) for i in t], style, label=name)
    ax.set(xlabel="epoch", ylabel="weight, share of final β", ylim=(-0.03, 1.05))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def strips(ax: Axes, table: pd.DataFrame, title: str, cmap: str = "viridis", label: str = "β") -> Axes:
    """Heat strips: one row per β (index), one column per epoch. Introduced in notebook 01."""
    image = ax.imshow(table, aspect="auto", cmap=cmap, interpolation="nearest")
    ticks = np.linspace(0, table.shape[1] - 1, 4).round().astype(int)
    ax.set_xticks(ticks, [f"{table.columns[i]:g}" for i in ticks])
    ax.set_yticks(range(len(table)), [f"{b:g}" for b in table.index])
    ax.set(xlabel="epoch", ylabel=label, title=title)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, orientation="horizontal", location="top", pad=0.14, shrink=0.8)
    return ax


def colours(labels: Sequence) -> dict:
    """A colour per class, in order of frequency so that common classes get the clearest ones.

    Introduced in notebook 01.
    """
    names = pd.Series(labels).dropna().astype(str).value_counts().index
    chosen = PALETTE if len(names) <= len(PALETTE) else [mpl.colormaps["tab20"](i % 20) for i in range(len(names))]
    return dict(zip(names, chosen, strict=False))


def latent_plane(ax: Axes, z: np.ndarray, labels: Sequence, title: str = "", palette: Mapping | None = None) -> Axes:
    """Two latent dimensions z [n_obs, 2] coloured by class; missing labels in light grey.

    Limits hold 99 % of the points. Introduced in notebook 01.
    """
    names = pd.Series(labels).astype(object).where(pd.Series(labels).notna(), None)
    palette = palette or colours(labels)
    colour = [MISSING if n is None else palette[str(n)] for n in names]
    order = np.random.default_rng(0).permutation(len(z))  # so that no class hides the others
    ax.scatter(*z[order, :2].T, c=[colour[i] for i in order], s=5, linewidths=0, alpha=0.8, rasterized=True)
    low, high = np.percentile(z[:, :2], [0.5, 99.5], axis=0)
    pad = 0.08 * np.maximum(high - low, 1e-6)
    ax.set(xlim=(low[0] - pad[0], high[0] + pad[0]), ylim=(low[1] - pad[1], high[1] + pad[1]), title=title)
    ax.set(xlabel="z₁", ylabel="z₂")
    ax.locator_params(nbins=4)
    return ax


def class_legend(fig: Figure, palette: Mapping, title: str) -> None:
    """One legend of classes under a row of latent planes. Introduced in notebook 01."""
    dots = [plt.Line2D([], [], marker="o", ls="", ms=4, color=c, label=n) for n, c in palette.items()]
    fig.legend(handles=dots, title=title, loc="outside lower center", ncols=min(len(dots), 8), handletextpad=0.1)


def spread(ax: Axes, table: pd.DataFrame, x: str, y: str, by: str, label: Callable = str) -> Axes:
    """Mean ± sd over seeds of `y` against `x`, one point per value of `by`, joined in order.

    Introduced in notebook 01.
    """
    mean, sd = (getattr(table.groupby(by)[[x, y]], how)() for how in ("mean", "std"))
    ax.plot(mean[x], mean[y], color="0.8", zorder=0)
    for (value, m), s, c in zip(mean.iterrows(), sd.fillna(0).to_numpy(), shades(len(mean)), strict=True):
        ax.errorbar(m[x], m[y], xerr=s[0], yerr=s[1], fmt="o", color=c, ms=4, capsize=2, label=label(value))
    ax.set(xlabel=x, ylabel=y)
    return ax


def path(ax: Axes, table: pd.DataFrame, x: str, y: str, by: str, colour: str, name: str) -> Axes:
    """Mean of `y` against `x`, joined in order of `by` and annotated with it; seeds as small dots.

    Introduced in notebook 01.
    """
    mean = table.groupby(by)[[x, y]].mean()
    ax.plot(mean[x], mean[y], "o-", color=colour, ms=4, label=name)
    ax.plot(table[x], table[y], ".", color=colour, ms=2, alpha=0.6)
    for value, m in mean.iterrows():
        ax.annotate(f"{value:g}", (m[x], m[y]), (3, 4), textcoords="offset points", color=colour, fontsize=6)
    ax.set(xlabel=x, ylabel=y)
    return ax


def bars(ax: Axes, table: pd.DataFrame, value: str, by: str, controls: Sequence = ()) -> Axes:
    """Mean of `value` per category with its seeds as dots; controls in grey. Introduced in notebook 01."""
    names = list(dict.fromkeys(table[by]))
    ours = [n for n in names if n not in controls]
    colour = dict(zip(ours, shades(len(ours)), strict=True)) | {n: CONTROL for n in controls}
    for i, name in enumerate(names):
        values = table.loc[table[by] == name, value].to_numpy()
        ax.bar(i, values.mean(), color=colour[name], width=0.7)
        ax.plot(i + np.linspace(-0.15, 0.15, len(values)), values, "o", color="k", ms=2)
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set(ylabel=value)
    return ax


def terms(ax: Axes, history: pd.DataFrame, split: str = "valid") -> Axes:
    """Unweighted loss terms over epochs, nats per sample, coloured by modality. Introduced in notebook 01."""
    rows = history[(history.split == split) & history.term.str.match(r"^(nll/|kl$|mmd$)")]
    for term, values in rows.groupby("term", sort=False):
        ax.plot(values.epoch, values.value, label=term, color=MODALITY.get(term.removeprefix("nll/"), "k"))
    ax.set(xlabel="epoch", ylabel=f"nats per sample ({split})")
    ax.legend()
    return ax


def control_points(ax: Axes, table: pd.DataFrame, x: str, y: str) -> Axes:
    """Controls as grey crosses with their names, one row of `table` each. Introduced in notebook 01."""
    for _, control in table.dropna(subset=[x, y]).iterrows():
        ax.plot(control[x], control[y], "x", color=CONTROL, ms=5)
        ax.annotate(control["kind"], (control[x], control[y]), (4, 3), textcoords="offset points", color=CONTROL)
    return ax


def grouped_bars(ax: Axes, table: pd.DataFrame, value: str, by: str, group: str, label: str) -> Axes:
    """Mean of `value` per `by`, one bar per `group`, seeds as dots. Introduced in notebook 01."""
    groups, places = list(dict.fromkeys(table[group])), sorted(table[by].unique())
    width = 0.8 / len(groups)
    for g, name in enumerate(groups):
        for i, place in enumerate(places):
            values = table.loc[(table[group] == name) & (table[by] == place), value].to_numpy()
            at = i + (g - (len(groups) - 1) / 2) * width
            ax.bar(at, values.mean(), width * 0.92, color=PALETTE[g], label=name if i == 0 else None)
            ax.plot(at + np.linspace(-0.2, 0.2, len(values)) * width, values, "o", color="k", ms=2)
    ax.set_xticks(range(len(places)), [f"{p:g}" for p in places])
    ax.set(xlabel=label, ylabel=value)
    return ax


def grid_map(ax: Axes, values: np.ndarray, side: np.ndarray, modality: str, feature: str) -> Axes:
    """A decoded feature over a square of the latent plane, values [n, n] in standard deviations.

    Introduced in notebook 01.
    """
    limit = np.abs(values).max()
    extent = (side[0], side[-1], side[0], side[-1])
    image = ax.imshow(values, origin="lower", extent=extent, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set(xlabel="z₁", ylabel="z₂")
    ax.set_title(f"{modality}: {feature}", color=MODALITY.get(modality, "k"))
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    return ax


def profiles(axes: Sequence[Axes], decoded: pd.DataFrame, measured: pd.DataFrame, n: int = 40) -> Sequence[Axes]:
    """Class profiles [n_classes, n_vars] as two heat maps, decoded and measured, of the `n` features that differ most.

    Introduced in notebook 01.
    """
    top = measured.var().nlargest(n).index
    order = measured[top].idxmax().sort_values().index  # features side by side by the class in which they peak
    for ax, table, title in zip(axes, (decoded, measured), ("decoded at the centre", "measured mean"), strict=True):
        ax.imshow(table[order], aspect="auto", cmap="RdBu_r", vmin=-2, vmax=2, interpolation="nearest")
        ax.set(title=title, xlabel=f"{len(order)} features", xticks=[])
        ax.set_yticks(range(len(table)), table.index if ax is axes[0] else [])
        ax.spines[:].set_visible(False)
    return axes


def ladder(
    ax: Axes, table: pd.DataFrame, value: str, by: str, group: str, controls: Sequence = (), marks: str = "o"
) -> Axes:
    """A row per `by` from top to bottom: mean of `value` per `group` as a large dot, its parts as small ones.

    Groups are ordered and coloured from dark to light; rows named in `controls` are grey. Introduced in notebook 02.
    """
    names, groups = list(dict.fromkeys(table[by])), sorted(table[group].unique())
    step = 0.7 / max(len(groups), 1)
    for g, (level, shade) in enumerate(zip(groups, shades(len(groups)), strict=True)):
        for i, name in enumerate(names):
            values = table.loc[(table[by] == name) & (table[group] == level), value].dropna().to_numpy()
            at = i + (g - (len(groups) - 1) / 2) * step
            colour = CONTROL if name in controls else shade
            ax.plot(values, np.full(len(values), at), ".", color=colour, ms=2.5, alpha=0.6)
            if len(values):
                ax.plot(values.mean(), at, marks, color=colour, ms=5)
        ax.plot([], [], marks, color=shade, ms=5, label=level)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=value, ylim=(len(names) - 0.4, -0.6))
    ax.grid(axis="y", color="0.93", lw=6 if len(groups) == 1 else 0)
    for i in range(1, len(names)):
        ax.axhline(i - 0.5, color="0.92", lw=0.6, zorder=0)
    return ax


def within(ax: Axes, low: float, high: float, log: bool = False) -> Axes:
    """Show the whole range low … high on the x axis, with room for marks at its ends. Introduced in notebook 02."""
    if log:
        pad = (high / low) ** 0.06
        ax.set(xscale="log", xlim=(low / pad, high * pad))
        ax.set_xticks([low, high], [f"{low:g}", f"{high:g}"])
        ax.minorticks_off()
    else:
        pad = 0.06 * (high - low)
        ax.set(xlim=(low - pad, high + pad), xticks=[low, high])
    return ax


def above_random(ax: Axes) -> Axes:
    """Make the x axis one of standard deviations above random features, compressed beyond ±5.

    A task in which random draws hardly differ gives huge ones. Introduced in notebook 02.
    """
    ax.axvline(0, color="k", lw=0.8)
    ax.set_xscale("symlog", linthresh=5, linscale=1.5)
    low, high = ax.get_xlim()
    ticks = [t for t in (-100, -20, -5, -2, 0, 2, 5, 20, 100) if low <= t <= high]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set(xlabel="sd above random")
    return ax


def ranks(ax: Axes, table: pd.DataFrame, controls: Sequence = ()) -> Axes:
    """Mean ranks with their intervals, best on top (`outcomes.ranking`). Introduced in notebook 02."""
    for i, (name, row_) in enumerate(table.iterrows()):
        colour = CONTROL if name in controls else PALETTE[0]
        ax.plot([row_["low"], row_["high"]], [i, i], color=colour, lw=1.5)
        ax.plot(row_["rank"], i, "o", color=colour, ms=4)
    ax.set_yticks(range(len(table)), table.index)
    ax.set(xlabel="mean rank over tasks and learners (1 = best)", ylim=(len(table) - 0.4, -0.6))
    return ax


def key(fig: Figure, ax: Axes, title: str) -> None:
    """One legend for a row of panels, below them, with what `ax` names. Introduced in notebook 02."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, title=title or None, loc="outside lower center", ncols=min(len(labels), 5))


def clouds(ax: Axes, table: pd.DataFrame, x: str, y: str, by: str, order: Sequence, controls: Sequence = ()) -> Axes:
    """Points of `y` against `x`, coloured per value of `by`; controls in grey, each with a mark of its own.

    Introduced in notebook 02.
    """
    ours = [name for name in order if name not in controls]
    colour = dict(zip(ours, PALETTE, strict=False)) | {name: CONTROL for name in controls}
    mark = dict.fromkeys(ours, "o") | dict(zip((n for n in order if n in controls), "xs^v", strict=False))
    for name in order:
        rows = table[table[by] == name]
        ax.plot(rows[x], rows[y], mark[name], color=colour[name], ms=4, ls="", label=name)
    ax.set(xlabel=x, ylabel=y)
    return ax
