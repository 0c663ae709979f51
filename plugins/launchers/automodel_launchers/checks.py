"""What a job can't be asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import attrs

from automodel_core.errors import UserError
from automodel_core.protocols import Job
from automodel_launchers.shell import check_printable

if TYPE_CHECKING:
    from automodel_launchers.slurm import SlurmLauncher

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OPTION = re.compile(r"--([a-z][a-z0-9-]*)(=.*)?")
# minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]
TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):)?(\d+):(\d+)|(\d+))")
# Options of sbatch that the script has from keys of their own.
TAKEN = {
    "job-name": "job_name",
    "nodes": "nodes",
    "ntasks": "nodes and ntasks_per_node",
    "ntasks-per-node": "ntasks_per_node",
    "gpus-per-node": "gpus_per_node",
    "time": "time",
    "account": "account",
    "partition": "partition",
    "qos": "qos",
    "signal": "seconds_to_save",
    "container-image": "container_image",
    "container-mounts": "mounts",
    "export": "env",
}
NEEDED = {"chdir", "output", "open-mode", "requeue"}
# Variables that have keys of their own, and those by which Slurm and the reader steer the run.
KEYS = {"HF_HOME": "hf_home", "HF_TOKEN": "hf_token", "WANDB_API_KEY": "wandb_key"}
RESERVED = ("AUTOMODEL_", "SLURM_", "SBATCH_", "SRUN_")


def check(launcher: SlurmLauncher) -> None:
    """Refuse arguments that can't be meant. Raises UserError at the first."""
    check_printable(attrs.asdict(launcher))
    check_numbers(launcher)
    check_time(launcher)
    check_container(launcher)
    check_options(launcher.sbatch)
    check_variables(launcher.env)
    for name in ("wandb_key", "hf_token"):
        if set(getattr(launcher, name) or "") == {"*"}:
            raise refusal(name, "a saved configuration has no secrets", "write ${NAME} for it")
    if launcher.hf_home is not None and re.match(r"~[^/]", launcher.hf_home):
        raise refusal("hf_home", "only one's own home can be `~`", "write the whole path")


def check_numbers(launcher: SlurmLauncher) -> None:
    for name in ("nodes", "ntasks_per_node", "gpus_per_node", "master_port", "seconds_to_save"):
        value = getattr(launcher, name)
        most = 65535 if name in ("master_port", "seconds_to_save") else None
        if value is not None and not 1 <= value <= (most or value):
            span = f"from 1 to {most}" if most else "1 or more"
            raise refusal(name, f"it is {value}", f"write a number {span}")
    ranks, gpus = launcher.ntasks_per_node, launcher.gpus_per_node
    if ranks is not None and gpus is not None and ranks != gpus:
        raise refusal(
            "ntasks_per_node",
            f"{ranks} ranks on each node can't share {gpus} GPUs: each rank has one",
            f"write ntasks_per_node: {gpus}, or leave it out",
        )


def check_time(launcher: SlurmLauncher) -> None:
    if launcher.time is None:
        return
    found = TIME.fullmatch(launcher.time)
    if found is None:
        raise refusal("time", "it is no time limit of Slurm", 'write "HH:MM:SS" or "D-HH:MM:SS"')
    seconds = limit_seconds(found)
    if seconds <= launcher.seconds_to_save:
        raise refusal(
            "time",
            f"the run would be told to save {launcher.seconds_to_save} s before its {seconds} s "
            "are over, which is at once",
            "allow more time, or less to save (seconds_to_save)",
        )


def limit_seconds(found: re.Match[str]) -> int:
    """The seconds of a time limit that TIME has matched."""
    days, day_hours, day_minutes, day_seconds, hours, minutes, seconds, bare = (
        int(each or 0) for each in found.groups()
    )
    hours, minutes, seconds = hours + day_hours, minutes + day_minutes + bare, seconds + day_seconds
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def check_container(launcher: SlurmLauncher) -> None:
    if launcher.container_image is None:
        if launcher.mounts:
            raise refusal("mounts", "there is no container to mount into", "add container_image")
        return
    for place in (*launcher.mounts, launcher.hf_home or "", os.getcwd()):
        if "," in place:
            raise UserError(f"{place}: pyxis can't mount a path with a comma.")
    for mount in launcher.mounts:
        if not re.fullmatch(r"[^:]+:/[^:]*(:[^:]*)?", mount):
            raise refusal("mounts", f"{mount} is no mount", "write FROM:/TO, or FROM:/TO:ro")


def check_variables(names: Iterable[str]) -> None:
    for name in names:
        if not VARIABLE.fullmatch(name):
            raise refusal("env", f"`{name}` is no name of a variable", "write letters, digits, _")
        if name in KEYS:
            raise refusal("env", f"{name} has a key of its own", f"use {KEYS[name]}")
        if name.startswith(RESERVED):
            raise refusal("env", f"{name} is not for a file to say", "leave it out")


def check_options(options: list[str]) -> None:
    for option in options:
        found = OPTION.fullmatch(option)
        if found is None:
            raise refusal("sbatch", f"{option} is no option", "write it like --mem=0")
        if (name := found[1]) in TAKEN:
            raise refusal("sbatch", f"--{name} has a key of its own", f"use {TAKEN[name]}")
        if name in NEEDED:
            raise refusal("sbatch", f"--{name} is what the launcher needs itself", "leave it out")


def check_job(launcher: SlurmLauncher, job: Job) -> None:
    """Refuse what can't be started again as it is. Raises UserError."""
    for path in sorted(job.from_environment, key=str):
        if path[0] in ("setup", "sbatch"):
            raise UserError(
                f"`{path[0]}` is written into a file, and a value from the environment isn't.",
                fix="write $${NAME} for the shell on the node to fill in, or use env",
                argument=path[0],
            )
    if not "".join(job.argv).isprintable():
        raise UserError(
            "The command line holds a newline or another control character.",
            fix="write plain text, or put it into the file",
        )
    given = {each.partition("=")[0] for each in job.argv}
    for name in ("--nproc-per-node", "--nnodes", "--rdzv-endpoint"):
        if name in given:
            raise UserError(
                f"{name} is the launcher's to say.", fix="use slurm.ntasks_per_node and slurm.nodes"
            )


def check_unwritten(text: str, hidden: Mapping[str, str]) -> None:
    """Refuse a script that holds a secret. Raises UserError."""
    for name, value in hidden.items():
        if len(value) > 3 and value in text:
            raise UserError(
                f"The value of {name} stands elsewhere in the `slurm:` section or the command.",
                fix="a secret travels by the environment: remove it there",
            )


def refusal(argument: str, wrong: str, fix: str) -> UserError:
    return UserError(f"`{argument}`: {wrong}.", fix=fix, argument=argument)
