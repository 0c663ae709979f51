"""Arguments against signatures, without importing and after; and building what passed."""

import functools
import sys

import attrs
import pytest

from automodel_core.arguments import NO_STREAM
from automodel_core.config.schema import DataLoader, RunConfig, Slot, Target
from automodel_core.errors import UserError
from automodel_core.registry import Registry
from automodel_core.targets import Finding, Targets
from automodel_core.trust import Trust

OPTIMIZER = Slot("optimizers", use="partial", given=("params",))
DATASET = Slot("datasets")

MODULE = '''
    from automodel_core.errors import UserError

    def make(path: str, tokenizer, *, limit: int | None = None, pair: tuple[int, int] = (1, 2),
             child=None, seed: int = 0):
        """Make a data set.

        Args:
            path: Where the rows are.
        """
        if path == "bad":
            raise UserError("No such rows.", argument="path")
        if path == "worse":
            raise UserError("Nothing works.")
        if path == "bug":
            raise TypeError("inside")
        return locals()
'''


@pytest.fixture
def targets(install):
    install("mine", {"datasets": {"mine": "mine_module:make"}}, {"mine_module": MODULE})
    return Targets(Registry.discover(), Trust.from_environment())


def section(**arguments):
    return Target("mine", "datasets", arguments, ("dataset",))


@pytest.mark.parametrize(
    ("arguments", "path", "message", "hint", "on"),
    [
        ({"path": "x", "limti": 3}, ("limti",), "`mine` takes no argument `limti`.",
         "did you mean `limit`?", "key"),
        ({"path": "x", "zzz": 3}, ("zzz",), "`mine` takes no argument `zzz`.",
         "it takes: path, tokenizer, limit, pair, child, seed", "key"),
        ({"path": "x", "streaming": True}, ("streaming",), "`mine` takes no argument `streaming`.",
         NO_STREAM, "key"),
        ({}, (), "`mine` needs `path`.", "Where the rows are.", "key"),
        ({"path": 3}, ("path",), "`path` takes str, not this number.", "write it in quotes",
         "value"),
        ({"path": ["x"]}, ("path",), "`path` takes str, not this list.", "Where the rows are.",
         "value"),
        ({"path": "x", "limit": "4"}, ("limit",), "`limit` takes int | None, not this text.",
         "write it without quotes", "value"),
        ({"path": "x", "limit": True}, ("limit",), "`limit` takes int | None, not this boolean.",
         "", "value"),
        ({"path": "x", "pair": [1]}, ("pair",), "`pair` takes tuple[int, int], not this list.", "",
         "value"),
    ],
)  # fmt: skip
def test_findings(targets, arguments, path, message, hint, on):
    for ask in (targets._check, targets._deep_check):
        (finding,) = ask(section(**arguments), DATASET)
        assert finding == Finding(("dataset", *path), message, hint, on)


def test_what_the_engine_supplies_counts_as_given_and_may_be_set(targets):
    assert list(targets._check(section(path="x"), DATASET)) == []
    assert list(targets._check(section(path="x", seed=3), DATASET)) == []


def test_what_the_engine_passes_may_not_be_set(check):
    (finding,) = check("adamw", OPTIMIZER, params=[1])
    assert (finding.message, finding.on) == ("The engine sets `params` itself.", "key")


def test_a_partials_first_parameter_is_the_engines_whatever_its_name(install, check):
    source = "class Lion:\n    def __init__(self, weights, lr: float = 1.0): ...\n"
    install("lion", {"optimizers": {"lion": "lion:Lion"}}, {"lion": source})
    assert check("lion", OPTIMIZER, lr=0.1) == []
    (finding,) = check("lion", OPTIMIZER, weights=1)
    assert finding.message == "The engine sets `weights` itself."


def test_betas_on_sgd_and_a_learning_rate_as_text(check):
    (finding,) = check("torch.optim.SGD", OPTIMIZER, betas=[0.9, 0.95])
    assert finding.message == "`torch.optim.SGD` takes no argument `betas`."
    (finding,) = check("adamw", OPTIMIZER, lr="1e-5")
    assert finding.message == "`lr` takes float | Tensor, not this text."
    assert finding.hint == "write it without quotes"


def test_a_target_that_takes_anything_is_left_alone(install, check):
    install("open", {"datasets": {"o": "open_module:make"}}, {"open_module": "def make(**kw): ..."})
    assert check("o", DATASET, whatever=1) == []


def run_config(**changes):
    """A configuration as the structure layer makes it; sections without targets are left out."""
    sections = dict.fromkeys(attrs.fields_dict(RunConfig)) | {
        "model": Target("transformers.LlamaConfig", None, {}, ("model",)),
        "dataset": section(path="x"),
        "dataloader": DataLoader(
            loader=Target("stateful", "dataloaders", {}, ("dataloader",), "partial"),
            collate_fn=Target("torch.nn.Identity", None, {}, ("dataloader", "collate_fn")),
        ),
        "optimizer": Target("adamw", "optimizers", {}, ("optimizer",), "partial"),
        "loss_fn": Target("torch.nn.CrossEntropyLoss", None, {}, ("loss_fn",)),
    }
    return RunConfig(**(sections | changes))


def test_a_whole_configuration_is_searched_nested_targets_and_lists_too(targets):
    assert targets.check(run_config()) == []
    deep = Target("adamx", None, {}, ("dataset", "child", 1, "b"))
    config = run_config(dataset=section(path="x", child=[1, {"b": deep}]))
    (finding,) = targets.check(config)
    assert finding.path == ("dataset", "child", 1, "b", "_target_")
    loader = Target("stateful", "dataloaders", {"generator": 3}, ("dataloader",), "partial")
    (finding,) = targets.check(run_config(dataloader=DataLoader(loader=loader, collate_fn=deep)))[
        :1
    ]
    assert finding.message == "The engine sets `generator` itself."


def test_the_sets_of_a_named_mapping_keep_their_slot(targets):
    sets = {"one": section(path="x"), "two": attrs.evolve(section(path="x"), name="masked_ce")}
    (finding,) = targets.check(run_config(validation_dataset=sets))
    assert finding.message == "`masked_ce` is a loss, not a dataset."


def test_all_findings_come_at_once(targets):
    config = run_config(
        dataset=section(limti=1),
        optimizer=Target("adamw", "optimizers", {"lr": "x"}, ("optimizer",)),
    )
    assert len(targets.check(config)) == 3


def test_a_name_of_another_kind_says_so(check):
    (finding,) = check("masked_ce", OPTIMIZER)
    assert finding.message == "`masked_ce` is a loss, not an optimizer."


def test_a_slip_in_a_foreign_name_finds_the_alias(check):
    (finding,) = check("nemo_automodel.components.training.rng.StatfulRNG")
    assert finding.hint == "did you mean `nemo_automodel.components.training.rng.StatefulRNG`?"


def test_unchecked_lists_what_no_source_tells(targets):
    config = run_config(dataset=section(path="x", child=3))
    assert [each.path for each in targets.unchecked(config)] == [("dataset", "child")]


# Building


def test_build_supplies_what_the_target_declares_and_the_yaml_leaves_out(targets):
    supplied = {"tokenizer": "T", "seed": 7, "processor": "unasked"}
    made = targets.build(section(path="x"), supplied)
    assert (made["tokenizer"], made["seed"]) == ("T", 7)
    assert targets.build(section(path="x", seed=1), supplied)["seed"] == 1
    assert targets.build(section(path="x"), supplied, limit=5)["limit"] == 5


def test_lists_become_tuples_only_where_wanted(targets):
    made = targets.build(section(path="x", pair=[3, 4], child=[5]), {"tokenizer": 1})
    assert made["pair"] == (3, 4)
    assert made["child"] == [5]


def test_nested_targets_are_built_first(targets):
    inner = section(path="inner")
    partial = attrs.evolve(inner, use="partial")
    reference = attrs.evolve(inner, use="reference")
    made = targets.build(
        section(path="x", child=[{"a": inner}, partial, reference]), {"tokenizer": 1}
    )
    built, bound, itself = made["child"]
    assert built["a"]["path"] == "inner"
    assert isinstance(bound, functools.partial)
    assert itself is bound.func


def test_bind_leaves_the_call_to_the_engine():
    targets = Targets(Registry.discover(), Trust.from_environment())
    target = Target("adamw", "optimizers", {"lr": 0.1, "betas": [0.8, 0.9]}, ("optimizer",))
    make = targets.bind(target, {"seed": 1})
    assert make.keywords == {"lr": 0.1, "betas": (0.8, 0.9)}


@pytest.mark.parametrize(("value", "path"), [("bad", ("dataset", "path")), ("worse", ("dataset",))])
def test_a_targets_own_error_gets_its_place(targets, value, path):
    with pytest.raises(UserError) as error:
        targets.build(section(path=value), {"tokenizer": 1})
    assert error.value.path == path


def test_a_call_that_cannot_work_is_the_users_and_a_type_error_inside_is_a_bug(targets):
    with pytest.raises(UserError, match="cannot be called like this") as error:
        targets.build(section(), {"tokenizer": 1})
    assert error.value.path == ("dataset",)
    with pytest.raises(TypeError, match="inside"):
        targets.build(section(path="bug"), {"tokenizer": 1})


@pytest.mark.parametrize("source", ["import nowhere", "1 / 0", "raise RuntimeError('boo')"])
def test_a_plugin_that_fails_to_import_names_its_owner(install, source):
    install(
        "faulty",
        {"datasets": {"f": "faulty_module:make"}},
        {"faulty_module": f"{source}\ndef make(): ..."},
    )
    targets = Targets(Registry.discover(), Trust.from_environment())
    target = Target("f", "datasets", {}, ("dataset",))
    assert list(targets._check(target, DATASET)) == []
    with pytest.raises(UserError, match=r"`faulty_module\.make` \(from faulty\) failed"):
        targets.build(target, {})
    (finding,) = targets._deep_check(target, DATASET)
    assert finding.path == ("dataset", "_target_")


def test_an_object_that_its_module_lacks_is_broken(install, check):
    install("gone", {"datasets": {"gone": "gone_module:make"}}, {"gone_module": "def other(): ..."})
    (finding,) = check("gone", DATASET)
    assert finding.message == "`gone` of gone cannot be used: gone_module has no make."
    assert "gone_module" not in sys.modules
