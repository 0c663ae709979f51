"""What is typed behind the files."""

import pytest

SAME = {
    "key=value": ["optimizer.lr=3e-4"],
    "option with value": ["--optimizer.lr", "3e-4"],
    "option=value": ["--optimizer.lr=3e-4"],
    "whole section": ["optimizer={_target_: adamw, lr: 3e-4}"],
    "last one wins": ["optimizer.lr=1", "--optimizer.lr", "2", "optimizer.lr=3e-4"],
}


@pytest.mark.parametrize("words", SAME.values(), ids=SAME)
def test_the_ways_to_write_one(words, read):
    config = read("optimizer:\n  _target_: adamw\n  lr: 1.0\n", *words).config
    assert config.optimizer.arguments["lr"] == 3e-4


def test_sections_on_the_way_are_made(read):
    result = read("", "peft.a.b=1", "x-mine.a.0.b=2")
    assert result.document.tree["peft"] == {"a": {"b": 1}}
    assert result.document.tree["x-mine"] == {"a": {"0": {"b": 2}}}


def test_lists_by_index(read):
    text = "optimizer: {_target_: adamw, betas: [0.9, 0.95]}\n"
    assert read(text, "optimizer.betas.1=0.99").config.optimizer.arguments["betas"] == [0.9, 0.99]
    assert read(text, "optimizer.betas.2=1").config.optimizer.arguments["betas"] == [0.9, 0.95, 1]


def test_unset(read):
    text = "checkpoint:\n  enabled: false\n  keep_last: 2\nclip_grad_norm: 2.0\n"
    config = read(text, "--unset", "checkpoint.enabled", "--unset", "clip_grad_norm").config
    assert config.checkpoint.enabled
    assert config.checkpoint.keep_last == 2
    assert config.clip_grad_norm == 1.0


def test_unset_closes_up_a_list_with_its_places(read):
    document = read("x-list:\n  - a\n  - b: 1\n  - c: 2\n", "--unset", "x-list.0").document
    assert document.tree["x-list"] == [{"b": 1}, {"c": 2}]
    assert document.wrote(("x-list", 1, "c")).line == 11
    assert document.wrote(("x-list", 2)) is None


def test_the_other_spelling_of_a_key_is_the_same_key(read):
    text = "checkpoint:\n  save_every_steps: 100\n"
    result = read(text, "step_scheduler.ckpt_every_steps=50")
    assert result.problems == []
    assert result.config.checkpoint.save_every_steps == 50
    unset = read(text, "--unset", "step_scheduler.ckpt_every_steps")
    assert unset.config.checkpoint.save_every_steps is None


def test_values_keep_the_place_where_they_were_typed(read):
    result = read("", "optimizer={_target_: adamw, lr: 1}")
    for path in (("optimizer",), ("optimizer", "lr")):
        assert str(result.document.wrote(path)) == (
            "<command line>: optimizer={_target_: adamw, lr: 1}"
        )


REFUSED = {
    "typo": ["dataloder.batch_size=3"],
    "typo in an option": ["--checkpoint.keep_lst", "3"],
    "wrong type": ["dataloader.batch_size=three"],
    "beyond a list": ["x-list=[1]", "x-list.5=1"],
    "through a scalar": ["step_scheduler.max_steps.deeper=1"],
    "not there": ["--unset", "dataloader.batch_size"],
    "no path": ["a..b=1"],
    "path without end": [".".join("a" * 60) + "=1"],
    "no value": ["--dataloader.batch_size"],
    "short option": ["-x"],
    "broken YAML": ["x-list=[1, 2"],
    "pattern without quotes": ["x-list=*.q_proj"],
    "several": ["dataloder.batch_size=3", "clip_grad_norm=x", "x-list.0.a=1", "--unset", "seed"],
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED)
def test_refusals(words, refusal, snapshot):
    assert refusal("x-list: [0]\n", *words) == snapshot
