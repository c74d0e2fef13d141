"""The figures of the pages: curves, pictures in rows and columns, nearest neighbours, bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_toolkit.report.drawing import COLOURS, FONT_SIZE, INK, RULE, new_figure
from ssl_toolkit.report.tiles import tile, to_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 600
# of the average character, in inches
CHARACTER_WIDTH = 0.07
SAME, OTHER = "#009e73", "#d55e00"


def curves(
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str,
    references: Mapping[str, float] | None = None,
    percent: bool = False,
    xlabel: str = "step",
    smooth: bool = True,
) -> Figure:
    """Curves in one pair of axes.

    Args:
        lines: For each curve by its name, x and y: arrays of shape ``[n]``; points without a finite y are left out.
        title: What is shown, with its unit.
        references: Horizontal lines by name: chance, say.
        percent: The values are fractions in [0, 1], to be shown in %.
        xlabel: What x is.
        smooth: Draw a long curve as a moving average over its faint self.
    """
    figure, axes = new_figure(3.65, 2.3)
    scale = 100.0 if percent else 1.0
    for (name, (x, y)), colour in zip(lines.items(), _cycle(len(lines)), strict=True):
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float) * scale
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        x, y = _thinned(x), _thinned(y)
        if smooth and len(y) > 100:
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.25)
            y = _smoothed(y, len(y) // 30)
        marker = "o" if len(y) <= 20 else ""
        axes.plot(x, y, color=colour, linewidth=1.5, marker=marker, markersize=3, label=_shortened(name))
    for name, value in (references or {}).items():
        axes.axhline(value * scale, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        axes.annotate(
            _shortened(name),
            (1, value * scale),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=FONT_SIZE - 1,
            color=INK,
        )
    _finish(axes, title, xlabel)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=FONT_SIZE, labelcolor=INK, handlelength=1.2)
    return figure


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    errors: Sequence[float] | None = None,
    draws: Sequence[Sequence[float]] | None = None,
    title: str = "top-1 (%)",
    references: Mapping[str, float] | None = None,
) -> Figure:
    """Horizontal bars, from top to bottom, one for each row of a table of fractions.

    Args:
        labels: A name for each bar.
        values: Fractions in [0, 1].
        errors: Half the length of each error bar, in the same unit.
        draws: What each value is the mean of, shown as points.
        title: What is shown.
        references: Vertical lines by name: chance, say.
    """
    figure, axes = new_figure(7.4, 0.75 + 0.34 * len(labels))
    places = np.arange(len(labels))
    fractions = 100 * np.asarray(values, dtype=float)
    spread = 100 * np.asarray(errors, dtype=float) if errors is not None else np.zeros(len(labels))
    axes.barh(places, fractions, height=0.62, color=COLOURS[0], alpha=0.75)
    if errors is not None:
        axes.errorbar(fractions, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
    for place, row in zip(places, draws or [], strict=False):
        points = 100 * np.asarray(row, dtype=float)
        # a little below the error bar, which would hide them
        axes.plot(points, np.full(len(points), place + 0.2), "o", color=INK, markersize=2.5, alpha=0.7)
    ends = fractions + spread
    if draws:
        ends = np.maximum(ends, [100 * max(row, default=0) for row in draws])
    for place, fraction, end in zip(places, fractions, ends, strict=True):
        axes.annotate(
            f"{fraction:.1f}",
            (end, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=FONT_SIZE,
            color=INK,
        )
    for name, value in (references or {}).items():
        axes.axvline(100 * value, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        axes.annotate(
            _shortened(name),
            (100 * value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, 2),
            textcoords="offset points",
            ha="center",
            fontsize=FONT_SIZE - 1,
            color=INK,
        )
    axes.set_yticks(places, [_shortened(label) for label in labels])
    axes.set_xlim(0, max(1.0, 1.12 * float(np.max(ends, initial=0.0))))
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(title, fontsize=FONT_SIZE, color=INK)
    return figure


def image_grid(
    images: NDArray, column_titles: Sequence[str] = (), row_titles: Sequence[str] = (), max_width: float = 7.4
) -> Figure:
    """Pictures in rows and columns: the views of a task, a row for each image.

    Args:
        images: Array of shape ``[rows, columns, height, width, channels]``, uint8 or floats in [0, 1].
        column_titles: Names of the columns.
        row_titles: Names of the rows.
        max_width: In inches of 96 pixels on the screen.
    """
    return _pictures(tile(images), column_titles, row_titles, max_width)


def neighbours(
    queries: NDArray, nearest: NDArray, same: ArrayLike, row_titles: Sequence[str] = (), max_width: float = 7.4
) -> Figure:
    """Nearest neighbours: images, each beside those with the most similar features.

    A neighbour of the query's class has a whole green frame, any other a broken orange one.

    Args:
        queries: Array of shape ``[rows, height, width, channels]``, uint8 or floats in [0, 1].
        nearest: Array of shape ``[rows, k, height, width, channels]``: the neighbours, the nearest first.
        same: Booleans of shape ``[rows, k]``: whether query and neighbour are of one class.
        row_titles: Names of the queries.
        max_width: In inches of 96 pixels on the screen.
    """
    same = np.asarray(same, dtype=bool)
    rows, k, height, width, _ = nearest.shape
    factor = max(1, round(64 / min(height, width)))
    queries, nearest = (to_rgb(images).repeat(factor, axis=-3).repeat(factor, axis=-2) for images in (queries, nearest))
    border = 4
    framed = np.stack([
        np.stack([_framed(image, SAME if alike else OTHER, border, broken=not alike) for image, alike in pairs])
        for pairs in ([*zip(images, alike, strict=True)] for images, alike in zip(nearest, same, strict=True))
    ])  # fmt: skip
    plain = np.stack([_framed(image, None, border) for image in queries])
    # an empty half column sets the query apart
    space = np.zeros((rows, plain.shape[1], plain.shape[2] // 3, 4), dtype=np.uint8)
    gap = np.zeros((rows, plain.shape[1], 4, 4), dtype=np.uint8)
    strips = [plain, space]
    for column in range(k):
        strips += [framed[:, column], gap]
    lines = np.concatenate(strips[:-1], axis=2)
    lines = np.concatenate([lines, np.zeros((rows, 4, lines.shape[2], 4), dtype=np.uint8)], axis=1)
    canvas = lines.reshape(-1, lines.shape[2], 4)[:-4]
    return _pictures(canvas, (), row_titles, max_width)


def _framed(image: NDArray[np.uint8], colour: str | None, border: int, broken: bool = False) -> NDArray[np.uint8]:
    height, width, _ = image.shape
    framed = np.zeros((height + 2 * border, width + 2 * border, 4), dtype=np.uint8)
    if colour is not None:
        framed[..., :3] = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        row, column = np.indices(framed.shape[:2])
        framed[..., 3] = np.where(broken & ((row + column) // 6 % 2 == 1), 0, 255)
    framed[border:-border, border:-border] = np.concatenate([image, np.full_like(image[..., :1], 255)], axis=-1)
    return framed


def _pictures(
    canvas: NDArray[np.uint8], column_titles: Sequence[str], row_titles: Sequence[str], max_width: float
) -> Figure:
    height, width, _ = canvas.shape
    row_titles = [_shortened(title) for title in row_titles]
    side = 0.1 + max(map(len, row_titles), default=0) * CHARACTER_WIDTH
    # at most as large as its pixels are on the screen
    shown = min(max_width - side, width / 96)
    figure, axes = new_figure(shown + side, shown * height / width + (0.3 if any(column_titles) else 0.05))
    axes.imshow(canvas, interpolation="none", aspect="equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([(place + 0.5) * width / len(column_titles) for place in range(len(column_titles))])
    most = int(shown / max(len(column_titles), 1) / CHARACTER_WIDTH)
    axes.set_xticklabels([_shortened(title, most) for title in column_titles])
    axes.set_yticks([(place + 0.5) * height / len(row_titles) for place in range(len(row_titles))], row_titles)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    return figure


def _finish(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=FONT_SIZE + 1, color=INK, loc="left")
    axes.set_xlabel(xlabel, fontsize=FONT_SIZE, color=INK)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.locator_params(nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _cycle(num: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(num)]


def _thinned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over equal runs of points, at most `MAX_POINTS` of them."""
    run = math.ceil(len(values) / MAX_POINTS)
    if run <= 1:
        return values
    whole = len(values) // run * run
    means = values[:whole].reshape(-1, run).mean(axis=1)
    return np.append(means, values[whole:].mean()) if whole < len(values) else means


def _smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """A moving average, over fewer points at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, mode="same") / np.convolve(np.ones(len(values)), kernel, mode="same")


def _shortened(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"
