"""Checkpoints: whole or passed over, and what a full disk does."""

import os
import resource
import subprocess
import sys

import pytest
import torch

from ssl_toolkit.callbacks import Checkpoint
from ssl_toolkit.checkpoint.io import AtomicCheckpointIO
from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import CHECKPOINTS, newest_checkpoint


@pytest.fixture
def run(tmp_path):
    for step in (5, 10):
        checkpoint = {"step": step, "weights": torch.arange(1000.0)}
        AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / CHECKPOINTS / f"step-{step:010d}.ckpt")
    return tmp_path


def newest_file(run):
    return run / CHECKPOINTS / "step-0000000010.ckpt"


def test_the_checksum_is_one_that_sha256sum_checks(run):
    done = subprocess.run(
        ["sha256sum", "--check", newest_file(run).name + ".sha256"], cwd=run / CHECKPOINTS, check=False
    )
    assert done.returncode == 0
    assert newest_checkpoint(run) == newest_file(run)


def damaged(content: bytes):
    """The file cut at twenty places, empty, with one bit flipped anywhere of fifty places, and not there at all."""
    yield from (content[: len(content) * cut // 20] for cut in range(20))
    for place in torch.randint(len(content), (50,), generator=torch.Generator().manual_seed(0)).tolist():
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.guarantee("R10")
def test_a_damaged_checkpoint_is_passed_over_and_named(run, capsys, reached):
    whole = newest_file(run).read_bytes()
    contents = list(damaged(whole))
    for content in contents:
        newest_file(run).write_bytes(content)
        assert newest_checkpoint(run) == run / CHECKPOINTS / "step-0000000005.ckpt"
        said = capsys.readouterr().out
        assert all(words in said for words in (str(newest_file(run)), "step-0000000005.ckpt"))
    newest_file(run).write_bytes(whole)
    assert newest_checkpoint(run) == newest_file(run)
    reached(f"{len(contents)} of {len(contents)} damaged files passed over")


def test_a_checkpoint_without_checksum_is_not_trusted(run):
    newest_file(run).with_name(newest_file(run).name + ".sha256").unlink()
    assert newest_checkpoint(run) == run / CHECKPOINTS / "step-0000000005.ckpt"


@pytest.mark.guarantee("R10")
def test_no_whole_checkpoint_is_an_error_and_never_a_fresh_start(run):
    for file in (run / CHECKPOINTS).glob("*.ckpt"):
        file.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"no checkpoint of .* is whole: .*step-0000000010\.ckpt .*step-0000000005\.ckpt"
    ):
        newest_checkpoint(run)


def test_a_run_without_any_checkpoint_has_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.guarantee("R9")
@pytest.mark.timeout(200)
@pytest.mark.slow
def test_a_full_disk_keeps_what_was_saved_and_stops_the_run_at_the_third_failure(recipe, tmp_path, reached):
    run = tmp_path / "run"
    options = ["-c", recipe, "--trainer.max_epochs", "4", "--checkpoint.every_n_steps", "3", "--checkpoint.keep", "9"]
    command = [sys.executable, "-m", "ssl_toolkit", "pretrain", *options, "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    # files of more than this many bytes cannot be written: as on a full disk, but for checkpoints only
    def fill_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    done = subprocess.run(
        command, env=environment, preexec_fn=fill_disk, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 74, done.stderr[-2000:]
    assert done.stderr.count("could not save") == 3
    assert done.stderr.count("the run stops") == 1
    assert list((run / CHECKPOINTS).iterdir()) == []
    reached(f"{done.stderr.count('could not save')} failures, exit status {done.returncode}, no part of a file")

    subprocess.run([*command[:4], "--resume", str(run)], env=environment, check=True, timeout=180)
    assert newest_checkpoint(run).name == "step-0000000020.ckpt"


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_are_kept_as_are_asked_for(recipe, tmp_path, keep):
    options = ["-c", recipe, "--trainer.max_steps", "5", "--checkpoint.every_n_steps", "1"]
    run = train("pretrain", [*options, "--checkpoint.keep", str(keep), "--out", str(tmp_path / "run")], quietly=True)
    newest = [f"step-{step:010d}.ckpt" for step in range(6 - keep, 6)]
    assert sorted(file.name for file in (run / CHECKPOINTS).glob("*.ckpt")) == newest
    assert sorted(file.stem for file in (run / CHECKPOINTS).glob("*.sha256")) == newest


@pytest.mark.parametrize(("options", "steps"), [(["--checkpoint.every_n_steps", "2"], [2, 4, 6, 7]), ([], [3, 5, 7])])
def test_checkpoints_are_saved_when_it_is_time_at_the_end_and_at_no_other_step(
    recipe, tmp_path, monkeypatch, options, steps
):
    monkeypatch.setattr(Checkpoint, "_is_time", lambda self, trainer: trainer.global_step in (3, 5))
    options = ["-c", recipe, "--trainer.max_steps", "7", "--checkpoint.keep", "9", *options]
    run = train("pretrain", [*options, "--out", str(tmp_path / "run")], quietly=True)
    files = sorted(file.name for file in (run / CHECKPOINTS).glob("*.ckpt"))
    assert files == [f"step-{step:010d}.ckpt" for step in steps]


def test_a_failure_to_save_is_forgotten_after_a_success(tmp_path, monkeypatch, capsys):
    io, target = AtomicCheckpointIO(), tmp_path / "step-0000000001.ckpt"
    io.save_checkpoint({"weights": torch.ones(3)}, target)
    before = target.read_bytes()

    def no_room(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", no_room)
        io.save_checkpoint({"weights": torch.zeros(3)}, target)
        io.save_checkpoint({"weights": torch.zeros(3)}, target)
    assert io.failures == 2
    assert capsys.readouterr().err.count("No space left on device") == 2
    assert target.read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    io.save_checkpoint({"weights": torch.zeros(3)}, target)
    assert io.failures == 0
