"""Who may import whom: the core knows neither side, the sides do not know each other, siblings do not know siblings."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    file for package in ("ssl_toolkit", "pretext", "downstream") for file in sorted((ROOT / package).rglob("*.py"))
]


def imported_modules(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def within(modules: set[str], package: str) -> set[str]:
    return {module for module in modules if module == package or module.startswith(package + ".")}


def test_the_finder_sees_every_form_of_import(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("import a.b\nfrom c import d\ndef f():\n    from e.f import g\n")
    assert imported_modules(file) == {"a.b", "c", "c.d", "e.f", "e.f.g"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    modules = imported_modules(file)
    package = file.relative_to(ROOT).parts[0]
    if package == "ssl_toolkit":
        assert not within(modules, "pretext")
        assert not within(modules, "downstream")
        return
    other = "downstream" if package == "pretext" else "pretext"
    assert not within(modules, other)
    siblings = within(modules, package) - {package} - within(modules, f"{package}.base")
    assert not siblings, f"{file.name} imports its siblings {siblings}"
