"""Every signal to every process at every moment: saved once, left by all at the same step, and gone on from exactly."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from fork_server import ForkServer
from launch import ENVIRONMENT, free_port, newest_step
from run_comparison import arguments_for, checkpoint, differences
from send_signals import STEP
from ssl_toolkit.run_folder import read_status
from ssl_toolkit.runtime.preemption import EXIT_STATUS

CASES = [(name, moment) for name in ("SIGTERM", "SIGUSR1") for moment in ("training", "validation", "saving")]
REACHED = f"{len(CASES)} of {len(CASES)} (SIGTERM and SIGUSR1, in training, in validation, amid a save)"
# of which the step at hand is a part
SECONDS = 5
# from its start, or torchrun's, to the signal on a machine that does little else; a busy one takes as many times longer
# to leave, too
START, TORCHRUN_START = 6, 15
STEPS_PER_EPOCH = 6
EPOCHS = 2


@pytest.fixture(scope="module")
def server():
    with ForkServer() as each:
        yield each


def start(tmp_path, size):
    changes = {
        "data": {"batch_size": 8 // size, "val_fraction": 0.2},
        "checkpoint": {"every_n_steps": STEP, "keep": 10},
    }
    together = ["--trainer.devices", str(size), "--trainer.strategy", "ddp"] if size > 1 else []
    return [*arguments_for("SimCLR", tmp_path, changes, max_epochs=EPOCHS), *together]


def signalled(name, who, moment, folder):
    described = {"number": getattr(signal, name), "who": who, "moment": moment, "folder": str(folder)}
    return ["--trainer.callbacks", json.dumps([{"class_path": "send_signals.SendSignal", "init_args": described}])]


def train(server, arguments, size, log):
    """The exit status of each process."""
    port = free_port()
    pids = [
        server.start("send_signals.train_as_rank", arguments, number, size, port, log=log.with_suffix(f".{number}"))
        for number in range(size)
    ]
    return [server.wait(pid) for pid in pids]


def assert_stopped(run, name, moment):
    """It is noted why, and the checkpoint is the one of the step at hand or, of a signal on its way, of the next."""
    status = read_status(run)
    assert (status["state"], status["reason"]) == ("preempted", name)
    earliest = STEPS_PER_EPOCH if moment == "validation" else STEP + 1
    assert status["step"] in (earliest, earliest + 1)
    assert newest_step(run) == status["step"]
    assert not [file.name for file in (run / "checkpoints").iterdir() if file.suffix not in (".ckpt", ".sha256")]


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """What the checkpoint of a run holds that no signal reached, by its number of processes."""
    contents = {}
    for size in (1, 2):
        folder = tmp_path_factory.mktemp(f"whole-{size}")
        run = folder / "run"
        assert train(server, [*start(folder, size), "--out", str(run)], size, folder / "log") == [0] * size
        contents[size] = checkpoint(run)
    return contents


@pytest.mark.guarantee("R4")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("size", "who"),
    [
        pytest.param(1, "first", marks=pytest.mark.slow),
        pytest.param(2, "first", marks=pytest.mark.nightly),
        pytest.param(2, "second", marks=pytest.mark.slow),
        pytest.param(2, "all", marks=pytest.mark.nightly),
    ],
)
def test_a_signal_saves_and_ends_all_at_one_step(server, whole, size, who, tmp_path, reached):
    longest = 0.0
    for name, moment in CASES:
        folder = tmp_path / f"{name}-{moment}"
        folder.mkdir()
        run, log = folder / "run", folder / "log"
        arguments = [*start(folder, size), "--out", str(run), *signalled(name, who, moment, folder)]
        begin = time.time()
        assert train(server, arguments, size, log) == [EXIT_STATUS] * size, log.with_suffix(".0").read_text()[-3000:]
        sent = float((folder / "sent").read_text())
        seconds = time.time() - sent
        assert_stopped(run, name, moment)
        assert seconds < SECONDS * max(1.0, (sent - begin) / START)
        assert train(server, ["--resume", str(run)], size, log) == [0] * size, log.with_suffix(".0").read_text()[-3000:]
        assert differences(whole[size], checkpoint(run)) == []
        longest = max(longest, seconds)
    whom = "one process" if size == 1 else f"{who} of two processes"
    reached(f"to {whom}: {REACHED}, all gone after at most {longest:.1f} s, the resumed run's bits the same")


@pytest.mark.guarantee("R4")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", [pytest.param("SIGTERM", marks=pytest.mark.slow), pytest.param("SIGUSR1", marks=pytest.mark.nightly)]
)
def test_torchrun_passes_a_signal_on(name, tmp_path, reached):
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "-m", "ssl_toolkit", "pretrain",
    ]  # fmt: skip
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    longest, moments = 0.0, [moment for each, moment in CASES if each == name]
    for moment in moments:
        folder = tmp_path / moment
        folder.mkdir()
        run = folder / "run"
        arguments = [*start(folder, 2), "--out", str(run), *signalled(name, "launcher", moment, folder)]
        begin = time.time()
        # both processes and torchrun hold the pipe: its end is the end of the last one
        done = subprocess.run(
            [*torchrun, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert (folder / "sent").exists(), done.stdout[-3000:]
        sent = float((folder / "sent").read_text())
        seconds = time.time() - sent
        assert done.returncode != 0, done.stdout[-3000:]
        assert_stopped(run, name, moment)
        # torchrun itself needs some to see that they have ended
        assert seconds < 2 * SECONDS * max(1.0, (sent - begin) / TORCHRUN_START)
        longest = max(longest, seconds)
    told = f"{len(moments)} of {len(moments)} ({', '.join(moments)})"
    reached(f"{name} to torchrun: {told}, all gone after at most {math.ceil(longest)} s")
