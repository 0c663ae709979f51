"""What is secret is shown nowhere; what only sounds secret is shown as it is."""

import os
import subprocess
import sys

import pytest

from automodel_core.config.effective import effective_tree, to_yaml
from automodel_core.config.report import render
from automodel_core.config.secrets import (
    masked,
    masked_lines,
    masked_words,
    redactor,
    secret_paths,
)
from tests.core.config.conftest import BASE

SECRET = "hunter2-and-more"


def test_the_schema_says_what_is_secret():
    assert secret_paths() == {
        ("wandb", "api_key"),
        ("slurm", "wandb_key"),
        ("slurm", "hf_token"),
    }


LINES = {
    f"  api_key: {SECRET}": f"  api_key: {'*' * len(SECRET)}",
    "wandb: {api_key: 'a b', entity: c}": f"wandb: {{api_key: {'*' * 17}",
    '"hf_token" :  x': '"hf_token" :  *',
    "wandb.api_key=x y": "wandb.api_key=***",
    "wandb.api_key.deeper=x": "wandb.api_key.deeper=*",
    "wandb_key: ${KEY}": "wandb_key: ${KEY}",
    'wandb_key: "${KEY}"': 'wandb_key: "${KEY}"',
    "api_key:": "api_key:",
    "my_api_key: x": "my_api_key: x",
    "start_of_response_token: <start>": "start_of_response_token: <start>",
}


@pytest.mark.parametrize("line", LINES)
def test_lines_are_masked(line):
    assert masked(line) == LINES[line]


def test_what_stands_below_a_secret_key_is_masked_with_it():
    lines = ["wandb:", "  api_key: |", "    a b", "", "     c", "  name: n", "hf_token:", "- x"]
    shown = ["wandb:", "  api_key: *", "    ***", "", "     *", "  name: n", "hf_token:", "- x"]
    assert masked_lines(lines) == shown
    assert masked_lines(["api_key: ${KEY}", "  name: n"]) == ["api_key: ${KEY}", "  name: n"]


def test_commands_are_masked():
    words = ["a.yaml", f"wandb.api_key={SECRET}", "--wandb.api_key", SECRET, "--wandb.name", "n"]
    stars = "*" * len(SECRET)
    shown = ["a.yaml", f"wandb.api_key={stars}", "--wandb.api_key", "***", "--wandb.name", "n"]
    assert masked_words(words) == shown


FILES = {
    "wrong value": "wandb:\n  api_key: [hunter2-and-more]\n",
    "number": "wandb:\n  api_key: 48151623\n",
    "beside a mistake": "wandb: {api_key: hunter2-and-more, enable: 7}\n",
    "below its key": "wandb:\n  api_key:\n    [hunter2-and-more]\n",
    "broken file": "wandb:\n  api_key: 'hunter2-and-more\n",
    "broken below its key": "wandb:\n  api_key:\n    'hunter2-and-more\n",
    "broken later": "wandb:\n  api_key: a\n    hunter2-and-more: b\n",
    "twice": "wandb:\n  api_key: hunter2-and-more\n  api_key: hunter2-and-more\n",
    "beside another mistake": "slurm: {hf_token: hunter2-and-more, wandb_key: 5, nodess: 2}\n",
    "conflict": "wandb: {name: a, api_key: hunter2-and-more}\nlogger: {wandb_exp_name: b}\n",
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("style", ["text", "json", "github"])
def test_problems_show_no_secret(case, style, findings, file):
    problems = findings([file(BASE + FILES[case])])
    assert problems
    for hidden in ("hunter2", "48151623"):
        assert hidden not in render(problems, style)


FROM_ENVIRONMENT = {
    "target": "loss_fn: ${X}\n",
    "target of a section": "loss_fn: {_target_: '${X}'}\n",
    "inner target": "optimizer: {_target_: adamw, lr: {_target_: '${X}'}}\n",
    "dtype": "model: {torch_dtype: '${X}'}\n",
    "word": "lr_scheduler: {lr_decay_style: '${X}'}\n",
    "number": "clip_grad_norm: ${X}\n",
    "section": "checkpoint: ${X}\n",
    "argument": "optimizer: {_target_: adamw, lr: 'a${X}', betas: ['${X}', 0.9]}\n",
    "plugin": "plugins: {require: ['${X}']}\n",
}


@pytest.mark.parametrize("case", FROM_ENVIRONMENT)
def test_problems_show_the_placeholder_of_what_came_from_the_environment(case, findings, file):
    words = [file(BASE), file(FROM_ENVIRONMENT[case], "more.yaml")]
    problems = findings(words, {"X": SECRET})
    assert problems
    for style in ("text", "json", "github"):
        assert "hunter2" not in render(problems, style)


@pytest.mark.parametrize("word", [f"wandb.api_key={SECRET}", f"wandb={{api_key: [{SECRET}]}}"])
def test_the_command_line_shows_no_secret(word, read):
    result = read("", word, "wandb.enable=7")
    assert result.problems
    assert SECRET not in result.shown
    assert SECRET not in "".join(map(str, result.document.values.values()))


def test_the_saved_configuration_holds_no_secret(read):
    text = "wandb: {api_key: hunter2-and-more, project: '${PROJECT}', enable: '${ON}'}\n"
    environ = {"PROJECT": "from-environment", "ON": "x"}
    result = read(text.replace("'${ON}'", "true"), environ=environ)
    saved = to_yaml(effective_tree(result.config, result.document))
    assert SECRET not in saved
    assert "from-environment" not in saved
    assert 'api_key: "***"' in saved
    assert 'project: "${PROJECT}"' in saved
    assert SECRET not in repr(result.config)


def test_what_only_sounds_secret_is_shown(read):
    text = """\
dataloader:
  collate_fn:
    _target_: default_collater
    start_of_response_token: "<start_of_turn>model\\n"
    pad_token: <pad>
    my_api_key: shown
tokenizer:
  pretrained_model_name_or_path: a/tokenizer
"""
    result = read(text)
    saved = to_yaml(effective_tree(result.config, result.document))
    for shown in ('"<start_of_turn>model\\n"', '"<pad>"', "my_api_key: shown", "a/tokenizer"):
        assert shown in saved


def test_messages_of_others_are_redacted(read):
    text = f"wandb: {{api_key: {SECRET}}}\nx: ${{HOST}}\n".replace("x:", "x-host:")
    environ = {"HOST": "db.example", "UNUSED": "library"}
    document = read(text, environ=environ).document
    redact = redactor(document, environ)
    said = f"The library could not log in to db.example with {SECRET}."
    assert redact(said) == "The library could not log in to ${HOST} with ***."


def test_a_real_command_shows_no_secret(file):
    name = file(f"{BASE}wandb:\n  api_key: {SECRET}\n  project: ${{PROJECT}}\n  enable: 7\n")
    command = [sys.executable, "-m", "automodel_core", "validate", name]
    done = subprocess.run(
        command, env={**os.environ, "PROJECT": "from-environment"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "`wandb.enable` must be true or false, not 7." in done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert "from-environment" not in done.stdout + done.stderr
