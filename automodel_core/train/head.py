"""A model in two parts, for losses on hidden states: what makes those, and the head after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import attrs
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from automodel_core.errors import UserError
from automodel_core.vocabulary import leaving_logits_sharded


class Linear(NamedTuple):
    """A head written out: `cap * tanh(scale * (hidden @ weight.T + bias) / cap)`.

    Attributes:
        weight: `[vocabulary, hidden]`, a parameter; a DTensor sharded in dim 0 where ranks share
            the vocabulary.
        bias: `[vocabulary]`, likewise.
        scale: What logits are multiplied by.
        cap: What bounds them, after that.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    cap: float | None


@attrs.frozen
class Head:
    """A function from hidden states `[..., hidden]` to logits `[..., vocabulary]`.

    Attributes:
        embeddings: The model's output embeddings.
        scale: What logits are multiplied by.
        cap: What bounds them, after that.
        leaves_sharded: Whether logits stay as tensor parallelism cuts them, a DTensor.
    """

    embeddings: nn.Module
    scale: float = 1.0
    cap: float | None = None
    leaves_sharded: bool = False

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        compute = self.embeddings
        logits = (leaving_logits_sharded(compute) if self.leaves_sharded else compute)(
            hidden_states
        )
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def linear(self) -> Linear | None:
        """Its parameters as they are now, for losses that do the product themselves.

        None if the output embeddings do more than a product: adapted, quantized, hooked, or cut in
        another way than by the vocabulary. Ask in each forward pass; managers that gather weights
        put others in their place.
        """
        module = self.embeddings
        if type(module) is not nn.Linear or "forward" in vars(module):
            return None
        if isinstance(module.weight, DTensor):
            known = self.leaves_sharded and module.weight.placements == (Shard(0),)
        else:
            hooks = module._forward_hooks or module._forward_pre_hooks
            known = not hooks and type(module.weight.data) is torch.Tensor
        return Linear(module.weight, module.bias, self.scale, self.cap) if known else None


class Split(NamedTuple):
    """A model up to its output embeddings, and from there on.

    Attributes:
        backbone: From the model's inputs to the last hidden states `[batch, sequence, hidden]`.
        head: From there to logits.
    """

    backbone: Callable[..., torch.Tensor]
    head: Head


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

    return Split(backbone, Head(embeddings, factor / divisor, cap))


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
    except (AttributeError, TypeError) as error:
        raise _cannot_split(model, f"its base model can't be called alone ({error})") from None
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
