"""Robustness: a linear probe of clean features, tested on corrupted images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.augment import CenterView, View
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation.corruptions import STRENGTHS, CorruptedView, corruptions_of
from ssl_toolkit.evaluation.features import Precision, extract_features
from ssl_toolkit.evaluation.intervals import Interval, bootstrap_interval, confidence_interval
from ssl_toolkit.evaluation.logistic_regression import LinearClassifier
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.shortcut_rows import Weights
from ssl_toolkit.modules.backbone import Backbone

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class RobustnessRow:
    """One set of weights. Accuracies are fractions in ``[0, 1]``, with 95 % intervals.

    Attributes:
        weights: ``given`` or ``random``.
        representation: What the linear probe sees: the best on the validation images, ``pooled`` or a stage.
        clean: Accuracy on the same images as they are.
        top1: By corruption, for the strengths 1 to 5.
        mean: Over all corruptions and strengths; its interval is a bootstrap over images.
        relative: ``mean`` over ``clean``; None if that is 0.
    """

    weights: Literal["given", "random"]
    representation: str
    clean: Interval
    top1: dict[str, list[Interval]]
    mean: Interval
    relative: float | None


@dataclass(frozen=True)
class Robustness:
    """Robustness with the given weights and with random ones.

    Attributes:
        image_size: Side in pixels of the corrupted images.
        num_images: Test images that were corrupted, each in all ways.
        rows: One for the given and one for the random weights.
        difference: ``mean`` with the given weights minus that with random weights, with its paired bootstrap interval;
            None without random weights.
        seconds: Wall-clock time.
    """

    image_size: int
    num_images: int
    rows: list[RobustnessRow]
    difference: Interval | None
    seconds: float

    def table(self) -> Table:
        """A rich table: top-1 of the given weights by corruption and strength, its mean, and that of random weights."""
        from rich import box
        from rich.table import Table

        given, others = self.rows[0], self.rows[1:]
        table = Table(
            title=f"top-1 in % on {self.num_images:,} corrupted test images of {self.image_size} px",
            caption=self._caption(),
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        table.add_column("corruption", no_wrap=True)
        for name in (*map(str, STRENGTHS), "mean", *(["random"] if others else [])):
            table.add_column(name, justify="right", no_wrap=True)
        for name, values in given.top1.items():
            means = [_mean(row.top1[name]) for row in self.rows]
            table.add_row(name, *(f"{100 * value:.1f}" for value in (*(each.value for each in values), *means)))
        return table

    def _caption(self) -> str:
        lines = []
        for row in self.rows:
            share = "" if row.relative is None else f", {100 * row.relative:.0f} % of it"
            lines.append(
                f"{row.weights} weights ({row.representation}): clean {_percent(row.clean)}, mean {_percent(row.mean)}"
                f"{share}"
            )
        if self.difference is not None:
            value, low, high = (100 * each for each in self.difference)
            lines.append(f"mean over random weights: {value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})")
        return "\n".join([*lines, f"strengths are our own, not ImageNet-C's; {self.seconds:,.0f} s"])


class Probed(NamedTuple):
    """A network with the linear classifier of one of its representations."""

    network: Backbone
    representation: str
    classifier: LinearClassifier


def measure_robustness(
    tested: Mapping[Weights, Probed],
    data: ImageData,
    image_size: int,
    most: int,
    *,
    seed: int = 0,
    precision: Precision = "auto",
    steps: Steps | None = None,
) -> Robustness:
    """Tests linear classifiers of clean training features on corrupted test images.

    Args:
        tested: By weights.
        data: Images with the split test.
        image_size: Side in pixels of what the network sees; an image is cropped first, then corrupted.
        most: Of so many test images, chosen by chance if there are more.
        seed: Of the choice and the bootstrap.
        precision: As in `extract_features`.
        steps: Progress.
    """
    start = time.perf_counter()
    steps = steps or Steps(None)
    chosen = data.choose("test", most, seed)
    rows, means = [], {}
    for weights, each in tested.items():
        names = corruptions_of(data.channels)
        steps.begin(f"corrupted images with {weights} weights", (1 + len(names) * len(STRENGTHS)) * len(chosen))

        def correct(view: View, each: Probed = each) -> Tensor:
            features = extract_features(
                each.network, data.loader("test", indices=chosen), view, stages=each.representation != "pooled",
                precision=precision, count=steps.advance,
            )  # fmt: skip
            return each.classifier(features.features[each.representation]).argmax(dim=1) == features.labels

        clean = confidence_interval(correct(CenterView(image_size)))
        found = {name: [correct(CorruptedView(image_size, name, strength)) for strength in STRENGTHS] for name in names}
        means[weights] = torch.stack([one for several in found.values() for one in several]).double().mean(dim=0)
        mean = _bootstrap(means[weights], seed)
        top1 = {name: [confidence_interval(one) for one in several] for name, several in found.items()}
        relative = mean.value / clean.value if clean.value else None
        rows.append(RobustnessRow(weights, each.representation, clean, top1, mean, relative))
        steps(f"robustness with {weights} weights: clean {_percent(clean)}, corrupted {_percent(mean)}")
    difference = _bootstrap(means["given"] - means["random"], seed) if "random" in means else None
    return Robustness(image_size, len(chosen), rows, difference, time.perf_counter() - start)


def _bootstrap(values: Tensor, seed: int) -> Interval:
    return bootstrap_interval(lambda drawn, _: float(drawn.mean()), values, values, seed=seed)


def _mean(intervals: list[Interval]) -> float:
    return sum(each.value for each in intervals) / len(intervals)


def _percent(interval: Interval) -> str:
    value, low, high = (100 * each for each in interval)
    return f"{value:.1f} % ({low:.1f}-{high:.1f})"
