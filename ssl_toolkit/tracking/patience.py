"""Timeouts for a tracker."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any


class NoAnswer(TimeoutError):
    """A call has not returned in its time."""


def within(seconds: float, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls in another thread and returns the result.

    W&B talks to a separate process; if that hangs (stopped, swapped out, on a file system that does not answer), a
    call of W&B's returns when it does, or never. The thread is then left behind.

    Args:
        seconds: The most to wait.
        action: What to call.
        *args: Its arguments.
        **kwargs: Likewise.

    Raises:
        NoAnswer: It takes longer.
    """
    outcome: list[tuple[Any, BaseException | None]] = []

    def call() -> None:
        try:
            outcome.append((action(*args, **kwargs), None))
        except BaseException as error:
            outcome.append((None, error))

    # a daemon, for which the interpreter does not wait at its end
    thread = threading.Thread(target=call, name="tracker", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise NoAnswer(f"no answer within {seconds:g} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def end_without_wandb(hung: bool) -> None:
    """Has this process end without a word to W&B's own, if that hangs or is gone: W&B would wait for it for ever.

    Args:
        hung: It does not answer.
    """
    # there is no public way to it; should it change, the end of a run may wait again, and a test says so
    with contextlib.suppress(Exception):
        from wandb.sdk import wandb_setup

        # not by a function of W&B's, which may wait for a lock that the call without an answer holds
        connection: Any = wandb_setup._singleton._connection  # pyright: ignore[reportOptionalMemberAccess]
        if hung or connection._proc._process.poll() is not None:
            connection._cleanup()
            # and a thread of W&B's would die of it with a traceback
            connection._finalizer._queue.put(None)
