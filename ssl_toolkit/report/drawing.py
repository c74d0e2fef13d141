"""Matplotlib figures for a page, in its fonts and its colours of light and dark mode.

Only matplotlib's object interface is used: no window system, no state that outlives a call.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# stand-ins for the page's ink and rules, replaced in the SVG
INK = "#010203"
RULE = "#040506"
# Okabe and Ito, "Color universal design" (2008): told apart by the colour-blind, and on light and dark grounds
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
FONT_SIZE = 8.0


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes.

    Args:
        width: In inches of 96 pixels on the screen.
        height: Likewise.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(labelsize=FONT_SIZE, colors=INK, color=RULE, length=3)
    for side, spine in axes.spines.items():
        spine.set_color(RULE)
        spine.set_visible(side in ("left", "bottom"))
    return figure, axes


def to_svg(figure: Figure) -> str:
    """An SVG element that takes the colours and the fonts of the page around it.

    Args:
        figure: Its texts are shown as they are, without the meaning that ``$`` has for matplotlib.
    """
    import matplotlib as mpl
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # pyright: ignore[reportAttributeAccessIssue] - findobj filters by the class
    stream = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # text stays text, to be set by the browser; it is only measured here, with whatever font there is
    with mpl.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure.savefig(stream, format="svg", transparent=True, dpi=192, metadata=metadata)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(RULE, "var(--rule)")
    # the width and the height in points make way for the page's own, the view box stays
    width, _ = figure.get_size_inches()
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 width="{96 * width:.0f}">', svg, count=1)
