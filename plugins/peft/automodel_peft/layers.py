"""Frozen layers with a low-rank update beside them.

A layer is adapted where it stands: it becomes an instance of a class made of its own and one from
here, as torch.nn.utils.parametrize does. Its parameters keep their names, its hooks and whoever
holds a reference to it keep working, and what its own class does (scaled embeddings, quantised
products) still happens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from automodel_peft.candidates import in_and_out
from automodel_peft.choice import INTERPRETED, refused
from automodel_peft.lean_linear import METHODS, lora_linear
from automodel_peft.low_rank import add_low_rank


@attrs.frozen(kw_only=True)
class LayerSettings:
    """What one layer is adapted with.

    Attributes:
        rank: Of the update.
        alpha: As the YAML gives it; files record it.
        scale: What the update is multiplied by, from alpha and rank.
        dropout: Probability that an input of the update is dropped, while training.
        dtype: Of the new parameters.
        seed: Of their first values.
        method: How a linear layer computes: of `lean_linear.METHODS`, or `plain` for the update
            beside whatever the frozen layer does.
        demanded: Whether the YAML demands that method, so that nothing else will do.
    """

    rank: int
    alpha: float
    scale: float
    dropout: float
    dtype: torch.dtype
    seed: int
    method: str = "plain"
    demanded: bool = False


class AdaptedLayer(nn.Module):
    """What every adapted layer has; mixed in before the layer's own class.

    Attributes:
        stored: What a file calls its tensors, without the layer's name -> the parameter.
        starts_from_weights: Whether `adapt` reads the layer's own weight, which must have values
            then; otherwise it may be on the meta device, and be filled after.
        settings: What it was adapted with.
    """

    stored: ClassVar[Mapping[str, str]]
    starts_from_weights: ClassVar[bool] = False
    settings: LayerSettings

    def adapt(self, settings: LayerSettings) -> None:
        """Add the new parameters; the layer computes what it did before."""
        self.settings = settings
        scale = torch.tensor(settings.scale, device=device_beside(self))
        self.register_buffer("lora_scale", scale, persistent=False)

    @classmethod
    def parameters_needed(cls, features_in: int, features_out: int, rank: int) -> int:
        """How many parameters `adapt` adds that train."""
        return rank * (features_in + features_out)

    def trained_factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The two parameters of the update, first A and then B."""
        raise NotImplementedError

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[rank, features_in]` and B `[features_out, rank]`; the update is `scale * B A`."""
        return self.trained_factors()

    @property
    def stored_rank(self) -> int:
        """The rank of the update in a file."""
        return self.settings.rank

    @property
    def stored_alpha(self) -> float:
        """The alpha that belongs to `stored_rank`."""
        return self.settings.alpha

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """What a file holds of this layer."""
        return {name: getattr(self, parameter) for name, parameter in self.stored.items()}

    def load_stored(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `stored_tensors` gave; names and shapes are checked before."""
        for name, parameter in self.stored.items():
            getattr(self, parameter).data.copy_(tensors[name])

    def unused(self) -> bool:
        """Whether the update is still zero, because one of its factors is."""
        return not all(factor.detach().any() for factor in self.factors())


class LoraLinear(AdaptedLayer):
    """`W x + b + scale * B A x`. A starts uniform, as torch.nn.Linear does, and B at zero."""

    stored: ClassVar[Mapping[str, str]] = {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B"}

    def adapt(self, settings: LayerSettings) -> None:
        super().adapt(settings)
        features_in, features_out = in_and_out(self)
        a = torch.empty(settings.rank, features_in, device="cpu")  # the same on every device
        generator = torch.Generator("cpu").manual_seed(settings.seed)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        b = torch.zeros(features_out, settings.rank, device="cpu")
        self.lora_A = new_parameter(a, self, settings)
        self.lora_B = new_parameter(b, self, settings)
        # Quantised layers and those of remote classes have products of their own.
        own = getattr(super().forward, "__func__", None)
        self.lora_method = settings.method if own is nn.Linear.forward else "plain"

    def trained_factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        return self.lora_A, self.lora_B

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., features_in]` to `[..., features_out]`."""
        dropout = self.settings.dropout if self.training else 0.0
        if self.lora_method != "plain" and not dropout:
            reason = unfit(self, x, self.lora_method)
            if not reason:
                frozen, factors = (self.weight, self.bias), self.factors()
                return lora_linear(x, *frozen, factors, self.lora_scale, self.lora_method)
            if self.settings.demanded:
                raise refused(reason)
        return add_low_rank(super().forward(x), x, self.factors(), self.lora_scale, dropout)


class LoraEmbedding(AdaptedLayer):
    """`W[i] + scale * A^T[i] B^T`. A starts at zero and B normal, as in Microsoft's LoRA."""

    stored: ClassVar[Mapping[str, str]] = {
        "lora_embedding_A": "lora_embedding_A",
        "lora_embedding_B": "lora_embedding_B",
    }

    def adapt(self, settings: LayerSettings) -> None:
        super().adapt(settings)
        vocabulary, features = in_and_out(self)
        generator = torch.Generator("cpu").manual_seed(settings.seed)
        b = torch.randn(features, settings.rank, generator=generator, device="cpu")
        zero = torch.zeros(settings.rank, vocabulary, device="cpu")
        self.lora_embedding_A = new_parameter(zero, self, settings)
        self.lora_embedding_B = new_parameter(b, self, settings)

    def trained_factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        return self.lora_embedding_A, self.lora_embedding_B

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """`[...]` to `[..., features]`. Dropout is for inputs, and token ids are none."""
        output = super().forward(token_ids)
        a, b = self.factors()
        reduced = functional.embedding(token_ids, a.t(), self.padding_idx).to(output.dtype)
        update = reduced @ b.t().to(output.dtype)
        # Gemma's embeddings multiply what they look up; the update is a part of that.
        multiplier = getattr(self, "embed_scale", None)
        if multiplier is not None:
            update = update * multiplier.to(output.dtype)
        return output + update * self.lora_scale


def adapt_in_place(
    module: nn.Module, kind: type[AdaptedLayer], settings: LayerSettings
) -> AdaptedLayer:
    """Make `module` an adapted layer of that kind."""
    module.__class__ = mixed_with(kind, type(module))
    module.adapt(settings)
    return module


@functools.cache
def mixed_with(kind: type[nn.Module], own: type[nn.Module]) -> type[nn.Module]:
    """The class that is both, and goes by the name of both."""
    return type(f"{kind.__name__}Of{own.__name__}", (kind, own), {"__module__": kind.__module__})


def new_parameter(values: torch.Tensor, beside: nn.Module, settings: LayerSettings) -> nn.Parameter:
    """A parameter of the adapter's dtype, where the layer's weight is."""
    return nn.Parameter(values.to(device=device_beside(beside), dtype=settings.dtype))


def device_beside(module: nn.Module) -> torch.device:
    """Where the layer's weight is; the CPU for a weight without values, since what is added has
    values that would be lost with it."""
    device = module.weight.device
    return torch.device("cpu") if device.type == "meta" else device


def unfit(module: nn.Linear, x: torch.Tensor, method: str) -> str:
    """Why `lora_linear` can't compute this layer here; empty if it can.

    It computes products of plain tensors of one dtype with a frozen weight. What the layer is given
    is known only now: autocast, quantised weights and the device come after `adapt`.
    """
    weight, bias = module.weight, module.bias
    if type(weight) not in (nn.Parameter, torch.Tensor):
        return f"a layer's weight is a {type(weight).__name__}"
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return "a layer that is adapted trains as a whole, too"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast rounds what goes into the layers"
    if x.dtype != weight.dtype:
        return f"a layer of {weight.dtype} is given {x.dtype}"
    if METHODS[method] and x.device.type != "cuda" and not INTERPRETED:
        return f"the model is on the {x.device.type.upper()}"
    return ""


def oriented_weight(module: nn.Module) -> torch.Tensor:
    """The weight as `[features_out, features_in]`, whichever way the layer stores it.

    An embedding is a linear layer from its vocabulary.
    """
    transposed = isinstance(module, Conv1D | nn.Embedding)
    return module.weight.detach().t() if transposed else module.weight.detach()
