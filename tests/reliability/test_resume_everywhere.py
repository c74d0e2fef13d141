"""A run resumed after any of its steps sees the same batches and ends with the same bits.

The schedule of each task asks for `estimated_stepping_batches`, which has made loaders lose their state in Lightning.
"""

from __future__ import annotations

import pytest
import torch

import methods
from run_comparison import arguments_for, batches_noted, checkpoint, copy_until, differences
from ssl_toolkit.cli.train import train

# an odd number of batches, so that the last one of an epoch is a whole step where a step has two micro-batches
IMAGES = {"max_images": 50}


@pytest.mark.guarantee("R2")
@pytest.mark.slow
def test_resume_in_double_precision_rounds_nothing(tmp_path, reached):
    start = arguments_for("SimCLR", tmp_path, {"checkpoint": {"every_n_steps": 3, "keep": 9}}, precision="64-true")
    whole = train("pretrain", [*start, "--trainer.max_epochs", "1", "--out", str(tmp_path / "whole")], quietly=True)
    broken = copy_until(whole, 3, tmp_path / "broken")
    train("pretrain", ["--resume", str(broken)], quietly=True)
    end = checkpoint(whole)
    assert {each.dtype for each in end["state_dict"].values() if each.is_floating_point()} == {torch.float64}
    assert differences(end, checkpoint(broken)) == []
    reached("every bit of float64 weights the same")


@pytest.mark.guarantee("R2")
@pytest.mark.slow
def test_a_second_resume_within_the_epoch_after_a_first_at_the_end_of_one(tmp_path, reached):
    changes = {"checkpoint": {"every_n_steps": 1, "keep": 99}, "data": IMAGES}
    start, expected, batches = arguments_for("SimCLR", tmp_path, changes, max_epochs=2), [], []
    with batches_noted(expected.append):
        whole = train("pretrain", [*start, "--out", str(tmp_path / "whole")], quietly=True)
    once = copy_until(whole, 5, tmp_path / "once")
    train("pretrain", ["--resume", str(once)], quietly=True)
    twice = copy_until(once, 7, tmp_path / "twice")
    with batches_noted(batches.append):
        train("pretrain", ["--resume", str(twice)], quietly=True)
    assert batches == expected[7:]
    assert differences(checkpoint(whole), checkpoint(twice)) == []
    reached("2 resumes, every bit the same")


@pytest.mark.guarantee("R2")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("name", methods.on_representatives())
def test_resume_after_every_step(name, accumulated, tmp_path, monkeypatch, reached):
    # the page is no part of what is resumed
    monkeypatch.setattr("ssl_toolkit.cli.train.finish", lambda *_: None)
    command, whole, expected = methods.command(name), tmp_path / "whole", []
    changes = {"checkpoint": {"every_n_steps": 1, "keep": 99}}
    # an odd number of batches in an epoch
    changes["data"] = IMAGES if command == "pretrain" else {"batch_size": 10}
    start = arguments_for(name, tmp_path, changes, max_epochs=2, accumulate_grad_batches=accumulated)
    with batches_noted(expected.append):
        train(command, [*start, "--out", str(whole)], quietly=True)
    end = checkpoint(whole)
    per_epoch = sum(epoch == 0 for _, epoch, *_ in expected)
    assert len(expected) == 2 * per_epoch
    assert per_epoch % 2 == 1
    assert end["global_step"] == 2 * -(-per_epoch // accumulated)

    for step in range(1, end["global_step"] + 1):
        broken, batches = copy_until(whole, step, tmp_path / f"from-{step}"), []
        with batches_noted(batches.append):
            train(command, ["--resume", str(broken), "--checkpoint.every_n_steps", "1000"], quietly=True)
        assert batches == [batch for batch in expected if batch[0] >= step]
        assert differences(end, checkpoint(broken)) == [], step
    reached(f"{end['global_step']} of {end['global_step']} steps, the 2 ends of an epoch among them")
