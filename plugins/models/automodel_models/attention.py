"""How a model computes attention: transformers' implementation, and the kernels behind SDPA.

Measured on an H100, a step with SDPA's cuDNN kernels takes 8% less than one with its flash kernels;
for rows of several documents, where SDPA needs a dense mask, the kernels of cuDNN's attention of
ragged rows take six tenths of the time of FlexAttention's (https://arxiv.org/abs/2412.05496), and
torch's varlen kernels about as long (docs/benchmarks/race.md).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import attrs
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from automodel_core.errors import UserError
from automodel_core.train.documents import sees_all_before

FLASH_ATTENTION = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
# SDPA's kernels in the order of their speed where all of them work.
FASTEST_FIRST = ("cudnn", "flash", "efficient", "math")
KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
CPU_KERNELS = {"flash", "math"}
HOPPER = (9, 0)
VARLEN = "varlen"
CUDNN = "cudnn"
# What cuDNN's ragged attention was measured with: its version, and widths of a head.
MEASURED_CUDNN, MEASURED_WIDTHS = 91900, (64, 128)
# What models may give attention that it is not used with.
WITHOUT = ("sliding_window", "softcap", "s_aux")
HALVES = (torch.bfloat16, torch.float16)
FLEX_WIDTH = 16  # of a head, at least
FLEX = "flex_attention"


@attrs.frozen
class Attention:
    """What computes attention.

    Attributes:
        implementation: transformers' name for it; None lets transformers choose: SDPA where the
            model supports it.
        kernels: SDPA's, in the order in which they are tried; none leaves PyTorch's own order.
        choices: What was chosen here and not by the YAML, in words.
    """

    implementation: str | None = None
    kernels: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it, SDPA tries the kernels in their order, in all of this process: compiled
        layers and those that compute again in the backward pass included."""
        if not self.kernels:
            yield
            return
        with sdpa_kernel([KERNELS[name] for name in self.kernels], set_priority=True):
            yield


def choose_attention(
    asked: str | None,
    use_sdpa_patching: Literal["auto"] | bool,
    sdpa_method: Sequence[str] | None,
    dtype: torch.dtype | Literal["auto"],
    *,
    images: bool,
) -> Attention:
    """From what the YAML writes to what computes attention.

    Args:
        asked: `attn_implementation`.
        use_sdpa_patching: Whether SDPA's kernels are tried in an order of ours; "auto" where that
            was measured faster.
        sdpa_method: That order; None is FASTEST_FIRST.
        dtype: `torch_dtype`.
        images: Whether the model sees.

    Raises:
        UserError: It isn't installed, doesn't work here, or doesn't exist.
    """
    if images and asked in (VARLEN, CUDNN):
        raise _unusable(f"attn_implementation: {asked} is for text: images need a mask.")
    choices = []
    implementation = None if asked == "auto" else _registered(asked, dtype)
    kernels = _kernels(use_sdpa_patching, sdpa_method)
    if kernels and use_sdpa_patching == "auto" and implementation in (None, "sdpa"):
        choices.append(f"attention: SDPA tries {', '.join(kernels)}, the fastest order on Hopper")
    return Attention(implementation, kernels, tuple(choices))


def for_documents(
    attention: Attention,
    config: PretrainedConfig,
    model_class: type[PreTrainedModel] | None,
    dtype: torch.dtype | Literal["auto"] = "auto",
) -> Attention:
    """What computes attention in rows of several documents, where the YAML leaves it open: cuDNN
    where its package is and it was measured faster, or flex, if the model can, and is one of text
    alone.

    Args:
        attention: What was chosen without regard to documents.
        config: The model's.
        model_class: Its class.
        dtype: `torch_dtype`; "auto" is what the weights are stored in.
    """
    can = torch.cuda.is_available() and getattr(model_class, "_supports_flex_attn", False)
    if attention.implementation or not can:  # models without heads can't, either
        return attention
    text = config.get_text_config()
    if text is not config:  # the vision tower's too, which would compile for each size of images
        return attention
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if width < FLEX_WIDTH or getattr(text, "attention_dropout", 0.0):  # flex has no dropout
        return attention
    dtype = getattr(text, "dtype", None) if dtype == "auto" else dtype
    if width in MEASURED_WIDTHS and dtype in HALVES and cudnn_can(text):
        name, implementation = CUDNN, register_cudnn()
    else:
        name, implementation = "flex", register_flex()
    chosen = f"attention: {name}, the fastest for rows of several documents"
    return attrs.evolve(attention, implementation=implementation, choices=(chosen,))


def cudnn_can(config: PretrainedConfig) -> bool:
    """Whether cuDNN's ragged attention computes what that model does, and was measured faster than
    flex on such a GPU."""
    capped = getattr(config, "attn_logit_softcapping", None)
    measured = torch.cuda.get_device_capability() == HOPPER and cudnn_version() >= MEASURED_CUDNN
    return measured and not capped and sees_all_before(config)


def cudnn_version() -> int:
    """Of the cuDNN behind the package `nvidia-cudnn-frontend`; 0 where that can't be loaded."""
    try:
        import cudnn

        return cudnn.backend_version()
    except (ImportError, OSError, RuntimeError, AssertionError):
        return 0


def _registered(asked: str | None, dtype: torch.dtype | Literal["auto"]) -> str | None:
    """transformers' name of an attention."""
    if asked in ("flex", FLEX):
        _need_gpu("flex", "PyTorch's FlexAttention trains on CUDA devices only")
        return register_flex()
    if asked == VARLEN:
        _need_gpu(VARLEN, "torch's varlen kernels run on CUDA devices only")
        if find_spec("torch.nn.attention.varlen") is None:
            raise _unusable(f"PyTorch {torch.__version__} has no torch.nn.attention.varlen.")
        if dtype == torch.float32:
            raise _unusable("torch's varlen kernels compute in bfloat16 or float16, not float32.")
        return register_varlen()
    if asked == CUDNN:
        _need_gpu(CUDNN, "cuDNN's kernels run on CUDA devices only")
        if cudnn_version() < MEASURED_CUDNN:
            raise _unusable(
                "cudnn needs the package nvidia-cudnn-frontend and cuDNN 9.19 or newer.",
                "pip install nvidia-cudnn-frontend, or write attn_implementation: flex",
            )
        if dtype == torch.float32:
            raise _unusable("cuDNN's attention computes in bfloat16 or float16, not float32.")
        return register_cudnn()
    check_attention(asked)
    return asked


def check_attention(implementation: str | None) -> None:
    """Refuse an attention that isn't installed.

    Raises:
        UserError: Its package is missing, it would be fetched from the Hub and run, or no such
            attention exists.
    """
    if implementation is None:
        return
    package = FLASH_ATTENTION.get(implementation)
    if package and find_spec(package) is None:
        raise _unusable(
            f"{implementation} needs the package {package}, which isn't installed.",
            "write attn_implementation: sdpa, which needs no package and is nearly as fast",
        )
    if "/" in implementation:
        raise _unusable(
            f"{implementation} is a kernel on the Hub: code that would be fetched and run."
        )
    ours = {VARLEN, FLEX, CUDNN}
    known = {key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in key} - ours
    known |= {"auto", "eager", "flex", VARLEN, CUDNN}
    if implementation not in known:
        raise _unusable(
            f"There is no attention called {implementation}.",
            f"write one of {', '.join(sorted(known))}",
        )


def _need_gpu(name: str, why: str) -> None:
    if not torch.cuda.is_available():
        raise _unusable(f"attn_implementation: {name} needs a GPU: {why}.")


def _unusable(message: str, fix: str = "write attn_implementation: sdpa") -> UserError:
    return UserError(message, fix=fix, argument="attn_implementation")


def _kernels(
    use_sdpa_patching: Literal["auto"] | bool, sdpa_method: Sequence[str] | None
) -> tuple[str, ...]:
    """SDPA's kernels in the order in which they are to be tried; none if PyTorch's order stays."""
    named = _named(sdpa_method) if sdpa_method is not None else FASTEST_FIRST
    if sdpa_method is not None and use_sdpa_patching is False:
        raise UserError(
            "sdpa_method is an order that use_sdpa_patching: false says not to use.",
            fix="leave one of the two out",
            argument="sdpa_method",
        )
    if use_sdpa_patching is True or sdpa_method is not None:
        return named
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() >= HOPPER
    return named if use_sdpa_patching == "auto" and hopper else ()


def _named(methods: Sequence[str]) -> tuple[str, ...]:
    """`sdpa_method` in our names: `CUDNN_ATTENTION`, `cudnn_attention` and `cudnn` are one."""
    names = [each.lower().rpartition(".")[2].removesuffix("_attention") for each in methods]
    for name, written in zip(names, methods, strict=True):
        if name not in KERNELS:
            raise UserError(
                f"SDPA has no kernel {written}.",
                fix=f"write some of {', '.join(KERNELS)}",
                argument="sdpa_method",
            )
    if not names or (not torch.cuda.is_available() and CPU_KERNELS.isdisjoint(names)):
        raise UserError(
            "sdpa_method names no kernel that works here.",
            fix="add math, which works everywhere",
            argument="sdpa_method",
        )
    return tuple(dict.fromkeys(names))


def register_flex() -> str:
    """Make transformers' FlexAttention work under autocast, where it would raise; otherwise it
    computes as before."""
    AttentionInterface.register(FLEX, cast_flex_attention)
    return FLEX


def register_varlen() -> str:
    """Make torch's varlen kernels known to transformers, under the name VARLEN. Where transformers
    has to make a mask, as for padded prompts, it is one for SDPA."""
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, sdpa_mask)
    return VARLEN


def register_cudnn() -> str:
    """Make cuDNN's ragged attention known to transformers, as `register_varlen` does."""
    AttentionInterface.register(CUDNN, cudnn_attention)
    AttentionMaskInterface.register(CUDNN, sdpa_mask)
    return CUDNN


def cast_flex_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **named: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' FlexAttention in the precision of autocast; rotary embeddings make queries and
    keys float32 beside bfloat16 values. Shapes as in `varlen_attention`."""
    query, key, value = as_autocast(query, key, value)
    return flex_attention_forward(module, query, key, value, attention_mask, **named)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each token to what is before it in its document, by `torch.nn.attention.varlen`.

    What these kernels can't do outside of training is left to SDPA: masks, cached keys, float32.

    Args:
        module: The attention layer.
        query: `[batch, heads, sequence, width]`.
        key: `[batch, kv_heads, sequence, width]`.
        value: As `key`.
        attention_mask: Of no meaning if `cu_seq_lens_q` is given.
        dropout: Of attention weights, which these kernels don't have.
        scaling: Of the scores; `width ** -0.5` if left out.
        sliding_window: Tokens that a token sees, itself included; None is all before it.
        cu_seq_lens_q: `[documents + 1]`, int32: where documents begin and the last one ends, with
            the rows of the batch one after another. Left out, each row is one document.

    Returns:
        `[batch, sequence, heads, width]`, and no weights.
    """
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = as_autocast(query, key, value)
    whole_rows = attention_mask is None and query.shape[2] == key.shape[2]
    if cu_seq_lens_q is None and (not whole_rows or query.dtype == torch.float32):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **named
        )
    if dropout:
        raise UserError(
            "torch's varlen kernels have no dropout, and this model drops attention weights.",
            fix="write attn_implementation: sdpa, or hf_kwargs: {attention_dropout: 0.0}",
            path=("model", "attn_implementation"),
        )
    batch, heads, length, width = query.shape
    query, key, value = (
        each.transpose(1, 2).reshape(batch * length, -1, width) for each in (query, key, value)
    )
    grouped: dict[str, Any] = {}
    if key.shape[1] != heads:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            grouped["enable_gqa"] = True
        else:  # torch 2.11
            times = heads // key.shape[1]
            key, value = (each.repeat_interleave(times, dim=1) for each in (key, value))
    bounds = cu_seq_lens_q
    if bounds is None:
        bounds = torch.arange(
            0, (batch + 1) * length, length, dtype=torch.int32, device=query.device
        )
    window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
    output = varlen_attn(
        query, key, value, bounds, bounds, length, length,
        scale=scaling, window_size=window, **grouped,
    )  # fmt: skip
    return output.view(batch, length, heads, -1), None


def cudnn_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **named: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of each token to what is before it in its document, by cuDNN; by SDPA where no
    documents are told, as for prompts. Shapes and arguments as in `varlen_attention`."""
    from automodel_models.cudnn_documents import attend_within

    query, key, value = as_autocast(query, key, value)
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **named
        )
    unknown = [name for name in WITHOUT if named.get(name) is not None]
    unknown += ["attention_dropout"] * bool(dropout)
    unknown += [] if query.dtype in HALVES else [str(query.dtype).removeprefix("torch.")]
    if unknown:
        raise UserError(
            f"cuDNN's attention of documents is used without {unknown[0]}, and this model has it.",
            fix="write attn_implementation: flex",
            path=("model", "attn_implementation"),
        )
    batch, heads, length, width = query.shape
    query, key, value = (
        each.transpose(1, 2).reshape(batch * length, -1, width) for each in (query, key, value)
    )
    output = attend_within(query, key, value, cu_seq_lens_q, length, scaling)
    return output.view(batch, length, heads, width), None


def as_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In the dtype of autocast, where it is on."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(each.to(torch.get_autocast_dtype(kind)) for each in tensors)
