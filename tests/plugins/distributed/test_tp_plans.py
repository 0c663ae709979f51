"""Where a plan comes from, and what is refused with the reason."""

import attrs
import pytest
import torch
import transformers

from automodel_core.errors import UserError
from automodel_distributed.tensor_parallel import parallelize_layers
from automodel_distributed.tp_plans import TABLE, check_divisible, plan_for
from automodel_peft.dora import Dora
from tests.plugins.distributed.test_parity import assert_same
from tests.plugins.distributed.training import (
    SMALL,
    Case,
    build_mesh,
    build_model,
    train_alone,
    train_spread,
)

LLAMA_PLAN = {
    "*.q_proj": "colwise",
    "*.k_proj": "colwise",
    "*.v_proj": "colwise",
    "*.o_proj": "rowwise",
    "*.gate_proj": "colwise",
    "*.up_proj": "colwise",
    "*.down_proj": "rowwise",
}


def on_meta(family, **config):
    kind = getattr(transformers, f"{family}Config")
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(kind(**(SMALL | config)))


def test_a_plan_names_whole_modules_and_cuts_embeddings_and_head():
    plan = plan_for(on_meta("Llama", num_hidden_layers=1), None)
    layer = "model.layers.0"
    assert plan == {
        "model.embed_tokens": "embedding",
        "lm_head": "colwise_gather_output",
        **{f"{layer}.self_attn.{name}_proj": "colwise" for name in "qkv"},
        f"{layer}.self_attn.o_proj": "rowwise",
        f"{layer}.mlp.gate_proj": "colwise",
        f"{layer}.mlp.up_proj": "colwise",
        f"{layer}.mlp.down_proj": "rowwise",
    }


def test_a_model_that_is_not_in_the_table_brings_its_own_plan():
    assert "granite" not in TABLE
    plan = plan_for(on_meta("Granite"), None)
    assert plan["model.layers.2.self_attn.o_proj"] == "rowwise"


def test_a_written_plan_trains_as_one_process(two_ranks):
    case = Case(steps=3)
    options = {"tp_size": 2, "tp_plan": LLAMA_PLAN}
    assert_same(two_ranks.run(train_spread, case, "FSDP2Manager", options), train_alone(case))


def test_a_models_own_plan_trains_as_one_process(two_ranks):
    case = Case(family="Granite", steps=3)
    spread = two_ranks.run(train_spread, case, "FSDP2Manager", {"tp_size": 2})
    assert_same(spread, train_alone(case))


def test_a_model_without_a_plan_is_refused_with_how_to_write_one():
    with pytest.raises(UserError, match="GPT2LMHeadModel isn't known") as refused:
        plan_for(on_meta("GPT2", n_layer=1), None)
    assert "tp_plan: {'*.q_proj': colwise" in refused.value.fix


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"*.qproj": "colwise"}, "No module of this model is meant by"),
        ({"*.q_proj": "columns"}, "style columns"),
    ],
)
def test_a_written_plan_that_means_nothing_is_refused(plan, message):
    with pytest.raises(UserError, match=message) as refused:
        plan_for(on_meta("Llama"), plan)
    assert refused.value.argument == "tp_plan"


@pytest.mark.parametrize(
    ("config", "tp_size", "message"),
    [
        ({}, 3, "num_attention_heads: 4 / 3 leaves a rest of 1"),
        ({}, 4, "num_key_value_heads: 2 / 4 leaves a rest of 2"),
        ({"intermediate_size": 49}, 2, r"gate_proj: 49 / 2 leaves a rest of 1"),
    ],
)
def test_what_cannot_be_dealt_evenly_is_refused_with_the_arithmetic(config, tp_size, message):
    model = on_meta("Llama", **config)
    with pytest.raises(UserError, match=message) as refused:
        check_divisible(model, plan_for(model, None), tp_size)
    assert refused.value.argument == "tp_size"


def refusal(what):
    """The message of a refusal, from a group of one."""
    from automodel_distributed.managers import FSDP2Manager

    mesh = build_mesh(FSDP2Manager().sizes(1))["tp"]
    if what == "dora":
        model = build_model(Case())
        Dora(dim=4).apply(model)
        arguments = {"written": None, "sequence_parallel": False}
    elif what == "conv1d":
        model = build_model(Case(family="GPT2"))
        arguments = {"written": {"*.c_attn": "colwise"}, "sequence_parallel": False}
    else:
        model = build_model(Case())
        arguments = {"written": LLAMA_PLAN, "sequence_parallel": True}
    with pytest.raises(UserError) as refused:
        parallelize_layers(model, mesh, **arguments)
    return refused.value.message


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("dora", "can't be cut: tensor parallelism knows LoRA's two factors"),
        ("conv1d", "is a Conv1D, and colwise is for Linear"),
        ("written", "Which norms of a LlamaForCausalLM sequence parallelism may share"),
    ],
)
def test_what_tensor_parallelism_does_not_know_is_refused_by_name(one_rank, what, message):
    assert message in one_rank.run(refusal, what)[0]


def test_a_vocabulary_that_cannot_be_dealt_evenly_trains_as_one_process(two_ranks):
    case = attrs.evolve(Case(steps=3), config={"vocab_size": 97, "tie_word_embeddings": True})
    spread = two_ranks.run(train_spread, case, "FSDP2Manager", {"tp_size": 2})
    assert_same(spread, train_alone(case))
