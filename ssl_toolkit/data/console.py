"""Messages and progress bars about images, on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

CONSOLE = Console(stderr=True)
"""Where messages about images go; shared, so that they do not tear a progress bar."""

T = TypeVar("T")


def say(text: str) -> None:
    """One line on stderr."""
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)


def show_progress(
    items: Iterable[T],
    total: int,
    text: str,
    enabled: bool = True,
    first: int = 0,
    after: float = 2.0,
    every: float = 20.0,
) -> Iterator[T]:
    """Passes items on, with a progress bar on stderr if they take long; where that is no terminal, with lines of text.

    Args:
        items: The items.
        total: How many there are with those before.
        text: What is going on.
        enabled: False for no bar at all.
        first: How many were there before.
        after: Seconds before the bar appears.
        every: Seconds between two lines of text.
    """
    if not CONSOLE.is_terminal:
        yield from _with_lines(items, total, text, enabled, first, every)
        return
    start = time.monotonic()
    bar = Progress(console=CONSOLE)
    task = bar.add_task(text, total=total)
    shown = False
    try:
        for count, item in enumerate(items, first + 1):
            yield item
            if not shown and enabled and time.monotonic() - start > after:
                shown = True
                bar.start()
            if shown:
                bar.update(task, completed=count)
    finally:
        if shown:
            bar.stop()


def _with_lines(items: Iterable[T], total: int, text: str, enabled: bool, first: int, every: float) -> Iterator[T]:
    said = time.monotonic()
    for count, item in enumerate(items, first + 1):
        yield item
        if enabled and time.monotonic() - said >= every:
            said = time.monotonic()
            say(f"{text}: {count:,} of {total:,}")
