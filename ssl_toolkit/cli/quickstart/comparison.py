"""The rows of the quickstart's table: each way to a classifier, on the same small labelled sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_toolkit.augment import CenterView
from ssl_toolkit.cli.train import train
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import Features, extract_features, few_label_draws, few_label_probe, mean_and_spread
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.tracking.rates import rate_text

# one strength of the penalty for every row, so that no further labels are needed to choose it
STRENGTH = 0.1


@dataclass(frozen=True)
class Result:
    """One way to a classifier.

    Attributes:
        weights: Where the backbone's weights come from.
        transfer: What was trained on the labelled images.
        draws: Top-1 on the held-out images for each labelled set, each in [0, 1].
        minutes: Pretraining and one transfer together.
        images_per_second: Typical speed of the training; None where nothing but a head was trained.
    """

    weights: str
    transfer: str
    draws: list[float]
    minutes: float
    images_per_second: float | None

    def cells(self) -> tuple[str, ...]:
        """The row's cells."""
        mean, spread, _ = mean_and_spread(self.draws)
        speed = "–" if self.images_per_second is None else rate_text(self.images_per_second)
        return self.weights, self.transfer, f"{100 * mean:.1f} ± {100 * spread:.1f} %", f"{self.minutes:.1f}", speed


def frozen(
    backbone: Backbone, data: ImageData, labels_per_class: int, num_draws: int, seed: int
) -> tuple[Features, list[float]]:
    """Linear heads on frozen features.

    Args:
        backbone: The backbone.
        data: Images with the splits train and test.
        labels_per_class: Labelled images of each class.
        num_draws: How many labelled sets.
        seed: Of the draws.

    Returns:
        The features of the test images, and top-1 for each labelled set.
    """
    view = CenterView(data.image_size)
    train_features, test_features = (
        extract_features(backbone, data.loader(split), view) for split in ("train", "test")
    )
    fitted = train_features.features["pooled"], train_features.labels
    tested = test_features.features["pooled"], test_features.labels
    draws = few_label_draws(train_features.labels, labels_per_class, num_draws, seed)
    probes = few_label_probe(fitted, fitted, tested, draws, strengths=[STRENGTH]).probes
    return test_features, [probe.top1 for probe in probes]


def supervised(options: list[str], out: Path, num_draws: int, seed: int) -> tuple[list[float], float | None]:
    """Trains everything from random weights, once for each labelled set.

    Args:
        options: Those of ``transfer``.
        out: Folder of the runs.
        num_draws: How many labelled sets.
        seed: Of the first run; the others count up.

    Returns:
        Top-1 of the test images for each run, and the typical number of images a second.
    """
    top1 = []
    for draw in range(num_draws):
        run = out / f"draw-{draw}"
        train("transfer", [*options, "--seed", str(seed + draw), "--out", str(run)], quietly=True)
        top1.append(next(value for value in read_metrics(run)["test/top1"] if value == value))
    return top1, typical_speed(out / "draw-0")


def typical_speed(run: Path) -> float | None:
    """The median of a run's images a second, or None if it was too short to measure."""
    speeds = np.array(read_metrics(run).get("train/images_per_second", []), dtype=float)
    speeds = speeds[np.isfinite(speeds)]
    return float(np.median(speeds)) if len(speeds) else None
