"""Figures of notebook 06: effects along the chromosome, links against what is known, and losses beside controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.plots import CONTROL, MODALITY, PALETTE, WIDTH, colours, latent_plane

UP, DOWN = PALETTE[4], PALETTE[0]  # opens, closes
KNOWN = "k"


def track(
    ax: Axes,
    effects: pd.DataFrame,
    gene: str,
    strand: str = "+",
    known: Sequence[str] = (),
    label: str = "log₂ fold change",
    limit: float | None = None,
) -> Axes:
    """Effects on peaks along the chromosome around a TSS: stems up where a peak opens and down where it closes.

    `effects` [n_peaks]: peak, distance (base pairs from the TSS), score. Peaks in `known` are marked by a triangle at
    the foot. The arrow is the TSS, in the direction of transcription. `limit`: largest |score| that the scale holds.
    Introduced in notebook 06.
    """
    away, score = effects["distance"].to_numpy() / 1000, effects["score"].to_numpy()
    limit = 1.25 * max(np.abs(score).max(initial=0) if limit is None else limit, 1e-9)
    colour = np.where(score > 0, UP, DOWN)
    ax.vlines(away, 0, score, colors=colour, lw=1.2)
    ax.scatter(away, score, c=colour, s=8, linewidths=0, zorder=3)
    linked = effects["peak"].astype(str).isin(list(map(str, known))).to_numpy()
    ax.plot(away[linked], np.full(linked.sum(), -0.93 * limit), "^", color=KNOWN, ms=4.5, label="known link")
    ax.axhline(0, color="0.4", lw=0.6)
    reach = 1.06 * max(np.abs(away).max(initial=0), 1)
    arrow(ax, gene, 1 if strand != "-" else -1, limit, reach)
    ax.set(xlim=(-reach, reach), ylim=(-limit, limit), xlabel="distance to TSS (kb)", ylabel=label)
    return ax


def locus(
    effects: pd.DataFrame,
    gene: str,
    groups: Sequence[str],
    genes: pd.DataFrame,
    known: pd.DataFrame | None = None,
    label: str = "effect",
) -> Figure:
    """Tracks of one gene in several groups, one below the other on one scale (`track`).

    `effects`: gene, peak, group, score, distance; `genes`: the table of genes, with `strand` if it is known; `known`:
    gene, peak and, where known, the `types` in which a link acts, and is marked. Introduced in notebook 06.
    """
    fig, axes = plt.subplots(len(groups), figsize=(2 * WIDTH, 0.4 + 1.5 * len(groups)), sharex=True, squeeze=False)
    mine = effects[effects["gene"].astype(str) == gene]
    strand = str(genes["strand"].get(gene, "+")) if "strand" in genes else "+"
    marked = pd.DataFrame(columns=["peak"]) if known is None else known[known["gene"].astype(str) == gene]
    limit = mine.loc[mine["group"].astype(str).isin(groups), "score"].abs().max()
    for ax, group in zip(axes[:, 0], groups, strict=True):
        here = marked[[group in t.split(";") for t in marked["types"]]] if "types" in marked else marked
        track(ax, mine[mine["group"].astype(str) == group], gene, strand, here["peak"], "", limit)
        ax.set_title(group, loc="left")
        ax.set(xlabel="")
    axes[-1, 0].set_xlabel("distance to TSS (kb); triangles: known links that act here")
    fig.supylabel(label, fontsize=8)
    return fig


def arrow(ax: Axes, gene: str, way: int, height: float, reach: float) -> Axes:
    """The sign of a TSS: up from the line, then along the strand. Introduced in notebook 06."""
    ax.plot([0, 0], [0, 0.82 * height], color="0.4", lw=0.8)
    style = {"arrowstyle": "-|>", "color": "0.4", "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (way * 0.07 * reach, 0.82 * height), (0, 0.82 * height), arrowprops=style)
    side = {"ha": "left" if way > 0 else "right", "va": "center", "fontsize": 7}
    ax.text(way * 0.085 * reach, 0.82 * height, gene, style="italic", **side)
    return ax


def decay(ax: Axes, table: pd.DataFrame, controls: Sequence[str] = ()) -> Axes:
    """Mean |effect| by distance from the TSS over that of the farthest pairs, a line per method (`cis.by_distance`);
    controls in grey. Introduced in notebook 06.
    """
    shades, styles = iter(PALETTE), iter(("-", "--", ":"))
    for name, rows in table.groupby("method", sort=False):
        style = {"color": CONTROL, "ls": next(styles, "-.")} if name in controls else {"color": next(shades)}
        middle = np.sqrt(np.maximum(rows["near"], 500) * rows["far"]) / 1000
        ax.plot(middle, rows["effect"], marker="o", ms=3, label=name, **style)
    ax.axhline(1, color="0.8", lw=0.8, zorder=0)
    ax.set(xscale="log", xlabel="distance to TSS (kb)", ylabel="mean |score|, over far pairs")
    return above(ax)


def dots(
    ax: Axes,
    table: pd.DataFrame,
    columns: dict[str, str],
    label: str = "",
    by: str = "method",
    controls: Sequence[str] = (),
    chance: float | None = None,
) -> Axes:
    """A row per `by`, the first on top; for each of the `columns` (-> mark) its mean, and single values as small dots
    where there are several. `chance` is a line, controls are grey. Introduced in notebook 06.
    """
    names = list(dict.fromkeys(table[by]))
    for i, name in enumerate(names):
        colour = CONTROL if name in controls else PALETTE[0]
        for column, mark in columns.items():
            values = table.loc[table[by] == name, column].dropna()
            ax.plot(values.mean(), i, mark, color=colour, ms=5, fillstyle="full" if mark == "o" else "none")
            if len(values) > 1:
                ax.plot(values, np.full(len(values), i + 0.22), ".", color=colour, ms=2.5, alpha=0.7)
    for column, mark in columns.items() if len(columns) > 1 else ():
        ax.plot([], [], mark, color="0.3", ms=5, fillstyle="full" if mark == "o" else "none", label=column)
    ax.set_yticks(range(len(names)), names)
    if chance is not None:
        ax.axvline(chance, color="0.8", lw=0.8, zorder=0)
    ax.margins(x=0.12)
    ax.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    return ax


def above(ax: Axes) -> Axes:
    """The legend over the panel, where it hides nothing. Introduced in notebook 06."""
    ax.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=2.5)
    return ax


def p_values(ax: Axes, tables: dict[str, Sequence[float]], bins: int = 20) -> Axes:
    """Densities of p-values, an outline per table; uniform ones lie on the line. Introduced in notebook 06."""
    for (name, values), colour in zip(tables.items(), (PALETTE[0], CONTROL, PALETTE[1]), strict=False):
        if len(values):
            ax.hist(values, bins, range=(0, 1), density=True, histtype="step", color=colour, lw=1.4, label=name)
    ax.axhline(1, color="k", lw=0.6, ls=":")
    ax.set(xlabel="p-value", ylabel="density", xlim=(0, 1), yscale="log")
    return above(ax)


def factor_changes(ax: Axes, table: pd.DataFrame) -> Axes:
    """Change of peaks with a factor's motif when it is silenced, beyond that of others, a row per factor
    (`cis.factor_effects`): activators should lie left of zero, repressors right. Introduced in notebook 06.
    """
    order = table.assign(shift=table["change"] - table["others"]).sort_values(["role", "shift"], ignore_index=True)
    for role, colour in (("activator", DOWN), ("repressor", UP)):
        rows = order[order["role"] == role]
        ax.barh(rows.index, rows["shift"], color=colour, height=0.7, label=role)
    ax.axvline(0, color="k", lw=0.6)
    ax.set_yticks(range(len(order)), order["gene"], fontsize=6)
    ax.set(xlabel="log₂ change of peaks with the motif", ylim=(len(order) - 0.4, -0.6))
    ax.legend(fontsize=6)
    return ax


def losses(ax: Axes, table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str) -> Axes:
    """`y` against `x`, a line per method and modality: colour for the modality, full for the first method and dashed
    for others (`ablations.efficiency`). Introduced in notebook 06.
    """
    methods = list(dict.fromkeys(table["method"]))
    for (method, modality), rows in table.groupby(["method", "modality"], sort=False):
        style = "-" if method == methods[0] else "--"
        name = f"{modality}, {method}"
        ax.plot(rows[x], rows[y], style, marker="o", ms=3, color=MODALITY.get(modality, "k"), label=name)
    ax.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    ticks = sorted(table[x].unique())
    ax.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
    ax.minorticks_off()
    return above(ax)


def ranks(ax: Axes, table: pd.DataFrame, controls: Sequence[str] = ()) -> Axes:
    """Rank of each protein's own gene among all genes, a row per protein, a mark per method (`cis.own_genes`); the
    first is on the left. Introduced in notebook 06.
    """
    proteins = list(dict.fromkeys(table["protein"]))
    for method, rows in table.groupby("method", sort=False):
        colour = CONTROL if method in controls else PALETTE[0]
        ax.plot(rows["rank"], [proteins.index(p) for p in rows["protein"]], "o", color=colour, ms=4, label=method)
    ax.set_yticks(range(len(proteins)), proteins)
    n = int(table["n_genes"].max())
    ax.axvline(n / 2, color="0.8", lw=0.8, zorder=0)
    ax.set(xscale="log", xlim=(0.8, n * 1.2), ylim=(len(proteins) - 0.4, -0.6))
    ax.set(xlabel=f"rank of the protein's own gene among {n:,}")
    ax.legend(fontsize=6)
    return ax


def effect_map(ax: Axes, table: pd.DataFrame, title: str = "", label: str = "log₂ fold change") -> Axes:
    """Effects as a heat map, rows × columns of the table, zero in white. Introduced in notebook 06."""
    limit = max(np.abs(table.to_numpy()).max(initial=0), 1e-9)
    image = ax.imshow(table, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(table)), table.index)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_title(title)
    ax.figure.colorbar(image, ax=ax, label=label, aspect=15, pad=0.02)
    return ax


def reconstructions(axes: Sequence[Axes], table: pd.DataFrame, controls: Sequence[str] = ()) -> Sequence[Axes]:
    """Loss per modality, and AUPRC of peaks or else r over features: a row of axes for the counts that were seen, and
    one for the other half (`multimodal.reconstruction`). Introduced in notebook 06.
    """
    modalities = list(dict.fromkeys(table["modality"]))
    last = ("auprc", "atac", "AUPRC of open peaks") if "auprc" in table else ("r", modalities[-1], "median r")
    shown = [("nll", m, "−log p, nats per cell") for m in modalities] + [last]
    rows = [(counts, *each) for counts in ("seen", "other half") for each in shown]
    for i, (ax, (counts, value, m, label)) in enumerate(zip(axes, rows, strict=True)):
        some = table[(table["modality"] == m) & (table["counts"] == counts)]
        dots(ax, some, {value: "o"}, label, controls=controls).set_title(f"{m}, {counts}")
        if i % len(shown):
            ax.set_yticklabels([])
    return axes


def code_planes(axes: Sequence[Axes], planes: dict[str, np.ndarray], obs: pd.DataFrame) -> Sequence[Axes]:
    """Codes [n_obs, 2] in planes by column of obs (`multimodal.planes`), each coloured by its column.

    Introduced in notebook 06.
    """
    for ax, (column, xy) in zip(axes, planes.items(), strict=True):
        paint = colours(obs[column])
        latent_plane(ax, xy, obs[column], f"by {column}", paint)
        marks = [ax.scatter([], [], s=8, color=colour, label=name) for name, colour in paint.items()]
        ax.legend(handles=marks, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.1)
    axes[0].set(xlabel="PC 1 of codes", ylabel="PC 2 of codes")
    return axes


def translated(ax: Axes, table: pd.DataFrame, controls: Sequence[str] = ()) -> Axes:
    """Losses of modalities told from others, over those of the model that saw them (`multimodal.translations`).

    Introduced in notebook 06.
    """
    ways = table.assign(way=table["source"] + " to " + table["target"])
    wide = ways.pivot_table("ratio", "method", "way", sort=False).reset_index()
    marks = dict(zip(wide.columns[1:], "os^v<>", strict=False))
    return above(dots(ax, wide, marks, "loss, over seeing it", controls=controls, chance=1))


def link_scores(ax: Axes, table: pd.DataFrame, controls: Sequence[str] = ()) -> Axes:
    """AUROC of known links, over all groups and, where it is known, in the right and the wrong type (`cis.agreement`).

    Introduced in notebook 06.
    """
    if table.empty:
        ax.text(0.5, 0.5, "no links are known", ha="center", va="center", transform=ax.transAxes)
        return ax.set_axis_off() or ax
    marks = {
        name: mark for name, mark in zip(("auroc", "right type", "wrong type"), "os^", strict=True) if name in table
    }
    dots(ax, table, marks, "AUROC of known links", controls=controls, chance=0.5)
    return above(ax) if len(marks) > 1 else ax
