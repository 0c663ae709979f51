import pytest

from automodel_core.errors import UserError
from automodel_core.train.resume import Rule, check_resume, differences, rule_for

SAVED = {
    "model": {"_target_": "causal_lm", "pretrained_model_name_or_path": "a"},
    "optimizer": {"_target_": "adamw", "lr": 1e-3},
    "dataloader": {"batch_size": 4, "shuffle": True, "num_workers": 0},
    "step_scheduler": {"max_steps": 10},
    "checkpoint": {"checkpoint_dir": "runs/a"},
}


def changed(section, **keys):
    return {**SAVED, section: {**SAVED[section], **keys}}


def check(current, override=False):
    place = {("optimizer", "lr"): "new.yaml:7:7"}.get
    return check_resume(SAVED, current, override=override, place=place, saved_in="old.yaml")


@pytest.mark.parametrize(
    "current",
    [
        SAVED,
        changed("step_scheduler", max_steps=20),
        changed("checkpoint", checkpoint_dir="runs/b", keep_last=2),
        changed("dataloader", num_workers=4, pin_memory=True),
        {**SAVED, "distributed": {"_target_": "fsdp2"}},
    ],
)
def test_logging_paths_length_and_hardware_change_freely(current):
    assert check(current) == []


def test_lr_changes_only_on_purpose_and_both_places_are_named():
    current = changed("optimizer", lr=1e-4)
    with pytest.raises(UserError) as caught:
        check(current)
    line = "optimizer.lr: 0.001 in old.yaml, 0.0001 in new.yaml:7:7"
    assert line in caught.value.message
    assert "--resume-override" in caught.value.fix
    assert caught.value.path == ("optimizer", "lr")
    assert check(current, override=True) == [f"  {line}"]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "pretrained_model_name_or_path", "b"),
        ("optimizer", "_target_", "sgd"),
        ("dataloader", "shuffle", False),
    ],
)
def test_model_optimizer_class_and_data_order_never_change(section, key, value):
    with pytest.raises(UserError, match="can't go on"):
        check(changed(section, **{key: value}), override=True)


def test_a_key_that_nothing_lists_may_never_change():
    assert rule_for(("invented", "key")) is Rule.NEVER


def test_a_missing_key_counts_as_none():
    assert list(differences({"a": None}, {})) == []
    assert list(differences({}, {"a": {"b": 1}})) == [(("a", "b"), None, 1)]
