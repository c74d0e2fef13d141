"""How much an image's features depend on the other images of its batch, by normalisation and batch size.

    python benchmarks/normalization.py --picture docs/pictures/normalization.png

A narrow ResNet-10 with random weights sees eight built-in images in training mode, each in several batches with others.
The figure is the spread of an image's features over these batches, as a fraction of their spread over images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from measuring import add_outputs, write_json

SIZES = (2, 4, 8, 16, 32, 64)
KINDS: dict[str, dict[str, Any]] = {
    "own (BatchNorm)": {"norm": "own"},
    "layer": {"norm": "layer"},
    "group": {"norm": "group"},
    "group, weight standardisation": {"norm": "group", "weight_standardization": True},
}
NUM_IMAGES = 8


def measure(num_batches: int) -> dict[str, list[float]]:
    """For each kind of normalisation a figure for each batch size."""
    import torch

    from ssl_toolkit.data.procedural import ProceduralSource
    from ssl_toolkit.modules.backbone import Backbone

    images = torch.from_numpy(ProceduralSource(256, 32).render(range(256))).clone()
    if images.shape[1] != 3:
        images = images.permute(0, 3, 1, 2)
    images = images.contiguous() / 255
    kwargs = {"channels": [16, 32, 64, 128], "stem_width": 16, "zero_init_last": False}
    figures = {}
    for name, options in KINDS.items():
        torch.manual_seed(0)
        backbone = Backbone("resnet10t", kwargs=kwargs, stem="small", **options).train()
        figures[name] = []
        for size in SIZES:
            with torch.no_grad():
                features = torch.stack([
                    torch.stack([backbone(_batch(images, i, size))[0] for i in range(NUM_IMAGES)])
                    for _ in range(num_batches)
                ])  # fmt: skip
            over_batches, over_images = features.std(0).square().mean(), features.mean(0).std(0).square().mean()
            figures[name].append((over_batches / over_images).sqrt().item())
    return figures


def _batch(images: Any, i: int, size: int) -> Any:
    import torch

    others = NUM_IMAGES + torch.randperm(len(images) - NUM_IMAGES)[: size - 1]
    return images[torch.cat([torch.tensor([i]), others])]


def draw(file: Path, figures: dict[str, list[float]]) -> None:
    """A line for each kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3), layout="constrained")
    axes = figure.subplots()
    for (name, values), style in zip(figures.items(), ("-o", "-s", "--", ":"), strict=True):
        axes.plot(SIZES, values, style, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.set(xlabel="batch size", ylabel="spread over batches / over images")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=6, help="that each image is seen in")
    add_outputs(parser)
    args = parser.parse_args()
    figures = measure(args.batches)
    for name, values in figures.items():
        print(f"{name}: {', '.join(f'{size}: {value:.2f}' for size, value in zip(SIZES, values, strict=True))}")
    write_json(args.json, {"sizes": SIZES, "figures": figures})
    if args.picture:
        draw(args.picture, figures)


if __name__ == "__main__":
    main()
