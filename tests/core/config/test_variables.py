"""`${NAME}` and `${NAME,default}`."""

import pytest

from automodel_core.config.variables import Variable

VALUES = {
    "whole and plain is typed": ("${N}", {"N": "4"}, 4),
    "none": ("${N}", {"N": "none"}, None),
    "quoted is text": ('"${N}"', {"N": "4"}, "4"),
    "embedded is text": ("1${N}", {"N": "4"}, "14"),
    "two are text": ("${N}${N}", {"N": "4"}, "44"),
    "default": ("${N,1e-5}", {}, 1e-5),
    "empty default": ("${N,}", {}, None),
    "value before default": ("${N,1}", {"N": "2"}, 2),
    "default with spaces": ("a ${N,b c} d", {}, "a b c d"),
    "escaped": ("$${N}", {"N": "4"}, "${N}"),
    "escaped and not": ("$$${N}", {"N": "4"}, "$4"),
    "two dollars": ("a$$b", {}, "a$b"),
    "a dollar is text": ("cost $5 $N ${} ${1A}", {"N": "4"}, "cost $5 $N ${} ${1A}"),
    "the value is not read again": ("${N}", {"N": "${M}", "M": "5"}, "${M}"),
}


@pytest.mark.parametrize("case", VALUES)
def test_what_it_stands_for(case, read):
    text, environ, value = VALUES[case]
    result = read(f"loss_fn: {{_target_: masked_ce}}\nrng:\n  x: {text}\n", environ=environ)
    assert result.problems == []
    found = result.config.rng.target.arguments["x"]
    assert found == value
    assert type(found) is type(value)


def test_the_tree_keeps_it_as_written(read):
    result = read("x-a: ${SECRET}\n", "wandb.api_key=${SECRET}", environ={"SECRET": "value"})
    assert result.document.tree["x-a"] == Variable("${SECRET}", plain=True)
    assert result.document.tree["wandb"]["api_key"] == Variable("${SECRET}", plain=True)
    assert result.config.wandb.api_key == "value"


def test_unset_is_refused_when_it_will_be_used(refusal, snapshot):
    assert refusal("clip_grad_norm: ${NORM}\n", strict=True) == snapshot


def test_unset_is_a_warning_when_it_is_only_looked_at(read):
    result = read("clip_grad_norm: ${NORM}\nloss_fn: ${LOSS}\n", strict=False)
    assert {each.severity for each in result.problems} == {"warning"}
    assert isinstance(result.config.clip_grad_norm, Variable)


def test_unset_in_the_users_own_sections_is_nobodys_business(read):
    assert read("x-notes: ${NOBODY}\n_more:\n  - ${NOBODY}\n").problems == []


def test_the_value_has_to_fit_and_is_not_shown(refusal):
    shown = refusal("clip_grad_norm: ${NORM}\n", environ={"NORM": "hunter2"})
    assert "`clip_grad_norm` must be a number, not ${NORM}." in shown
    assert "hunter2" not in shown
