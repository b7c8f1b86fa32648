"""Accuracy after half of the MACs went in one call, and after an epoch more: ours, Torch-Pruning's.

    python -m benchmarks.prune_once --data data/cifar10  # some 30 minutes of one core a seed
    python -m benchmarks.prune_once --data data/cifar10 --seeds 0 1

Five networks of timm are trained for a few short epochs from scratch. Every way of pruning begins
with a copy of the same dense network and leaves at most half of its MACs; Torch-Pruning is asked
for the least ratio that does, found by bisection, with its other defaults. All images are training
images of CIFAR-10; accuracy is on some of them that are held out, and test images are not used.
What is finished lies in --folder, and is not done again.
"""

import argparse
import copy
import io
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torch_pruning
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from prunezoo.models.count import count
from prunezoo.models.files.tensor_files import load_tensors, save_tensors
from prunezoo.pruning import prune_once
from prunezoo.reporting.intervals import half_width
from prunezoo.schema.data import DataConfig
from prunezoo.training.data.layouts.opening import open_splits

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results/benchmarks/prune_once.txt"
NETWORKS = {  # and the epochs of their training
    "resnet18": 5,
    "mobilenetv3_small_100": 8,
    "tinynet_e": 8,  # an EfficientNet
    "convnext_atto": 8,
    "regnetx_002": 8,
}
TRAINING, HELD_OUT, SCORED = 4000, 2000, 128  # images
BATCH, LR = 64, 2e-3
MEAN = {"importance": {"normalise": "mean"}}
OURS: dict[str, dict[str, Any]] = {
    "magnitude": {"criterion": "magnitude"},
    "magnitude, normalise: mean": {"criterion": "magnitude", **MEAN},
    "magnitude, scope: layer": {"criterion": "magnitude", "scope": "layer"},
    "pat_magnitude": {"criterion": "pat_magnitude"},
    "snip": {"criterion": "snip"},
    "snip, normalise: mean": {"criterion": "snip", **MEAN},
    "snip, scope: layer": {"criterion": "snip", "scope": "layer"},
    "taylor": {"criterion": "taylor"},
    "taylor, normalise: mean": {"criterion": "taylor", **MEAN},
    "taylor, scope: layer": {"criterion": "taylor", "scope": "layer"},
    "random": {"criterion": "random"},
}
THEIRS = {"Torch-Pruning": False, "Torch-Pruning, global": True}
CONTROLS = ("random", "Torch-Pruning")
Batch = tuple[Tensor, Tensor]


class Images:
    """Images in memory, normalised; the same for every network and way of pruning."""

    def __init__(self, folder: Path) -> None:
        source = open_splits(DataConfig(name="cifar10", path=str(folder))).train
        rows = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))
        rows = rows[: TRAINING + HELD_OUT]
        images = torch.stack([_pixels(source, row) for row in rows.tolist()]).float() / 255
        deviation, mean = torch.std_mean(images, dim=(0, 2, 3), keepdim=True)
        images, labels = (images - mean) / deviation, source.labels[rows]
        self.training: Batch = images[:TRAINING], labels[:TRAINING]
        self.held_out: Batch = images[TRAINING:], labels[TRAINING:]
        self.scored = list(batches(*(t[:SCORED] for t in self.training)))


def _pixels(source: Any, row: int) -> Tensor:
    if hasattr(source, "images"):
        return source.images[row]
    return pil_to_tensor(Image.open(io.BytesIO(source.read([row])[0])).convert("RGB"))


def batches(images: Tensor, labels: Tensor, order: Tensor | None = None) -> Iterator[Batch]:
    order = torch.arange(len(labels)) if order is None else order
    for rows in order.split(BATCH):
        yield images[rows], labels[rows]


def train(model: nn.Module, data: Batch, epochs: int, lr: float, seed: int) -> None:
    """AdamW along half a cosine; images mirrored at random."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    steps = epochs * -(-len(data[1]) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(data[1]), generator=generator)
        for images, labels in batches(*data, order):
            mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
            loss = F.cross_entropy(model(torch.where(mirrored, images.flip(3), images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Batch) -> float:
    """Percent of images whose class is the highest output."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches(*data))
    return 100 * right / len(data[1])


def dense(name: str, seed: int, images: Images, folder: Path) -> nn.Module:
    """The trained network, from the folder if it is there."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=10)
    path = folder / f"{name}-seed{seed}.safetensors"
    if path.exists():
        model.load_state_dict(load_tensors(path)[0])
    else:
        train(model, images.training, NETWORKS[name], LR, seed)
        save_tensors(model.state_dict(), path)
    return model.eval()


def torch_pruning_to_half(model: nn.Module, image: Tensor, everywhere: bool) -> nn.Module:
    """A copy pruned by Torch-Pruning's defaults at the least ratio that leaves half of the MACs."""
    target, found = count(model, image).macs // 2, None
    low, high = 0.0, 1.0
    for _ in range(9):  # to a five-hundredth of the channels
        ratio, small = (low + high) / 2, copy.deepcopy(model)
        torch_pruning.pruner.MetaPruner(
            small,
            image,
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            global_pruning=everywhere,
            pruning_ratio=ratio,
            ignored_layers=[m for m in small.modules() if _classifies(m)],
        ).step()
        if count(small, image).macs <= target:
            high, found = ratio, small
        else:
            low = ratio
    if found is None:
        raise ValueError("no ratio leaves half of the MACs")
    return found


def _classifies(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == 10


def pruned(model: nn.Module, way: str, images: Images) -> nn.Module:
    """A copy with at most half of the MACs."""
    image = images.training[0][:1]
    if way in THEIRS:
        return torch_pruning_to_half(model, image, THEIRS[way])
    small = copy.deepcopy(model)
    prune_once(small, image, macs="50%", tolerance="2%", batches=images.scored, **OURS[way])
    return small


def measured(model: nn.Module, way: str, images: Images, seed: int) -> dict[str, Any]:
    """Accuracies of one way, and the share of MACs that it left; or the fault that it met."""
    image = images.training[0][:1]
    try:
        small = model if way == "dense" else pruned(model, way, images)
        left = count(small, image).macs / count(model, image).macs
        record = {"macs": left, "cut": accuracy(small, images.held_out)}
        if way != "dense":
            train(small, images.training, 1, LR / 4, seed)
            record["tuned"] = accuracy(small, images.held_out)
    except (RuntimeError, ValueError) as error:
        return {"fault": f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"}
    return record


def line(key: list[Any], record: dict[str, Any]) -> str:
    name, seed, way = key
    head = f"{name:22} seed {seed}  {way:28}"
    if "fault" in record:
        return f"{head} {record['fault']}"
    tuned = f"{record['tuned']:5.1f}" if "tuned" in record else "  –  "
    return f"{head} MACs {100 * record['macs']:5.1f} %  cut {record['cut']:5.1f}  tuned {tuned}"


def means(records: dict[str, dict[str, Any]]) -> list[str]:
    """Each way's mean over the networks that every way managed, minus random and Torch-Pruning.

    A network's seeds are averaged first: they resemble one another, and intervals are over
    networks.
    """
    rows: dict[str, dict[int, dict[str, dict[str, Any]]]] = {}  # network → seed → way
    for key, record in records.items():
        name, seed, way = json.loads(key)
        rows.setdefault(name, {}).setdefault(seed, {})[way] = record
    every = (*OURS, *THEIRS)
    whole = {
        name: [ways for ways in seeds.values() if all("tuned" in ways.get(w, {}) for w in every)]
        for name, seeds in rows.items()
    }
    whole = {name: seeds for name, seeds in whole.items() if seeds}
    if not whole:
        return []

    def by_network(way: str, key: str) -> list[float]:
        return [statistics.mean(ways[way][key] for ways in seeds) for seeds in whole.values()]

    def ahead(way: str, key: str) -> str:
        told = []
        for other in CONTROLS:
            pairs = zip(by_network(way, key), by_network(other, key), strict=True)
            gaps = [a - b for a, b in pairs]
            told.append(f"{statistics.mean(gaps):+5.1f} ± {half_width(gaps) or 0:4.1f}")
        return ", ".join(told)

    def mean(way: str, key: str) -> float:
        return statistics.mean(by_network(way, key))

    ways = sorted(every, key=lambda way: -mean(way, "tuned"))
    runs = sum(map(len, whole.values()))
    return [
        f"# means of {len(whole)} networks that every way pruned, of {runs} runs; dense"
        f" {mean('dense', 'cut'):.1f}; in brackets minus {' and minus '.join(CONTROLS)}, Student's"
        " 95 % interval over networks",
        *(
            f"{way:28} cut {mean(way, 'cut'):5.1f} ({ahead(way, 'cut')})"
            f"  tuned {mean(way, 'tuned'):5.1f} ({ahead(way, 'tuned')})"
            for way in ways
        ),
    ]


def page(records: dict[str, dict[str, Any]], seeds: list[int]) -> str:
    seconds = sum(record.get("seconds", 0) for record in records.values())
    lines = [
        f"# OMP_NUM_THREADS=1 python -m benchmarks.prune_once --seeds {' '.join(map(str, seeds))}",
        f"# {TRAINING} images of CIFAR-10, batch {BATCH}, AdamW {LR}, epochs: "
        + ", ".join(f"{name} {epochs}" for name, epochs in NETWORKS.items()),
        f"# then 1 epoch at {LR / 4}; accuracy in % of {HELD_OUT} other training images",
        f"# 2-core Intel Xeon, one thread; torch {torch.__version__}, timm {timm.__version__},"
        f" torch-pruning {torch_pruning.__version__}; {seconds / 60:.0f} minutes of processor time",
    ]
    lines += [line(json.loads(key), record) for key, record in records.items()]
    return "\n".join([*lines, *means(records)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/prune_once"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch_pruning")
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    done, images = arguments.folder / "records.json", Images(arguments.data)
    records = json.loads(done.read_text()) if done.exists() else {}
    for seed in arguments.seeds:
        for name in NETWORKS:
            for way in ("dense", *OURS, *THEIRS):
                key = json.dumps([name, seed, way])
                if key not in records:
                    start = time.process_time()
                    model = dense(name, seed, images, arguments.folder)
                    records[key] = measured(model, way, images, seed)
                    records[key]["seconds"] = time.process_time() - start
                    done.write_text(json.dumps(records, indent=1))
                    print(line([name, seed, way], records[key]), flush=True)
    RESULTS.write_text(page(records, arguments.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
