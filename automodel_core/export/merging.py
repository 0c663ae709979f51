"""An adapter merged into its base model: tensor by tensor, in float32, in bounded memory.

What is in memory at any time: the shard that is being filled, one tensor of the base in float32,
and the adapter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

import attrs
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from automodel_core.errors import UserError
from automodel_core.export.stored import StoredTensors
from automodel_core.export.writing import ShardWriter
from automodel_core.protocols import Merger


@attrs.frozen
class Names:
    """How the tensors of a model's files belong to the model.

    Attributes:
        model_name: Stored name -> the model's name; a tensor that transformers converts when it
            reads the file (stacked experts, for instance) isn't in it.
        renamed: Which of the stored names transformers changes when it reads the file, and back
            when it saves (of most models that see).
        tied: The model's name -> all names of the same parameter, itself included.
        shapes: By the model's name.
    """

    model_name: Mapping[str, str]
    renamed: frozenset[str]
    tied: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, torch.Size]

    @cached_property
    def _stored(self) -> Mapping[str, str]:
        return {model: stored for stored, model in self.model_name.items()}

    def stored_name(self, name: str) -> str | None:
        """Where the weight that the model calls `name` is stored, maybe under a tied name."""
        spellings = (name, *self.tied[name])
        return next((self._stored[each] for each in spellings if each in self._stored), None)

    def written_name(self, name: str) -> str:
        """What the weight is called in the merged model's files."""
        stored = self._stored.get(name)
        return stored if stored in self.renamed else name


def match_names(stored: Iterable[str], model: PreTrainedModel) -> Names:
    """Match by name; transformers takes names with and without the prefix of the base class, and
    renames those of some models."""
    same: dict[int, list[str]] = defaultdict(list)
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        same[id(tensor)].append(name)
    tied = {name: tuple(names) for names in same.values() for name in names}
    prefix = f"{model.base_model_prefix}."
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    matched = {}
    for each in stored:
        renamed, converted = rename_source_key(
            each, renamings, converters, model.base_model_prefix, tensors
        )
        spellings = (each, prefix + each, each.removeprefix(prefix))
        spellings += () if converted is not None else (renamed,)
        if found := next((name for name in spellings if name in tied), None):
            matched[each] = found
    changed = {each for each, name in matched.items() if each != name} if renamings else ()
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return Names(matched, frozenset(changed), tied, shapes)


@attrs.define
class Merge:
    """One merge: reads the base, writes the merged model.

    Attributes:
        dtype: What floating-point weights are written as; None keeps each weight's own.
        untied: After `run`: weights that the base shares have become different.
    """

    stored: StoredTensors
    model: PreTrainedModel
    merger: Merger
    writer: ShardWriter
    dtype: torch.dtype | None = None
    untied: bool = False
    names: Names = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.names = match_names(self.stored.files, self.model)

    def check_complete(self) -> None:
        """See that the base has a tensor for everything that the adapter changes.

        Raises:
            UserError: It hasn't.
        """
        lost = [
            name
            for name in sorted(self.merger.names)
            if name not in self.names.tied or self.names.stored_name(name) is None
        ]
        if lost:
            raise UserError(
                f"The adapter changes {lost[0]}, and the files of the base model have no tensor of "
                "that name" + (f" (nor of {len(lost) - 1} more)." if lost[1:] else "."),
                fix="name the model that it was trained on with --base",
            )

    def run(self) -> None:
        """Write every tensor of the base, merged where the adapter changes it.

        Raises:
            UserError: A merged tensor doesn't fit the model.
        """
        self.check_complete()
        done: set[str] = set()
        for stored in self.stored.files:
            name = self.names.model_name.get(stored)
            group = self.names.tied.get(name, ())
            if not self.merger.names.intersection(group):
                written = self.names.written_name(name) if name else stored
                self.writer.add(written, self._cast(self.stored.read(stored)))
            elif name not in done:
                self._write_group(group)
                done.update(group)
        if self.untied:
            self._write_other_groups()
        self.writer.finish()

    def _write_group(self, group: tuple[str, ...]) -> None:
        """Write a tensor, or all that share one in the base: once if they are still the same."""
        merged = {name: self._merged(name) for name in group}
        first = next(iter(merged.values()))
        if all(torch.equal(first, each) for each in merged.values()):
            self.writer.add(self.names.written_name(group[0]), first)
            return
        self.untied = True
        for name, tensor in merged.items():
            self.writer.add(self.names.written_name(name), tensor)

    def _write_other_groups(self) -> None:
        """One switch unties all weights, so those that are still the same are written apart too."""
        for name, group in self.names.tied.items():
            stored = self.names.stored_name(name)
            written = self.names.written_name(name)
            if len(group) > 1 and stored is not None and written not in self.writer.shapes:
                self.writer.add(written, self._cast(self.stored.read(stored)).clone())

    def _merged(self, name: str) -> torch.Tensor:
        base = self.stored.read(self.names.stored_name(name))
        if name not in self.merger.names:
            return self._cast(base)
        dtype = self.dtype or base.dtype
        merged = self.merger.merge(name, base)
        del base  # let its pages go before the copy in the final dtype is made
        self._check_shape(name, merged)
        return merged.to(dtype)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        cast = self.dtype is not None and tensor.is_floating_point()
        return tensor.to(self.dtype) if cast else tensor

    def _check_shape(self, name: str, merged: torch.Tensor) -> None:
        """Only embeddings may have got rows."""
        own = self.names.shapes[name]
        if merged.shape == own:
            return
        if name not in vocabulary_tensors(self.model) or own[1:] != merged.shape[1:]:
            raise UserError(
                f"The adapter makes {name} {list(merged.shape)}, and the model's is {list(own)}.",
                fix="name the model that the adapter was trained on with --base",
            )


def vocabulary_tensors(model: PreTrainedModel) -> list[str]:
    """The names of the parameters that have one row per token."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    inside = {id(p) for module in modules if module is not None for p in module.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if id(parameter) in inside]


def merged_config(merge: Merge, config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of what has been written: its dtype, vocabulary, and whether embeddings
    are tied, without which transformers would overwrite one of them with the other
    (https://github.com/huggingface/transformers/issues/45127).

    Raises:
        UserError: The input and output embeddings have got different numbers of rows.
    """
    rows = {
        name: merge.writer.shapes[written][0]
        for name in vocabulary_tensors(merge.model)
        if (written := merge.names.written_name(name)) in merge.writer.shapes
    }
    if len(set(rows.values())) > 1:
        said = " and ".join(f"{name} {count}" for name, count in rows.items())
        raise UserError(
            f"The adapter brings rows for new tokens to one of the embeddings only: {said} rows.",
            fix="train and save both, with modules_to_save",
        )
    for part in {id(each): each for each in (config, config.get_text_config())}.values():
        if merge.untied:
            part.tie_word_embeddings = False
        if merge.dtype is not None:
            part.dtype = merge.dtype
    first = next(iter(rows.values()), None)
    own = merge.model.get_input_embeddings().weight.shape[0]
    if first not in (None, own):
        config.get_text_config().vocab_size = first
    config.architectures = config.architectures or [type(merge.model).__name__]
    return config
