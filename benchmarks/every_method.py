"""Every method that prunes during or after training, on real CIFAR-10: the promises, one by one.

python benchmarks/every_method.py [--data data/cifar10] [--only earlycrop] [--epochs 9]

On 640 training images with a small network, in float64: what is asked is got, a run killed (-9)
at its first pruning and resumed is identical, and two processes end with the network of one. Runs
are in runs/every_method; whole ones are not repeated.
"""

import argparse
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.kill import command, finish, kill_all, same, start
from prunezoo.training.folder.log import read

ALGORITHM_1 = (
    "pruning.schedule.wait=1it",
    "pruning.schedule.every=1it",
    "pruning.schedule.rounds=2",
)
FIRES = "pruning.schedule.trigger={name: epi, r: 1, tau: 0.0}"
EARLY = "pruning.schedule.latest=4ep"
FEW = "pruning.calibration={batches: 2, batch_size: 60}"
METHODS: dict[str, tuple[str, ...]] = {
    "pat/epi": (*ALGORITHM_1, FIRES),
    "pat/fixed_epoch": (*ALGORITHM_1, "pruning.schedule.start=2ep"),
    "pat/random_epoch": (*ALGORITHM_1, "pruning.schedule.trigger.last=4"),
    "pat/lottery_ticket": (*ALGORITHM_1, "pruning.schedule.start=1ep"),
    "pat/latency": (*ALGORITHM_1, EARLY, "pruning.importance.per=macs"),
    "pat/same_structure": ("pruning.schedule.start=2ep",),
    "pat/train_prune_finetune": (),
    "pat/gpwp": (
        "pruning.schedule={start: 2ep, every: 1ep, rounds: 3, curve: linear}",
        "training.lr_schedule.milestones=[3ep, 6ep]",
        FEW,
    ),
    "pat/prune_train": (
        "pruning.schedule={start: 2ep, every: 2ep, rounds: 3}",
        "pruning.selection.value=0.18",
        "pruning.penalty.ratio=0.5",
    ),
    "earlycrop/earlycrop_u": (EARLY, FEW, "training.lr_schedule.curve=one_cycle"),
    "earlycrop/earlycrop_s": (EARLY, FEW, ),
    "earlycrop/early_bird": (EARLY, "pruning.schedule.trigger={name: mask_distance, previous: 2}"),
    "earlycrop/gate_decorators": (
        "pruning.tick=2it",
        "pruning.schedule={start: 4it, every: 5it, rounds: 3, curve: linear}",
    ),
    "earlycrop/efficient_conv_nets": ("pruning.schedule.start=5ep",),
    "earlycrop/ltr": (
        "pruning.schedule={start: 3ep, rounds: 3, curve: halving}",
        "pruning.rewind=1ep",
    ),
    "methods/gmp": ("pruning.schedule.rounds=4", "pruning.sparsity=90%"),
    "methods/rigl": ("pruning.schedule.every=4it", FEW),
    "methods/granet": (
        "pruning.schedule={start: 4it, every: 2it, end: 14it, curve: cubic}",
        FEW,
    ),
    "methods/ac_dc": (
        "pruning.schedule={start: 4it, every: 5it, end: 14it, dense: 2it, curve: constant}",
    ),
    "methods/chase": (
        "pruning.schedule={every: 3it, end: 15it, curve: constant}",
        FEW,
    ),
    "methods/n_of_m": ("pruning.schedule.start=2ep",),
    "methods/slimming": (),
    "methods/depgraph": (),
    "methods/halp": ("pruning.schedule={start: 2ep, every: 2it, rounds: 3}", "pruning.latency=null",
                     "pruning.channels=50%", "pruning.round_to=1"),
    "methods/lottery_ticket": ("pruning.schedule.rounds=2", "pruning.rewind=4it"),
    "methods/soft_filters": (
        "pruning.schedule={start: 2ep, every: 2ep, rounds: 3, curve: constant}",
    ),
    "methods/train_prune_finetune": ("pruning.schedule.start=6ep",),
    "methods/obc": (FEW,),
    "methods/woodfisher": ("pruning.schedule.rounds=3", FEW),
}  # fmt: skip
CIFAR = [
    "extends=../base/digits/digits_cnn.yaml",
    "data.name=cifar10",
    "data.train_subset=640",
    "data.validation=1000",
    "model.options.width=0.5",
    "training.batch_size=64",
    "training.precision=fp64",
    "training.sync_batchnorm=on",
    "checkpoint.every=8it",
    "evaluation.every=9ep",
    "log.every=5it",
    "log.tracker=none",
    "cost.tracker=none",
]
ALIKE = ("prune/hash", "prune/layers", "model/macs", "run/steps", "eval/images")


def prunings(folder: Path) -> list[dict]:
    lines = read(folder / "log.jsonl")
    return [line for line in lines if "prune/hash" in line and "eval/loss" not in line]


def reached_amount(path: str, last: dict[str, Any]) -> bool:
    """True if the last pruning reached the recipe's amount, to the rounding of whole units.

    Channels of a global choice round once, of a choice layer by layer once a layer.
    """
    if last["prune/asked"] is None:
        return 0 < last["prune/got"] < 1
    layers = last["prune/layers"].values()
    roundings = len(layers) if "scope: layer" in (ROOT / path).read_text() else 1
    slack = roundings / sum(layer["of"] for layer in layers)
    return 0 <= last["prune/got"] - last["prune/asked"] < slack


def run_whole(folder: Path, words: list[str]) -> dict:
    """Run it unless that was done; its summary."""
    if not (folder / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        finish(folder, words, resume=False)
    return json.loads((folder / "summary.json").read_text())


def killed_at_first_pruning(folder: Path, words: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    process = start(folder, words, resume=False)
    while process.poll() is None and not prunings(folder):
        time.sleep(0.02)
    kill_all(process.pid)
    process.wait()
    finish(folder, words, resume=True)


def faults(method: str, settings: list[str], folder: Path) -> list[str]:
    """Promises that a method does not keep."""
    path = f"recipes/{method}.yaml"
    whole, cut, two = (folder / f"{method.replace('/', '-')}-{name}" for name in ("1", "cut", "2"))
    words = command(path, settings, 1)
    with ThreadPoolExecutor(2) as pool:
        killed = pool.submit(killed_at_first_pruning, cut, words)
        summary = pool.submit(run_whole, whole, words).result()
        killed.result()
    of_two = run_whole(two, command(path, settings, 2))
    last = prunings(whole)[-1]
    wanted = "nothing" if last["prune/asked"] is None else f"{last['prune/asked']:.4g}"
    print(
        f"{method}: asked {wanted}, got {last['prune/got']:.4f} in"
        f" {last['prune/rounds_done']} round(s),"
        f" {summary['model/macs']:,} of {summary['dense/macs']:,} MACs,"
        f" test {summary['eval/top1_percent']:.2f} %",
        end="",
    )
    differences = [same(whole, cut)] if same(whole, cut) else []
    differences += [
        f"{key}: two are not one" for key in ALIKE if summary.get(key) != of_two.get(key)
    ]
    if last["prune/rounds_done"] != last["prune/rounds"]:
        differences.append("rounds are left")
    if not reached_amount(path, last):
        differences.append("got is not what was asked")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "cifar10")
    parser.add_argument("--only", default="")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "every_method")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    here = [f"data.path={arguments.data.resolve()}", f"training.duration={arguments.epochs}ep"]
    wrong = 0
    chosen = [method for method in METHODS if arguments.only in method]
    for method in chosen:
        broken = faults(method, [*CIFAR, *here, *METHODS[method]], arguments.folder)
        wrong += bool(broken)
        print(f": {', '.join(broken) or 'resumed identical, two processes as one'}", flush=True)
    print(f"{len(chosen) - wrong}/{len(chosen)} methods keep what is promised")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
