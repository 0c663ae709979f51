"""The text of an sbatch script."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

import attrs

from automodel_launchers.shell import path_word

# Set within our own jobs: there the run goes on instead of being submitted again, and `--fresh`
# opens one folder however often the job begins again.
MARK = "AUTOMODEL_LAUNCH"

# Seconds that the other nodes have to end after the first has.
PATIENCE = 60


@attrs.frozen(kw_only=True)
class Script:
    """What an sbatch script is made from.

    Attributes:
        options: Of sbatch, in the form `name` -> value; None for one without a value.
        further: More options of sbatch, as they stand in the YAML.
        exports: What the job's environment gets from the script.
        hf_home: HF_HOME; `~` is the home on the node.
        setup: Commands to run first, on the first node.
        nodes: Nodes.
        ranks: On each node.
        port: Of the rendezvous; chosen by the job's number if None.
        container: Image to run in.
        mounts: `FROM:TO` of the container, beside the working directory and HF_HOME.
        passed: The variables that the container gets whatever its image says.
        python: The interpreter.
        argv: What follows `python -m automodel_core`.
        requeue: Whether the job begins again after it was stopped and has saved.
    """

    options: Mapping[str, str | None]
    further: Sequence[str] = ()
    exports: Mapping[str, str] = attrs.field(factory=dict)
    hf_home: str | None = None
    setup: Sequence[str] = ()
    nodes: int = 1
    ranks: int = 1
    port: int | None = None
    container: str | None = None
    mounts: Sequence[str] = ()
    passed: Sequence[str] = ()
    python: str
    argv: Sequence[str]
    requeue: bool = True

    @property
    def resumes(self) -> bool:
        """Whether the command names a checkpoint to go on from."""
        return any(each.partition("=")[0] == "--resume" for each in self.argv)

    def text(self) -> str:
        """The script."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield "#!/bin/bash"
        for name, value in self.options.items():
            yield f"#SBATCH --{name}" + ("" if value is None else f"={directive_word(value)}")
        for option in self.further:
            name, equals, value = option.partition("=")
            yield f"#SBATCH {name}{equals}{directive_word(value) if equals else ''}"
        yield ""
        yield "set -e"
        yield f'export {MARK}="{mark("$SLURM_JOB_ID")}"'
        if self.hf_home is not None:
            yield f"export HF_HOME={path_word(self.hf_home)}"
            yield 'mkdir -p "$HF_HOME"'
        for name, value in self.exports.items():
            yield f"export {name}={shlex.quote(value)}"
        yield from self.setup
        yield ""
        yield from self._start()

    def _start(self) -> Iterator[str]:
        port = "$((10000 + SLURM_JOB_ID % 20000))" if self.port is None else self.port
        yield "# The first node, where this script runs, is where the others meet."
        yield f'endpoint="$(uname -n):{port}"'
        if self.resumes:
            yield "# A job that begins again goes on from what it has saved itself."
            yield 'if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then set -- --resume latest; fi'
        yield "# With these some versions of srun would give a node's task the cores of one rank."
        yield "unset SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK"
        yield "code=0"
        words = [*self._srun(), "\\\n   ", *self._run()]
        yield " ".join(words)
        if self.requeue:
            yield "# 75: stopped by a signal, and saved."
            yield 'if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi'
        yield 'exit "$code"'

    def _srun(self) -> Iterator[str]:
        """One task on each node, with all that the job has there."""
        yield "srun"
        yield f"--ntasks={self.nodes} --ntasks-per-node=1 --cpu-bind=none"
        # A node that has saved first must not have the others killed.
        yield f"--kill-on-bad-exit=0 --wait={PATIENCE}"
        if self.container is not None:
            home = ['"$HF_HOME:$HF_HOME"'] if self.hf_home is not None else []
            mounts = ['"$PWD:$PWD"', *home, *map(path_word, self.mounts)]
            names = [MARK, *(["HF_HOME"] if home else []), *self.exports, *self.passed]
            yield f"\\\n    --container-image={shlex.quote(self.container)}"
            yield f"--container-mounts={','.join(mounts)}"
            yield f'--container-workdir="$PWD" --container-env={",".join(dict.fromkeys(names))}'

    def _run(self) -> Iterator[str]:
        """The command of a task; what it is given last wins."""
        yield f"{shlex.quote(self.python)} -u -m automodel_core {shlex.join(self.argv)}"
        yield f"\\\n    --nnodes {self.nodes} --nproc-per-node {self.ranks}"
        yield '--rdzv-endpoint "$endpoint"'
        if self.resumes:
            yield '"$@"'
        yield "|| code=$?"


def mark(job: str) -> str:
    """What MARK is in a job."""
    return f"Slurm job {job}"


def directive_word(value: str) -> str:
    """A value on an `#SBATCH` line: quoted as for a shell, but that sbatch takes a backslash for an
    escape within any quotes."""
    return shlex.quote(value).replace("\\", "\\\\")


def file_name(job_name: str) -> str:
    """A job's name as part of a file's, in which Slurm finds no pattern to replace."""
    return "".join(each if each.isalnum() or each in "._-" else "_" for each in job_name)


def log_of(job_name: str, job: str = "%j") -> str:
    """The job's log, under the directory that it was submitted from."""
    return str(PurePath("slurm") / f"{file_name(job_name)}-{job}.log")
