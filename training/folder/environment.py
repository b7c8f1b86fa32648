"""The environment of a run: machine, versions, commit, launcher."""

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from prunezoo import __version__
from prunezoo.models.files.disk import whole_file


def cpu_name() -> str:
    """The processor's name and number of cores, for a result's hardware."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()} cores)"
    return f"{platform.machine()} CPU ({os.cpu_count()} cores)"


def environment() -> dict[str, object]:
    """Versions, hardware and commit that a result depends on."""
    from importlib.metadata import version

    names = (
        "torch",
        "torchvision",
        "timm",
        "accelerate",
        "datasets",
        "gpytorch",
        "codecarbon",
        "numpy",
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"prunezoo": __version__} | {name: version(name) for name in names},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "command": shlex.join(["train.py", *sys.argv[1:]]),
    }


def commit() -> str | None:
    """The checkout's git commit, with + where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        ask = {"cwd": here, "capture_output": True, "text": True, "check": True}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **ask).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], **ask).stdout.strip()
        return head + ("+" if dirty else "")
    return None


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a whole JSON file or none of it."""
    write_text(path, json.dumps(values, indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
