"""Which installed plugins a run may use: --no-plugin, plugins.disable, plugins.require."""

import pytest

from automodel_core.cli import main

BASE = """\
model: {_target_: causal_lm, pretrained_model_name_or_path: somewhere}
dataset: {_target_: squad, dataset_name: somewhere}
step_scheduler: {max_steps: 1}
"""


@pytest.fixture
def validate(tmp_path, capsys):
    def run(text, *arguments):
        path = tmp_path / "config.yaml"
        path.write_text(BASE + text)
        code = main(["validate", str(path), *arguments])
        return code, capsys.readouterr().out

    return run


def test_a_disabled_plugin_is_refused_where_it_is_named(validate):
    assert validate("")[0] == 0
    for text, arguments in (
        ("plugins: {disable: [squad]}\n", ()),
        ("", ("--no-plugin", "squad")),
        ("", ("--no-plugin", "datasets:squad")),
    ):
        code, out = validate(text, *arguments)
        assert code == 2
        assert ":2:" in out
        assert "disabled" in out


def test_disabling_what_is_not_used_changes_nothing(validate):
    assert validate("plugins: {disable: [instructions]}\n")[0] == 0


def test_what_is_required_must_be_usable(validate):
    assert validate("plugins: {require: [squad, automodel-core]}\n")[0] == 0
    code, out = validate("plugins: {require: [squad, not-installed]}\n")
    assert code == 2
    assert "There is no usable `not-installed`" in out
    assert ":4:" in out


def test_the_command_lines_word_counts_for_requiring_too(validate):
    assert validate("plugins: {require: [squad]}\n", "--no-plugin", "squad")[0] == 2
