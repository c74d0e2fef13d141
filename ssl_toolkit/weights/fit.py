"""Fit check of a weights file and a backbone; the difference is a readable list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights.reading import WeightsError, describe

_MAX_DIFF_LINES = 10


def check_fit(path: Path, header: dict[str, Any], layout: dict[str, str], backbone: Backbone) -> None:
    """Raises `WeightsError` with a readable diff unless the file is for this network; loads nothing into it.

    Args:
        path: The file, for messages.
        header: Its header.
        layout: The shape and the dtype of each of its tensors, as `read_layout` finds them.
        backbone: The network.
    """
    arguments = _architecture(header["backbone"]), _architecture(backbone.config())
    state = backbone.model.state_dict()
    layouts = layout, {key: describe(tensor.shape, tensor.dtype) for key, tensor in state.items()}
    if arguments[0] == arguments[1] and layouts[0] == layouts[1]:
        return
    lines = _shortened(_diff(*arguments) + _diff(*layouts))
    num_fitting = sum(layouts[0].get(key) == entry for key, entry in layouts[1].items())
    reason = (
        "its tensors have the right shapes, but the network differs"
        if layouts[0] == layouts[1]
        else f"{num_fitting} of {len(layouts[1])} tensors fit"
    )
    file_name = header["backbone"].get("name")
    raise WeightsError(
        f"{path} ({file_name}) does not fit this backbone ({backbone.name}): {reason} (- file, + backbone)\n"
        + "\n".join(lines)
    )


def check_layout(path: Path, layout: dict[str, str], network: nn.Module) -> None:
    """Raises `WeightsError` with a readable diff unless a file has the tensors of a whole network.

    Args:
        path: The file, for messages.
        layout: As for `check_fit`.
        network: The network.
    """
    own = {key: describe(tensor.shape, tensor.dtype) for key, tensor in network.state_dict().items()}
    if layout != own:
        num_fitting = sum(layout.get(key) == entry for key, entry in own.items())
        raise WeightsError(
            f"{path} does not fit the network of its run's config.yaml: {num_fitting} of {len(own)} tensors fit "
            "(- file, + network)\n" + "\n".join(_shortened(_diff(layout, own)))
        )


def difference(file: dict[str, str], network: dict[str, str]) -> str:
    """One line for each tensor that only one side has, or of which the shapes differ; ten lines at most."""
    return "\n".join(_shortened(_diff(file, network)))


def _shortened(lines: list[str]) -> list[str]:
    num_more = len(lines) - _MAX_DIFF_LINES
    return lines if num_more <= 0 else [*lines[:_MAX_DIFF_LINES], f"  and {num_more} more"]


def _architecture(config: dict[str, Any]) -> dict[str, str]:
    """What decides the function that the weights compute: not where they started, and not drop rates."""
    kwargs = config.get("kwargs") or {}
    return {
        "network": str(config.get("name")).partition(".")[0],
        "stem": str(config.get("stem")),
        "in_channels": str(config.get("in_channels")),
        # files from before these arguments have neither
        "norm": str(config.get("norm", "own")),
        "weight_standardization": str(config.get("weight_standardization", False)),
        **{f"kwargs.{key}": str(value) for key, value in kwargs.items() if not key.startswith("drop")},
    }


def _diff(file: dict[str, str], backbone: dict[str, str]) -> list[str]:
    """One line for each entry that only one side has, in the backbone's order; two lines for one that differs."""
    return [
        f"{sign} {key}: {side[key]}"
        for key in backbone | file
        if file.get(key) != backbone.get(key)
        for sign, side in (("-", file), ("+", backbone))
        if key in side
    ]
