"""What real chat templates teach, read back as text turn by turn."""

from pathlib import Path

import pytest

from automodel_core.errors import UserError
from automodel_datasets.chat import ChatTemplate
from automodel_datasets.masking import tokenise
from tests.plugins.datasets.styles import Style

# ruff: noqa: RUF001 - DeepSeek spells its tokens with other bars

TEMPLATES = Path(__file__).parents[2] / "fixtures" / "chat_templates"
CHATML = ("<|im_end|>", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
DEEPSEEK_END = "<｜end▁of▁sentence｜>"
DEEPSEEK = (
    DEEPSEEK_END,
    ("<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)
GLM = ("<|endoftext|>", ("<|user|>", "<|assistant|>", "<|observation|>", "<|system|>", "[gMASK]"))
PHI = ("<|endoftext|>", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"))
GPT_OSS = (
    "<|return|>",
    ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|constrain|>"),
)
SMOL = ("<end_of_utterance>", ("<|im_start|>",))

# EOS and special tokens of the family's tokenizer, then what ends a turn before the last, and it.
FAMILIES = {
    "qwen2_5": (CHATML, "<|im_end|>", "<|im_end|>"),
    "qwen3": (CHATML, "<|im_end|>", "<|im_end|>"),
    "qwen3_5_think": (CHATML, "<|im_end|>", "<|im_end|>"),
    "qwen3_instruct_2507": (CHATML, "<|im_end|>", "<|im_end|>"),
    "qwen3_vl": (CHATML, "<|im_end|>", "<|im_end|>"),
    "deepseekv3": (DEEPSEEK, DEEPSEEK_END, DEEPSEEK_END),
    "deepseek_r1_distill": (DEEPSEEK, DEEPSEEK_END, DEEPSEEK_END),
    "glm4moe": (GLM, "", "<|endoftext|>"),
    "gptoss": (GPT_OSS, "<|end|>", "<|return|>"),
    "phi3": (PHI, "<|end|>", "<|end|>"),
    "phi3_5": (PHI, "<|end|>", "<|end|>"),
    "qwen3_5_nothink": (CHATML, "<|im_end|>", "<|im_end|>"),
    "qwen3_6": (CHATML, "<|im_end|>", "<|im_end|>"),
}


def family(name, variant=""):
    eos, special = FAMILIES[name][0] if name in FAMILIES else SMOL
    source = (TEMPLATES / f"{name}{variant}.jinja").read_text(encoding="utf-8")
    return Style(source, "", bos="<bos>", eos=eos, special=special).tokenizer()


def learned(tokenizer, messages, **options):
    tokens = tokenise(tokenizer, [ChatTemplate(tokenizer).supervised(messages, **options)])[0]
    return [tokenizer.decode(tokens.ids[start:stop]) for start, stop in tokens.spans]


def turns(*answers):
    question = {"role": "user", "content": "What is 12 plus one?"}
    return [m for answer in answers for m in (question, {"role": "assistant", "content": answer})]


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_answer_of_a_real_template_is_learned_with_its_end_and_no_header(name, system):
    messages = turns("13", "Yes, 13.")
    if system:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    text = "".join(learned(family(name), messages))
    _, middle, last = FAMILIES[name]
    text = text.replace("<|channel|>final<|message|>", "").replace("\n", "").replace("</think>", "")
    assert text.replace("<think>", "") == f"13{middle}Yes, 13.{last}"


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("glm4moe", "gptoss")])
def test_markers_around_headers_line_ends_and_a_second_eos_teach_none_of_them(name):
    runs = learned(family(name, "_training"), turns("13", "Yes, 13."))
    _, middle, last = FAMILIES[name]
    assert [run.replace("<think>\n\n</think>\n\n", "") for run in runs] == [
        f"13{middle}",
        f"Yes, 13.{last}",
    ]


@pytest.mark.parametrize("arguments", [{"a": 12}, '{"a": 12}'])
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "deepseekv3", "glm4moe"])
def test_arguments_are_learned_as_a_mapping_and_as_json(name, arguments):
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    (text, *rest) = learned(family(name), [turns("")[0], calling])
    assert "add" in text
    assert "12" in text
    assert "\\" not in text
    assert "".join([text, *rest]).endswith(FAMILIES[name][2])


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 12}}}


@pytest.mark.parametrize("variant", ["", "_training"])
@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_a_template_that_writes_no_plain_strings_is_refused(name, variant):
    with pytest.raises(UserError):
        learned(family(name, variant), turns("13"))


@pytest.mark.parametrize("variant", ["", "_training"])
def test_tool_calls_that_a_template_leaves_out_are_refused_with_that_reason(variant):
    calling = {"role": "assistant", "content": "Adding.", "tool_calls": [CALL]}
    with pytest.raises(UserError, match="leaves tool calls out"):
        learned(family("phi3", variant), [turns("")[0], calling])


@pytest.mark.parametrize("variant", ["", "_training"])
@pytest.mark.parametrize("calls", [1, 2])
def test_a_masked_thought_leaves_the_calls_behind_it_learned(calls, variant):
    calling = {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Add them.",
        "tool_calls": [CALL] * calls,
    }
    (text,) = learned(family("qwen3", variant), [turns("")[0], calling], mask_reasoning=True)
    assert text.startswith("<tool_call>")
    assert text.count("<tool_call>") == calls
    assert text.endswith("</tool_call><|im_end|>")


def test_a_call_without_arguments_is_learned():
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    (text,) = learned(family("qwen2_5"), [turns("")[0], calling])
    assert text.strip() == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>'


def test_with_markers_only_the_messages_asked_for_are_learned():
    tokenizer = family("qwen3", "_training")
    assert learned(tokenizer, turns("13", "14", "15"), learn=lambda index: index == 3) == [
        "14<|im_end|>"
    ]


def test_an_inline_thought_is_learned_or_masked_with_markers_and_without():
    messages = turns("<think>\n12 + 1\n</think>\n\n13")
    for variant in ("", "_training"):
        tokenizer = family("qwen3", variant)
        assert learned(tokenizer, messages) == ["<think>\n12 + 1\n</think>\n\n13<|im_end|>"]
        assert learned(tokenizer, messages, mask_reasoning=True) == ["13<|im_end|>"]


def test_thoughts_that_the_template_leaves_out_are_counted():
    messages = turns("13", "14")
    messages[1]["reasoning_content"] = "12 + 1"
    text = ChatTemplate(family("qwen3")).supervised(messages)
    assert text.dropped == {"thoughts": 1, "empty thoughts": 1}


def test_a_plain_answer_takes_two_renders(monkeypatch):
    template = ChatTemplate(family("qwen2_5"))
    template.supervised(turns("13"))
    render, seen = template.tokenizer.apply_chat_template, []
    monkeypatch.setattr(
        template.tokenizer,
        "apply_chat_template",
        lambda *given, **options: seen.append(given) or render(*given, **options),
    )
    template.supervised(turns("13"))
    assert len(seen) == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_token_is_learned_once_though_it_pads(name):
    tokenizer = family(name)
    tokenizer.pad_token = tokenizer.eos_token
    tokens = tokenise(tokenizer, [ChatTemplate(tokenizer).supervised(turns("13"))])[0]
    labels = tokens.sample()["labels"]
    end = tokenizer.convert_tokens_to_ids(FAMILIES[name][2])
    assert labels.count(end) == 1


MARKED = [name for name in FAMILIES if (TEMPLATES / f"{name}_training.jinja").exists()]


@pytest.mark.parametrize("name", MARKED)
def test_no_more_is_learned_than_the_markers_of_others_say(name):
    tokenizer, messages = family(name, "_training"), turns("13", "Yes, 13.")
    theirs = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    text = ChatTemplate(tokenizer).supervised(messages)
    ours = tokenise(tokenizer, [text])[0].sample()["labels"]
    marked = [bool(mask) for mask in theirs["assistant_masks"]]
    pairs = zip(marked, ours, strict=False)  # EOS may stand behind the text
    assert all(mask for mask, label in pairs if label >= 0)
