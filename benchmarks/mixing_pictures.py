"""What MixUp and CutMix make of the built-in images: a picture with the weight of each image's own target.

python benchmarks/mixing_pictures.py --picture docs/pictures/mixing.png
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from measuring import add_outputs, write_json
from torch import Tensor, nn

from ssl_toolkit.batch import Batch
from ssl_toolkit.data import ImageData
from ssl_toolkit.losses.soft_targets import Mixing
from ssl_toolkit.random import sample_keys
from ssl_toolkit.regularization import CutMix, MixUp, Regularizer
from ssl_toolkit.step import StepContext

NUM = 6


class Shown(nn.Module):
    """A task whose backbone shows what it is given."""

    takes_soft_targets = True
    compile_backbone = False

    def __init__(self, regularizers: list[Regularizer]) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.regularizers = regularizers
        for regularizer in regularizers:
            regularizer.prepare(self)

    def keys(self, batch: Batch) -> Tensor:
        """As a task draws them."""
        return sample_keys(0, batch.epoch, batch.indices)

    def mixed_rows(self, batch: Batch, partners: Tensor) -> tuple[Tensor, Tensor]:
        """A row for each image."""
        return torch.arange(len(partners)), partners

    def show(self, batch: Batch) -> tuple[Tensor, Mixing]:
        """The mixed images, and what was mixed with what."""
        context = StepContext(batch=batch)

        def compute() -> tuple[Tensor, Mixing | None]:
            return self.backbone(batch.images.pixels / 255), context.mixing

        for regularizer in self.regularizers:
            compute = partial(regularizer.around, self, context, compute)
        images, mixing = compute()
        assert mixing is not None
        return images, mixing


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_outputs(parser)
    arguments = parser.parse_args()
    data = ImageData(source="procedural", max_images=NUM, image_size=48, batch_size=NUM, cache="memory", val_fraction=0)
    data.setup("fit")
    batch = next(iter(data.loader("train")))
    kinds: dict[str, list[Regularizer]] = {
        "MixUp, alpha 1": [MixUp(1.0)],
        "CutMix, alpha 1": [CutMix(1.0)],
        "both": [MixUp(1.0), CutMix(1.0)],
    }
    rows = [("the images", batch.images.pixels / 255, [f"{index + 1}" for index in range(NUM)])]
    for name, regularizers in kinds.items():
        images, mixing = Shown(regularizers).show(batch)
        titles = []
        for own, (partner, weight) in enumerate(zip(mixing.partners.tolist(), mixing.weights.tolist(), strict=True), 1):
            titles.append(f"{weight:.2f} of {own}\n{1 - weight:.2f} of {partner + 1}")
            print(f"{name}: image {own}: {weight:.3f} of its own target, {1 - weight:.3f} of that of {partner + 1}")
        rows.append((name, images, titles))
    write_json(arguments.json, {name: titles for name, _, titles in rows})
    if arguments.picture:
        draw(arguments.picture, rows)


def draw(file: Any, rows: list[tuple[str, Tensor, list[str]]]) -> None:
    """A row of pictures for each kind, with the weights above."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(1.05 * NUM, 1.45 * len(rows)), layout="constrained")
    for all_axes, (name, images, titles) in zip(figure.subplots(len(rows), NUM), rows, strict=True):
        for axes, image, title in zip(all_axes, images, titles, strict=True):
            axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axes.set_title(title, fontsize=7)
            axes.set(xticks=[], yticks=[])
        all_axes[0].set_ylabel(name, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=96)
    # a palette makes the file a quarter as large
    with Image.open(file) as drawn:
        drawn.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main()
