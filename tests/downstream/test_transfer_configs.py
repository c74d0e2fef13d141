"""The recipes in configs/transfer for any data: each starts from a weights file and from random weights."""

import inspect
from pathlib import Path

import pytest
import torch

import downstream.sequence
from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.parser import instantiate, parse
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone

FOLDER = Path(__file__).parents[2] / "configs" / "transfer"
FILES = [file for file in sorted(FOLDER.glob("*.yaml")) if "LABELLED" in file.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_backbone(path, Backbone("resnet10t", kwargs={"channels": (8, 8, 16, 16)}))
    return path


def test_there_are_recipes():
    names = {file.stem for file in FILES}
    assert names >= {"linear_probe", "mlp_head", "finetune", "sequence_lstm", "sequence_transformer"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_is_complete(file, weights):
    header = file.read_text(encoding="utf-8").partition("\nseed:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"-c configs/transfer/{file.name} --data.path LABELLED" in header
    for start in (["--model.weights", str(weights)], ["--model.backbone.name", "resnet10t"]):
        arguments = ["-c", str(file), "--data.path", "LABELLED", *start]
        parser = training_parser(CommandLine("transfer", arguments))
        task = instantiate(parser, parse(parser, arguments)).model
        assert (task.pretraining is None) == ("--model.weights" not in start)
        task.num_classes = 3
        task.setup("test")
        assert sum(parameter.numel() for parameter in task.head.parameters()) > 0


@pytest.mark.parametrize("recipe", ["sequence_labels", "sequence_lstm", "sequence_transformer"])
@pytest.mark.parametrize("name", ["RecurrentHead", "TransformerHead", "TemporalConvHead", "MultiStageTCNHead"])
def test_another_head_takes_no_size_of_the_recipes_own(recipe, name):
    """What a recipe sets of its head goes on with another that has an argument of the name: it must set no size."""
    line = CommandLine("transfer", ["-c", recipe, "--model.head", name])
    head = parse(training_parser(line), line.arguments).model.init_args.head
    own = inspect.signature(getattr(downstream.sequence, name)).parameters
    assert head.class_path.endswith(name)
    given = {argument for argument, value in head.init_args.items() if value != own[argument].default}
    assert given <= {"dropout", "kind"}
