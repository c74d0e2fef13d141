"""The order of images that lie together in shards, and going on in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from ssl_toolkit.data import ImageData
from ssl_toolkit.data.order import Groups, epoch_order, groups_of
from ssl_toolkit.random import number, sample_order
from tar_shards import number_of, write_shards


def uneven_groups(num_groups=23, seed=0):
    """Groups of 0 to 12 images."""
    counts = np.random.default_rng(seed).integers(0, 13, num_groups)
    return np.repeat(np.arange(num_groups, dtype=np.int32), counts)


def naive_order(seed, epoch, of, window):
    """Window by window: shuffled groups, and of each window its images in the order of the whole shuffle."""
    present = sorted(set(of.tolist()))
    shuffled = torch.randperm(len(present), generator=torch.Generator().manual_seed(number("groups", seed, epoch)))
    place = {group: shuffled[rank].item() for rank, group in enumerate(present)}
    whole = sample_order(seed, epoch, len(of)).tolist()
    order = []
    for start in range(0, len(present), window):
        order += [image for image in whole if start <= place[of[image]] < start + window]
    return order


@pytest.mark.parametrize("window", [1, 2, 5, 22, 100])
def test_the_order_is_that_of_a_naive_loop(window):
    of = uneven_groups()
    for seed, epoch in ((0, 0), (0, 1), (7, 3)):
        assert epoch_order(seed, epoch, len(of), Groups(of, window)).tolist() == naive_order(seed, epoch, of, window)


def test_each_image_once_and_only_few_groups_at_a_time():
    of = uneven_groups(200)
    for epoch in range(5):
        order = epoch_order(1, epoch, len(of), Groups(of, 8))
        assert sorted(order) == list(range(len(of)))
        seen = of[order]
        # a group's images lie between its first and its last use; never more groups are open than are in one window
        first, last = {}, {}
        for place, group in enumerate(seen.tolist()):
            first.setdefault(group, place)
            last[group] = place
        opened = max(sum(first[g] <= place <= last[g] for g in first) for place in range(0, len(of), 7))
        assert opened <= 8


def test_one_window_is_the_order_without_groups():
    of = uneven_groups()
    assert groups_of(Groups(of, 23), np.arange(len(of))) is None
    assert groups_of(None, np.arange(len(of))) is None
    few = np.flatnonzero(of < 3)
    assert groups_of(Groups(of, 3), few) is None
    assert groups_of(Groups(of, 2), few).of.tolist() == of[few].tolist()
    assert epoch_order(3, 1, 50).tolist() == sample_order(3, 1, 50).tolist()


def test_within_a_window_every_order_is_as_likely_as_any_other():
    """Six images in two groups of one window: 720 orders; and which groups meet changes from epoch to epoch."""
    of = np.repeat(np.arange(2, dtype=np.int32), 3)
    places = np.zeros((6, 6))
    for epoch in range(600):
        for place, image in enumerate(epoch_order(0, epoch, 6, Groups(of, 2))):
            places[image, place] += 1
    assert chisquare(places.ravel()).pvalue > 1e-4
    of = np.repeat(np.arange(4, dtype=np.int32), 2)
    partners = np.zeros((4, 4))
    for epoch in range(600):
        order = epoch_order(0, epoch, 8, Groups(of, 2))
        first = sorted(set(of[order[:4]].tolist()))
        assert len(first) == 2
        partners[first[0], first[1]] += 1
    assert chisquare(partners[np.triu_indices(4, 1)]).pvalue > 1e-4


def test_a_batch_holds_as_many_classes_as_its_window():
    """What the page on shards says of archives that are sorted by class: few classes in a batch, all over an epoch."""
    of = np.repeat(np.arange(100, dtype=np.int32), 50)  # one class in each shard
    order = epoch_order(0, 0, len(of), Groups(of, 16))
    classes = [len(set(of[batch].tolist())) for batch in np.split(order[:4992], 39)]
    assert max(classes) <= 32
    assert np.median(classes) == 16
    assert len(set(of[order].tolist())) == 100


def image_data(path, **arguments):
    settings = {"source": "shards", "image_size": 8, "batch_size": 8, "val_fraction": 0.1, "shard_window": 3}
    return ImageData(str(path), cache_dir=str(path / "cache"), **{**settings, "cache": "none", **arguments})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), shards=12, images=6)


def contents(batch):
    """The numbers that the pixels themselves tell, and those that the loader says."""
    return [number_of(pixels.permute(1, 2, 0).numpy()) for pixels in batch.images.pixels], batch.indices.tolist()


def test_batches_come_from_few_shards(shards):
    loader = image_data(shards).train_dataloader()
    for _ in range(2):
        for batch in loader:
            numbers, indices = contents(batch)
            assert numbers == indices
            assert len({index // 6 for index in indices}) <= 6


@pytest.mark.guarantee("X2")
def test_resume_at_every_batch_and_with_other_numbers_of_processes(shards, reached):
    """Global batches of 8: what comes after a stop is what would have come, on 1, 2 and 4 processes."""
    whole = [(epoch, *contents(batch)) for loader in [image_data(shards).train_dataloader()]
             for epoch in range(2) for batch in loader]  # fmt: skip
    length = len(whole) // 2
    assert len(whole) == 16
    compared = 0
    for stop in range(len(whole)):
        state = {"epoch": stop // length, "batch": stop % length, "window": 3}
        for world_size in (1, 2, 4):
            data = image_data(shards, batch_size=8 // world_size)
            data.load_state_dict(state)
            parts = []
            for rank in range(world_size):
                loader = data.train_dataloader()
                loader._rank, loader._world_size = rank, world_size
                loader._num_batches = loader._epoch_batches = length
                loader.load_state_dict(state)
                parts.append([contents(batch) for batch in loader])
            for place, slices in enumerate(zip(*parts, strict=True)):
                numbers, indices = ([each for part in slices for each in part[kind]] for kind in (0, 1))
                assert (numbers, indices) == whole[stop + place][1:], (stop, world_size, place)
                compared += 1
    reached(f"{len(whole)} of {len(whole)} stops on 1, 2 and 4 processes: {compared} global batches as without a stop")


def test_another_window_is_refused_on_resume(shards):
    loader = image_data(shards).train_dataloader()
    assert loader.state_dict() == {"epoch": 0, "batch": 0, "window": 3}
    other = image_data(shards, shard_window=4)
    other.load_state_dict({"epoch": 0, "batch": 2, "window": 3})
    with pytest.raises(
        ValueError, match=r"began with 3 shards shuffled together, now it is 4 shards; set data.shard_w"
    ):
        other.train_dataloader()
    together = image_data(shards, shard_window=None)
    assert together.train_dataloader().state_dict() == {"epoch": 0, "batch": 0}
    with pytest.raises(ValueError, match=r"now it is all shards; set data.shard_window to 3"):
        together.train_dataloader().load_state_dict({"epoch": 0, "batch": 2, "window": 3})
    with pytest.raises(ValueError, match=r"began with all shards .*; set data.shard_window to the number of shards"):
        loader.load_state_dict({"epoch": 0, "batch": 2})
    image_data(shards, shard_window=12).train_dataloader().load_state_dict({"epoch": 0, "batch": 2})


def test_a_choice_of_images_comes_from_few_shards(shards):
    data = image_data(shards, val_fraction=0)
    assert len({index // 6 for index in data.choose("train", 18, seed=0)}) == 3
    assert data.choose("train", 100, seed=0).tolist() == list(range(72))
    apart = image_data(shards, val_fraction=0, shard_window=None)
    assert apart.choose("train", 18, seed=5).tolist() == sorted(sample_order(5, 0, 72)[:18].tolist())
