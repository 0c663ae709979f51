"""What a target accepts. Its signature is its schema: there is no second one to keep in step.

`read_signature` takes it from source, without importing anything; `live_signature` takes it from
the imported object. Both give the same shape, with annotations and defaults as source text.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from automodel_core.docstrings import argument_docs
from automodel_core.places import Place, follow
from automodel_core.sources import Module, Statement, dotted_text, qualified, statements

FunctionStatement = ast.FunctionDef | ast.AsyncFunctionDef

# Decorators that leave a signature as it is written. Any other may replace it.
TRANSPARENT = {
    "staticmethod", "classmethod", "override", "final", "cache", "lru_cache", "no_grad",
    "inference_mode", "deprecated", "runtime_checkable", "total_ordering",
}  # fmt: skip

# Class decorators that write `__init__` from annotated fields.
DATACLASS = {"dataclass", "dataclasses.dataclass"}
ATTRS = {"attrs.define", "attrs.frozen", "attrs.mutable", "attr.define", "attr.frozen"}

# Bases that add no parameter, so that torch's large sources need not be read for them.
NEUTRAL_BASES = {
    "object", "abc.ABC", "typing.Protocol", "typing.Generic", "torch.nn.Module",
    "torch.utils.data.Dataset", "collections.abc.Sequence", "collections.abc.Callable",
}  # fmt: skip


@attrs.frozen
class Parameter:
    """One parameter that a YAML file may give by name.

    Attributes:
        annotation: Its annotation as source text; None if it has none.
        default: Its default as source text; None if it must be given.
        positional: Whether a caller may pass it without its name.
        doc: What the docstring says about it, on one line.
    """

    name: str
    annotation: str | None = None
    default: str | None = None
    positional: bool = True
    doc: str = ""


@attrs.frozen
class Signature:
    """The parameters of a target.

    Attributes:
        parameters: In order, without `self` or `cls`.
        open: It also takes keywords that it doesn't name, so unknown ones cannot be refused.
        module: Where its annotations are to be read; None if that is unknown.
    """

    parameters: tuple[Parameter, ...] = ()
    open: bool = False
    module: Module | None = None

    def get(self, name: str) -> Parameter | None:
        """The parameter of that name, if there is one."""
        return next((each for each in self.parameters if each.name == name), None)


def read_signature(place: Place) -> Signature | None:
    """The signature of a class or function, from its source; None if only importing would tell."""
    if isinstance(place.node, ast.ClassDef):
        signature = _class_signature(place, place.node)
    elif place.node:
        signature = _function_signature(place, place.node)
    else:
        signature = None
    return signature and documented(signature, docstring(place))


def documented(signature: Signature, text: str) -> Signature:
    """The signature with what a docstring says about its parameters; what a base said stays."""
    docs = argument_docs(text)
    parameters = (
        attrs.evolve(each, doc=docs.get(each.name, each.doc)) for each in signature.parameters
    )
    return attrs.evolve(signature, parameters=tuple(parameters))


def docstring(place: Place) -> str:
    """What the author wrote about a target: of a class, its own and its constructor's."""
    if place.node is None:
        return ""
    nodes = [place.node]
    if isinstance(place.node, ast.ClassDef) and (init := _method(place.node, "__init__")):
        nodes.append(init)
    written = [*map(ast.get_docstring, nodes), _assigned_docstring(place)]
    return "\n\n".join(filter(None, written))


def _assigned_docstring(place: Place) -> str:
    """The text that a module assigns to `Name.__doc__`, as torch does for its optimizers."""
    name = f"{place.names[0]}.__doc__"
    for node in statements(place.module.tree):
        if isinstance(node, ast.Assign) and dotted_text(node.targets[0]) == name:
            texts = [each for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
            first = min(texts, key=lambda each: (each.lineno, each.col_offset), default=None)
            return inspect.cleandoc(str(first.value)) if first else ""
    return ""


def live_signature(target: Callable[..., Any]) -> Signature | None:
    """The signature of an imported object; None if Python can't tell (C functions)."""
    try:
        found = inspect.signature(target)
    except (TypeError, ValueError):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = tuple(
        Parameter(
            each.name,
            annotation=_annotation_text(each.annotation),
            default=None if each.default is each.empty else repr(each.default),
            positional=each.kind is each.POSITIONAL_OR_KEYWORD,
        )
        for each in found.parameters.values()
        if each.kind in named
    )
    takes_any = any(each.kind is each.VAR_KEYWORD for each in found.parameters.values())
    return Signature(parameters, open=takes_any)


def _annotation_text(annotation: Any) -> str | None:
    if annotation is inspect.Parameter.empty:
        return None
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _decorators(place: Place, node: Statement) -> set[str]:
    calls = (each.func if isinstance(each, ast.Call) else each for each in node.decorator_list)
    return {qualified(place.module, dotted_text(each) or "?") for each in calls}


def _last_parts(names: set[str]) -> set[str]:
    return {each.rpartition(".")[2] for each in names}


def _function_signature(place: Place, node: FunctionStatement) -> Signature | None:
    decorators = _last_parts(_decorators(place, node))
    is_bound = place.owner is not None and "staticmethod" not in decorators
    own = _parameters(node.args, place.module, skip=1 if is_bound else 0)
    if not decorators - TRANSPARENT:
        return own
    options = _options(place.module, node.decorator_list[0]) if len(decorators) == 1 else None
    if options is None:
        return None
    added = (each for each in options.parameters if own.get(each.name) is None)
    parameters = (*own.parameters, *(attrs.evolve(each, positional=False) for each in added))
    return attrs.evolve(own, parameters=parameters)


def _options(module: Module, decorator: ast.expr) -> Signature | None:
    """What a decorator adds to a signature: the fields of X if it returns a `WithOptions[X]`."""
    name = dotted_text(decorator)
    maker = follow(module, name.split(".")) if name else None
    returned = maker.node.returns if maker and isinstance(maker.node, FunctionStatement) else None
    if not isinstance(returned, ast.Subscript):
        return None
    container, options = dotted_text(returned.value) or "?", dotted_text(returned.slice)
    if container.rpartition(".")[2] != "WithOptions" or not options:
        return None
    found = follow(maker.module, options.split("."))
    return read_signature(found) if isinstance(found.node, ast.ClassDef) else None


def _parameters(args: ast.arguments, module: Module, skip: int) -> Signature:
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    named = [
        _parameter(arg, default, positional=True)
        for arg, default in list(zip(positional, defaults, strict=True))[skip:]
        if arg not in args.posonlyargs
    ]
    named += [
        _parameter(arg, default, positional=False)
        for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    return Signature(tuple(named), open=args.kwarg is not None, module=module)


def _parameter(arg: ast.arg, default: ast.expr | None, *, positional: bool) -> Parameter:
    return Parameter(
        arg.arg,
        annotation=ast.unparse(arg.annotation) if arg.annotation else None,
        default=ast.unparse(default) if default else None,
        positional=positional,
    )


def _class_signature(place: Place, node: ast.ClassDef) -> Signature | None:
    decorators = _decorators(place, node)
    if decorators & (DATACLASS | ATTRS):
        return _fields_signature(place, node, private=not decorators & ATTRS)
    if _last_parts(decorators) - TRANSPARENT or _has_metaclass(node):
        return None
    init = _method(node, "__init__")
    if init:
        return _parameters(init.args, place.module, skip=1)
    if _method(node, "__new__"):
        return None
    # The first base that says anything has the constructor; one that can't be read may hold any.
    return next(_base_signatures(place, node), Signature(module=place.module))


def _base_signatures(place: Place, node: ast.ClassDef) -> Iterator[Signature | None]:
    for base in node.bases:
        name = dotted_text(base.value if isinstance(base, ast.Subscript) else base) or "?"
        if qualified(place.module, name) not in NEUTRAL_BASES:
            found = follow(place.module, name.split("."))
            yield read_signature(found) if isinstance(found.node, ast.ClassDef) else None


def _has_metaclass(node: ast.ClassDef) -> bool:
    """Whether something else than the constructor may receive the arguments."""
    names = (dotted_text(each.value) or "?" for each in node.keywords if each.arg == "metaclass")
    return any(each.rpartition(".")[2] != "ABCMeta" for each in names)


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    named = (each for each in node.body if isinstance(each, ast.FunctionDef))
    return next((each for each in named if each.name == name), None)


def _fields_signature(place: Place, node: ast.ClassDef, *, private: bool) -> Signature | None:
    """The constructor that dataclasses or attrs write for a class and its bases."""
    fields: dict[str, Parameter] = {}
    for inherited in _base_signatures(place, node):
        if inherited is None:
            return None
        fields |= {each.name: each for each in inherited.parameters}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and (field := _field(statement, private=private)):
            fields[field.name] = field
    for name in _decorated_defaults(node) & fields.keys():
        fields[name] = attrs.evolve(fields[name], default="...")
    return Signature(tuple(fields.values()), module=place.module)


def _decorated_defaults(node: ast.ClassDef) -> set[str]:
    """The attrs fields whose default a method computes, marked `@name.default`."""
    methods = (each for each in node.body if isinstance(each, ast.FunctionDef))
    marks = (dotted_text(mark) or "" for method in methods for mark in method.decorator_list)
    return {mark.removesuffix(".default") for mark in marks if mark.endswith(".default")}


def _field(node: ast.AnnAssign, *, private: bool) -> Parameter | None:
    """The parameter of one annotated field; None if the constructor doesn't take it.

    attrs takes `_name` as `name`; dataclasses keep private names as they are.
    """
    annotation = ast.unparse(node.annotation)
    if not isinstance(node.target, ast.Name) or "ClassVar" in annotation:
        return None
    default = node.value
    if isinstance(default, ast.Call) and (dotted_text(default.func) or "").endswith("field"):
        options = {each.arg: each.value for each in default.keywords}
        if ast.unparse(options.get("init", ast.Constant(True))) == "False":
            return None
        default = options.get("default") or options.get("factory") or options.get("default_factory")
    name = node.target.id if private else node.target.id.lstrip("_")
    return Parameter(name, annotation, ast.unparse(default) if default else None)
