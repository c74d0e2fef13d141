"""Class balance: how often images come, for any number of processes and after a resume, and with keys of their own."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_toolkit.cli.resume_changes import check_kept
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.class_balance import balanced_draw
from ssl_toolkit.data.loader import BatchLoader
from ssl_toolkit.data.order import Groups
from ssl_toolkit.random import sample_keys, sample_order

SIZES = (40, 10, 0, 3, 1)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)), SIZES))
NUM = len(LABELS)


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
def test_classes_have_their_shares_in_each_epoch_and_exactly_in_the_mean(balance):
    weights = [size ** (1 - balance) if size else 0.0 for size in SIZES]
    expected = np.array([NUM * weight / sum(weights) for weight in weights])
    found = []
    for epoch in range(400):
        drawn = balanced_draw(LABELS, balance, 3, epoch)
        assert len(drawn) == NUM
        counts = np.bincount(LABELS[drawn % NUM], minlength=len(SIZES))
        assert (np.abs(counts - expected) < 1).all()
        found.append(counts)
    assert np.abs(np.mean(found, axis=0) - expected).max() < 0.12


@pytest.mark.parametrize("balance", [0.3, 1.0])
def test_within_a_class_all_come_equally_often(balance):
    totals = Counter()
    for epoch in range(300):
        drawn = balanced_draw(LABELS, balance, 0, epoch)
        times = Counter((drawn % NUM).tolist())
        for number, size in enumerate(SIZES):
            counts = [times[place] for place in np.flatnonzero(number == LABELS).tolist()]
            assert not size or max(counts) - min(counts) <= 1
        for place, count in times.items():
            assert sorted(drawn[drawn % NUM == place] // NUM) == list(range(count))
        totals.update(times)
    large = [totals[place] for place in np.flatnonzero(LABELS == 0).tolist()]
    # each is drawn by the same chance: a binomial count, within five standard deviations
    assert max(large) - min(large) < 10 * np.sqrt(np.mean(large))


def test_a_draw_is_pure_and_another_one_for_each_seed_and_epoch():
    first = balanced_draw(LABELS, 0.7, 1, 2)
    assert np.array_equal(first, balanced_draw(LABELS, 0.7, 1, 2))
    assert not np.array_equal(first, balanced_draw(LABELS, 0.7, 1, 3))
    assert not np.array_equal(first, balanced_draw(LABELS, 0.7, 2, 2))
    assert np.array_equal(balanced_draw(LABELS, 0.0, 1, 2), np.arange(NUM))
    one = np.zeros(5, dtype=np.int64)
    assert np.array_equal(balanced_draw(one, 1.0, 0, 0), np.arange(5)), "of one class each comes once"


@pytest.fixture(scope="module")
def store():
    """Images that say their number."""
    from ssl_toolkit.data.bad_files import BadFiles
    from ssl_toolkit.data.store import DecodedStore

    data = np.repeat(np.arange(NUM + 6, dtype=np.uint8), 3)
    return DecodedStore(data, np.ones((NUM + 6, 2), dtype=np.int64), 3, BadFiles(NUM + 6))


def loader(store, rank=0, world_size=1, batch_size=6, balance=1.0, **options):
    labels = torch.from_numpy(np.concatenate([np.full(6, -1), LABELS]))
    options = {"shuffle": True, "seed": 5, "class_balance": balance, **options}
    return BatchLoader(store, labels, np.arange(6, NUM + 6), batch_size, rank=rank, world_size=world_size, **options)


def delivered(batches):
    return [(batch.indices.tolist(), None if batch.repeats is None else batch.repeats.tolist()) for batch in batches]


@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_the_batches_of_one(store, drop_last):
    for epoch in range(2):
        one = loader(store, drop_last=drop_last)
        one.follow(epoch, 1.0)
        whole = delivered(one)
        parts = []
        for rank in range(3):
            each = loader(store, rank, 3, batch_size=2, drop_last=drop_last)
            each.follow(epoch, 1.0)
            parts.append(delivered(each))
        for number, (indices, repeats) in enumerate(whole):
            assert [index for part in parts for index in part[number][0]] == indices
            assert [repeat for part in parts for repeat in part[number][1]] == repeats
        if not drop_last:
            counts = np.bincount(LABELS[np.array([index - 6 for indices, _ in whole for index in indices])])
            assert sorted(counts) == [0, 13, 13, 14, 14]


def test_a_resumed_loader_goes_on_with_the_same_images(store):
    whole = loader(store)
    everything = delivered(whole) + delivered(whole)
    first = loader(store)
    batches = iter(first)
    taken = [next(batches) for _ in range(4)]
    state = first.state_dict()
    batches.close()
    second = loader(store)
    second.load_state_dict(state)
    assert delivered(taken) + delivered(second) + delivered(second) == everything


def test_without_balance_nothing_changes(store):
    batches = list(loader(store, balance=0.0))
    assert all(batch.repeats is None for batch in batches)
    order = torch.cat([batch.indices for batch in batches]) - 6
    assert order.tolist() == sample_order(5, 0, NUM).tolist()
    assert all(batch.repeats is None for batch in loader(store, shuffle=False)), "only training is balanced"


def test_an_order_of_shards_stays_one(store):
    groups = Groups(np.arange(NUM + 6, dtype=np.int32) // 10, 2)
    batches = list(loader(store, groups=groups, batch_size=9))
    assert sum(len(batch.indices) for batch in batches) == NUM
    assert max(len(set((batch.indices // 10).tolist())) for batch in batches) <= 4
    assert sum(len(batch.indices) for batch in loader(store, batch_size=9)) == NUM


def test_images_that_come_again_have_keys_of_their_own(store):
    batches = list(loader(store))
    keys = torch.cat([sample_keys(0, batch.epoch, batch.indices, batch.repeats) for batch in batches])
    indices, repeats = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("indices", "repeats"))
    assert len(set(keys.tolist())) == NUM
    first = repeats == 0
    assert not first.all()
    assert torch.equal(keys[first], sample_keys(0, 0, indices[first])), "the first time as without balance"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("skewed")
    random = np.random.default_rng(0)
    for name, num in (("many", 30), ("few", 4)):
        (folder / name).mkdir()
        for number in range(num):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def image_data(folder, **options):
    defaults = {"labels": "folder", "image_size": 16, "batch_size": 8, "val_fraction": 0.0, "cache": "memory"}
    return ImageData(path=str(folder), **{**defaults, **options})


def test_training_images_are_balanced_and_no_others(folder):
    data = image_data(folder, class_balance=1.0, val_fraction=0.2)
    labels = torch.cat([batch.labels for batch in data.loader("train", shuffle=True, for_training=True)])
    counts = torch.bincount(labels).tolist()
    assert abs(counts[0] - counts[1]) <= 1
    assert sum(counts) == data.num_images("train")
    val = torch.cat([batch.indices for batch in data.loader("val")])
    assert sorted(val.tolist()) == data.indices("val").tolist()


def test_what_cannot_be_balanced_is_refused(folder):
    with pytest.raises(ValueError, match=r"class_balance is 1\.5, expected 0 \(as they are\) to 1"):
        image_data(folder, class_balance=1.5)
    with pytest.raises(ValueError, match=r"class_balance is nan"):
        image_data(folder, class_balance=float("nan"))
    with pytest.raises(ValueError, match=r"data\.targets are numbers"):
        image_data(folder, class_balance=0.5, targets=["age"])
    with pytest.raises(ValueError, match=r"34 of 34 training images have no class; set data\.labels: folder"):
        image_data(folder, class_balance=0.5, labels="none").setup()
    with pytest.raises(ValueError, match=r"data\.class_balance is 1\.0, but the run was begun with 0\.5"):
        check_kept({"data.class_balance": (0.5, 1.0)})
