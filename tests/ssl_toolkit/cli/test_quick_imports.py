"""Imports of a command: what is left out for speed is there for whoever asks for it."""

import subprocess
import sys

import pytest

CODE = """
import sys
from ssl_toolkit.cli.imports import quick_imports
with quick_imports():
    import ssl_toolkit.cli.train
    {within}
assert ("scipy.signal" in sys.modules) == {loaded}
assert sys.modules.get("wandb", "absent") is not None
import scipy.signal, torchmetrics
assert scipy.signal is sys.modules["scipy.signal"]
assert scipy.signal.lfilter([1], [1], [2.0]).tolist() == [2.0]
print("fine")
"""


def run(within, loaded):
    code = CODE.format(within=within, loaded=loaded)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (result.stdout, result.returncode) == ("fine\n", 0), result.stderr


@pytest.mark.slow
def test_scipy_signal_is_not_loaded_until_it_is_asked_for():
    run("pass", loaded=False)


@pytest.mark.slow
def test_within_the_context_it_is_loaded_when_something_of_it_is_used():
    run("import scipy.signal; assert scipy.signal.lfilter.__module__.startswith('scipy.signal')", loaded=True)
