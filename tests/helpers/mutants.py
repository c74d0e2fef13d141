"""Mutants of a Python source: the same text with one small bug, made from its syntax tree.

Docstrings, messages, annotations and assertions stay as they are: no test has to look at them.
"""

from __future__ import annotations

import ast
import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_PAIRS = [
    ("min", "max"), ("any", "all"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum"), ("floor", "ceil")
]  # fmt: skip
_OPPOSITES = {name: other for pair in _PAIRS for name, other in (pair, pair[::-1])}
# what people read, and what only the type checker needs
_MESSAGES = {"print", "say", "warn", "debug", "info", "warning", "error", "cast", "isinstance", "nearest"}
_ASSERTIONS = {"strict"}  # of zip: what it would find is a bug already
# whose meaning depends on what stands around them
_COMPOUND = (ast.BoolOp, ast.Compare, ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Lambda, ast.NamedExpr, ast.Yield)


class Mutant(NamedTuple):
    """One small bug.

    Attributes:
        file: Where, as a path from the root of the project with ``/``.
        line: Where in the file, from 1.
        kind: What was done, such as "comparison".
        before: The piece of source that is replaced.
        after: What it is replaced with.
        start: Where the piece begins in the file, in bytes.
    """

    file: str
    line: int
    kind: str
    before: str
    after: str
    start: int

    def applied(self, source: bytes) -> bytes:
        """The source with the bug.

        Raises:
            ValueError: It is not the source that the mutant was made of.
        """
        end = self.start + len(self.before.encode())
        if source[self.start : end] != self.before.encode():
            raise ValueError(f"{self.file}:{self.line} does not hold {self.before!r}; it has changed since")
        return source[: self.start] + self.after.encode() + source[end:]


def mutants(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a source, in its order.

    Args:
        file: What to call it.
        source: Its text, in UTF-8.
    """
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    places = list(_places(ast.parse(source)))
    of_statements = {id(node.value) for node in places if isinstance(node, ast.Expr)}
    for node in places:
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        for kind, other in _changes(node):
            if kind == "call left out" and id(node) in of_statements:
                continue  # it is a statement left out
            if ast.dump(other) == ast.dump(node):
                continue  # two equal things were swapped
            after = ast.unparse(other)
            after = f"({after})" if isinstance(other, _COMPOUND) else after
            mutant = Mutant(file, node.lineno, kind, source[start:end].decode(), after, start)
            with contextlib.suppress(SyntaxError):  # as in the places of a subscript
                ast.parse(mutant.applied(source))
                found.append(mutant)
    return found


def _places(node: Any) -> Iterator[Any]:
    """The nodes that may be changed, from the outside to the inside."""
    if isinstance(node, (ast.expr, ast.stmt)):
        yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "exc", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_left_alone(child):
                yield from _places(child)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.keyword):
        return node.arg in _ASSERTIONS
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Name) and node.value.id == "Literal"
    call = node.value if isinstance(node, ast.Expr) else node
    return isinstance(call, ast.Call) and _name(call.func) in _MESSAGES


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _changes(node: Any) -> Iterator[tuple[str, ast.AST]]:
    """What may be put in a node's place, each with its kind."""
    change = _CHANGES.get(type(node))
    if change is not None:
        yield from change(node)


def _with(node: Any, **fields: Any) -> Any:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _compare(node: ast.Compare) -> Iterator[tuple[str, ast.AST]]:
    for place, op in enumerate(node.ops):
        yield "comparison", _with(node, ops=[*node.ops[:place], _COMPARISONS[type(op)](), *node.ops[place + 1 :]])


def _bool_op(node: ast.BoolOp) -> Iterator[tuple[str, ast.AST]]:
    yield "and / or", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _unary_op(node: ast.UnaryOp) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield "sign or negation", node.operand


def _bin_op(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    # a folder / "name" is no quotient
    is_path = isinstance(node.op, ast.Div) and isinstance(node.right, (ast.JoinedStr, ast.Constant))
    if type(node.op) in _OPERATORS and not (is_path and not _is_number(node.right)):
        yield "arithmetic", _with(node, op=_OPERATORS[type(node.op)]())


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


def _constant(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.value, bool):
        yield "True / False", ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield "off by one", ast.Constant(node.value + 1)


def _opposite(node: Any) -> Iterator[tuple[str, ast.AST]]:
    field = "id" if isinstance(node, ast.Name) else "attr"
    if isinstance(node.ctx, ast.Load) and (other := _OPPOSITES.get(getattr(node, field))):
        yield "min / max", _with(node, **{field: other})


def _if_exp(node: ast.IfExp) -> Iterator[tuple[str, ast.AST]]:
    yield "swapped", _with(node, body=node.orelse, orelse=node.body)


def _tuple(node: ast.Tuple) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.ctx, ast.Load) and len(node.elts) == 2:
        yield "swapped", _with(node, elts=node.elts[::-1])


def _call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    plain = not any(isinstance(each, ast.Starred) for each in node.args)
    if plain and len(node.args) > 1 and _name(node.func) not in _OPPOSITES:
        first, second, *others = node.args
        yield "swapped", _with(node, args=[second, first, *others])
    if plain and node.args and not isinstance(node.args[0], ast.Constant):
        yield "call left out", node.args[0]
    for place, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in _ASSERTIONS:
            yield "argument left out", _with(node, keywords=node.keywords[:place] + node.keywords[place + 1 :])


def _expr(node: ast.Expr) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.value, (ast.Call, ast.Await)):
        yield "statement left out", ast.Pass()


def _assign(node: ast.Assign) -> Iterator[tuple[str, ast.AST]]:
    # a name that is never given ends in an error at once
    if any(isinstance(each, (ast.Attribute, ast.Subscript)) for each in node.targets):
        yield "statement left out", ast.Pass()


def _statement(node: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    yield "statement left out", ast.Pass()


_CHANGES: dict[type[ast.AST], Callable[[Any], Iterator[tuple[str, ast.AST]]]] = {
    ast.Compare: _compare, ast.BoolOp: _bool_op, ast.UnaryOp: _unary_op, ast.BinOp: _bin_op, ast.Constant: _constant,
    ast.Name: _opposite, ast.Attribute: _opposite, ast.IfExp: _if_exp, ast.Tuple: _tuple, ast.Call: _call,
    ast.Expr: _expr, ast.Assign: _assign, ast.AugAssign: _statement, ast.Raise: _statement, ast.Continue: _statement,
    ast.Break: _statement,
}  # fmt: skip
