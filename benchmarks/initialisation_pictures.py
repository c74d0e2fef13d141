"""The textbook picture: activations and gradients of a plain network of six layers under five initialisations.

python benchmarks/initialisation_pictures.py --picture docs/pictures/initialisation.png
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measuring import add_outputs, write_json
from torch import nn

from ssl_toolkit.health import LayerStatistics, layer_statistics
from ssl_toolkit.health.layers import draw_values
from ssl_toolkit.init import Initializer, Kaiming, Normal, Xavier, Zeros

WIDTH, DEPTH, BATCH = 256, 6, 256
CASES: dict[str, tuple[type[nn.Module], Initializer]] = {
    "zeros, tanh": (nn.Tanh, Zeros("weight")),
    "std 1, tanh": (nn.Tanh, Normal("weight", 1.0)),
    "std 0.01, tanh": (nn.Tanh, Normal("weight", 0.01)),
    "Xavier, tanh": (nn.Tanh, Xavier("weight")),
    "He, ReLU": (nn.ReLU, Kaiming("weight")),
}


def examine(activation: type[nn.Module], initializer: Initializer) -> list[LayerStatistics]:
    """The layers after their activation function, for normal inputs and a normal gradient from above."""
    layers = [each for _ in range(DEPTH) for each in (nn.Linear(WIDTH, WIDTH, bias=False), activation())]
    generator = torch.Generator().manual_seed(1)  # not the seed of the weights
    inputs, slope = torch.randn(2, BATCH, WIDTH, generator=generator)
    return layer_statistics(
        nn.Sequential(*layers), lambda network: (network(inputs) * slope).sum(), [initializer], after="activations"
    )


def draw(cases: dict[str, list[LayerStatistics]]) -> Figure:
    """For each case a row of activations and a row of gradients, a column for each layer."""
    figure = Figure(figsize=(7.6, 7.2), layout="constrained")
    axes = figure.subplots(2 * len(cases), DEPTH)
    for place, (name, layers) in enumerate(cases.items()):
        for column, layer in enumerate(layers):
            draw_values(axes[2 * place, column], layer.activations, "#0072b2")
            draw_values(axes[2 * place + 1, column], layer.gradients, "#d55e00")
        axes[2 * place, 0].set_ylabel(f"{name}\nactivations", fontsize=6, rotation=0, ha="right", va="center")
        axes[2 * place + 1, 0].set_ylabel("gradients", fontsize=6, rotation=0, ha="right", va="center")
    for column in range(DEPTH):
        axes[0, column].set_title(f"layer {column + 1}", fontsize=8)
    return figure


def main() -> None:
    """Draws the picture and prints the standard deviations."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_outputs(parser)
    args = parser.parse_args()
    cases = {name: examine(*case) for name, case in CASES.items()}
    for name, layers in cases.items():
        activations = " ".join(f"{layer.activations.std:8.1e}" for layer in layers)
        gradients = " ".join(f"{layer.gradients.std:8.1e}" for layer in layers if layer.gradients)
        print(f"{name:15} activations {activations}\n{'':15} gradients   {gradients}")
    write_json(args.json, {name: [layer._asdict() for layer in layers] for name, layers in cases.items()})
    if args.picture:
        figure = draw(cases)
        FigureCanvasAgg(figure)
        figure.savefig(args.picture, dpi=90)


if __name__ == "__main__":
    main()
