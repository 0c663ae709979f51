"""Text that grows is the text that decoding gives at the end."""

import pytest
import torch

from automodel_core.answer.streaming import TextStream, shown
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    "text", ["One two, three.", "\u4e16\u754c and \U0001f600!", "a\n\n  b", ""]
)
def test_the_pieces_are_the_whole_text_and_no_half_characters(tokenizer, text):
    pieces = []
    stream = TextStream(tokenizer, pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(pieces) == stream.text == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_each_whole_token_is_shown_at_once(tokenizer):
    pieces = []
    stream = TextStream(tokenizer, pieces.append)
    stream.put(torch.tensor([[1]]))
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    for count, token in enumerate(ids, 1):
        stream.put(torch.tensor([token]))
        assert "".join(pieces) == tokenizer.decode(ids[:count])


def test_a_model_cannot_command_the_terminal():
    assert shown("a\x1b[2Jb\x07\tc\r\n\x9b1m") == "a[2Jb\tc\n1m"
