"""Parameter-efficient tuning: only a few of a backbone's parameters are trained."""

from __future__ import annotations

from typing import Literal

from torch import nn

from ssl_toolkit.modules.norms import NORMS

Tuned = Literal["all", "norms", "biases"]


def train_only(backbone: nn.Module, tuned: Tuned) -> None:
    """Has the gradient reach some of a network's parameters only, in place.

    Args:
        backbone: The network.
        tuned: "all", "norms" (scale and shift of its normalisations) or "biases" (every shift, those of normalisations
            among them).

    Raises:
        ValueError: It has no such parameters.
    """
    if tuned == "all":
        return
    chosen = {
        parameter
        for module in backbone.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if (isinstance(module, NORMS) if tuned == "norms" else name == "bias")
    }
    if not chosen:
        raise ValueError(f"tuned is {tuned}, but the backbone has none")
    for parameter in backbone.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter in chosen)
