"""kill -9 at random moments: the same command with --resume, as often as needed, ends where an uninterrupted run does.

A child process that has imported everything already is forked for each start, and kills itself. Our loader has threads
and no worker processes, so "1 and several workers" are `data.num_threads` 1 and 3.
"""

from __future__ import annotations

import json
import random
import signal

import pytest
import safetensors.torch

import methods
from fork_server import ForkServer
from killed_runs import MOMENTS, Kill
from run_comparison import arguments_for, checkpoint, differences
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.runtime.run_lock import LOCK

EVERY = 3
# what a user may change on the way, since no result depends on it
OPTIONS = (
    [],
    ["--data.num_threads", "3", "--data.cache", "memory"],
    [],
    ["--data.num_threads", "1", "--data.cache", "none"],
)


@pytest.fixture(scope="module")
def server():
    with ForkServer() as each:
        yield each


def notes_of(file):
    """The batches that a process has noted: (steps done, epoch, place in the epoch, samples)."""
    return [tuple(map(str, json.loads(line))) for line in file.read_text().splitlines()] if file.exists() else []


def draw_kills(seed, num, total):
    """Kill points in the order of their steps, each moment as often as the others."""
    generator = random.Random(seed)
    steps = sorted(generator.randrange(total - EVERY) for _ in range(num))
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(num)]
    generator.shuffle(moments)
    return [Kill(step, moment, generator.random()) for step, moment in zip(steps, moments, strict=True)]


def kill_and_resume(server, name, tmp_path, num_kills, epochs):
    """Trains a method twice, once with kills; returns how many kills there were, and the most steps done again."""
    start = arguments_for(
        name,
        tmp_path,
        {"checkpoint": {"every_n_steps": EVERY}, "data": {"num_threads": 1, "cache": "none"}},
        max_epochs=epochs,
    )
    command, log = methods.command(name), tmp_path / "log.txt"
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def train(arguments, notes, kill=None):
        return server.run("killed_runs.train_until_killed", command, arguments, str(tmp_path / notes), kill, log=log)

    assert train([*start, "--out", str(whole)], "whole.notes") == 0, log.read_text()[-3000:]
    expected = notes_of(tmp_path / "whole.notes")
    arguments, most_redone, done, num = [*start, "--out", str(broken)], 0, 0, 0
    for kill in draw_kills(name, num_kills, len(expected)):
        notes = f"{num}.notes"
        status = train(arguments, notes, kill)
        assert status == -signal.SIGKILL, f"{kill} gave {status}: {log.read_text()[-3000:]}"
        batches = notes_of(tmp_path / notes)
        first = int(batches[0][0])
        # what was seen is part of the uninterrupted run, and goes on where the last checkpoint was
        assert batches == expected[first : first + len(batches)], kill
        most_redone = max(most_redone, done - first)
        done = first + len(batches)
        arguments = ["--resume", str(broken), *OPTIONS[num % len(OPTIONS)]]
        num += 1
    assert train(arguments, "last.notes") == 0, log.read_text()[-3000:]
    batches = notes_of(tmp_path / "last.notes")
    assert batches == expected[int(batches[0][0]) :]
    assert most_redone <= EVERY

    assert differences(checkpoint(whole), checkpoint(broken)) == []
    assert newest_checkpoint(whole).name == newest_checkpoint(broken).name
    weights = [safetensors.torch.load_file(run / "backbone.safetensors") for run in (whole, broken)]
    assert differences(*weights) == []
    # nothing of what a kill left behind
    assert [file.name for file in broken.rglob(".*")] == [LOCK]
    assert {file.name for file in broken.rglob("*")} == {file.name for file in whole.rglob("*")}
    return num, most_redone


@pytest.mark.guarantee("R1")
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_run_killed_at_a_few_moments_ends_as_if_nothing_had_been(server, tmp_path, reached):
    num, redone = kill_and_resume(server, "Classification", tmp_path, num_kills=4, epochs=3)
    assert num == 4
    reached(f"{num} of {num} kills, then every bit the same; at most {redone} steps done again, saved every {EVERY}")


@pytest.mark.guarantee("R1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", methods.on_representatives())
def test_a_run_killed_at_twenty_moments_ends_as_if_nothing_had_been(name, server, tmp_path, reached):
    num, redone = kill_and_resume(server, name, tmp_path, num_kills=20, epochs=6)
    assert num == 20
    reached(f"{num} of {num} kills, then every bit the same; at most {redone} steps done again, saved every {EVERY}")
