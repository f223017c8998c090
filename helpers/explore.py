"""Widgets for the Explore sections: everything is drawn beforehand, so a slider only swaps pictures."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from helpers.code_plots import markers_and_cells
from helpers.plots import HEIGHT, MODALITY, PALETTE, WIDTH
from helpers.term_plots import shortened
from helpers.tissue_plots import feature_maps
from helpers.track_plots import locus
from helpers.translation_plots import as_colours, mosaic, spaced, written
from helpers.wording import few


def slider(label: str, options: Sequence[Any], draw: Callable[[Any], Figure], start: Any = None) -> Any:
    """A labelled slider over `options` that shows `draw(option)`; headless, the figure of `start` alone.

    All pictures are drawn once, up front: moving the slider never computes. It can be moved by keyboard.
    Introduced in notebook 01.
    """
    start = options[0] if start is None else start
    if is_headless():
        fig = draw(start)
        plt.close(fig)  # the cell shows what it returns; an open figure would appear a second time
        return fig
    import ipywidgets as widgets

    pictures = {option: png(draw(option)) for option in options}
    named = [(f"{option:g}" if isinstance(option, float) else str(option), option) for option in options]
    handle = widgets.SelectionSlider(options=named, value=start, description=label)
    image = widgets.Image(value=pictures[start], format="png")
    handle.observe(lambda change: setattr(image, "value", pictures[change["new"]]), names="value")
    return widgets.VBox([handle, image])


def choose(options: Mapping[str, Sequence[Any]], draw: Callable[..., Figure]) -> Any:
    """Labelled menus, one per entry of `options`, that show `draw(*chosen)`; headless, the figure of the first options.

    `draw` should only draw: pictures are kept once drawn, so that going back costs nothing. Menus work by keyboard.
    Introduced in notebook 02.
    """
    first = [values[0] for values in options.values()]
    if is_headless():
        fig = draw(*first)
        plt.close(fig)
        return fig
    import ipywidgets as widgets

    picture = functools.cache(lambda *chosen: png(draw(*chosen)))
    menus = [widgets.Dropdown(options=list(values), description=label) for label, values in options.items()]
    image = widgets.Image(value=picture(*first), format="png")
    for menu in menus:
        menu.observe(lambda _: setattr(image, "value", picture(*(m.value for m in menus))), names="value")
    return widgets.VBox([widgets.HBox(menus), image])


def translator(
    label: str,
    positions: Sequence[Any],
    profiles: Mapping[str, pd.DataFrame],
    frames: Mapping[str, np.ndarray],
    shape: Sequence[int] = (),
    start: int = 0,
) -> Any:
    """A slider along a walk through latent space (time, or from class to class): watch both modalities decode.

    `positions` [n_steps] are the walk's times or class names; `profiles` and `frames` what is decoded at every step, as
    for `walk_step`, which draws them all beforehand. It can be moved by keyboard. Headless, a strip of the whole walk.
    Raises ValueError where steps differ in number or two have the same name. Introduced in notebook 04.
    """
    counts = {name: len(each) for name, each in {**profiles, **frames}.items()}
    if not counts or set(counts.values()) != {len(positions)}:
        raise ValueError(f"translator: {len(positions)} positions need as many decoded steps each: got {counts}")
    if frames and len(shape) != 3:
        raise ValueError(f"translator: pictures need shape=(height, width, channels), not {tuple(shape)}")
    names = written(positions)
    if len(set(names)) < len(names):
        raise ValueError(f"translator: positions are alike when written: {few(names)}")
    if is_headless():
        fig = walk_strip(positions, profiles, frames, shape, label)
        plt.close(fig)
        return fig

    def draw(name: str) -> Figure:
        return walk_step(names.index(name), profiles, frames, shape, f"{label}: {name}")

    return slider(label, names, draw, names[start])


def components(
    markers: Mapping[str, pd.DataFrame], cells: Mapping[str, Mapping[str, pd.DataFrame]], label: str = "component"
) -> Any:
    """A menu of components: choose one, and see its marker genes and cells of it, generated beside measured ones.

    `markers`: name of the component -> table of `components.markers`; `cells`: the same names -> name -> counts
    [n_cells, n_genes], as for `code_plots.markers_and_cells`, which draws them. The menu works by keyboard. Headless,
    the first component. Raises ValueError where the names differ or there are none. Introduced in notebook 05.
    """
    if not markers or set(markers) != set(cells):
        raise ValueError(f"components: markers of {few(markers)} and cells of {few(cells)}; both are needed of each")
    return choose({label: list(markers)}, lambda name: markers_and_cells(markers[name], cells[name], f"{label} {name}"))


def links(
    effects: pd.DataFrame, genes: pd.DataFrame, known: pd.DataFrame | None = None, label: str = "effect of silencing"
) -> Any:
    """Choose a gene and a cell type, and see the effects on the peaks around its TSS (`track_plots.track`).

    `effects`: gene, peak, group, score, distance, a row each (`cis.silenced`); `genes`: the table of genes, whose
    `strand` points the arrow; `known`: gene, peak, and where it is known types (";"-joined), links to be marked.
    Headless, the first gene in up to three types. Raises ValueError for a table without rows.
    Introduced in notebook 06.
    """
    if effects.empty:
        raise ValueError("links: there are no effects to show; choose genes with peaks around them")
    names = list(dict.fromkeys(effects["gene"].astype(str)))
    types = list(dict.fromkeys(effects["group"].astype(str)))
    if is_headless():
        fig = locus(effects, names[0], types[:3], genes, known, label)
        plt.close(fig)
        return fig
    draw = functools.partial(locus, effects, genes=genes, known=known, label=label)
    return choose({"gene": names, "cell type": types}, lambda gene, group: draw(gene, [group]))


def tissue(mdata: Any, features: Mapping[str, Sequence[str]], section: str, xy: np.ndarray | None = None) -> Any:
    """Choose a section, a feature and the modality that it is told from: measured, translated and corrected on the
    tissue, all on one scale.

    `features`: modality -> names of some of its features; `section`: a column of `mdata.obs`; `xy` [n_obs, 2]: where
    samples lie, `mdata.obsm["spatial"]` unless given (without coordinates, a plane of an embedding). Drawn are the
    modality's values and its layers as `latents.write` leaves them; a layer that is not there is left out. Menus work
    by keyboard. Headless, the first section and feature, told from the first other modality. Raises ValueError for
    features that are not there and where no coordinates are. Introduced in notebook 07.
    """
    if section not in mdata.obs or not any(features.values()):
        raise ValueError(f"tissue: name one feature or more, and a column of obs with sections, not {section!r}")
    for m, names in features.items():
        if m not in mdata.mod:
            raise ValueError(f"tissue: there is no modality '{m}'; there are {few(mdata.mod)}")
        if lost := [name for name in names if name not in mdata.mod[m].var_names]:
            raise ValueError(f"tissue: modality '{m}' has no feature {few(lost)}")
    if xy is None and "spatial" not in mdata.obsm:
        raise ValueError("tissue: no coordinates in mdata.obsm['spatial']; give xy, such as a plane of an embedding")
    xy, where = np.asarray(mdata.obsm["spatial"] if xy is None else xy, float), mdata.obs[section].astype(str)
    named = {f"{m}: {name}": (m, name) for m, names in features.items() for name in names}

    def draw(chosen: str, feature: str, source: str) -> Figure:
        m, name = named[feature]
        rows = np.flatnonzero((where == chosen).to_numpy())
        maps = tissue_maps(mdata, m, name, source)
        fig, axes = plt.subplots(1, len(maps), figsize=(2 * WIDTH, 1.9), squeeze=False)
        feature_maps(axes[0], xy[rows], {title: values[rows] for title, values in maps.items()}, name)
        fig.suptitle(f"{feature} in {chosen}", fontsize=8)
        return fig

    first = named[next(iter(named))][0]
    sources = sorted(mdata.mod, key=lambda m: m == first)  # another modality first: it is the harder task
    return choose({section: list(dict.fromkeys(where)), "feature": list(named), "told from": sources}, draw)


def tissue_maps(mdata: Any, modality: str, feature: str, source: str) -> dict[str, np.ndarray]:
    """Title -> values [n_obs] of one feature: measured, told from `source`, the same without batches, from everything,
    and that without batches. NaN where the modality is not measured. Introduced in notebook 07.
    """
    adata = mdata.mod[modality]
    at = adata.var_names.get_loc(feature)
    layers = {f"from {source}": f"from_{source}", f"from {source}, corrected": f"corrected_from_{source}"}
    layers |= {"from everything": "denoised", "from everything, corrected": "corrected"}
    shown = {"measured": adata.X} | {title: adata.layers[key] for title, key in layers.items() if key in adata.layers}
    position = adata.obs_names.get_indexer(mdata.obs_names)
    maps = {}
    for title, x in shown.items():
        column = x[:, [at]]
        column = np.asarray(column.todense() if hasattr(column, "todense") else column, float).ravel()
        maps[title.replace(", ", "\n")] = np.where(position >= 0, column[position], np.nan)
    return maps


def is_headless() -> bool:
    """Whether the notebook is executed by the runner rather than by a person. Introduced in notebook 01."""
    return "WORKBOOK_RUN_DIR" in os.environ


def png(fig: Figure) -> bytes:
    """A figure as PNG bytes; the figure is closed. Introduced in notebook 01."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    plt.close(fig)
    return buffer.getvalue()


def walk_step(
    at: int,
    profiles: Mapping[str, pd.DataFrame],
    frames: Mapping[str, np.ndarray],
    shape: Sequence[int] = (),
    title: str = "",
    n_features: int = 12,
) -> Figure:
    """One step of a walk through latent space: decoded profiles as bars, decoded pictures beside them.

    `profiles`: name -> [n_steps, n_features], `frames`: name -> pictures [n_steps, h*w*c] of `shape`; either may be
    empty. The `n_features` features that change most are shown, in the order in which they peak, on a scale that all
    steps share, so that only what changes moves. Introduced in notebook 04.
    """
    n = len(profiles) + len(frames)
    widths = [1.3] * len(profiles) + [1] * len(frames)
    fig, axes = plt.subplots(1, n, figsize=(2 * WIDTH, HEIGHT), squeeze=False, width_ratios=widths)
    for ax, (name, profile) in zip(axes[0], profiles.items(), strict=False):
        shown = changing(profile, n_features)
        ax.barh(range(shown.shape[1]), shown.iloc[at], color=MODALITY.get(name, PALETTE[0]), height=0.75)
        ax.set_yticks(range(shown.shape[1]), shortened(shown.columns, 20))
        ax.tick_params(axis="y", length=0)
        low, high = min(0.0, shown.to_numpy().min()), max(0.0, shown.to_numpy().max())
        pad = 0.03 * (high - low or 1)
        ax.set(xlim=(low - pad, high + pad), ylim=(shown.shape[1] - 0.4, -0.6), title=name)
        ax.axvline(0, color="k", lw=0.6)
    for ax, (name, x) in zip(axes[0, len(profiles) :], frames.items(), strict=True):
        ax.imshow(as_colours(np.asarray(x)[at : at + 1], shape)[0], interpolation="nearest")
        ax.set_axis_off()
        ax.set_title(name)
    fig.suptitle(title, fontsize=8)
    return fig


def changing(profile: pd.DataFrame, n: int = 12) -> pd.DataFrame:
    """The `n` columns of a profile [n_steps, n_features] that vary most, in the order in which they peak.

    Introduced in notebook 04.
    """
    top = profile.iloc[:, np.argsort(-profile.to_numpy(float).var(0), kind="stable")[:n]]
    return top.iloc[:, np.argsort(top.to_numpy(float).argmax(0), kind="stable")]


def walk_strip(
    positions: Sequence,
    profiles: Mapping[str, pd.DataFrame],
    frames: Mapping[str, np.ndarray],
    shape: Sequence[int] = (),
    label: str = "",
    n_features: int = 12,
) -> Figure:
    """A whole walk on paper: profiles as heat maps of the features that change most, above the decoded pictures.

    A column per step, of ten at most; otherwise as `walk_step`, whose figures a slider shows. Introduced in
    notebook 04.
    """
    some = spaced(len(positions))
    side = (2 * WIDTH - 1.2) / len(some)
    heights = [0.13 * n_features] * len(profiles) + ([len(frames) * side * shape[0] / shape[1]] if frames else [])
    size = (2 * WIDTH, sum(heights) + 0.3 * len(heights) + 0.3)
    fig, axes = plt.subplots(len(heights), figsize=size, squeeze=False, sharex=True, height_ratios=heights)
    for ax, (name, profile) in zip(axes[:, 0], profiles.items(), strict=False):
        shown = changing(profile, n_features).iloc[some]
        image = ax.imshow(shown.T, aspect="auto", interpolation="nearest")
        ax.set_yticks(range(shown.shape[1]), shortened(shown.columns, 16), fontsize=6)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(name)
        fig.colorbar(image, ax=ax, aspect=15, pad=0.01)
    if frames:
        mosaic(axes[-1, 0], {name: np.asarray(x)[some] for name, x in frames.items()}, shape)
    last = axes[-1, 0]
    last.set_xticks(range(len(some)), written(np.asarray(positions)[some]))
    last.tick_params(labeltop=False, labelbottom=True, length=0)
    last.xaxis.set_label_position("bottom")
    last.set_xlabel(label)
    return fig
