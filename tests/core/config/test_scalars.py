"""What an unquoted word means, in the file, on the command line and from the environment."""

import math

import pytest

from automodel_core.config.scalars import plain_scalar

MEANS = {
    "": None,
    "~": None,
    "null": None,
    "none": None,
    "None": None,
    "NONE": "NONE",
    "true": True,
    "True": True,
    "false": False,
    "FALSE": False,
    "yes": "yes",
    "no": "no",
    "on": "on",
    "off": "off",
    "7": 7,
    "-7": -7,
    "+7": 7,
    "010": 10,
    "0o10": 8,
    "0x1F": 31,
    "1_000": 1000,
    "1e-5": 1e-5,
    "1E5": 1e5,
    "1.0e-5": 1e-5,
    ".5": 0.5,
    "5.": 5.0,
    "-0.0": -0.0,
    ".inf": math.inf,
    "-.inf": -math.inf,
    "inf": "inf",
    "nan": "nan",
    "02:00:00": "02:00:00",
    "2024-01-31": "2024-01-31",
    "1.2.3": "1.2.3",
    "1e": "1e",
    "0b11": "0b11",
    "train[:1000]": "train[:1000]",
    "torch.bfloat16": "torch.bfloat16",
}


@pytest.mark.parametrize(("text", "value"), MEANS.items())
def test_a_plain_scalar(text, value, read):
    assert plain_scalar(text) == value
    assert type(plain_scalar(text)) is type(value)
    in_file = read(f"x-value: {text}\n").document.tree["x-value"]
    typed = read("", f"x-value={text}").document.tree["x-value"]
    for found in (in_file, typed):
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("text", ["4", "none", "true", "1e-5", "~"])
def test_a_quoted_scalar_is_text(text, read):
    document = read(f"x-double: \"{text}\"\nx-single: '{text}'\n").document
    assert document.tree["x-double"] == document.tree["x-single"] == text


def test_digits_beyond_all_numbers_are_not_counted_out(read):
    assert plain_scalar("9" * 5000) == math.inf
    assert math.isnan(plain_scalar(".nan"))


def test_what_is_read_is_made_of_plain_types(read):
    tree = read("x-all: [1, 1.5, 1e-5, text, true, none, 0x10, {a: b}]\n").document.tree
    types = {type(each) for each in tree["x-all"]}
    assert types == {int, float, str, bool, type(None), dict}


STRICT = {
    "a text is no number": ("max_steps: '4'", "write it without quotes"),
    "a boolean is no number": ("max_steps: true", ""),
    "a fraction is no whole number": ("max_steps: 4.5", ""),
    "nor is an exponent": ("max_steps: 1e3", "write it without a point or exponent"),
    "less than nothing": ("max_steps: 0", ""),
}


@pytest.mark.parametrize("case", STRICT)
def test_numbers_are_never_coerced(case, refusal):
    text, hint = STRICT[case]
    base = f"model: {{_target_: causal_lm}}\ndataset: squad\nstep_scheduler:\n  {text}\n"
    shown = refusal(base=base)
    assert shown.startswith("config.yaml:4:14: `step_scheduler.max_steps` must be ")
    assert shown.endswith(hint or "^")


@pytest.mark.parametrize(
    ("word", "hint"),
    [("no", "false"), ("off", "false"), ("yes", "true"), ("'false'", "false"), ("7", "true or")],
)
def test_booleans_are_never_coerced(word, hint, refusal):
    shown = refusal(f"dataloader:\n  shuffle: {word}\n")
    assert "`dataloader.shuffle` must be true or false" in shown
    assert f"write {hint}" in shown


def test_a_whole_number_is_a_number(read):
    config = read("clip_grad_norm: 2\n").config
    assert config.clip_grad_norm == 2.0
    assert type(config.clip_grad_norm) is float


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e999", "true", "'1.0'"])
def test_numbers_are_finite(number, refusal):
    assert "`clip_grad_norm` must be a number" in refusal(f"clip_grad_norm: {number}\n")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("torch.bfloat16", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("torch.float16", "float16"),
        ("float32", "float32"),
        ("auto", "auto"),
    ],
)
def test_dtypes(written, name, read):
    config = read("", f"model.torch_dtype={written}").config
    assert config.model.arguments["torch_dtype"] == name


def test_a_dtype_that_there_is_not(refusal):
    shown = refusal("", "model.torch_dtype=bfloat61")
    assert "did you mean `bfloat16`? One of: auto, bfloat16, float16, float32" in shown
