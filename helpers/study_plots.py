"""Pictures of a tuning study: its course, what mattered, which settings did well. Axes in, axes out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from helpers.plots import CONTROL, MISSING, PALETTE
from helpers.tuning import LEAST_COMPLETE, Tuned, importances

BEST = PALETTE[4]
LOSS = "valid loss, nats per sample"


def plot_history(ax: Axes, tuned: Tuned) -> Axes:
    """Loss of the trials in the order they were begun, and the best so far as a line.

    Pruned trials are crosses at the last loss they reported. Losses far above the others (by more than three times the
    range between best and median) are drawn as triangles at the upper edge. Introduced in notebook 02.
    """
    complete = tuned.trials[tuned.trials.state == "complete"]
    pruned = tuned.trials[tuned.trials.state == "pruned"].dropna(subset=["value"])
    top = ceiling(complete.value)
    for rows, marker, colour, label in ((complete, "o", PALETTE[0], "complete"), (pruned, "x", CONTROL, "pruned")):
        inside, above = rows[rows.value <= top], rows[rows.value > top]
        if len(rows):
            ax.plot(inside.number, inside.value, marker, ls="", color=colour, ms=3.5, label=f"{label} ({len(rows)})")
            ax.plot(above.number, [top] * len(above), "^", color=colour, ms=3.5)
    ax.step(complete.number, complete.value.cummin(), where="post", color=BEST, label="best so far")
    ax.set(xlabel="trial", ylabel=LOSS)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return ax


def plot_importances(ax: Axes, tuned: Tuned, seed: int = 0) -> Axes:
    """Share of the loss's variance per hyperparameter, see `tuning.importances`, the largest on top.

    With fewer than 4 complete trials the axes say so instead. Introduced in notebook 02.
    """
    n = int((tuned.trials.state == "complete").sum())
    if n < LEAST_COMPLETE:
        text = f"{n} complete trials:\nimportances need {LEAST_COMPLETE} or more"
        ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color=CONTROL)
        ax.set_axis_off()
        return ax
    shares = importances(tuned, seed)[::-1]
    drawn = ax.barh(range(len(shares)), shares, color=PALETTE[0], height=0.7)
    ax.bar_label(drawn, [f"{s:.0%}" for s in shares], padding=2, fontsize=7)
    ax.set_yticks(range(len(shares)), shares.index)
    ax.set(xlabel=f"share of variance ({n} trials)", xlim=(0, 1.15 * shares.max()))
    return ax


def plot_parallel(ax: Axes, tuned: Tuned) -> Axes:
    """One line per complete trial across its hyperparameters, each axis the range searched; the best trial in orange.

    Darker lines have lower losses, by rank, so that a few bad trials do not take up the scale. Axes of "log" ranges are
    logarithmic. Introduced in notebook 02.
    """
    complete = tuned.trials[tuned.trials.state == "complete"].sort_values("value", ascending=False)
    heights = np.column_stack([position(complete[name], tuned.space[name]) for name in tuned.space])
    x = np.arange(len(tuned.space))
    lines = [np.column_stack([x, h]) for h in heights]  # the best is drawn last
    lines = LineCollection(lines, cmap="viridis", lw=0.8, alpha=0.8, array=np.linspace(1, 0, len(lines)))
    ax.add_collection(lines)
    ax.plot(x, heights[-1], "o-", color=BEST, ms=3, label=f"best ({complete.value.iloc[-1]:.5g})")
    for at, name in enumerate(tuned.space):
        label_axis(ax, at, tuned.space[name])
    ax.set_xticks(x, tuned.space, rotation=30, ha="right", rotation_mode="anchor")
    ax.tick_params(length=0, pad=12)
    ax.set(xlim=(-0.3, len(x) - 0.7), ylim=(-0.02, 1.02), yticks=[])
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(lines, ax=ax, shrink=0.7, ticks=[0, 1])
    bar.ax.set_yticklabels(["best", "worst"])
    bar.ax.invert_yaxis()
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.06))
    return ax


def ceiling(values: pd.Series) -> float:
    """Where a loss counts as far off: three times the range from best to median, above the median."""
    return float(values.median() + 3 * (values.median() - values.min())) if len(values) > 2 else np.inf


def position(values: pd.Series, limits: tuple) -> np.ndarray:
    """Where values [n_trials] lie in their range, 0 = low end, 1 = high end; choices are spread evenly."""
    kind, *rest = limits
    if kind == "choice":
        return np.array([rest.index(v) for v in values]) / max(len(rest) - 1, 1)
    values, (low, high) = values.to_numpy(float), rest
    if kind == "log":
        values, low, high = np.log(values), np.log(low), np.log(high)
    return np.full(len(values), 0.5) if low == high else (values - low) / (high - low)


def label_axis(ax: Axes, at: int, limits: tuple) -> None:
    """A vertical line with the ends of a range, or with all choices."""
    kind, *rest = limits
    ax.axvline(at, color=MISSING, lw=0.8, zorder=0)
    marks = rest if kind == "choice" else [rest[0], rest[1]]
    for height, mark in zip(np.linspace(0, 1, len(marks)), marks, strict=True):
        offset, va = {0.0: (-3, "top"), 1.0: (3, "bottom")}.get(float(height), (0, "center"))
        text = f"{mark:g}" if isinstance(mark, int | float) and not isinstance(mark, bool) else str(mark)
        ax.annotate(text, (at, height), (0, offset), textcoords="offset points", ha="center", va=va, fontsize=6)
