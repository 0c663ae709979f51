"""What is supervised, read back as text: exactly the assistant's words and what ends them."""

from bisect import bisect_left, bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_core.errors import UserError
from automodel_datasets.chat import ChatTemplate
from automodel_datasets.masking import SupervisedText, require_offsets, tokenise
from tests.plugins.datasets.styles import EMPTY_THINK, SHOUTING, STYLES, THOUGHTS_AND_CALLS, Style

QUESTION = {"role": "user", "content": "What is 12 plus one?"}
ANSWERS = ["13", "The sum is 13.", "  a\n\nb ", "é 🙂", "x" * 40, "13\n"]


def supervised_runs(tokenizer, tokens):
    """Each run of supervised tokens, decoded."""
    return [tokenizer.decode(tokens.ids[start:stop]) for start, stop in tokens.spans]


def learned(tokenizer, messages):
    text = ChatTemplate(tokenizer).supervised(messages)
    return supervised_runs(tokenizer, tokenise(tokenizer, [text])[0])


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", [name for name in STYLES if not STYLES[name].spaces_in_tokens])
def test_exactly_the_answer_and_its_end_are_learned(name, answer, trim_offsets):
    style = STYLES[name]
    tokenizer = style.tokenizer(trim_offsets)
    messages = [QUESTION, {"role": "assistant", "content": answer}]
    inserted = answer.strip() if "trim" in style.template else answer
    assert "".join(learned(tokenizer, messages)) == inserted + style.end


def test_a_word_that_carries_the_space_before_it_is_learned_whole():
    tokenizer = STYLES["inst"].tokenizer()
    messages = [QUESTION, {"role": "assistant", "content": "the city is 13"}]
    (run,) = learned(tokenizer, messages)
    assert run.strip() == "the city is 13 </s>"


@pytest.mark.parametrize("name", ["chatml", "bos and headers", "role model", "marked"])
def test_every_turn_of_the_assistant_is_learned_and_no_other(name):
    style = STYLES[name]
    messages = [
        QUESTION,
        {"role": "assistant", "content": "13"},
        {"role": "user", "content": "13?"},
        {"role": "assistant", "content": "Yes, 13."},
    ]
    assert learned(style.tokenizer(), messages) == ["13" + style.end, "Yes, 13." + style.end]


@pytest.mark.parametrize("name", ["bos and headers", "role model"])
def test_bos_stands_once(name):
    style = STYLES[name]
    tokenizer = style.tokenizer()
    text = ChatTemplate(tokenizer).supervised([QUESTION, {"role": "assistant", "content": "13"}])
    ids = tokenise(tokenizer, [text])[0].ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_the_tokens_are_those_of_the_template_itself():
    for style in STYLES.values():
        tokenizer = style.tokenizer()
        messages = [QUESTION, {"role": "assistant", "content": "The sum is 13."}]
        text = ChatTemplate(tokenizer).supervised(messages)
        ours = tokenise(tokenizer, [text])[0].ids.tolist()
        theirs = tokenizer.apply_chat_template(messages)["input_ids"]
        assert ours == theirs + list(text.after)


def test_an_empty_think_block_is_the_templates_and_not_learned():
    messages = [QUESTION, {"role": "assistant", "content": "13"}]
    text = ChatTemplate(Style(EMPTY_THINK, "").tokenizer()).supervised(messages)
    assert "<think>" in text.text
    assert [text.text[start:stop] for start, stop in text.spans] == ["13<|im_end|>"]


def test_a_template_that_rewrites_the_answer_is_refused():
    tokenizer = Style(SHOUTING, "<|im_end|>").tokenizer()
    with pytest.raises(UserError, match="can't be told from the template's: 'thirteen'"):
        learned(tokenizer, [QUESTION, {"role": "assistant", "content": "thirteen"}])


@pytest.mark.parametrize("name", ["role model"])
def test_a_conversation_that_the_template_refuses_is_reported_in_its_words(name):
    with pytest.raises(UserError, match="System role not supported"):
        learned(STYLES[name].tokenizer(), [{"role": "system", "content": "Be brief."}, QUESTION])


def test_tokens_before_and_after_the_text_shift_the_spans():
    tokenizer = STYLES["chatml"].tokenizer()
    plain = SupervisedText("Answer: 13", [(7, 10)])
    framed = SupervisedText("Answer: 13", [(7, 10)], before=[1, 1], after=[2])
    bare, shifted = tokenise(tokenizer, [plain, framed])
    assert shifted.ids.tolist() == [1, 1, *bare.ids.tolist(), 2]
    assert shifted.spans == [
        (bare.spans[0][0] + 2, len(shifted) - 1),
        (len(shifted) - 1, len(shifted)),
    ]
    assert supervised_runs(tokenizer, bare) == [" 13"]
    labels = shifted.sample()["labels"]
    assert labels[: bare.spans[0][0] + 2] == [-100] * (bare.spans[0][0] + 2)
    assert labels[-1] == 2


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.sampled_from(" abThe13.é🙂\n日"), min_size=1, max_size=30),
    cuts=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    style=st.sampled_from(sorted(STYLES)),
    trim_offsets=st.booleans(),
)
def test_a_span_has_exactly_the_tokens_whose_offsets_meet_it(text, cuts, style, trim_offsets):
    tokenizer = STYLES[style].tokenizer(trim_offsets)
    start, stop = sorted(min(cut, len(text)) for cut in cuts)
    whole = (start, stop) == (0, len(text))
    found = tokenise(tokenizer, [SupervisedText(text, [(start, stop)])])[0]
    plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert found.ids.tolist() == plain["input_ids"]
    starts, ends = zip(*plain["offset_mapping"], strict=True) if len(found) else ((), ())
    first, last = bisect_right(ends, start), bisect_left(starts, stop)
    expected = range(len(found)) if whole else range(first, last)
    assert list(range(*found.spans[0])) == list(expected)


def test_a_tokenizer_without_offsets_is_refused_by_name():
    class SlowTokenizer:
        is_fast = False
        name_or_path = "someone/slow"

    with pytest.raises(UserError, match="SlowTokenizer of someone/slow"):
        require_offsets(SlowTokenizer())


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 12, "b": 1}}}
WRITTEN = '<tool_call>{"name": "add", "arguments": {"a": 12, "b": 1}}</tool_call><|im_end|>'


def thinking(content, thought, **more):
    return {"role": "assistant", "content": content, "reasoning_content": thought, **more}


def learned_text(messages, **options):
    template = ChatTemplate(Style(THOUGHTS_AND_CALLS, "").tokenizer())
    text = template.supervised(messages, **options)
    return [text.text[start:stop] for start, stop in text.spans]


@pytest.mark.parametrize("content", [None, "", "Let me add. "])
def test_a_tool_call_is_learned_with_what_encloses_it_and_its_end(content):
    calling = {"role": "assistant", "content": content, "tool_calls": [CALL]}
    answer = {"role": "tool", "content": "13"}
    messages = [QUESTION, calling, answer, {"role": "assistant", "content": "It is 13."}]
    assert learned_text(messages) == [(content or "") + WRITTEN, "It is 13.<|im_end|>"]


def test_a_thought_is_learned_where_the_template_keeps_it_and_masked_when_asked():
    messages = [QUESTION, thinking("13", "12 + 1"), QUESTION, thinking("13!", "again")]
    assert learned_text(messages) == [
        "13<|im_end|>",
        "<think>\nagain\n</think>\n\n13!<|im_end|>",
    ]
    assert learned_text(messages, mask_reasoning=True) == ["13<|im_end|>", "13!<|im_end|>"]


def test_only_the_messages_asked_for_are_learned():
    messages = [QUESTION, thinking("13", ""), QUESTION, thinking("13!", "")]
    assert learned_text(messages, learn=lambda index: index == 3) == ["13!<|im_end|>"]
