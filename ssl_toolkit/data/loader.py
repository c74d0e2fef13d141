"""Batch loader: a background thread prefetches batches, in an order that is a pure function of (seed, epoch).

No worker processes: Pillow decodes outside the interpreter lock, so threads are enough, and nothing has to be copied
between processes. Two integers, the epoch and the batch, are the whole state.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.batch import Batch
from ssl_toolkit.data.class_balance import balanced_draw
from ssl_toolkit.data.cuda_prefetch import DeviceCopies
from ssl_toolkit.data.index_store import IndexStore
from ssl_toolkit.data.order import Groups, epoch_order, groups_of
from ssl_toolkit.data.store import Store
from ssl_toolkit.errors import counted


class BatchLoader:
    """Batch loader of one split; each ``iter()`` begins a new epoch.

    With ``drop_last`` (pretraining) global batch ``k`` is ``order[k * G : (k + 1) * G]``, where ``G = batch_size *
    world_size``, and each process takes its own contiguous slice of it, so that the global batches do not depend on
    the number of processes; a rest smaller than ``G`` is left out of this epoch. Without it every image is delivered
    once: they are divided, in order, into as few global batches of at most ``G`` as there can be, all of
    nearly the same size, and each of these among the processes, so that a loss over a whole batch does not depend on
    their number either. (Only where ``G`` is less than twice the processes, a batch may have to hold more, for each
    process needs an image in it.)

    With ``drop_last`` an image that turns out to be bad only now is replaced by the next good one of the split, which
    does not depend on what was read before. Without it the image is left out of its batch, so that none counts twice;
    only a batch of nothing else gets the next good one, since other processes may wait for this batch.

    The state (see `state_dict`) is that of the consumer: batches that were only made ahead do not count. It is already
    that of the next epoch while the last batch is being worked on, because Lightning never asks for the end of a loader
    that has a length. After `load_state_dict` the next ``iter()`` goes on where the state was taken; any other
    ``iter()`` begins an epoch at its start.

    Args:
        store: The decoded images.
        labels: int64 tensor with a label for each image of the store.
        indices: int64 array: the images of the split.
        batch_size: For each process.
        seed: Of the order.
        shuffle: A new order in each epoch; without it every pass gives the same batches, all of epoch 0.
        drop_last: See above.
        rank: Number of this process.
        world_size: Number of processes.
        ahead: How many batches the background thread makes ahead.
        device: A GPU to which the thread copies them ahead, too; None to leave them on the CPU.
        what: What to call these images in messages.
        groups: Which images of the store lie together; the order then respects it (see `epoch_order`).
        replace_bad: Whether another image stands in for a bad one where the above says so. Else it is left out, and
            with it a batch of which none is left.
        targets: float32 tensor of shape ``[images of the store, targets]``: numbers to predict; None without any.
        weights: float32 tensor of shape ``[images of the store]``: how much each counts in the loss; None for alike.
        covariates: float32 tensor of shape ``[images of the store, covariates]``: numbers that are given; None without
            any.
        class_balance: From 0 (each image once in an epoch) to 1 (all classes equally often); see `balanced_draw`.

    Attributes:
        num_images: How many images all processes together are to get in a pass without ``drop_last``.
        wait_seconds: How long the consumer has waited for batches, in total.

    Raises:
        ValueError: There are too few images for one batch on every process.
    """

    def __init__(
        self,
        store: Store,
        labels: Tensor,
        indices: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        ahead: int = 2,
        device: torch.device | None = None,
        what: str = "the loader's split",
        groups: Groups | None = None,
        replace_bad: bool = True,
        targets: Tensor | None = None,
        class_balance: float = 0.0,
        weights: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> None:
        global_batch = batch_size * world_size
        num = len(indices)
        if drop_last and num < global_batch:
            product = f"{batch_size} x {world_size} processes = {global_batch}" if world_size > 1 else str(batch_size)
            raise ValueError(
                f"{what} has {counted(num, 'images')}, fewer than one batch of {product}; set data.batch_size to at "
                f"most {num // world_size} or add images"
            )
        if num < world_size:
            raise ValueError(
                f"{what} has {counted(num, 'images')}, fewer than the {world_size} processes that share it"
            )
        self.num_images = num
        self.wait_seconds = 0.0
        self._store: Store = store
        self._labels = labels
        self._targets = targets
        self._weights = weights
        self._covariates = covariates
        self._indices = indices
        self.batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._groups = groups_of(groups, indices) if shuffle else None
        self._class_balance = class_balance if shuffle else 0.0
        self._drop_last = drop_last
        self._replace_bad = replace_bad
        self._rank = rank
        self._world_size = world_size
        self._ahead = ahead
        self._copies = DeviceCopies(device) if device is not None else None
        self._num_batches = num // global_batch if drop_last else min(-(-num // global_batch), num // world_size)
        self._epoch_batches = self._num_batches
        self._epoch = 0
        self._batch = 0
        self._resuming = False

    def __len__(self) -> int:
        """The number of batches of a whole epoch, also after a resume in the middle of one."""
        return self._num_batches

    def follow(self, epoch: int, limit: int | float) -> None:
        """Counts epochs as a Lightning trainer does.

        Args:
            epoch: The epoch that the first ``iter()`` begins.
            limit: The trainer's ``limit_train_batches``: so many batches (int), or such a fraction of them (float), are
                a whole epoch, although the loader would deliver more.
        """
        self._epoch = epoch if self._shuffle else 0
        wanted = limit if isinstance(limit, int) else int(limit * self._num_batches)
        self._epoch_batches = max(1, min(wanted, self._num_batches))

    def leave_out_pixels(self, known: NDArray[np.int64], lengths: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """From the next ``iter()`` on, gives batches of images without pixels, for which nothing is read or decoded.

        Args:
            known: int64 array: the numbers of the images that something is known of; others count as bad.
            lengths: int64 array: of sequences, how many frames each of these has; of images, 1.
            places: int64 array: of sequences, the places of these frames among those of the source; of images, none.
        """
        self._store = IndexStore(self._indices[~np.isin(self._indices, known)])

    def state_dict(self) -> dict[str, int]:
        """The epoch and the place in it of the batch that comes next; with groups, how many are shuffled together."""
        window = {"window": self._groups.window} if self._groups is not None else {}
        return {"epoch": self._epoch, "batch": self._batch, **window}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next ``iter()`` go on at this state.

        Raises:
            ValueError: The epoch has fewer batches than that, or another order.
        """
        window = self._groups.window if self._groups is not None else None
        if state.get("window") != window:
            began, now = ("all shards" if each is None else f"{each} shards" for each in (state.get("window"), window))
            raise ValueError(
                f"cannot resume: the run began with {began} shuffled together, now it is {now}; set data.shard_window "
                f"to {state.get('window') or 'the number of shards'}"
            )
        if not 0 <= state["batch"] < self._num_batches:
            raise ValueError(
                f"cannot resume at batch {state['batch']}: an epoch has {self._num_batches} batches now; the images, "
                "the batch size or the number of processes have changed; resume with those that the run began with"
            )
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._resuming = True

    def __iter__(self) -> Iterator[Batch]:
        # a generator: nothing happens before the first batch is asked for, as Lightning calls iter() more than once
        if not self._resuming and self._batch > 0:
            self._advance_epoch()
        self._resuming = False
        made: queue.Queue[Any] = queue.Queue(maxsize=self._ahead)
        stopped = threading.Event()
        # the order is shuffled here: a parallel operation of torch in the thread would give the thread its own OpenMP
        # team, and OpenMP, with more threads than cores, lets all of them sleep between any two operations
        places = self._places(self._epoch)[self._batch :]
        thread = threading.Thread(
            target=self._produce, args=(self._epoch, places, made, stopped), name="batches", daemon=True
        )

        def end() -> None:
            stopped.set()
            # bounded, because garbage collection may run this in a thread that the producer itself waits for
            if threading.current_thread() is not thread:
                thread.join(timeout=1.0)

        thread.start()
        # a thread that is inside an operation of torch when the interpreter ends would abort the process
        atexit.register(end)
        try:
            for _ in range(self._batch, self._num_batches):
                start = time.perf_counter()
                batch = _take(made, thread)
                self.wait_seconds += time.perf_counter() - start
                if isinstance(batch, BaseException):
                    raise batch
                self._batch += 1
                if self._batch == self._epoch_batches:
                    self._advance_epoch()
                if batch is not None:
                    yield self._copies.receive(batch) if self._copies else batch
        finally:
            atexit.unregister(end)
            end()

    def _advance_epoch(self) -> None:
        self._epoch += self._shuffle
        self._batch = 0

    def _produce(
        self,
        epoch: int,
        places: list[NDArray[np.int64]],
        made: queue.Queue[Any],
        stopped: threading.Event,
    ) -> None:
        """Runs in the background: puts batches, or the exception that ended them."""
        try:
            with contextlib.closing(
                self._store.ahead(self._indices[each % len(self._indices)] for each in places)
            ) as ahead:
                for each in places:
                    next(ahead, None)
                    batch = self._make(epoch, each)
                    if not _put(made, self._copies.send(batch) if self._copies and batch else batch, stopped):
                        return
        except BaseException as error:
            _put(made, error, stopped)

    def _places(self, epoch: int) -> list[NDArray[np.int64]]:
        """For each batch of this process, the places of its images in the split.

        Where an image comes for the n-th time in the epoch, ``n - 1`` times the number of images is added.
        """
        num, size = len(self._indices), self.batch_size
        order = self._order(epoch) if self._shuffle else np.arange(num)
        if self._drop_last:
            step = size * self._world_size
            starts = range(self._rank * size, self._num_batches * step, step)
            return [order[start : start + size] for start in starts]
        batches = np.array_split(order, self._num_batches)
        return [np.array_split(each, self._world_size)[self._rank] for each in batches]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        num, groups = len(self._indices), self._groups
        if not self._class_balance:
            return epoch_order(self._seed, epoch, num, groups)
        drawn = balanced_draw(self._labels.numpy()[self._indices], self._class_balance, self._seed, epoch)
        groups = None if groups is None else groups._replace(of=groups.of[drawn % num])
        return drawn[epoch_order(self._seed, epoch, num, groups)]

    def _repeats(self, places: NDArray[np.int64]) -> Tensor | None:
        """How often each image has come before in the epoch, where one may."""
        return torch.from_numpy(places // len(self._indices)) if self._class_balance else None

    def _make(self, epoch: int, places: NDArray[np.int64]) -> Batch | None:
        places = self._without_known_bad(places)
        while len(places):
            indices = self._indices[places % len(self._indices)]
            images, missing = self._store.gather(indices)
            if not missing:
                chosen = torch.from_numpy(indices)
                targets, weights, covariates = (
                    None if each is None else each[chosen] for each in (self._targets, self._weights, self._covariates)
                )
                return Batch(
                    images, chosen, self._labels[chosen], epoch, targets, self._repeats(places), weights, covariates
                )
            places = self._instead(places, missing)
        return None

    def _without_known_bad(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Spares the store images that it cannot give; what comes out is the same."""
        found = self._store.bad.found
        indices = self._indices[places % len(self._indices)] if found else []
        known = [number for number, index in enumerate(indices) if int(index) in found]
        return self._instead(places, known) if known else places

    def _instead(self, places: NDArray[np.int64], missing: Sequence[int]) -> NDArray[np.int64]:
        """The places of a batch in which some have turned out to be bad."""
        if not self._replace_bad or (not self._drop_last and len(missing) < len(places)):
            return np.delete(places, missing)
        places = places.copy() if self._drop_last else places[:1].copy()
        for number in missing[: len(places)]:
            places[number] = self._next_good(places[number])
        return places

    def _next_good(self, place: int) -> int:
        """The next place of the split whose image is not known to be bad."""
        num = len(self._indices)
        for step in range(1, num + 1):
            candidate = (place + step) % num
            if int(self._indices[candidate]) not in self._store.bad.found:
                return candidate + place // num * num
        raise ValueError("no image of this split can be decoded")


def _take(made: queue.Queue[Any], thread: threading.Thread) -> Any:
    """Waits for a batch, but not for a thread that has ended without a word."""
    while True:
        # asked first: what a thread put before it ended is there
        alive = thread.is_alive()
        try:
            return made.get(timeout=1.0 if alive else 0.0)
        except queue.Empty:
            if not alive:
                raise RuntimeError("the thread that makes the batches has ended") from None


def _put(made: queue.Queue[Any], item: Any, stopped: threading.Event) -> bool:
    """Waits for room; returns False if nobody takes batches any more."""
    while not stopped.is_set():
        try:
            made.put(item, timeout=0.05)
        except queue.Full:
            continue
        return True
    return False
