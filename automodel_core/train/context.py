"""What a run is told besides its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from automodel_core.config.effective import to_yaml
from automodel_core.errors import ConfigPath

if TYPE_CHECKING:
    import pluggy

    from automodel_core.targets import Targets


# In a saved configuration, the command that it was saved by. A run of such a file is a new run.
SAVED_BY = "x-saved-by"


@attrs.frozen(kw_only=True)
class RunContext:
    """How the command line wants this run.

    Attributes:
        targets: Resolves and builds the `_target_` sections under the reader's trust policy.
        hooks: The observers of installed packages.
        effective: The configuration as it is saved beside the run, a plain tree: defaults filled
            in, secrets as placeholders.
        resume: "latest", "none", or the path of a checkpoint.
        resume_override: Whether the rest of a resumed run may train differently.
        fresh: Start a new folder beside `checkpoint_dir` if that one holds a run already.
        verbosity: -1 quiet, 0 normal, 1 and more verbose.
        command: The command that goes on with this run.
        place: Called with a config path; returns where that value was written, if anywhere.
        redact: Takes the configuration's secrets out of a text.
        allowed: What the reader let the YAML name, and where; the run folder records it.
    """

    targets: Targets
    hooks: pluggy.HookRelay
    effective: dict[str, Any]
    resume: str = "latest"
    resume_override: bool = False
    fresh: bool = False
    verbosity: int = 0
    command: str = "automodel run"
    place: Callable[[ConfigPath], Any] = lambda path: None
    redact: Callable[[str], str] = str
    allowed: list[dict[str, str]] = attrs.field(factory=list)

    @property
    def effective_yaml(self) -> str:
        """The effective configuration as the run folder holds it, with where it came from."""
        return to_yaml({SAVED_BY: self.command, **self.effective})
