import torch

from automodel_core.train.step import prepare_micro_batch, shift_labels


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


def test_supervised_tokens_are_counted_after_the_shift():
    ready = prepare_micro_batch(batch([4, 5, -100, 7], [0, 1, 2, 3]), torch.device("cpu"))
    assert (ready.label_tokens, ready.tokens, ready.samples) == (2, 4, 1)
    assert set(ready.inputs) == {"input_ids", "position_ids", "attention_mask"}
