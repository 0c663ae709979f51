import pytest
import torch

from automodel_core.errors import UserError
from automodel_datasets.collate import default_collater
from tests.plugins.datasets.styles import STYLES
from tests.tiny import tiny_llama

SAMPLES = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8], "labels": [8]},
]


def test_padding_on_the_right():
    batch = default_collater(SAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.long}


def test_padding_on_the_left():
    batch = default_collater(SAMPLES, padding_side="left")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_to_a_multiple(side):
    batch = default_collater(SAMPLES, padding_side=side, pad_to_multiple_of=8)
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(2, 8)}
    assert batch["attention_mask"].sum() == 4


def test_a_multiple_below_one_is_refused():
    with pytest.raises(UserError) as refused:
        default_collater(SAMPLES, pad_to_multiple_of=0)
    assert refused.value.argument == "pad_to_multiple_of"


def test_the_end_token_stays_supervised_when_it_is_also_the_pad_token():
    tokenizer = STYLES["chatml"].tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    samples = [{"input_ids": [5, end], "labels": [-100, end]}, *SAMPLES]
    batch = default_collater(samples, tokenizer)
    assert batch["labels"][0].tolist() == [-100, end, -100]
    assert batch["attention_mask"][0].tolist() == [1, 1, 0]
    assert batch["input_ids"][0, 2] == end


def test_a_tokenizer_without_a_pad_token_is_left_as_it_is():
    tokenizer = STYLES["chatml"].tokenizer()
    batch = default_collater(SAMPLES, tokenizer)
    assert batch["input_ids"][1, 1] == tokenizer.eos_token_id
    assert tokenizer.pad_token is None


def test_other_keys_travel_along():
    samples = [{**sample, "weight": i, "source": "a"} for i, sample in enumerate(SAMPLES)]
    batch = default_collater(samples)
    assert batch["weight"].tolist() == [0, 1]
    assert batch["source"] == ["a", "a"]


def test_no_samples_make_a_batch_without_rows():
    """What a rank without a share of a short group gets."""
    batch = default_collater([])
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(0, 0)}


def test_padding_changes_nothing_that_the_model_computes(tmp_path):
    model = tiny_llama(tmp_path).eval()
    alone = model(torch.tensor([[8, 9, 10]])).logits[0]
    longer = {"input_ids": [*range(20)], "labels": [*range(20)]}
    samples = [longer, {"input_ids": [8, 9, 10], "labels": [8, 9, 10]}]
    for side, place in (("right", slice(0, 3)), ("left", slice(-3, None))):
        batch = default_collater(samples, padding_side=side)
        del batch["labels"]
        torch.testing.assert_close(model(**batch).logits[1, place], alone)


def test_samples_without_tokens_are_refused_with_the_collator_for_images():
    with pytest.raises(UserError, match="no tokens yet") as refused:
        default_collater([{"messages": [], "images": []}])
    assert "image_text" in refused.value.fix
