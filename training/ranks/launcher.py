"""The launcher above this process: what it asks for, and how long it lives.

`accelerate launch` hands its options and its configuration file to the process by environment
variables, some of them not at all. A recipe holds everything that changes a result, so what the
launcher asks for is either what the recipe says too, or refused.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import yaml

from prunezoo.schema.recipe import Recipe, RecipeError

HALF = ("bf16", "fp16", "fp8")
ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def check_launcher(recipe: Recipe) -> None:
    """Refuse what the launcher asks for and the recipe does not.

    Raises:
        RecipeError: says what to write instead.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision in HALF and precision != recipe.training.precision:
        raise RecipeError(
            f"accelerate asks for {precision} and the recipe for {recipe.training.precision};"
            f" write --set training.precision={precision}, or launch with --mixed_precision no"
        )
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    if compiler not in ("", "NO"):
        raise RecipeError(
            f"accelerate asks for dynamo's {compiler.lower()}; write --set training.compile=on,"
            " and launch with --dynamo_backend no"
        )
    parts = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if parts.isdigit() and int(parts) > 1 and int(parts) != recipe.training.accumulation:
        raise RecipeError(
            f"accelerate asks for {parts} steps of accumulation and the recipe for"
            f" {recipe.training.accumulation}; write --set training.accumulation={parts}"
        )
    for variable, engine in ENGINES.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise RecipeError(
                f"accelerate asks for {engine}, which shards parameters; pruning changes their"
                " shapes, so only DDP is supported: run accelerate config again without it"
            )


def launched_processes() -> int | None:
    """The number of processes that the `accelerate launch` above this process was asked for.

    On the CPU it starts a single process whatever it was asked for, and does not say so. The number
    is that of the command line, else of the configuration file; None without such a launcher.
    """
    words = _parent()
    if not _is_accelerate(words):
        return None
    number = str(_option(words, "num_processes") or _configuration(words).get("num_processes"))
    return int(number) if number.isdigit() else None


def end_with_launcher() -> None:
    """Let the kernel send SIGTERM to this process when its launcher dies, where it is accelerate.

    `accelerate launch` passes no signal on: killed, it would leave a training without a parent. The
    signal makes the run save its state and stop. Of several processes torchrun takes care.
    """
    alone = "WORLD_SIZE" not in os.environ
    if sys.platform == "linux" and alone and _is_accelerate(_parent()):
        with contextlib.suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _parent() -> list[str]:
    """The words of the command that started this process."""
    import psutil

    with contextlib.suppress(psutil.Error):
        parent = psutil.Process().parent()
        return parent.cmdline() if parent is not None else []
    return []


def _is_accelerate(words: list[str]) -> bool:
    """True of `accelerate launch`, of `accelerate-launch`, and of the module with `python -m`."""
    names = [Path(word).name for word in words]
    spelt = "accelerate-launch" in names or "accelerate.commands.launch" in names
    return spelt or ("accelerate" in names and "launch" in names)


def _option(words: list[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value`, with hyphens too."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        key, given, value = word.partition("=")
        if key.removeprefix("--").replace("-", "_") == name and word.startswith("--"):
            return value if given else following
    return None


def _configuration(words: list[str]) -> dict[str, Any]:
    """Values of the configuration file that accelerate reads; none of one that cannot be read."""
    from accelerate.commands.config.config_args import default_config_file

    path = Path(_option(words, "config_file") or default_config_file)
    with contextlib.suppress(OSError, yaml.YAMLError):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    return {}
