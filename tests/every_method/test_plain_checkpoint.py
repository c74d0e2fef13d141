"""Checkpoints hold tensors and plain data, whatever the method and whatever its callbacks keep."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

import methods
from run_comparison import arguments_for
from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import newest_checkpoint

PLAIN = {dict, OrderedDict, list, tuple, str, int, float, bool, type(None), torch.Tensor}
# all that may keep something
EVERYTHING = {
    "average": {"kind": "ema"},
    "early_stopping": {"patience": 9},
    "watch": {"every_n_steps": 1},
    "nonfinite": {"skip": 1},
}


def walk(found, place=""):
    """All values of nested containers, with their place."""
    yield place, found
    if isinstance(found, dict):
        for key, value in found.items():
            yield f"{place}/{key} (its name)", key
            yield from walk(value, f"{place}/{key}")
    elif isinstance(found, (list, tuple)):
        for number, value in enumerate(found):
            yield from walk(value, f"{place}/{number}")


def test_the_walk_finds_what_is_not_plain():
    hidden = {"a": [1, {"b": (torch.ones(1), torch.device("cpu"))}], torch.float32: 2}
    assert [place for place, value in walk(hidden) if type(value) not in PLAIN] == [
        "/a/1/b/1",
        "/torch.float32 (its name)",
    ]


@pytest.mark.guarantee("S4")
@pytest.mark.parametrize("name", methods.each())
def test_the_checkpoint_of_each_method_is_plain(name, tmp_path, reached):
    start = arguments_for(name, tmp_path, EVERYTHING, max_epochs=1)
    run = train(methods.command(name), [*start, "--out", str(tmp_path / "run")], quietly=True)
    file = newest_checkpoint(run)
    # torch's own list of what the file names and a loader of plain data would not load
    assert torch.serialization.get_unsafe_globals_in_checkpoint(file) == []
    content = torch.load(file, weights_only=True)
    values = list(walk(content))
    assert [(place, type(value)) for place, value in values if type(value) not in PLAIN] == []
    assert "hyper_parameters" not in content
    assert set(content["callbacks"]) >= {"WeightAverage", "EarlyStopping", "Watch", "NonFinite"}
    reached(f"{len(values):,} values in the checkpoint, all of them tensors and plain data")
