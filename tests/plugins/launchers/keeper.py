"""Starts daemons, and kills them with all that they have started when its input ends, which it does
with the process that writes it, however that ended.

    python keeper.py FOLDER

A line of the input is a command as JSON, whose output goes to a log in FOLDER; FOLDER is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl


def keep(folder: Path) -> None:
    # Whatever a daemon leaves behind becomes our child, and is found.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number, line in enumerate(sys.stdin):
        command = json.loads(line)
        with (folder / f"{number}-{Path(command[0]).name}.log").open("w") as log:
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    while found := psutil.Process().children(recursive=True):
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(found, 1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
