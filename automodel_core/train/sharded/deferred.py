"""Random weights for a sharded model: the numbers of one process, without its memory.

What a model's constructor does to its parameters is recorded while nothing is allocated, and done
afterwards for one tensor at a time, of which each process keeps its part. The random numbers of a
step depend on how many were drawn before it, so each recorded draw is made once to move the
generator on, thrown away, and remembered by the generator's state.

After torchdistx' deferred initialisation (https://pytorch.org/torchdistx/latest/deferred_init.html).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from transformers import PreTrainedModel

from automodel_core.train.sharded.pieces import Piece, copy_overlap, local_pieces
from automodel_core.train.sharded.reading import materialise

# Writes that leave nothing of what was there before.
OVERWRITES = {
    torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default, torch.ops.aten.zero_.default,
    torch.ops.aten.fill_.Scalar, torch.ops.aten.copy_.default,
}  # fmt: skip


@attrs.frozen(eq=False)
class Recorded:
    """One call of the constructor's.

    Attributes:
        function: The ATen operator.
        reads: Storages that it needs.
        writes: Storages that it makes or changes.
        overwrites: Whether nothing stays of what was in them.
        generator: The CPU generator's state before it; None if it draws nothing.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[torch.Tensor]
    reads: frozenset[int]
    writes: frozenset[int]
    overwrites: bool
    generator: torch.Tensor | None


class DeferredInit(TorchDispatchMode):
    """Within it, tensors made on the CPU go to the meta device, and how they came is recorded.

    Use it around a constructor such as `AutoModelForCausalLM.from_config(config)`, seeded as it
    would be without; then shard the model and call `draw`.

    Raises:
        RuntimeError: The constructor looks at values that aren't there yet; build the model whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tape: list[Recorded] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_flatten((args, kwargs))[0] if _is_meta(each)]
        makes = not given and _makes_cpu_tensor(func, args, kwargs)
        if not given and not makes:
            return func(*args, **kwargs)
        state = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            state = torch.get_rng_state()
            func(*tree_map(_stand_in, args), **tree_map(_stand_in, kwargs))
        on_meta = kwargs | {"device": torch.device("meta")} if makes else kwargs
        made = func(*args, **on_meta)
        self._record(func, args, kwargs, given, made, state)
        return made

    def _record(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
        made: Any,
        state: torch.Tensor | None,
    ) -> None:
        outputs = [each for each in tree_flatten(made)[0] if _is_meta(each)]
        changes = func._schema.is_mutable
        if not changes and all(_key(out) in map(_key, given) for out in outputs):
            return  # a view: it is known by the storage that it is of
        target = outputs[0] if outputs else None
        whole = target is not None and target.nbytes == target.untyped_storage().nbytes()
        overwrites = changes and whole and func in OVERWRITES
        writes = frozenset(map(_key, outputs))
        self._tape.append(
            Recorded(
                func, args, kwargs, outputs,
                reads=frozenset(map(_key, given)) - (writes if overwrites else frozenset()),
                writes=writes,
                overwrites=overwrites or not changes,
                generator=state,
            )
        )  # fmt: skip

    def tensors(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """What `draw` needs to know of the model before it is sharded: its tensors by name."""
        named = [*model.named_parameters(), *model.named_buffers()]
        return {name: tensor.detach() for name, tensor in named}

    def draw(
        self, model: PreTrainedModel, unsharded: dict[str, torch.Tensor], device: torch.device
    ) -> None:
        """Give the sharded model its weights, in place; ties stay ties.

        Memory beside the shards: the largest tensor. The CPU's generator ends as it was.

        Args:
            model: The model that was built within this context, sharded or not.
            unsharded: What `tensors` gave before.
            device: Where to put the shards.
        """
        materialise(model, device)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if name in unsharded:
                    whole = self._value(unsharded[name])
                    source = Piece(name, tuple(whole.shape), (0,) * whole.ndim, whole)
                    for part in local_pieces(name, tensor):
                        copy_overlap(source, part)

    def _value(self, tensor: torch.Tensor) -> torch.Tensor:
        """The real tensor, made by the calls that it depends on."""
        if not tensor.is_meta:
            return tensor
        needed, calls = {_key(tensor)}, []
        for call in reversed(self._tape):
            if needed & call.writes:
                calls.append(call)
                if call.overwrites:
                    needed -= call.writes
                needed |= call.reads
        storages: dict[int, torch.UntypedStorage] = {}

        def real(each: Any) -> Any:
            if not _is_meta(each):
                return _on_cpu(each)
            storage = storages.setdefault(
                _key(each), torch.UntypedStorage(each.untyped_storage().nbytes())
            )
            return torch.empty(0, dtype=each.dtype).set_(
                storage, each.storage_offset(), each.size(), each.stride()
            )

        for call in reversed(calls):
            if call.generator is not None:
                torch.set_rng_state(call.generator)
            result = call.function(*tree_map(real, call.args), **tree_map(real, call.kwargs))
            if not call.function._schema.is_mutable:
                flat = [each for each in tree_flatten(result)[0] if torch.is_tensor(each)]
                for meta, value in zip(call.outputs, flat, strict=True):
                    storages[_key(meta)] = value.untyped_storage()
        return real(tensor)


def _is_meta(value: Any) -> bool:
    return torch.is_tensor(value) and value.is_meta


def _key(tensor: torch.Tensor) -> int:
    # Storages of the meta device have no address; the tape keeps them alive.
    return tensor.untyped_storage()._cdata


def _makes_cpu_tensor(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it is a factory (`empty`, `ones`, `arange` ...) of a tensor on the CPU.

    A constructor asks for the meta device where it asks for that of another tensor of its own.
    """
    if any(torch.is_tensor(each) for each in tree_flatten((args, kwargs))[0]):
        return False
    device = kwargs.get("device")
    return "device" in {a.name for a in func._schema.arguments} and (
        device is None or torch.device(device).type in ("cpu", "meta")
    )


def _stand_in(value: Any) -> Any:
    """Memory for a draw that only moves the generator on."""
    return torch.empty_like(value, device="cpu") if _is_meta(value) else _on_cpu(value)


def _on_cpu(value: Any) -> Any:
    return (
        torch.device("cpu")
        if isinstance(value, torch.device) and value == torch.device("meta")
        else value
    )
