"""Several runs in one process, as in a notebook: each is a run of its own."""

import os

import pytest
import wandb

from ssl_toolkit.cli import main
from ssl_toolkit.run_folder import read_status


@pytest.mark.parametrize("tracker", ["none", "wandb"])
@pytest.mark.slow
def test_two_runs_without_a_name_have_two_folders(recipe, tmp_path, monkeypatch, tracker):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = {name: value for name, value in os.environ.items() if name.startswith("SSL_TOOLKIT")}
    command = ["pretrain", "-c", recipe, "--trainer.max_steps", "1", "--tracker", tracker]
    for _ in range(3):
        assert main(command) == 0
    # one that ends in an error leaves nothing behind either
    assert main([*command, "--data.batch_size", "9999"]) == 2
    assert main(command) == 0
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 4
    assert all(read_status(run)["state"] == "finished" for run in runs)
    assert {name: value for name, value in os.environ.items() if name.startswith("SSL_TOOLKIT")} == before
    if tracker == "wandb":
        assert len({(run / "wandb_id.txt").read_text() for run in runs}) == 4
        assert all(len(list(run.glob("wandb/offline-run-*"))) == 1 for run in runs)
        assert wandb.run is None
