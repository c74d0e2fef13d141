"""Ctrl-C: the first saves the step at hand and says how to go on, the second ends at once."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

import pytest

from launch import newest_step, started, wait_for
from run_comparison import arguments_for, checkpoint, differences
from ssl_toolkit.run_folder import read_status

TRAIN = [sys.executable, "-m", "ssl_toolkit", "pretrain"]


def write(tmp_path, steps):
    return arguments_for("SimCLR", tmp_path, {"checkpoint": {"every_minutes": 60}}, max_steps=steps, max_epochs=-1)


@pytest.mark.guarantee("R4")
@pytest.mark.slow
def test_the_first_saves_the_step_and_the_run_goes_on(tmp_path):
    arguments = write(tmp_path, 4000)
    run, log = tmp_path / "run", tmp_path / "log"
    with started([*TRAIN, *arguments, "--out", str(run)], log) as process:
        wait_for(lambda: "step 1/" in log.read_text(), process, log)
        start = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    said = log.read_text()
    assert time.monotonic() - start < 30
    assert "saving after this step; Ctrl-C again ends at once" in said
    (step,) = re.findall(r"stopped by SIGINT at step ([\d,]+); go on with --resume", said)
    assert newest_step(run) == int(step.replace(",", "")) > 0
    assert "Traceback" not in said
    status = read_status(run)
    assert (status["state"], status["reason"]) == ("preempted", "SIGINT")


# a step that takes for ever
SLOW = """
import sys, time
import ssl_toolkit.task.base as base
from ssl_toolkit.cli import main

def slow(self):
    print("a long step", flush=True)
    time.sleep(300)

base.Task.on_after_backward = slow
sys.exit(main(["pretrain", *sys.argv[1:]]))
"""


@pytest.mark.guarantee("R4")
@pytest.mark.slow
def test_the_second_ends_at_once(tmp_path):
    arguments = write(tmp_path, 10)
    run, log = tmp_path / "run", tmp_path / "log"
    with started([sys.executable, "-c", SLOW, *arguments, "--out", str(run)], log) as process:
        wait_for(lambda: "a long step" in log.read_text(), process, log)
        os.kill(process.pid, signal.SIGINT)
        wait_for(lambda: "Ctrl-C again" in log.read_text(), process, log)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 130
    assert "Traceback" not in log.read_text()
    assert read_status(run)["state"] == "preempted"


@pytest.mark.guarantee("R4")
@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_as_if_nothing_had_been(tmp_path):
    arguments = write(tmp_path, 60)
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    with started([*TRAIN, *arguments, "--out", str(whole)], log) as process:
        assert process.wait(120) == 0
    log = tmp_path / "broken.log"
    with started([*TRAIN, *arguments, "--out", str(broken)], log) as process:
        wait_for(lambda: "step 1/" in log.read_text(), process, log)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    with started([*TRAIN, "--resume", str(broken)], log) as process:
        assert process.wait(120) == 0
    assert differences(checkpoint(whole), checkpoint(broken)) == []
