"""Problems as text, JSON and GitHub annotations."""

import json

from automodel_core.config.report import (
    COMMAND_LINE,
    Mark,
    Problem,
    excerpt,
    render,
    render_user_error,
)
from automodel_core.errors import UserError

PROBLEMS = [
    Problem("Something, 100% wrong.", Mark("a b,c.yaml", 3, 5, "  x: 1"), "write y\nor z"),
    Problem("Beware.", Mark("a b,c.yaml", 1, 1, "x: 1"), severity="warning"),
    Problem("No such thing.", Mark(COMMAND_LINE, text="a=1")),
    Problem("Nowhere."),
    Problem("Nowhere."),
]


def test_text(snapshot):
    assert render(PROBLEMS) == snapshot


def test_json(snapshot):
    assert json.loads(render(PROBLEMS, "json")) == snapshot


def test_github(snapshot):
    assert render(PROBLEMS, "github") == snapshot


def test_nothing_wrong():
    assert render([]) == ""
    assert json.loads(render([], "json")) == []
    assert render([], "github") == ""


def test_an_error_of_a_plugin_is_shown_at_its_value():
    marks = {("dataset", "split"): Mark("a.yaml", 2, 10, "  split: trian")}
    error = UserError("No split `trian`.", fix="write train", path=("dataset", "split"))
    assert render_user_error(error, marks.get) == (
        "a.yaml:2:10: No split `trian`.\n      split: trian\n             ^\n    write train"
    )
    assert render_user_error(UserError("Disk full."), marks.get) == "Disk full."


def test_a_caret_stays_below_its_character_in_a_long_line():
    line = "a" * 300 + "!" + "b" * 300
    text, caret = excerpt(line, 300)
    assert text[caret.index("^")] == "!"
    assert len(text) <= 100


def test_nothing_that_a_terminal_obeys_is_printed():
    shown = render([Problem("\x1b[31mred\r\n\udcff", Mark("a\tb", 1, 1, "\x07x"))])
    assert shown.isascii()
    assert "\x1b" not in shown
    assert "\r" not in shown
