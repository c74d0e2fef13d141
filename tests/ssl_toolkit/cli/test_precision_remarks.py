"""Training in bfloat16 on a processor that imitates it is said, and the quickstart does not."""

import pytest
import torch
from jsonargparse import Namespace

from ssl_toolkit.cli import quickstart, remarks


@pytest.mark.parametrize("native", [True, False])
def test_an_imitated_bfloat16_is_said(monkeypatch, native):
    monkeypatch.setattr(remarks, "has_native_bf16", lambda device: native)
    monkeypatch.setattr(quickstart, "has_native_bf16", lambda device: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for accelerator, precision in (("cpu", "bf16-mixed"), ("auto", "bf16-mixed")):
        found = remarks.precision_remarks(Namespace(accelerator=accelerator, precision=precision))
        assert bool(found) != native
        assert all("--trainer.precision 32-true" in line for line in found)
    for accelerator, precision in (("cpu", "32-true"), ("cpu", None), ("gpu", "bf16-mixed")):
        assert not remarks.precision_remarks(Namespace(accelerator=accelerator, precision=precision))
    assert bool(quickstart._precision()) != native
