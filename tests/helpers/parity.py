"""A method's loss and gradients on this process's part of a global batch, and how they compare with one process's.

The batch comes from the task's own data class, the views from the samples' keys, and the step is the task's own, so a
new task is covered without a line here.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import yaml
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

import methods
from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.prepare import prepare
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.distributed.ranks import world_size
from ssl_toolkit.task import Task

GLOBAL_BATCH = 8
# relative, of the loss and of the gradient of each parameter; in float32 rounding is 2e-6 to 1.1e-5, by processor
LIMITS = {torch.float64: 1e-10, torch.float32: 2e-5}
# Where rounding lets a ReLU or a pooling decide otherwise, a gradient jumps. That is rare and belongs to one batch, a
# bug to all of them: in float32 the best of some batches counts.
EPOCHS = {torch.float64: (0,), torch.float32: (0, 1, 2)}


class Case(NamedTuple):
    """A method in a way of computing it.

    Attributes:
        method: The task's class.
        options: What differs from its recipe, as options of the command line.
    """

    method: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.method, *(option.removeprefix("--model.") for option in self.options)])


class Outcome(NamedTuple):
    """What a process computes of a batch: the loss, and the gradients by the parameters' names."""

    loss: float
    gradients: dict[str, Tensor | None]


def cases(name: str) -> list[Case]:
    """A method, and again with each of its settings that change its speed but not what it computes."""
    settings = methods.tasks()[name].speed_settings
    own = {key: values for key, values in settings.items() if key not in Task.speed_settings}
    # the first value is the default
    changed = [Case(name, (f"--model.{key}={value}",)) for key, values in own.items() for value in values[1:]]
    return [Case(name), *changed]


def write_recipe(name: str, folder: Path) -> str:
    """The recipe of a method as a file, with few images."""
    recipe, file = methods.recipe(name, folder / name), folder / f"{name}.yaml"
    if "max_images" in recipe["data"]:
        recipe["data"]["max_images"] = 3 * GLOBAL_BATCH
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


def outcomes(recipe: str, chosen: list[Case]) -> dict[Case, dict[torch.dtype, list[Outcome]]]:
    """Of each case of a recipe, in each precision, on each of some batches; in each process of several."""
    return {case: compute(recipe, case) for case in chosen}


def compute(
    recipe: str, case: Case, dtypes: tuple[torch.dtype, ...] = tuple(LIMITS)
) -> dict[torch.dtype, list[Outcome]]:
    """The losses and gradients of a case.

    Args:
        recipe: The file.
        case: What to compute.
        dtypes: The precisions.
    """
    torch.set_num_threads(1)
    task, data = _build(recipe, case)
    return {dtype: [_step(task, data, dtype, epoch) for epoch in EPOCHS[dtype]] for dtype in dtypes}


def difference(alone: Outcome, together: list[Outcome]) -> float:
    """The largest relative difference: of the mean loss, and of each gradient, which DDP has given every process.

    A gradient that is much smaller than the others is a sum of numbers that are not, with their rounding, which alone
    is up to 2e-5 of it in float32 and 3e-14 in float64: it is compared with a tenth of the largest one's norm at least.
    """
    loss = sum(each.loss for each in together) / len(together)
    worst = abs(loss - alone.loss) / abs(alone.loss)
    norms = [float(each.norm()) for each in alone.gradients.values() if each is not None]
    floor = 0.1 * max(norms)
    for each in together:
        for name, gradient in alone.gradients.items():
            other = each.gradients[name]
            assert (gradient is None) == (other is None), f"{name} has a gradient in one of both only"
            if gradient is not None and other is not None:
                distance = float((gradient - other).norm()) / max(float(gradient.norm()), floor)
                worst = max(worst, distance) if distance == distance else float("inf")
    return worst


def differences(
    alone: dict[torch.dtype, list[Outcome]], together: list[dict[torch.dtype, list[Outcome]]]
) -> dict[torch.dtype, float]:
    """As `difference`, by precision."""
    return {
        dtype: min(
            difference(one, [each[dtype][number] for each in together]) for number, one in enumerate(alone[dtype])
        )
        for dtype in alone
    }


def without_chance(task: nn.Module) -> None:
    """No dropout of any kind: each process draws its own."""
    for module in task.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            module.dropout = 0.0


class _Step(nn.Module):
    """The task's step as a forward pass, for DistributedDataParallel."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Any) -> Tensor:
        return self.task.compute(batch).loss


def _build(recipe: str, case: Case) -> tuple[Task, Any]:
    """The task of a recipe as a run sets it up, with this process's part of the data."""
    arguments = ["-c", recipe, *case.options, f"--data.batch_size={GLOBAL_BATCH // world_size()}"]
    line = CommandLine(methods.command(case.method), arguments)
    parser = training_parser(line)
    with contextlib.redirect_stdout(io.StringIO()):
        objects = prepare(parser, parse(parser, line.arguments))
    task, data = objects.model, objects.data
    task.trainer = SimpleNamespace(
        world_size=world_size(), datamodule=data, global_step=0, current_epoch=0, estimated_stepping_batches=15
    )
    task.setup("fit")
    task.train()
    without_chance(task)
    return task, data


def _step(task: Task, data: Any, dtype: torch.dtype, epoch: int) -> Outcome:
    loader = data.loader("train", shuffle=True, drop_last=True)
    loader.follow(epoch, 1.0)
    batch = next(iter(loader))
    assert len(batch.indices) == GLOBAL_BATCH // world_size()
    # a separate task, because a step may change what is not a parameter
    trainer, task._trainer = task._trainer, None
    module = _Step(copy.deepcopy(task).to(dtype))
    task._trainer = module.task._trainer = trainer
    module.task.make_views = _in(dtype, module.task.make_views)  # pyright: ignore[reportAttributeAccessIssue]
    run = DistributedDataParallel(module) if world_size() > 1 else module
    loss = run(batch)
    loss.backward()
    return Outcome(loss.item(), {name: each.grad for name, each in module.named_parameters()})


def _in(dtype: torch.dtype, make_views: Callable[..., Any]) -> Callable[..., Any]:
    """Views in the precision of the network."""

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return lambda *arguments: tree_map(cast, make_views(*arguments))
