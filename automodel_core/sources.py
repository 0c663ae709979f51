"""Reading Python sources without importing them: where a name is defined, and its syntax tree.

Importing `torch.optim` takes seconds and runs code; finding `class AdamW` in its source takes a
millisecond and runs none. `importlib.util.find_spec("torch.optim")` would import torch, so packages
are walked by hand.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import attrs

Statement = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# Re-exports are followed this far; a longer chain is a cycle.
MAX_HOPS = 12


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
    module = _top_level(first)
    for part in rest:
        module = module and _submodule(module, part)
    return module


def _top_level(name: str) -> Module | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    locations = tuple(Path(each) for each in spec.submodule_search_locations or ())
    return Module(name, file if file and file.suffix == ".py" else None, locations)


def _submodule(parent: Module, part: str) -> Module | None:
    name = f"{parent.name}.{part}"
    for location in parent.locations:
        package = location / part
        if (package / "__init__.py").is_file():
            return Module(name, package / "__init__.py", (package,))
        if (location / f"{part}.py").is_file():
            return Module(name, location / f"{part}.py")
        if any(location.glob(f"{part}.*.so")):
            return Module(name, None)
    namespaces = tuple(each / part for each in parent.locations if (each / part).is_dir())
    return Module(name, None, namespaces) if namespaces else None


def split(dotted: str) -> tuple[Module | None, tuple[str, ...]]:
    """An object's dotted name as the longest module that exists and the attributes after it."""
    parts = dotted.split(".")
    module, depth = _top_level(parts[0]), 1
    while module and depth < len(parts) - 1 and (below := _submodule(module, parts[depth])):
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
    if isinstance(node, ast.Assign):
        target = dotted_text(node.value)
        return follow(module, (*target.split("."), *rest), hops + 1) if target else here
    below = _submodule(module, first)
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


def imported(
    module: Module, node: ast.Import | ast.ImportFrom, name: str
) -> tuple[str, tuple[str, ...]]:
    """The module that an import statement reads to bind `name`, and what it takes from it."""
    if isinstance(node, ast.Import):  # `import a.b` binds a; `import a.b as name` binds a.b
        return next((each.name for each in node.names if each.asname == name), name), ()
    original = next(each.name for each in node.names if (each.asname or each.name) == name)
    return absolute(module, node), (original,)


def _may_have(module: Module, name: str, hops: int = 0) -> bool:
    """Whether a module binds `name`, or does so in a way that can't be read."""
    found = bindings(module)
    if module.tree is None or name in found or "__getattr__" in found or _is_lazy(module):
        return True
    sources = [find_module(each) for each in _stars(module)]
    return hops > MAX_HOPS or any(
        each is None or _may_have(each, name, hops + 1) for each in sources
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
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    assigned.setdefault(target.id, node)
    return {**assigned, **imported, **defined}


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
