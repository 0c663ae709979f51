"""`automodel merge`, top to bottom: base, adapter, merged folder, comparison."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import AutoTokenizer

from automodel_core.config.schema import RunConfig
from automodel_core.errors import UserError
from automodel_core.export.adapters import adapter_of, prompts_of
from automodel_core.export.base import (
    Base,
    auto_class,
    dequantized_base,
    first_line,
    named_base,
    rewritten_base,
    stored_base,
)
from automodel_core.export.companions import copy_companions
from automodel_core.export.comparing import SENTENCES, Comparison, compare, continuations
from automodel_core.export.finding import Saved
from automodel_core.export.merging import Merge, merged_config
from automodel_core.export.stored import open_stored
from automodel_core.export.writing import ShardWriter, check_free, published
from automodel_core.peft_folder import base_of_adapter
from automodel_core.protocols import Adapter, ModelSource
from automodel_core.targets import Targets
from automodel_core.train.freezing import freeze
from automodel_core.train.quiet import quiet_libraries

Say = Callable[[str], None]


@attrs.frozen(kw_only=True)
class MergeSettings:
    """What to merge, and how.

    Attributes:
        saved: The adapter.
        config: The configuration of the run that trained it; None for a folder of PEFT's.
        targets: Resolves the configuration's `_target_`s.
        out: The folder to make.
        base: Folder or Hub name of the base model, if it isn't where it was.
        dtype: What weights are written as; None keeps those of the base.
        shard_bytes: See `ShardWriter`.
        lossy: Take a quantized base for what its weights stand for; otherwise it is refused.
        check: Compare the merged with the unmerged model afterwards.
        say: Prints a line.
    """

    saved: Saved
    config: RunConfig | None
    targets: Targets
    out: Path
    base: str | None
    dtype: torch.dtype | None
    shard_bytes: int
    lossy: bool
    check: bool
    say: Say


def merge_adapter(settings: MergeSettings) -> Comparison | None:
    """Write the merged model, and compare it with the unmerged one.

    Returns:
        The comparison, if one was asked for and could be made.

    Raises:
        UserError: The base can't be found or read, the adapter doesn't fit it or can't be merged,
            or the folder can't be written.
    """
    quiet_libraries()
    check_free(settings.out)
    with open_base(settings) as base:
        seed = settings.config.rng.seed if settings.config is not None else 0
        supplied = {"seed": seed, "model_config": base.config}
        adapter = adapter_of(settings.config, settings.saved.folder, settings.targets, supplied)
        rows = write_merged(settings, base, adapter)
        settings.say(f"Merged into {settings.out}.")
        if not settings.check:
            return None
        try:
            return compared(settings, base, adapter, rows)
        except UserError as error:
            settings.say(f"It was not compared with the unmerged model: {error.message}")
            return None


def write_merged(settings: MergeSettings, base: Base, adapter: Adapter) -> int | None:
    """Make the folder; returns the rows of the embeddings if they are not the base's."""
    stored, folder = open_stored(base.folder), settings.saved.folder
    with published(settings.out, stored.bytes_on_disk()) as aside:
        model = base.without_weights()
        merger = adapter.merger(model, folder)
        merge = Merge(
            stored, model, merger, ShardWriter(aside, settings.shard_bytes), settings.dtype
        )
        settings.say(f"Merging {len(merger.names)} of {len(stored.files)} tensors of {base.folder}")
        merge.run()
        config = merged_config(merge, copy.deepcopy(base.config))
        config.save_pretrained(aside)
        copy_companions(aside, folder, base.folder)
        if merge.untied:
            settings.say("Input and output embeddings were tied in the base; now they differ.")
    rows = config.get_text_config().vocab_size
    return rows if rows != base.config.get_text_config().vocab_size else None


@contextmanager
def open_base(settings: MergeSettings) -> Iterator[Base]:
    """The model that the adapter belongs to, in safetensors.

    Raises:
        UserError: It can't be found or read, or isn't what the run trained on.
    """
    config = settings.config
    if settings.base is not None or config is None:
        named = (settings.base, None) if settings.base else base_of_adapter(settings.saved.folder)
        with in_full(settings, named_base(*named)) as base:
            yield base
    else:
        manifest = json.loads((settings.saved.checkpoint / "manifest.json").read_text())
        source: ModelSource = settings.targets.build(config.model, {"seed": config.rng.seed})
        check_same_model(source, manifest)
        if (base := stored_base(source)) is not None:
            yield base
            return
        settings.say(f"{source.name} isn't stored in safetensors: it is loaded whole.")
        dtype = getattr(torch, manifest["precision"]["frozen weights"])
        with rewritten_base(source, dtype, config.rng.seed, beside(settings.out)) as base:
            yield base


@contextmanager
def in_full(settings: MergeSettings, base: Base) -> Iterator[Base]:
    """A base as it is, or dequantized if it has to be and the user says so.

    Raises:
        UserError: Its weights are quantized and must not be, or can't be dequantized.
    """
    if base.quantized is None:
        yield base
        return
    if not settings.lossy:
        raise UserError(
            f"The weights of {base.folder} are quantized ({base.quantized}): an adapter can't be "
            "merged into them without a loss.",
            fix="name the model that it was quantized from with --base, or add --lossy",
        )
    settings.say(
        f"{base.folder} is quantized ({base.quantized}): it is loaded whole, and each weight is "
        "taken for the number that it stands for. What quantizing it has lost stays lost; the "
        "merged model isn't quantized any more"
        + (", and in float32 (--dtype bfloat16 halves it)." if settings.dtype is None else ".")
    )
    with dequantized_base(base, beside(settings.out)) as whole:
        yield whole


def beside(target: Path) -> Path:
    """The folder that `target` will be in, made if need be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent


def check_same_model(source: ModelSource, manifest: dict[str, Any]) -> None:
    """Refuse a branch on the Hub that has moved on since the run."""
    if source.revision != manifest.get("revision"):
        raise UserError(
            f"{source.name} is at commit {source.revision} now, and the adapter was trained on "
            f"{manifest.get('revision')}.",
            fix="name the folder of the old one with --base",
        )


def compared(settings: MergeSettings, base: Base, adapter: Adapter, rows: int | None) -> Comparison:
    """Both models in float32, one after the other, on the run's prompts.

    Raises:
        UserError: The prompts or the unmerged model can't be had.
    """
    tokenizer = tokenizer_in(settings.out)
    prompts = prompts_for(settings, base, tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = base.load(torch.float32, device)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    if settings.config is not None:
        freeze(model, settings.config.freeze_config)  # adapters leave frozen modules alone
    adapter.apply(model)
    adapter.load(model, settings.saved.folder)
    expected = continuations(model.eval(), tokenizer, prompts)
    del model
    gc.collect()
    merged = auto_class(base.config).from_pretrained(settings.out, dtype=torch.float32)
    return compare(merged.to(device).eval(), expected)


def tokenizer_in(folder: Path) -> Any:
    """Raises UserError if there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder} has no tokenizer: {first_line(error)}") from None


def prompts_for(settings: MergeSettings, base: Base, tokenizer: Any) -> list[list[int]]:
    """The run's own prompts; a few sentences for an adapter that comes without a run."""
    if settings.config is not None:
        supplied = {
            "tokenizer": tokenizer,
            "processor": None,
            "model_config": base.config,
            "seed": settings.config.rng.seed,
        }
        found = prompts_of(settings.config, settings.targets, tokenizer, supplied)
        if found:
            return found
    return [tokenizer(each)["input_ids"] for each in SENTENCES]
