"""Prefetching of shards, before their images are asked for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.shards.remote import Stopped

NUM_FETCHERS = 4


def prefetch(
    batches: Iterator[NDArray[np.int64]],
    most: int,
    fetch: Callable[[int, threading.Event], object],
    retire: Callable[[int], object],
) -> Generator[None, None, None]:
    """Prefetches shards in the order of their first use; each ``next()`` says that one more batch is begun.

    Errors are not reported here: the reader that needs the shard tries again, and reports them.

    Args:
        batches: For each batch, int64 array of the shards of its images.
        most: How many shards may be waited for or in use at once, beside those of the batch itself.
        fetch: Fetches one; gives up where the event is set.
        retire: Told of a shard that is not needed any more, as far as is known.
    """
    stopped = threading.Event()
    pool = ThreadPoolExecutor(NUM_FETCHERS, thread_name_prefix="fetch")

    def one(shard: int) -> None:
        with contextlib.suppress(Stopped, ValueError):
            if not stopped.is_set():
                fetch(shard, stopped)

    last_use: dict[int, int] = {}  # of shards that are waited for or in use: the last batch so far that needs them
    known, begun = 0, 0
    following = next(batches, None)
    try:
        while True:
            while following is not None:
                shards = np.unique(following).tolist()
                new = [shard for shard in shards if shard not in last_use]
                if known > begun:
                    used_up = [shard for shard, batch in last_use.items() if batch < begun and shard not in shards]
                    for shard in used_up:
                        del last_use[shard]
                        retire(shard)
                    if len(last_use) + len(new) > most:
                        break
                for shard in new:
                    pool.submit(one, shard)
                last_use.update(dict.fromkeys(shards, known))
                known += 1
                following = next(batches, None)
            yield
            begun += 1
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for shard in last_use:
            retire(shard)
