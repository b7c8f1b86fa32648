"""CPU milliseconds an image of colours and policies: torchvision's transforms, one core.

OMP_NUM_THREADS=1 python benchmarks/policies.py > results/benchmarks/policies.txt
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from prunezoo.schema.data import AugmentConfig
from prunezoo.training.data.augment import draws
from prunezoo.training.data.policies import changed
from prunezoo.training.folder.environment import cpu_name

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
KINDS: dict[str, dict[str, Any]] = {
    "trivialaugment": {"policy": "trivialaugment"},
    "randaugment": {"policy": "randaugment"},
    "augmix": {"policy": "augmix"},
    "colour": {"colour": JITTER},
    "colour with a hue": {"colour": JITTER | {"hue": 0.1}},
}
SIDES, IMAGES = (160, 224), 100


def main() -> None:
    torch.set_num_threads(1)
    print("# OMP_NUM_THREADS=1 python benchmarks/policies.py")
    print(f"# {cpu_name()}, torch {torch.__version__}; median of {IMAGES} images, CPU time")
    stream = torch.Generator().manual_seed(0)
    for side in SIDES:
        image = torch.randint(256, (3, side, side), dtype=torch.uint8, generator=stream)
        for name, options in KINDS.items():
            config, took = AugmentConfig.model_validate(options), []
            for drawn in draws(IMAGES, config, stream).tolist():
                start = time.process_time()
                changed(image, config, drawn)
                took.append(time.process_time() - start)
            print(f"{side} pixels, {name}: {1e3 * statistics.median(took):.1f} ms")


if __name__ == "__main__":
    main()
