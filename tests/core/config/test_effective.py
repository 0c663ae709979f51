"""The saved configuration is itself a configuration, of the same run."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from automodel_core.config.effective import effective_tree, to_yaml
from automodel_core.config.variables import read_scalar
from tests.core.config.conftest import BASE, Read
from tests.core.config.test_reference import BLOCKS, ENVIRON, REFUSED, completed

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


def again(result: Read, file, environ) -> Read:
    """What comes of reading what was saved."""
    saved = to_yaml(effective_tree(result.config, result.document))
    return Read([file(saved, "saved.yaml")], environ)


@pytest.mark.parametrize("block", [each for each in BLOCKS if each not in REFUSED])
def test_reference(block, file):
    first = Read(completed(block), ENVIRON)
    assert first.problems == []
    assert again(first, file, ENVIRON).config == first.config


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples(example, file):
    first = Read([str(example)])
    assert first.problems == []
    assert again(first, file, {}).config == first.config


TRICKY = """\
clip_grad_norm: none
loss_fn: masked_ce
step_scheduler: {max_steps: 4}
rng:
  a: "none"
  b: "4"
  c: "$${HOME}"
  d: "a: b # c"
  e: ["x", {y: "1e-5"}, [], {}]
  f: ${N}
  g: "${N}"
  h: ${N,1e-5}
  i:
    - ${N}
    - deep:
        - ${N,a}
  j: .inf
  k: 1e-30
  "true": 1
  "l m: n": 2
  o: "two\\nlines"
  "p${N}": 3
"""


def test_whatever_is_written_reads_back(file):
    base = BASE.partition("step_scheduler")[0]
    first = Read([file(base + TRICKY)], {"N": "7"})
    assert first.problems == []
    second = again(first, file, {"N": "7"})
    assert second.problems == []
    assert second.config == first.config
    assert second.config.clip_grad_norm is None
    assert second.config.rng.target.arguments["i"] == [7, {"deep": [7]}]


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees)
def test_every_value_reads_back(file, value):
    text = to_yaml({"x-value": value})
    assert Read([file(text)]).document.tree["x-value"] == value


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet="${}aA1, "))
def test_every_reference_reads_back_as_it_was_read(file, text):
    value = read_scalar(text, plain=False)
    assert Read([file(to_yaml({"x-value": [value]}))]).document.tree["x-value"] == [value]


def test_where_each_value_came_from(file, capsys, snapshot):
    from automodel_core.cli import main

    file(BASE + "wandb: {api_key: hunter2, project: '${PROJECT,p}'}\nseed: 7\n", "a.yaml")
    file("loss_fn: chunked_ce\noptimizer:\n  lr: 1e-4\n", "b.yaml")
    words = ["explain", "a.yaml", "b.yaml", "dataloader.batch_size=2", "--clip_grad_norm", "none"]
    assert main(words) == 0
    assert capsys.readouterr().out == snapshot
