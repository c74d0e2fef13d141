"""Parameter groups: which parameter gets which learning rate and which weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def parameter_groups(
    module: nn.Module, lr: float, weight_decay: float, lr_factor: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Sorts every trainable parameter of a module into exactly one group.

    Biases and other parameters of one dimension (the scales and shifts of normalisation layers) get no weight decay
    (Goyal et al. 2017, arXiv 1706.02677, section 5.3).

    Args:
        module: The module; parameters with ``requires_grad=False`` are left out.
        lr: Learning rate of a parameter whose factor is 1.
        weight_decay: Decay of the parameters that are decayed.
        lr_factor: The factor on the learning rate of a parameter, by its name; 0 or more.

    Returns:
        Groups with the keys ``params``, ``lr``, ``weight_decay``, ``decayed`` (whether they may be: they are matrices)
        and ``name``, in the order of the module's parameters.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        factor, decayed = lr_factor(name), parameter.ndim > 1
        label = f"{'decay' if decayed else 'no_decay'}_x{factor:.3g}"
        decay = weight_decay if decayed else 0.0
        group = {"params": [], "lr": lr * factor, "weight_decay": decay, "decayed": decayed, "name": label}
        groups.setdefault((factor, decayed), group)["params"].append(parameter)

    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    trainable = [id(parameter) for parameter in module.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trainable), "every trainable parameter belongs to exactly one group"
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen; unfreeze the backbone or add a head")
    return list(groups.values())
