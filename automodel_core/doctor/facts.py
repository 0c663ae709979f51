"""Facts about this machine. Each is read on its own: one that can't be read says why in its place,
and the others stand."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from automodel_core.bench.environment import installed
from automodel_core.caches import cache_folder
from automodel_core.config.report import MASK
from automodel_core.config.secrets import SHORTEST

Facts = dict[str, dict[str, str]]

PACKAGES = (
    "automodel-core",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "safetensors",
    "peft",
    "numpy",
)

# Variables that decide how processes and devices find each other.
TOLD = re.compile(
    r"(NCCL|TORCH(INDUCTOR)?|AUTOMODEL|GLOO|CUDA|PYTORCH|UCX|SLURM)_\w+|OMP_\w+|HF_(HOME|HUB_\w+|DATASETS_\w+)"
    r"|(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|LD_LIBRARY_PATH"
)
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS(WORD|WD|PHRASE)?(_|$)|CREDENTIAL|AUTH|JWT")

SMI_SECONDS = 10  # nvidia-smi hangs where a driver does
CACHE_SECONDS = 0.5  # for the size of one cache; a large one on a network disk takes minutes


def facts(run_folder: Path, hide: Callable[[str], str] = str) -> Facts:
    """Everything that can be said without a configuration: section -> name -> value.

    Args:
        run_folder: Where runs are kept, whether it exists or not.
        hide: Covers what else is secret, such as the values that a configuration marks so.
    """
    found: Facts = {}
    for title, read in (
        ("versions", versions),
        ("GPUs", gpus),
        ("links", links),
        ("variables", lambda: variables(os.environ)),
        ("disks", lambda: disks(run_folder)),
        ("caches", caches),
        ("plugins", plugins),
    ):
        try:
            found[title] = read()
        except Exception as error:
            found[title] = {"all": not_readable(error)}
    secrets = values_of_secrets(os.environ)
    return {
        title: {name: hide(covered(value, secrets)) for name, value in rows.items()}
        for title, rows in found.items()
    }


def not_readable(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return f"not readable: {type(error).__name__}{': ' + said[0] if said else ''}"


def fact(read: Callable[[], object]) -> str:
    """What `read` returns, or why it can't be read; drivers raise whatever they like."""
    try:
        return str(read())
    except Exception as error:
        return not_readable(error)


def values_of_secrets(environ: Mapping[str, str]) -> list[str]:
    """The values of the variables that are secret by their names, the longest first."""
    values = {
        value
        for name, value in environ.items()
        if SECRET_NAME.search(name.upper()) and len(value) >= SHORTEST
    }
    return sorted(values, key=len, reverse=True)


def covered(text: str, secrets: list[str]) -> str:
    """`text` without the secrets, and without a password in an address (`user:password@host`)."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return re.sub(r"(://[^/\s:@]*):[^/\s@]+@", rf"\1:{MASK}@", text)


def versions() -> dict[str, str]:
    """Of Python, the packages, and what PyTorch was built with."""
    import torch

    def driver() -> str:
        return smi("--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0]

    return {
        "python": fact(platform.python_version),
        "machine": fact(platform.platform),
        "cores": fact(lambda: f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"),
        "memory": fact(memory),
        **{package: fact(lambda package=package: installed(package)) for package in PACKAGES},
        "CUDA": fact(lambda: torch.version.cuda or "none: PyTorch for the CPU"),
        "cuDNN": fact(lambda: torch.backends.cudnn.version() or "none"),
        "NCCL": fact(nccl),
        "NVIDIA driver": fact(driver) if shutil.which("nvidia-smi") else "none: no nvidia-smi",
    }


def nccl() -> str:
    import torch

    if not torch.distributed.is_nccl_available():
        return "none: PyTorch for the CPU"
    return ".".join(map(str, torch.cuda.nccl.version()))


def memory() -> str:
    import psutil

    found = psutil.virtual_memory()
    return f"{size(found.available)} of {size(found.total)} free"


def gpus() -> dict[str, str]:
    """Each GPU that PyTorch sees."""
    import torch

    def described(index: int) -> str:
        device = torch.cuda.get_device_properties(index)
        return f"{device.name}, {size(device.total_memory)}, sm_{device.major}{device.minor}"

    count = torch.cuda.device_count()
    return {f"cuda:{i}": fact(lambda i=i: described(i)) for i in range(count)} or {
        "all": "PyTorch sees none"
    }


def links() -> dict[str, str]:
    """Which GPUs reach each other's memory, and nvidia-smi's map of how they are connected."""
    import torch

    count = torch.cuda.device_count()

    def reached(one: int) -> str:
        others = [
            str(other)
            for other in range(count)
            if other != one and torch.cuda.can_device_access_peer(one, other)
        ]
        return f"reaches the memory of {', '.join(others) or 'no other'}"

    if count < 2:
        return {"all": "none: fewer than two GPUs"}
    rows = {f"cuda:{i}": fact(lambda i=i: reached(i)) for i in range(count)}
    if shutil.which("nvidia-smi"):
        rows["topology"] = fact(lambda: "\n" + smi("topo", "-m"))
    return rows


def smi(*arguments: str) -> str:
    """What nvidia-smi prints, without its colours."""
    done = subprocess.run(
        ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=SMI_SECONDS, check=True
    )
    return re.sub(r"\x1b\[[\d;]*m", "", done.stdout).strip()


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Those that matter and are set; a secret one shows that it is set, and no more."""
    names = sorted(name for name in environ if TOLD.fullmatch(name))
    rows = {name: MASK if SECRET_NAME.search(name) else environ[name] for name in names}
    return rows or {"all": "none of NCCL's, PyTorch's, torchrun's or Slurm's is set"}


def disks(run_folder: Path) -> dict[str, str]:
    """Free space where runs and temporary files are written."""
    return {
        f"runs ({run_folder})": fact(lambda: disk(run_folder)),
        f"temporary ({tempfile.gettempdir()})": fact(lambda: disk(Path(tempfile.gettempdir()))),
        "shared memory (/dev/shm)": fact(lambda: disk(Path("/dev/shm"))),
    }


def disk(folder: Path) -> str:
    """Free space and filesystem of a folder, or of the nearest one above it that exists."""
    import psutil

    there = nearest(folder)
    usage = shutil.disk_usage(there)
    mounts = [
        each for each in psutil.disk_partitions(all=True) if there.is_relative_to(each.mountpoint)
    ]
    kind = max(mounts, key=lambda each: len(each.mountpoint)).fstype if mounts else "filesystem ?"
    return f"{size(usage.free)} of {size(usage.total)} free, {kind}"


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.expanduser().resolve()
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def caches() -> dict[str, str]:
    """Where models, data and compiled kernels are kept, and how much there is."""
    from huggingface_hub import constants

    home, user = Path(constants.HF_HOME), Path.home()
    folders = {
        "models": Path(constants.HF_HUB_CACHE),
        "data sets": Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")),
        "tokens": cache_folder("tokens"),
        "compiled layers": cache_folder("compiled"),
        "triton": Path(os.environ.get("TRITON_CACHE_DIR", user / ".triton" / "cache")),
    }
    return {name: fact(lambda at=at: f"{at}, {cached(at)}") for name, at in folders.items()}


def cached(folder: Path) -> str:
    """The bytes in the files of a folder, links not followed."""
    if not folder.is_dir():
        return "not there yet"
    total, until = 0, time.monotonic() + CACHE_SECONDS
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # another process has removed it
                continue
            if time.monotonic() > until:
                return f"more than {size(total)}"
    return size(total)


def plugins() -> dict[str, str]:
    """Each distribution with plugins: its version, how many, and why one can't be used."""
    from automodel_core.registry import Registry, source_checked

    rows: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for each in map(source_checked, Registry.discover().records):
        name = f"{each.distribution} {each.version}"
        rows.setdefault(name, [])
        counts[name] = counts.get(name, 0) + (each.state == "ok")
        if each.state != "ok":
            rows[name].append(f"{each.kind}:{each.name} [{each.state}] {each.reason}")
    return {
        name: "\n".join([f"{counts[name]} usable", *wrong]) for name, wrong in sorted(rows.items())
    }


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
