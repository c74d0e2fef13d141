"""The command line of a training is read once, and what it says is known in its order."""

import yaml

from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.frames import FrameData


def write(folder, name, content):
    file = folder / name
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(file)


def test_statements_come_in_order_without_what_only_the_parser_needs(tmp_path):
    optimizer = {"init_args": {"lr": 0.1, "betas": [0.9, 0.95]}, "class_path": "AdamW"}
    model = {"class_path": "pretext.simclr.SimCLR", "init_args": {"optimizer": optimizer}}
    recipe = write(tmp_path, "recipe.yaml", {"model": model, "seed": 3})
    options = ["--data.batch_size=4", "--model.init_args.optimizer.class_path", "SGD", "--model.optimizer.lr", "1"]
    line = CommandLine("pretrain", ["-c", recipe, *options])
    assert [tuple(each) for each in line.statements] == [
        ("model", "pretext.simclr.SimCLR", True),
        ("model.optimizer", "AdamW", True),
        ("model.optimizer.lr", 0.1, True),
        ("model.optimizer.betas", [0.9, 0.95], True),
        ("seed", 3, True),
        ("data.batch_size", "4", False),
        ("model.optimizer", "SGD", False),
        ("model.optimizer.lr", "1", False),
    ]
    assert line.set_by_options == {"data.batch_size", "model.optimizer", "model.optimizer.lr"}


def test_the_last_task_decides_on_the_data(tmp_path):
    sequences = "downstream.sequence.SequenceClassification"
    recipe = write(tmp_path, "recipe.yaml", {"model": {"class_path": sequences}})
    assert CommandLine("transfer", ["--config", recipe]).data_class is FrameData
    assert CommandLine("transfer", ["--model", sequences]).data_class is FrameData
    line = CommandLine("transfer", ["-c", recipe, "--model=downstream.classification.Classification"])
    assert line.data_class is ImageData
    for wrong in ("nonsense", "downstream.nonsense.X", "downstream.sequence.Nonsense"):
        assert CommandLine("transfer", ["--model", wrong]).data_class is ImageData
    assert CommandLine("transfer", ["-c", str(tmp_path / "missing.yaml")]).statements == []


def test_a_recipe_may_be_yaml_itself():
    line = CommandLine("pretrain", ["-c", "{seed: 5}", "--model", "pretext.simclr.SimCLR", "--data.path", "x"])
    assert ("seed", 5, True) in line.statements
    required = ["--model.backbone.name", "resnet18", "--model.optimizer", "SGD", "--model.schedule", "Cosine"]
    required += ["--model.view.size", "32", "--model.optimizer.lr", "1"]
    assert parse(training_parser(line), [*line.arguments, *required]).seed == 5


def test_a_resumed_run_says_first_what_it_was_told(tmp_path):
    write(tmp_path, "config.yaml", {"seed": 7})
    line = CommandLine("pretrain", ["--resume", str(tmp_path), "--seed", "8"])
    assert line.resumed == tmp_path
    assert line.arguments[:2] == ["--config", str(tmp_path / "config.yaml")]
    assert [each.value for each in line.statements if each.key == "seed"] == [7, "8"]


def test_a_second_recipe_keeps_the_views_of_the_first(tmp_path):
    first = {"model": {"init_args": {"views": {"global": {"size": 32, "count": 2}, "local": {"size": 16}}}}}
    second = {"model": {"views": {"local": {"size": 20}, "third": {"size": 8}}}, "seed": 1}
    third = {"model": {"init_args": {"views": {"global": None}}}}
    files = [write(tmp_path, f"{number}.yaml", each) for number, each in enumerate((first, second, third))]
    line = CommandLine("pretrain", ["-c", files[0], "-c", files[1], f"--config={files[2]}"])
    assert line.arguments[1] == files[0]
    merged = yaml.safe_load(line.arguments[3])
    assert merged["seed"] == 1
    assert merged["model"]["views"] == {
        "global": {"size": 32, "count": 2},
        "local": {"size": 20},
        "third": {"size": 8},
    }
    assert list(yaml.safe_load(line.arguments[4].partition("=")[2])["model"]["init_args"]["views"]) == [
        "local",
        "third",
    ]
