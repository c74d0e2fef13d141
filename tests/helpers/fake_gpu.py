"""A training step on a GPU, without one, on torch's fake tensors: they have a device, but no values."""

from __future__ import annotations

import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_toolkit import random
from ssl_toolkit.callbacks import Throughput
from ssl_toolkit.cli.train import train
from ssl_toolkit.perf.device_constants import constant

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
    root = str(Path(__file__).parents[2])
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


def forget_constants() -> None:
    """Those that lie on a fake GPU."""
    for each in (constant, random._beta_table):
        each.cache_clear()


def fake_step(recipe: dict[str, Any], command: str, tmp_path: Path, monkeypatch: Any) -> Counter[str]:
    """Trains a step, and makes the next on fake tensors of a GPU, twice: the first time may bring constants."""
    copies = Copies()

    def in_fakes(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            return
        module.log_step = lambda *_: None  # reads values of the device, when a row is due
        with FakeTensorMode(allow_non_fake_inputs=True), on_fake_gpu(module):
            batch = on_gpu(batch)
            module.training_step(batch, batch_idx)
            with copies:
                assert module.training_step(batch, batch_idx).device == CUDA
        raise Done

    monkeypatch.setattr(Throughput, "on_train_batch_start", in_fakes)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    try:
        with pytest.raises(Done):
            train(command, ["-c", str(file), "--out", str(tmp_path / "run")], quietly=True)
    finally:
        forget_constants()
    return copies.found
