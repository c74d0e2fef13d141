"""Who may import whom: the core knows neither side, siblings do not know siblings, and there are no circles."""

import ast
import importlib
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


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The folder or file at the top level of its package."""
    return ".".join(module.split(".")[:2])


def circles(graph: dict[str, set[str]]) -> list[str]:
    """What is left when modules that import nothing of what is left are taken away, again and again."""
    left = dict(graph)
    while found := [module for module, needs in left.items() if not needs & left.keys() - {module}]:
        for module in found:
            del left[module]
    return sorted(left)


def test_the_finder_sees_every_form_of_import(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("import a.b\nfrom c import d\ndef f():\n    from e.f import g\n")
    assert imported_modules(file) == {"a.b", "c", "c.d", "e.f", "e.f.g"}


def test_the_finder_of_circles_finds_them():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == ["a", "b", "c"]


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


def test_no_imports_go_round_in_circles():
    """Neither those of modules, in functions and for types as well, nor those of the rooms at the top level."""
    names = {module_of(file): file for file in FILES}
    # importing `package.module` imports the package first, but a package says that of its modules on purpose
    graph = {
        module: {
            name
            for name in imported_modules(file) & names.keys()
            if not module.startswith(f"{name}.") and name != module
        }
        for module, file in names.items()
    }
    assert circles(graph) == []
    rooms: dict[str, set[str]] = {}
    for module, needs in graph.items():
        rooms.setdefault(room_of(module), set()).update({room_of(each) for each in needs} - {room_of(module)})
    assert circles(rooms) == []


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("ssl_toolkit.backbones", "Backbone"),
        ("ssl_toolkit.soft_targets", "soften"),
        ("ssl_toolkit.sharded_checkpoint", "save"),
        ("ssl_toolkit.health.watch", "Watch"),
        ("ssl_toolkit.random", "fold"),
    ],
)
def test_what_the_documentation_once_imported_can_still_be_imported(old, name):
    assert callable(getattr(importlib.import_module(old), name))
