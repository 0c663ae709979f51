"""Every key misspelt, and every value of a wrong type, is refused at its line, without torch."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from automodel_core.config.document import dotted, paths_below
from automodel_core.config.effective import to_yaml
from automodel_core.config.reading import Reader, compose
from tests.core.config.test_reference import (
    BLOCKS,
    ENVIRON,
    NO_SIGNATURE,
    WRONG_EXAMPLES,
    completed,
)

EXAMPLES = Path(__file__).parents[3] / "examples"
FILES = {
    block: completed(block) for block in BLOCKS if block not in {*WRONG_EXAMPLES, *NO_SIGNATURE}
}
FILES |= {path.stem: [str(path)] for path in sorted(EXAMPLES.glob("*.yaml"))}

# Mappings whose keys are names of the user's own.
OWN_KEYS = "column_mapping"

# What replaces a value. A whole number is also a number, and a name also a section with a target.
WRONG = {
    bool: ["text", 7, 1.5, [True], {"a": True}],
    int: ["text", "7", True, 1.5, [7], {"a": 7}],
    float: ["text", "1e-5", True, [1.5], {"a": 1.5}],
    str: [7, True, 1.5, ["text"], {"a": "text"}],
    list: ["text", 7, True, {"a": 1}],
    dict: [7, True, 1.5, ["text"]],
}
# Places where such a value is right, by the last key.
RIGHT: dict[str, list[Any]] = {
    "timeout_minutes": [1.5],
    "path_or_dataset_id": [["text"]],
    "path_or_dataset": [["text"]],
    "config": [{"a": "text"}],
}


def document_of(text: str, name: str):
    return Reader(name, text).read(compose(text, name))


@pytest.fixture
def refused_at(findings, file):
    """Whether a changed tree is refused at the line of a path of it."""

    def run(files: list[str], tree: dict, path: tuple) -> bool:
        name = file(to_yaml(tree))
        document = document_of(Path(name).read_text(), name)
        mark = document.place(path, on="key" if path in document.keys else "value")
        found = findings([*files[:-1], name], ENVIRON)
        return any((each.mark.file, each.mark.line) == (name, mark.line) for each in found)

    return run


def paths_in(tree):
    return [path for path in paths_below(tree) if path and OWN_KEYS not in path[:-1]]


def holder(tree, path):
    for name in path[:-1]:
        tree = tree[name]
    return tree


@pytest.mark.parametrize("name", FILES)
def test_keys(name, refused_at, no_torch):
    text = Path(FILES[name][-1]).read_text()
    tree, accepted = document_of(text, name).tree, []
    for path in paths_in(tree):
        if isinstance(path[-1], str):
            changed, misspelt = deepcopy(tree), f"{path[-1]}{path[-1][-1]}"
            section = holder(changed, path)
            section[misspelt] = section.pop(path[-1])
            if not refused_at(FILES[name], changed, (*path[:-1], misspelt)):
                accepted.append(dotted(path))
    assert accepted == []


@pytest.mark.parametrize("name", FILES)
def test_values(name, refused_at, no_torch):
    text = Path(FILES[name][-1]).read_text()
    tree, accepted = document_of(text, name).tree, []
    for path in paths_in(tree):
        for wrong in WRONG.get(type(holder(tree, path)[path[-1]]), []):
            if wrong in RIGHT.get(path[-1], []):
                continue
            changed = deepcopy(tree)
            holder(changed, path)[path[-1]] = wrong
            places = [path, (*path, *wrong)] if isinstance(wrong, dict) else [path]
            if not any(refused_at(FILES[name], changed, place) for place in places):
                accepted.append(f"{dotted(path)}: {wrong!r}")
    assert accepted == []
