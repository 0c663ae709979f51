"""Which sample, and of which source, the tokens of a batch are."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automodel_core.errors import UserError
from automodel_core.train.data import as_dealt
from automodel_core.train.packing import PackedDataset
from automodel_core.train.samples import Sources, members, sample_of_tokens
from automodel_datasets.collate import default_collater


class Mixed(list):
    """Samples whose source is told by their number."""

    sources = ("even", "odd")

    def source_of(self, index: int) -> str:
        return self.sources[index % 2]


@st.composite
def data_sets(draw) -> Mixed:
    """Every token of sample i is i, and some are learned."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    masks = [draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in lengths]
    return Mixed(
        {"input_ids": [i] * n, "labels": [i if on else -100 for on in mask]}
        for i, (n, mask) in enumerate(zip(lengths, masks, strict=True))
    )


@given(data_sets(), st.booleans(), st.sampled_from(["left", "right"]))
def test_batches_carry_the_numbers_of_their_samples(data, packed, side):
    """Each token knows its own, and labels are counted by source as they lie in the data set."""
    dataset = (
        PackedDataset.plan(data, 12, seed=0, path=(), collate=default_collater) if packed else data
    )
    indices = range(len(dataset))
    batch = default_collater([dataset[i] for i in indices], padding_side=side)
    batch = as_dealt(batch, dataset, indices)
    assert batch["sample_id"].tolist() == members(dataset, indices)
    real = batch["attention_mask"] != 0
    assert torch.equal(sample_of_tokens(batch)[real], batch["input_ids"][real])
    expected = {"even": 0, "odd": 0}
    for number, sample in enumerate(data):
        # Nothing predicts a first token.
        learned = sum(label != -100 for label in sample["labels"][1:])
        expected[data.source_of(number)] += learned
    assert Sources.of(dataset).learned([batch]) == expected


def test_a_sample_may_hold_documents_of_its_own():
    row = {"input_ids": [7, 7, 7], "labels": [7, 7, 7], "position_ids": [0, 1, 0]}
    batch = as_dealt(default_collater([row, row]), [row] * 5, [4, 2])
    assert sample_of_tokens(batch).tolist() == [[4] * 3, [2] * 3]


def test_a_rank_without_a_sample_learns_nothing_of_what_it_is_given():
    data = Mixed({"input_ids": [i, i], "labels": [i, i]} for i in range(2))
    batch = as_dealt(default_collater([data[0]]), data, [])
    assert Sources.of(data).learned([batch]) == {"even": 0, "odd": 0}


def test_a_collator_that_mingles_the_samples_of_a_mixture_is_refused():
    data = Mixed({"input_ids": [i, i], "labels": [i, i]} for i in range(2))

    def mingled(samples):
        ids = np.concatenate([each["input_ids"] for each in samples]).tolist()
        return default_collater([{"input_ids": ids, "labels": ids}])

    batch = as_dealt(mingled(data), data, [0, 1])
    with pytest.raises(UserError, match="1 rows for 2 samples"):
        Sources.of(data).learned([batch])
    assert Sources.of(list(data)).learned([batch]) == {}
