"""Weights & Biases."""

from __future__ import annotations

import io
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from automodel_core.errors import UserError
from automodel_loggers.figures import grouped
from automodel_loggers.folders import make_folder

# Holds the run's id at W&B, in the run folder.
ID_FILE = "wandb_run_id"


class WandbLogger:
    """Curves, configuration and machine figures at Weights & Biases (https://docs.wandb.ai).

    A resumed run goes on under its id. Steps that are taken again are logged again, at the same
    place of the axis.

    Args:
        project: Where the run belongs; W&B says `uncategorized` if it is left out.
        entity: Team or user; by default that of the login.
        name: Name of the run; W&B makes one up if it is left out.
        save_dir: Folder for its files; the run folder if it is left out.
        mode: "offline" only writes files, for `wandb sync` to upload later. By default what
            WANDB_MODE says, else "online".
        group: Runs that belong together.
        tags: Words to find the run by.
        api_key: To log in with, kept nowhere. By default the login of this machine.

    Raises:
        UserError: wandb isn't installed, there is no login, or it is refused.
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        save_dir: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        api_key: str | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("wandb isn't installed here.", fix="pip install wandb") from None
        self.wandb = wandb
        self.offline = (mode or os.environ.get("WANDB_MODE", "online")) not in ("online", "shared")
        self.save_dir = make_folder(save_dir) if save_dir else None
        self.options = {
            "project": project,
            "entity": entity,
            "name": name,
            "mode": mode,
            "group": group,
            "tags": tags,
        }
        if not self.offline:
            log_in(wandb, api_key)

    def start(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        with no_command_line():
            self.run = self.wandb.init(
                **self.options,
                id=id_of_run(folder / ID_FILE, resumed=step > 0),
                resume=None if self.offline else "allow",
                dir=str(self.save_dir or folder),
                config=dict(config),
                # The terminal stays the run's own: not recorded, and without a second summary.
                settings=self.wandb.Settings(console="off", quiet=True),
            )
        # W&B's own step count can't go back, as that of a resumed run does.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log({"step": step, **grouped("train", metrics)})

    def log_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log({"step": step, **grouped("validation", metrics)})

    def finish(self, state: str) -> None:
        if state == "stopped":
            self.run.mark_preempting()  # with the exit code below: "preempted", not "failed"
        self.run.finish(exit_code=0 if state == "finished" else 1)


def log_in(wandb: ModuleType, api_key: str | None) -> None:
    """Have the server confirm the key, or the login that this machine has.

    Raises:
        UserError: There is none, or the server can't be reached or doesn't know it.
    """
    advice = "write `mode: offline` and upload later with `wandb sync`"
    try:
        with nothing_kept() if api_key else nullcontext():
            known = wandb.login(key=api_key, prompt=False)
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(
            f"Logging in to W&B failed: {str(error).partition(chr(10))[0]}",
            fix=f"check the key, or {advice}",
            argument="api_key" if api_key else None,
        ) from None
    if not known:
        raise UserError(
            "There is no login to W&B on this machine.",
            fix="run `wandb login`, or write `api_key: ${WANDB_API_KEY}` in the `wandb:` section, "
            f"or {advice}",
        )


@contextmanager
def nothing_kept() -> Iterator[None]:
    """`wandb.login` writes the key that it is given into ~/.netrc, and says so; not from here."""
    before = os.environ.get("NETRC")
    os.environ["NETRC"] = os.devnull
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        del os.environ["NETRC"]
        if before is not None:
            os.environ["NETRC"] = before


@contextmanager
def no_command_line() -> Iterator[None]:
    """wandb uploads `sys.argv`, which may hold a secret as an override."""
    before = sys.argv
    sys.argv = before[:1]
    try:
        yield
    finally:
        sys.argv = before


def id_of_run(record: Path, *, resumed: bool) -> str:
    """The id that the run had before it was stopped, else a new one, noted in `record`."""
    if resumed and record.exists():
        return record.read_text().strip()
    made = secrets.token_hex(4)
    record.write_text(f"{made}\n")
    return made
