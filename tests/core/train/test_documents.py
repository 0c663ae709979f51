"""Where documents begin, as attention without a dense mask is told it."""

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from automodel_core.config.schema import Compile
from automodel_core.train.compiling import Compilation
from automodel_core.train.documents import (
    BLOCK,
    document_blocks,
    document_bounds,
    sees_all_before,
    teller,
)
from automodel_core.train.step import prepare_micro_batch
from automodel_models.attention import register_flex

CPU = torch.device("cpu")
LENGTH = 3 * BLOCK + 64
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def packed(*rows: list[int], length: int = LENGTH) -> dict[str, torch.Tensor]:
    """A batch of documents of these lengths, padded on the right."""
    filled = [[i for document in row for i in range(document)] for row in rows]
    batch = {
        "position_ids": torch.tensor([each + [0] * (length - len(each)) for each in filled]),
        "attention_mask": torch.tensor([[1] * len(e) + [0] * (length - len(e)) for e in filled]),
    }
    ids = torch.randint(1, 64, (len(rows), length), generator=torch.Generator().manual_seed(0))
    return batch | {"input_ids": ids, "labels": ids.clone()}


def of_a_kind(counts: torch.Tensor, order: torch.Tensor) -> list[set[int]]:
    """The blocks that a block looks at, without their order."""
    pairs = zip(counts.flatten().tolist(), order.flatten(0, -2).tolist(), strict=True)
    return [set(columns[:count]) for count, columns in pairs]


@pytest.mark.parametrize(
    "rows",
    [[[448]], [[100, 28, 128, 192], [300]], [[1, 127, 129, 128]], [[7] * 60, [256, 130]], [[5]]],
    ids=str,
)
def test_blocks_are_those_that_all_pairs_of_tokens_give(rows):
    batch = packed(*rows)
    mask = document_blocks(batch, lambda each: each)["attention_mask"]
    # Padding, of position 0, is in documents of its own.
    document = (batch["position_ids"] == 0).cumsum(1)

    def visible(row, head, query, key):
        return (query >= key) & (document[row, query] == document[row, key])

    whole = create_block_mask(visible, len(rows), None, LENGTH, LENGTH, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, order = f"{name}_num_blocks", f"{name}_indices"
        found = of_a_kind(getattr(mask, counts), getattr(mask, order))
        assert found == of_a_kind(getattr(whole, counts), getattr(whole, order)), name
        assert getattr(mask, order).shape == getattr(whole, order).shape
        assert getattr(mask, order).dtype == torch.int32
        assert getattr(mask, order).is_contiguous(), "FlexAttention's kernels take it for granted"
    row, query, key = torch.meshgrid(
        torch.arange(len(rows)), torch.arange(LENGTH), torch.arange(LENGTH), indexing="ij"
    )
    assert torch.equal(mask.mask_mod(row, 0, query, key), visible(row, 0, query, key))


def test_positions_that_begin_nowhere_are_left_to_transformers():
    batch = packed([448])
    batch["position_ids"] += 3
    assert document_blocks(batch, lambda each: each) == {}
    prepared = prepare_micro_batch(batch, CPU, documents=document_blocks)
    assert "attention_mask" in prepared.inputs


def test_padding_behind_a_document_is_one_more_and_not_one_for_each_token():
    batch = packed([100, 200, 148], [30, 40, 50, 60, 70])
    told = document_bounds(batch, lambda each: each)["cu_seq_lens_q"]
    assert told.tolist() == [0, 100, 300, 448, 478, 518, 568, 628, 698, 896]


@pytest.mark.parametrize(
    ("rows", "documents"), [([[448]], 8), ([[56] * 8], 8), ([[7] * 60], 64), ([[100] * 4], 8)]
)
def test_rounded_up_documents_end_in_some_of_no_length(rows, documents):
    batch = packed(*rows)
    told = document_bounds(batch, lambda each: each)["cu_seq_lens_q"]
    more = document_bounds(batch, lambda each: each, rounded=True)["cu_seq_lens_q"]
    assert len(more) == documents + 1
    assert torch.equal(more[: len(told)], told)
    assert more[len(told) :].eq(LENGTH).all()


def test_only_layers_that_see_all_before_are_told():
    assert sees_all_before(LlamaConfig(**SHAPE))
    assert sees_all_before(Qwen3Config(**SHAPE))
    assert sees_all_before(MistralConfig(**SHAPE, sliding_window=None))
    assert not sees_all_before(MistralConfig(**SHAPE, sliding_window=128))
    assert not sees_all_before(Gemma3TextConfig(**SHAPE))


def test_layers_are_compiled_once_for_any_documents_and_follow_plain_attention():
    """Forward only, which is all that flex attention does on a CPU."""
    torch.manual_seed(0)
    register_flex()
    plain = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    model.load_state_dict(plain.state_dict())
    assert teller(model) is None
    model.set_attn_implementation("flex_attention")
    assert teller(model) is document_blocks
    drawn, compilation = np.random.default_rng(0), Compilation(Compile(backend="eager"))
    batches = [packed([LENGTH], [LENGTH])]
    for documents in range(1, 10):
        longest = LENGTH // documents
        batches.append(packed(*drawn.integers(longest // 2, longest, (2, documents)).tolist()))
    with torch.no_grad(), compilation.layers_of(model.eval(), deterministic=False):
        for batch in batches:
            inputs = prepare_micro_batch(batch, CPU, documents=document_blocks).inputs
            found = model(**inputs, use_cache=False).logits
            compilation.step_done()
            told = {name: batch[name] for name in ("input_ids", "position_ids")}
            expected = plain.eval()(**told, use_cache=False).logits
            real = batch["attention_mask"].bool()
            assert torch.allclose(found[real], expected[real], atol=1e-5)
    assert (compilation.graphs, compilation.recompiles) == (1, 0)
