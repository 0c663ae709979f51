"""nvFSDP: NVIDIA's fully sharded data parallelism, which is now the package `megatron-fsdp`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import attrs
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from automodel_core.errors import UserError
from automodel_core.layers import layer_lists
from automodel_core.protocols import Precision, Sizes
from automodel_distributed.clipping import clip_gradients
from automodel_distributed.data_parallel import Replica
from automodel_distributed.sizes import check_size, mesh_sizes

T = TypeVar("T")


@attrs.define
class NvFSDPManager:
    """Fully sharded data parallelism by `megatron-fsdp`, on NVIDIA GPUs.

    Parameters, gradients and optimizer state are sharded (its strategy `optim_grads_params`);
    gradients are summed in float32.

    Args:
        dp_size: Data-parallel ranks; none takes all that the other sizes leave.
        tp_size: Tensor parallelism, which only fsdp2 has; 1.
        cp_size: Context parallelism, which only fsdp2 has; 1.
    """

    dp_size: int | None = None
    tp_size: int = 1
    cp_size: int = 1

    sequence_multiple: ClassVar[int] = 1
    before_weights: ClassVar[bool] = False
    offloads: ClassVar[bool] = False
    compiles: ClassVar[bool] = False

    _stepped: bool = attrs.field(init=False, default=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for name in ("dp_size", "tp_size", "cp_size"):
            check_size(name, getattr(self, name))
        for name, what in (("tp_size", "tensor"), ("cp_size", "context")):
            if getattr(self, name) > 1:
                raise UserError(
                    f"The nvfsdp manager has no {what} parallelism.",
                    fix=f"write {name}: 1, or _target_: fsdp2",
                    argument=name,
                )
        if importlib.util.find_spec("megatron_fsdp") is None:
            raise UserError(
                "nvFSDP is the package megatron-fsdp, which isn't installed.",
                fix="pip install megatron-fsdp, or write _target_: fsdp2",
                argument="_target_",
            )
        if not torch.cuda.is_available():
            raise UserError(
                "nvFSDP (megatron-fsdp) needs NVIDIA GPUs, and PyTorch sees none.",
                fix="write _target_: fsdp2, which runs on CPUs too",
                argument="_target_",
            )

    def sizes(self, world_size: int) -> Sizes:
        return mesh_sizes(
            world_size,
            dp_size=self.dp_size,
            dp_replicate_size=1,
            tp_size=self.tp_size,
            cp_size=self.cp_size,
        )

    def parallelize(
        self, model: PreTrainedModel, mesh: DeviceMesh | None, precision: Precision
    ) -> nn.Module:
        if mesh is None:
            return model
        if precision.frozen is not None:
            raise UserError(
                "Adapters beside a frozen model aren't tested under nvFSDP (megatron-fsdp).",
                fix="write _target_: fsdp2",
                path=("distributed", "_target_"),
            )
        if precision.compute == torch.float16:
            raise UserError(
                "float16 isn't tested under nvFSDP (megatron-fsdp).",
                fix="write torch_dtype: bfloat16, or _target_: fsdp2",
                path=("model", "torch_dtype"),
            )
        return self._wrapped(model, mesh, precision)

    def _wrapped(self, model: PreTrainedModel, mesh: DeviceMesh, precision: Precision) -> nn.Module:
        from megatron_fsdp import MixedPrecisionPolicy, fully_shard_model

        layers = {type(layer) for stack in layer_lists(model) for layer in stack}
        wrapper = fully_shard_model(
            Replica(model),
            device_mesh=mesh,
            dp_shard_dim="dp_shard" if mesh["cp"].size() == 1 else "dp_shard_cp",
            tp_dim="tp",
            fsdp_unit_modules=list(layers),
            zero_dp_strategy="optim_grads_params",
            mixed_precision_policy=MixedPrecisionPolicy(
                main_params_dtype=None,
                main_grads_dtype=precision.parameters,  # PyTorch takes no other for a gradient
                grad_comm_dtype=torch.float32,
            ),
            sync_model_each_microbatch=False,
            calculate_per_token_loss=True,  # sums gradients, where it would average them
        )
        wrapper.register_forward_pre_hook(self._after_step)
        return wrapper

    def _after_step(self, wrapper: Any, _: Any) -> None:
        """Before the first pass after a step, the weights that the optimizer changed are copied to
        those that the model computes with, and the summed gradients are forgotten."""
        if self._stepped:
            wrapper.install_optimized_model_weights()
            wrapper.zero_grad_buffer()
            self._stepped = False

    def one_pass(self, model: nn.Module, compute: Callable[..., T]) -> Callable[..., T]:
        if not hasattr(model, "finish_grad_sync"):
            return compute

        def run(*inputs: object, **named: object) -> T:
            return model(*inputs, compute=compute, **named)

        return run

    def gradient_divisor(self, mesh: DeviceMesh) -> int:
        return 1

    @contextmanager
    def micro_batch(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        if not hasattr(model, "finish_grad_sync"):
            yield
            return
        model.is_last_microbatch = last
        yield
        if last:
            model.finish_grad_sync()
            self._stepped = True

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> torch.Tensor:
        return clip_gradients(parameters, max_norm)
