"""An executed notebook as one HTML file that works offline: pictures inside, formulas drawn, code folded."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("report.html.j2")
# Formulas, but not in code: fenced blocks and `code` are matched first and left alone.
_MATH = re.compile(r"```.*?```|`[^`\n]*`|\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\d$])", re.DOTALL)
_SHOWN = [
    "text/html",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/markdown",
    "text/latex",
    "text/plain",
]


def to_html(notebook: Any, title: str) -> str:
    """HTML page of an executed notebook (an nbformat node). Interactive widgets show their text only.

    Introduced in notebook 01.
    """
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    copy = type(notebook)(notebook | {"cells": [_drawn(cell) for cell in notebook.cells]})
    options = Config()
    options.NbConvertBase.display_data_priority = _SHOWN
    options.CSSHTMLHeaderPreprocessor.style = "default"
    exporter = HTMLExporter(config=options, raw_template=TEMPLATE.read_text(encoding="utf-8"))
    page, _ = exporter.from_notebook_node(copy, resources={"metadata": {"name": title}})
    return page


def _drawn(cell: Any) -> Any:
    if cell.cell_type != "markdown":
        return cell
    return type(cell)(cell | {"source": _MATH.sub(_picture, cell.source)})


def _picture(match: re.Match[str]) -> str:
    """An SVG picture of a formula by matplotlib's mathtext; what it cannot draw stays TeX source."""
    display, inline = match.groups()
    if display is None and inline is None:
        return match[0]
    rows = re.split(r"\\\\(?![a-zA-Z])", re.sub(r"\\(begin|end)\{(aligned|align\*?)\}|&", "", display or inline))
    try:
        images = [_svg_image(" ".join(row.split()), 13 if display else 12) for row in rows if row.strip()]
    except ValueError:
        images = [f"<code>{html.escape(' '.join((display or inline).split()))}</code>"]
    drawn = "<br>".join(images)
    return f'\n\n<div class="display-math">{drawn}</div>\n\n' if display else drawn


def _spelled_out(tex: str) -> str:
    """TeX as mathtext wants it: arguments in braces, one kind of fraction."""
    tex = re.sub(r"\\[td]frac", r"\\frac", tex)
    tex = re.sub(r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}", tex)
    return re.sub(r"\\(mathcal|mathbb|mathbf|mathrm|sqrt)\s+(\w)", r"\\\1{\2}", tex)


def _svg_image(tex: str, size: int) -> str:
    from matplotlib import rc_context
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    buffer = io.BytesIO()
    with rc_context({"mathtext.fontset": "cm", "svg.hashsalt": "workbook"}):
        depth = math_to_image(f"${_spelled_out(tex)}$", buffer, prop=FontProperties(size=size), format="svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    style = f"vertical-align:-{depth:.1f}pt"
    return f'<img class="math" style="{style}" alt="{html.escape(tex)}" src="data:image/svg+xml;base64,{data}">'
