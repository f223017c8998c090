"""Widgets for the Explore sections: everything is drawn beforehand, so a slider only swaps pictures."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure


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


def is_headless() -> bool:
    """Whether the notebook is executed by the runner rather than by a person. Introduced in notebook 01."""
    return "WORKBOOK_RUN_DIR" in os.environ


def png(fig: Figure) -> bytes:
    """A figure as PNG bytes; the figure is closed. Introduced in notebook 01."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    plt.close(fig)
    return buffer.getvalue()
