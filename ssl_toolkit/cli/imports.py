"""Faster imports."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Faster imports within the context: three quarters of the time.

    Libraries make a million objects that stay; looking through them for garbage again and again takes a fifth of the
    time. And timm imports wandb where it can, only for the log of its training script. Nothing happens where torch is
    there already: little is left to gain, and the objects may be those of a user's program.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    hidden = sys.modules.setdefault("wandb", None) is None  # pyright: ignore[reportArgumentType] - what import takes
    try:
        yield
    finally:
        if hidden:
            del sys.modules["wandb"]
        # what is there now is not looked through again, but at the end, where libraries count what is left
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.enable()
