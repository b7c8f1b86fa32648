"""Go on with another number of processes after each power cut, and end as the run left alone.

python benchmarks/elastic.py [--only methods kills] [--kills 20] [--folder runs/elastic]

methods: every method that prunes, and trainings with all that sums over steps or ranks, in float64
on the digits with BatchNorm over the global batch: 1 → 2 → 1 and 2 → 1 processes, cut in between.
kills: runs of the quickstart killed (-9) at random moments, each resumed with another number. What
may differ is the order of sums: losses and weights by 1e-9 of their size, decisions not at all.
What has been found is kept in the folder: started again, it does what is left.
"""

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from safetensors.torch import load_file

from benchmarks.every_method import METHODS
from benchmarks.kill import SMALL, command, finish, kill, kill_all, start
from benchmarks.sessions import Session, launch, session
from prunezoo.training.folder.log import read

TOLERANCE = 1e-9
DIGITS = "base/digits/digits_cnn"
TINY = (
    "extends=../base/digits/digits_cnn.yaml",
    "data.validation=60%",
    "model.options.width=0.5",
    "training.duration=10ep",  # of two steps
    "training.batch_size=280",
    "training.precision=fp64",
    "training.sync_batchnorm=on",
    "checkpoint.every=5it",
    "evaluation.every=4ep",
    "log.every=3it",
)
BEP = (
    "pruning.schedule={start: 6it, every: 6it, end: 100%, curve: constant}",
    "pruning.selection={name: bep, draws: 200, latents: 2, dense_latents: 2}",
    "pruning.calibration.batch_size=64",
)
AVERAGE = ("training.ema={decay: 0.9}",)
CHANNELS = "granularity: channel, channels: 50%, application: surgery, schedule: {start: 7it}"
FEW = "calibration: {batches: 2, batch_size: 60}"
TRAININGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dense": (DIGITS, ("training.clip_norm=1.0", *AVERAGE)),
    "adamw": (DIGITS, ("training.optimizer={name: adamw, lr: 0.01}", "training.mixup=0.3")),
    "in parts": (DIGITS, ("training.accumulation=5", "training.cutmix=1.0", *AVERAGE)),
    "last batch": (DIGITS, ("data.drop_last=off", "training.accumulation=2")),
    "fp32": (DIGITS, ("training.precision=fp32", "training.label_smoothing=0.1")),
    "bep in pauses": ("bep/bep", (*BEP, "pruning.selection.pauses=1")),
    "bep in buckets": (
        "bep/bep",
        (*BEP, "pruning.selection.protocol=buckets", "pruning.selection.every=1",
         "pruning.selection.bucket=2"),
    ),
    "accumulated taylor": (
        DIGITS,
        ("pruning={criterion: bn_taylor, accumulate: true, " + CHANNELS + "}",),
    ),
    "mean replacement": (
        DIGITS,
        ("pruning={criterion: channel_norm, compensation: mean_replacement, " + FEW + ", "
         + CHANNELS + "}", *AVERAGE),
    ),
    "eagle eye": (
        DIGITS,
        ("pruning={criterion: channel_norm, compensation: bn_recalibrate, " + FEW + ", " + CHANNELS
         + ", selection: {name: eagle_eye, candidates: 4, adapt: 2, judge: 2, batch_size: 40}}",),
    ),
    "laboratory": (
        DIGITS,
        ("laboratory={every: 4it, images: 40, batch_size: 20, remove: [10%], layers: [all],"
         " scores: [rand, abs_mrs]}",),
    ),
}  # fmt: skip
EXACT = ("prune/hash", "prune/layers", "model/macs", "model/params", "run/steps", "run/images")
EXACT += ("eval/images", "prune/rounds_done")


def methods() -> dict[str, tuple[str, list[str]]]:
    """Name → recipe and settings of everything that is tried."""
    pruned = {name: (name, list(words)) for name, words in METHODS.items()}
    trained = {name: (recipe, list(words)) for name, (recipe, words) in TRAININGS.items()}
    return pruned | trained


def recipe_and_settings(name: str) -> tuple[str, list[str]]:
    """Path of the recipe and all settings."""
    recipe, words = methods()[name]
    tiny = [w for w in TINY if recipe != DIGITS or not w.startswith("extends")]
    return f"recipes/{recipe}.yaml", [*tiny, *words]


def distance(left: Path, right: Path) -> tuple[float, str]:
    """The largest relative difference of losses and weights, and what else differs."""
    losses = [[r["train/loss"] for r in read(f / "log.jsonl") if "train/loss" in r]
              for f in (left, right)]  # fmt: skip
    summaries = [json.loads((f / "summary.json").read_text()) for f in (left, right)]
    weights = [load_file(f / "model.safetensors") for f in (left, right)]
    if len(losses[0]) != len(losses[1]) or weights[0].keys() != weights[1].keys():
        return 1.0, "other log lines or tensors"
    unequal = [key for key in EXACT if summaries[0].get(key) != summaries[1].get(key)]
    if unequal or any(weights[0][n].shape != weights[1][n].shape for n in weights[0]):
        return 1.0, ", ".join(unequal) or "other shapes"
    far = [abs(a - b) / abs(a) for a, b in zip(*losses, strict=True)]
    for name, tensor in weights[0].items():
        gap = (weights[1][name].double() - tensor.double()).abs().max()
        far.append(float(gap / tensor.double().abs().max().clamp(min=1e-3)))
    return max(far), ""


# ── every method ─────────────────────────────────────────────────────────────────────────────────
def place(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name.replace('/', '-').replace(' ', '-')}-{kind}"


def sessions(folder: Path, names: list[str]) -> list[tuple[int, list[Session]]]:
    """Numbers of processes, and what to do on as many: whole runs, and runs cut at 8 and 13."""

    def each(kind: str, **options: int | bool) -> list[Session]:
        return [session(*recipe_and_settings(n), place(folder, n, kind), **options) for n in names]  # pyright: ignore

    return [
        (1, each("whole") + each("1-2-1", until=8)),
        (2, each("1-2-1", resume=True, until=13) + each("2-1", until=8)),
        (1, each("1-2-1", resume=True) + each("2-1", resume=True)),
    ]


def find_methods(folder: Path, names: list[str]) -> Iterator[dict]:
    """Differences between the ways to train by each method."""
    for name in names:
        for kind in ("whole", "1-2-1", "2-1"):
            shutil.rmtree(place(folder, name, kind), ignore_errors=True)
    for processes, todo in sessions(folder, names):
        launch(processes, todo, folder / "sessions.json")
    for name in names:
        whole = place(folder, name, "whole")
        yield {
            "name": name,
            "apart": {k: distance(whole, place(folder, name, k)) for k in ("1-2-1", "2-1")},
        }


# ── kills ────────────────────────────────────────────────────────────────────────────────────────
def words(processes: int) -> list[str]:
    exact = ["training.precision=fp64", "training.sync_batchnorm=on", *AVERAGE]
    return command("recipes/quickstart.yaml", [*SMALL, *exact], processes)


def find_kill(folder: Path, name: str) -> Iterator[dict]:
    """A run killed once or twice, resumed with another number of processes each time."""
    whole, number = folder / "whole", int(name.split()[1])
    if not (whole / "summary.json").exists():
        shutil.rmtree(whole, ignore_errors=True)
        finish(whole, words(1), resume=False)
    times = [r["cost/wall_seconds"] for r in read(whole / "log.jsonl") if "cost/wall_seconds" in r]
    length, chance = max(times) - min(times), random.Random(name)
    killed = folder / name.replace(" ", "-")
    shutil.rmtree(killed, ignore_errors=True)
    numbers = (1, 2, 1) if number % 2 else (2, 1, 2)
    shown = kill(killed, words(numbers[0]), chance.uniform(0, length), saving=number % 4 > 1)
    way = f"{numbers[0]} → {numbers[1]}"
    if number % 3 == 0 and kill_resumed(killed, words(numbers[1]), chance.uniform(0, length)):
        way, numbers = f"{way} → {numbers[2]}", numbers[1:]
        shown += f" and {read(killed / 'log.jsonl')[-1]['step']}"
    if not (killed / "summary.json").exists():
        finish(killed, words(numbers[1]), resume=True)
    yield {"name": f"{name}, {shown}", "apart": {way: distance(whole, killed)}}


def kill_resumed(folder: Path, words: list[str], seconds: float) -> bool:
    """Resume a run and kill it; whether it was not over yet."""
    before = read(folder / "log.jsonl")
    process = start(folder, words, resume=True)
    while process.poll() is None and read(folder / "log.jsonl") == before:
        time.sleep(0.005)
    time.sleep(seconds / 2)
    alive = process.poll() is None
    kill_all(process.pid)
    process.wait()
    return alive


# ── all together ─────────────────────────────────────────────────────────────────────────────────
def report(line: dict) -> bool:
    """Print the distances; return whether they are as small as promised."""
    bound = 1e-4 if line["name"] == "fp32" else TOLERANCE
    shown = [f"{way}: {why or f'{far:.1e}'}" for way, (far, why) in line["apart"].items()]
    good = all(far <= bound for far, _ in line["apart"].values())
    print(f"{line['name']}: {', '.join(shown)}{'' if good else ' FAULT'}", flush=True)
    return good


def attempt(folder: Path, todo: list[list[str]], find: Callable[..., Iterator[dict]]) -> int:
    """Try what was not tried yet, some at a time; how many are not as promised."""
    folder.mkdir(parents=True, exist_ok=True)
    note, wrong, tried = folder / "found.jsonl", 0, 0
    for names in todo:
        key = ", ".join(names)
        lines = [line for line in read(note) if line["key"] == key]
        if not lines:
            lines = [line | {"key": key} for line in find(folder, names)]
            with note.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        tried += len(lines)
        wrong += sum(not report(line) for line in lines)
    print(f"{folder.name}: {tried - wrong}/{tried} as the run left alone", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["methods", "kills"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "elastic")
    arguments = parser.parse_args()
    folder, chosen = arguments.folder.resolve(), arguments.only or ["methods", "kills"]
    names, wrong = list(methods()), 0
    if "methods" in chosen:
        some = [names[i : i + 6] for i in range(0, len(names), 6)]
        wrong += attempt(folder / "methods", some, find_methods)
    if "kills" in chosen:
        kills = [[f"kill {number + 1}"] for number in range(arguments.kills)]
        wrong += attempt(folder / "kills", kills, lambda f, names: find_kill(f, names[0]))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
