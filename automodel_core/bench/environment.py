"""What the figures of a benchmark depend on; each benchmark prints it with them."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version


def environment(*packages: str) -> dict[str, object]:
    """The machine, how busy it is, and the versions of `packages`.

    The GPU is named if torch has been imported by whoever asks; this module imports nothing heavy.
    """
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        **({"gpu": gpu} if gpu else {}),
        **{package: installed(package) for package in packages},
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
