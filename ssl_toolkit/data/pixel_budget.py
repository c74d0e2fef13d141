"""Pixel budget: how many pixels may be in work in all threads together."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator


class PixelBudget:
    """Keeps many threads from decoding many of the largest images at once, each of which takes half a gigabyte.

    Args:
        most: Pixels that may be in work at the same time; one image always may.
        small: Images of so many pixels need not ask.
    """

    def __init__(self, most: int, small: int) -> None:
        self._most = most
        self._small = small
        self._reset()
        if hasattr(os, "register_at_fork"):
            # the threads that hold pixels do not come along
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, num_pixels: int) -> Iterator[None]:
        """Waits until so many more pixels fit."""
        if num_pixels <= self._small:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + num_pixels <= self._most)
            self._held += num_pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= num_pixels
                self._changed.notify_all()
