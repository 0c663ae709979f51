"""The mock dataset: the same samples each time, of the lengths asked for."""

import pytest
from transformers import LlamaConfig

from automodel_core.errors import UserError
from automodel_datasets.mock import MockDataset


def test_samples_depend_on_their_number_and_the_seed_alone():
    first, again = MockDataset(8, vocabulary=50, seed=1), MockDataset(8, vocabulary=50, seed=1)
    other = MockDataset(8, vocabulary=50, seed=2)
    assert [first[i] for i in range(5)] == [again[i] for i in range(5)]
    assert first[0] != first[1]
    assert first[0] != other[0]


def test_lengths_are_fixed_or_varied():
    fixed = MockDataset(10, 50, vocabulary=9)
    assert {len(fixed[i]["input_ids"]) for i in range(50)} == {10}
    varied = MockDataset(10, 50, shortest=4, vocabulary=9)
    lengths = {len(varied[i]["input_ids"]) for i in range(50)}
    assert min(lengths) >= 4
    assert max(lengths) <= 10
    assert len(lengths) > 3


def test_a_third_or_so_is_prompt_and_the_models_vocabulary_is_kept():
    dataset = MockDataset(100, 3, model_config=LlamaConfig(vocab_size=20))
    labels = dataset[0]["labels"]
    assert labels == [-100] * 30 + dataset[0]["input_ids"][30:]
    assert max(dataset[0]["input_ids"]) < 20


@pytest.mark.parametrize(
    ("keys", "argument"),
    [
        ({"length": 0, "vocabulary": 5}, "length"),
        ({"length": 4, "vocabulary": 5, "samples": 0}, "samples"),
        ({"length": 4}, "vocabulary"),
        ({"length": 4, "vocabulary": 5, "shortest": 5}, "shortest"),
    ],
)
def test_numbers_that_make_no_samples_are_refused(keys, argument):
    with pytest.raises(UserError) as refused:
        MockDataset(**keys)
    assert refused.value.argument == argument
