"""Heads of sequences on cached features learn what they learn through the frozen backbone, bit for bit."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from test_cached_features import assert_same, state

import methods
from downstream.base.frozen_features import rows_of
from ssl_toolkit.cli.train import train
from ssl_toolkit.data.frames import FrameData
from ssl_toolkit.data.frames.source import FrameSource
from ssl_toolkit.modules import Backbone
from ssl_toolkit.run_folder import newest_checkpoint, step_of
from ssl_toolkit.tracking.metrics_csv import last_values
from train_in_processes import train_together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty sequences of two to four frames, one of which cannot be read, and two of whose frames are cut off."""
    path = methods.write_sequences(tmp_path_factory.mktemp("sequences"))
    (path / "rising" / "1.npy").write_bytes(b"no tensor")
    return path


def run(out, folder, cached, head="RecurrentHead", together=False, epochs=3, **data):
    arguments = {
        "backbone": {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16], "drop_path_rate": 0.2}},
        "freeze_backbone": True, "cache_features": cached, "image_size": 16,
        "head": {"class_path": f"downstream.sequence.{head}"},
        "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.01}},
        "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"},
    }  # fmt: skip
    recipe = {
        "model": {"class_path": "downstream.sequence.SequenceClassification", "init_args": arguments},
        "data": {"path": str(folder), "labels": "folder", "image_size": 16, "batch_size": 8, "val_fraction": 0.2,
                 "test_fraction": 0.2, **data},
        "trainer": {"accelerator": "cpu", "max_epochs": epochs}, "tracker": "none", "checkpoint": {"every_n_steps": 4},
        "random_weights": False,
    }  # fmt: skip
    words = ["-c", yaml.safe_dump(recipe), "--out", str(out)]
    return train_together("transfer", words) if together else train("transfer", words, quietly=True)


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """Without and with cached features."""
    out = tmp_path_factory.mktemp("runs")
    return [run(out / str(cached), folder, cached) for cached in (False, True)]


def test_what_is_learned_is_the_same(runs):
    assert_same(*runs)
    # the frames of the first sequences, as without
    assert (runs[1] / "views.png").stat().st_size > 1000


def test_a_run_that_was_stopped_goes_on_to_the_same_end(runs, tmp_path):
    stopped = shutil.copytree(runs[1], tmp_path / "run")
    newest_checkpoint(stopped).unlink()
    assert step_of(newest_checkpoint(stopped)) < step_of(newest_checkpoint(runs[0]))
    train("transfer", ["--resume", str(stopped)], quietly=True)
    assert_same(runs[0], stopped)


@pytest.mark.slow
def test_heads_of_another_kind(folder, tmp_path):
    for head in ("TransformerHead", "TemporalConvHead", "AttentionPoolingHead"):
        pair = [run(tmp_path / f"{head}-{cached}", folder, cached, head, num_threads=1) for cached in (False, True)]
        assert_same(*pair)


@pytest.mark.slow
def test_pairs(tmp_path):
    for number in range(40):
        file = tmp_path / "data" / "ab"[number % 2] / f"{number}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.random.default_rng(number).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
    assert_same(*(run(tmp_path / str(cached), tmp_path / "data", cached, "PairHead") for cached in (False, True)))


def in_two(folder, out, cached):
    return run(out, folder, cached, together=True)


@pytest.mark.slow
def test_two_processes_are_the_same(folder, tmp_path, run_processes):
    for cached in (False, True):
        run_processes(in_two, 2, str(folder), str(tmp_path / str(cached)), cached, timeout=180.0)
    without, cached = (state(tmp_path / name) for name in ("False", "True"))
    for name, each in without["state_dict"].items():  # batches of other sizes, which rounding is another for
        torch.testing.assert_close(cached["state_dict"][name], each, atol=1e-5, rtol=1e-5)
    assert last_values(tmp_path / "True")["test/top1"] == last_values(tmp_path / "False")["test/top1"]


@pytest.mark.parametrize("epochs", [1, 4])
def test_an_epoch_reads_no_frame_and_asks_the_backbone_for_nothing(folder, tmp_path, monkeypatch, epochs):
    seen, read = [], []
    forward, one = Backbone.forward, FrameSource.read
    monkeypatch.setattr(Backbone, "forward", lambda self, x, **kw: seen.append(len(x)) or forward(self, x, **kw))
    monkeypatch.setattr(FrameSource, "read", lambda self, index: read.append(index) or one(self, index))
    run(tmp_path / "run", folder, True, cache="none", epochs=epochs)
    data = FrameData(str(folder), labels="folder", image_size=16, batch_size=8, val_fraction=0.2, test_fraction=0.2,
                     cache="none")  # fmt: skip
    data.setup()
    splits = ("train", "val", "test")
    num = {split: sum(int(batch.lengths.sum()) for batch in data.loader(split)) for split in splits}
    # each split once, and the validation split once more for the temperature
    assert sum(seen) == num["train"] + 2 * num["val"] + num["test"]
    # and a last time or two beside them: by what looks for copies and draws views.png, whatever the number of epochs
    assert len(read) < 4 * sum(num.values())


def test_clips_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"but data\.sampling is clip"):
        run(tmp_path / "run", folder, True, sampling="clip", max_frames=2)


def test_rows_of_samples():
    lengths, places = torch.tensor([3, 1, 2]), torch.tensor([2, 0, 2])
    assert rows_of(lengths, places).tolist() == [4, 5, 0, 1, 2, 4, 5]
    assert rows_of(lengths, torch.tensor([], dtype=torch.int64)).tolist() == []
