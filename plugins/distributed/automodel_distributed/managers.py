"""The managers of the `distributed:` section. In one process each of them leaves the model alone.

A file written for many devices runs on one as it stands, if its sizes are 1 or left to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar, Literal, TypeVar

import attrs
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from automodel_core.errors import UserError
from automodel_core.protocols import Precision, Sizes
from automodel_distributed.clipping import clip_gradients
from automodel_distributed.context_parallel import (
    TokenLosses,
    on_a_part,
    part_of,
    use_shared_attention,
)
from automodel_distributed.data_parallel import replicate
from automodel_distributed.fully_sharded import as_forward, set_reduction, shard
from automodel_distributed.meshes import copies_and_shards_of, shards_of
from automodel_distributed.sizes import check_size, mesh_sizes
from automodel_distributed.tensor_parallel import parallelize_layers
from automodel_distributed.unsharded import Groups, sum_gradients

T = TypeVar("T")


@attrs.define
class DDPManager:
    """The whole model on every rank, the gradients averaged over all of them."""

    sequence_multiple: ClassVar[int] = 1
    before_weights: ClassVar[bool] = False
    offloads: ClassVar[bool] = False

    def sizes(self, world_size: int) -> Sizes:
        return Sizes(dp_replicate=world_size, dp_shard=1, cp=1, tp=1)

    def parallelize(
        self, model: PreTrainedModel, mesh: DeviceMesh | None, precision: Precision
    ) -> nn.Module:
        if mesh is None:
            return model
        return replicate(model, mesh["dp_replicate"].get_group())

    def one_pass(self, model: nn.Module, compute: Callable[..., T]) -> Callable[..., T]:
        if not isinstance(model, DistributedDataParallel):
            return compute

        def run(*inputs: object, **named: object) -> T:
            return model(*inputs, compute=compute, **named)

        return run

    def gradient_divisor(self, mesh: DeviceMesh) -> int:
        return mesh.size()

    def micro_batch(self, model: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        if last or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> torch.Tensor:
        return clip_gradients(parameters, max_norm)


@attrs.define
class FSDP2Manager:
    """Fully sharded data parallelism, with tensor and context parallelism inside it.

    Args:
        dp_size: Data-parallel ranks; none takes all that the other sizes leave.
        dp_replicate_size: Groups of ranks that each hold the whole model; a divisor of dp_size.
        tp_size: Ranks that share every layer (tensor parallelism).
        cp_size: Ranks that share every sequence (context parallelism).
        sequence_parallel: Also share norms and dropout over the tensor-parallel ranks.
        tp_plan: How linear layers are cut for tensor parallelism, `{pattern: colwise | rowwise}`;
            patterns match whole dotted names. Left out, the plan for the model's kind is used.
        reshard_after_forward: Free each layer after its forward pass and gather it again in the
            backward pass; false needs more memory and sends less. auto is false where the layers
            take no more than 1/32 of a GPU's memory.
        cpu_offload: Keep parameters, gradients and optimizer state in the host's memory.
    """

    dp_size: int | None = None
    dp_replicate_size: int = 1
    tp_size: int = 1
    cp_size: int = 1
    sequence_parallel: bool = False
    tp_plan: dict[str, str] | None = None
    reshard_after_forward: bool | Literal["auto"] = "auto"
    cpu_offload: bool = False

    before_weights: ClassVar[bool] = True

    _sums: bool = attrs.field(init=False, default=False, eq=False, repr=False)
    _groups: Groups = attrs.field(init=False, default=(), eq=False, repr=False)
    _sharded: bool = attrs.field(init=False, default=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for name in ("dp_size", "dp_replicate_size", "tp_size", "cp_size"):
            check_size(name, getattr(self, name))
        for argument in ("sequence_parallel", "tp_plan"):
            if getattr(self, argument) and self.tp_size == 1:
                raise UserError(
                    f"{argument} belongs to tensor parallelism, and tp_size is 1.",
                    fix="leave it out, or write a tp_size above 1",
                    argument=argument,
                )

    @property
    def sequence_multiple(self) -> int:
        chunks = 2 * self.cp_size if self.cp_size > 1 else 1
        return chunks * (self.tp_size if self.sequence_parallel else 1)

    @property
    def offloads(self) -> bool:
        return self.cpu_offload

    def sizes(self, world_size: int) -> Sizes:
        return mesh_sizes(
            world_size,
            dp_size=self.dp_size,
            dp_replicate_size=self.dp_replicate_size,
            tp_size=self.tp_size,
            cp_size=self.cp_size,
        )

    def parallelize(
        self, model: PreTrainedModel, mesh: DeviceMesh | None, precision: Precision
    ) -> nn.Module:
        if mesh is None:
            return model
        if mesh["cp"].size() > 1:
            use_shared_attention(model)
        copies, shards = mesh["dp_replicate"], shards_of(mesh)
        spread = copies.size() * shards.size() > 1
        if mesh["tp"].size() > 1:
            parallelize_layers(
                model, mesh["tp"], self.tp_plan, sequence_parallel=self.sequence_parallel
            )
        self._sums = precision.frozen is not None or not spread
        if self._sums:
            self._groups = tuple(each.get_group() for each in (shards, copies) if each.size() > 1)
        if spread:
            self._sharded = shards.size() > 1
            shard(
                model,
                copies_and_shards_of(mesh),
                precision,
                replicated=_trainable(model) if self._sums else (),
                reshard_after_forward=self.reshard_after_forward,
                cpu_offload=self.cpu_offload,
            )
        return model

    def one_pass(self, model: nn.Module, compute: Callable[..., T]) -> Callable[..., T]:
        return as_forward(model, compute) if isinstance(model, FSDPModule) else compute

    def part(self, whole: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
        return part_of(whole, mesh["cp"].get_group())

    def on_a_part(self, token_losses: TokenLosses, mesh: DeviceMesh) -> TokenLosses:
        return on_a_part(token_losses, mesh["cp"].get_group())

    def gradient_divisor(self, mesh: DeviceMesh) -> int:
        return 1

    @contextmanager
    def micro_batch(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        if isinstance(model, FSDPModule):
            set_reduction(model, last=last, sharded=self._sharded)
        yield
        if last and self._sums:
            # Not those that `parallelize` saw: reading weights replaces parameters on meta.
            sum_gradients(_trainable(model), self._groups)

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> torch.Tensor:
        return clip_gradients(parameters, max_norm)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
