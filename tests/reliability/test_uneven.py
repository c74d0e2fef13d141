"""Numbers of images that nothing divides, tensors that do not fit each other, processes that see other images."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel

import parity
from gloo_processes import run_processes
from run_comparison import arguments_for, batches_noted, checkpoint, views_made_one_by_one, without_dropout
from ssl_toolkit.cli.remarks import left_out
from ssl_toolkit.cli.train import train
from ssl_toolkit.data import BatchLoader, DecodingStore, ImageData, Source
from ssl_toolkit.data.bad_files import BadFiles
from ssl_toolkit.data.checks import rest_of_epoch
from ssl_toolkit.distributed.collectives import all_reduce_mean, gather
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.random import sample_order


class Dots(Source):
    """Images of one pixel."""

    def __init__(self, num):
        self.num = num

    def __len__(self):
        return self.num

    def read(self, index):
        return np.full((1, 1, 1), index % 256, dtype=np.uint8)

    def fingerprint(self):
        return ""


def loaders(num, batch_size, processes, **options):
    """A loader for each process."""
    store = DecodingStore(Dots(num), 1, 1, BadFiles(num, max_bad=0.5, announce=False))
    return [
        BatchLoader(
            store, torch.zeros(num, dtype=torch.int64), np.arange(num), batch_size, seed=3, rank=rank,
            world_size=processes, **options,
        )
        for rank in range(processes)
    ]  # fmt: skip


def delivered(loader):
    return [batch.indices.tolist() for batch in loader]


@pytest.mark.guarantee("P4")
def test_training_has_as_many_batches_in_every_process_and_no_sample_twice(reached):
    checked = most_left = 0
    for processes in (1, 2, 3, 4):
        for batch_size in (1, 3):
            whole = batch_size * processes
            for num in range(1, 3 * whole + 1):
                if num < whole:
                    with pytest.raises(
                        ValueError, match=f"the loader's split has {num} images?, fewer than one batch of"
                    ):
                        loaders(num, batch_size, processes, shuffle=True, drop_last=True)
                    continue
                each = loaders(num, batch_size, processes, shuffle=True, drop_last=True)
                for epoch in range(2):
                    batches = [delivered(loader) for loader in each]
                    assert {len(found) for found in batches} == {len(loader) for loader in each} == {num // whole}
                    assert all(len(batch) == batch_size for found in batches for batch in found)
                    # in the order of the epoch, one global batch after the other
                    order = [index for step in zip(*batches, strict=True) for part in step for index in part]
                    assert order == sample_order(3, epoch, num)[: len(order)].tolist()
                    assert len(set(order)) == len(order)
                    left = num - len(order)
                    assert 0 <= left < whole
                said = rest_of_epoch(num, whole, "images")
                assert (said is None) == (left == 0)
                assert said is None or f"; {left} of the {num} images" in said
                checked, most_left = checked + 1, max(most_left, left / whole)
    reached(f"training: {checked} of {checked} sizes, at most {most_left:.2f} of a global batch left out")


@pytest.mark.guarantee("P4")
def test_evaluation_has_every_image_once(reached):
    checked = 0
    for processes in (1, 2, 3, 4):
        for batch_size in (1, 3):
            for num in range(processes, 3 * batch_size * processes + 1):
                batches = [delivered(loader) for loader in loaders(num, batch_size, processes)]
                assert len({len(found) for found in batches}) == 1
                everything = [index for found in batches for batch in found for index in batch]
                assert sorted(everything) == list(range(num))
                checked += 1
    reached(f"evaluation: {checked} of {checked} sizes, every image once")


def image_data(**arguments):
    defaults = {"source": "procedural", "max_images": 41, "image_size": 16, "batch_size": 4, "cache": "memory"}
    return ImageData(**{"val_fraction": 0.25, "test_fraction": 0.2, **defaults, **arguments})


def evaluated():
    data = image_data()
    return {split: [list(data.indices(split)), delivered(data.loader(split))] for split in ("val", "test")}


def refused():
    """What each process says to each mismatch, and how long that takes; then that all is well again."""
    said = []

    def note(function, *arguments):
        start = time.monotonic()
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the test looks at the text
            function(*arguments)
        said.append((str(error.value), time.monotonic() - start))

    own, first = rank(), rank() == 0
    for shape in ([4 - own, 3], [4, 3] if first else [3, 4], [12] if first else [4, 3]):
        note(gather, torch.zeros(shape))
    for dtype in (torch.bfloat16, torch.float64, torch.int32):
        note(gather, torch.zeros(4, 3, dtype=torch.float16 if first else dtype))
    note(all_reduce_mean, torch.zeros(2 + own))
    note(all_reduce_mean, torch.zeros(2, dtype=torch.float32 if first else torch.float64))
    # one process more images than the other: an image that only one can read, say
    data = image_data(max_images=41 + 4 * own)
    note(data.train_dataloader)
    # as many, but others
    data = image_data(split_seed=own)
    note(data.train_dataloader)
    assert gather(torch.full((2,), float(own))).tolist() == [
        float(number) for number in range(world_size()) for _ in (0, 1)
    ]
    return said


@pytest.mark.guarantee("P4")
def test_processes_that_do_not_fit_each_other_are_refused_in_all_of_them(reached):
    per_process = run_processes(refused, 3)
    for found in zip(*per_process, strict=True):
        texts = {text for text, _ in found}
        assert len(texts) == 1, texts
        text = texts.pop()
        assert "\n" not in text
        assert all(f"in rank {number}" in text for number in range(3))
    slowest = max(seconds for found in per_process for _, seconds in found)
    assert slowest < 5
    reached(f"{len(per_process[0])} mismatches refused by all of 3 processes, the slowest after {slowest:.2g} s")


@pytest.mark.guarantee("P4")
@pytest.mark.parametrize("num", [2, 3])
def test_evaluation_of_several_processes_has_every_image_once(num):
    found = run_processes(evaluated, num)
    for split in ("val", "test"):
        everything = [index for each in found for batch in each[split][1] for index in batch]
        assert sorted(everything) == found[0][split][0]
        assert len({len(each[split][1]) for each in found}) == 1


def uneven_step(recipe):
    """SimCLR with an image less in the second process."""
    task, data = parity._build(recipe, parity.Case("SimCLR"))
    module = DistributedDataParallel(parity._Step(task))
    batch = next(iter(data.loader("train", shuffle=True, drop_last=True)))
    if rank():
        pixels, sizes = (each[1:] for each in batch.images)
        batch = batch._replace(images=batch.images._replace(pixels=pixels, sizes=sizes), indices=batch.indices[1:])
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"gather needs the same shape in every process, got \[4, 8\].*\[3, 8\]"):
        module(batch)
    return time.monotonic() - start


@pytest.mark.guarantee("P4")
def test_a_step_with_uneven_batches_is_refused_in_all_processes(tmp_path):
    recipe = parity.write_recipe("SimCLR", tmp_path)
    assert max(run_processes(uneven_step, 2, recipe)) < 5


def test_what_is_left_out_is_said_once(tmp_path, capsys):
    recipe = parity.write_recipe("SimCLR", tmp_path)
    command = ["-c", recipe, "--trainer.max_epochs=2", "--data.max_images=30"]
    train("pretrain", [*command, "--data.batch_size=8", "--out", str(tmp_path / "run")], quietly=True)
    said = capsys.readouterr().out
    assert said.count("each epoch: 3 batches of 8; 3 of the 27 images do not fill another and are left out") == 1
    # a user who asks for fewer batches knows
    data, trainer = image_data(), SimpleNamespace(limit_train_batches=2, world_size=1)
    data.setup()
    assert left_out(data, trainer) is None
    trainer.limit_train_batches = 1.0
    assert "; 3 of the 23 images" in (left_out(data, trainer) or "")


GLOBAL = 6


def write_downstream_recipe(folder):
    """A classifier of which nothing is drawn, BatchNorm and all of it trained."""
    file = Path(arguments_for("Classification", folder, {"data": {"val_fraction": 0, "test_fraction": 0}})[1])
    recipe = without_dropout(yaml.safe_load(file.read_text()))
    recipe["model"]["init_args"] |= {
        "freeze_backbone": False,
        "optimizer": {"class_path": "ssl_toolkit.optim.SGD", "init_args": {"lr": 0.01, "momentum": 0.0}},
        "schedule": {"class_path": "ssl_toolkit.schedule.Constant"},
    }
    recipe["trainer"] |= {"precision": "64-true", "max_epochs": 1}
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


def weights_after_an_epoch(recipe, numbers, folder):
    """Trains on each number of images; the weights, and the batches that this process saw."""
    num = world_size()
    if num > 1:
        os.environ["LOCAL_RANK"] = str(rank())  # so that Lightning starts no process itself
    found = {}
    for images in numbers:
        batches = []
        options = ["--data.max_images", images, "--data.batch_size", GLOBAL // num, "--trainer.devices", num]
        with batches_noted(batches.append), views_made_one_by_one("Classification"):
            run = train(
                "transfer", ["-c", recipe, *map(str, options), "--out", f"{folder}/{num}-{images}"], quietly=True
            )
        found[images] = checkpoint(run)["state_dict"], [batch[3] for batch in batches]
    return found


@pytest.mark.guarantee("P4")
@pytest.mark.timeout(200)
@pytest.mark.slow
@pytest.mark.parametrize("num", [2, 3])
def test_the_rest_of_an_epoch_is_trained_as_one_process_does(num, tmp_path, monkeypatch, reached):
    monkeypatch.setattr("ssl_toolkit.cli.train.finish", lambda *_: None)
    recipe, numbers = write_downstream_recipe(tmp_path), [4, *range(GLOBAL, 2 * GLOBAL + 1)]
    alone = weights_after_an_epoch(recipe, numbers, str(tmp_path))
    together = run_processes(weights_after_an_epoch, num, recipe, numbers, str(tmp_path), timeout=150)
    largest = 0.0
    for images in numbers:
        weights, batches = alone[images]
        assert sorted(index for batch in batches for index in batch) == list(range(images)), "each image once"
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
        parts = zip(*(each[images][1] for each in together), strict=True)
        assert [[index for part in step for index in part] for step in parts] == batches
        others = together[0][images][0]
        largest = max([largest, *(float((weights[name] - others[name]).abs().max()) for name in weights)])
    assert largest < 1e-12
    reached(f"downstream, {num} processes: {len(numbers)} numbers of images, weights differ by at most {largest:.0e}")


def test_few_images_are_one_batch(tmp_path):
    recipe = write_downstream_recipe(tmp_path)
    run = train(
        "transfer", ["-c", recipe, "--data.max_images=5", "--data.batch_size=64", "--out", str(tmp_path / "run")]
    )
    assert checkpoint(run)["global_step"] == 1


def test_a_pretraining_batch_of_one_is_refused(tmp_path):
    recipe = parity.write_recipe("SimCLR", tmp_path)
    with pytest.raises(ValueError, match="a pretext task learns nothing from batches of one image"):
        train("pretrain", ["-c", recipe, "--data.batch_size=1", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
