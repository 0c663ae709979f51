"""A transformers folder from a sharded model, written by all processes at once.

Staging copies what this process holds to the host, each part on one process only; then the run goes
on. Writing needs no collective on tensors: every process writes its parts to a file of its own,
and when all have, each puts together some of the weight files from the parts it finds there, one
tensor at a time. No weight file has two writers, which network file systems don't promise to keep
apart, and nobody holds more than the parts that it staged and one whole tensor.

torch's HuggingFaceStorageWriter with consolidation has the same two stages, but writes through
serialisers that copy every tensor, ends in a process-group barrier of the default group, and knows
no ties.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from automodel_core.errors import UserError
from automodel_core.train.model_files import INDEX, SINGLE
from automodel_core.train.sharded.pieces import Piece, owned_pieces
from automodel_core.train.sharded.stored_tensors import (
    Described,
    StoredTensors,
    write_pieces,
    write_safetensors,
)
from automodel_core.train.together import Together

# transformers' own limits for one file of weights have been 5 and 50 GB.
LARGEST_FILE = 5 * 10**9
# Below this a file of its own for every process isn't worth it.
SMALLEST_FILE = 256 * 10**6
PARTS = ".parts"


@attrs.frozen
class WeightFile:
    """A file that will hold whole tensors.

    Attributes:
        name: In the model's folder.
        tensors: What is in it, in order.
        rank: Who writes it.
    """

    name: str
    tensors: dict[str, Described]
    rank: int


@attrs.frozen
class StagedModel:
    """A copy of this process's parts of a model, and who will write what of it.

    Attributes:
        parts: On the CPU; empty when they are written.
        files: The same on every process.
    """

    parts: list[Piece]
    files: list[WeightFile]

    def write(
        self,
        folder: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        together: Together,
    ) -> None:
        """Write what `AutoModelForCausalLM.from_pretrained` opens; all processes must call it.

        Args:
            folder: The same for all processes, on a file system that all see.
            model: The model that was staged; only its configuration is looked at.

        Raises:
            UserError: Another process's parts aren't there.
            OSError: A file can't be written.
            RuntimeError: Another process failed.
        """
        together.do(lambda: self._write_parts(folder, together.rank))
        together.do(lambda: self._join_parts(folder, together))

        def finish() -> None:
            if together.rank == 0:
                shutil.rmtree(folder / PARTS)
                self._write_index(folder)
                save_all_but_weights(folder, model)
                tokenizer.save_pretrained(folder)

        together.do(finish)

    def _write_parts(self, folder: Path, rank: int) -> None:
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        write_pieces(_part_file(folder, rank), self.parts)
        self.parts.clear()

    def _join_parts(self, folder: Path, together: Together) -> None:
        paths = [_part_file(folder, rank) for rank in range(together.size)]
        for rank, path in enumerate(paths):
            if not path.is_file():
                raise UserError(
                    f"Rank {together.rank} doesn't see what rank {rank} wrote to {folder}.",
                    fix="save to a file system that all nodes share",
                    path=("checkpoint", "checkpoint_dir"),
                )
        with StoredTensors(paths) as parts:
            for file in self.files:
                if file.rank == together.rank:
                    write_safetensors(
                        folder / file.name,
                        file.tensors,
                        (parts.read(name) for name in file.tensors),
                        {"format": "pt"},
                    )

    def _write_index(self, folder: Path) -> None:
        if len(self.files) > 1:
            size = sum(each.nbytes for file in self.files for each in file.tensors.values())
            names = {name: file.name for file in self.files for name in file.tensors}
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def stage_model(model: PreTrainedModel, together: Together, *, copy: bool = True) -> StagedModel:
    """Stage what this process will write of a model; a copy costs its shard in the host's memory.

    No process waits for another.
    """
    tensors = saved_tensors(model)
    headers = {name: Described.of(tensor) for name, tensor in tensors.items()}
    return StagedModel(staged(tensors, copy=copy), plan_files(headers, together.size))


def staged(tensors: Mapping[str, torch.Tensor], *, copy: bool = True) -> list[Piece]:
    """What this process writes of tensors that all hold together, in the host's memory.

    Args:
        copy: Whether the run changes them before they are written; if not, the host's own will do.
    """
    return [
        attrs.evolve(piece, values=piece.values.to("cpu", copy=copy))
        for piece in owned_pieces(tensors)
    ]


def saved_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The parameters and stored buffers under the names that files have them by, ties once."""
    ignored = set(model._keys_to_ignore_on_save or ())
    tied = model.all_tied_weights_keys or {}
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name in ignored or not torch.is_tensor(tensor):
            continue
        # Of tied names the one that transformers ties the others to.
        if id(tensor) not in names or names[id(tensor)] in tied:
            names[id(tensor)] = name
    return {name: state[name] for name in names.values()}


def can_save_sharded(model: PreTrainedModel) -> bool:
    """Whether the files' tensors are the model's own; transformers merges or renames some models'.

    Args:
        model: Not yet sharded (sharding renames its classes); its values don't matter.
    """
    own = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in saved_tensors(model).items()
    }
    in_files = revert_weight_conversion(model, dict(own))
    return {k: x.shape for k, x in in_files.items()} == {k: x.shape for k, x in own.items()}


def plan_files(headers: Mapping[str, Described], ranks: int) -> list[WeightFile]:
    """Cut a model into files in the order of its tensors, about as many as there are processes.

    The same on every process. The processes write about the same number of bytes.
    """
    total = sum(each.nbytes for each in headers.values())
    limit = min(LARGEST_FILE, max(SMALLEST_FILE, -(-total // ranks)))
    groups: list[dict[str, Described]] = [{}]
    size = 0
    for name, each in headers.items():
        if size and size + each.nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = each
        size += each.nbytes
    if len(groups) == 1:
        names = [SINGLE]
    else:
        stem = SINGLE.removesuffix(".safetensors")
        names = [
            f"{stem}-{number:05}-of-{len(groups):05}.safetensors"
            for number in range(1, len(groups) + 1)
        ]
    loads = [0] * ranks
    files = []
    for name, group in zip(names, groups, strict=True):
        rank = loads.index(min(loads))
        loads[rank] += sum(each.nbytes for each in group.values())
        files.append(WeightFile(name, aligned(group), rank))
    return files


def aligned(headers: Mapping[str, Described]) -> dict[str, Described]:
    """Larger elements first, as `write_safetensors` wants them."""
    return dict(sorted(headers.items(), key=lambda item: -item[1].itemsize))


def save_all_but_weights(folder: Path, model: PreTrainedModel) -> None:
    """Everything that transformers puts beside the weights: configurations, code of the model's."""
    kept = {path.name for path in folder.glob("*.safetensors*")}
    aside = folder / ".without-weights"
    model.save_pretrained(aside, state_dict={})
    for path in aside.iterdir():
        if path.name not in kept and not path.name.startswith("model.safetensors"):
            path.rename(folder / path.name)
    shutil.rmtree(aside)


def _part_file(folder: Path, rank: int) -> Path:
    return folder / PARTS / f"{rank:05}.safetensors"
