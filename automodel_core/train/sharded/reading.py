"""Weights for a model that was built on the meta device and sharded there.

Each process allocates its own shard and copies its own slices out of the mapped files, so that
nobody holds more than its shard, whatever the size of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from automodel_core.errors import UserError
from automodel_core.train.model_files import check_fit, weight_files
from automodel_core.train.sharded.stored_tensors import StoredTensors


def can_read_sharded(model: PreTrainedModel, folder: Path) -> bool:
    """Whether `read_sharded` gives what `from_pretrained` does; if not, load it whole and shard it.

    It doesn't where transformers renames, merges or converts what is in the files, keeps a part in
    another precision, or draws what the files lack, and for files other than safetensors.

    Args:
        model: On the meta device and not yet sharded (sharding renames its classes).
    """
    files = weight_files(folder)
    if not files or getattr(model.config, "quantization_config", None) is not None:
        return False
    if model._get_dtype_plan(model.dtype):
        return False
    with StoredTensors(files) as stored:
        keys = set(stored.headers)
    tensors = model.state_dict(keep_vars=True)
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    for key in keys:
        name, converted = rename_source_key(
            key, renamings, converters, model.base_model_prefix, tensors
        )
        if converted is not None or (name != key and name in tensors):
            return False
    drawn = model._keys_to_ignore_on_load_missing or ()
    absent = set(_absent(tensors, keys))
    return not any(re.search(pattern, key) for pattern in drawn for key in absent)


def read_sharded(
    model: PreTrainedModel, folder: Path, device: torch.device, name: str | None = None
) -> None:
    """Fill a model from the safetensors of its folder, in place.

    Tensors that are on the meta device are read, in the type that they have there; the others (of
    adapters, say) are moved. Tied weights stay tied. Nothing is drawn at random, and the processes
    don't talk to each other.

    Args:
        model: Built on the meta device, adapted and sharded or not; no optimizer refers to it.
        folder: Of a model for which `can_read_sharded`.
        device: Where to put the shards.
        name: What to call the model in errors; the folder if left out.

    Raises:
        UserError: The weights can't be read, or don't fit the model.
    """
    name = name or str(folder)
    try:
        with StoredTensors(weight_files(folder)) as stored:
            unread = {
                key: tensor
                for key, tensor in model.state_dict(keep_vars=True).items()
                if tensor.is_meta
            }
            _check(name, model, unread, stored)
            materialise(model, device)
            filled = set()
            for key, tensor in model.state_dict(keep_vars=True).items():
                if key in unread and key in stored.headers and id(tensor) not in filled:
                    filled.add(id(tensor))
                    stored.fill(key, tensor)
    except (OSError, ValueError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"The weights of {name} can't be read: {said[:300]}") from error
    model.eval()  # as from_pretrained leaves it


def materialise(model: PreTrainedModel, device: torch.device) -> None:
    """Allocate this process's part of everything on the meta device and compute plain buffers.

    Parameters and stored buffers hold noise afterwards. Buffers that no file holds (rotary
    frequencies) are computed on the CPU, as `from_pretrained` computes them. Tied parameters remain
    one; FSDP takes over the new ones before the first forward pass.
    """
    computed = _unstored_buffers(model)
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter not in replaced:
                replaced[parameter] = _on_device(parameter, device)
            module.register_parameter(key, replaced[parameter])
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            if (module, key) in computed:
                module._buffers[key] = torch.empty_like(buffer, device="cpu")
            elif buffer.is_meta:
                module._buffers[key] = torch.empty_like(buffer, device=device)
            else:
                module._buffers[key] = buffer.to(device)
    if computed:
        _compute_buffers(model)
        for module, key in computed:
            module._buffers[key] = module._buffers[key].to(device)


def _on_device(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """A parameter without values as another one on the device. One with values, such as an
    adapter's, is moved and stays itself: whoever spread the model may know it."""
    if not parameter.is_meta:
        parameter.data = parameter.data.to(device)
        return parameter
    empty = torch.empty_like(parameter, device=device)
    return nn.Parameter(empty, requires_grad=parameter.requires_grad)


def _check(
    name: str, model: PreTrainedModel, unread: dict[str, torch.Tensor], stored: StoredTensors
) -> None:
    keys = stored.headers
    known = [*(model._keys_to_ignore_on_load_unexpected or ()), *_once_stored(model)]
    names = model.state_dict(keep_vars=True).keys()
    check_fit(
        name,
        _absent(unread, keys),
        [k for k, x in unread.items() if k in keys and keys[k].shape != tuple(x.shape)],
        [k for k in keys if k not in names and not any(re.search(each, k) for each in known)],
    )


def _once_stored(model: PreTrainedModel) -> Iterable[str]:
    """Buffers that old checkpoints hold and transformers computes."""
    return [
        rf"{name}$"
        for name in (r"rotary_emb\.inv_freq", "position_ids")
        if any(re.search(rf"{name}$", key) for key, _ in model.named_buffers())
    ]


def _absent(tensors: dict[str, torch.Tensor], keys: Iterable[str]) -> list[str]:
    """Names in `tensors` that have no key, nor has a name that is tied to them."""
    given = {id(tensors[key]) for key in keys if key in tensors}
    return [key for key, tensor in tensors.items() if id(tensor) not in given]


def _unstored_buffers(model: PreTrainedModel) -> set[tuple[nn.Module, str]]:
    """Buffers on the meta device that no state dict has: the module and the buffer's name."""
    return {
        (module, key)
        for module in model.modules()
        for key, buffer in module.named_buffers(recurse=False)
        if buffer.is_meta and key in module._non_persistent_buffers_set
    }


def _compute_buffers(model: PreTrainedModel) -> None:
    """Let transformers initialise the model, with everything but unstored buffers marked as done.

    That is how `from_pretrained` computes them: `_init_weights` of each model knows how.
    """
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()
