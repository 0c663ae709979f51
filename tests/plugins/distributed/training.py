"""A few training steps of a tiny model: by plain PyTorch in one process, and by a manager in many.

The loop here is the engine's in short: the step's supervised tokens are counted over all ranks, the
loss is their sum over that, and the gradient's norm is that of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
import torch.distributed as dist
import transformers
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn import functional

from automodel_core.config.schema import Compile, EveryLayer
from automodel_core.protocols import IGNORE_INDEX, Batch, Sizes
from automodel_core.train.build import by_mesh
from automodel_core.train.clipping import clipped_update, scales_gradients
from automodel_core.train.compiling import Compilation
from automodel_core.train.head import split_head
from automodel_core.train.precision import PrecisionPlan
from automodel_core.train.recompute import checkpoint_activations
from automodel_core.train.rows import at_rows, supervised_rows
from automodel_core.vocabulary import leaving_logits_sharded
from automodel_distributed import managers
from automodel_losses.chunked_ce import ChunkedCrossEntropy
from automodel_losses.fused_linear_ce import FusedLinearCrossEntropy
from automodel_losses.masked_ce import MaskedCrossEntropy
from automodel_optimizers.triton_adamw import TritonAdamW
from automodel_peft.lora import PeftConfig

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@attrs.frozen(kw_only=True)
class Case:
    """What is trained, and how.

    Attributes:
        family: Of the model, as transformers names it: Llama, Qwen3, ...
        config: Changes to SMALL.
        adapters: Arguments of PeftConfig; None trains the model itself.
        frozen: What parameters whose names contain this are frozen; "" freezes none.
        chunked: Whether the loss works on a few supervised tokens' hidden states at a time.
        fused: Whether it then also does the head's products itself.
        sharded_logits: Whether the loss takes logits as tensor parallelism leaves them.
        accumulate: Micro-batches of a step.
        steps: Optimizer steps.
        max_norm: What gradients are clipped to.
        dtype: Of the model's weights.
        rows: Samples of a micro-batch, over all ranks.
        recompute: `activation_checkpointing`, on many ranks.
        compiled: Whether layers are compiled, on many ranks.
        fused_update: Whether the optimizer is fused, and then clips gradients as it reads them.
    """

    family: str = "Llama"
    config: dict[str, Any] = attrs.field(factory=dict)
    adapters: dict[str, Any] | None = None
    frozen: str = ""
    chunked: bool = False
    fused: bool = False
    sharded_logits: bool = True
    accumulate: int = 2
    steps: int = 20
    max_norm: float | None = 0.5
    dtype: torch.dtype = torch.float32
    rows: int = 4
    recompute: str | EveryLayer | None = None
    compiled: bool = False
    fused_update: bool = False


@attrs.frozen
class Trained:
    """What came out.

    Attributes:
        losses: Of each step.
        norms: Of the gradient, before clipping.
        evaluation: The loss on the first step's samples after training, without gradients.
        state: The whole tensors that trained, by name.
    """

    losses: list[float]
    norms: list[float]
    evaluation: float
    state: dict[str, torch.Tensor]


def build_model(case: Case) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{case.family}TextConfig", None) or getattr(
        transformers, f"{case.family}Config"
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**(SMALL | case.config)))
    model = model.to(case.dtype).train()
    for name, parameter in model.named_parameters():
        if case.frozen and case.frozen in name:
            parameter.requires_grad_(False)
    if case.adapters is not None:
        PeftConfig(**case.adapters).apply(model)
        for name, parameter in model.named_parameters():  # zeros would hide what A's gradient is
            if name.endswith("lora_B"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def micro_batch(case: Case, step: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and shifted labels `[rows, 16]`; every row supervises another number of tokens."""
    generator = torch.Generator().manual_seed(1000 * step + index)
    tokens = torch.randint(96, (case.rows, 17), generator=generator)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    for row in range(case.rows):
        labels[row, : (5 * row + 3 * index + step) % 15] = IGNORE_INDEX
    return inputs, labels


def loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def optimizer_for(case: Case, model: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = by_mesh([{"params": trained}])
    return TritonAdamW(groups, lr=3e-3, fused=case.fused_update)


def clip_and_update(
    manager: Any,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    max_norm: float | None,
    update: Callable[[], Any],
) -> float:
    """The norm of the gradients, which the optimizer clips if it can."""
    before = None if scales_gradients(optimizer) else max_norm
    norm = manager.clip(model.parameters(), before)
    with clipped_update(optimizer, norm, max_norm):
        update()
    return norm.item()


def train_alone(case: Case) -> Trained:
    """The referee: transformers and PyTorch, nothing of the managers'."""
    model = build_model(case)
    optimizer = optimizer_for(case, model)
    losses, norms = [], []
    for step in range(case.steps):
        batches = [micro_batch(case, step, index) for index in range(case.accumulate)]
        tokens = sum(int((labels != IGNORE_INDEX).sum()) for _, labels in batches)
        total = 0.0
        for inputs, labels in batches:
            loss = loss_sum(model(input_ids=inputs, use_cache=False).logits, labels) / tokens
            loss.backward()
            total += loss.item()
        gradients = [p for p in model.parameters() if p.grad is not None]
        limit = float("inf") if case.max_norm is None else case.max_norm
        norms.append(torch.nn.utils.clip_grad_norm_(gradients, limit).item())
        losses.append(total)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        inputs, labels = micro_batch(case, 0, 0)
        evaluation = loss_sum(model(input_ids=inputs, use_cache=False).logits, labels).item()
    return Trained(losses, norms, evaluation, trained_state(model))


def train_spread(case: Case, manager: str, options: dict[str, Any]) -> Trained:
    """This rank's part, by one of the managers."""
    manager = getattr(managers, manager)(**options)
    mesh = build_mesh(manager.sizes(dist.get_world_size()))
    model = build_model(case)
    precision = PrecisionPlan(
        parameters=torch.float32 if case.adapters is not None else case.dtype,
        compute=case.dtype,
        loss_scaling=False,
        reason="",
        frozen=case.dtype if case.adapters is not None else None,
    )
    checkpoint_activations(model, case.recompute)
    spread = manager.parallelize(model, mesh, precision)
    compute = loss_of(case, manager, model, spread)
    if mesh["cp"].size() > 1:
        compute = manager.on_a_part(compute, mesh)

    def losses_of(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        mine = manager.part(labels, mesh) if mesh["cp"].size() > 1 else labels
        return compute({"input_ids": inputs}, labels, supervised_rows(mine, tile=4))

    ranks = mesh["dp_replicate"].size() * mesh["dp_shard"].size()
    rank = mesh["dp_replicate"].get_local_rank() * mesh["dp_shard"].size()
    rank += mesh["dp_shard"].get_local_rank()

    optimizer = optimizer_for(case, model)
    losses, norms = [], []
    compilation = Compilation(Compile(backend="aot_eager") if case.compiled else None)
    with compilation.layers_of(model, deterministic=False):
        for step in range(case.steps):
            batches = [micro_batch(case, step, index) for index in range(case.accumulate)]
            tokens = sum(int((labels != IGNORE_INDEX).sum()) for _, labels in batches)
            total = torch.zeros(())
            for index, (inputs, labels) in enumerate(batches):
                with manager.micro_batch(spread, last=index == case.accumulate - 1):
                    loss = losses_of(inputs[rank::ranks], labels[rank::ranks]) / tokens
                    (loss * manager.gradient_divisor(mesh)).backward()
                total += loss.detach()
            losses.append(summed(total, mesh))
            norms.append(clip_and_update(manager, model, optimizer, case.max_norm, optimizer.step))
            optimizer.zero_grad()
        with torch.no_grad():
            inputs, labels = micro_batch(case, 0, 0)
            evaluation = summed(losses_of(inputs[rank::ranks], labels[rank::ranks]), mesh)
    return Trained(losses, norms, evaluation, trained_state(model))


def loss_of(
    case: Case, manager: Any, model: torch.nn.Module, spread: torch.nn.Module
) -> Callable[[Batch, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """From token ids, labels and supervised rows to the sum of the token losses."""
    if not case.chunked:
        loss = MaskedCrossEntropy() if case.sharded_logits else loss_sum
        forward = leaving_logits_sharded(spread) if case.sharded_logits else spread
        return lambda inputs, labels, _: loss(forward(**inputs, use_cache=False).logits, labels)
    loss = (FusedLinearCrossEntropy if case.fused else ChunkedCrossEntropy)(chunk_len=5)
    parts = split_head(model)
    head = attrs.evolve(parts.head, leaves_sharded=case.sharded_logits)

    def compute(inputs: Batch, labels: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return loss(*at_rows(parts.backbone(**inputs), labels, rows), head)

    return manager.one_pass(spread, compute)


def build_mesh(sizes: Sizes) -> DeviceMesh:
    mesh = init_device_mesh("cpu", tuple(sizes), mesh_dim_names=Sizes._fields)
    mesh["dp_shard", "cp"]._flatten("dp_shard_cp")
    return mesh


def summed(value: torch.Tensor, mesh: DeviceMesh) -> float:
    """Over the ranks that have other samples, or other positions of them."""
    value = value.clone()
    for dim in ("dp_replicate", "dp_shard", "cp"):
        dist.all_reduce(value, group=mesh[dim].get_group())
    return value.item()


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
