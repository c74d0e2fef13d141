"""What several test files share."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

# pytest puts this folder first in the module path, where tests/ssl_toolkit hides the package of an editable install
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).with_name("helpers")))

import shapes

shapes.install()  # before anything is imported that is annotated

import pytest  # noqa: E402
import torch  # noqa: E402

from gloo_processes import run_processes as _run_processes  # noqa: E402

# a shell that starts the tests in the background has Ctrl-C ignored, which the programs that they start would inherit
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# tests compute on tiny tensors, where a second thread is in the way; it is worse where the cores are shared
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--changed",
        action="store_true",
        help="only tests whose sources differ from those of the last nightly run, and of too many a sample",
    )


def pytest_report_header(config):
    if not config.getoption("--changed"):
        return None
    import source_groups

    changed, share = source_groups.changed_groups(), source_groups.gate_share()
    part = "all their tests" if share == 1 else f"{share:.0%} of their tests (python tests/nightly.py runs all)"
    return f"changed since the last nightly run: {', '.join(sorted(changed)) or 'nothing'}; {part}"


def pytest_collection_modifyitems(config, items):
    groups = {}
    for item in items:
        mark = item.get_closest_marker("method")
        groups[item] = mark.args[0] if mark else "core"
        guarantees = [name for each in item.iter_markers("guarantee") for name in each.args]
        # the nightly command reads them from the reports
        nightly = item.get_closest_marker("nightly") is not None
        if nightly and item.get_closest_marker("slow") is not None:
            raise pytest.UsageError(f"{item.nodeid} is marked both slow (the gate runs it) and nightly (it does not)")
        item.user_properties += [("group", groups[item]), ("guarantees", guarantees), ("nightly", nightly)]
    if "NIGHTLY" in os.environ:
        folder = Path(os.environ["NIGHTLY"])
        done = set(json.loads((folder / "done.json").read_text(encoding="utf-8")))
        # the methods first, one after the other, so that a run that is broken off has proven some of them
        items.sort(key=lambda item: (groups[item] == "core", groups[item]))
        if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
            names = {group: [item.nodeid for item in items if groups[item] == group] for group in groups.values()}
            (folder / "tests.json").write_text(json.dumps(names), encoding="utf-8")
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]
    if config.getoption("--changed"):
        import source_groups

        changed, share = source_groups.changed_groups(), source_groups.gate_share()
        sources = source_groups.digest(source_groups.CORE)
        kept = [
            item for item in items if groups[item] in changed and source_groups.in_sample(item.nodeid, share, sources)
        ]
        config.hook.pytest_deselected(items=list(set(items).difference(kept)))
        items[:] = kept


@pytest.fixture
def run_processes():
    """`gloo_processes.run_processes`: runs a function of a test module in several gloo processes."""
    return _run_processes


@pytest.fixture
def reached(record_property):
    """Notes the figure that a test of a guarantee reached, for docs/reliability.md: ``reached("20 of 20 kills")``."""
    return lambda figure: record_property("reached", figure)
