"""Which tests are likely to see a bug in a module: those that mirror it, then those that import it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HELPERS = "tests/helpers"


class Imports:
    """Which module imports which, and so how near each test file is to a module.

    Args:
        root: Of the project.
    """

    def __init__(self, root: Path) -> None:
        packages = [file.parent for file in root.glob("*/__init__.py")]
        files = [*root.glob("tests/**/*.py"), *(file for package in packages for file in package.rglob("*.py"))]
        names = {_module(file.relative_to(root).as_posix()): file for file in files}
        trees = {name: ast.parse(file.read_bytes()) for name, file in names.items()}
        self._names = set(names)
        # what a package offers is looked for in the module that has it
        self._offers = {
            name: {
                alias.asname or alias.name: f"{node.module}.{alias.name}"
                for node in _imports_from(trees[name])
                for alias in node.names
            }
            for name, file in names.items()
            if file.name == "__init__.py"
        }
        self._imported = {name: self._imported_by(tree) for name, tree in trees.items()}
        self._distances = {
            file.relative_to(root).as_posix(): self._distances_from(name)
            for name, file in names.items()
            if file.name.startswith("test_")
        }

    def tests(self, file: str) -> list[str]:
        """The test files that import a module, directly or through others: the nearest first.

        Args:
            file: Of the module, from the root of the project.
        """
        module = Path(file)

        def distance(test: str) -> tuple[float, str]:
            path, folder = Path(test), Path(test).parent.relative_to("tests")
            mirrors = folder in module.parents and folder != Path()
            own = module.with_suffix("").relative_to(folder).as_posix() if mirrors else ""
            is_named = bool(set(path.stem.split("_")[1:]) & set(re.split("[/_]", own)))
            return self._distances[test][_module(file)] - mirrors - 2 * is_named, test

        return sorted((test for test in self._distances if _module(file) in self._distances[test]), key=distance)

    def all_tests(self) -> list[str]:
        """All test files."""
        return sorted(self._distances)

    def _imported_by(self, tree: ast.AST) -> set[str]:
        found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        for node in _imports_from(tree):
            found |= {self._origin(f"{node.module}.{alias.name}") for alias in node.names}
        return found & self._names

    def _origin(self, name: str) -> str:
        """The module that a name comes from."""
        module, _, last = name.rpartition(".")
        if name in self._names or not module:
            return name
        offered = self._offers.get(module, {}).get(last)
        return self._origin(offered) if offered and offered != name else module

    def _distances_from(self, start: str) -> dict[str, int]:
        """How many imports lie between a module and each that it reaches."""
        distances, edge = {start: 0}, {start}
        while edge:
            edge = {other for name in edge for other in self._imported[name]} - distances.keys()
            distances |= dict.fromkeys(edge, 1 + max(distances.values()))
        return distances


def _imports_from(tree: ast.AST) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level]


def _module(file: str) -> str:
    name = file.removeprefix(f"{HELPERS}/").removesuffix(".py").removesuffix("/__init__")
    return name.replace("/", ".")
