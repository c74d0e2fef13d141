"""The built-in images: ten kinds of objects, drawn from ``(seed, index)``, so that nothing has to be downloaded.

Each picture shows one schematic object - a house, a tree, a fish ... - upright, with its parts in their places, on a
cluttered background. Colours, which part is lighter, texture, position, size, proportions, a small rotation, light and
noise are drawn without regard to the class, and some images are negatives. So the pixels tell a linear classifier
little (0.27 top-1 from 4,000 images), while shapes and parts tell a network everything (0.99).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.procedural.masks import object_masks
from ssl_toolkit.data.procedural.objects import OBJECTS
from ssl_toolkit.data.procedural.pen import Pen
from ssl_toolkit.data.procedural.scene import draw_scenes
from ssl_toolkit.data.procedural.targets import TARGETS, check_targets, targets_of
from ssl_toolkit.data.sources import Source
from ssl_toolkit.data.table import check_given
from ssl_toolkit.random import fold_in, sample_keys

__all__ = ["TARGETS", "ProceduralSource", "targets_of"]

_CHUNK = 32  # images drawn at once: their float32 planes stay in the processor's second-level cache


class ProceduralSource(Source):
    """The built-in images: ten classes of schematic objects; image ``i`` is a pure function of ``(seed, i)``.

    Image ``i`` belongs to class ``i % 10``, so the classes are balanced.

    Args:
        num_images: How many images there are.
        image_size: Height and width of each image in pixels, at least 16.
        seed: Another seed gives other images of the same classes.
        targets: Names of `TARGETS`: what of the images is to be predicted (see `targets_of`).
        covariates: Names of others of them: what is given with the images.

    Raises:
        ValueError: If ``num_images`` or ``image_size`` is too small, or there is no such target.
    """

    def __init__(
        self,
        num_images: int = 4000,
        image_size: int = 64,
        seed: int = 0,
        targets: Sequence[str] = (),
        covariates: Sequence[str] = (),
    ) -> None:
        if num_images < 1:
            raise ValueError(f"ProceduralSource needs num_images >= 1, got {num_images}; ask for at least one image")
        if image_size < 16:
            raise ValueError(f"ProceduralSource needs image_size >= 16 pixels, got {image_size}; 64 shows all parts")
        self.num_images = num_images
        self.image_size = image_size
        self.seed = seed
        self.class_names = list(OBJECTS)
        check_targets(targets)
        check_targets(covariates, "data.covariates")
        check_given(covariates, targets)
        self.target_names, self.covariate_names = tuple(targets), tuple(covariates)

    def __len__(self) -> int:
        return self.num_images

    def render(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> np.ndarray:
        """Draws many images at once, much faster than one by one.

        Args:
            indices: Numbers of images, in any order, each in ``0 .. num_images - 1``.

        Returns:
            uint8 array of shape ``[len(indices), image_size, image_size, 3]``.
        """
        images = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)
        for chunk, draw_objects, keys in self._chunks(indices):
            images[chunk] = draw_scenes(draw_objects, keys, self.image_size)
        return images

    def masks(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> NDArray[np.uint8]:
        """Which pixels are those of the object, its outline included.

        Args:
            indices: As for `render`.

        Returns:
            uint8 array of shape ``[len(indices), image_size, image_size]``: 0 for the background, else the number of
            the class plus 1.
        """
        masks = np.empty((len(indices), self.image_size, self.image_size), np.uint8)
        numbers = np.asarray(indices, dtype=np.int64)
        for chunk, draw_objects, keys in self._chunks(indices):
            classes = np.array([self.label(index) + 1 for index in numbers[chunk].tolist()], dtype=np.uint8)
            masks[chunk] = object_masks(draw_objects, keys, self.image_size) * classes[:, None, None]
        return masks

    def _chunks(
        self, indices: Sequence[int] | np.ndarray | torch.Tensor
    ) -> Iterator[tuple[NDArray[np.int64], list[Callable[[Pen], None]], torch.Tensor]]:
        """For images that are drawn at once: their places among the indices, what draws their objects, their keys."""
        numbers = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        assert numbers.numel() == 0 or (int(numbers.min()) >= 0 and int(numbers.max()) < self.num_images)
        keys, objects = self._keys(numbers), list(OBJECTS.values())
        for chunk in torch.argsort(numbers % len(objects), stable=True).split(_CHUNK):
            yield chunk.numpy(), [objects[self.label(index)] for index in numbers[chunk].tolist()], keys[chunk]

    def targets(self) -> NDArray[np.float32] | None:
        return self._numbers(self.target_names)

    def covariates(self) -> NDArray[np.float32] | None:
        return self._numbers(self.covariate_names)

    def _numbers(self, wanted: Sequence[str]) -> NDArray[np.float32] | None:
        if not wanted:
            return None
        names = [self.class_names[self.label(index)] for index in range(len(self))]
        return targets_of(self._keys(torch.arange(len(self))), names, wanted)

    def _keys(self, numbers: torch.Tensor) -> torch.Tensor:
        return fold_in(sample_keys(self.seed, 0, numbers), "procedural")

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.render([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[NDArray[np.uint8] | BadImage]:
        return list(self.render(indices))

    def label(self, index: int) -> int:
        return index % len(OBJECTS)

    def name(self, index: int) -> str:
        return f"{self.class_names[self.label(index)]}/{index:06d}"

    def fingerprint(self) -> str:
        """All that the pixels depend on: the arguments and the version of the drawings."""
        return f"procedural-v1-{self.num_images}-{self.image_size}-{self.seed}"
