"""Progress of long work as lines, also where there is no terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

EVERY_SECONDS = 20.0


class Steps:
    """Progress of work that has several steps: lines of what is done, and how far a long step is.

    Use it as a context. Within it, ``say`` gets a line at least every ``every`` seconds.

    Args:
        say: Called with each line, also from another thread; None if nobody listens.
        every: Seconds.
    """

    def __init__(self, say: Callable[[str], None] | None, every: float = EVERY_SECONDS) -> None:
        self._listener = say
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._said = self._began = time.monotonic()
        self._what, self._done, self._total = "", 0, 0

    def __call__(self, line: str) -> None:
        """Says a line."""
        self._said = time.monotonic()
        if self._listener is not None:
            self._listener(line)

    def begin(self, what: str, total: int = 0) -> None:
        """Begins a step.

        Args:
            what: What is done, for the lines.
            total: Of how many things; 0 if they cannot be counted.
        """
        self._began = time.monotonic()
        self._what, self._done, self._total = what, 0, total

    def advance(self, num: int) -> None:
        """Counts so many things more as done."""
        self._done += num

    def __enter__(self) -> Steps:
        if self._listener is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.01, self._said + self._every - time.monotonic())):
            if self._what and time.monotonic() - self._said >= self._every:
                how_far = f"{self._done:,} of {self._total:,}" if self._total else "still at it"
                self(f"{self._what}: {how_far} after {time.monotonic() - self._began:.0f} s")
