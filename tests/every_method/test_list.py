"""The list of all methods is complete, and what each says of itself is true."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import yaml

import methods
from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.prepare import prepare
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.modules import EMATeacher, FeatureQueue
from ssl_toolkit.task import Task, Trait

ADVICE = "say in a module of tests/helpers/methods, named like the method's, with which arguments it is small"


def test_no_method_is_left_out():
    used = {each.task or name for name, each in methods.table().items()}
    used |= {each.arguments["head"]["class_path"].rpartition(".")[2] for each in methods.table().values()
             if isinstance(each.arguments.get("head"), dict)}  # fmt: skip
    assert used == set(methods.found()), ADVICE
    assert {"SimCLR", "PatchPosition", "TransformerHead"} <= set(methods.tasks())


def test_each_method_is_described_in_a_file_named_like_its_own():
    for module in pkgutil.iter_modules(methods.__path__, "methods."):
        for name in getattr(importlib.import_module(module.name), "METHODS", {}):
            assert methods.tasks()[name].__module__.rpartition(".")[2] == module.name.removeprefix("methods.")


def test_each_pretext_task_has_its_lesson():
    assert {name for name, each in methods.table().items() if each.lesson} >= set(methods.pretext_tasks())


def test_each_trait_has_a_representative_with_it():
    assert set(methods.REPRESENTATIVES) == set(get_args(Trait))
    for trait, name in methods.REPRESENTATIVES.items():
        assert trait in methods.tasks()[name].traits


def task_and_data(name: str, folder: Any) -> tuple[Task, Any]:
    """A method's task, as at the start of a run, and its data."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(methods.recipe(name, folder / "data")))
    line = CommandLine(methods.command(name), ["-c", str(file)])
    parser = training_parser(line)
    objects = prepare(parser, parse(parser, line.arguments))
    task, data = objects.model, objects.data
    data.setup("fit")
    task.trainer = SimpleNamespace(
        world_size=1, datamodule=data, global_step=0, current_epoch=0, estimated_stepping_batches=9
    )
    task.setup("fit")
    return task.eval(), data


def differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    """By more than rounding does."""
    return abs(float(one - other)) > 1e-4 * abs(float(one))


def relabelled(batch: Any, labels: torch.Tensor) -> Any:
    """The batch with other labels, which its frames share where they have their own."""
    if getattr(batch, "frame_labels", None) is not None:
        batch = batch._replace(frame_labels=labels.repeat_interleave(batch.lengths))
    return batch._replace(labels=labels)


@pytest.mark.parametrize("name", methods.tasks())
@torch.no_grad()
def test_its_traits_are_true(name, tmp_path):
    task, data = task_and_data(name, tmp_path)
    kinds = {type(module) for module in task.modules()}
    shapes: list[tuple[int, ...]] = []
    task.backbone.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    few = data.indices("train")[:8]
    batches = {num: list(data.loader("train", batch_size=num, indices=few)) for num in (8, 4)}
    # BatchNorm is at rest: what depends on other samples now is the loss itself
    halves = [copy.deepcopy(task).compute(batch).loss for batch in batches[4][:2]]
    first = batches[8][0]
    # two classes by turns, or one
    both = torch.arange(8) % 2
    labelled = [copy.deepcopy(task).compute(relabelled(first, each)).loss for each in (both, 0 * both)]
    shapes.clear()
    whole = copy.deepcopy(task).compute(first).loss
    seen = {
        "teacher": EMATeacher in kinds,
        "queue": FeatureQueue in kinds,
        "batch_statistics": differs(whole, torch.stack(halves).mean()),
        "labels": differs(*labelled),
        "sequences": methods.needs_sequences(name),
    }
    assert {trait for trait, shown in seen.items() if shown} == task.traits & set(seen)
    # these a task may have, by its settings
    seen["several_rows"] = sum(shape[0] for shape in shapes) != 8
    seen["several_sizes"] = len({shape[-2:] for shape in shapes}) > 1
    assert {trait for trait, shown in seen.items() if shown} <= task.traits
    assert all(seen[trait] for trait, stands in methods.REPRESENTATIVES.items() if stands == name)
