from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource, sys, torch
from ssl_toolkit.perf.malloc import keep_freed_memory
settled = keep_freed_memory() if sys.argv[1] == "keep" else False
def touch():
    torch.ones(2**24)  # 64 MiB
for _ in range(12):  # the heap finds its size
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(settled, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PAGE_FAULTS, argument]
    said = subprocess.run(command, env=kept | environment, check=True, capture_output=True, text=True, timeout=100)
    settled, faults = said.stdout.split()
    return settled == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
@pytest.mark.slow
def test_memory_is_taken_from_the_system_once():
    settled, faults = page_faults("keep")
    assert settled
    _, faults_by_default = page_faults("leave")
    # five tensors of 16,384 pages of 4 KiB (32 huge pages at the least)
    assert faults_by_default > 5 * 30
    assert faults < 0.02 * faults_by_default


@pytest.mark.slow
def test_what_the_environment_has_chosen_is_left_alone():
    settled, _ = page_faults("keep", MALLOC_TRIM_THRESHOLD_="100000")
    assert not settled
