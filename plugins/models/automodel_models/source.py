"""A model of any family before its weights are read: what the targets of `model:` return.

Making one reads configurations and headers only. Weights are read, or drawn, by `load_model`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from automodel_core.errors import UserError
from automodel_core.train.sharded.reading import can_read_sharded
from automodel_models.attention import Attention, choose_attention, for_documents
from automodel_models.configuration import (
    count_parameters,
    empty_model,
    make_configuration,
    read_configuration,
)
from automodel_models.families import Family
from automodel_models.files import ModelFiles, Wanted, locate
from automodel_models.liger import check_liger, use_liger
from automodel_models.loading import finish, read_model, read_processor, read_tokenizer
from automodel_models.options import read_dtype
from automodel_models.quiet import quiet_transformers
from automodel_models.vocabulary import check_vocabulary


@attrs.frozen(kw_only=True)
class UnreadModel:
    """A model before its weights are read; see `ModelSource` in the core.

    Attributes:
        family: What kind of model it is.
        files: Where it is; None for a configuration that the YAML spells out.
        pretrained: Read the weights; if not, draw them.
        attention: What computes attention.
        trusted: Whether the model's own Python may run.
        resize_embeddings: Add rows for tokens that the model doesn't embed.
        liger: Whether its norms and feed-forward layers are Liger's.
    """

    family: Family
    name: str
    config: PretrainedConfig
    torch_dtype: torch.dtype | Literal["auto"]
    files: ModelFiles | None
    pretrained: bool
    attention: Attention
    trusted: bool
    resize_embeddings: bool
    parameter_count: int
    liger: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """What the YAML left to be chosen here, in words."""
        return self.attention.choices

    def running(self) -> AbstractContextManager[object]:
        """What is set for this process while the model runs."""
        return self.attention.running()

    @property
    def revision(self) -> str | None:
        """The resolved commit of a Hub model."""
        return self.files.commit if self.files else None

    @property
    def weight_bytes(self) -> int | None:
        """Size of the stored weights; None for weights that are drawn."""
        return sum(self.files.weights.values()) if self.pretrained else None

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the model, unchanged.

        Raises:
            UserError: It has none.
        """
        if self.files is None:
            raise UserError(
                "A configuration that is spelled out has no tokenizer of its own.",
                fix="name one in a tokenizer: section, with pretrained_model_name_or_path",
                argument="config",
            )
        files = self.files
        tokenizer = read_tokenizer(
            files.folder, self.name, files.gguf_file, self.trusted, files.argument
        )
        if files.gguf_file and tokenizer.eos_token_id != self.config.eos_token_id:
            raise UserError(
                f"This version of transformers misreads the tokenizer of {self.name}: its end of "
                f"text is token {self.config.eos_token_id}, not {tokenizer.eos_token_id}.",
                fix="upgrade transformers, or name a tokenizer in a tokenizer: section",
                argument=files.argument,
            )
        return tokenizer

    def load_processor(self) -> ProcessorMixin | None:
        """The processor that belongs to the model; None for a text model.

        Raises:
            UserError: A model that sees has none.
        """
        if not self.family.processes:
            return None
        if self.files is None:
            raise UserError(
                "A configuration that is spelled out has no processor of its own.",
                fix="name one in a processor: section, with pretrained_model_name_or_path",
                argument="config",
            )
        return read_processor(self.files.folder, self.name, self.trusted, self.files.argument)

    def empty_model(self) -> PreTrainedModel:
        """The model on the meta device, with the shapes of its weights and no memory."""
        return empty_model(self.config, self.attention.implementation, self.trusted, self.family)

    def unread_model(
        self, dtype: torch.dtype, weights: Path | None = None
    ) -> tuple[PreTrainedModel, Path] | None:
        """The model on the meta device and the safetensors that its parts are read from; None if
        they aren't the model's own tensors, one for one.

        Raises:
            UserError: The weights can't be fetched.
        """
        if weights is None:
            if not self.pretrained or self.files.gguf_file or self.trusted:
                return None
            self.files.fetch_weights()
        folder = weights or self.files.folder
        model = self.empty_model()
        for parameter in model.parameters():  # buffers keep the precision they are computed in
            parameter.data = parameter.data.to(dtype)
        if not can_read_sharded(model, folder):
            return None
        finish(model, folder, self.name, dtype)
        self._patch(model)
        return model, folder

    def load_model(
        self, dtype: torch.dtype, device: torch.device, weights: Path | None = None
    ) -> PreTrainedModel:
        """The model with its weights as `dtype` on `device`.

        Args:
            dtype: The precision plan's choice.
            device: Where to put it.
            weights: A folder that holds a later state of this model, to take instead of its own.

        Raises:
            UserError: The weights can't be fetched or read, or don't fit the configuration.
        """
        if weights is None and not self.pretrained:
            model = self._draw(dtype)
        else:
            model = self._read(dtype, weights)
        self._patch(model)
        return model.to(device)

    def _patch(self, model: PreTrainedModel) -> None:
        if self.liger:
            use_liger(model)

    def _draw(self, dtype: torch.dtype) -> PreTrainedModel:
        # On the CPU, so that a seed means the same weights on every device.
        with quiet_transformers():
            return self.family.auto_class.from_config(
                self.config,
                dtype=dtype,
                attn_implementation=self.attention.implementation,
                trust_remote_code=self.trusted,
            )

    def _read(self, dtype: torch.dtype, weights: Path | None) -> PreTrainedModel:
        own = weights is None
        if own:
            self.files.fetch_weights()
        return read_model(
            self.files.folder if own else weights,
            name=self.name,
            config=self.config if own else None,
            gguf_file=self.files.gguf_file if own else None,
            dtype=dtype,
            attention=self.attention.implementation,
            trusted=self.trusted,
            family=self.family,
        )

    def check_vocabulary(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """See that the model embeds every token, adding rows if the YAML says so.

        Raises:
            UserError: The tokenizer has more tokens, and the YAML doesn't say so.
        """
        check_vocabulary(model, tokenizer, self.resize_embeddings)


def stored_model(
    family: Family,
    pretrained_model_name_or_path: str,
    gguf_file: str | None,
    *,
    torch_dtype: str,
    attn_implementation: str,
    use_liger_kernel: Literal["auto"] | bool,
    use_sdpa_patching: Literal["auto"] | bool,
    sdpa_method: list[str] | None,
    revision: str | None,
    trust_remote_code: bool,
    resize_embeddings: bool,
    hf_kwargs: dict[str, Any] | None,
    packed: bool,
) -> UnreadModel:
    """A model that has weights; the parameters are those of the families' `from_pretrained`.

    Raises:
        UserError: There is no such model, it can't be reached or trained, or an option doesn't fit.
    """
    dtype = read_dtype(torch_dtype)
    attention = choose_attention(
        attn_implementation,
        use_sdpa_patching,
        sdpa_method,
        dtype,
        images=family.processes,
    )
    files = locate(
        Wanted(
            name=pretrained_model_name_or_path,
            argument="pretrained_model_name_or_path",
            revision=revision,
            gguf_file=gguf_file,
            with_code=trust_remote_code,
        )
    )
    config = read_configuration(files, hf_kwargs or {}, trust_remote_code, family)
    if packed:
        attention = for_documents(attention, config, family.model_class(config), dtype)
    return UnreadModel(
        family=family,
        name=pretrained_model_name_or_path,
        config=config,
        torch_dtype=dtype,
        files=files,
        pretrained=True,
        attention=attention,
        trusted=trust_remote_code,
        resize_embeddings=resize_embeddings,
        parameter_count=count_parameters(
            config, attention.implementation, trust_remote_code, family
        ),
        liger=check_liger(use_liger_kernel, config),
    )


def drawn_model(
    family: Family,
    config: str | dict[str, Any] | PretrainedConfig,
    *,
    torch_dtype: str,
    attn_implementation: str,
    use_liger_kernel: Literal["auto"] | bool,
    use_sdpa_patching: Literal["auto"] | bool,
    sdpa_method: list[str] | None,
    revision: str | None,
    trust_remote_code: bool,
    resize_embeddings: bool,
    hf_kwargs: dict[str, Any] | None,
    packed: bool,
) -> UnreadModel:
    """A model to draw; the parameters are those of the families' `from_config`.

    Raises:
        UserError: There is no such configuration, or it isn't of the family.
    """
    dtype = read_dtype(torch_dtype)
    attention = choose_attention(
        attn_implementation,
        use_sdpa_patching,
        sdpa_method,
        dtype,
        images=family.processes,
    )
    if isinstance(config, str):
        path = Path(config)
        wanted = Wanted(
            name=str(path.parent) if path.name == "config.json" else config,
            argument="config",
            revision=revision,
            with_code=trust_remote_code,
            with_weights=False,
        )
        name, files = config, locate(wanted)
        built = read_configuration(files, hf_kwargs or {}, trust_remote_code, family)
    else:
        _refuse_for_spelled_out(revision=revision, hf_kwargs=hf_kwargs)
        files, built = None, make_configuration(config, family)
        name = f"{built.model_type} with random weights"
    if packed:
        attention = for_documents(attention, built, family.model_class(built), dtype)
    return UnreadModel(
        family=family,
        name=name,
        config=built,
        torch_dtype=dtype,
        files=files,
        pretrained=False,
        attention=attention,
        trusted=trust_remote_code,
        resize_embeddings=resize_embeddings,
        parameter_count=count_parameters(
            built, attention.implementation, trust_remote_code, family
        ),
        liger=check_liger(use_liger_kernel, built),
    )


def _refuse_for_spelled_out(**given: object) -> None:
    """Options that change what is read from somewhere say nothing of what stands in the YAML."""
    for name, value in given.items():
        if value:
            raise UserError(
                f"{name} goes with a configuration from a folder or the Hub.",
                fix="leave it out, and write what you want into config itself",
                argument=name,
            )
