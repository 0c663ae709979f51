"""What we ask of every target that this distribution registers: its signature is its schema."""

import pytest

from automodel_core.arguments import engine_given
from automodel_core.cli.show import place_of
from automodel_core.discovery import CORE
from automodel_core.docstrings import summary
from automodel_core.places import locate
from automodel_core.protocols import SUPPLIED
from automodel_core.records import KINDS
from automodel_core.registry import Registry
from automodel_core.signatures import docstring, live_signature, read_signature
from automodel_core.targets import import_object

REGISTRY = Registry.discover()
RECORDS = [each for each in REGISTRY.records if each.distribution == CORE]
OURS = [each for each in RECORDS if each.kind in KINDS and each.module.startswith("automodel_")]


def named(records):
    return pytest.mark.parametrize("record", records, ids=lambda each: f"{each.kind}:{each.name}")


@named(RECORDS)
def test_it_is_ok(record):
    assert (record.state, record.reason) == ("ok", "")
    import_object(record.module, record.qualname)


@named(OURS)
def test_its_source_tells_everything(record):
    signature = read_signature(locate(record.dotted))
    assert not signature.open, "keywords that it doesn't name could not be checked"
    bare = [each.name for each in signature.parameters if not each.annotation]
    assert not bare, "without an annotation a value could not be checked"


@named(OURS)
def test_its_source_agrees_with_python(record):
    read = read_signature(locate(record.dotted))
    live = live_signature(import_object(record.module, record.qualname))
    assert [each.name for each in read.parameters] == [each.name for each in live.parameters]


@named(OURS)
def test_it_is_documented(record):
    place = locate(record.dotted)
    assert summary(docstring(place))
    signature = read_signature(place)
    _, slot = place_of(record.kind)
    known = {*engine_given(signature, slot), *SUPPLIED}
    silent = [p.name for p in signature.parameters if p.name not in known and not p.doc]
    assert not silent, "what a YAML file may set is described under Args"
