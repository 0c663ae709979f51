"""From MODEL_OR_RUN, as a user types it, to the targets that it is built from.

chat, generate and explain share it. Nothing here imports torch: the weights are read by
`automodel_core/answer/loading.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from automodel_core.cli.loading import Loaded, load
from automodel_core.config.report import ConfigError, Problem
from automodel_core.config.schema import FreezeConfig, PreProcessor, RunConfig, Target
from automodel_core.config.secrets import variables_in
from automodel_core.errors import UserError
from automodel_core.peft_folder import base_of_adapter, peft_target
from automodel_core.registry import Registry
from automodel_core.targets import Targets
from automodel_core.train.run_folder import checkpoint_at
from automodel_core.train.status import read_status
from automodel_core.trust import Trust

# The sections that a model is made from. What else a run's configuration names need not be
# installed, or be allowed, any more.
SECTIONS = ("model", "peft", "tokenizer")

DEFAULT_SEED = 42


@attrs.frozen(kw_only=True)
class FoundModel:
    """What a name on the command line stands for.

    Attributes:
        name: For the screen: the folder that holds the weights or the adapter, else as typed.
        model: The target of the model; with an adapter, of its base.
        weights: A folder with a later state of `model` to read instead of its own weights.
        peft: The target of the adapter, if there is one.
        adapter: The folder that `Adapter.load` reads after `apply`; None if `peft` itself names it.
        before: The model that a run with all weights started from.
        tokenizer: The tokenizer, if it is not the model's own.
        processor: The processor, likewise.
        loaded: The configuration of the run that made it, if one did.
        targets: Builds `model` and `peft` under the reader's trust policy.
    """

    name: str
    model: Target
    weights: Path | None = None
    peft: Target | None = None
    adapter: Path | None = None
    before: Target | None = None
    tokenizer: PreProcessor | None = None
    processor: PreProcessor | None = None
    loaded: Loaded | None = None
    targets: Targets

    @property
    def config(self) -> RunConfig | None:
        """The configuration of the run that made it, if one did."""
        return self.loaded.config if self.loaded else None

    @property
    def freezing(self) -> FreezeConfig | None:
        """What that run froze."""
        return self.config.freeze_config if self.config else None

    @property
    def seed(self) -> int:
        """The run's seed: weights that no file holds are drawn from it again."""
        return self.config.rng.seed if self.config else DEFAULT_SEED

    def base(self) -> FoundModel:
        """The model before it was trained, with the tokenizer of now.

        Raises:
            UserError: It is a plain model: nothing says what it was before.
        """
        if self.peft is not None:
            return attrs.evolve(self, name=_named(self.model), peft=None, adapter=None)
        if self.before is not None:
            name = _named(self.before)
            return attrs.evolve(self, name=name, model=self.before, weights=None, before=None)
        raise UserError(
            f"{self.name} is a plain model, and nothing says what it was trained from.",
            fix="name a run, one of its checkpoints, or an adapter",
        )

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Show a UserError from inside at the line of the run's configuration that it is about."""
        try:
            yield
        except UserError as error:
            if self.loaded is None:
                raise
            redact, place = self.loaded.redact, self.loaded.document.place
            mark = place(error.path) if error.path is not None else None
            raise ConfigError([Problem(redact(error.message), mark, redact(error.fix))]) from error


def find_model(
    where: str,
    *,
    allow: Sequence[str] = (),
    no_plugin: Sequence[str] = (),
    remote_code: bool = False,
    sees: bool = False,
) -> FoundModel:
    """Find out what `where` is, without reading weights.

    Args:
        where: A run folder (its `latest` checkpoint), a checkpoint, its `model/`, the folder of a
            model or of a PEFT adapter, a GGUF file, or a model on the Hub.
        allow: What a run's configuration may name besides the installed plugins.
        no_plugin: Plugins to leave out.
        remote_code: Whether a model's own Python may run.
        sees: Whether it will be shown images, which tells what kind a model on the Hub must be. A
            folder says it itself.

    Raises:
        ConfigError: The configuration of a run can't be used any more.
        UserError: There is nothing to load.
    """
    path = Path(where).expanduser()
    checkpoint = checkpoint_at(path)
    if checkpoint is not None:
        loaded = load(
            [str(checkpoint / "config.yaml")],
            allow=allow,
            no_plugin=no_plugin,
            remote_code=remote_code,
            strict=False,
            sections=SECTIONS,
        )
        return from_checkpoint(checkpoint, loaded)
    if read_status(path):
        raise UserError(
            f"The run in {path} has saved no checkpoint.", fix=f"see `automodel runs {path}`"
        )
    targets = Targets(
        Registry.discover(disabled=no_plugin),
        Trust.from_environment(allow, remote_code=remote_code),
    )
    if (path / "adapter_config.json").is_file():
        return from_adapter(path, targets, sees)
    model = plain_model(where, remote_code, sees)
    return FoundModel(name=where, model=model, targets=targets)


def from_configuration(loaded: Loaded) -> FoundModel:
    """The model that a run of a configuration would begin with.

    Raises:
        ConfigError: An environment variable that it is named by is not set.
    """
    _require_variables(loaded)
    config = loaded.require()
    return FoundModel(
        name=_named(config.model),
        model=config.model,
        peft=config.peft,
        tokenizer=config.tokenizer,
        processor=config.processor,
        loaded=loaded,
        targets=loaded.targets,
    )


def from_checkpoint(checkpoint: Path, loaded: Loaded) -> FoundModel:
    """A checkpoint of a run: an adapter on the run's model, or a model with all its weights.

    The latter is a plain transformers folder, which is read as such. A model target from somebody
    else's package is built as in the run, because it may know what transformers doesn't.
    """
    config, folder, targets = loaded.require(), checkpoint / "model", loaded.targets
    _require_variables(loaded)
    common: dict[str, Any] = {
        "name": str(folder),
        "loaded": loaded,
        "targets": targets,
        "tokenizer": PreProcessor(pretrained_model_name_or_path=str(folder)),
        "processor": saved_processor(folder),
    }
    if config.peft is not None:
        return FoundModel(model=config.model, peft=config.peft, adapter=folder, **common)
    common["before"] = config.model
    plain = plain_model(str(folder), config.model.arguments.get("trust_remote_code") is True)
    owners = [targets.resolve(each).record for each in (config.model, plain)]
    if owners[0] is None or owners[0].distribution != owners[1].distribution:
        return FoundModel(model=config.model, weights=folder, **common)
    return FoundModel(model=plain, **common)


def _require_variables(loaded: Loaded) -> None:
    for section in SECTIONS:
        for variable in variables_in(loaded.document.get((section,))):
            if unset := variable.unset(loaded.environ):
                mark = loaded.document.place((section,))
                message = f"The environment variable {unset[0]} is not set."
                raise ConfigError([Problem(message, mark, "set it as for the run")])


def from_adapter(folder: Path, targets: Targets, sees: bool = False) -> FoundModel:
    """An adapter that PEFT wrote, on the base model that its adapter_config.json names.

    Raises:
        UserError: It names none.
    """
    base, revision = base_of_adapter(folder)
    processor = saved_processor(folder)
    model = plain_model(base, remote_code=False, sees=sees or processor is not None)
    if revision is not None and not Path(base).expanduser().exists():
        model = attrs.evolve(model, arguments={**model.arguments, "revision": revision})
    own_tokenizer = None
    if (folder / "tokenizer_config.json").is_file():
        own_tokenizer = PreProcessor(pretrained_model_name_or_path=str(folder))
    return FoundModel(
        name=str(folder),
        model=model,
        peft=peft_target(folder),
        tokenizer=own_tokenizer,
        processor=processor,
        targets=targets,
    )


def plain_model(where: str, remote_code: bool, sees: bool = False) -> Target:
    """A transformers model that no configuration of ours describes; one that sees if it `sees`, or
    its folder says so."""
    arguments: dict[str, Any] = {"pretrained_model_name_or_path": where}
    if remote_code:
        arguments["trust_remote_code"] = True
    name = "image_text" if sees or has_vision(Path(where).expanduser()) else "causal_lm"
    return Target(name, "models", arguments, ("model",))


def has_vision(folder: Path) -> bool:
    """Whether a folder holds a model that sees: with a configuration for that and a processor."""
    if not any((folder / f"{each}processor_config.json").is_file() for each in ("", "pre")):
        return False
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "vision_config" in config


def saved_processor(folder: Path) -> PreProcessor | None:
    """The processor beside a saved model or adapter, if there is one."""
    if not (folder / "processor_config.json").is_file():
        return None
    return PreProcessor(pretrained_model_name_or_path=str(folder))


def _named(model: Target) -> str:
    """What a model section calls its model."""
    return str(model.arguments.get("pretrained_model_name_or_path", model.name))
