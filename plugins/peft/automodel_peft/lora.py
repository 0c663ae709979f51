"""LoRA: the target of the YAML's `peft:` section, and what its variants build on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal
from zlib import crc32

import attrs
import torch
from torch import nn
from transformers import PreTrainedModel

from automodel_core.protocols import Selection
from automodel_peft import checks
from automodel_peft.choice import chosen_method
from automodel_peft.describe import described
from automodel_peft.export import adapter_config, adapter_state
from automodel_peft.files import SavedAdapter, read_adapter, write_adapter
from automodel_peft.layers import (
    AdaptedLayer,
    LayerSettings,
    LoraEmbedding,
    LoraLinear,
    adapt_in_place,
)
from automodel_peft.loading import brings_embedding, load_into
from automodel_peft.merging import LoraMerger
from automodel_peft.options import check_options, check_sizes, check_variant, read_dtype
from automodel_peft.plan import (
    Plan,
    Planned,
    Sizes,
    check_weights,
    plan_from_file,
    plan_from_patterns,
    starting_from_weights,
)
from automodel_peft.selection import Patterns
from automodel_peft.trained import train_whole


@attrs.define(kw_only=True)
class PeftConfig:
    """LoRA (https://arxiv.org/abs/2106.09685): low-rank updates beside frozen layers.

    Patterns match whole dotted names: dots are literal, `*` stands for any text, dots included, and
    a pattern without a dot is also tried on the last part of the name (`q_proj`). With neither
    `match_all_linear` nor `include_modules`, every linear layer of the language model is adapted,
    but not its output embeddings, nor vision and audio towers and their projectors.

    Args:
        match_all_linear: Adapt every linear layer there is.
        include_modules: Patterns of the linear layers and embeddings to adapt.
        exclude_modules: Patterns of what to leave alone in any case.
        dim: Rank of the updates; lower means fewer parameters.
        alpha: The updates are multiplied by alpha / dim.
        dropout: Probability that an input of an update is dropped while training.
        use_triton: Triton kernels for the adapters of linear layers: `true` demands them, which
            needs an NVIDIA GPU and `dropout: 0`; `auto` takes what measured fastest for the shape.
        modules_to_save: Patterns of modules that train as a whole and are saved with the adapter.
        rank_pattern: Other ranks than `dim`, by pattern; the first that matches counts.
        alpha_pattern: Other alphas than `alpha`, by pattern; the first that matches counts.
        adapter_path: Folder of an adapter to go on from; it decides modules, ranks and alphas.
        adapter_dtype: What the adapters are held in; `float32` beside a model of any dtype.
    """

    match_all_linear: bool = False
    include_modules: list[str] | None = None
    exclude_modules: list[str] | None = None
    dim: int = 8
    alpha: int = 32
    dropout: float = 0.0
    use_triton: bool | Literal["auto"] = "auto"
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] = attrs.field(factory=dict)
    alpha_pattern: dict[str, float] = attrs.field(factory=dict)
    adapter_path: str | None = None
    adapter_dtype: str = "float32"
    seed: int = 0

    # What a variant changes.
    name: ClassVar[str] = "LoRA"
    linear: ClassVar[type[AdaptedLayer]] = LoraLinear
    embedding: ClassVar[type[AdaptedLayer]] = LoraEmbedding
    use_rslora: ClassVar[bool] = False
    use_dora: ClassVar[bool] = False
    ranks_per_dim: ClassVar[int] = 1

    dtype: torch.dtype = attrs.field(init=False)
    _start: checks.Fingerprints = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        check_options(self)
        self.dtype = read_dtype(self.adapter_dtype)

    def scale(self, alpha: float, rank: int) -> float:
        """What an update of that rank is multiplied by."""
        return alpha / rank

    def kind(self, module: nn.Module) -> type[AdaptedLayer]:
        """The class that `module` becomes."""
        return self.embedding if isinstance(module, nn.Embedding) else self.linear

    def method(self, planned: Planned) -> str:
        """How that module is to compute; see `LayerSettings.method`.

        Raises:
            UserError: Triton is demanded, and has no kernels for it.
        """
        if not issubclass(self.kind(planned.module), LoraLinear) or self.use_dora or self.dropout:
            return "plain"
        return chosen_method(self.use_triton, planned.module, planned.rank * self.ranks_per_dim)

    def select(self, model: PreTrainedModel) -> Selection:
        """What `apply` would do to this model, which may be without weights.

        Raises:
            UserError: The patterns choose nothing, or the adapter to go on from doesn't fit.
        """
        return described(self, model, self._plan(model, self._saved()))

    def needs_weights(self, model: PreTrainedModel) -> bool:
        """Whether `apply` reads weights: to start from them, or to compare an embedding that came
        with the adapter to go on from."""
        saved = self._saved()
        plan = self._plan(model, saved)
        return bool(starting_from_weights(plan, self.name, self.kind)) or (
            saved is not None and brings_embedding(saved)
        )

    def apply(self, model: PreTrainedModel) -> Selection:
        """Freeze the model, adapt what is selected, and take over the adapter to go on from.

        A model without weights (on the meta device) may be filled after. What is added is on the
        CPU then and has the values that it has beside the weights.

        Raises:
            UserError: As `select`; or the variant starts from weights that aren't there.
        """
        saved = self._saved()
        plan = self._plan(model, saved)
        check_weights(plan, self.name, self.kind)
        selection = described(self, model, plan)
        model.requires_grad_(False)
        for name, planned in plan.adapted.items():
            adapt_in_place(planned.module, self.kind(planned.module), self._settings(name, planned))
        for module in plan.trained.values():
            train_whole(module, self.dtype)
        if saved is not None:
            load_into(model, saved)
        self._start = checks.fingerprints(model)
        return selection

    def parameter_groups(self, model: PreTrainedModel, lr: float) -> list[dict[str, Any]]:
        """All that trains, in one group."""
        return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": lr}]

    def state(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """The adapter's tensors by their names in adapter_model.safetensors."""
        return adapter_state(model)

    def save(
        self,
        model: PreTrainedModel,
        folder: Path,
        state: Mapping[str, torch.Tensor],
        base_name: str,
        revision: str | None,
    ) -> None:
        """Write a folder that `peft.PeftModel.from_pretrained` opens; see `Adapter.save`."""
        config = adapter_config(self, model) | {
            "base_model_name_or_path": base_name,
            "revision": revision,
        }
        write_adapter(folder, state, config)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            UserError: The folder holds no adapter, or another than this one.
        """
        saved = read_adapter(folder)
        check_variant(saved, self)
        load_into(model, saved)

    def check(self, model: PreTrainedModel) -> None:
        """See that the adapter, and nothing else, has changed since `apply`.

        Raises:
            GuardStop: It hasn't, or something else trains.
        """
        checks.check_trainable(model)
        checks.check_changed(model, self._start)

    def merger(self, model: PreTrainedModel, folder: Path) -> LoraMerger:
        """What the folder makes of the model's weights; it says itself which variant it is.

        Raises:
            UserError: It holds no adapter, or one that doesn't fit the model.
        """
        return LoraMerger(model, read_adapter(folder))

    def _saved(self) -> SavedAdapter | None:
        if self.adapter_path is None:
            return None
        saved = read_adapter(Path(self.adapter_path).expanduser())
        check_variant(saved, self)
        check_sizes(saved, self)
        return saved

    def _plan(self, model: PreTrainedModel, saved: SavedAdapter | None) -> Plan:
        if saved is not None:
            return plan_from_file(model, saved)
        patterns = Patterns(
            self.match_all_linear,
            self.include_modules,
            self.exclude_modules or (),
            self.modules_to_save or (),
        )
        sizes = Sizes(self.dim, self.alpha, self.rank_pattern, self.alpha_pattern)
        return plan_from_patterns(model, patterns, sizes)

    def _settings(self, name: str, planned: Planned) -> LayerSettings:
        """The settings of one layer; its first values depend on the seed and its name alone."""
        return LayerSettings(
            rank=planned.rank,
            alpha=planned.alpha,
            scale=self.scale(planned.alpha, planned.rank),
            dropout=self.dropout,
            dtype=self.dtype,
            seed=crc32(name.encode(), self.seed & 0xFFFFFFFF),
            method=self.method(planned),
            demanded=self.use_triton is True,
        )
