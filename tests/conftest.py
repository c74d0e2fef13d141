"""What several test files share."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest puts this folder first in the module path, where tests/ssl_toolkit hides the package of an editable install
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).with_name("helpers")))

import shapes

shapes.install()  # before anything is imported that is annotated

import pytest  # noqa: E402
import torch  # noqa: E402

from processes import run_processes as _run_processes  # noqa: E402

# tests compute on tiny tensors, where a second thread is in the way; it is worse where the cores are shared
torch.set_num_threads(1)


@pytest.fixture
def run_processes():
    """`processes.run_processes`: runs a function of a test module in several gloo processes."""
    return _run_processes


@pytest.fixture
def reached(record_property):
    """Notes the figure that a test of a goal reached, for docs/reliability.md: ``reached("20 of 20 kills")``."""
    return lambda figure: record_property("reached", figure)
