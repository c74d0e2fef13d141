"""The largest resident memory of this process, as the kernel counts it for the program that runs now.

``ru_maxrss`` of `resource.getrusage` is no such number in a child: a process that a large one has started begins with
the memory of the large one as its own peak, so that nothing it does is seen.
"""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """The peak since the program began or `forget_peak_memory` was called, in KiB."""
    return int(next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")))


def forget_peak_memory() -> int:
    """Lets the peak begin at what is resident now, and returns that, in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()
