"""A real Slurm cluster on this machine: a controller and several nodes that are names for it."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
KEEPER = Path(__file__).with_name("keeper.py")
DAEMONS = ("munged", "slurmctld", "slurmd")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
ReturnToService=2
MailProg=/bin/true
KillWait=30
PartitionName=cpu Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=2000\n"


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    absent = [name for name in DAEMONS if shutil.which(name, path=SBIN) is None]
    return f"{', '.join(absent)} not installed (Debian: slurm-wlm munge)" if absent else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(true: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Wait for something to become true; `what` tells of the state in which it did not."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


class Cluster:
    """Two nodes of four cores; a context manager.

    Attributes:
        folder: All that the daemons write.
        environ: What Slurm's commands need to find them.
    """

    def __init__(self) -> None:
        # A socket's name may have 108 characters, and pytest's folders are deep.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environ = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        with ExitStack() as stack:
            self._keeper = subprocess.Popen(
                [sys.executable, KEEPER, self.folder],
                env=self.environ, stdin=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
            stack.callback(self._keeper.communicate)
            self._start_daemons()
            stack.callback(self._cancel_all)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_daemons(self) -> None:
        configuration = self.folder / "slurm.conf"
        names = ("n1", "n2")
        self._configure(configuration, names)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        log = f"--log-file={self.folder / 'munge.log'}"
        self._start("munged", "--foreground", "--force", f"--key-file={key}", log, *options)
        until((self.folder / "munge.socket").exists, 20, self.told)
        self._start("slurmctld", "-D", "-i", "-f", str(configuration))
        for name in names:
            self._start("slurmd", "-D", "-N", name, "-f", str(configuration))
        until(self.idle, 60, self.told)

    def _configure(self, configuration: Path, names: tuple[str, ...]) -> None:
        host = socket.gethostname()
        (self.folder / "state").mkdir()
        text = CONFIGURATION.format(
            host=host,
            controller=free_port(),
            user=getpass.getuser(),
            folder=self.folder,
            names=",".join(names),
        )
        lines = [NODE.format(name=name, host=host, port=free_port()) for name in names]
        partition = text.rindex("PartitionName")  # nodes come first
        configuration.write_text(text[:partition] + "".join(lines) + text[partition:])

    def _cancel_all(self) -> None:
        """Let the jobs end as they would, before they are killed."""
        self("scancel", "--quiet", *self("squeue", "-h", "-o", "%i").split())
        until(lambda: not self("squeue", "-h"), 60, self.told)

    def __call__(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)
        return done.stdout

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job, such as JobState and Restarts."""
        words = self("scontrol", "show", "job", job, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        return self.facts(job).get("JobState", "")

    def begins_again(self, job: str) -> None:
        """Wait until a job has been put back into the queue, and spare it Slurm's two minutes."""

        def waiting() -> bool:
            facts = self.facts(job)
            return facts["JobState"] == "PENDING" and facts["Restarts"] == "1"

        until(waiting, 90, self.told)
        until(self.idle, 60, self.told)
        # A node refuses credentials as old, to the second, as the end of the job: Slurm's reason.
        self("scontrol", "update", f"JobId={job}", "StartTime=now+3")

    def idle(self) -> bool:
        """Whether no node has anything to do, or to clear away."""
        return self("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2"

    def told(self) -> str:
        """What the daemons have said, for a test that fails."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in logs)

    def _start(self, name: str, *arguments: str) -> None:
        command = [shutil.which(name, path=SBIN), *arguments]
        print(json.dumps(command), file=self._keeper.stdin, flush=True)
