"""Hooks observe: in a fixed order, guarded, and without a trace in anybody's numbers."""

import inspect
import logging
import random
from pathlib import Path

import attrs
import numpy
import pytest
import torch

from automodel_core import hooks
from automodel_core.config.schema import RunConfig, Target
from automodel_core.docstrings import argument_docs, summary
from automodel_core.errors import UserError
from automodel_core.hook_loading import SPECIFIED, load_hooks
from automodel_core.registry import Registry

IMPORTS = "from automodel_core.hooks import all_ranks, hookimpl\n"
STEP = {"folder": Path("run"), "step": 1, "metrics": {"loss": 1.0}}


@pytest.fixture
def hook_module(install):
    """Install a distribution with one hook module."""

    def write(name, source, entry="hooks"):
        module = f"{name.replace('-', '_')}_hooks"
        install(name, {"hooks": {entry: module}}, {module: IMPORTS + source})

    return write


def load(**options):
    return load_hooks(Registry.discover(), **options)


def note(text):
    """A hook's way to say that it was called, without output or shared modules."""
    return f"import builtins; builtins.called.append({text!r})"


@pytest.fixture(autouse=True)
def called(monkeypatch):
    import builtins

    calls = []
    monkeypatch.setattr(builtins, "called", calls, raising=False)
    return calls


@pytest.mark.parametrize("name", SPECIFIED)
def test_every_hook_is_documented(name):
    specification = getattr(hooks, name)
    assert summary(specification.__doc__)
    assert list(argument_docs(specification.__doc__)) == [
        *inspect.signature(specification).parameters
    ]


def test_the_hooks_are_those_of_the_design():
    assert SPECIFIED == [
        "automodel_configure",
        "automodel_launch",
        "automodel_run_start",
        "automodel_run_end",
        "automodel_model_built",
        "automodel_step_end",
        "automodel_validation_end",
        "automodel_checkpoint_saved",
        "automodel_checkpoint_loaded",
        "automodel_exception",
    ]


def test_order_is_by_distribution_and_name(hook_module, called):
    for name in ("b-second", "c-third", "a-first"):
        hook_module(name, f"@hookimpl\ndef automodel_step_end(step):\n    {note(name)}\n")
    load().automodel_step_end(**STEP)
    assert called == ["a-first", "b-second", "c-third"]


def test_one_that_raises_is_dropped_with_one_line_and_the_others_go_on(hook_module, called, caplog):
    hook_module(
        "bad",
        f"@hookimpl\ndef automodel_step_end(step):\n    {note('bad')}\n"
        "    raise RuntimeError('boo')\n"
        f"@hookimpl\ndef automodel_run_end(step):\n    {note('bad end')}\n",
    )
    hook_module("good", f"@hookimpl\ndef automodel_step_end(step):\n    {note('good')}\n")
    relay = load()
    with caplog.at_level(logging.WARNING):
        relay.automodel_step_end(**STEP)
        relay.automodel_step_end(**STEP)
        relay.automodel_run_end(folder=Path("run"), step=2)
    assert called == ["bad", "good", "good"]
    assert caplog.messages == [
        "Hooks of bad/hooks are dropped: automodel_step_end raised RuntimeError: boo"
    ]


def test_a_hook_that_exits_does_not_take_its_rank_away(hook_module):
    hook_module("leaver", "@hookimpl\ndef automodel_step_end(step):\n    raise SystemExit(0)\n")
    load().automodel_step_end(**STEP)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("raise ValueError('at import')", "ValueError: at import"),
        (
            "@hookimpl\ndef automodel_stop_end(): ...",
            "there is no hook automodel_stop_end; did you mean",
        ),
        ("@hookimpl\ndef automodel_step_end(unasked): ...", "unasked"),
        ("@hookimpl(wrapper=True)\ndef automodel_step_end():\n    return (yield)", "only observe"),
    ],
)
def test_a_module_that_cannot_be_used_is_left_out(hook_module, called, caplog, source, complaint):
    hook_module("bad", source)
    hook_module("good", f"@hookimpl\ndef automodel_step_end(step):\n    {note('good')}\n")
    with caplog.at_level(logging.WARNING):
        load().automodel_step_end(**STEP)
    assert called == ["good"]
    (message,) = caplog.messages
    assert message.startswith("Hooks of bad/hooks are left out")
    assert complaint in message


def test_observers_run_on_rank_0_unless_marked(hook_module, called):
    hook_module(
        "ranks",
        f"@hookimpl\ndef automodel_step_end(step):\n    {note('rank 0')}\n"
        f"@hookimpl\n@all_ranks\ndef automodel_run_end(step):\n    {note('all')}\n",
    )
    for rank in (0, 1):
        relay = load(rank=rank)
        relay.automodel_step_end(**STEP)
        relay.automodel_run_end(folder=Path("run"), step=1)
    assert called == ["rank 0", "all", "all"]


def test_disabled_hooks_are_not_even_imported(hook_module, called):
    hook_module("unwanted", f"{note('imported')}\n")
    load_hooks(Registry.discover(disabled=["unwanted"]))
    assert called == []


def test_random_state_is_as_it_was(hook_module):
    hook_module(
        "gambler",
        "import random, numpy, torch\n"
        "@hookimpl\ndef automodel_step_end(step):\n"
        "    random.random(); numpy.random.rand(); torch.rand(3); torch.manual_seed(0)\n",
    )
    relay = load()

    def draws():
        random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
        first = (random.random(), numpy.random.rand(), torch.rand(1).item())
        yield first
        yield (random.random(), numpy.random.rand(), torch.rand(1).item())

    alone = list(draws())
    observed = []
    for each in draws():
        observed.append(each)
        relay.automodel_step_end(**STEP)
    assert observed == alone


def config():
    sections = dict.fromkeys(attrs.fields_dict(RunConfig))
    return RunConfig(**(sections | {"dataset": Target("d", arguments={"a": 1})}))


def test_configure_reports_and_changes_nothing(hook_module):
    hook_module(
        "reporter",
        "from automodel_core.arguments import Finding\n"
        "@hookimpl\ndef automodel_configure(config, marks):\n"
        "    config.dataset.arguments['a'] = 2\n"
        "    yield Finding(('dataset', 'a'), 'One is the loneliest number.')\n",
    )
    given = config()
    (found,) = load().automodel_configure(config=given, marks={})
    assert [each.message for each in found] == ["One is the loneliest number."]
    assert given.dataset.arguments == {"a": 1}


def test_metrics_are_each_observers_own(hook_module, called):
    hook_module("a", "@hookimpl\ndef automodel_step_end(metrics):\n    metrics['loss'] = 0\n")
    metrics = {"loss": 1.0}
    load().automodel_step_end(**(STEP | {"metrics": metrics}))
    assert metrics == {"loss": 1.0}


def test_only_the_named_launcher_is_asked(hook_module, called):
    for name in ("one", "two"):
        hook_module(
            f"launch-{name}",
            f"@hookimpl\ndef automodel_launch(config, argv):\n    {note(name)}\n    return 7\n",
            entry=name,
        )
    assert load().automodel_launch(config=config(), argv=[]) is None
    assert load(launchers=["two"]).automodel_launch(config=config(), argv=[]) == 7
    assert called == ["two"]


def test_a_launcher_may_tell_the_user_what_is_wrong(hook_module):
    hook_module(
        "launch",
        "from automodel_core.errors import UserError\n"
        "@hookimpl\ndef automodel_launch(config):\n    raise UserError('no such cluster')\n",
        entry="cluster",
    )
    with pytest.raises(UserError, match="no such cluster"):
        load(launchers=["cluster"]).automodel_launch(config=config(), argv=[])
