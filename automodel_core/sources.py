"""Python modules read from their files without importing them: what they define and import.

`importlib.util.find_spec("torch.optim")` would import torch, so packages are walked by hand.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import attrs

Statement = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@attrs.frozen
class Module:
    """A module found on disk.

    Attributes:
        name: Its full dotted name.
        file: Its source; None for a namespace package, an extension module or a built-in one.
        locations: Where its submodules are, if it is a package.
    """

    name: str
    file: Path | None
    locations: tuple[Path, ...] = ()

    @property
    def tree(self) -> ast.Module | None:
        """The parsed source; None if there is none or it isn't valid Python."""
        return parse(self.file) if self.file else None

    @property
    def docstring(self) -> str:
        """What its author wrote at its top; "" if nothing."""
        return (self.tree and ast.get_docstring(self.tree)) or ""


@cache
def parse(file: Path) -> ast.Module | None:
    """The syntax tree of a source file; None if it can't be read."""
    try:
        return ast.parse(file.read_bytes(), str(file))
    except (OSError, SyntaxError, ValueError):
        return None


def find_module(name: str) -> Module | None:
    """Find a module by its full dotted name without importing it or its packages."""
    first, *rest = name.split(".")
    module = top_level(first)
    for part in rest:
        module = module and submodule(module, part)
    return module


def top_level(name: str) -> Module | None:
    """Find a package or module that is in no package."""
    try:
        return _found_on(tuple(sys.path), name)
    except (ImportError, ValueError):
        return None


@cache
def _found_on(path: tuple[str, ...], name: str) -> Module:
    """The same on one `sys.path`, looked for once: dozens of targets share a package, and finding
    it asks every folder of the path. An error isn't kept, so what is installed next is found."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(name)
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    locations = tuple(Path(each) for each in spec.submodule_search_locations or ())
    return Module(name, file if file and file.suffix == ".py" else None, locations)


def submodule(parent: Module, part: str) -> Module | None:
    """Find a module in a package."""
    name = f"{parent.name}.{part}"
    for location in parent.locations:
        package = location / part
        if (package / "__init__.py").is_file():
            return Module(name, package / "__init__.py", (package,))
        if (location / f"{part}.py").is_file():
            return Module(name, location / f"{part}.py")
        if any((location / f"{part}{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
            return Module(name, None)
    namespaces = tuple(each / part for each in parent.locations if (each / part).is_dir())
    return Module(name, None, namespaces) if namespaces else None


def bindings(module: Module) -> dict[str, ast.stmt]:
    """What the top-level names of a module are bound by; definitions win over imports."""
    return _bindings(module.tree) if module.tree else {}


@cache
def _bindings(tree: ast.Module) -> dict[str, ast.stmt]:
    defined: dict[str, ast.stmt] = {}
    imported: dict[str, ast.stmt] = {}
    assigned: dict[str, ast.stmt] = {}
    for node in statements(tree):
        if isinstance(node, Statement):
            if not _is_overload(node):
                defined.setdefault(node.name, node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                imported.setdefault(alias.asname or alias.name.partition(".")[0], node)
        else:
            for name in _stored(node):
                assigned.setdefault(name, node)
    return {**assigned, **imported, **defined}


def _stored(node: ast.stmt) -> Iterator[str]:
    """The names that a statement assigns, in whatever way."""
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            yield each.id


def _is_overload(node: Statement) -> bool:
    names = map(dotted_text, node.decorator_list)
    return any((name or "").rpartition(".")[2] == "overload" for name in names)


def statements(tree: ast.Module | None) -> Iterator[ast.stmt]:
    """Top-level statements, those under `if`, `try` and `with` included."""
    pending: list[ast.AST] = list(tree.body) if tree else []
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            pending[:0] = ast.iter_child_nodes(node)
        elif isinstance(node, ast.stmt):
            yield node


def imported(
    module: Module, node: ast.Import | ast.ImportFrom, name: str
) -> tuple[str, tuple[str, ...]]:
    """The module that an import statement reads to bind `name`, and what it takes from it."""
    if isinstance(node, ast.Import):  # `import a.b` binds a; `import a.b as name` binds a.b
        return next((each.name for each in node.names if each.asname == name), name), ()
    original = next(each.name for each in node.names if (each.asname or each.name) == name)
    return absolute(module, node), (original,)


def absolute(module: Module, node: ast.ImportFrom) -> str:
    """The full name of the module that a `from ... import` statement reads."""
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.locations else module.name.split(".")[:-1]
    base = package[: len(package) - (node.level - 1)]
    return ".".join((*base, *([node.module] if node.module else [])))


def dotted_text(node: ast.expr) -> str | None:
    """`a.b.c` as text; None if the expression isn't a plain dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted_text(node.value)):
        return f"{base}.{node.attr}"
    return None


def qualified(module: Module, text: str) -> str:
    """A name used in `module` as its imports spell it out: `nn.Module` -> `torch.nn.Module`."""
    first, _, rest = text.partition(".")
    node = bindings(module).get(first)
    if isinstance(node, ast.Import | ast.ImportFrom):
        source, wanted = imported(module, node, first)
        first = ".".join((source, *wanted))
    return f"{first}.{rest}" if rest else first
