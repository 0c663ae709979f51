"""What real chat templates teach, read back as text turn by turn."""

from pathlib import Path

import pytest

from automodel_datasets.chat import ChatTemplate
from automodel_datasets.masking import tokenise
from tests.plugins.datasets.styles import Style

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
    "smolvlm": (SMOL, "<end_of_utterance>", "<end_of_utterance>"),
    "idefics3": (SMOL, "<end_of_utterance>", "<end_of_utterance>"),
}


def family(name, variant=""):
    (eos, special), *_ = FAMILIES[name]
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
    if not (TEMPLATES / f"{name}_training.jinja").exists():
        pytest.skip("no variant with markers")
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
