"""A shipped recipe is named, wherever the command is given; a file of that name wins."""

from pathlib import Path

import pytest
import yaml

from ssl_toolkit.cli import COMMANDS, main, recipes
from ssl_toolkit.cli.command_line import CommandLine

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = {"seed": 3}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refusal(capsys, *arguments):
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("ssl-toolkit: error: ")


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(("side", "name"), [("pretrain", "simclr"), ("transfer", "linear_probe")])
def test_a_name_says_what_the_file_says(capsys, side, name):
    file = str(CONFIGS / side / f"{name}.yaml")
    by_file = printed(capsys, side, "-c", file)
    for option in (["-c", name], ["--config", name], [f"--config={name}"]):
        assert printed(capsys, side, *option) == by_file


def test_every_file_is_a_recipe_of_its_side():
    for side in recipes.SIDES:
        assert list(recipes.shipped(side).values()) == sorted((CONFIGS / side).glob("*.yaml"))
        assert recipes.FIRST[side] in recipes.shipped(side)


def test_names_and_files_are_merged_in_their_order(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SMALL))
    line = CommandLine("pretrain", ["-c", "byol", "-c", "mine.yaml", "-c", "{seed: 4}", "--data.path", "simclr"])
    byol = str(CONFIGS / "pretrain" / "byol.yaml")
    assert line.arguments == ["-c", byol, "-c", "mine.yaml", "-c", "{seed: 4}", "--data.path", "simclr"]
    assert [each.value for each in line.statements if each.key == "seed"] == [0, 3, 4]


@pytest.mark.slow
def test_an_option_overrides_a_recipe_wherever_it_stands(capsys):
    options = ["--data.batch_size", "16", "--model.backbone.name", "resnet34", "--model.temperature=0.1"]
    behind = printed(capsys, "pretrain", "-c", "simclr", *options)
    assert behind["data"]["batch_size"] == 16
    assert behind["model"]["init_args"]["temperature"] == 0.1
    for recipe in (["-c", "simclr"], ["--config=simclr"]):
        assert printed(capsys, "pretrain", *options, *recipe) == behind
        assert printed(capsys, "pretrain", *options[:2], *recipe, *options[2:]) == behind


def test_an_option_of_evaluate_overrides_its_file_too(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"ks": [5], "data": {"batch_size": 7}}))
    behind = printed(capsys, "evaluate", "-c", "mine.yaml", "--data.batch_size", "16")
    assert behind["data"]["batch_size"] == 16
    assert behind["ks"] == [5]
    assert printed(capsys, "evaluate", "--data.batch_size", "16", "-c", "mine.yaml") == behind


def test_a_recipe_s_option_without_a_recipe_is_refused(capsys):
    assert "expected one argument" in refusal(capsys, "pretrain", "--data.batch_size", "16", "-c")


def test_a_file_wins_over_a_name_and_a_folder_does_not(tmp_path):
    (tmp_path / "simclr").mkdir()
    assert recipes.find("simclr", "pretrain") == str(CONFIGS / "pretrain" / "simclr.yaml")
    (tmp_path / "byol").write_text(yaml.safe_dump(SMALL))
    assert recipes.find("byol", "pretrain") == "byol"
    assert [each.value for each in CommandLine("pretrain", ["-c", "byol"]).statements] == [3]


@pytest.mark.parametrize("command", [["pretrain"], ["lr-find", "pretrain"], ["diagnose", "pretrain"]])
def test_wrong_names(capsys, command):
    assert refusal(capsys, *command, "-c", "simclt") == (
        "there is no file and no recipe 'simclt'; did you mean 'simclr'?"
    )
    every = ", ".join(file.stem for file in sorted((CONFIGS / "pretrain").glob("*.yaml")))
    assert refusal(capsys, *command, "--config=xyz") == (
        f"there is no file and no recipe 'xyz'; recipes of pretrain: {every}"
    )
    assert refusal(capsys, *command, "-c", "finetune") == (
        "finetune is a recipe of transfer: ssl-toolkit transfer -c finetune"
    )


def test_the_path_of_a_clone_is_answered_with_the_name(capsys):
    said = refusal(capsys, "transfer", "-c", "configs/transfer/finetune.yaml")
    assert said.endswith("; the shipped recipe of this name is -c finetune")


def test_without_a_recipe_one_is_named(capsys):
    assert refusal(capsys, "pretrain") == "missing: --model (a recipe gives it: -c simclr; --help lists them)"
    assert refusal(capsys, "transfer") == "missing: --model (a recipe gives it: -c linear_probe; --help lists them)"


@pytest.mark.parametrize("command", [["pretrain"], ["transfer"], ["lr-find"]])
def test_help_lists_the_recipes_of_its_side(capsys, command):
    assert command[0] in COMMANDS
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    side, other = ("transfer", "pretrain") if command == ["transfer"] else ("pretrain", "transfer")
    said = " ".join(capsys.readouterr().out.split())
    assert ", ".join(recipes.shipped(side)) in said
    assert ", ".join(recipes.shipped(other)) not in said
