"""Does a YAML value fit a parameter's annotation? Decided from the annotation's source text.

Strict where it is certain and silent where it isn't: a bool is no int, "4" is no number, an int is
a float, .nan and .inf are none; and an annotation that isn't understood accepts everything.
"""

from __future__ import annotations

import ast
import functools
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from automodel_core.sources import Module, bindings, dotted_text

# A name in an annotation to the value that it was assigned, if its module defines such an alias.
Scope = Callable[[str], ast.expr | None]

# What YAML can write. Anything else (a nested target, a value not known yet) is not judged here.
PLAIN = (type(None), bool, int, float, str, list, dict)

SCALARS: Mapping[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: type(value) is int or (type(value) is float and math.isfinite(value)),
    "str": lambda value: isinstance(value, str),
    "Path": lambda value: isinstance(value, str),
    "PathLike": lambda value: isinstance(value, str),
    "None": lambda value: value is None,
}
LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "set", "frozenset", "Set"}
TUPLES = {"tuple", "Tuple"}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}

# Types that no plain YAML value is; in a union, as in `float | Tensor`, only the rest counts.
NEVER_PLAIN = {"Tensor", "Callable", "PretrainedConfig"}

MAX_DEPTH = 8


def fits(value: Any, annotation: str | None, default: str | None, module: Module | None) -> bool:
    """Whether `value` may be given to a parameter.

    Args:
        value: As YAML gave it.
        annotation: The parameter's annotation as source text.
        default: Its default as source text. A default of None admits None.
        module: Where the annotation stands, to look up aliases such as `Style = Literal[...]`.
    """
    if annotation is None or (value is None and default == "None"):
        return True
    try:
        node = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return True
    return _fits(value, node, _scope(module), 0)


def wants_tuple(annotation: str | None, default: str | None) -> bool:
    """Whether a list given to such a parameter should become a tuple."""
    name = (annotation or "").partition("[")[0].rpartition(".")[2]
    return name in TUPLES or (default or "").startswith("(")


def readable(annotation: str) -> str:
    """An annotation as people read it: without module names and quotes."""
    try:
        node = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return annotation
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return readable(node.value)
    return ast.unparse(_Shorten().visit(node))


class _Shorten(ast.NodeTransformer):
    """`typing.Optional[...]` -> `Optional[...]`, and `Literal["a", "b"]` -> `'a' | 'b'`."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return ast.Name(node.attr)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        node = typing.cast(ast.Subscript, self.generic_visit(node))
        if dotted_text(node.value) != "Literal":
            return node
        choices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return functools.reduce(lambda left, right: ast.BinOp(left, ast.BitOr(), right), choices)


def _scope(module: Module | None) -> Scope:
    def lookup(name: str) -> ast.expr | None:
        node = bindings(module).get(name) if module else None
        return node.value if isinstance(node, ast.Assign) else None

    return lookup


def _fits(value: Any, node: ast.expr, scope: Scope, depth: int) -> bool:
    if not isinstance(value, PLAIN) or depth > MAX_DEPTH:
        return True
    if isinstance(node, ast.Constant):
        return _fits_constant(value, node, scope, depth)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return any(_fits(value, side, scope, depth + 1) for side in (node.left, node.right))
    if isinstance(node, ast.Subscript):
        return _fits_generic(value, node, scope, depth)
    name = (dotted_text(node) or "").rpartition(".")[2]
    if name in SCALARS:
        return SCALARS[name](value)
    if name in LISTS | TUPLES:
        return isinstance(value, list)
    if name in MAPPINGS:
        return isinstance(value, dict)
    if name in NEVER_PLAIN:
        return False
    alias = scope(name)
    return _fits(value, alias, scope, depth + 1) if alias else True


def _fits_constant(value: Any, node: ast.Constant, scope: Scope, depth: int) -> bool:
    if node.value is None:
        return value is None
    if not isinstance(node.value, str):
        return True
    try:
        quoted = ast.parse(node.value, mode="eval").body
    except SyntaxError:
        return True
    return _fits(value, quoted, scope, depth + 1)


def _fits_generic(value: Any, node: ast.Subscript, scope: Scope, depth: int) -> bool:
    name = (dotted_text(node.value) or "").rpartition(".")[2]
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]

    def fit(each: Any, expected: ast.expr) -> bool:
        return _fits(each, expected, scope, depth + 1)

    if name == "Literal":
        return any(_is_literal(value, each) for each in inner)
    if name in ("Optional", "Union"):
        return (value is None and name == "Optional") or any(fit(value, each) for each in inner)
    if name in ("Annotated", "Final"):
        return fit(value, inner[0])
    if name in LISTS:
        return isinstance(value, list) and all(fit(each, inner[0]) for each in value)
    if name in TUPLES:
        return isinstance(value, list) and _fits_tuple(value, inner, fit)
    if name in NEVER_PLAIN:
        return False
    if name in MAPPINGS:
        return isinstance(value, dict) and all(fit(each, inner[-1]) for each in value.values())
    return True


def _is_literal(value: Any, node: ast.expr) -> bool:
    # By type too: True == 1 and 1 == 1.0 in Python, and nobody means that.
    same_type = isinstance(node, ast.Constant) and type(value) is type(node.value)
    return same_type and value == node.value


def _fits_tuple(value: list[Any], inner: list[ast.expr], fit: Callable[..., bool]) -> bool:
    if len(inner) == 2 and isinstance(inner[1], ast.Constant) and inner[1].value is ...:
        return all(fit(each, inner[0]) for each in value)
    return len(value) == len(inner) and all(map(fit, value, inner))
