"""Each method trains, its run is resumed without a trace, and nothing depends on how its images were read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import methods
from run_comparison import batches_noted, checkpoint, copy_until, differences
from ssl_toolkit.cli.train import train
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.weights import load_backbone

# the reference run has one thread and no cache
WAYS = [(2, "memory"), (4, "disk")]


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    """The page is no part of what is compared."""
    monkeypatch.setattr("ssl_toolkit.cli.train.finish", lambda *_: None)


@pytest.mark.parametrize("name", methods.each())
def test_each_method_trains(name, reference_run):
    reference = reference_run(name)
    first, last = checkpoint(reference.folder, 1), checkpoint(reference.folder)
    assert last["global_step"] == len(reference.batches) > 6
    losses = [loss for loss in read_metrics(reference.folder)["train/loss"] if loss == loss]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    # all that learns has moved, and what the run exports is no longer what it began with
    trained = dict(matrices(last))
    assert all(not torch.equal(tensor, trained[key]) for key, tensor in matrices(first) if tensor.any())
    assert load_backbone(reference.folder / "backbone.safetensors").num_features == 16


def matrices(content) -> list[tuple[str, Tensor]]:
    """Weights of convolutions and matrices in a checkpoint; a teacher's move by its momentum."""
    return [
        (key, tensor) for key, tensor in content["state_dict"].items() if key.endswith("weight") and tensor.ndim > 1
    ]


@pytest.mark.guarantee("R2")
@pytest.mark.parametrize("name", methods.each())
def test_resume_at_three_places(name, reference_run, tmp_path, reached):
    reference = reference_run(name)
    per_epoch = sum(epoch == 0 for _, epoch, *_ in reference.batches)
    end = checkpoint(reference.folder)
    places = {"after the first step": 1, "after an epoch": per_epoch, "within an epoch": per_epoch + 2}
    for place, step in places.items():
        resumed, batches = copy_until(reference.folder, step, tmp_path / str(step)), []
        with batches_noted(batches.append):
            train(reference.command, ["--resume", str(resumed), "--checkpoint.every_n_steps", "1000"], quietly=True)
        assert batches == [batch for batch in reference.batches if batch[0] >= step], place
        assert differences(end, checkpoint(resumed)) == [], place
    reached(f"{name}: 3 of 3 places, every bit the same")


@pytest.mark.guarantee("R3")
@pytest.mark.parametrize("name", methods.each(quick=["SimCLR", "SequenceClassification"], others=pytest.mark.nightly))
def test_nothing_depends_on_threads_or_on_the_cache(name, reference_run, tmp_path, reached):
    reference = reference_run(name)
    end = checkpoint(reference.folder)
    for threads, cache in WAYS:
        run, batches = tmp_path / cache, []
        options = ["--data.num_threads", threads, "--data.cache", cache, "--data.cache_dir", tmp_path / "cache",
                   "--checkpoint.every_n_steps", 1000, "--out", run]  # fmt: skip
        with batches_noted(batches.append):
            train(reference.command, [*reference.arguments, *map(str, options)], quietly=True)
        assert batches == reference.batches
        assert differences(end, checkpoint(run)) == [], (threads, cache)
    reached(f"{name}: every bit the same with 1, 2 and 4 threads, without a cache, in memory and on disk")
