"""Where each value came from, through anchors, merges and several files."""

from automodel_core.config.overrides import apply_overrides, split_arguments
from automodel_core.config.reading import load_files


def place(document, *path):
    return str(document.wrote(path))


def test_keys_and_values_have_places(read):
    document = read("optimizer: {lr: 1e-3,\n  eps: 1e-8}\n").document
    assert place(document, "optimizer", "lr") == "config.yaml:8:17"
    assert str(document.keys["optimizer", "eps"]) == "config.yaml:9:3"
    assert document.values["optimizer", "eps"].text == "  eps: 1e-8}"


def test_later_files_win(file):
    first = file("optimizer:\n  lr: 1\n  eps: 2\nx-list: [1, 2, 3]\n", "a.yaml")
    second = file("x-list: [4]\noptimizer:\n  lr: 3\n", "b.yaml")
    document = load_files([first, second])
    assert document.tree == {"optimizer": {"lr": 3, "eps": 2}, "x-list": [4]}
    assert place(document, "optimizer", "lr") == "b.yaml:3:7"
    assert place(document, "optimizer", "eps") == "a.yaml:3:8"
    assert place(document, "x-list", 0) == "b.yaml:1:10"
    assert document.wrote(("x-list", 1)) is None


def test_a_scalar_and_a_section_replace_each_other(file):
    first = file("a: {b: 1}\nc: 2\n", "a.yaml")
    second = file("a: 3\nc: {d: 4}\n", "b.yaml")
    document = load_files([first, second])
    assert document.tree == {"a": 3, "c": {"d": 4}}
    assert document.wrote(("a", "b")) is None
    assert place(document, "c", "d") == "b.yaml:2:8"


def test_the_command_line_wins(file):
    first, second = file("a: 1\n", "a.yaml"), file("a: 2\n", "b.yaml")
    files, overrides = split_arguments([first, "a=3", second])
    document = load_files(files)
    apply_overrides(document, overrides)
    assert document.tree == {"a": 3}
    assert place(document, "a") == "<command line>: a=3"


def test_an_anchor_is_where_its_text_is(file):
    document = load_files([file("x-lr: &lr 1e-3\noptimizer:\n  lr: *lr\n")])
    assert document.tree["optimizer"] == {"lr": 1e-3}
    assert place(document, "optimizer", "lr") == "config.yaml:1:7"
    assert str(document.keys["optimizer", "lr"]) == "config.yaml:3:3"


def test_merge_keys(file):
    text = """\
x-a: &a {split: train, limit: 1, deep: {x: 1, y: 2}}
x-b: &b {split: other, seed: 3}
one:
  <<: [*a, *b]
  limit: 2
  deep: {x: 5}
two:
  <<: *a
"""
    document = load_files([file(text)])
    assert document.tree["one"] == {"split": "train", "seed": 3, "limit": 2, "deep": {"x": 5}}
    assert document.tree["two"] == {"split": "train", "limit": 1, "deep": {"x": 1, "y": 2}}
    assert place(document, "one", "split") == "config.yaml:1:17"
    assert place(document, "one", "limit") == "config.yaml:5:10"
    assert document.wrote(("one", "deep", "y")) is None
    assert place(document, "two", "deep", "y") == "config.yaml:1:50"


def test_the_place_of_what_nobody_wrote_is_what_is_around_it(read):
    document = read().document
    assert str(document.place(("step_scheduler", "num_epochs"))) == "config.yaml:6:1"
    assert str(document.place(("step_scheduler", "num_epochs"), on="key")) == "config.yaml:6:1"
    assert str(document.place(("step_scheduler", "max_steps", 0))) == "config.yaml:7:14"
    assert str(document.place(("optimizer", "lr"))) == "config.yaml:1:1"
