"""The `slurm` launcher: a run as a batch job."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import attrs
import click

from automodel_core.errors import DONE, FAILED, UserError
from automodel_core.protocols import Job
from automodel_launchers import checks
from automodel_launchers.sbatch import MARK, Script, file_name, log_of, mark

# The secrets and the variables that programs look for them in.
SECRETS = {"wandb_key": "WANDB_API_KEY", "hf_token": "HF_TOKEN"}


@attrs.define(kw_only=True)
class SlurmLauncher:
    """Writes an sbatch script for the run, submits it, and prints the job's number.

    One task on each node starts that node's ranks, which meet through torchrun's rendezvous on the
    first node. Some time before the job's limit Slurm signals them: they save, and the job begins
    again and goes on.

    Args:
        job_name: Name of the job.
        nodes: Number of nodes.
        ntasks_per_node: Ranks on each node; as many as GPUs, if left out, or 1 without GPUs.
        gpus_per_node: GPUs of each node.
        time: Time limit, such as "02:00:00"; the partition's if left out.
        account: Account to charge.
        partition: Partition.
        qos: Quality of service.
        container_image: Image to run in; needs the pyxis plugin of Slurm.
        mounts: "FROM:TO" for the container, beside the working directory and hf_home.
        master_port: Port of the rendezvous on the first node; by default one that the job's number
            chooses.
        hf_home: HF_HOME on the nodes; "~" is the home there. The container gets it too.
        env: Further variables of the run's environment. Those that come from `${NAME}` travel by
            the environment alone and are written nowhere.
        setup: Shell commands to run first on the first node, such as "module load cuda".
        sbatch: Further options of sbatch, such as "--exclusive" or "--mem=0".
        seconds_to_save: How long before the time limit the run is told to save.
        wandb_key: WANDB_API_KEY of the job; never written.
        hf_token: HF_TOKEN of the job; never written.

    Raises:
        UserError: A value can't be what it is for.
    """

    code: ClassVar[frozenset[str]] = frozenset(
        {"container_image", "mounts", "env", "setup", "sbatch"}
    )

    job_name: str = "automodel"
    nodes: int = 1
    ntasks_per_node: int | None = None
    gpus_per_node: int | None = None
    time: str | None = None
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    container_image: str | None = None
    mounts: list[str] = attrs.field(factory=list)
    master_port: int | None = None
    hf_home: str | None = None
    env: dict[str, str | int] = attrs.field(factory=dict)
    setup: list[str] = attrs.field(factory=list)
    sbatch: list[str] = attrs.field(factory=list)
    seconds_to_save: int = 120
    wandb_key: str | None = attrs.field(default=None, repr=False)
    hf_token: str | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        checks.check(self)

    @property
    def ranks(self) -> int:
        """On each node."""
        return self.ntasks_per_node or self.gpus_per_node or 1

    def launch(self, job: Job) -> int | None:
        """Submit the run, unless this is the job already."""
        number = os.environ.get("SLURM_JOB_ID")
        if number is not None and os.environ.get(MARK) == mark(number):
            return None
        checks.check_job(self, job)
        secrets = {
            variable: value
            for name, variable in SECRETS.items()
            if (value := getattr(self, name)) is not None
        }
        hidden = secrets | {
            name: str(self.env[name]) for name in self.env if ("env", name) in job.from_environment
        }
        text = self.script(job, hidden).text()
        checks.check_unwritten(text, secrets)
        if job.dry_run:
            click.echo(text, nl=False)
            return DONE
        return self.submit(text, hidden)

    def script(self, job: Job, hidden: dict[str, str]) -> Script:
        """What the job is to do.

        Args:
            job: The run.
            hidden: Variables that travel by the environment alone.
        """
        options = {
            "job-name": self.job_name,
            "nodes": str(self.nodes),
            "ntasks-per-node": str(self.ranks),
            "gpus-per-node": self.gpus_per_node and str(self.gpus_per_node),
            "time": self.time,
            "account": self.account,
            "partition": self.partition,
            "qos": self.qos,
            "signal": f"USR1@{self.seconds_to_save}",
            "chdir": os.getcwd(),
            "output": log_of(self.job_name),
            "open-mode": "append",
            "export": "ALL",
        }
        return Script(
            options={name: value for name, value in options.items() if value is not None}
            | ({"requeue": None} if job.goes_on else {"no-requeue": None}),
            further=self.sbatch,
            exports={name: str(value) for name, value in self.env.items() if name not in hidden},
            hf_home=self.hf_home,
            setup=self.setup,
            nodes=self.nodes,
            ranks=self.ranks,
            port=self.master_port,
            container=self.container_image,
            mounts=self.mounts,
            passed=list(hidden),
            # A container has an interpreter of its own.
            python=sys.executable if self.container_image is None else "python",
            argv=job.argv,
            requeue=job.goes_on,
        )

    def submit(self, text: str, hidden: dict[str, str]) -> int:
        """Write the script, hand it to sbatch, and say what became of it."""
        script = write_script(self.job_name, text)
        command = ["sbatch", "--parsable", "--export=ALL", str(script)]
        try:
            done = subprocess.run(command, env=os.environ | hidden, capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError(
                "There is no `sbatch` here to submit the job with.",
                fix="submit it on a login node of the cluster, or run here with --unset slurm",
            ) from None
        if done.returncode:
            click.echo(f"sbatch refused {script}:\n{done.stderr.strip()}", err=True)
            return FAILED
        click.echo(done.stderr, err=True, nl=False)  # warnings
        number = done.stdout.strip().partition(";")[0]
        click.echo(f"Submitted job {number}: {self.nodes} node(s) with {self.ranks} rank(s) each.")
        click.echo(f"  script    {script}")
        click.echo(f"  log       {log_of(self.job_name, number)}")
        click.echo(f"  save now  scancel --signal=USR1 {number}    (and begin again)")
        click.echo(f"  stop      scancel {number}")
        return DONE


def write_script(job_name: str, text: str) -> Path:
    """Write the script to a file that wasn't there, in the folder `slurm`, where the log goes too.

    Raises:
        UserError: It can't be written here.
    """
    folder, name = Path("slurm"), f"{file_name(job_name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(exist_ok=True)
        for number in range(1000):
            path = folder / (f"{name}.sbatch" if number == 0 else f"{name}-{number}.sbatch")
            try:
                with path.open("x") as handle:
                    handle.write(text)
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise UserError(
            f"The job's script can't be written to {folder.resolve()}: {error.strerror}.",
            fix="submit it from a directory that you can write",
        ) from None
    raise UserError(f"{folder} is full of scripts of this second.", fix="submit it once more")
