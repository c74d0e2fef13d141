"""Dense probe: segmentation masks from frozen maps, by one linear classifier of every place (a 1x1 convolution).

The scores of a pixel are those of the map's places, interpolated bilinearly. To interpolate the features first gives
the same scores, as the classifier is linear; so it is fitted to interpolated features of sampled pixels, with the
cross-entropy that all pixels would have on average, and the maps of all images are never held at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data import ImageData, Split
from ssl_toolkit.data.masks import Masks
from ssl_toolkit.evaluation.dense_maps import DenseMaps, DenseSettings, Sample, Tested
from ssl_toolkit.evaluation.dense_rows import DenseClass, DenseDifference, DenseProbe, DenseRow
from ssl_toolkit.evaluation.intervals import Interval
from ssl_toolkit.evaluation.linear_probe import linear_probe
from ssl_toolkit.evaluation.logistic_regression import LinearClassifier
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.resampled_pixels import accuracy_of, miou_of, percentile_interval, resampled_sums
from ssl_toolkit.evaluation.segmentation import class_iou, image_confusions, mean_iou
from ssl_toolkit.evaluation.shortcut_rows import Weights
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.random import sample_order


def check_dense(masks: str | None, num_classes: int | None, num_pixels: int) -> None:
    """Raises a ValueError for options that cannot be, before the images are read."""
    if masks is None and num_classes is not None:
        raise ValueError("--mask_classes is for --masks, which is not given")
    if masks is not None and not masks:
        raise ValueError("--masks is empty; give the folder of the masks")
    if num_pixels < 1:
        raise ValueError(f"--mask_pixels is {num_pixels}, expected at least 1")


def measure_dense(
    networks: Mapping[Weights, Backbone],
    data: ImageData,
    masks: Masks,
    settings: DenseSettings,
    steps: Steps | None = None,
) -> DenseProbe:
    """Fits and tests the dense probe of each stage. The networks are left as they are.

    Args:
        networks: The ``given`` weights, and ``random`` ones if they are wanted.
        data: Images with the splits train, val and test; labels are not read.
        masks: Of some of these images; the others are left out.
        settings: How it is fitted.
        steps: Progress.

    Raises:
        ValueError: The training masks show a single class, a split has no pixel that counts, or a feature is not
            finite.
    """
    start = time.perf_counter()
    steps = steps or Steps(None)
    members = {split: masks.members(split) for split in get_args(Split)}
    fitted: list[_Fitted] = []
    sampled: dict[Split, Sample] = {}
    for weights, network in networks.items():
        maps = DenseMaps(network, data, masks, settings, weights, steps)
        sampled = _sample(maps, members, masks, settings)
        fitted += _fit(maps, weights, sampled, members["test"], steps)
    steps.begin("dense probe, intervals")
    sums = resampled_sums([each.tested.counts for each in fitted], seed=settings.seed)
    rows, draws = [], {}
    for each, drawn in zip(fitted, sums, strict=True):
        total = each.tested.counts.sum(dim=0)
        mious = miou_of(drawn, total)
        draws[each.weights, each.stage] = miou_of(total), mious
        rows.append(
            DenseRow(
                each.weights,
                each.stage,
                each.map_side,
                each.num_features,
                percentile_interval(miou_of(total), mious),
                percentile_interval(accuracy_of(total), accuracy_of(drawn)),
                each.miou_val,
                each.strength,
            )
        )

    def difference(given: str, random: str) -> Interval:
        (value, drawn), (other, other_drawn) = draws["given", given], draws["random", random]
        return percentile_interval(value - other, drawn - other_drawn)

    has_random = "random" in networks
    best = {weights: _best_stage(rows, weights) for weights in networks}
    confusion = next(each.tested.confusion for each in fitted if (each.weights, each.stage) == ("given", best["given"]))
    trivial, total = int(sampled["train"].counts.argmax()), int(confusion.sum())
    everywhere = torch.zeros_like(confusion)
    everywhere[:, trivial] = confusion.sum(dim=1)
    return DenseProbe(
        masks.title,
        settings.image_size,
        {split: len(each) for split, each in members.items()},
        {split: len(each.labels) for split, each in sampled.items()} | {"test": total},
        masks.class_names[trivial],
        mean_iou(everywhere),
        int(everywhere[trivial, trivial]) / total,
        rows,
        [DenseDifference(row.stage, difference(row.stage, row.stage)) for row in rows if row.weights == "random"],
        difference(best["given"], best["random"]) if has_random else None,
        _classes(confusion, masks.class_names),
        [(row, column, int(confusion[row, column])) for row, column in confusion.nonzero().tolist()],
        masks.remarks,
        time.perf_counter() - start,
    )


class _Fitted(NamedTuple):
    """The probe of one stage with one set of weights, and what it did with the test images."""

    weights: Weights
    stage: str
    map_side: int
    num_features: int
    miou_val: float
    strength: float
    tested: Tested


def _sample(
    maps: DenseMaps, members: Mapping[Split, NDArray[np.int64]], masks: Masks, settings: DenseSettings
) -> dict[Split, Sample]:
    """Pixels of training and validation images."""
    wanted: dict[Split, int] = {"train": settings.num_pixels, "val": max(1, settings.num_pixels // 2)}
    sampled: dict[Split, Sample] = {
        split: maps.sample(split, _some(members[split], num, settings.seed), num) for split, num in wanted.items()
    }
    train = sampled["train"]
    shown = train.labels.unique().tolist()
    if len(shown) < 2:
        name = masks.class_names[shown[0]]
        raise ValueError(
            f"all pixels that count of the training masks in '{masks.title}' are of {name}, after the "
            "centre crop: there is nothing to tell apart"
            if int((train.counts > 0).sum()) < 2
            else f"the {len(train.labels):,} pixels drawn of the training masks are all of {name}; draw "
            "more by --mask_pixels"
        )
    return sampled


def _fit(
    maps: DenseMaps,
    weights: Weights,
    sampled: Mapping[Split, Sample],
    test_members: NDArray[np.int64],
    steps: Steps,
) -> list[_Fitted]:
    """Fits the probe of each stage and tests it."""
    classifiers: dict[str, LinearClassifier] = {}
    chosen: dict[str, tuple[float, float]] = {}
    for stage in maps.stages:
        steps.begin(f"dense probe of {stage} with {weights} weights")
        train, val = ((sampled[split].features[stage], sampled[split].labels) for split in ("train", "val"))
        probe = linear_probe(train, val, val, score=_sampled_miou)
        classifiers[stage] = LinearClassifier(probe.weight, probe.bias)
        chosen[stage] = _sampled_miou(probe.predicted, val[1]), probe.strength
    fitted = []
    for stage, tested in maps.test(test_members, classifiers).items():
        width = classifiers[stage].weight.shape[1]
        fitted.append(_Fitted(weights, stage, maps.sides[stage], width, *chosen[stage], tested))
        steps(f"dense probe of {stage} with {weights} weights: mIoU {100 * mean_iou(tested.confusion):.1f} %")
    return fitted


def _some(members: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """The images, or if there are more than pixels are wanted, some by chance."""
    return members[sample_order(seed, 0, len(members))[:most].sort().values.numpy()]


def _sampled_miou(predicted: Tensor, labels: Tensor) -> float:
    num_classes = 1 + int(torch.maximum(predicted.max(), labels.max()))
    return mean_iou(image_confusions(predicted[None, None], labels[None, None], num_classes)[0])


def _best_stage(rows: list[DenseRow], weights: str) -> str:
    """As `DenseProbe.best_row`."""
    return max((row for row in reversed(rows) if row.weights == weights), key=lambda row: row.miou_val).stage


def _classes(confusion: Tensor, names: list[str]) -> list[DenseClass]:
    shares = confusion.sum(dim=1) / confusion.sum()
    return [
        DenseClass(name, None if iou != iou else iou, share)
        for name, iou, share in zip(names, class_iou(confusion).tolist(), shares.tolist(), strict=True)
    ]
