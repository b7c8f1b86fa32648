"""Images per second of the input path alone: ours, torchvision's and timm's, in turns.

python -m benchmarks.input_path [memory|streamed] [--data FOLDER] [--workers 2] [--rounds 5]

In memory: CIFAR-sized synthetic images, pad-crop and flip, batch 128, against a DataLoader over the
same images with torchvision's transforms on PIL images. Streamed: random-resized-crop to 224 and
flip from FOLDER (train/<class>/*.jpg; without it, 500×375 JPEGs made on the spot), against
ImageFolder with the transforms of torchvision's reference training, and timm's loader with its
prefetcher; then ours from shards prepared of the same images, as JPEG and uncompressed, and, with
--device cuda, the photographs decoded by nvJPEG. Normalised batches on the device count, from the
second one on. Medians, with the range over rounds; ratios of rates, and (in brackets) of CPU time
per image, which other work on the machine disturbs less.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from prunezoo.schema.data import AugmentConfig
from prunezoo.training.data.data import DataConfig, open_data
from prunezoo.training.data.prepare import main as prepare
from prunezoo.training.data.stores import InMemory
from prunezoo.training.random import generator

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AS_TENSOR = (transforms.ToTensor(), transforms.Normalize(MEAN, STD))


class Speed(NamedTuple):
    """Images per second, and CPU milliseconds per image of this process and its workers."""

    rate: float
    cpu_ms: float


def speed(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> Speed:
    """From the second batch on: starting workers is not counted."""
    images, start, cpu_start, cpu = 0, 0.0, 0.0, 0.0
    for index, (batch, *_) in enumerate(batches):
        batch.to(device)
        cpu = cpu_seconds()
        if index == 0:
            start, cpu_start = time.perf_counter(), cpu
            continue
        images += len(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Speed(images / (time.perf_counter() - start), 1000 * (cpu - cpu_start) / images)


def cpu_seconds() -> float:
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in [me, *me.children(recursive=True)])


def compare(
    name: str, loaders: dict[str, Callable[[int], Iterable]], rounds: int, device: str
) -> None:
    """Run the loaders in turns; print medians, ranges, and ours over the others by rate and CPU."""
    speeds: dict[str, list[Speed]] = {key: [] for key in loaders}
    for epoch in range(rounds):
        for key, loader in loaders.items():
            speeds[key].append(speed(loader(epoch), torch.device(device)))
    middles = {k: Speed(*map(statistics.median, zip(*v, strict=True))) for k, v in speeds.items()}
    others = [key for key in loaders if not key.startswith("ours")]
    for key, middle in middles.items():
        rates = [each.rate for each in speeds[key]]
        ratios = [
            f"{middle.rate / middles[o].rate:.2f} × {o} ({middles[o].cpu_ms / middle.cpu_ms:.2f})"
            for o in others
            if key not in others
        ]
        print(
            f"{name:10}{key:22}{middle.rate:8,.0f} images/s ({min(rates):,.0f} … {max(rates):,.0f})"
            f" {middle.cpu_ms:6.2f} CPU ms/image  {', '.join(ratios)}"
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


def streamed(folder: Path, scratch: Path, arguments: argparse.Namespace) -> None:
    """JPEG files and shards prepared of them, random-resized-crop to 224 and flip."""
    places = {"ours": folder}
    for encoding in ("jpeg", "raw"):
        places[f"ours, {encoding} shards"] = scratch / encoding
        words = [str(folder), "--output", str(scratch / encoding), f"--encoding={encoding}"]
        with contextlib.redirect_stdout(None):
            assert prepare([*words, f"--workers={arguments.workers}"]) == 0
    loaders = {key: ours(place, arguments) for key, place in places.items()}
    if arguments.device != "cpu":
        loaders["ours, decoder: gpu"] = ours(folder, arguments, decoder="gpu")
    theirs = {
        "ImageFolder": image_folder(folder, arguments),
        "timm": timm_loader(folder, arguments),
    }
    loaders |= {key: lambda _, loader=loader: loader for key, loader in theirs.items()}
    compare("streamed", loaders, arguments.rounds, arguments.device)


def ours(
    place: Path, arguments: argparse.Namespace, decoder: Literal["workers", "gpu"] = "workers"
) -> Callable[[int], Iterable]:
    config = DataConfig(
        name=str(place),
        image_size=224,
        stream=True,
        decoder=decoder,
        workers=arguments.workers,
        augment=AugmentConfig(random_resized_crop=(0.08, 1), flip=True),
    )
    data = open_data(config, seed=0, device=torch.device(arguments.device))
    return lambda epoch: data.train_batches(epoch, 32)


def image_folder(folder: Path, arguments: argparse.Namespace) -> Iterable:
    """As torchvision's references/classification trains."""
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *AS_TENSOR]
    reference = ImageFolder(str(folder / "train"), transforms.Compose(steps))
    return DataLoader(
        reference,
        32,
        shuffle=True,
        num_workers=arguments.workers,
        drop_last=True,
        pin_memory=arguments.device != "cpu",
    )


def timm_loader(folder: Path, arguments: argparse.Namespace) -> Iterable:
    """As timm's train.py makes it, without colour jitter, which the others do not do either."""
    from timm.data import ImageDataset, create_loader

    return create_loader(
        ImageDataset(str(folder / "train")),
        (3, 224, 224),
        32,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=arguments.workers,
        device=torch.device(arguments.device),
        pin_memory=arguments.device != "cpu",
    )


def make_photographs(folder: Path, count: int = 160, links: int = 8) -> None:
    """JPEGs of 500×375 with the detail, and so the bytes (100 kB), of photographs, `links` each."""
    for index in range(count):
        source = generator(0, "photograph", index)
        layers = (torch.rand(1, 3, 3 * 4**k, 4 * 4**k, generator=source) / 2**k for k in range(4))
        smooth = sum(F.interpolate(x, (375, 500), mode="bicubic") for x in layers)
        assert isinstance(smooth, Tensor)
        grain = torch.rand(1, 1, 375, 500, generator=source)
        image = (smooth * 130 + grain * 40)[0].clamp(0, 255).to(torch.uint8)
        for split in ("train",) if index else ("train", "val"):
            place = folder / split / "class"
            place.mkdir(parents=True, exist_ok=True)
            first = place / f"{index}.jpg"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(first, quality=90)
            for copy in range(1, links):
                (place / f"{index}-{copy}.jpg").hardlink_to(first)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("part", nargs="?", choices=("memory", "streamed"), help="default: both")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.part != "streamed":
        in_memory(chosen)
    if chosen.part != "memory":
        with tempfile.TemporaryDirectory() as scratch:
            if chosen.data is None:
                make_photographs(Path(scratch) / "photographs")
            streamed(chosen.data or Path(scratch) / "photographs", Path(scratch), chosen)
