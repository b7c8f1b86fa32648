"""Size and speed of a dense and a pruned network, in PyTorch and as exported."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from prunezoo.models.count import count
from prunezoo.models.export import Exported
from prunezoo.models.speed import medians
from prunezoo.reporting.tables.grid import Grid
from prunezoo.training.folder.environment import cpu_name

Export = Callable[[nn.Module, Path], Exported]
BATCH = 32  # of images per second, where a file takes batches of any size


def speed_grid(
    networks: Mapping[str, nn.Module], export: Export, runtime: str, image: Tensor, batch: int
) -> Grid:
    """A column for each network; of two, a third says how many times less the second takes.

    `export` writes a network to a path, for `runtime`. Latency is of one `image`, images per second
    of batches of `batch`.

    Raises:
        ModelError: a network cannot be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        exports = {name: export(model, Path(folder, name)) for name, model in networks.items()}
        sizes = [count(model, image) for model in networks.values()]
        rows = [
            _row("parameters", [size.params for size in sizes], ",.0f"),
            _row("multiply-accumulates per image", [size.macs for size in sizes], ",.0f"),
            _row("file [kB]", [exports[name].bytes / 1e3 for name in networks], ",.1f"),
            *_speeds(networks, exports, runtime, image, batch),
        ]
    both = ["dense / pruned"] if len(networks) == 2 else []
    threads = torch.get_num_threads()
    return Grid(
        f"{'×'.join(map(str, image.shape[1:]))} images, {cpu_name()}, {threads} thread(s)",
        ["", *networks, *both],
        [row if both else row[:2] for row in rows],
        ["medians of passes that take turns; both columns were measured together"],
    )


def _speeds(
    networks: Mapping[str, nn.Module],
    exports: Mapping[str, Exported],
    runtime: str,
    image: Tensor,
    batch: int,
) -> list[list[str]]:
    """Rows of latency and images per second, of PyTorch and the runtime."""
    images = image.expand(batch, *image.shape[1:]).contiguous()
    calls: dict[tuple[str, str, int], Callable[[], object]] = {}
    for name, model in networks.items():
        for where, run in (("PyTorch", model), (runtime, exports[name].run)):
            calls[where, name, 1] = partial(run, image)
            calls[where, name, batch] = partial(run, images)
    with torch.inference_mode():
        seconds = medians(calls)
    rows = []
    for where in ("PyTorch", runtime):
        one = [1e3 * seconds[where, name, 1] for name in networks]
        rows.append(_row(f"{where}: one image [ms]", one, ",.3f"))
        if batch > 1:
            many = [batch / seconds[where, name, batch] for name in networks]
            rows.append(_row(f"{where}: images/s, batches of {batch}", many, ",.0f", rate=True))
    return rows


def _row(name: str, values: list[float], form: str, *, rate: bool = False) -> list[str]:
    """Values and their ratio; of a rate the other way round, so that above 1 is a gain."""
    first, last = values[0], values[-1]
    gain = last / first if rate else first / last
    return [name, *(format(value, form) for value in values), f"{gain:.2f}×"]
