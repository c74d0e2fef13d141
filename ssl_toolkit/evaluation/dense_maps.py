"""Frozen maps of images with masks, batch by batch: features of sampled pixels, and predictions of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.augment import CenterView
from ssl_toolkit.batch import Batch
from ssl_toolkit.data import ImageData, Split
from ssl_toolkit.data.masks import IGNORE, Masks
from ssl_toolkit.evaluation.features import Precision, computes_in_bf16, evaluation_mode, views
from ssl_toolkit.evaluation.logistic_regression import LinearClassifier
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.segmentation import image_confusions
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.random import fold_in, sample_keys, uniform

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64, UInt8

# bytes of the maps of a batch, and of what is made of them at a time
_MAP_BYTES, _SCORE_BYTES = 1 << 28, 1 << 26
# the batches depend on the maps alone, not on data.batch_size: no figure depends on that
_MOST_AT_ONCE = 256


class DenseSettings(NamedTuple):
    """How a dense probe is fitted.

    Attributes:
        image_size: Side in pixels of what the backbone sees.
        num_pixels: About how many training pixels are drawn, equally many of each image; of validation pixels half.
        stages: Whether the map of each stage is measured, or the last alone.
        seed: Of the pixels and of the bootstrap.
        precision: As in `extract_features`.
    """

    image_size: int
    num_pixels: int = 20_000
    stages: bool = True
    seed: int = 0
    precision: Precision = "auto"


class Sample(NamedTuple):
    """Pixels of a split.

    Attributes:
        features: By stage, float32 tensors of shape ``[num_pixels, channels]``.
        labels: int64 tensor of shape ``[num_pixels]``: their classes.
        counts: int64 tensor of shape ``[255]``: how many pixels of each class the masks have.
    """

    features: dict[str, Tensor]
    labels: Tensor
    counts: Tensor


class Tested(NamedTuple):
    """What a classifier did with all pixels of the test images.

    Attributes:
        confusion: int64 tensor of shape ``[classes, classes]``: pixels by true and predicted class.
        counts: int64 tensor of shape ``[images, 3, classes]``: by image, or group of images, the pixels of each class
            that are right, that are of it or taken for it, and that are of it.
    """

    confusion: Tensor
    counts: Tensor


class DenseMaps:
    """One set of weights: what it makes of the images of a split, batch by batch."""

    def __init__(
        self, network: Backbone, data: ImageData, masks: Masks, settings: DenseSettings, weights: str, steps: Steps
    ) -> None:
        self._network, self._data, self._masks, self._settings = network, data, masks, settings
        self._weights, self._steps = weights, steps
        self._view = CenterView(settings.image_size)
        with evaluation_mode(network):
            self.sides = network.map_sides(settings.image_size)
        self.stages = network.stages if settings.stages else network.stages[-1:]
        places = sum(
            channels * self.sides[stage] ** 2
            for stage, channels in zip(network.stages, network.stage_channels, strict=True)
        )
        self._batch_size = max(1, min(_MOST_AT_ONCE, _MAP_BYTES // (4 * places)))

    def sample(self, split: Split, members: NDArray[np.int64], num_pixels: int) -> Sample:
        """Features and classes of pixels, equally many of each image."""
        of_each = max(1, num_pixels // len(members))
        features: dict[str, list[Tensor]] = {stage: [] for stage in self.stages}
        labels: list[Tensor] = []
        counts = torch.zeros(IGNORE + 1, dtype=torch.int64)

        def draw(maps: dict[str, Tensor], masks: Tensor, batch: Batch) -> None:
            counts.add_(masks.flatten().long().bincount(minlength=IGNORE + 1).cpu())
            places, has_some = sample_pixels(masks, batch.indices.to(masks.device), of_each, self._settings.seed)
            labels.append(masks.flatten(1).gather(1, places)[has_some].flatten().long().cpu())
            for stage in self.stages:
                found = features_at(maps[stage].float(), places, masks.shape[1])[has_some]
                features[stage].append(found.flatten(0, 1).cpu())

        self._for_each_batch(split, members, f"pixels of {split} images", draw)
        # clones: tensors made in inference mode could not be used by autograd later
        classes = torch.cat(labels).clone()
        if not len(classes):
            raise ValueError(
                f"no pixel of the {split} masks in '{self._masks.title}' counts: after the centre crop all are {IGNORE}"
            )
        parts = {stage: torch.cat(each).clone() for stage, each in features.items()}
        return Sample(parts, classes, counts[:IGNORE].clone())

    def test(self, members: NDArray[np.int64], classifiers: Mapping[str, LinearClassifier]) -> dict[str, Tested]:
        """What the classifier of each stage does with all pixels of the test images."""
        num_classes, size = len(self._masks.class_names), self._settings.image_size
        counted: dict[str, list[Tensor]] = {stage: [] for stage in classifiers}
        totals = {stage: torch.zeros(num_classes, num_classes, dtype=torch.int64) for stage in classifiers}
        indices: list[Tensor] = []

        def predict(maps: dict[str, Tensor], masks: Tensor, batch: Batch) -> None:
            indices.append(batch.indices.cpu())
            for stage, classifier in classifiers.items():
                channels, side = maps[stage].shape[1:3]
                at_once = max(1, _SCORE_BYTES // (8 * (len(classifier.bias) * size**2 + channels * side**2)))
                for part, truth in zip(maps[stage].split(at_once), masks.split(at_once), strict=True):
                    confusions = image_confusions(predict_masks(classifier, part, size), truth, num_classes).cpu()
                    totals[stage].add_(confusions.sum(dim=0))
                    right, of_class = confusions.diagonal(dim1=1, dim2=2), confusions.sum(dim=2)
                    union = of_class + confusions.sum(dim=1) - right
                    counted[stage].append(torch.stack([right, union, of_class], dim=1))

        self._for_each_batch("test", members, "dense probe of test images", predict)
        groups = self._data.groups_of("test", torch.cat(indices))
        found = {}
        for stage, parts in counted.items():
            each = torch.cat(parts)
            if groups is not None:  # images of a group are not independent: groups are drawn
                _, group = groups.unique(return_inverse=True)
                each = each.new_zeros(int(group.max()) + 1, *each.shape[1:]).index_add_(0, group, each)
            found[stage] = Tested(totals[stage], each.clone())
        if not int(next(iter(totals.values())).sum()):
            raise ValueError(f"no pixel of the test masks in '{self._masks.title}' counts: all are {IGNORE}")
        return found

    def _for_each_batch(
        self,
        split: Split,
        members: NDArray[np.int64],
        what: str,
        use: Callable[[dict[str, Tensor], Tensor, Batch], None],
    ) -> None:
        """Calls a function with the maps of each batch, its masks as the backbone sees the images, and the batch."""
        self._steps.begin(f"{what} with {self._weights} weights", len(members))
        device = next(self._network.parameters()).device
        bf16 = computes_in_bf16(self._settings.precision, device)
        autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
        loader = self._data.loader(split, indices=members, batch_size=self._batch_size)
        with evaluation_mode(self._network), torch.inference_mode():
            for x, batch in views(loader, self._view, device):
                sizes = batch.images.sizes.cpu()
                rows, columns = (places.numpy() for places in self._view.places(sizes))
                masks = self._masks.read(split, batch.indices.cpu().numpy(), sizes.numpy(), rows, columns)
                with autocast:
                    maps = self._network.feature_maps(x)
                use(maps, torch.from_numpy(masks).to(device), batch)
                self._steps.advance(len(x))


def sample_pixels(
    masks: UInt8[Tensor, "batch height width"], indices: Int64[Tensor, " batch"], num: int, seed: int
) -> tuple[Int64[Tensor, "batch num"], Bool[Tensor, " batch"]]:
    """Pixels of each mask, drawn with replacement from those that count: a function of the seed and the image alone.

    Args:
        masks: Class numbers; pixels of 255 do not count.
        indices: Numbers of the images in their source.
        num: Pixels of each.
        seed: Of the choice.

    Returns:
        Places in the flattened masks, and a bool tensor of shape ``[batch]``: which masks have a pixel that counts.
    """
    before = (masks.flatten(1) != IGNORE).cumsum(dim=1)
    counts = before[:, -1:]
    keys = fold_in(sample_keys(seed, 0, indices), "pixels")
    # float64: a large mask has more pixels than float32 has numbers
    drawn = (uniform(keys, num).double() * counts).long().minimum((counts - 1).clamp(min=0))
    return torch.searchsorted(before, drawn + 1).clamp(max=before.shape[1] - 1), counts[:, 0] > 0


def features_at(
    maps: Float[Tensor, "batch channels side side2"], places: Int64[Tensor, "batch num"], size: int
) -> Float[Tensor, "batch num channels"]:
    """Features of pixels: a map, enlarged bilinearly to a size as `torch.nn.functional.interpolate` does, at places.

    Args:
        maps: The maps.
        places: In the flattened enlarged map.
        size: Height and width of that.
    """
    centres = torch.stack([places % size, places // size], dim=-1)
    grid = (2 * centres + 1) / size - 1
    found = F.grid_sample(maps, grid[:, None].to(maps), mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def predict_masks(
    classifier: LinearClassifier, maps: Float[Tensor, "batch channels side side2"], size: int
) -> Int64[Tensor, "batch size size"]:
    """The class of each pixel by a linear classifier of every place of a map, its scores enlarged bilinearly.

    Args:
        classifier: Of the map's channels.
        maps: The maps.
        size: Height and width of the masks.

    Raises:
        ValueError: A score is not finite.
    """
    weight, bias = (each.to(maps.device, torch.float64) for each in classifier)
    scores = torch.einsum("kc,bchw->bkhw", weight, maps.double()) + bias[:, None, None]
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("some test features are not finite: the weights or the images hold NaN or infinity")
    return F.interpolate(scores, (size, size), mode="bilinear", align_corners=False).argmax(dim=1)
