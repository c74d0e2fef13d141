"""One seed, one result, in whatever process (`tests/every_method/test_run.py`: with whatever threads and cache)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import methods
from run_comparison import arguments_for, batches_noted, checkpoint, differences
from ssl_toolkit.cli.train import train


def trained(name, folder, threads, cache):
    """An epoch of a method: what it saw, and its last checkpoint."""
    folder.mkdir(parents=True)
    ways = {"num_threads": threads, "cache": cache, "cache_dir": str(folder / "cache")}
    start, batches = arguments_for(name, folder, {"data": ways}, max_epochs=1), []
    with batches_noted(batches.append):
        run = train(methods.command(name), [*start, "--out", str(folder / "run")], quietly=True)
    return batches, checkpoint(run)


PROGRAM = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import methods
from test_same_bits import trained
folder, threads, cache = sys.argv[1:]
for name in methods.representatives():
    batches, _ = trained(name, Path(folder) / name, int(threads), cache)
    (Path(folder) / f"{name}.json").write_text(json.dumps(batches))
"""


@pytest.mark.slow
@pytest.mark.guarantee("R3")
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
    names = methods.representatives()
    for name in names:
        batches = [json.loads((folder / f"{name}.json").read_text()) for folder in folders]
        assert batches[0] == batches[1]
        assert differences(*(checkpoint(folder / name / "run") for folder in folders)) == [], name
    reached(f"every bit the same in 2 processes, for {', '.join(names)}")
