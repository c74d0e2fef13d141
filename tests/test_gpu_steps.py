"""A training step on a GPU, without one: everything is on the right device, and nothing waits for the GPU.

Python is ahead of a GPU: it has given it the next operations while it is at work on the last ones. Whatever asks for a
number (``.item()``, a mask's places) or brings one (``torch.tensor(..., device="cuda")``) in each step lets the GPU run
dry in each step. torch's fake tensors tell of both without any GPU: they have a device, but no values.
"""

import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import methods
import test_components as components
from pretext.simclr import SimCLR
from ssl_toolkit import random
from ssl_toolkit.callbacks import Throughput, nonfinite
from ssl_toolkit.cli.train import train
from ssl_toolkit.perf.device_constants import constant

# the random numbers of a GPU's own generator need a GPU
DRAW_FROM_A_GPU = {"InputNoise", "ActivationNoise", "WeightNoise", "GradientNoise", "SAM"}
# how many frames there are, is asked in each step
ASK_FOR_LENGTHS = {"SequenceClassification"}
CUDA = torch.device("cuda", 0)


class Done(BaseException):
    """What was to be seen has been seen."""


class Copies(TorchDispatchMode):
    """Counts what is copied from one device to another, by the line of ours that does it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, out) if isinstance(each, torch.Tensor)]
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_) and len(devices(tensors)) > 1:
            self.found[place()] += 1
        return out


def devices(tensors) -> set[str]:
    return {each.device.type for each in tensors}


def place() -> str:
    """The innermost line of the project that is being executed."""
    root = str(Path(__file__).parents[1])
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(root)]
    ours = [frame for frame in frames if "tests" not in frame.filename and "site-packages" not in frame.filename]
    return f"{ours[-1].filename.removeprefix(root)}:{ours[-1].lineno} {ours[-1].line}" if ours else "elsewhere"


@contextmanager
def on_fake_gpu(module: torch.nn.Module):
    kept = []
    for each in module.modules():
        for owned in (each._parameters, each._buffers):
            kept.append((owned, dict(owned)))
            for name, tensor in owned.items():
                owned[name] = None if tensor is None else on_gpu(tensor)
    try:
        yield
    finally:
        for owned, tensors in kept:
            owned.update(tensors)


def on_gpu(batch):
    """Fakes of the tensors in a batch."""
    if isinstance(batch, torch.Tensor):
        fake = torch.empty_like(batch, device=CUDA)
        return torch.nn.Parameter(fake, batch.requires_grad) if isinstance(batch, torch.nn.Parameter) else fake
    return type(batch)(*map(on_gpu, batch)) if isinstance(batch, tuple) else batch


@pytest.fixture(autouse=True)
def _forget_fake_constants():
    kept = constant, random._beta_table
    yield
    for each in kept:
        each.cache_clear()


def fake_step(recipe, verb, tmp_path, monkeypatch) -> Counter[str]:
    """Trains a step, and makes the next on fake tensors of a GPU, twice: the first time may bring constants."""
    copies = Copies()

    def in_fakes(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            return
        module._log = lambda *_: None  # reads values of the device, when a row is due
        with FakeTensorMode(allow_non_fake_inputs=True), on_fake_gpu(module):
            batch = on_gpu(batch)
            module.training_step(batch, batch_idx)
            with copies:
                assert module.training_step(batch, batch_idx).device == CUDA
        raise Done

    monkeypatch.setattr(Throughput, "on_train_batch_start", in_fakes)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    with pytest.raises(Done):
        train(verb, ["-c", str(file), "--out", str(tmp_path / "run")], quietly=True)
    return copies.found


@pytest.mark.parametrize("name", sorted(set(methods.tasks()) - ASK_FOR_LENGTHS))
def test_a_step_of_each_method_neither_asks_a_gpu_nor_brings_it_numbers(name, tmp_path, monkeypatch):
    assert fake_step(methods.recipe(name, tmp_path), methods.verb(name), tmp_path, monkeypatch) == {}


@pytest.mark.parametrize("form", ["exact", "fused"])
def test_nor_does_any_view(form, tmp_path, monkeypatch):
    recipe = methods.recipe("SimCLR", tmp_path)
    view = {"size": 24, "form": form, "vflip": 0.5, "rotation": 20, "solarize": 0.2, "erase": 0.5}
    recipe["model"]["init_args"]["view"] = {**view, "interpolation": "bicubic"}
    assert fake_step(recipe, "pretrain", tmp_path, monkeypatch) == {}


@pytest.mark.parametrize("regularizer", sorted(set(components.REGULARIZERS) - DRAW_FROM_A_GPU))
@pytest.mark.parametrize("name", ["SimCLR", "Classification"])
def test_nor_does_any_regularizer(name, regularizer, tmp_path, monkeypatch):
    recipe = methods.recipe(name, tmp_path)
    arguments = components.ARGUMENTS.get(regularizer, {})
    given = {"class_path": f"ssl_toolkit.regularization.{regularizer}", "init_args": arguments}
    recipe["model"]["init_args"]["regularizers"] = [given]
    assert fake_step(recipe, methods.verb(name), tmp_path, monkeypatch) == {}


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


class Questions(TorchDispatchMode):
    """Counts the numbers that Python asks a tensor for, and tensors made of Python's, by the line of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        if func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.lift_fresh):
            self.found[place()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(set(methods.tasks()) - ASK_FOR_LENGTHS))
def test_between_two_steps_nothing_is_asked_either(name, tmp_path, monkeypatch):
    """The loop around the steps, on a CPU: Lightning, the callbacks, the optimizer, the schedule, the log."""
    monkeypatch.setattr(nonfinite, "_is_behind", lambda device: True)
    questions = Questions()
    start, end = Throughput.on_train_batch_start, Throughput.on_train_batch_end

    def begin(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            questions.__enter__()
        start(self, trainer, module, batch, batch_idx)

    def finish(self, trainer, module, outputs, batch, batch_idx):
        end(self, trainer, module, outputs, batch, batch_idx)
        if batch_idx == 3:
            questions.__exit__(None, None, None)

    monkeypatch.setattr(Throughput, "on_train_batch_start", begin)
    monkeypatch.setattr(Throughput, "on_train_batch_end", finish)
    recipe = methods.recipe(name, tmp_path, max_epochs=1)
    if "view" in recipe["model"]["init_args"]:
        recipe["model"]["init_args"]["view"]["blur"] = 0  # on a CPU it asks which views are to be blurred
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    command = ["-c", str(file), "--out", str(tmp_path / "run"), "--watch.every_n_steps", "0"]
    train(methods.verb(name), command, quietly=True)
    files = {line.split(":")[0] for line in questions.found}
    # the verdict on a step that is over
    assert files == {"/ssl_toolkit/callbacks/nonfinite.py"}, questions.found
