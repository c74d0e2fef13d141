"""The least size of image that a network takes, found without computing anything (on torch's meta device)."""

from __future__ import annotations

import bisect

import torch
from torch import nn
from torch.func import functional_call

# no network of timm needs more
_MOST = 1024
_SIGNS = ("too small", "Kernel size can't be greater")


def is_too_small(error: RuntimeError) -> bool:
    """Whether an error of torch says that a feature map is smaller than a kernel."""
    return any(sign in str(error) for sign in _SIGNS)


def takes(model: nn.Module, channels: int, side: int) -> bool:
    """Whether a network takes square images of a side in pixels; it stays as it is."""
    state = {name: each.to("meta") for name, each in (*model.named_parameters(), *model.named_buffers())}
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            functional_call(model, state, (torch.empty(1, channels, side, side, device="meta"),))
    except RuntimeError as error:
        if not is_too_small(error):
            raise
        return False
    finally:
        for module, flag in flags:
            module.training = flag
    return True


def least_size(model: nn.Module, channels: int) -> int:
    """The least side in pixels of the square images that a network takes."""
    return bisect.bisect_left(range(_MOST), True, lo=1, key=lambda side: takes(model, channels, side))


def check_size(model: nn.Module, name: str, channels: int, side: int) -> None:
    """Raises a ValueError for images that are too small for a network.

    Args:
        model: The network.
        name: Its name, for the message.
        channels: How many channels the images have.
        side: Their side in pixels.
    """
    if any(hasattr(parameter, "to_local") for parameter in model.parameters()):
        return  # sharded (DTensor), which is after the check before the run
    if not takes(model, channels, side):
        raise ValueError(
            f"images of {side} px are too small for {name}, which takes {least_size(model, channels)} px or more: make "
            "views and images larger (model.view.size, data.image_size), or choose another backbone"
        )
