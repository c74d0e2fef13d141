"""Every recipe can be parsed and built with the command in its header."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.parser import instantiate, parse
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


def training_commands(file):
    header = "".join(line for line in file.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    text = re.sub(r"\\\n#", "", header)
    return [shlex.split(command) for command in re.findall(r"ssl-toolkit ((?:pretrain|transfer) .*)", text)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_the_header_s_command_builds_the_task(file, tmp_path, monkeypatch):
    commands = training_commands(file)
    assert commands
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for command, *arguments in commands:
        assert str(file.relative_to(ROOT)) in arguments
        assert command == file.parent.name
        if "--model.weights" in arguments:
            weights = tmp_path / arguments[arguments.index("--model.weights") + 1]
            weights.parent.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(0)
            save_backbone(weights, Backbone("resnet10t", kwargs={"channels": (8, 8, 16, 16)}))
        parser = training_parser(CommandLine(command, arguments))
        objects = instantiate(parser, parse(parser, arguments))
        assert objects.model.backbone.num_features > 0
        assert objects.data.batch_size > 1
