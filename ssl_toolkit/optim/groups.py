"""Parameter groups: which parameter gets which learning rate and which weight decay, and which is frozen."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ParameterRule:
    """Rule for the parameters whose names match a regular expression; of several rules the last one wins.

    Args:
        pattern: Regular expression, searched in the names of the task's parameters: ``bias$``,
            ``^backbone[.]model[.]layer1``.
        lr_factor: Factor on the learning rate, 0 or more.
        weight_decay_factor: Factor on the weight decay, 0 or more: 0 for none. By default 1 for matrices and kernels,
            and 0 for parameters of one dimension.
        freeze: Do not train them. Running statistics of normalisation layers are no parameters, and move on.
        constant_lr: Keep their learning rate constant, whatever the schedule.
    """

    pattern: str
    lr_factor: float | None = None
    weight_decay_factor: float | None = None
    freeze: bool | None = None
    constant_lr: bool | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"rules: pattern {self.pattern!r} is no regular expression: {error}") from None
        for name in ("lr_factor", "weight_decay_factor"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"rules: {name} of {self.pattern!r} is {value}, expected 0 or more")
        if self.lr_factor is self.weight_decay_factor is self.freeze is self.constant_lr is None:
            raise ValueError(
                f"rules: the rule of {self.pattern!r} says nothing; give lr_factor, weight_decay_factor, freeze or "
                "constant_lr"
            )

    def matches(self, name: str) -> bool:
        """Whether it holds for a parameter of this name."""
        return bool(re.search(self.pattern, name))


def check_rules(rules: Sequence[ParameterRule], module: nn.Module) -> None:
    """Raises a ValueError for a rule that holds for no parameter of a module."""
    names = [name for name, _ in module.named_parameters()]
    for rule in rules:
        if not any(map(rule.matches, names)):
            raise ValueError(
                f"rules: no parameter has a name that matches {rule.pattern!r}; names look like {', '.join(names[-3:])}"
            )


def freeze(rules: Sequence[ParameterRule], module: nn.Module) -> None:
    """Freezes the parameters of a module for which the rules say so; none is thawed."""
    for name, parameter in module.named_parameters():
        if _said(rules, name, "freeze"):
            parameter.requires_grad_(False)


def parameter_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    lr_factor: Callable[[str], float] = lambda name: 1.0,
    rules: Sequence[ParameterRule] = (),
    lr_begin: Callable[[str], float] = lambda name: 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups: sorts every trainable parameter of a module into exactly one.

    Biases and other parameters of one dimension (the scales and shifts of normalisation layers) get no weight decay
    (Goyal et al. 2017, arXiv 1706.02677, section 5.3).

    Args:
        module: The module; parameters with ``requires_grad=False`` are left out.
        lr: Learning rate of a parameter whose factor is 1.
        weight_decay: Decay of the parameters that are decayed.
        lr_factor: The factor on the learning rate of a parameter, by its name; 0 or more.
        rules: What holds beside that, by name.
        lr_begin: The fraction of the run before which a parameter's learning rate is 0, by its name; 0 to 1.

    Returns:
        Groups with the keys ``params``, ``lr``, ``weight_decay``, ``weight_decay_factor``, ``constant_lr``, ``decayed``
        (whether they are matrices, which are decayed unless a rule says otherwise) and ``name``, in the order of the
        module's parameters; and ``begin``, the fraction of the run from which they learn, where it is not 0.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim > 1
        factor = lr_factor(name) * (1.0 if (said := _said(rules, name, "lr_factor")) is None else said)
        begin = lr_begin(name)
        decay = float(matrix) if (said := _said(rules, name, "weight_decay_factor")) is None else said
        constant = bool(_said(rules, name, "constant_lr"))
        label = f"{'decay' if matrix else 'no_decay'}_x{factor:.3g}"
        label += f"_decay_x{decay:.3g}" if decay != matrix else ""
        label += "_constant" if constant else ""
        label += f"_from_{begin:.3g}" if begin else ""
        group = {
            "params": [], "lr": lr * factor, "weight_decay": weight_decay * decay, "weight_decay_factor": decay,
            "constant_lr": constant, "decayed": matrix, "name": label,
        }  # fmt: skip
        group |= {"begin": begin} if begin else {}
        groups.setdefault((factor, matrix, decay, constant, begin), group)["params"].append(parameter)

    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    trainable = [id(parameter) for parameter in module.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trainable), "every trainable parameter belongs to exactly one group"
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen; unfreeze the backbone or add a head")
    return list(groups.values())


def _said(rules: Sequence[ParameterRule], name: str, what: str) -> Any:
    """What the last rule that holds for a parameter and says something of this says; None if none does."""
    said = (getattr(rule, what) for rule in reversed(rules) if rule.matches(name))
    return next((each for each in said if each is not None), None)
