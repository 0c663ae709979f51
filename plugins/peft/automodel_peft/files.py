"""Adapter folders as PEFT writes and reads them: adapter_config.json, adapter_model.safetensors.

Tensors go by `base_model.model.<module>.<tensor>`, as in `...q_proj.lora_A.weight`. The
configuration names every adapted module in full, so that PEFT adapts exactly these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from automodel_core.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

# What a tensor of an adapted module may be called, after the module's name.
SUFFIXES = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
)

# When PEFT saves whole embeddings, it writes those that trained twice, the second time by its own
# name for them, and beside them what they were before.
TRAINED, ORIGINAL = ".modules_to_save.", ".original_module."

FIRST_FACTORS = ("lora_A.weight", "lora_embedding_A")

# Kinds of LoRA that PEFT knows and that are not understood here, with the value that means absent.
FOREIGN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
}

# Initialisations that change the base model: their files mean nothing without repeating that.
CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


@attrs.frozen
class SavedAdapter:
    """What a folder holds, checked to be a LoRA that is understood here.

    Attributes:
        folder: Where it is.
        config: Its adapter_config.json.
        adapted: The tensors of each adapted module: module -> name after the module -> tensor.
        others: The tensors of modules that train as a whole, by their names in the model.
    """

    folder: Path
    config: Mapping[str, Any]
    adapted: Mapping[str, Mapping[str, torch.Tensor]]
    others: Mapping[str, torch.Tensor]

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of modules that train as a whole."""
        return tuple(self.config.get("modules_to_save") or ())

    def rank(self, module: str) -> int:
        """Of a module's update, from its tensors."""
        tensors = self.adapted[module]
        return next(tensors[name].shape[0] for name in FIRST_FACTORS if name in tensors)

    def alpha(self, module: str) -> float:
        """Of a module, by PEFT's rule: the first pattern that matches the end of its name."""
        for pattern, alpha in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return alpha
        return self.config["lora_alpha"]


def read_adapter(folder: Path) -> SavedAdapter:
    """Read a folder that PEFT or this package wrote; nothing is unpickled.

    Raises:
        UserError: It is no adapter, a damaged one, or of a kind that is not understood.
    """
    config = _read_config(folder)
    adapted: dict[str, dict[str, torch.Tensor]] = {}
    others: dict[str, torch.Tensor] = {}
    for key, tensor in _read_tensors(folder).items():
        name = key.removeprefix(PREFIX)
        if ORIGINAL in name:
            continue
        name = name.replace(TRAINED, ".")
        suffix = next((each for each in SUFFIXES if name.endswith(f".{each}")), None)
        if suffix:
            adapted.setdefault(name.removesuffix(f".{suffix}"), {})[suffix] = tensor
        else:
            others[name] = tensor
    if not adapted and not others:
        raise UserError(f"{folder / WEIGHTS} holds no tensor.", argument="adapter_path")
    return SavedAdapter(folder, config, adapted, others)


def write_adapter(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` opens."""
    folder.mkdir(parents=True, exist_ok=True)
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is no adapter: it has no readable {CONFIG}.",
            fix="write a folder that PEFT or an earlier run saved",
            argument="adapter_path",
        ) from None
    if kind != "LORA":
        raise _not_understood(folder, f"of type {kind}")
    for key, absent in FOREIGN.items():
        if config.get(key) not in absent:
            raise _not_understood(folder, f"with {key}: {config[key]}")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGES_BASE):
        raise UserError(
            f"{folder} belongs to a base model that {start} changed, not to the original.",
            fix="convert it: save_pretrained takes path_initial_model_for_weight_conversion",
            argument="adapter_path",
        )
    return config


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise UserError(
            f"{folder} has no {WEIGHTS}"
            + ("; adapter_model.bin is a pickle, which could run any code." if pickled else "."),
            fix="save it again with PEFT, which writes safetensors" if pickled else "",
            argument="adapter_path",
        )
    try:
        with safe_open(path, "pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}", argument="adapter_path") from None


def _not_understood(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder} holds an adapter {what}, which can't be trained here.",
        fix="merge it into its base model with PEFT, and train that",
        argument="adapter_path",
    )
