"""Lock of a run's folder: one process at a time trains there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.run_folder import CONFIG, check_free

LOCK = ".lock"


@contextlib.contextmanager
def held(run: Path, is_new: bool) -> Iterator[None]:
    """Holds a run's folder against other processes, as long as the context lasts.

    The lock is the operating system's (``flock``): it ends with the process, however that ends. On NFS it holds between
    machines where the server knows locks, and that of a machine that died ends when the server gives it up (NFS 4: 90
    seconds as a rule). Where a file system knows no locks, it is said, and nothing is held.

    Args:
        run: The folder; it is made, and removed if it stays without a run.
        is_new: Whether a run begins there.

    Raises:
        ValueError: In one line, if another process holds it, or has begun a run there in the meantime.
    """
    if not is_rank_zero():
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process is training in {run}: wait until it has ended, or choose another --out for a new run"
        ) from None
    except NotImplementedError:
        print(f"{run} lies on a file system without locks: see to it that no other process trains there")
    try:
        if is_new:
            check_free(run)
        yield
    finally:
        lock.release()
        if not (run / CONFIG).exists():
            (run / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds files of the user's
                run.rmdir()
