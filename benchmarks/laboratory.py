"""Cost of one laboratory stop, in passes over its images D_s per score.

python -m benchmarks.laboratory [--model small_conv] [--images 1000]
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from prunezoo.models import build
from prunezoo.models.axes.find import axes
from prunezoo.pruning.laboratory.bench import Bench
from prunezoo.pruning.laboratory.laboratory import Laboratory
from prunezoo.schema.laboratory import SCORES, LaboratoryConfig


def draw(batches: int, batch_size: int, *, stream: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Noise: what an image shows does not change how long it takes."""
    for _ in range(batches):
        yield torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))


def seconds(act: Callable[[], object], repeats: int) -> float:
    """Processor seconds, the fewest of several runs: what else the machine does hardly counts."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        act()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Prints the time of a pass, of a stop, and their ratio for every choice of layers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small_conv")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = build(given.model, num_classes=10)
    model_axes = axes(model, torch.zeros(1, 3, 32, 32))
    for layers in ("all", "firstdense"):
        config = LaboratoryConfig.model_validate(
            {"every": "1it", "images": given.images, "layers": [layers]}
        )
        laboratory = Laboratory(config, model_axes, draw)
        batches = list(draw(given.images // config.batch_size, config.batch_size, stream=""))
        bench = Bench(model, model_axes, batches, reduce=lambda tensor: tensor)
        pass_seconds = seconds(lambda: bench.evaluate(batches), given.repeats)  # noqa: B023
        stop = seconds(lambda: laboratory.measure(model, 1), given.repeats)  # noqa: B023
        times = f"pass {pass_seconds:.3f} s, stop {stop:.2f} s"
        print(
            f"{given.model}, {layers}: {times}, {stop / pass_seconds / len(SCORES):.2f} per score"
        )


if __name__ == "__main__":
    main()
