"""Arguments that an optimizer or schedule takes over from another class are named."""

import pytest
import yaml

from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.leftover_args import leftover_remarks
from ssl_toolkit.cli.parser import instantiate, parse
from ssl_toolkit.cli.train import train
from ssl_toolkit.cli.training_parser import training_parser


def remarks(*arguments):
    line = CommandLine("pretrain", arguments)
    parser = training_parser(line)
    return leftover_remarks(line, instantiate(parser, parse(parser, arguments)).model)


@pytest.fixture
def file(tmp_path):
    def write(**model):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        file.write_text(yaml.safe_dump({"model": model}))
        return str(file)

    return write


def test_an_option_that_changes_the_class(recipe):
    # the recipe: AdamW at 0.002 without a word on its weight decay, and Cosine with 2 steps of warm-up
    assert remarks("-c", recipe) == []
    assert remarks("-c", recipe, "--model.optimizer.lr", "0.1") == []
    assert remarks("-c", recipe, "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1") == []
    (said,) = remarks("-c", recipe, "--model.optimizer", "SGD")
    assert said == "SGD keeps what the recipe says for AdamW: lr 0.002 (--model.optimizer.NAME)"
    (said,) = remarks("-c", recipe, "--model.schedule=ssl_toolkit.schedule.Linear")
    assert said.startswith("Linear keeps what the recipe says for Cosine: warmup_steps 2 ")


def test_a_second_recipe_that_changes_the_class(recipe, file):
    first = file(
        init_args={"optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"weight_decay": 0.05}}}
    )
    second = file(optimizer={"class_path": "SGD", "init_args": {"lr": 0.1}})
    (said,) = remarks("-c", recipe, "-c", first, "-c", second)
    assert "weight_decay 0.05" in said
    assert "lr" not in said.partition(": ")[2].partition("(")[0]
    assert remarks("-c", recipe, "-c", first, "-c", second, "--model.optimizer.weight_decay", "0") == []


def test_what_the_new_class_does_not_take_is_not_named(recipe, file):
    first = file(optimizer={"class_path": "AdamW", "init_args": {"betas": [0.9, 0.95], "lr": 0.1}})
    (said,) = remarks("-c", recipe, "-c", first, "--model.optimizer", "SGD")
    assert "betas" not in said


@pytest.mark.slow
def test_it_is_said_at_the_start_of_a_run_and_not_of_a_resumed_one(recipe, tmp_path, capsys):
    short = ["--trainer.max_epochs", "1", "--model.optimizer", "SGD"]
    train("pretrain", ["-c", recipe, *short, "--out", str(tmp_path / "run")], quietly=True)
    assert capsys.readouterr().out.count("SGD keeps what the recipe says for AdamW") == 1
    train("pretrain", ["--resume", str(tmp_path / "run")], quietly=True)
    assert "keeps" not in capsys.readouterr().out
