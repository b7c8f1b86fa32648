"""How each way of starting a training ends when a signal comes, and whether it goes on exactly.

python -m benchmarks.launchers [--folder FOLDER] [--only "torchrun, 2 ranks" …]

Each starts the digits, and its first process gets the signal after five epochs: what `kill` sends
to a launcher, and `docker stop` to process 1 of a container, which a PID namespace stands for (as
root, with `unshare`). What the folder then holds is resumed by the same launcher and compared bit
for bit with a run left alone. Exit status 1 if one is not the same, or a process was left over.
"""

import argparse
import datetime
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from benchmarks.kill import SMALL, family, kill_all, same
from prunezoo.training.folder.environment import cpu_name
from prunezoo.training.folder.log import read

ROOT = Path(__file__).parent.parent
PYTHON = (sys.executable,)
TWO = ("--standalone", "--nproc_per_node=2")
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
LONG = [*SMALL, "training.duration=30ep"]
AFTER_STEP, PATIENCE_SECONDS = 35, 180


@dataclass(frozen=True)
class Way:
    """A launcher's words before train.py; `inside`: the signal goes to its child, process 1."""

    words: tuple[str, ...]
    processes: int = 1
    inside: bool = False


WAYS = {
    "python": Way(PYTHON),
    "python as process 1": Way((*NAMESPACE, *PYTHON), inside=True),
    "accelerate launch": Way((*PYTHON, "-m", "accelerate.commands.launch", "--num_processes=1")),
    "torchrun, 2 ranks": Way((*PYTHON, "-m", "torch.distributed.run", *TWO), 2),
    "ranks.torchrun, 2 ranks": Way((*PYTHON, "-m", "prunezoo.training.ranks.torchrun", *TWO), 2),
    "ranks.torchrun as process 1": Way(
        (*NAMESPACE, *PYTHON, "-m", "prunezoo.training.ranks.torchrun", *TWO), 2, inside=True
    ),
}
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGKILL": signal.SIGKILL}


def start(way: Way, folder: Path, *more: str) -> subprocess.Popen:
    """The training, in a session of its own; what it says goes to a file beside the folder."""
    settings = (f"--set={each}" for each in LONG)
    recipe = ("train.py", "--recipe", "recipes/base/digits/digits_cnn.yaml", *settings)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with folder.with_name(f"{folder.name}.out").open("ab") as out:
        return subprocess.Popen(
            [*way.words, *recipe, "--output", str(folder), *more],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
            # a command in a shell's background would hand on that SIGINT is ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def finish(way: Way, folder: Path, *more: str) -> None:
    if start(way, folder, *more).wait():
        raise SystemExit(folder.with_name(f"{folder.name}.out").read_text()[-3000:])


def stop(way: Way, name: str, folder: Path) -> tuple[int | None, float, int]:
    """Send the signal; exit status (None: none yet), seconds to the end, and how many go on."""
    process = start(way, folder)
    while max((r["step"] for r in read(folder / "log.jsonl")), default=0) < AFTER_STEP:
        if process.poll() is not None:
            raise SystemExit(folder.with_name(f"{folder.name}.out").read_text()[-3000:])
        time.sleep(0.05)
    members = family(process.pid)
    first = psutil.Process(process.pid).children()[0] if way.inside else process
    began = time.monotonic()
    first.send_signal(SIGNALS[name])
    _, alive = psutil.wait_procs([p for p in members if p.pid != process.pid], PATIENCE_SECONDS)
    status = process.poll() if alive else process.wait()
    seconds = time.monotonic() - began
    kill_all(process.pid)
    for member in alive:
        member.kill()
    return status, seconds, len(alive)


def heading() -> list[str]:
    today = datetime.date.today().isoformat()
    return [
        f"# python {' '.join(['-m benchmarks.launchers', *sys.argv[1:]])}",
        f"# {cpu_name()}, torch {torch.__version__}, {today}",
        "# status: of the process that was started; left: processes that went on after it;",
        "# step: the last one saved, of 30 epochs; resumed: against a run left alone, bit for bit",
        f"{'way':28} {'signal':8} status  seconds  left  step  resumed",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where runs go (default: a new one in /tmp)")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    runs = arguments.folder or Path(tempfile.mkdtemp(prefix="launchers-"))
    runs.mkdir(parents=True, exist_ok=True)
    print("\n".join(heading()), flush=True)
    faults = 0
    for processes in {WAYS[name].processes: None for name in arguments.only}:
        alone = runs / f"alone-{processes}"
        if not (alone / "summary.json").exists():
            plain = next(way for way in WAYS.values() if way.processes == processes)
            finish(plain, alone)
        for way in (name for name in arguments.only if WAYS[name].processes == processes):
            for name in SIGNALS:
                folder = runs / f"{way}-{name}".replace(" ", "_").replace(",", "")
                status, seconds, left = stop(WAYS[way], name, folder)
                saved = max(int(p.stem.split("_")[1]) for p in folder.glob("checkpoints/step_*"))
                finish(WAYS[way], folder, "--resume")
                different = same(folder, alone)
                faults += bool(different or left)
                resumed = f"no: {different}" if different else "the same"
                figures = f"{status!s:>6} {seconds:8.1f} {left:5} {saved:5}"
                print(f"{way:28} {name:8} {figures}  {resumed}", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
