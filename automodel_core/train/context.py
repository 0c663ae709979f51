"""What a run is told besides its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    import pluggy

    from automodel_core.targets import Targets


@attrs.frozen(kw_only=True)
class RunContext:
    """How the command line wants this run.

    Attributes:
        targets: Resolves and builds the `_target_` sections under the reader's trust policy.
        hooks: The observers of installed packages.
        effective_yaml: The configuration as it is saved beside the run: defaults filled in,
            secrets as placeholders.
        resume: "latest", "none", or the path of a checkpoint.
        fresh: Start a new folder beside `checkpoint_dir` if that one holds a run already.
        verbosity: -1 quiet, 0 normal, 1 and more verbose.
        command: The command line that started this run, for the closing hints.
        place: Called with a config path; returns where that value was written, if anywhere.
        provenance: What else the run folder records, such as the allowed prefixes.
    """

    targets: Targets
    hooks: pluggy.HookRelay
    effective_yaml: str
    resume: str = "latest"
    fresh: bool = False
    verbosity: int = 0
    command: str = "automodel run"
    place: Any = None
    provenance: dict[str, Any] = attrs.field(factory=dict)
