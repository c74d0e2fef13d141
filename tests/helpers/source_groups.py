"""Groups of tests with the source files that each depends on, and what the last nightly run proved of them.

A test that is marked with ``method(name)`` belongs to that method's group; every other one to the group ``core``. The
nightly command writes the hash of each group's files into a stamp file. ``pytest -m slow --changed`` leaves out the
groups whose files, and the libraries under them, are still those of the stamp. If the tests of the others are too long
for the gate, it takes a sample of them: each state of the sources has its own.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

import golden_losses
import methods

ROOT = Path(__file__).parents[2]
STAMP = ROOT / "tests" / "nightly.json"
CORE = "core"
GATE_SECONDS = 2_200  # of one core, for the slow tests of the gate
UNKNOWN_SECONDS = {CORE: 5_000}  # of a group that is not in the stamp; of a method the limit of 70
CHOOSING = (ROOT / "tests/nightly.py", Path(__file__).resolve())
LIBRARIES = ("torch", "torchvision", "lightning", "timm", "numpy", "pillow")

# what a method is made of beside its own file; what else it calls is proven on the representatives
SHARED = (
    "pretext/base", "downstream/base", "ssl_toolkit/losses", "ssl_toolkit/modules", "ssl_toolkit/augment",
    "ssl_toolkit/step.py", "tests/every_method", "tests/helpers/methods/__init__.py", "tests/helpers/methods/method.py",
)  # fmt: skip
EVERYTHING = (
    "ssl_toolkit", "pretext/base", "downstream/base", "configs", "tests", "pyproject.toml", "setup.py", "README.md",
)  # fmt: skip


def groups() -> list[str]:
    """All groups."""
    return [CORE, *methods.tasks()]


def digest(group: str, test: str | None = None) -> str:
    """The hash of what a group's tests depend on: its files, the libraries, and of a method its kept losses.

    Args:
        group: The group.
        test: One of its tests, as pytest names it: without the files of other tests, but those that its file imports,
            and without what chooses tests.
    """
    facts: list[Any] = [f"Python {sys.version_info[0]}.{sys.version_info[1]}"]
    facts += [f"{library} {importlib.metadata.version(library).partition('+')[0]}" for library in LIBRARIES]
    if group != CORE:
        facts.append(golden_losses.read()["losses"].get(group))
    hashed = hashlib.sha256(json.dumps(facts).encode())
    own = ROOT / test.split("::")[0] if test else None
    used = re.findall(r"^(?:from|import) (test_\w+)", own.read_text(encoding="utf-8"), re.MULTILINE) if own else []
    for file in files(group):
        is_other = file != own and file.name.startswith("test_") and file.stem not in used
        if own and (is_other or file in CHOOSING):
            continue
        hashed.update(f"\n{file.relative_to(ROOT).as_posix()}\n".encode())
        hashed.update(file.read_bytes())
    return hashed.hexdigest()


def files(group: str) -> list[Path]:
    """The files of a group, sorted."""
    names = [group] if group != CORE else methods.representatives()
    modules = {methods.tasks()[name].__module__ for name in names}
    own = [ROOT / f"{module.replace('.', '/')}.py" for module in modules]
    own += [ROOT / "tests/helpers/methods" / file.name for file in own]
    others = {
        ROOT / "tests/helpers/methods" / f"{cls.__module__.rpartition('.')[2]}.py" for cls in methods.tasks().values()
    }
    kept = {golden_losses.FILE, STAMP}  # of all methods; a method's own losses are among its facts
    found = set(own)
    for entry in EVERYTHING if group == CORE else SHARED:
        path = ROOT / entry
        found |= {each for each in path.rglob("*") if each.is_file()} if path.is_dir() else {path}
    left_out = (
        {each for each in found if "__pycache__" in each.parts or each.suffix == ".pyc"} | kept | (others - set(own))
    )
    return sorted(found - left_out)


def read_stamp() -> dict[str, Any]:
    """What the last nightly run proved; nothing if there is no stamp."""
    return json.loads(STAMP.read_text(encoding="utf-8")) if STAMP.exists() else {"groups": {}}


def changed_groups() -> set[str]:
    """The groups that the last nightly run did not prove as they are now."""
    proven = read_stamp()["groups"]
    return {group for group in groups() if proven.get(group, {}).get("hash") != digest(group)}


def gate_share() -> float:
    """The share of the slow tests of changed groups that the gate has time for, above 0 and at most 1.

    It goes by the seconds that the tests of these groups took in the last nightly run.
    """
    stamped = read_stamp()["groups"]
    if not stamped:
        return 1.0
    seconds = [
        stamped[group]["seconds"] if group in stamped else UNKNOWN_SECONDS.get(group, 70) for group in changed_groups()
    ]
    return min(1.0, GATE_SECONDS / max(1.0, sum(seconds)))


def in_sample(test: str, share: float, sources: str) -> bool:
    """Whether a test belongs to the sample that the gate takes of a state of the sources.

    Args:
        test: The test, as pytest names it.
        share: Of all tests that belong to it, 0 to 1.
        sources: A hash of the sources; another one has another sample.
    """
    place = int.from_bytes(hashlib.sha256(f"{sources} {test}".encode()).digest()[:8]) / 2**64
    return place < share
