"""Lines of progress: none is too far from the one before it."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from ssl_toolkit.evaluation.progress import Steps


def test_a_long_step_is_told_of_at_least_so_often():
    lines, times = [], []

    def say(line):
        lines.append(line)
        times.append(time.monotonic())

    start = time.monotonic()
    with Steps(say, every=0.1) as steps:
        steps.begin("features", 100)
        for _ in range(10):
            steps.advance(5)
            time.sleep(0.05)
        steps("features: done")
        steps.begin("probe")
        time.sleep(0.35)
    times = [start, *times, time.monotonic()]
    assert max(after - before for before, after in pairwise(times)) < 0.3
    counts = [int(line.split()[1]) for line in lines if line.startswith("features: ") and "done" not in line]
    assert counts == sorted(counts)
    assert 0 < counts[0] <= counts[-1] <= 50
    assert sum(line.startswith("probe: still at it after 0 s") for line in lines) >= 2
    num = len(lines)
    time.sleep(0.25)
    assert len(lines) == num
    assert not [each for each in threading.enumerate() if each.name == "progress"]


def test_short_steps_say_nothing_of_themselves():
    lines = []
    with Steps(lines.append, every=5) as steps:
        steps.begin("features", 100)
        steps("done")
    assert lines == ["done"]


def test_nobody_listens_and_an_error_ends_it():
    steps = Steps(None)
    steps("done")
    with pytest.raises(RuntimeError), steps:
        raise RuntimeError
