"""A training step on a GPU, without one: everything is on the right device, and nothing waits for the GPU.

Python is ahead of a GPU: it has given it the next operations while it is at work on the last ones. Whatever asks for a
number (``.item()``, a mask's places) or brings one (``torch.tensor(..., device="cuda")``) in each step lets the GPU run
dry in each step. `tests/every_method/test_gpu_step.py` looks for both in each method's step.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

import components
import methods
from fake_gpu import fake_step
from pretext.simclr import SimCLR

# the random numbers of a GPU's own generator need a GPU
DRAW_FROM_A_GPU = {"InputNoise", "ActivationNoise", "WeightNoise", "GradientNoise", "SAM"}


@pytest.mark.parametrize("form", ["exact", "fused"])
@pytest.mark.slow
def test_no_view_asks_or_brings(form, tmp_path, monkeypatch):
    recipe = methods.recipe("SimCLR", tmp_path)
    view = {"size": 24, "form": form, "vflip": 0.5, "rotation": 20, "solarize": 0.2, "erase": 0.5}
    recipe["model"]["init_args"]["view"] = {**view, "interpolation": "bicubic"}
    assert fake_step(recipe, "pretrain", tmp_path, monkeypatch) == {}


@pytest.mark.slow
@pytest.mark.parametrize("colour", ["dropping", "projection", "grey"])
def test_nothing_done_to_a_patch_asks_or_brings(colour, tmp_path, monkeypatch):
    recipe = methods.recipe("PatchPosition", tmp_path)
    recipe["model"]["init_args"] |= {"colour": colour, "downsampling": 0.5, "rescaling": "standardize"}
    assert fake_step(recipe, "pretrain", tmp_path, monkeypatch) == {}


@pytest.mark.parametrize("regularizer", components.each_regularizer(without=DRAW_FROM_A_GPU))
@pytest.mark.parametrize("name", [pytest.param("SimCLR", marks=pytest.mark.slow), "Classification"])
def test_no_regularizer_asks_or_brings(name, regularizer, tmp_path, monkeypatch):
    recipe = methods.recipe(name, tmp_path)
    arguments = components.ARGUMENTS.get(regularizer, {})
    given = {"class_path": f"ssl_toolkit.regularization.{regularizer}", "init_args": arguments}
    recipe["model"]["init_args"]["regularizers"] = [given]
    assert fake_step(recipe, methods.command(name), tmp_path, monkeypatch) == {}


@pytest.mark.parametrize("waits", [".item()", "mask", "numbers"])
def test_what_waits_is_seen(waits, tmp_path, monkeypatch):
    original = SimCLR.step

    def step(self, batch, keys, context):
        output = original(self, batch, keys, context)
        if waits == ".item()":
            output.loss.item()
        elif waits == "mask":
            keys[keys > 0]
        else:
            torch.tensor([1.0], device=keys.device)
        return output

    monkeypatch.setattr(SimCLR, "step", step)
    recipe = methods.recipe("SimCLR", tmp_path)
    if waits == "numbers":
        assert sum(fake_step(recipe, "pretrain", tmp_path, monkeypatch).values()) == 1
    else:
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            fake_step(recipe, "pretrain", tmp_path, monkeypatch)
