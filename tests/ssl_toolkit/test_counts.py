"""Numbers in messages agree with their nouns."""

import ast
from pathlib import Path

import pytest

from ssl_toolkit.errors import counted

PACKAGES = [Path(__file__).parents[2] / name for name in ("ssl_toolkit", "pretext", "downstream")]


@pytest.mark.parametrize(
    ("noun", "one"),
    [
        ("images", "1 image"), ("files", "1 file"), ("classes", "1 class"), ("processes", "1 process"),
        ("batches", "1 batch"), ("sequences", "1 sequence"), ("bad files", "1 bad file"), ("pages", "1 page"),
        ("boxes", "1 box"), ("such layers", "1 such layer"),
    ],
)  # fmt: skip
def test_one_and_many(noun, one):
    assert counted(1, noun) == one
    assert counted(0, noun) == f"0 {noun}"
    assert counted(2000, noun) == f"2,000 {noun}"


def test_no_message_makes_a_plural_of_its_own():
    """``file{'s' if num > 1 else ''}`` belongs into `counted`."""
    found = []
    for file in (file for package in PACKAGES for file in package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.IfExp):
                endings = [
                    each.value for each in (node.value.body, node.value.orelse) if isinstance(each, ast.Constant)
                ]
                if set(endings) & {"s", "es"}:
                    found.append(f"{file}:{node.lineno}")
    assert not found
