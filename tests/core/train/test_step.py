import pytest
import torch

from automodel_core.train.documents import document_bounds
from automodel_core.train.step import prepare_micro_batch, shift_labels

CPU = torch.device("cpu")


def batch(labels, positions):
    labels, positions = torch.tensor([labels]), torch.tensor([positions])
    return {
        "input_ids": labels.clamp(min=0),
        "labels": labels,
        "position_ids": positions,
        "attention_mask": torch.ones_like(labels),
    }


def test_position_i_is_given_the_label_of_the_next_position():
    shifted = shift_labels(batch([-100, 5, 6, 7], [0, 1, 2, 3]))
    assert shifted.tolist() == [[5, 6, 7, -100]]


def test_the_shift_never_crosses_into_the_next_document():
    shifted = shift_labels(batch([4, 5, 6, 7], [0, 1, 0, 1]))
    assert shifted.tolist() == [[5, -100, 7, -100]]


def test_every_position_predicts_its_successor_in_the_document_and_the_batch_stays_as_it_was():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 50, (5, 33), generator=generator)
    positions = torch.randint(0, 4, (5, 33), generator=generator)
    given = labels.clone()
    shifted = shift_labels({"labels": labels, "position_ids": positions})
    for row in range(5):
        for at in range(33):
            last = at == 32 or positions[row, at + 1] == 0
            assert shifted[row, at] == (-100 if last else labels[row, at + 1])
    assert torch.equal(labels, given)


def test_supervised_tokens_are_counted_after_the_shift():
    ready = prepare_micro_batch(batch([4, 5, -100, 7], [0, 1, 2, 3]), CPU)
    assert (ready.label_tokens, ready.tokens, ready.samples) == (2, 4, 1)


def test_rows_padded_on_the_right_need_no_mask():
    plain = batch([4, 5, 6, 7], [0, 1, 2, 2])
    plain["attention_mask"][0, 3] = 0
    assert set(prepare_micro_batch(plain, CPU).inputs) == {"input_ids"}


@pytest.mark.parametrize(
    ("positions", "mask", "told"),
    [
        ([0, 1, 0, 1], [1, 1, 1, 1], {"position_ids"}),
        ([0, 0, 1, 2], [0, 1, 1, 1], {"position_ids", "attention_mask"}),
    ],
)
def test_packed_rows_keep_their_positions_and_rows_padded_on_the_left_both(positions, mask, told):
    kept = batch([4, 5, 6, 7], positions) | {"attention_mask": torch.tensor([mask])}
    assert set(prepare_micro_batch(kept, CPU).inputs) == {"input_ids"} | told


@pytest.mark.parametrize(
    ("positions", "real", "bounds"),
    [
        ([[0, 1, 0, 1], [0, 1, 2, 3]], [[1] * 4] * 2, [0, 2, 4, 8]),
        # Padding is a document.
        ([[0, 0, 0, 1], [3, 0, 1, 2]], [[0, 0, 1, 1], [0, 1, 1, 1]], [0, 2, 4, 5, 8]),
    ],
)
def test_attention_without_masks_is_told_where_documents_begin(positions, real, bounds):
    some = {"position_ids": torch.tensor(positions), "attention_mask": torch.tensor(real)}
    assert document_bounds(some, lambda each: each)["cu_seq_lens_q"].tolist() == bounds
    packed = batch([4, 5, 6, 7], [0, 1, 0, 1])
    inputs = prepare_micro_batch(packed, CPU, documents=document_bounds).inputs
    assert inputs["cu_seq_lens_q"].tolist() == [0, 2, 4]
    assert inputs["attention_mask"].dim() == 4  # as it is: transformers makes no mask of it
    assert "cu_seq_lens_q" not in prepare_micro_batch(packed, CPU).inputs


def test_what_is_not_text_alone_keeps_its_mask():
    seen = batch([4, 5, 6, 7], [0, 1, 2, 3]) | {"pixel_values": torch.zeros(1, 3, 2, 2)}
    assert "attention_mask" in prepare_micro_batch(seen, CPU).inputs


def test_rows_are_padded_to_a_multiple_without_another_label():
    short = prepare_micro_batch(batch([4, 5, -100, 7], [0, 1, 2, 3]), CPU)
    long = prepare_micro_batch(batch([4, 5, -100, 7], [0, 1, 2, 3]), CPU, multiple=3)
    assert long.inputs["input_ids"].shape == (1, 6)
    assert (long.tokens, long.label_tokens) == (short.tokens, short.label_tokens)


def test_pixels_that_happen_to_have_the_shape_of_the_text_are_not_padded():
    """Qwen2-VL's are `[patches, values]`; its kinds of tokens are padded with the tokens."""
    kinds, pixels = torch.tensor([[0, 1, 1, 0]]), torch.ones(1, 4)
    seen = batch([4, 5, 6, 7], [0, 1, 2, 3]) | {"mm_token_type_ids": kinds, "pixel_values": pixels}
    inputs = prepare_micro_batch(seen, CPU, multiple=3).inputs
    assert inputs["pixel_values"].shape == (1, 4)
    assert inputs["mm_token_type_ids"].tolist() == [[0, 1, 1, 0, 0, 0]]


def test_text_with_kinds_of_tokens_keeps_its_mask():
    """Gemma 3 makes its mask from them, and asks for them in training without an image too."""
    kinds = {"token_type_ids": torch.zeros(1, 4, dtype=torch.long)}
    inputs = prepare_micro_batch(batch([4, 5, 6, 7], [0, 1, 2, 3]) | kinds, CPU).inputs
    assert {"attention_mask", "token_type_ids"} <= set(inputs)
