"""Size and speed of a dense and a pruned network, in PyTorch and as exported."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from prunezoo.models.count import count
from prunezoo.models.export import Exported
from prunezoo.models.files.shapes import widths
from prunezoo.models.speed import medians
from prunezoo.reporting.tables.grid import Grid
from prunezoo.training.folder.environment import cpu_name

Export = Callable[[nn.Module, Path], Exported]
BATCH = 32  # of examples per second, where a file takes batches of any size
FAST = 8  # kernels work on multiples of so many channels


def speed_grid(
    networks: Mapping[str, nn.Module], export: Export, runtime: str, example: Tensor, batch: int
) -> Grid:
    """A column for each network; of two, a third says how many times less the second takes.

    `export` writes a network to a path, for `runtime`. Latency is of one `example`, of a rate
    batches have `batch` of them.

    Raises:
        ModelError: a network cannot be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        exports = {name: export(model, Path(folder, name)) for name, model in networks.items()}
        sizes, word = [count(model, example) for model in networks.values()], word_of(example)
        speeds, slower = _speeds(networks, exports, runtime, example, batch)
        rows = [
            _row("parameters", [size.params for size in sizes], ",.0f"),
            _row(f"multiply-accumulates per {word}", [size.macs for size in sizes], ",.0f"),
            _row("file [kB]", [exports[name].bytes / 1e3 for name in networks], ",.1f"),
            *speeds,
        ]
    both = ["dense / pruned"] if len(networks) == 2 else []
    threads = torch.get_num_threads()
    return Grid(
        f"{word}s of {'×'.join(map(str, example.shape[1:]))}, {cpu_name()}, {threads} thread(s)",
        ["", *networks, *both],
        [row if both else row[:2] for row in rows],
        [
            "medians of passes that take turns; both columns were measured together",
            *(hint(*networks.values()) if both and slower else []),
        ],
    )


def word_of(example: Tensor) -> str:
    """What an input is called, by its shape: an image, a row of words, else an example."""
    return "image" if example.ndim == 4 else "example" if example.is_floating_point() else "row"


def hint(dense: nn.Module, pruned: nn.Module) -> list[str]:
    """A line on a remedy where layers became narrower and are no multiples of FAST channels."""
    before, now = widths(dense), widths(pruned)
    uneven = [
        layer
        for layer, numbers in now.items()
        for key in ("out_channels", "out_features")
        if key in numbers and numbers[key] % FAST and numbers[key] != before[layer][key]
    ]
    if not uneven:
        return []
    return [
        f"slower than dense somewhere: {len(uneven)} layers, as {uneven[0]}, have no multiple of"
        f" {FAST} channels, which kernels want; prune with pruning.round_to: {FAST}"
    ]


def _speeds(
    networks: Mapping[str, nn.Module],
    exports: Mapping[str, Exported],
    runtime: str,
    example: Tensor,
    batch: int,
) -> tuple[list[list[str]], bool]:
    """Rows of latency and examples per second, of PyTorch and the runtime.

    And True if the last network is slower than the first in any of them.
    """
    word, examples = word_of(example), example.expand(batch, *example.shape[1:]).contiguous()
    calls: dict[tuple[str, str, int], Callable[[], object]] = {}
    for name, model in networks.items():
        for where, run in (("PyTorch", model), (runtime, exports[name].run)):
            calls[where, name, 1] = partial(run, example)
            calls[where, name, batch] = partial(run, examples)
    with torch.inference_mode():
        seconds = medians(calls)
    rows = []
    for where in ("PyTorch", runtime):
        one = [1e3 * seconds[where, name, 1] for name in networks]
        rows.append(_row(f"{where}: one {word} [ms]", one, ",.3f"))
        if batch > 1:
            many = [batch / seconds[where, name, batch] for name in networks]
            rows.append(_row(f"{where}: {word}s/s, batches of {batch}", many, ",.0f", rate=True))
    dense, pruned = next(iter(networks)), list(networks)[-1]
    slower = any(seconds[where, dense, n] < seconds[where, pruned, n] for where, _, n in calls)
    return rows, slower


def _row(name: str, values: list[float], form: str, *, rate: bool = False) -> list[str]:
    """Values and their ratio; of a rate the other way round, so that above 1 is a gain."""
    first, last = values[0], values[-1]
    gain = last / first if rate else first / last
    return [name, *(format(value, form) for value in values), f"{gain:.2f}×"]
