"""One of two processes fails: both are gone soon, with an exit status, and the first error is shown with its rank."""

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from failing_rank import TIMEOUT
from gloo_processes import run_processes
from parity import write_recipe
from ssl_toolkit.distributed.ranks import place
from ssl_toolkit.errors import RunFailed
from ssl_toolkit.run_folder import read_status, write_status
from ssl_toolkit.runtime import rank_failure
from ssl_toolkit.runtime.preemption import Preemption
from ssl_toolkit.runtime.rank_failure import end_on_rank_failure
from train_in_processes import train_together

HERE = Path(__file__).parent
SECONDS = 15
# of a start of both processes on a machine that does little else; a busy one takes as many times longer to end them
START = 15
LAUNCHERS = {
    "lightning": [sys.executable, "-m", "ssl_toolkit"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
                 "ssl_toolkit"],
}  # fmt: skip
# who fails, and what is to be read of it by either launcher: words that belong together in one line
CASES = {
    "user error": (1, "error: rank 1 of 2: the images of this machine are gone; bring them back"),
    "bug": (0, "rank 0 of 2 failed:"),
    "exit": (0, "error: rank 0 of 2: something called exit in the middle of the training"),
    "sudden exit": (1, "error: rank 0 of 2: another process is gone"),
    "killed": (1, "error: rank 0 of 2: "),
    "busy": (0, "error: rank 0 of 2: the images of this machine are gone; bring them back"),
    "skipped collective": (1, "error: rank "),
}


@pytest.fixture
def recipe(tmp_path):
    return write_recipe("SimCLR", tmp_path)


def command(recipe, run, how, who, note):
    failing = {"class_path": "failing_rank.FailingRank", "init_args": {"how": how, "who": who, "note": str(note)}}
    return ["-c", recipe, "--out", str(run), "--data.batch_size=4", "--trainer.callbacks", json.dumps([failing])]


@pytest.mark.guarantee("R14")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("how", "launcher"),
    [
        # either launcher with half of them
        pytest.param(how, each, marks=pytest.mark.slow if (number + place) % 2 else pytest.mark.nightly)
        for number, how in enumerate(CASES)
        for place, each in enumerate(LAUNCHERS)
    ],
)
def test_one_fails_and_all_are_gone(how, launcher, recipe, tmp_path, reached):
    who, words = CASES[how]
    run, note = tmp_path / "run", tmp_path / "note"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    start = time.time()
    # both processes and what launched them hold the pipe: its end is the end of the last one
    done = subprocess.run(
        [*LAUNCHERS[launcher], "pretrain", *command(recipe, run, how, who, note), *two],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280,
    )  # fmt: skip
    said = done.stdout
    assert note.exists(), said
    seconds = time.time() - float(note.read_text())
    assert done.returncode != 0, said
    slowness = max(1.0, (float(note.read_text()) - start) / START)
    # that nobody answers is not known before the time limit of the exchange is over
    waiting = TIMEOUT if how == "skipped collective" else 0
    assert seconds < waiting + SECONDS * slowness, said
    assert words in said
    status = read_status(run)
    assert status["state"] == "failed", status
    # the first error, not the other rank's broken connection
    if how not in ("sudden exit", "killed", "skipped collective"):
        assert status["rank"] == who
        assert said.count(words) == 1
    elif how == "killed" and launcher == "lightning":
        assert "rank 1 was killed by SIGKILL" in said
        assert status["rank"] == who
    else:  # nobody left knows who it was, and none says that it was itself
        assert "rank" not in status, status
    if how not in ("bug", "skipped collective"):
        own = said.partition("torch/distributed/elastic")[0] if launcher == "torchrun" else said
        assert "Traceback" not in own, said
    busy = f" (the start took {slowness * START:.0f} s)" if slowness > 1 else ""
    reached(f"{how}, started by {launcher}: all gone after {seconds:.0f} s{busy}")


def one_fails(recipe, run, how, who, note):
    """What each process raises, and its place."""
    start = time.monotonic()
    with pytest.raises((ValueError, KeyError)) as error:
        train_together("pretrain", command(recipe, run, how, who, note))
    return type(error.value).__name__, str(error.value), place(), time.monotonic() - start


@pytest.mark.guarantee("R14")
@pytest.mark.parametrize(("how", "who"), [("user error", 1), ("bug", 0)])
@pytest.mark.slow
def test_the_other_process_says_who_was_first(how, who, recipe, tmp_path):
    found = run_processes(one_fails, 2, recipe, str(tmp_path / "run"), how, who, str(tmp_path / "note"))
    kind, text, _, _ = found[who]
    assert kind == ("KeyError" if how == "bug" else "ValueError")
    kind, other, where, _ = found[1 - who]
    assert kind == "RankFailed"
    assert other == f"rank {who} has failed: {text}"
    assert where == f"rank {1 - who} of 2"
    status = read_status(tmp_path / "run")
    assert (status["state"], status["rank"], status["reason"]) == ("failed", who, text)


@pytest.mark.guarantee("R14")
@pytest.mark.parametrize(
    "how",
    [
        "killed",
        pytest.param("sudden exit", marks=pytest.mark.slow),
        pytest.param("busy", marks=pytest.mark.slow),
        pytest.param("skipped collective", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_nobody_waits_for_one_that_is_gone_or_stuck(how, recipe, tmp_path, reached):
    run, note = tmp_path / "run", tmp_path / "note"
    who = 0 if how == "busy" else 1
    arguments = recipe, str(run), how, who, str(note)
    if how == "skipped collective":
        found = run_processes(one_fails, 2, *arguments, timeout=200)
        assert {kind for kind, *_ in found} == {"RankFailed"}
        assert any("another process does not answer" in text for _, text, *_ in found)
    else:
        # the second process did not come to say anything, the first one did and told no surprise
        with pytest.raises(AssertionError, match=r"^rank 1: killed or crashed \(exit code (-9|0|1)\)$"):
            run_processes(one_fails, 2, *arguments, timeout=200)
    status = read_status(run)
    assert status["state"] == "failed"
    # who did not raise cannot be told from the other process, which is not the one that failed
    assert status.get("rank") == (who if how == "busy" else None)
    seconds = datetime.fromisoformat(status["at"]).timestamp() - float(note.read_text())
    # a machine that does little else needs a fraction of it
    assert seconds < 3 * SECONDS
    reached(f"{how}, in processes of the test: noted after {max(0.0, seconds):.0f} s")


@pytest.fixture
def left(monkeypatch):
    """Instead of the end of this process: a list of its exit statuses."""
    statuses = []
    monkeypatch.setattr(rank_failure, "_EVERY", 0.02)
    monkeypatch.setattr(rank_failure, "_GRACE", 0.3)
    monkeypatch.setattr(rank_failure, "_PATIENCE", 0.3)
    monkeypatch.setattr(os, "_exit", statuses.append)
    return statuses


TWO = SimpleNamespace(world_size=2)


def wait_for(what, seconds=20):
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert what()


def test_a_process_that_does_not_notice_is_ended(left, tmp_path, capsys):
    # of an earlier start of the run, which is none of our business
    write_status(tmp_path, "failed", rank=1, reason="the first time")
    with end_on_rank_failure(tmp_path, TWO, Preemption()):
        time.sleep(0.5)
        assert not left
        write_status(tmp_path, "running")
        write_status(tmp_path, "failed", rank=1, reason="no more images")
        wait_for(lambda: left)
    assert left[0] == 1
    assert "rank 1 has failed: no more images" in capsys.readouterr().err


def test_a_process_that_ends_by_itself_is_left_alone(left, tmp_path):
    with end_on_rank_failure(tmp_path, TWO, Preemption()):
        write_status(tmp_path, "failed", rank=1, reason="no more images")
        time.sleep(0.1)
    time.sleep(0.5)
    assert not left


def test_a_process_without_its_first_one_is_ended(left, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("SSL_TOOLKIT_RANK_ZERO_PID", "1")
    with end_on_rank_failure(tmp_path, TWO, Preemption()):
        wait_for(lambda: left)
    assert "rank 0 is gone" in capsys.readouterr().err


def test_errors_of_the_connection_are_explained_and_others_are_not_touched(left, tmp_path):
    write_status(tmp_path, "running")
    for text, expected in [
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1", "another process is gone"),
        ("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 8000ms", "another process does not answer"),
        ("Application timeout caused pair closure", "another process does not answer"),
    ]:
        with pytest.raises(RunFailed, match=expected), end_on_rank_failure(tmp_path, TWO, Preemption()):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="of size 3"), end_on_rank_failure(tmp_path, TWO, Preemption()):
        raise RuntimeError("tensors of size 3 and 4 do not match")
    with pytest.raises(RunFailed, match="called exit"), end_on_rank_failure(tmp_path, TWO, Preemption()):
        sys.exit()
    with pytest.raises(SystemExit), end_on_rank_failure(tmp_path, SimpleNamespace(world_size=1), Preemption()):
        sys.exit()
    assert not left
