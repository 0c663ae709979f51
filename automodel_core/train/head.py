"""A model in two parts, for losses on hidden states: what makes those, and the head after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from automodel_core.errors import UserError


class Split(NamedTuple):
    """A model up to its output embeddings, and from there on.

    Attributes:
        backbone: From the model's inputs to the last hidden states `[batch, sequence, hidden]`.
        head: From hidden states `[..., hidden]` to logits `[..., vocabulary]`.
    """

    backbone: Callable[..., torch.Tensor]
    head: Callable[[torch.Tensor], torch.Tensor]


def split_head(model: PreTrainedModel) -> Split:
    """Cut a model before its output embeddings.

    The head does what transformers' models do after them: Cohere multiplies the logits
    (`logit_scale`), Falcon-H1 too (`lm_head_multiplier`), Granite divides them (`logits_scaling`),
    and Gemma caps them as `cap * tanh(logits / cap)` (`final_logit_softcapping`, section 2 of
    https://arxiv.org/abs/2408.00118). `check_head` finds out whether that was all.

    Raises:
        UserError: The model has no base model, or no output embeddings, of its own.
    """
    base, embeddings = model.base_model, model.get_output_embeddings()
    if base is model or embeddings is None:
        raise _cannot_split(model, "its output embeddings don't stand apart")
    config = model.config.get_text_config()
    factor = (getattr(config, "logit_scale", None) or 1.0) * (
        getattr(config, "lm_head_multiplier", None) or 1.0
    )
    divisor = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)

    def backbone(**inputs: torch.Tensor) -> torch.Tensor:
        return base(**inputs, use_cache=False).last_hidden_state

    def head(hidden_states: torch.Tensor) -> torch.Tensor:
        logits = embeddings(hidden_states)
        if (factor, divisor) != (1.0, 1.0):
            logits = logits * factor / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return Split(backbone, head)


@torch.no_grad()
def check_head(
    model: PreTrainedModel, split: Split, one_pass: Callable[[Callable], Callable] = lambda f: f
) -> None:
    """Compare the parts with the whole on eight tokens.

    Args:
        model: The whole.
        split: The parts.
        one_pass: Makes a function of the parts a forward pass of a model that is spread over ranks.

    Raises:
        UserError: The model does something between its hidden states and its logits that
            `split_head` doesn't know of.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = (torch.arange(8, device=model.device) % vocabulary)[None]
    was_training = model.training
    model.eval()
    try:
        whole = one_pass(lambda ids: model(input_ids=ids, use_cache=False).logits)(tokens)
        parts = one_pass(lambda ids: split.head(split.backbone(input_ids=ids)))(tokens)
    finally:
        model.train(was_training)
    tolerance = 4 * torch.finfo(whole.dtype).eps * whole.abs().max()
    if whole.shape != parts.shape or not (whole - parts).abs().max() <= tolerance:
        raise _cannot_split(model, "it changes its logits in a way of its own")


def _cannot_split(model: PreTrainedModel, why: str) -> UserError:
    return UserError(
        f"{type(model).__name__} can't be trained from its hidden states: {why}.",
        fix="write loss_fn: {_target_: masked_ce}, which takes the model's own logits",
        path=("loss_fn",),
    )
