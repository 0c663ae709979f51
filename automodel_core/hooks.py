"""Every hook of a run. Targets compute, hooks observe: a hook never changes the numbers of a run.

A package implements hooks in a module of its own,

    from automodel_core.hooks import hookimpl

    @hookimpl
    def automodel_step_end(step, metrics):
        print(step, metrics["loss"])

and announces that module in its pyproject.toml:

    [project.entry-points."automodel.hooks"]
    my_hooks = "my_package.hooks"

An implementation takes the arguments that it wants, by name. Implementations are called in the
order of (distribution, entry-point name), the same on every node. One that raises is dropped for
the rest of the run, with one line in the log. Random state is put back after each call.

Observers run on rank 0 alone; marked `@all_ranks`, on every rank. They must return soon, must not
communicate with other ranks (those may not be listening), and must not change what they are given.
There is no hook per micro-batch: it would be in the way of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from automodel_core.arguments import Finding
    from automodel_core.config.schema import RunConfig

PROJECT = "automodel"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Function = TypeVar("Function", bound=Callable[..., Any])


def all_ranks(function: Function) -> Function:
    """Mark an observer that is to run on every rank. Use it below `@hookimpl`."""
    function.automodel_all_ranks = True
    return function


@hookspec
def automodel_configure(config: RunConfig, marks: Mapping) -> Iterable[Finding] | None:
    """Read the configuration of a run that is about to start and report what is wrong with it.

    Args:
        config: A copy of the whole configuration; changing it changes nothing.
        marks: For every path in the configuration, where it was written.

    Returns:
        Findings, which stop the run; None or an empty list if all is well.
    """


@hookspec(firstresult=True)
def automodel_launch(config: RunConfig, argv: Sequence[str]) -> int | None:
    """Start the run somewhere else, such as on a cluster, instead of in this process.

    Only asked of the hook module whose entry-point name is the launcher that the YAML or the
    command line names. Errors are shown to the user who named it.

    Args:
        config: The whole configuration.
        argv: The command line after the program's name, to be started again elsewhere.

    Returns:
        The exit code of this process; None to let the run go on here.
    """


@hookspec
def automodel_run_start(
    folder: Path, config: RunConfig, step: int, total_steps: int | None
) -> None:
    """Everything is built and training begins.

    Args:
        folder: The run folder.
        config: A copy of the whole configuration.
        step: Optimizer steps done before, by the run that this one resumes.
        total_steps: Optimizer steps when the run is complete; None if a stream's end decides.
    """


@hookspec
def automodel_run_end(folder: Path, step: int) -> None:
    """The run has reached its end. Not called for one that failed or was stopped.

    Args:
        folder: The run folder.
        step: Optimizer steps done.
    """


@hookspec
def automodel_model_built(folder: Path, model: PreTrainedModel) -> None:
    """The model has its weights, and adapters and sharding if the run asks for them.

    Args:
        folder: The run folder.
        model: The model, to look at only.
    """


@hookspec
def automodel_step_end(folder: Path, step: int, metrics: Mapping[str, float]) -> None:
    """An optimizer step is done.

    Args:
        folder: The run folder.
        step: Its number; the first is 1.
        metrics: What `training.jsonl` holds of it: loss, grad_norm, lr, tps and more.
    """


@hookspec
def automodel_validation_end(folder: Path, step: int, metrics: Mapping[str, float]) -> None:
    """The validation set has been gone through.

    Args:
        folder: The run folder.
        step: Optimizer steps done.
        metrics: What `validation.jsonl` holds of it: loss, num_label_tokens, seconds.
    """


@hookspec
def automodel_checkpoint_saved(folder: Path, step: int, path: Path) -> None:
    """A checkpoint is complete on disk.

    Args:
        folder: The run folder.
        step: Optimizer steps done.
        path: The checkpoint; `model/` in it opens in transformers.
    """


@hookspec
def automodel_checkpoint_loaded(folder: Path, step: int, path: Path) -> None:
    """The run goes on from a checkpoint.

    Args:
        folder: The run folder.
        step: Optimizer steps that it holds.
        path: The checkpoint.
    """


@hookspec
def automodel_exception(folder: Path, step: int, error: BaseException) -> None:
    """The run ends early: by a fault, a guard, or a signal. The error goes on after this.

    Args:
        folder: The run folder.
        step: Optimizer steps done.
        error: What ended it.
    """
