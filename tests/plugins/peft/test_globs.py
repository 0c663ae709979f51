"""What a pattern means, against a definition that matches character by character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_peft.globs import first_match, matches, matches_any

PARTS = st.sampled_from(["model", "layers", "1", "11", "q_proj", "qq_proj", "lm_head", "a"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.text(alphabet="*.q_projlaes1", min_size=1, max_size=10)


def covers(pattern: str, text: str) -> bool:
    """Whether `pattern` is the whole of `text`, `*` being any text."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(covers(pattern[1:], text[end:]) for end in range(len(text) + 1))
    return bool(text) and text[0] == pattern[0] and covers(pattern[1:], text[1:])


def defined(pattern: str, name: str) -> bool:
    """The rules, as the documentation words them."""
    whole = covers(pattern, name)
    at_root = pattern.startswith("*.") and covers(pattern[2:], name)
    last_part = "." not in pattern and covers(pattern, name.split(".")[-1])
    return whole or at_root or last_part


@given(PATTERNS, NAMES)
def test_every_pattern_means_what_the_rules_say(pattern, name):
    assert matches(pattern, name) == defined(pattern, name)


@given(NAMES)
def test_a_whole_name_means_itself_and_nothing_below_it(name):
    assert matches(name, name)
    assert not matches(name, f"{name}.deeper") or name == "deeper"


@given(NAMES, NAMES)
def test_a_name_without_a_star_is_never_a_part_of_another(pattern, name):
    assert matches(pattern, name) == (name == pattern or name.split(".")[-1] == pattern)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*.layers.1.*", "model.layers.1.mlp.up_proj", True),
        ("*.layers.1.*", "model.layers.11.mlp.up_proj", False),
        ("*.layers.1.*", "layers.1.mlp", True),
        ("layers.1.*", "model.layers.1.mlp", False),
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("q_proj", "q_proj", True),
        ("q_proj", "model.layers.0.self_attn.qq_proj", False),
        ("*.q_proj", "q_proj", True),
        ("*.q_proj", "model.qq_proj", False),
        ("*q_proj", "model.qq_proj", True),
        ("q_*", "model.layers.0.self_attn.q_proj", True),
        ("*vision_tower*", "model.vision_tower.layers.0.fc1", True),
        ("*lm_head*", "lm_head", True),
        ("model.layers.0", "modelxlayersx0", False),
        ("q_pro.", "q_proj", False),
        ("[q]_proj", "q_proj", False),
        ("q_pro?", "q_proj", False),
        ("", "q_proj", False),
    ],
)
def test_the_examples_of_the_documentation(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_one_of_several_is_enough_and_the_first_counts():
    assert matches_any(["v_proj", "q_*"], "a.q_proj")
    assert not matches_any([], "a.q_proj")
    assert first_match({"q_*": 1, "*_proj": 2}, "a.q_proj", 3) == 1
    assert first_match({"q_*": 1, "*_proj": 2}, "a.v_proj", 3) == 2
    assert first_match({"q_*": 1}, "a.v_proj", 3) == 3
