"""Every figure that a run writes is that of all samples, whatever the number of processes that share them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

import methods
from gloo_processes import run_processes
from run_comparison import arguments_for, views_made_one_by_one, without_dropout
from ssl_toolkit.cli.train import train
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.tracking.metrics_csv import read_metrics

GLOBAL_BATCH = 6
# that nothing divides: 43 for training, 13 for validation, 11 for testing of 67
UNEVEN = {"val_fraction": 0.19, "test_fraction": 0.16}
# of time, which is another in each run
OF_TIME = ("train/images_per_second", "train/data_wait", "val/evaluation_seconds")
# a learning rate with which a difference of rounding stays one
SGD = {"class_path": "ssl_toolkit.optim.SGD", "init_args": {"lr": 3e-4}}


def write_recipe(name: str, folder: Path) -> str:
    data = {**UNEVEN, **({} if methods.needs_sequences(name) else {"max_images": 67})}
    file = Path(arguments_for(name, folder, {"data": data, "watch": {"every_n_steps": 0}}, max_epochs=1)[1])
    recipe = without_dropout(yaml.safe_load(file.read_text()))
    recipe["model"]["init_args"]["optimizer"] = SGD
    recipe["trainer"] |= {"precision": "64-true", "log_every_n_steps": 1}
    if methods.command(name) == "pretrain":
        recipe["evaluation"] = {"every_n_epochs": 1, "linear_probe": False}
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


def figures(name: str, recipe: str, folder: str) -> dict[str, list[float]] | None:
    """What the run of this number of processes writes."""
    num = world_size()
    if num > 1:
        os.environ["LOCAL_RANK"] = str(rank())  # so that Lightning starts no process itself
    options = ["--data.batch_size", str(GLOBAL_BATCH // num), "--trainer.devices", str(num)]
    with views_made_one_by_one(name):
        run = train(methods.command(name), ["-c", recipe, *options, "--out", f"{folder}/{num}"], quietly=True)
    return {key: [each for each in column if each == each] for key, column in read_metrics(run).items()}


@pytest.mark.guarantee("P6")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", methods.each(quick=["SimCLR"]))
def test_all_figures_are_those_of_one_process(name, tmp_path, monkeypatch, reached):
    monkeypatch.setattr("ssl_toolkit.cli.train.finish", lambda *_: None)
    recipe = write_recipe(name, tmp_path)
    alone = figures(name, recipe, str(tmp_path))
    assert {"train/loss", "val/loss"} < alone.keys()
    compared, numbers = 0, (2, 3) if name == "SimCLR" else (3,)
    for num in numbers:
        together = run_processes(figures, num, name, recipe, str(tmp_path))[0]
        assert together.keys() == alone.keys()
        for key in alone.keys() - set(OF_TIME):
            assert together[key] == pytest.approx(alone[key], rel=1e-5, abs=1e-6), (key, num)
            compared += len(alone[key])
    whose = " and ".join(map(str, numbers))
    reached(f"{name}: {compared} figures of {len(alone)} kinds, of {whose} processes, are those of one")
