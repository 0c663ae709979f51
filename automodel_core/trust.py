"""Which objects a YAML file may name. Deny by default.

Registered plugins and aliases are trusted because somebody installed them on purpose. Beyond them
are PyTorch's optimizers, modules and schedules and transformers' configurations. Only the command
line (`--allow my_package.`), the environment (AUTOMODEL_ALLOW) and the project file widen that,

    [tool.automodel]
    allow = ["my_package."]

in the nearest pyproject.toml at or above the working directory: never the YAML, which may come from
a stranger.

A name is judged twice: as it is written, before anything is imported, and by the `__module__` and
`__qualname__` of the object that was found, so that an attribute chain leads nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from automodel_core.errors import UserError

ENVIRONMENT_VARIABLE = "AUTOMODEL_ALLOW"
PROJECT_FILE = "pyproject.toml"

# Classes below these packages, and never functions: among torch.nn's there are some that import a
# module by any name.
CLASSES = re.compile(r"(torch\.optim|torch\.nn|torchdata\.stateful_dataloader)(\.\w+)*\.[A-Z]\w*")

# Of transformers the configurations. Its models are not: they read weights as they are built.
CONFIGURATIONS = re.compile(
    r"transformers(\.models\.\w+\.configuration_\w+|\.utils\.quantization_config)?"
    r"\.[A-Z]\w*Config(\.from_pretrained)?"
)

DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")
DUNDER = re.compile(r"(^|\.)__")


@attrs.frozen
class Allowed:
    """A name that was allowed from outside the YAML, with everything below it."""

    prefix: str
    source: str


@attrs.frozen
class Trust:
    """What may be resolved. Make one with `Trust.from_environment()`.

    Attributes:
        allowed: What was allowed beyond the built-in names, and by whom; run folders record it.
        remote_code: Whether a model may run the code of its own repository, if the YAML asks too.
    """

    allowed: tuple[Allowed, ...] = ()
    remote_code: bool = False

    @classmethod
    def from_environment(cls, allow: Sequence[str] = (), *, remote_code: bool = False) -> Trust:
        """The built-in names widened by `--allow`, AUTOMODEL_ALLOW and the project file.

        Args:
            allow: The values of `--allow`.
            remote_code: Whether `--trust-remote-code` was given.

        Raises:
            UserError: An entry isn't the name of a package, module or object.
        """
        variable = os.environ.get(ENVIRONMENT_VARIABLE, "").replace(",", " ").split()
        project_file, project = _project_allow(Path.cwd())
        sources = [
            ("--allow", allow),
            (ENVIRONMENT_VARIABLE, variable),
            (str(project_file), project),
        ]
        return cls(
            tuple(
                Allowed(_prefix(each, source), source)
                for source, prefixes in sources
                for each in prefixes
            ),
            remote_code,
        )

    def permits(self, dotted: str) -> bool:
        """Whether an object of this full dotted name may be used."""
        if not DOTTED.fullmatch(dotted) or DUNDER.search(dotted):
            return False
        return is_built_in(dotted) or any(_below(dotted, each.prefix) for each in self.allowed)

    def refusal(self, dotted: str) -> UserError:
        """Why a name is not permitted, with the flag that would allow it."""
        if not DOTTED.fullmatch(dotted):
            return UserError(
                f"`{dotted}` is not the name of a target.",
                fix="write a registered name (see `automodel list-plugins`) or package.module.name",
            )
        if DUNDER.search(dotted):
            return UserError(f"`{dotted}` is refused: names with double underscores never resolve.")
        return UserError(
            f"`{dotted}` is neither registered nor trusted.",
            fix=f"if you trust it: --allow {dotted}",
        )

    def require_identity(self, found: Any, dotted: str) -> None:
        """Judge the object that `dotted` led to by its own name.

        Raises:
            UserError: It is defined somewhere that is not trusted, or doesn't say where.
        """
        true_name = identity(found)
        if true_name is None:
            raise UserError(f"`{dotted}` is not a class or function that says where it is defined.")
        if not self.permits(true_name):
            raise not_what_it_seems(dotted, true_name)


def not_what_it_seems(dotted: str, true_name: str) -> UserError:
    """A trusted name that leads to something defined elsewhere."""
    return UserError(
        f"`{dotted}` is really `{true_name}`, which is not trusted.",
        fix=f"if you trust it: --allow {true_name}",
    )


def identity(found: Any) -> str | None:
    """The dotted name under which a class or function was defined; None for anything else.

    A class method goes by the class that it was taken from, not by the base that wrote it.
    """
    owner = getattr(found, "__self__", None)
    if isinstance(owner, type):
        return f"{owner.__module__}.{owner.__qualname__}.{found.__name__}"
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if not callable(found) or not isinstance(module, str) or not isinstance(name, str):
        return None
    return f"{module}.{name}"


def is_built_in(dotted: str) -> bool:
    """Whether a name is trusted without anybody allowing it."""
    return bool(CLASSES.fullmatch(dotted) or CONFIGURATIONS.fullmatch(dotted))


def _below(dotted: str, prefix: str) -> bool:
    return dotted == prefix or dotted.startswith(f"{prefix}.")


def _prefix(text: str, source: str) -> str:
    prefix = text.strip().removesuffix(".")
    if not DOTTED.fullmatch(f"{prefix}.x"):
        raise UserError(
            f"{source}: `{text}` is not the name of a package, module or object.",
            fix="write a name such as `my_package.`",
        )
    return prefix


def _project_allow(folder: Path) -> tuple[Path | None, list[str]]:
    """`[tool.automodel] allow` of the nearest pyproject.toml at or above `folder`.

    A file that belongs to another user is passed over, as git does: on a shared machine, whoever
    can write to a folder above must not decide what we execute.
    """
    for parent in (folder, *folder.parents):
        file = parent / PROJECT_FILE
        if not file.is_file():
            continue
        if hasattr(os, "getuid") and file.stat().st_uid != os.getuid():
            return None, []
        text = file.read_text(encoding="utf-8", errors="replace")
        return file, _read_allow(file, text) if "[tool.automodel]" in text else []
    return None, []


def _read_allow(file: Path, text: str) -> list[str]:
    import tomllib

    try:
        allow = tomllib.loads(text).get("tool", {}).get("automodel", {}).get("allow", [])
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file} is not valid TOML: {error}.") from None
    if not isinstance(allow, list) or not all(isinstance(each, str) for each in allow):
        raise UserError(f"{file}: [tool.automodel] allow must be a list of names.")
    return allow
