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
from typing import Any

import torch

from prunezoo import __version__
from prunezoo.models.files.disk import whole_file

COMPARED = ("commit", "python", "packages", "cuda", "gpus", "cpu", "threads")


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


def recorded(path: Path) -> dict[str, Any]:
    """The environment that a file tells of; nothing if it is absent, cut off or no table."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_bytes())
        return values if isinstance(values, dict) else {}
    return {}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a result depends on and is another now, as `key before → now`."""
    first, second = (_flat({key: each.get(key) for key in COMPARED}) for each in (before, now))
    return [
        f"{key} {first.get(key)} → {second.get(key)}"
        for key in {**first, **second}
        if first.get(key) != second.get(key)
    ]


def with_earlier(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The environment of now, and under `earlier` those of sessions before it, each once."""
    kept = before.get("earlier")
    earlier = list(kept) if isinstance(kept, list) else []
    last = {key: value for key, value in before.items() if key != "earlier"}
    if last and changes(last, now) and last not in earlier:
        earlier.append(last)
    return {**now, "earlier": earlier} if earlier else dict(now)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    packages = values.get("packages")
    named = packages if isinstance(packages, dict) else {}
    return {k: v for k, v in values.items() if k != "packages"} | named


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
