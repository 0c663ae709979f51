"""Parameters read from source agree with what Python says after importing."""

import importlib
import subprocess
import sys

import pytest

from automodel_core.docstrings import argument_docs, summary, without_arguments
from automodel_core.places import locate
from automodel_core.signatures import live_signature, read_signature

SHAPES = '''
    """Things with signatures."""
    import attrs
    import dataclasses
    import functools
    import typing as t
    from abc import ABCMeta
    from dataclasses import dataclass, field

    def function(a, b: int = 1, *, c: "str | None" = None):
        """Do it.

        Args:
            a: The first.
            b (int): The second,
                on two lines.
        """

    async def coroutine(a): ...

    def positional_only(a, /, b): ...

    def everything(*args, a=1, **kwargs): ...

    @functools.lru_cache
    def cached(a, b=2): ...

    class Plain:
        def __init__(self, a, b=(1, 2)): ...

        @classmethod
        def make(cls, x: float = 0.5): ...

        @staticmethod
        def still(y): ...

    class Child(Plain):
        pass

    class Grandchild(Child, metaclass=ABCMeta):
        def other(self): ...

    class Generic(t.Generic[t.TypeVar("T")], Plain): ...

    class Nothing: ...

    @dataclass
    class Data:
        a: int
        b: float = 1.0
        c: list = field(default_factory=list)
        d: int = field(default=3, init=False)
        e: t.ClassVar[int] = 4
        _f: int = 5

    @dataclass
    class MoreData(Data):
        a: str
        g: int = 6

    @attrs.frozen
    class Attrs:
        a: int
        _b: float = 1.0
        c: list = attrs.field(factory=list)
        d: int = attrs.field()

        @d.default
        def _one(self): return 1

    @t.overload
    def overloaded(a: int): ...
    @t.overload
    def overloaded(a: str): ...
    def overloaded(a): ...

    try:
        from nowhere import conditional
    except ImportError:
        def conditional(a, b=0): ...

    assigned = function
'''

READABLE = [
    "function", "coroutine", "positional_only", "everything", "cached", "Plain", "Plain.make",
    "Plain.still", "Child", "Grandchild", "Generic", "Nothing", "Data", "MoreData", "Attrs",
    "overloaded", "conditional", "assigned",
]  # fmt: skip


@pytest.mark.parametrize("name", READABLE)
def test_source_and_python_agree(install, name):
    install("shapes", {}, {"shapes": SHAPES})
    read = read_signature(locate(f"shapes.{name}"))
    found = importlib.import_module("shapes")
    for part in name.split("."):
        found = getattr(found, part)
    live = live_signature(found)
    assert [each.name for each in read.parameters] == [each.name for each in live.parameters]
    required = [[each.default is None for each in s.parameters] for s in (read, live)]
    assert required[0] == required[1]
    assert read.open == live.open


@pytest.mark.parametrize(
    "source",
    [
        "import functools\ndef deco(f): return f\n@deco\ndef make(a): ...",
        "from nowhere import Base\nclass make(Base): ...",
        "class Meta(type): ...\nclass make(metaclass=Meta):\n    def __init__(self, a): ...",
        "class make:\n    def __new__(cls, a): ...",
        "from collections import namedtuple\nmake = namedtuple('make', 'a')",
        "import typing\nclass make(typing.NamedTuple):\n    a: int",
        "make = lambda a: a",
    ],
)
def test_what_source_cannot_tell_is_left_to_python(install, source):
    install("opaque", {}, {"opaque": source})
    assert read_signature(locate("opaque.make")) is None


@pytest.mark.parametrize(
    ("modules", "target"),
    [
        ({"p/__init__": "from .a import make as make", "p/a": "def make(x): ..."}, "p.make"),
        ({"p/__init__": "from p.a import *", "p/a": "def make(x): ..."}, "p.make"),
        ({"p/__init__": "from . import a\nmake = a.make", "p/a": "def make(x): ..."}, "p.make"),
        ({"p/__init__": "import p.a as b\nmake = b.make", "p/a": "def make(x): ..."}, "p.make"),
        ({"p/__init__": "", "p/q/__init__": "from ..a import make", "p/a": "def make(x): ..."},
         "p.q.make"),
        ({"p/make": "def make(x): ...", "p/__init__": "from .make import make"}, "p.make"),
        ({"namespace/p/a": "def make(x): ..."}, "namespace.p.a.make"),
        ({"p/__init__": "from .a import Old as make",
          "p/a": "class Old:\n  def __init__(self, x): ..."}, "p.make"),
    ],
)  # fmt: skip
def test_re_exports_are_followed(install, modules, target):
    install("p", {}, modules)
    (parameter,) = read_signature(locate(target)).parameters
    assert parameter.name == "x"


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("make: object = print", False),
        ("one, make = 1, 2", False),
        ("for make in (): ...", False),
        ("globals()['make'] = 1", False),
        ("def __getattr__(name): ...", False),
        ("from nowhere import *", False),
        ("from empty import *", True),
        ("def other(): ...", True),
    ],
)
def test_a_name_is_missing_only_where_that_is_certain(install, source, missing):
    install("holder", {}, {"holder": source, "empty": ""})
    assert locate("holder.make").is_missing is missing


def test_import_cycles_end(install):
    install("ring", {}, {"a_ring": "from b_ring import x", "b_ring": "from a_ring import x"})
    assert locate("a_ring.x").node is None


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.StepLR",
        "torch.nn.CrossEntropyLoss",
        "torchdata.stateful_dataloader.StatefulDataLoader",
    ],
)
def test_torch_is_read_as_python_sees_it(target):
    read = read_signature(locate(target))
    module, _, name = target.rpartition(".")
    live = live_signature(getattr(importlib.import_module(module), name))
    assert [each.name for each in read.parameters] == [each.name for each in live.parameters]
    assert read.get("params" if "optim.A" in target else read.parameters[0].name)


@pytest.mark.parametrize("name", ["LlamaConfig", "Gemma3Config", "Qwen2ForCausalLM", "AutoConfig"])
def test_lazy_transformers_classes_are_found_by_their_folder(name):
    place = locate(f"transformers.{name}")
    assert place.node is not None
    assert place.names == (name,)
    assert place.module.name.startswith("transformers.models.")


def test_reading_sources_imports_nothing():
    code = """
import sys
from automodel_core.places import locate
from automodel_core.signatures import read_signature
assert read_signature(locate("torch.optim.AdamW"))
assert locate("transformers.LlamaConfig").node
heavy = {"torch", "transformers", "torchdata", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_docstrings():
    text = """Make a thing
    of two lines.

    More prose.

    Args:
        name: Short.
        other (int, optional): Long,
            on two lines
            and three.

            And a paragraph.
        **rest: More.

    Raises:
        ValueError: If not.
    """
    assert summary(text) == "Make a thing of two lines."
    assert argument_docs(text) == {
        "name": "Short.",
        "other": "Long, on two lines and three. And a paragraph.",
        "rest": "More.",
    }
    assert without_arguments(text).endswith("More prose.")
    assert argument_docs(None) == {}
    assert summary("") == ""


def test_documentation_assigned_to_a_class_is_found():
    from automodel_core.signatures import docstring

    assert summary(docstring(locate("torch.optim.AdamW"))).startswith("Implements AdamW")
