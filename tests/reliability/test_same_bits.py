"""One seed, one result: however many threads decode, wherever decoded images are kept, in whatever process.

Our loader has threads and no worker processes, so the number of workers is `data.num_threads`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import methods
from runs import batches_noted, checkpoint, command, differences
from ssl_toolkit.cli.train import train

# the first is what the others are compared with
WAYS = [(1, "none"), (2, "memory"), (4, "disk")]


def trained(name, folder, threads, cache):
    """An epoch of a method: what it saw, and its last checkpoint."""
    folder.mkdir(parents=True)
    ways = {"num_threads": threads, "cache": cache, "cache_dir": str(folder / "cache")}
    start, batches = command(name, folder, {"data": ways}, max_epochs=1), []
    with batches_noted(batches.append):
        run = train(methods.verb(name), [*start, "--out", str(folder / "run")], quietly=True)
    return batches, checkpoint(run)


@pytest.mark.goal("R3")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", methods.tasks())
def test_nothing_depends_on_threads_or_on_the_cache(name, tmp_path, monkeypatch, reached):
    monkeypatch.setattr("ssl_toolkit.cli.train.finish", lambda *_: None)
    expected = None
    for threads, cache in WAYS:
        found = trained(name, tmp_path / f"{threads}-{cache}", threads, cache)
        expected = expected or found
        assert found[0] == expected[0]
        assert differences(found[1], expected[1]) == [], (threads, cache)
    reached("every bit the same with " + ", ".join(f"{threads} threads and {cache} cache" for threads, cache in WAYS))


PROGRAM = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import methods
from test_same_bits import trained
folder, threads, cache = sys.argv[1:]
for name in methods.tasks():
    batches, _ = trained(name, Path(folder) / name, int(threads), cache)
    (Path(folder) / f"{name}.json").write_text(json.dumps(batches))
"""


@pytest.mark.slow
@pytest.mark.goal("R3")
@pytest.mark.timeout(400)
def test_two_fresh_processes_compute_the_same_bits(tmp_path, reached):
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, (folder, threads, cache) in enumerate(zip(folders, ("1", "4"), ("none", "memory"), strict=True)):
        folder.mkdir()
        # the order of sets and of dictionaries' hashes differs, too
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"}
        program = [sys.executable, "-c", PROGRAM, str(folder), threads, cache]
        subprocess.run(program, env=environment, check=True, timeout=180)
    for name in methods.tasks():
        batches = [json.loads((folder / f"{name}.json").read_text()) for folder in folders]
        assert batches[0] == batches[1]
        assert differences(*(checkpoint(folder / name / "run") for folder in folders)) == [], name
    reached(f"every bit the same in 2 processes, for {len(methods.tasks())} of {len(methods.tasks())} methods")
