"""Causal language models: targets of the YAML's `model:` section."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PretrainedConfig

from automodel_models.families import CAUSAL_LM
from automodel_models.source import UnreadModel, drawn_model, stored_model


def from_pretrained(
    pretrained_model_name_or_path: str,
    torch_dtype: str = "auto",
    attn_implementation: str = "auto",
    use_liger_kernel: Literal["auto", True, False] = "auto",
    use_sdpa_patching: Literal["auto", True, False] = "auto",
    sdpa_method: list[str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    resize_embeddings: bool = False,
    hf_kwargs: dict[str, Any] | None = None,
    packed: bool = False,
) -> UnreadModel:
    """A causal language model with its weights, from the Hub, a folder or a GGUF file.

    Args:
        pretrained_model_name_or_path: Hub repository, folder, or `.gguf` file.
        torch_dtype: `bfloat16`, `float16`, `float32` or `auto`, with or without `torch.`.
        attn_implementation: `sdpa`, `eager`, `flex`, `varlen`, `cudnn`, `flash_attention_2` or
            `_3`; `auto` takes what was measured fastest for the model, the device and packing.
        use_liger_kernel: Liger's norms and feed-forward layers; `auto` leaves them out, because
            compiled layers are faster.
        use_sdpa_patching: Try SDPA's kernels in the order of `sdpa_method`; `auto` does on Hopper.
        sdpa_method: That order, some of `cudnn`, `flash`, `efficient`, `math`; these if left out.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run the Python that comes with the model; the command line must agree.
        gguf_file: Which GGUF of a folder or repository that holds several.
        resize_embeddings: Add rows for tokens that the tokenizer has and the model doesn't.
        hf_kwargs: Keys of the model's configuration to set otherwise.
        packed: Whether rows hold several documents; the engine says.

    Raises:
        UserError: There is no such model, it can't be reached or trained, or an option doesn't fit.
    """
    return stored_model(
        CAUSAL_LM,
        pretrained_model_name_or_path,
        gguf_file=gguf_file,
        torch_dtype=torch_dtype,
        attn_implementation=attn_implementation,
        use_liger_kernel=use_liger_kernel,
        use_sdpa_patching=use_sdpa_patching,
        sdpa_method=sdpa_method,
        packed=packed,
        revision=revision,
        trust_remote_code=trust_remote_code,
        resize_embeddings=resize_embeddings,
        hf_kwargs=hf_kwargs,
    )


def from_config(
    config: str | dict[str, Any] | PretrainedConfig,
    torch_dtype: str = "auto",
    attn_implementation: str = "auto",
    use_liger_kernel: Literal["auto", True, False] = "auto",
    use_sdpa_patching: Literal["auto", True, False] = "auto",
    sdpa_method: list[str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    resize_embeddings: bool = False,
    hf_kwargs: dict[str, Any] | None = None,
    packed: bool = False,
) -> UnreadModel:
    """A causal language model with random weights, drawn from the run's seed.

    Args:
        config: Hub repository, folder or config.json, whose tokenizer is then the model's; a
            mapping with `model_type` and whatever differs from that type's defaults; or a
            transformers configuration (`_target_: transformers.LlamaConfig`).
        torch_dtype: `bfloat16`, `float16`, `float32` or `auto`, with or without `torch.`.
        attn_implementation: `sdpa`, `eager`, `flex`, `varlen`, `cudnn`, `flash_attention_2` or
            `_3`; `auto` takes what was measured fastest for the model, the device and packing.
        use_liger_kernel: Liger's norms and feed-forward layers; `auto` leaves them out, because
            compiled layers are faster.
        use_sdpa_patching: Try SDPA's kernels in the order of `sdpa_method`; `auto` does on Hopper.
        sdpa_method: That order, some of `cudnn`, `flash`, `efficient`, `math`; these if left out.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run the Python that comes with the model; the command line must agree.
        resize_embeddings: Add rows for tokens that the tokenizer has and the model doesn't.
        hf_kwargs: Keys of the configuration to set otherwise.
        packed: Whether rows hold several documents; the engine says.

    Raises:
        UserError: There is no such configuration, or it isn't of a causal language model.
    """
    return drawn_model(
        CAUSAL_LM,
        config,
        torch_dtype=torch_dtype,
        attn_implementation=attn_implementation,
        use_liger_kernel=use_liger_kernel,
        use_sdpa_patching=use_sdpa_patching,
        sdpa_method=sdpa_method,
        packed=packed,
        revision=revision,
        trust_remote_code=trust_remote_code,
        resize_embeddings=resize_embeddings,
        hf_kwargs=hf_kwargs,
    )
