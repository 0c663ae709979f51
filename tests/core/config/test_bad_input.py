"""Files that are no configuration: one clear screen each, in no time."""

import os
import time

import pytest

from automodel_core.config.reading import MAX_BYTES, MAX_DEPTH, MAX_NODES
from tests.core.config.conftest import BASE

BOMB = "x-0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
MERGE_BOMB = "x-0: &a0 {}\n" + "".join(
    f"x-{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)

# What doesn't get as far as sections and keys.
UNREADABLE = {
    "empty": "",
    "only a comment": "# nothing\n",
    "list": "- model\n- dataset\n",
    "scalar": "model\n",
    "not UTF-8": b"model: a\ndataset: caf\xe9\n",
    "UTF-16": "model: a\n".encode("utf-16"),
    "binary": bytes(range(256)),
    "control character": "model: a\ndataset: \x01\n",
    "tab": "model:\n\t_target_: causal_lm\n",
    "tab in a list": "x-list:\n  -\ta: 1\n\t  b: 2\n",
    "bad indentation": "model:\n  a: 1\n   b: 2\n",
    "unclosed bracket": "optimizer: {lr: 1\nmodel: 2\n",
    "unclosed quote": "model: 'a\ndataset: b\n",
    "missing space": "model: a\nlr:1\n",
    "colon in a text": "model: a: b\n",
    "pattern without quotes": "peft:\n  include_modules:\n    - *.q_proj\n",
    "unknown anchor": "model: *nobody\n",
    "two documents": "model: a\n---\nmodel: b\n",
    "duplicate key": "model: a\ndataset: b\nmodel: c\n",
    "duplicate key below": "model:\n  a: 1\n  a: 2\n",
    "tag": "model: !!python/object/apply:os.system ['touch canary']\n",
    "own tag": "model: !mine a\n",
    "key is a list": "[a, b]: c\n",
    "key has a tag": "!!python/name:os.system : c\n",
    "merge of a scalar": "model:\n  <<: 5\n",
    "alias of itself": "model: &m\n  deep: *m\n",
    "merge of itself": "model: &m\n  <<: *m\n",
    "alias bomb": BOMB,
    "merge bomb": MERGE_BOMB,
    "chain of merges": "x-0: &a0 {b: 1}\n"
    + "".join(f"x-{n}: &a{n} {{<<: *a{n - 1}}}\n" for n in range(1, 5000)),
    "deep": "x: " + "[" * (MAX_DEPTH + 5) + "]" * (MAX_DEPTH + 5) + "\n",
    "very deep": "x: " + "[" * 20_000 + "\n",
    "too many values": "x-list: [" + "1, " * (MAX_NODES + 1) + "]\n",
    "too large": "# " + "x" * MAX_BYTES + "\n",
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable(case, file, findings, snapshot):
    name, started = file(UNREADABLE[case]), time.process_time()
    problems = findings([name])
    assert time.process_time() - started < 5
    assert "\n".join(show(problems)) == snapshot
    assert not os.path.exists("canary")


def show(problems):
    from automodel_core.config.report import as_text

    return map(as_text, problems)


def test_a_file_that_is_not_there(file, findings, tmp_path, snapshot):
    (tmp_path / "folder").mkdir()
    assert "\n".join(show(findings(["nothing.yaml"]) + findings(["folder"]))) == snapshot


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="POSIX")
def test_a_device_that_never_ends(findings):
    [problem] = findings(["/dev/zero"])
    assert "larger than" in problem.message


def test_a_byte_order_mark_and_windows_lines_are_fine(file, findings):
    assert findings([file(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())]) == []


# What is YAML, but no configuration.
WRONG = {
    "unknown section": "otpimizer: {lr: 1}\n",
    "unknown key": "checkpoint:\n  chekpoint_dir: a\n",
    "nothing near": "checkpoint:\n  banana: a\n",
    "section for a scalar": "clip_grad_norm: {a: 1}\n",
    "scalar for a section": "checkpoint: runs/\n",
    "none for a section": "checkpoint:\n",
    "list for a section": "lr_scheduler: [cosine]\n",
    "list for a target": "loss_fn: [masked_ce]\n",
    "target without a name": "distributed: {dp_size: 1}\n",
    "target's name is no name": "loss_fn:\n  _target_: [masked_ce]\n",
    "inner target's name is no name": "optimizer: {_target_: adamw, lr: {_target_: 5}}\n",
    "not one of the words": "lr_scheduler: {lr_decay_style: cosin}\n",
    "number for a word": "guards: {non_finite: 1}\n",
    "negative": "lr_scheduler: {warmup_steps: -1}\n",
    "no own choice": "checkpoint: {save_consolidated: false}\n",
    "validation without data": "x-a: 1\n",
    "dtype": "x-a: 1\n",
    "long line": f"x-a: 1\nguards: {{ {' ' * 150}oops: 1, {' ' * 150}non_finite: stop }}\n",
    "terminal escapes": 'lr_scheduler: {lr_decay_style: "\\e[31mred"}\n',
    "very long text": f"lr_scheduler: {{lr_decay_style: {'a' * 500}}}\n",
}
WORDS = {
    "validation without data": ["step_scheduler.val_every_steps=5"],
    "dtype": ["model.torch_dtype=torch.bf16"],
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong(case, refusal, snapshot):
    assert refusal(WRONG[case], *WORDS.get(case, [])) == snapshot


MISSING = {
    "everything": "x-a: 1\n",
    "no target": "dataset: squad\nstep_scheduler: {}\nmodel:\n  torch_dtype: auto\n",
    "empty sections": "model:\ndataset:\nstep_scheduler:\n",
    "tokenizer": BASE + "tokenizer: {revision: main}\n",
}


@pytest.mark.parametrize("case", MISSING)
def test_missing(case, refusal, snapshot):
    assert refusal(MISSING[case], base="") == snapshot


def test_all_problems_at_once_in_the_order_of_the_file(refusal, snapshot):
    text = """\
optimizer:
  lr: 1
lr_scheduler:
  lr_decay_style: cosin
  warmup: 5
checkpoint:
  enabled: no
  save_every_steps: "5"
rng:
  seed: -1
lossfn: masked_ce
"""
    assert refusal(text, "clip_grad_norm=big") == snapshot


def test_a_flood_of_problems_is_cut_short(refusal):
    shown = refusal("".join(f"key_{n}: 1\n" for n in range(2000)))
    assert shown.count("There is no key") == 30
    assert shown.endswith("... and 1,970 more")
