from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_toolkit.data import BadImage, BatchLoader, DecodingStore, Source
from ssl_toolkit.data.bad_files import BadFiles
from ssl_toolkit.random import sample_order


class Numbers(Source):
    """Image ``i`` is one pixel of value ``i``, on a canvas whose width varies."""

    def __init__(self, num: int, bad: tuple[int, ...] = (), broken: int | None = None, seconds: float = 0.0) -> None:
        self.num, self.bad, self.broken, self.seconds = num, bad, broken, seconds

    def __len__(self) -> int:
        return self.num

    def read(self, index: int) -> np.ndarray:
        time.sleep(self.seconds)
        if index in self.bad:
            raise BadImage(str(index), "bad")
        if index == self.broken:
            raise RuntimeError("a bug in the source")
        return np.full((1, 1 + index % 3, 1), index % 256, dtype=np.uint8)

    def fingerprint(self) -> str:
        return ""


def make(num=50, batch_size=8, split=None, threads=2, source=None, max_bad=0.5, **options) -> BatchLoader:
    source = source or Numbers(num)
    store = DecodingStore(source, 1, threads, BadFiles(len(source), max_bad=max_bad, announce=False))
    indices = np.arange(len(source)) if split is None else np.asarray(split)
    return BatchLoader(store, torch.arange(len(source)) * 10, indices, batch_size, **options)


def train(**options) -> BatchLoader:
    return make(**{"shuffle": True, "drop_last": True, "seed": 5, **options})


def numbers(loader: BatchLoader) -> list[list[int]]:
    return [batch.indices.tolist() for batch in loader]


def num_threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_training_batches_follow_the_order_of_the_epoch():
    loader = train(split=range(10, 60), source=Numbers(70))
    for epoch in range(3):
        order = sample_order(5, epoch, 50) + 10
        batches = list(loader)
        assert len(batches) == len(loader) == 6
        for number, batch in enumerate(batches):
            assert batch.indices.tolist() == order[8 * number : 8 * number + 8].tolist()
            assert batch.epoch == epoch
            assert batch.labels.tolist() == (batch.indices * 10).tolist()
            assert batch.images.pixels[:, 0, 0, 0].tolist() == batch.indices.tolist()
            assert batch.images.sizes[:, 1].tolist() == (1 + batch.indices % 3).tolist()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_nothing_depends_on_threads(threads):
    reference = [batch.images.pixels for batch in train(threads=1)]
    assert all(torch.equal(a.images.pixels, b) for a, b in zip(train(threads=threads), reference, strict=True))


def test_evaluation_delivers_every_image_once_and_the_same_in_every_pass():
    loader = make(num=17, batch_size=8)
    assert numbers(loader) == [list(range(6)), list(range(6, 12)), list(range(12, 17))]  # none of one image
    assert numbers(loader) == numbers(loader)
    assert [batch.epoch for batch in loader] == [0] * 3
    assert numbers(make(num=1, batch_size=8)) == [[0]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_processes_share_the_global_batches(world_size):
    for num in (12, 24, 25, 50):
        whole = numbers(train(num=num, batch_size=12))
        parts = [
            numbers(train(num=num, batch_size=12 // world_size, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        joined = [[index for part in slices for index in part] for slices in zip(*parts, strict=True)]
        assert joined == whole


def test_processes_share_the_evaluation_images():
    for num in range(1, 60):
        for world_size in range(1, min(num, 5) + 1):
            for batch_size in (1, 2, 7, 8):
                parts = [
                    make(num, batch_size, rank=rank, world_size=world_size)._places(0) for rank in range(world_size)
                ]
                assert len({len(part) for part in parts}) == 1  # as many batches on every process
                together = [np.concatenate(slices).tolist() for slices in zip(*parts, strict=True)]
                assert [index for batch in together for index in batch] == list(range(num))
                sizes = [len(place) for part in parts for place in part]
                assert max(sizes) - min(sizes) <= 2
                assert min(sizes) >= 1
                assert max(sizes) <= batch_size or (batch_size == 1 and max(sizes) == 2)
                # the batches of all processes together are those of one
                if batch_size > 1:
                    assert together == [place.tolist() for place in make(num, batch_size * world_size)._places(0)]


def test_state_at_every_position():
    loader = train()
    reference = [(epoch, batch) for epoch in range(3) for batch in numbers(loader)]
    seen = 0
    for epoch in range(2):
        states = []
        running = train()
        running.load_state_dict({"epoch": epoch, "batch": 0})
        iterator = iter(running)
        for number in range(6):
            assert next(iterator).indices.tolist() == reference[seen][1]
            seen += 1
            time.sleep(0.002)  # the background thread runs ahead; the state must not
            states.append(running.state_dict())
            expected = {"epoch": epoch, "batch": number + 1} if number < 5 else {"epoch": epoch + 1, "batch": 0}
            assert states[-1] == expected
        for number, state in enumerate(states):
            resumed = train()
            resumed.load_state_dict(state)
            assert resumed.state_dict() == state
            assert len(resumed) == 6
            rest = [(batch.epoch, batch.indices.tolist()) for batch in resumed]
            rest += [(batch.epoch, batch.indices.tolist()) for batch in resumed]
            start = 6 * epoch + number + 1
            stop = 6 * (epoch + 2) if number < 5 else 6 * (epoch + 3)
            assert rest[: 18 - start] == reference[start : min(stop, 18)]


def test_a_new_pass_begins_a_new_epoch():
    loader = train()
    epochs = [numbers(loader) for _ in range(3)]
    other = train()
    iter(other)  # asking for an iterator takes nothing
    for _ in zip(range(2), other, strict=False):
        pass
    assert other.state_dict() == {"epoch": 0, "batch": 2}
    assert numbers(other) == epochs[1]
    assert other.state_dict() == {"epoch": 2, "batch": 0}


def test_an_epoch_cut_short_by_the_trainer():
    for limit in (2, 2 / 6 + 1e-9):
        loader = train()
        loader.follow(epoch=0, limit=limit)
        assert len(loader) == 6
        iterator = iter(loader)
        next(iterator)
        assert loader.state_dict() == {"epoch": 0, "batch": 1}
        next(iterator)
        assert loader.state_dict() == {"epoch": 1, "batch": 0}
        assert next(iter(loader)).epoch == 1


def test_state_that_does_not_fit():
    loader = train()
    with pytest.raises(ValueError, match=r"cannot resume at batch 6: an epoch has 6 batches now"):
        loader.load_state_dict({"epoch": 0, "batch": 6})


def test_too_few_images():
    with pytest.raises(ValueError, match=r"^the train split has 50 images, fewer than one batch of 64; set "):
        train(batch_size=64, what="the train split")
    with pytest.raises(ValueError, match=r"one batch of 32 x 2 processes = 64; set data.batch_size to at most 25"):
        train(batch_size=32, world_size=2)
    with pytest.raises(ValueError, match=r"2 images, fewer than the 4 processes"):
        make(num=2, world_size=4)


def test_bad_images_are_replaced_by_the_next_good_one_of_the_split():
    split = [*range(0, 50, 2), 51]
    bad = (4, 10, 12, 14, 51)
    expected = {4: 6, 10: 16, 12: 16, 14: 16, 51: 0}
    reference = numbers(train(source=Numbers(52), split=split))
    for threads in (1, 4):
        loader = train(source=Numbers(52, bad), split=split, threads=threads)
        for _ in range(2):  # met for the first time, and known
            loader.load_state_dict({"epoch": 0, "batch": 0})
            batches = list(loader)
            assert [batch.indices.tolist() for batch in batches] == [
                [expected.get(index, index) for index in batch] for batch in reference
            ]
            for batch in batches:
                assert batch.images.pixels[:, 0, 0, 0].tolist() == batch.indices.tolist()
                assert batch.labels.tolist() == (batch.indices * 10).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_where_every_image_is_delivered_a_bad_one_is_left_out(world_size):
    bad = (4, 10, 11, 14, 33, 51)
    good = [index for index in range(52) if index not in bad]
    loaders = [
        make(source=Numbers(52, bad), batch_size=5, rank=rank, world_size=world_size, shuffle=shuffle)
        for rank in range(world_size)
        for shuffle in (False, True)
    ]
    for _ in range(2):  # met for the first time, and known
        batches = [list(loader) for loader in loaders]
        for each in (batches[::2], batches[1::2]):
            assert sorted(index for made in each for batch in made for index in batch.indices.tolist()) == good
        for batch in (batch for made in batches for batch in made):
            assert batch.images.pixels[:, 0, 0, 0].tolist() == batch.indices.tolist()
            assert batch.labels.tolist() == (batch.indices * 10).tolist()


def test_a_batch_of_bad_images_alone_gets_the_next_good_one():
    loader = make(source=Numbers(12, (4, 5, 6, 7)), batch_size=4)
    for _ in range(2):
        assert numbers(loader) == [[0, 1, 2, 3], [8], [8, 9, 10, 11]]


def test_too_many_bad_images_stop():
    loader = make(source=Numbers(100, tuple(range(0, 100, 5))), max_bad=0.1)
    with pytest.raises(ValueError, match=r"of \d+ images cannot be decoded"):
        list(loader)
    with pytest.raises(ValueError, match=r"no image of this split can be decoded"):
        list(make(source=Numbers(3, (0, 1, 2)), max_bad=1.0))


def test_an_exception_reaches_the_consumer_at_its_batch():
    loader = make(source=Numbers(40, broken=20), batch_size=8)
    iterator = iter(loader)
    assert [next(iterator).indices.tolist() for _ in range(2)] == [list(range(8)), list(range(8, 16))]
    with pytest.raises(RuntimeError, match="a bug in the source"):
        next(iterator)
    assert num_threads() == 0


@pytest.mark.slow
def test_the_thread_ends_with_its_iterator():
    iterator = iter(train())
    next(iterator)
    iterator.close()
    assert num_threads() == 0
    for _ in train():
        break
    gc.collect()
    assert num_threads() == 0

    def fail() -> None:
        for _ in train():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    gc.collect()
    assert num_threads() == 0


THREADS_OF_A_LOADER = """
import os, numpy as np, torch
from ssl_toolkit.data import BatchLoader, DecodedStore
from ssl_toolkit.data.reading import BadFiles

torch.set_num_threads(4)
num = 200_000
store = DecodedStore(np.zeros(num, np.uint8), np.ones((num, 2), np.int64), 1, BadFiles(num, 0.5, announce=False))
loader = BatchLoader(store, torch.zeros(num, dtype=torch.int64), np.arange(num), 8, shuffle=True, drop_last=True)
next(iter(loader))  # the process's own team of threads is there from now on
before = set(os.listdir("/proc/self/task"))
batches = iter(loader)
next(batches)
print(len(set(os.listdir("/proc/self/task")) - before))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
@pytest.mark.slow
def test_the_thread_starts_no_others():
    """A parallel operation of torch would: an OpenMP team, which slows every other operation of the process."""
    said = subprocess.run([sys.executable, "-c", THREADS_OF_A_LOADER], capture_output=True, text=True, timeout=100)
    assert said.stdout == "1\n", said.stderr


def test_batches_are_made_ahead_but_not_without_bound():
    source = Numbers(400)
    reads = []
    source.read_many = lambda indices: reads.extend(indices) or Source.read_many(source, indices)
    iterator = iter(make(source=source, batch_size=16))
    next(iterator)
    time.sleep(0.2)
    assert 2 * 16 < len(reads) <= 5 * 16
    iterator.close()


def test_waiting_is_measured():
    loader = make(num=16, source=Numbers(16, seconds=0.01), threads=1)
    list(loader)
    assert 0.05 < loader.wait_seconds < 5
    waited = loader.wait_seconds
    for _ in loader:
        time.sleep(0.15)
    assert loader.wait_seconds - waited < 0.16  # only the first batch had to be waited for


@pytest.mark.slow
def test_the_interpreter_ends_with_an_iterator_open():
    code = """
import numpy as np, torch
from ssl_toolkit.data import BatchLoader, DecodedStore
from ssl_toolkit.data.reading import BadFiles

class Busy(DecodedStore):
    def gather(self, indices):
        torch.eye(1200) @ torch.eye(1200) @ torch.eye(1200)  # long, and outside the interpreter lock
        return super().gather(indices)

store = Busy(np.zeros(1000 * 12, np.uint8), np.full((1000, 2), 2), 3, BadFiles(1000))
iterator = iter(BatchLoader(store, torch.zeros(1000, dtype=torch.int64), np.arange(1000), 10, ahead=100))
print(next(iterator).indices.sum().item())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "45\n", "")
