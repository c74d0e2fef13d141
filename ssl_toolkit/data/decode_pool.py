"""Thread pool that reads and decodes images, with a timeout for each read.

A network disk that has gone away does not fail: a thread that reads from it waits, and no signal wakes it. Nothing
can end such a thread, but the run can notice, say what it was reading, and end.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from ssl_toolkit.errors import RunFailed

READ_TIMEOUT = 300.0
"""Seconds that reading one image may take."""

_LONGEST_LOOK_AWAY = 0.5  # seconds between two looks at the clocks
_PATIENCE_AT_THE_END = 0.5  # seconds that threads get to finish what they are doing


class Named(Protocol):
    """What knows the names of its images, as `ssl_toolkit.data.sources.Source` does."""

    def name(self, index: int) -> str:
        """A short name for messages."""
        ...


class _Read(NamedTuple):
    """What a thread is reading, and since when."""

    source: Named
    index: int
    since: float


class _Clock:
    """What one thread is reading; None while it waits for work."""

    def __init__(self) -> None:
        self.read: _Read | None = None


_OWN = threading.local()


def reading(source: Named, index: int) -> None:
    """Restarts the clock of this thread: it begins to read this image."""
    clock: _Clock | None = getattr(_OWN, "clock", None)
    if clock is not None:
        clock.read = _Read(source, index, time.monotonic())


class ReadingThreads:
    """Thread pool that works off what is submitted, in order.

    Unlike those of ``concurrent.futures`` they do not keep a program from ending.

    Args:
        num_threads: How many.
        timeout: Seconds after which reading one image is taken to never end.
    """

    def __init__(self, num_threads: int, timeout: float = READ_TIMEOUT) -> None:
        self._timeout = timeout
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._clocks = [_Clock() for _ in range(num_threads)]
        threads = [
            threading.Thread(target=_work, args=(self._tasks, clock), name=f"decode_{number}", daemon=True)
            for number, clock in enumerate(self._clocks)
        ]
        for thread in threads:
            thread.start()
        # also when the last reference goes, and when the program ends
        self.close = weakref.finalize(self, _close, self._tasks, threads)

    def __enter__(self) -> ReadingThreads:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Has a thread call the function."""
        future: Future[Any] = Future()
        self._tasks.put((future, function, arguments))
        return future

    def result(self, future: Future[Any]) -> Any:
        """Waits for what the function returns or raises.

        Raises:
            RunFailed: One of the threads has been reading the same image for longer than the timeout.
        """
        while True:
            try:
                return future.result(min(_LONGEST_LOOK_AWAY, self._timeout))
            except concurrent.futures.TimeoutError:
                if future.done():  # the function may raise the same error
                    return future.result()
                self._check_clocks()

    def _check_clocks(self) -> None:
        reads = [clock.read for clock in self._clocks]
        oldest = min((read for read in reads if read is not None), key=lambda read: read.since, default=None)
        if oldest is not None and time.monotonic() - oldest.since > self._timeout:
            raise RunFailed(
                f"reading the image {oldest.source.name(oldest.index)} has not ended in {self._timeout:g} seconds "
                "(data.read_timeout); mend the disk or remove the file, and resume the run"
            )


def _work(tasks: queue.SimpleQueue[Any], clock: _Clock) -> None:
    _OWN.clock = clock
    while True:
        task = tasks.get()
        if task is None:
            return
        _do(clock, *task)
        del task  # its result must not be kept while there is nothing to do


def _do(clock: _Clock, future: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*arguments)
    # whatever it is, who waits for the result must hear of it, or would wait for ever
    except BaseException as error:
        clock.read = None
        future.set_exception(error)
    else:
        clock.read = None
        future.set_result(result)


def _close(tasks: queue.SimpleQueue[Any], threads: Sequence[threading.Thread]) -> None:
    with contextlib.suppress(queue.Empty):
        while (task := tasks.get_nowait()) is not None:
            task[0].cancel()
    for _ in threads:
        tasks.put(None)
    deadline = time.monotonic() + _PATIENCE_AT_THE_END
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
