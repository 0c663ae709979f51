"""An adapter's folder as weights of its base model, in float32, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from automodel_core.errors import UserError
from automodel_peft.files import SavedAdapter
from automodel_peft.loading import FROZEN
from automodel_peft.plan import plan_from_file
from automodel_peft.trained import sharers

MAGNITUDE = "lora_magnitude_vector"
LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")


class LoraMerger:
    """LoRA, rsLoRA and DoRA as their files say, whoever wrote them; see `Merger` in the core.

    Args:
        model: The base model; it may be without weights.
        saved: The adapter.

    Raises:
        UserError: The adapter has tensors that the model has no place for.
    """

    def __init__(self, model: PreTrainedModel, saved: SavedAdapter) -> None:
        modules = {name: each.module for name, each in plan_from_file(model, saved).adapted.items()}
        self._saved = saved
        self._modules = {f"{name}.weight": name for name in modules}
        self._transposed = {
            name for name, each in modules.items() if isinstance(each, nn.Embedding | Conv1D)
        }
        self._whole = {_own_name(key): tensor for key, tensor in saved.others.items()}
        for name, module in modules.items():
            _check_tensors(saved, name, EMBEDDING if isinstance(module, nn.Embedding) else LINEAR)
        self.names = frozenset(self._modules) | frozenset(self._whole)
        _check_names(model, saved, self._whole)
        if saved.config.get("ensure_weight_tying"):
            _check_untied(model, saved, self.names)

    def merge(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """The merged weight, float32; see `Merger.merge`.

        Raises:
            UserError: The update has another shape than the weight.
        """
        merged = self._whole.get(name, base).to(torch.float32, copy=True)
        if name in self._modules:
            self._add_update(self._modules[name], merged)
        return merged

    def _add_update(self, module: str, weight: torch.Tensor) -> None:
        """`W + s B A`, and with DoRA each row of it brought to its trained length, in place.

        No matrix of the size of W is made beside it.
        """
        tensors = self._saved.adapted[module]
        oriented = weight.t() if module in self._transposed else weight  # [out, in]
        a, b = _factors(tensors)
        if oriented.shape != (b.shape[0], a.shape[1]):
            raise UserError(
                f"{self._saved.folder} adapts {module} of {b.shape[0]} x {a.shape[1]}, and the "
                f"base model's is {oriented.shape[0]} x {oriented.shape[1]}.",
                fix="name the model that the adapter was trained on with --base",
            )
        oriented.addmm_(b, a, alpha=self._scale(module))
        if MAGNITUDE in tensors:
            lengths = torch.linalg.vector_norm(oriented, dim=1)
            oriented.mul_((tensors[MAGNITUDE].float() / lengths)[:, None])

    def _scale(self, module: str) -> float:
        rank = self._saved.rank(module)
        root = self._saved.config.get("use_rslora")
        return self._saved.alpha(module) / (math.sqrt(rank) if root else rank)


def _own_name(key: str) -> str:
    """The model's name for a tensor that a file brings whole."""
    return f"{key.removesuffix(FROZEN)}.weight" if key.endswith(FROZEN) else key


def _factors(tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A `[rank, in]` and B `[out, rank]`, float32."""
    a, b = EMBEDDING if EMBEDDING[0] in tensors else LINEAR
    return tensors[a].float(), tensors[b].float()


def _check_tensors(saved: SavedAdapter, module: str, factors: tuple[str, str]) -> None:
    """Both factors, a magnitude if it is DoRA, and nothing else."""
    wanted = {*factors, *([MAGNITUDE] if saved.config.get("use_dora") else [])}
    held = set(saved.adapted[module])
    if wanted != held:
        raise UserError(
            f"{saved.folder} holds {', '.join(sorted(held))} of {module}, where "
            f"{', '.join(sorted(wanted))} belong."
        )


def _check_names(model: nn.Module, saved: SavedAdapter, names: Iterable[str]) -> None:
    known = {*model.state_dict(), *(name for name, _ in model.named_parameters())}
    strange = sorted(set(names) - known)
    if strange:
        raise UserError(
            f"{saved.folder} holds {strange[0]}, which {type(model).__name__} doesn't have.",
            fix="name the model that the adapter was trained on with --base",
        )


def _check_untied(model: nn.Module, saved: SavedAdapter, names: Iterable[str]) -> None:
    """PEFT's `ensure_weight_tying` gives one module's update to those that are tied to it."""
    for name in sorted(names):
        module = model.get_submodule(name.rpartition(".")[0])
        if sharers(model, module):
            raise UserError(
                f"{saved.folder} has ensure_weight_tying, which is not understood here: {name} is "
                "tied to another weight.",
                fix="merge it with PEFT's merge_and_unload",
            )
