"""Images per second of the input path alone: ours beside torchvision's usual loaders, in turns.

python -m benchmarks.input_path [--data FOLDER] [--workers 2] [--rounds 5] [--device cpu]

In memory: CIFAR-sized synthetic images, pad-crop and flip, batch 128, against a DataLoader over the
same images with torchvision's transforms on PIL images. Streamed: random-resized-crop to 224 and
flip from FOLDER (train/<class>/*.jpg; without it, 500×375 JPEGs made on the spot), against
ImageFolder with the transforms of torchvision's reference training. Medians, with the range over
rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from training.data import DataConfig, open_data
from training.data_config import AugmentConfig
from training.random import generator
from training.stores import InMemory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AS_TENSOR = (transforms.ToTensor(), transforms.Normalize(MEAN, STD))


def rate(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> float:
    """Images per second from the second batch on: starting workers is not counted."""
    images, start = 0, 0.0
    for index, (batch, *_) in enumerate(batches):
        batch.to(device)
        if index == 0:
            start = time.perf_counter()
            continue
        images += len(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def compare(
    name: str, loaders: dict[str, Callable[[int], Iterable]], rounds: int, device: str
) -> None:
    """Run the loaders in turns; print medians, ranges and the ratio of the first to the others."""
    rates: dict[str, list[float]] = {key: [] for key in loaders}
    for epoch in range(rounds):
        for key, loader in loaders.items():
            rates[key].append(rate(loader(epoch), torch.device(device)))
    first = statistics.median(next(iter(rates.values())))
    for key, values in rates.items():
        middle = statistics.median(values)
        print(
            f"{name:10}{key:24}{middle:10,.0f} images/s ({min(values):,.0f} … {max(values):,.0f})"
            f"  ours / this {first / middle:.2f}"
        )


def in_memory(arguments: argparse.Namespace) -> None:
    """CIFAR-sized images with pad-crop and flip."""
    augment = AugmentConfig(crop_padding=4, flip=True)
    config = DataConfig(name="synthetic", train_images=6_400, augment=augment)
    data = open_data(config, seed=0, device=torch.device(arguments.device))
    store = data.stores["train"]
    assert isinstance(store, InMemory)
    pixels = F.pad(store.bordered, (-4,) * 4).permute(0, 2, 3, 1).cpu().numpy()
    steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), *AS_TENSOR]
    transform = transforms.Compose(steps)
    images = [(Image.fromarray(image), 0) for image in pixels]
    loader = DataLoader(
        Transformed(images, transform),
        128,
        shuffle=True,
        num_workers=arguments.workers,
        drop_last=True,
    )
    compare(
        "in memory",
        {
            "ours": lambda epoch: data.train_batches(epoch, 128),
            f"DataLoader, {arguments.workers} workers": lambda _: loader,
        },
        arguments.rounds,
        arguments.device,
    )


class Transformed(torch.utils.data.Dataset):
    """Pairs of image and label, the image transformed."""

    def __init__(self, pairs: list, transform: Callable) -> None:
        self.pairs, self.transform = pairs, transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.pairs[index]
        return self.transform(image), label


def streamed(folder: Path, arguments: argparse.Namespace) -> None:
    """JPEG files, random-resized-crop to 224 and flip."""
    config = DataConfig(
        name=str(folder),
        image_size=224,
        stream=True,
        workers=arguments.workers,
        augment=AugmentConfig(random_resized_crop=(0.08, 1), flip=True),
    )
    data = open_data(config, seed=0, device=torch.device(arguments.device))
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *AS_TENSOR]
    reference = ImageFolder(str(folder / "train"), transforms.Compose(steps))
    loader = DataLoader(reference, 32, shuffle=True, num_workers=arguments.workers, drop_last=True)
    compare(
        "streamed",
        {
            "ours": lambda epoch: data.train_batches(epoch, 32),
            "torchvision ImageFolder": lambda _: loader,
        },
        arguments.rounds,
        arguments.device,
    )


def make_photographs(folder: Path, count: int = 320) -> None:
    """JPEGs of 500×375 with the detail, and so the size in bytes, of photographs."""
    for index in range(count):
        source = generator(0, "photograph", index)
        layers = (torch.rand(1, 3, 3 * 4**k, 4 * 4**k, generator=source) / 2**k for k in range(4))
        image = sum(F.interpolate(x, (375, 500), mode="bicubic") for x in layers)
        assert isinstance(image, Tensor)
        pixels = (image[0] * 140).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        for split in ("train",) if index else ("train", "val"):
            place = folder / split / "class"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{index}.jpg", quality=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    in_memory(asked)
    with tempfile.TemporaryDirectory() as made:
        if asked.data is None:
            make_photographs(Path(made))
        streamed(asked.data or Path(made), asked)
