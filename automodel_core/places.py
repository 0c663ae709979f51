"""Where a dotted name leads, followed through re-exports from source to source.

Importing `torch.optim` takes seconds and runs code; finding `class AdamW` in its source takes a
millisecond and runs none.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import attrs

from automodel_core.sources import (
    Module,
    Statement,
    absolute,
    bindings,
    dotted_text,
    find_module,
    imported,
    statements,
    submodule,
    top_level,
)

# Re-exports are followed this far; a longer chain is a cycle.
MAX_HOPS = 12

# A module that calls one of these may define names that its text doesn't show.
DYNAMIC = {"globals", "setattr", "exec", "vars"}


@attrs.frozen
class Place:
    """How far a name could be followed without importing anything.

    Attributes:
        module: The module that the last followed import led to.
        names: What is left of the name there, such as ("AutoModel", "from_pretrained").
        node: The class or function statement; None if only importing would tell.
        owner: The class around a method.
    """

    module: Module
    names: tuple[str, ...]
    node: Statement | None = None
    owner: ast.ClassDef | None = None

    @property
    def dotted(self) -> str:
        return ".".join((self.module.name, *self.names))

    @property
    def is_missing(self) -> bool:
        """Whether the module certainly has no such name, as far as sources tell."""
        return bool(self.names) and not _may_have(self.module, self.names[0])


def split(dotted: str) -> tuple[Module | None, tuple[str, ...]]:
    """An object's dotted name as the longest module that exists and the attributes after it."""
    parts = dotted.split(".")
    module, depth = top_level(parts[0]), 1
    while module and depth < len(parts) - 1 and (below := submodule(module, parts[depth])):
        module, depth = below, depth + 1
    return module, tuple(parts[depth:])


def locate(dotted: str) -> Place | None:
    """Follow a dotted name through re-exports; None if its first part isn't installed."""
    module, names = split(dotted)
    return follow(module, names) if module else None


def follow(module: Module, names: Sequence[str], hops: int = 0) -> Place:
    """Follow `names` from inside `module` to a class, a function, or a method of a class."""
    here = Place(module, tuple(names))
    if not names or hops > MAX_HOPS:
        return here
    first, *rest = names
    node = bindings(module).get(first)
    if isinstance(node, Statement):
        return _member(here, node, rest)
    if isinstance(node, ast.Import | ast.ImportFrom):
        source, wanted = imported(module, node, first)
        if source == module.name:  # `from . import a` in a package: the submodule
            source, wanted = ".".join((source, *wanted)), ()
        found = find_module(source)
        return follow(found, (*wanted, *rest), hops + 1) if found else here
    if node:
        target = dotted_text(node.value) if isinstance(node, ast.Assign) else None
        return follow(module, (*target.split("."), *rest), hops + 1) if target else here
    below = submodule(module, first)
    if below:
        return follow(below, rest, hops + 1)
    return _from_stars(module, names, hops + 1) or _lazily(module, names, hops + 1) or here


def _member(here: Place, node: Statement, names: Sequence[str]) -> Place:
    if not names:
        return attrs.evolve(here, node=node)
    for inner in node.body if isinstance(node, ast.ClassDef) and len(names) == 1 else ():
        if isinstance(inner, ast.FunctionDef) and inner.name == names[0]:
            return attrs.evolve(here, node=inner, owner=node)
    return here


def _may_have(module: Module, name: str, hops: int = 0) -> bool:
    """Whether a module binds `name`, or may do so in a way that can't be read."""
    found = bindings(module)
    if module.tree is None or name in found or "__getattr__" in found or _is_dynamic(module.tree):
        return True
    sources = [find_module(each) for each in _stars(module)]
    return hops > MAX_HOPS or any(
        each is None or _may_have(each, name, hops + 1) for each in sources
    )


def _is_dynamic(tree: ast.Module) -> bool:
    """Whether a module may define names that its text doesn't show."""
    return any(
        (isinstance(node, ast.Name) and node.id in DYNAMIC)
        or (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.modules")
        for node in ast.walk(tree)
    )


def _stars(module: Module) -> Iterator[str]:
    """The modules that `from ... import *` statements read."""
    for node in statements(module.tree):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            yield absolute(module, node)


def _from_stars(module: Module, names: Sequence[str], hops: int) -> Place | None:
    if _is_lazy(module):  # transformers has hundreds of star imports; `_lazily` knows a way
        return None
    for name in _stars(module):
        source = find_module(name)
        if source and (found := follow(source, names, hops)).node:
            return found
    return None


def _is_lazy(module: Module) -> bool:
    return "_LazyModule" in bindings(module)


def _lazily(module: Module, names: Sequence[str], hops: int) -> Place | None:
    """Find a class of transformers in the model folder whose name it begins with."""
    models = find_module(f"{module.name}.models") if _is_lazy(module) else None
    if not models:
        return None
    wanted = names[0].lower()
    folders = (each for location in models.locations for each in location.iterdir())
    fitting = [each.name for each in folders if wanted.startswith(each.name.replace("_", ""))]
    for name in sorted(fitting, key=len, reverse=True):
        for role in ("configuration", "modeling"):
            source = find_module(f"{models.name}.{name}.{role}_{name}")
            if source and names[0] in bindings(source):
                return follow(source, names, hops)
    return None
