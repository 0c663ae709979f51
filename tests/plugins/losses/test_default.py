"""The loss of a run that names none."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_core.errors import UserError
from automodel_core.train.precision import plan_precision
from automodel_core.train.step import Objective
from automodel_core.train.world import World
from automodel_losses.cross_entropy import CrossEntropy
from automodel_losses.fused_linear_ce import FusedLinearCrossEntropy

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


class Tempered(LlamaForCausalLM):
    """Does something to its logits that nobody was told of."""

    def forward(self, input_ids, use_cache=False, **named):
        output = super().forward(input_ids=input_ids, use_cache=use_cache, **named)
        output.logits = output.logits + 0.1 * output.logits.roll(1, -1)
        return output


def micro_batch():
    tokens = torch.randint(50, (2, 200), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[:, :120] = -100
    return {
        "input_ids": tokens,
        "labels": labels,
        "attention_mask": torch.ones_like(tokens),
        "position_ids": torch.arange(200).expand(2, -1),
    }


@pytest.mark.parametrize(("kind", "rows"), [(LlamaForCausalLM, 256), (Tempered, None)])
def test_it_is_the_models_own_cross_entropy_by_the_fastest_way_there_is(kind, rows):
    torch.manual_seed(0)
    model = kind(LlamaConfig(**SMALL))
    precision = plan_precision(torch.float32, CPU)
    objective = Objective.of(model, model, CrossEntropy(), precision, CPU, World())
    batch = micro_batch()
    ready = objective.prepare(batch)
    assert rows == (None if ready.rows is None else len(ready.rows))
    loss = objective.loss_sum(ready)
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(loss, expected)


def test_a_loss_that_was_asked_for_is_never_replaced():
    model = Tempered(LlamaConfig(**SMALL))
    precision = plan_precision(torch.float32, CPU)
    with pytest.raises(UserError, match="Tempered"):
        Objective.of(model, model, FusedLinearCrossEntropy(), precision, CPU, World())
