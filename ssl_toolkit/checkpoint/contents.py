"""Contents of a checkpoint: what it has to hold, checked before anything is restored from it.

Lightning and torch take over what a file says as it is: a text where a count should be ends in a traceback later, an
entry with the name of a method replaces it, and what is missing starts again from nothing without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ssl_toolkit.io.schema import (
    ANYTHING,
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    Each,
    Kind,
    Maybe,
    Only,
    problems,
    shown,
)


def _is_tensor(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_nested:
        return False
    return value.device.type == "cpu" or hasattr(value, "full_tensor")


TENSOR = Kind("a dense tensor", _is_tensor)
_LIGHTNING = re.compile(r"([2-9]|[1-9]\d)(\.\d+)+((\.?(dev|post)|a|b|rc)\d+)?")
VERSION = Kind(
    "a version of Lightning from 2.0 on",
    lambda value: isinstance(value, str) and _LIGHTNING.fullmatch(value) is not None,
)
STEPS = Kind(
    "the finished steps, all steps, and the steps of an epoch",
    lambda value: (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and COUNT.fits(value[0])
        and COUNT.fits(value[1])
        and value[1] > 0
        and NUMBER.fits(value[2])
        and value[2] > 0
    ),
)
FINDING = Kind(
    "three texts",
    lambda value: isinstance(value, (list, tuple)) and len(value) == 3 and all(map(TEXT.fits, value)),
)
OPTIONAL_NUMBER = Kind("a number or nothing", lambda value: value is None or NUMBER.fits(value))
LAMBDA = Kind("a dictionary or nothing", lambda value: value is None or isinstance(value, dict))
# a figure that was measured may be infinite, or none at all
FIGURE = Kind("a number", lambda value: type(value) in (int, float))

# Lightning sets whatever is in these as attributes of its counters, and takes 0 for what is missing
_TWO = Only(ready=COUNT, completed=COUNT)
_THREE = Only(_TWO, started=COUNT)
_FOUR = Only(_THREE, processed=COUNT)
_STEPPED = Only(total=_TWO, current=_TWO)
_EPOCHS = Only(total=_FOUR, current=_FOUR)
_BATCHES = Only(_EPOCHS, is_last_batch=FLAG)
_OPTIMIZER_CALLS = Only(step=_STEPPED, zero_grad=Only(total=_THREE, current=_THREE))
_PLACE = {"epoch": COUNT, "batch": COUNT, "window": Maybe(COUNT), "global_batch": Maybe(COUNT)}
_LOOP = {
    "state_dict": {"combined_loader": Maybe([ANYTHING])},
    "epoch_loop.state_dict": {"_batches_that_stepped": Maybe(COUNT)},
    "epoch_loop.batch_progress": _BATCHES,
    "epoch_loop.scheduler_progress": _STEPPED,
    "epoch_loop.automatic_optimization.optim_progress": Only(optimizer=_OPTIMIZER_CALLS),
    "epoch_loop.manual_optimization.optim_step_progress": _STEPPED,
    "epoch_loop.val_loop.batch_progress": _BATCHES,
    "epoch_progress": _EPOCHS,
}
_OPTIMIZER = {"state": Each(Each(ANYTHING)), "param_groups": [{"params": [COUNT]}]}
_SCHEDULER = {
    "last_epoch": COUNT, "_step_count": Maybe(COUNT), "base_lrs": Maybe([NUMBER]), "_last_lr": Maybe([NUMBER]),
    "lr_lambdas": Maybe([LAMBDA]),
}  # fmt: skip
_SCALER = {"scale": NUMBER, "growth_factor": NUMBER, "backoff_factor": NUMBER, "growth_interval": COUNT,
           "_growth_tracker": COUNT}  # fmt: skip
_CALLBACKS = {
    "NonFinite": Maybe({"num_skipped": COUNT}),
    "Watch": Maybe(
        {"findings": Each(FINDING), "seen": Each(COUNT), "norms": [FIGURE], "values": Each(FIGURE)},
    ),
    "WeightAverage": Maybe({"num": COUNT, "average": Each(TENSOR)}),
    "EarlyStopping": Maybe(
        {"best": OPTIONAL_NUMBER, "best_step": COUNT, "best_weights": Each(TENSOR), "num_worse": COUNT},
    ),
}  # fmt: skip
CHECKPOINT = {
    "pytorch-lightning_version": VERSION,
    "epoch": COUNT,
    "global_step": COUNT,
    "state_dict": Each(ANYTHING),
    "loops": {"fit_loop": _LOOP},
    "optimizer_states": [_OPTIMIZER],
    "lr_schedulers": [_SCHEDULER],
    "callbacks": _CALLBACKS,
    "progress": Maybe(STEPS),
    "ImageData": Maybe(_PLACE),
    "FrameData": Maybe(_PLACE),
    "MixedPrecision": Maybe(_SCALER),
}
"""What a checkpoint holds; entries that are not named here belong to somebody else, and are left alone."""


def check_contents(checkpoint: Any, path: Path) -> None:
    """Raises a ValueError of one line for a checkpoint from which no run could go on.

    Args:
        checkpoint: As it was loaded.
        path: Its file.
    """
    found = next(problems(checkpoint, CHECKPOINT), None) or next(_contradictions(checkpoint, path), None)
    if found:
        raise ValueError(
            f"{path} is no checkpoint of a run, or was changed: {found}; delete it to go on from the one before it"
        )


def steps_of_state(checkpoint: dict[str, Any]) -> int:
    """How many steps certainly went into the optimizer's state, without those that may have been left out.

    `NonFinite` leaves out some and counts them; how many the scaling of float16 left out is not known.
    """
    skipped = checkpoint.get("callbacks", {}).get("NonFinite", {}).get("num_skipped", 0)
    return 0 if "MixedPrecision" in checkpoint else checkpoint.get("global_step", 0) - skipped


def _contradictions(checkpoint: dict[str, Any], path: Path) -> Iterator[str]:
    """What no schema can say of a single entry."""
    step, epoch, loop = checkpoint["global_step"], checkpoint["epoch"], checkpoint["loops"]["fit_loop"]
    named = re.fullmatch(r"step-(\d+)\.ckpt", path.name)
    if named and int(named[1]) != step:
        yield f"global_step is {step}, which is not that of the file's name"
    automatic = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    manual = loop["epoch_loop.manual_optimization.optim_step_progress"]["total"]["completed"]
    if step != (automatic or manual):
        yield f"global_step is {step}, but its loops count {automatic or manual} steps"
    if epoch != loop["epoch_progress"]["current"]["completed"]:
        yield f"epoch is {epoch}, but its loops count {loop['epoch_progress']['current']['completed']}"
    yield from _places_that_do_not_fit(checkpoint, loop["state_dict"].get("combined_loader", []))
    yield from _tensors_that_do_not_fit(checkpoint)
    yield from _optimizers_that_do_not_fit(checkpoint, step)
    scheduled = loop["epoch_loop.scheduler_progress"]["total"]["completed"]
    yield from _schedulers_that_do_not_fit(checkpoint, scheduled)


def _places_that_do_not_fit(checkpoint: dict[str, Any], loaders: list[Any]) -> Iterator[str]:
    """Of the data, which note their place themselves and by Lightning's own means (see `ImageData`)."""
    noted = {name: each for name, each in checkpoint.items() if isinstance(each, dict)}
    places = {name: each for name, each in noted.items() if each.keys() >= {"epoch", "batch"}}
    for name, place in places.items():
        yield from problems(place, _PLACE, shown(name))
        if place["epoch"] > checkpoint["epoch"] + 1:
            yield f"epoch is {checkpoint['epoch']}, but {name}.epoch {place['epoch']}"
    if loaders and isinstance(loaders[0], dict) and loaders[0].keys() & _PLACE.keys() and not places:
        yield "the place in the data is missing"


def _tensors_that_do_not_fit(checkpoint: dict[str, Any]) -> Iterator[str]:
    """Of the weights, and of the weights that callbacks keep."""
    weights = checkpoint["state_dict"]
    for name, value in weights.items():
        if not isinstance(name, str):
            yield f"state_dict has the key {shown(name)}, expected a text"
        elif not name.endswith("_extra_state"):
            yield from problems(value, TENSOR, f"state_dict[{shown(name)}]")
    for callback, entry in (("WeightAverage", "average"), ("EarlyStopping", "best_weights")):
        kept = checkpoint["callbacks"].get(callback, {}).get(entry, {})
        for name, value in kept.items():
            if name not in weights or value.shape != weights[name].shape:
                yield f"callbacks.{callback}.{entry}[{shown(name)}] has not the shape of that weight"
        if entry == "best_weights" and kept and kept.keys() != weights.keys():
            yield f"callbacks.{callback}.{entry} lacks weights"


def _optimizers_that_do_not_fit(checkpoint: dict[str, Any], step: int) -> Iterator[str]:
    optimizers = checkpoint["optimizer_states"]
    if step and not optimizers:
        yield "optimizer_states is empty"
    for number, optimizer in enumerate(optimizers):
        where = f"optimizer_states[{number}]"
        indices = [each for group in optimizer["param_groups"] for each in group["params"]]
        if indices != list(range(len(indices))):
            yield f"{where}.param_groups does not number the parameters"
        steps = [(f"param_groups[{place}]", each) for place, each in enumerate(optimizer["param_groups"])]
        for index, state in optimizer["state"].items():
            if type(index) is not int or not 0 <= index < len(indices):
                yield f"{where}.state is of a parameter {shown(index)}, but there are {len(indices)}"
            steps.append((f"state[{shown(index)}]", state))
            for name, value in state.items():
                if isinstance(value, Tensor):
                    yield from problems(value, TENSOR, f"{where}.state[{shown(index)}].{name}")
        for place, each in steps:
            made = each.get("step", 0)
            if isinstance(made, Tensor) and made.numel() == 1:
                made = made.item()
            if not NUMBER.fits(made) or not 0 <= made <= step:
                yield f"{where}.{place}.step is {shown(made)}, expected 0 to {step}"


def _schedulers_that_do_not_fit(checkpoint: dict[str, Any], made: int) -> Iterator[str]:
    schedulers, optimizers = checkpoint["lr_schedulers"], checkpoint["optimizer_states"]
    if made and not schedulers:
        yield "lr_schedulers is empty"
    for number, scheduler in enumerate(schedulers):
        where = f"lr_schedulers[{number}]"
        # torch sets all entries as attributes
        for name in scheduler:
            if not isinstance(name, str) or callable(getattr(LRScheduler, name, None)):
                yield f"{where} has the unknown entry {shown(name)}"
        if len(schedulers) > 1 or len(optimizers) > 1:
            continue
        if scheduler["last_epoch"] != made:
            yield f"{where}.last_epoch is {scheduler['last_epoch']}, but its loops count {made}"
        groups = len(optimizers[0]["param_groups"])
        for name in ("base_lrs", "_last_lr", "lr_lambdas"):
            if len(scheduler.get(name, range(groups))) != groups:
                yield f"{where}.{name} is {shown(scheduler[name])}, expected one for each of {groups} groups"
