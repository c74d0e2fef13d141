"""The list of all methods: complete, and each of them trains."""

import pytest
import torch
import yaml

import methods
from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import newest_checkpoint


def test_the_list_is_complete():
    assert set(methods.ARGUMENTS) == set(methods.tasks()), "give a new task its arguments in tests/helpers/methods.py"
    assert {"SimCLR", "PatchPosition"} <= set(methods.pretext_tasks())


@pytest.mark.parametrize("name", methods.tasks())
def test_each_method_trains(name, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(methods.recipe(name, tmp_path / "data")))
    run = train(methods.verb(name), ["-c", str(file), "--out", str(tmp_path / "run")], quietly=True)
    assert torch.load(newest_checkpoint(run), weights_only=True)["global_step"] in (15, 18)
