"""The built-in sequences: one of each class, a row each.

python benchmarks/moving_objects_picture.py --picture docs/pictures/moving_objects.png
"""

from __future__ import annotations

import argparse
from typing import Any

from matplotlib.figure import Figure
from measuring import add_outputs, save_small, write_json

from ssl_toolkit.data.procedural.moving import MOTIONS, NUM_FRAMES, MovingObjectFrames

SIDE = 48


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_outputs(parser)
    args = parser.parse_args()
    source = MovingObjectFrames(len(MOTIONS), SIDE)
    images = source.render(range(len(source)))
    names = [source.name(index) for index in range(len(source))]
    write_json(args.json, {"frames": names, "side": SIDE})
    if not args.picture:
        return
    figure = Figure(figsize=(6.4, 6.6), layout="constrained")
    diagrams: Any = figure.subplots(len(MOTIONS), NUM_FRAMES)
    for number, axes in enumerate(diagrams.flat):
        axes.imshow(images[number])
        axes.set(xticks=[], yticks=[])
        if number % NUM_FRAMES == 0:
            axes.set_ylabel(MOTIONS[number // NUM_FRAMES], rotation=0, ha="right", va="center")
    save_small(figure, args.picture, dpi=75)


if __name__ == "__main__":
    main()
