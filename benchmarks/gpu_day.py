"""What an hour on a GPU settles: one list, in the order of what is learnt a minute.

python -m benchmarks.gpu_day [--minutes 45] [--dry-run] [--only NAME …]

What has a record is left out, so that the next day goes on where this one ends, and so is what
lacks its data set in data/. What fits into the minutes left is run; a table, whose finished
trainings are records of their own, is begun even where it does not, and cut off in time: its
trainings save their state and go on with the next call. A dry run says what would be run. The
record of each item is results/gpu_day/NAME.txt, written once its command ends with status 0; the
output until then is in runs/gpu_day/NAME.log. Trainings leave their usual records below results/.
Minutes are estimates for one H100, from images a second that are assumed below; none was measured.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import psutil
import torch

from prunezoo.training.folder.environment import cpu_name, write_text

LEAST = 2.0  # minutes for which a table is begun
TO_SAVE = 60  # seconds that trainings have to save their state

# Images that a table's trainings take in all, by `tables.py plan` with seed 0, and the rate assumed
# of several small trainings on one GPU together.
IMAGES = {"earlycrop/1": 64e6, "bep/3": 480e6, "foresight": 195e6}
RATES = {"earlycrop/1": 30e3, "bep/3": 80e3, "foresight": 80e3}


class Item(NamedTuple):
    """A command, what it settles, and how long it may take.

    `parts`: finished ones are kept. `data`: folders of data/ that it reads.
    """

    name: str
    minutes: float
    settles: str
    command: Sequence[str]
    parts: bool = False
    data: tuple[str, ...] = ()


def device(network: str, minutes: float) -> Item:
    words = ("python", "benchmarks/device.py", "--networks", network, "--rounds", "3")
    settles = f"rate, MFU and pruning event of {network}, against timm and torchvision"
    return Item(f"device_{network}", minutes, settles, words)


def table(name: str, address: str, settles: str, seeds: int = 1, after: int = 0) -> Item:
    """The trainings of a table; those of `after` seeds are done by an item before."""
    key = address if address in IMAGES else address.partition("/")[0]
    tables = sum(each.startswith(f"{key}/") for each in FORESIGHT) if key == "foresight" else 1
    minutes = (seeds - after) * IMAGES[key] / tables / RATES[key] / 60
    words = ("python", "tables.py", "run", address, "--seeds", str(seeds), "--jobs", "4")
    data = ("cifar10",) if address == "earlycrop/1" else ("cifar10", "cifar100")
    return Item(name, round(minutes), settles, words, parts=True, data=data)


FORESIGHT = ("foresight/4.2", "foresight/4.3", "foresight/4.4", "foresight/4.5")
FAST = "recipes/base/cifar10/resnet18_fast.yaml"
INPUT = ("python", "-m", "benchmarks.input_path", "streamed")
COMPILED = (
    *("--set", "training.precision=bf16", "--set", "training.channels_last=true"),
    *("--set", "training.compile=true"),
)
ITEMS = (
    device("resnet50", 4),
    device("resnet18_cifar", 3),
    Item(
        "energy",
        2,
        "codecarbon's GPU energy against the power that nvidia-smi reports",
        ("python", "-m", "benchmarks.energy", "--seconds", "60"),
    ),
    Item(
        "resnet18_cifar10",
        5,
        "CIFAR-10 ResNet-18 at 95 % or more, in bf16, channels_last, compiled",
        ("python", "tables.py", "run", FAST, "--seeds", "1"),
        parts=True,
        data=("cifar10",),
    ),
    device("vgg16_bn", 3),
    device("mobilenet_v1", 3),
    table("earlycrop_1", "earlycrop/1", "EarlyCroP table 1, every row, one seed"),
    table("earlycrop_1_seeds", "earlycrop/1", "EarlyCroP table 1, three seeds", 3, after=1),
    *(
        table(address.replace("/", "_"), address, f"the thesis's table {address[-3:]}")
        for address in FORESIGHT
    ),
    table("bep_3", "bep/3", "BEP table 3 at its 150 epochs"),
    Item(
        "nvjpeg",
        3,
        "streamed Imagenette: nvJPEG against workers",
        (*INPUT, "--data", "data/imagenette", "--device", "cuda", "--workers", "8"),
        data=("imagenette",),
    ),
    Item(
        "kill",
        12,
        "a compiled training in bf16, killed and resumed, ends with the same bits",
        ("python", "benchmarks/kill.py", "--kills", "4", "--processes", "1", *COMPILED),
    ),
)
WIDEST = max(len(item.name) for item in ITEMS)


def record(item: Item, root: Path) -> Path:
    return root / "results" / "gpu_day" / f"{item.name}.txt"


def todo(items: Sequence[Item], root: Path) -> list[Item]:
    return [item for item in items if not record(item, root).exists()]


def lacking(item: Item, root: Path) -> list[str]:
    """Folders of data sets that the item reads and that are not there."""
    return [f"data/{name}" for name in item.data if not (root / "data" / name).exists()]


def chosen(item: Item, left: float) -> bool:
    """True if there is time for the item, or for a part of it that is kept."""
    return item.minutes <= left or (item.parts and left >= LEAST)


def run(item: Item, left: float, root: Path) -> str:
    """Run an item for `left` minutes at most, and write its record; return what became of it."""
    log = root / "runs" / "gpu_day" / f"{item.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable if word == "python" else word for word in item.command]
    before = time.monotonic()
    with log.open("wb") as output:
        # a group of its own, so that a signal reaches its trainings too
        process = subprocess.Popen(
            words, cwd=root, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(60 * left)
        except subprocess.TimeoutExpired:
            stop(process)
            return "cut off: its finished parts are kept" if item.parts else "took too long"
        except BaseException:
            stop(process)
            raise
    minutes = (time.monotonic() - before) / 60
    if status:
        return f"failed with status {status}: {log.relative_to(root)}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    text = f"# {shlex.join(item.command)}\n# {device}, torch {torch.__version__}"
    text += f", {time.strftime('%Y-%m-%d')}, {minutes:.1f} minutes\n"
    path = record(item, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + log.read_text(errors="replace"))
    return f"done in {minutes:.1f} minutes: {path.relative_to(root)}"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it started; trainings save their state first."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=TO_SAVE)
    if left or process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def planned(items: Sequence[Item], minutes: float, root: Path) -> list[str]:
    """Names of what would be run in these minutes, if the estimates were right."""
    names, left = [], minutes
    for item in todo(items, root):
        if chosen(item, left) and not lacking(item, root):
            names.append(item.name if item.minutes <= left else f"a part of {item.name}")
            left = max(0, left - item.minutes)
    return names


def shown(item: Item, root: Path) -> str:
    state = "has a record" if record(item, root).exists() else f"about {item.minutes:g} min"
    line = f"{item.name:{WIDEST}}  {state:>13}  {item.settles}\n    {shlex.join(item.command)}"
    missing = lacking(item, root)
    return f"{line}\n    needs {', '.join(missing)} (docs/data.md)" if missing else line


def work(items: Sequence[Item], minutes: float, root: Path) -> int:
    """Run what there is time for; the exit status, 1 if anything failed."""
    end = time.monotonic() + 60 * minutes
    failed = False
    for item in todo(items, root):
        left = (end - time.monotonic()) / 60
        if not chosen(item, left):
            continue
        if missing := lacking(item, root):
            print(f"{item.name}: left out, needs {', '.join(missing)} (docs/data.md)", flush=True)
            continue
        print(f"{item.name}: {item.settles} (about {item.minutes:g} min)", flush=True)
        outcome = run(item, left, root)
        print(f"  {outcome}", flush=True)
        failed = failed or outcome.startswith("failed")
    rest = [item.name for item in todo(items, root)]
    print(f"left for another day: {', '.join(rest) or 'nothing'}; commit what results/ holds now")
    return int(failed)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--dry-run", action="store_true", help="print the list alone")
    parser.add_argument("--only", nargs="+", choices=[item.name for item in ITEMS], metavar="NAME")
    arguments = parser.parse_args(words)
    items = [item for item in ITEMS if item.name in (arguments.only or [item.name])]
    if arguments.dry_run:
        print("\n".join(shown(item, ROOT) for item in items))
        print(f"in all about {sum(i.minutes for i in todo(items, ROOT)):g} minutes, estimated")
        runs = ", ".join(planned(items, arguments.minutes, ROOT)) or "nothing"
        print(f"in {arguments.minutes:g} minutes: {runs}")
        return 0
    if not torch.cuda.is_available():
        print(
            "no GPU that PyTorch can use here; --dry-run prints what would be measured",
            file=sys.stderr,
        )
        return 2
    return work(items, arguments.minutes, ROOT)


if __name__ == "__main__":
    sys.exit(main())
