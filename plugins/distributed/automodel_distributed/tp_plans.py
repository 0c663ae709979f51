"""Which linear layers of a model are cut, and which way: the plans of tensor parallelism.

A plan maps patterns of module names to styles. Megatron-LM's pairs (Shoeybi et al. 2019,
https://arxiv.org/abs/1909.08053): a linear layer cut by its output features (`colwise`) feeds one
cut by its input features (`rowwise`), so that one sum over the ranks is needed per pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import attrs
from torch import nn
from transformers import PreTrainedModel

from automodel_core.errors import UserError

Plan = Mapping[str, str]

# The styles by their names in a plan, transformers' older names included.
STYLES: Mapping[str, str] = {
    "colwise": "colwise",
    "rowwise": "rowwise",
    "colwise_gather_output": "colwise_gather_output",
    "colwise_rep": "colwise_gather_output",
    "rowwise_split_input": "rowwise_split_input",
    "rowwise_rep": "rowwise_split_input",
    "embedding_rowwise": "embedding",
    "replicated_with_grad_allreduce": "heads",
}

ATTENTION: Plan = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
}
# Norms of each head's queries and keys: every rank has other heads, and one set of weights.
HEAD_NORMS: Plan = {
    "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
    "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
}
GATED_MLP: Plan = {
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}
# One matrix makes queries, keys and values, and its rows can't be cut into whole heads of each: its
# output is gathered, and every rank computes all of attention and of the gated product.
FUSED: Plan = {
    "layers.*.self_attn.qkv_proj": "colwise_gather_output",
    "layers.*.self_attn.o_proj": "rowwise_split_input",
    "layers.*.mlp.gate_up_proj": "colwise_gather_output",
    "layers.*.mlp.down_proj": "rowwise_split_input",
}
BEFORE = ("input_layernorm", "post_attention_layernorm")
AROUND = (*BEFORE, "pre_feedforward_layernorm", "post_feedforward_layernorm")


@attrs.frozen
class Shape:
    """What is known, and tested, of a kind of model.

    Attributes:
        plan: Names are those inside its base model.
        norms: The norms of a layer, which sequence parallelism shares.
    """

    plan: Plan
    norms: tuple[str, ...]


TABLE: Mapping[str, Shape] = {
    "llama": Shape({**ATTENTION, **GATED_MLP}, BEFORE),
    "mistral": Shape({**ATTENTION, **GATED_MLP}, BEFORE),
    "qwen2": Shape({**ATTENTION, **GATED_MLP}, BEFORE),
    "qwen3": Shape({**ATTENTION, **HEAD_NORMS, **GATED_MLP}, BEFORE),
    "gemma": Shape({**ATTENTION, **GATED_MLP}, BEFORE),
    "gemma2": Shape({**ATTENTION, **GATED_MLP}, AROUND),
    "gemma3_text": Shape({**ATTENTION, **HEAD_NORMS, **GATED_MLP}, AROUND),
    "phi3": Shape(FUSED, BEFORE),
}

EXAMPLE = "{'*.q_proj': colwise, '*.k_proj': colwise, '*.v_proj': colwise, '*.o_proj': rowwise}"


def known_shape(model: PreTrainedModel) -> Shape | None:
    """What the table has on this model."""
    return TABLE.get(model.config.model_type)


def plan_for(model: PreTrainedModel, written: Plan | None) -> dict[str, str]:
    """The style of every module that tensor parallelism changes, by its whole name.

    Args:
        model: May be without weights.
        written: The YAML's `tp_plan`, which goes before all else; then comes the table, then what
            the model's authors say (`_tp_plan`).

    Raises:
        UserError: There is no plan, or it has a style or a pattern that means nothing here.
    """
    if written is not None:
        return _expanded(model, written, must_match=True)
    shape, prefix = known_shape(model), _prefix(model)
    plan = shape.plan if shape else getattr(model.config, "base_model_tp_plan", None)
    if not plan:
        raise UserError(
            f"How to cut the layers of a {type(model).__name__} isn't known: it has no plan of "
            "its own, and none is in the table.",
            fix=f"write distributed.tp_plan: {EXAMPLE}, and its feed-forward layers likewise",
            argument="tp_size",
        )
    head = {name: "colwise_gather_output" for name in _head_names(model)}
    embeddings = {name: "embedding_rowwise" for name in _embedding_names(model)}
    named = {prefix + pattern: style for pattern, style in plan.items()}
    return _expanded(model, embeddings | head | named, must_match=False)


def with_sharded_head(model: PreTrainedModel, plan: Plan) -> dict[str, str]:
    """The plan with output embeddings that leave their logits sharded over the vocabulary, where
    it cuts them that way; who wants whole logits has them gathered after."""
    heads = [name for name in _head_names(model) if plan.get(name, "").startswith("colwise")]
    return {**plan, **dict.fromkeys(heads, "colwise_leave_output")}


def check_divisible(model: PreTrainedModel, plan: Plan, tp_size: int) -> None:
    """Refuse heads and features that can't be dealt evenly.

    Raises:
        UserError: With the arithmetic.
    """
    config = model.config.get_text_config()
    cut = {name.rpartition(".")[2] for name, style in plan.items() if style == "colwise"}
    for projection, counted in (("q_proj", "attention"), ("k_proj", "key_value")):
        heads = getattr(config, f"num_{counted}_heads", None)
        if projection in cut and heads is not None and heads % tp_size:
            raise _uneven(f"num_{counted}_heads", heads, tp_size)
    for name, style in plan.items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear) and style in ("colwise", "rowwise"):
            side = "out_features" if style == "colwise" else "in_features"
            if getattr(module, side) % tp_size:
                raise _uneven(f"{side} of {name}", getattr(module, side), tp_size)


def _uneven(what: str, count: int, tp_size: int) -> UserError:
    return UserError(
        f"tp_size {tp_size} doesn't divide {what}: {count} / {tp_size} leaves a rest of "
        f"{count % tp_size}.",
        fix=f"write a tp_size that divides {count}",
        argument="tp_size",
    )


def _prefix(model: PreTrainedModel) -> str:
    base = model.base_model
    return next((f"{name}." for name, module in model.named_modules() if module is base), "")


def _head_names(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head]


def _embedding_names(model: PreTrainedModel) -> list[str]:
    embeddings = model.get_input_embeddings()
    return [name for name, module in model.named_modules() if module is embeddings]


def _expanded(model: PreTrainedModel, plan: Plan, *, must_match: bool) -> dict[str, str]:
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, str] = {}
    for pattern, style in plan.items():
        if style not in STYLES:
            raise UserError(
                f"The plan's style {style} for {pattern} isn't one that this version has.",
                fix=f"use one of {', '.join(STYLES)}",
                argument="tp_plan" if must_match else "tp_size",
            )
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if must_match and not matching:
            raise UserError(
                f"No module of this model is meant by {pattern}.",
                fix="write whole dotted names; `*` stands for any text",
                argument="tp_plan",
            )
        found |= {name: STYLES[style] for name in matching}
    return found
