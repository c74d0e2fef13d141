"""A value of a wrong type for any option is answered in one line of plain words, not in those of the parser."""

import contextlib
import re

import pytest
from jsonargparse import ArgumentParser, Namespace

from ssl_toolkit.cli import COMMANDS, main
from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.training_parser import training_parser

VALUES = ("abc", "-1.5", "[1,2]", "{a: 1}")
RAW = re.compile(
    r"Union|typing\.|Literal|NoneType|<class|Given value|Subclass types|[Pp]arser key|NestedArg|Namespace|\bbool\b|\n"
)
TRAINED = {"lr-find": ["pretrain"], "diagnose": ["transfer"], "predict": ["--help"], "pseudo-label": ["--help"]}
# each has arguments that those before it lack
RECIPES = {
    "simclr": "pretrain", "moco_v2": "pretrain", "jigsaw": "pretrain", "finetune": "transfer",
    "sequence_lstm": "transfer",
}  # fmt: skip


class Captured(BaseException):
    """Takes the parser of a command along."""


def parser_of(command, monkeypatch):
    def capture(parser, *_, **__):
        raise Captured(parser)

    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(ArgumentParser, "parse_args", capture)
        try:
            main([command, *TRAINED.get(command, [])])
        except Captured as captured:
            return captured.args[0]
    raise AssertionError(f"{command} parses nothing")


def complaints(parser, key, before=()):
    for value in VALUES:
        with contextlib.suppress(SystemExit):
            try:
                parse(parser, [*before, f"--{key}={value}"])
            except ValueError as error:
                yield f"--{key}={value}", str(error)


def check(found):
    assert found
    raw = [(option, message) for option, message in found if RAW.search(message) or len(message) > 400]
    assert not raw


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_every_option_of_a_command(command, monkeypatch):
    parser = parser_of(command, monkeypatch)
    options = {
        action.dest: action.option_strings[-1].removeprefix("--") for action in parser._actions if action.option_strings
    }
    known = set() if command == "pretrain" else {"data", "trainer"}
    keys = [key for dest, key in options.items() if dest.split(".")[0] not in known and not key.endswith("help")]
    found = [each for key in keys for each in complaints(parser, key)]
    if command != "report":  # which has no other option
        check(found)


def keys_of(settings, prefix):
    """The keys of a namespace, without what only the parser needs to know."""
    for name, value in vars(settings).items():
        key = prefix if name == "init_args" else f"{prefix}.{name}"
        if isinstance(value, Namespace):
            yield from ([key] if name != "init_args" else [])
            yield from keys_of(value, key)
        elif name != "class_path":
            yield key


def model_of(recipe):
    line = CommandLine(RECIPES[recipe], ["-c", recipe, *(["--model.backbone.name=resnet18"] * (recipe != "simclr"))])
    parser = training_parser(line)
    return parser, parse(parser, line.arguments).model


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.slow
def test_every_setting_of_a_task(recipe):
    others = list(RECIPES)[: list(RECIPES).index(recipe)]
    known = {key for other in others for key in keys_of(model_of(other)[1], "model")}
    parser, model = model_of(recipe)
    keys = [key for key in keys_of(model, "model") if key not in known]
    check([each for key in keys for each in complaints(parser, key, [f"--model={model.class_path}"])])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--data=photos", "data is 'photos', expected settings by their names"),
        (
            "--model.backbone=vgg",
            "model.backbone is 'vgg', expected settings by their names (--model.backbone.name vgg)",
        ),
        ("--model.optimizer=-1.5", "model.optimizer: there is no class '-1.5'"),
        ("--model.optimizer={lr: 1}", "first --model.optimizer with one of Adadelta, Adagrad, Adam"),
        ("--model.view=[1,2]", "model.view is [1, 2], expected RandomView: its class_path and init_args"),
        ("--model.view.scale=abc", "model.view.scale is 'abc', expected list or null"),
        ("--model.regularizers=[1,2]", "model.regularizers is 1, expected Regularizer: its class_path and init_args"),
        ("--trainer.plugins=[1,2]", "expected Precision or ClusterEnvironment or CheckpointIO or LayerSync"),
    ],
)
def test_what_is_said(option, expected):
    parser = training_parser(CommandLine("pretrain", []))
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse(parser, ["--model=pretext.simclr.SimCLR", option])


@pytest.mark.parametrize(
    ("given", "meant"),
    [("Simclr", "pretext.simclr.SimCLR"), ("Clasification", "downstream.classification.Classification")],
)
def test_a_task_named_without_its_module_is_found(given, meant):
    parser = training_parser(CommandLine("pretrain", []))
    with pytest.raises(ValueError, match=f"there is no class '{given}'; did you mean '{meant}'"):
        parse(parser, [f"--model={given}"])
