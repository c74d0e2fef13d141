"""Invariance: how much alike a network sees two views of an image, beside how well it spreads different images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ssl_toolkit.augment import RandomView, View
from ssl_toolkit.batch import Images
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation.features import Precision, extract_features
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.representation import alignment, lidar, uniformity
from ssl_toolkit.evaluation.shortcut_rows import Weights
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.random import fold_in

# more images and views only take time
_MAX_IMAGES = 1000
NUM_VIEWS = 4


@dataclass(frozen=True)
class InvarianceRow:
    """Pooled features of random views of test images, with one set of weights.

    Attributes:
        weights: ``given`` or ``random``.
        alignment: Mean squared distance of two views of an image, on the sphere; lower is better.
        uniformity: Logarithm of the mean Gaussian potential of two images; lower is better.
        lidar: Effective rank of what tells images apart, measured in what differs between views of one image.
    """

    weights: Literal["given", "random"]
    alignment: float
    uniformity: float
    lidar: float


@dataclass(frozen=True)
class Invariance:
    """Invariance with the given weights and with random ones. The figures are of this number of images and views, and
    of these views: only figures of the same are comparable.

    Attributes:
        num_images: Test images.
        num_views: Views of each.
        view: What the views are.
        rows: One for the given and one for the random weights.
    """

    num_images: int
    num_views: int
    view: str
    rows: list[InvarianceRow]

    def words(self) -> list[str]:
        """What was found, as lines of text."""
        lines = [
            f"{row.weights} weights: alignment {row.alignment:.3f} (lower is better), uniformity {row.uniformity:.2f} "
            f"(lower is better), LiDAR {row.lidar:.1f} (higher is better)"
            for row in self.rows
        ]
        return [
            f"invariance: {self.num_views} random views of {self.num_images:,} test images",
            *map("  {}".format, lines),
        ]


class _Numbered(View):
    """The random view of a number: another number is another one."""

    def __init__(self, view: View, number: int) -> None:
        self._view, self._number = view, number

    def make(self, images: Images, keys: Tensor) -> Tensor:
        return self._view(images, fold_in(fold_in(keys, "invariance"), self._number))


def measure_invariance(
    networks: Mapping[Weights, Backbone],
    data: ImageData,
    image_size: int,
    *,
    seed: int = 0,
    precision: Precision = "auto",
    steps: Steps | None = None,
) -> Invariance:
    """Alignment, uniformity and LiDAR of pooled features, over random views (`RandomView`, preset ``simclr``).

    Args:
        networks: By weights.
        data: Images with the split test.
        image_size: Side of the views in pixels.
        seed: Of the choice of at most 1,000 test images.
        precision: As in `extract_features`.
        steps: Progress.

    Raises:
        ValueError: There are fewer than two test images.
    """
    steps = steps or Steps(None)
    chosen = data.choose("test", _MAX_IMAGES, seed)
    view, rows = RandomView(image_size), []
    for weights, network in networks.items():
        steps.begin(f"invariance with {weights} weights", NUM_VIEWS * len(chosen))
        features = torch.stack(
            [
                extract_features(
                    network, data.loader("test", indices=chosen), _Numbered(view, number), precision=precision,
                    count=steps.advance,
                ).features["pooled"]
                for number in range(NUM_VIEWS)
            ]
        )  # fmt: skip
        # of each image one view: two views of one image are no two images
        rows.append(InvarianceRow(weights, alignment(features), uniformity(features[0]), lidar(features)))
    return Invariance(len(chosen), NUM_VIEWS, repr(view), rows)
