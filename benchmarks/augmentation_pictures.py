"""What each augmentation does to the built-in images, and how fast the policies are beside torchvision's.

    python benchmarks/augmentation_pictures.py --picture docs/pictures/augmentation.png --json augmentation.json

The picture has a row for each preset and a column for each image. The speeds are those of the policies alone, on
float images of 64 px in memory; torchvision's transforms get bytes, image by image, as in a data set. They take turns
in one thread, whose own time counts, not that of other programs; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import add_outputs, median_and_range, write_json

COLUMNS = 6
SIDE = 64


def presets() -> dict[str, Any]:
    """The rows of the picture: arguments of `RandomView` beside those that switch everything off."""
    from ssl_toolkit.augment import AugMix, RandAugment, TrivialAugment

    return {
        "image": {},
        "flip": {"hflip": 0.5},
        "rotation": {"rotation": 30},
        "crop": {"scale": (0.3, 0.6)},
        "scale": {"scale": (0.08, 1.0), "ratio": (1.0, 1.0)},
        "colour": {"jitter_prob": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        "RandAugment": {"policy": RandAugment()},
        "TrivialAugment": {"policy": TrivialAugment()},
        "AugMix": {"policy": AugMix()},
    }


def draw(file: Path) -> None:
    """One picture of all presets."""
    import torch
    from matplotlib.figure import Figure
    from PIL import Image

    from ssl_toolkit.augment import RandomView
    from ssl_toolkit.batch import Images
    from ssl_toolkit.data.procedural import ProceduralSource
    from ssl_toolkit.random import sample_keys

    pixels = torch.from_numpy(ProceduralSource(COLUMNS, SIDE).render(range(COLUMNS))).clone()
    if pixels.shape[1] != 3:
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    images = Images(pixels, torch.full((COLUMNS, 2), SIDE))
    off = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "jitter_prob": 0.0, "grayscale": 0.0, "blur": 0.0}
    rows = presets()
    figure = Figure(figsize=(6.0, 0.72 * len(rows)), layout="constrained")
    grid: Any = figure.subplots(len(rows), 1)
    for axes, (name, options) in zip(grid, rows.items(), strict=True):
        views = RandomView(SIDE, **{**off, **options})(images, sample_keys(0, 0, torch.arange(COLUMNS)))
        axes.imshow(torch.cat(list(views.clamp(0, 1)), dim=2).permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=80)
    # few colours, for a small file
    Image.open(stream).convert("RGB").quantize(64).save(file, optimize=True)


def measure(rounds: int, batch: int) -> dict[str, Any]:
    """Views a second of each policy and of torchvision's of the same name."""
    import torch
    from torchvision.transforms import v2

    from ssl_toolkit.augment import AugMix, RandAugment, TrivialAugment
    from ssl_toolkit.random import sample_keys

    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
    images = pixels / 255
    bilinear = v2.InterpolationMode.BILINEAR
    pairs = {
        "RandAugment": (RandAugment(), v2.RandAugment(interpolation=bilinear)),
        "TrivialAugment": (TrivialAugment(), v2.TrivialAugmentWide(interpolation=bilinear)),
        "AugMix": (AugMix(), v2.AugMix(all_ops=False, interpolation=bilinear)),
    }
    speeds: dict[str, Any] = {name: {"ours": [], "torchvision": []} for name in pairs}
    for epoch in range(rounds):
        keys = sample_keys(0, epoch, torch.arange(batch))
        for name, (ours, theirs) in pairs.items():
            speeds[name]["ours"].append(batch / _seconds(lambda p=ours, k=keys: p(images, p.draw(k, SIDE))))
            speeds[name]["torchvision"].append(batch / _seconds(lambda t=theirs: [t(each) for each in pixels]))
    for each in speeds.values():
        each["ratios"] = [a / b for a, b in zip(each["ours"], each["torchvision"], strict=True)]
    return speeds


def _seconds(make: Callable[[], object]) -> float:
    start = time.thread_time()
    make()
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="turns of each policy; 0 measures nothing")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch")
    add_outputs(parser)
    args = parser.parse_args()
    if args.picture:
        draw(args.picture)
    if args.rounds:
        speeds = measure(args.rounds, args.batch)
        for name, each in speeds.items():
            ours, theirs = (statistics.median(each[who]) for who in ("ours", "torchvision"))
            print(f"{name}: {ours:.0f} and {theirs:.0f} views a second, ratio {median_and_range(each['ratios'], 1)}")
        write_json(args.json, speeds)


if __name__ == "__main__":
    main()
