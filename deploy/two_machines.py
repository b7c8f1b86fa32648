"""Two "machines" on one: two launchers that meet on loopback lose a process, then each other.

python deploy/two_machines.py [--recipe R.yaml] [--set key=value …]

Each machine is a torchrun launcher with one training process, as on a cluster; whatever started it
(Slurm, Kubernetes, here this script) starts it again if it ends badly. A process is killed (-9):
torchrun starts both again, which go on from the checkpoint. The second machine is lost, and the
first, which the others meet at: each comes back and rejoins. Weights, log and summary must equal
those of two machines left alone, times and energies aside. With `--nnodes=1:2` the second is lost
and nobody starts it again: the first goes on alone, to losses and weights that are the same up to
the order of sums. Needs no GPU; some minutes.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import psutil

from benchmarks.kill import kill_all
from deploy.proof import EXACT, QUIET, judge, judge_elastic, lines, step, until, words

LAUNCH = [sys.executable, "-m", "prunezoo.training.ranks.torchrun", "--nproc_per_node=1"]
LAUNCH += ["--max_restarts=3", "--rdzv_backend=c10d", "--rdzv_id=two", "--local_addr=127.0.0.1"]


# processes that start again must not find addresses of those before them (pytorch/pytorch#135712)
FRESH = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


class Machines:
    """Two launchers that train one run, each started again whenever it ends badly, or never."""

    def __init__(self, folder: Path, training: list[str], nodes: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.meeting = f"--rdzv_endpoint=127.0.0.1:{free.getsockname()[1]}"
        self.folder, self.starts, self.wanted = folder, 0, True
        self.nodes, self.gone = f"--nnodes={nodes}", set[int]()
        self.training = ["train.py", *training, "--output", str(folder), "--resume"]
        self.launchers = [self.start(0), self.start(1)]
        self.keeper = threading.Thread(target=self.keep, daemon=True)
        self.keeper.start()

    def start(self, number: int) -> subprocess.Popen[bytes]:
        """Start a machine's launcher; the first holds the place where both meet."""
        self.starts += 1
        host = f"--rdzv_conf=is_host={int(number == 0)}"
        with Path(f"{self.folder}.machine-{number}.out").open("ab") as out:
            return subprocess.Popen(
                [*LAUNCH, self.nodes, self.meeting, host, *self.training],
                cwd=ROOT,
                env=os.environ | ON_CPU | FRESH,
                stdout=out,
                stderr=out,
            )

    def keep(self) -> None:
        """Until all that are not gone have ended well, start again what has not."""
        while self.wanted and any(each.poll() != 0 for _, each in self.left()):
            for number, launcher in self.left():
                if launcher.poll():
                    self.launchers[number] = self.start(number)
            time.sleep(0.5)

    def left(self) -> list[tuple[int, subprocess.Popen[bytes]]]:
        """The launchers that are there, or will be again."""
        return [pair for pair in enumerate(self.launchers) if pair[0] not in self.gone]

    def kill_process(self) -> None:
        """End one training process as the kernel does when memory is short."""
        for process in psutil.Process(self.launchers[1].pid).children():
            if "train.py" in process.cmdline():
                process.kill()
                return
        raise SystemExit("no training process was found")

    def lose(self, number: int) -> None:
        """End a launcher and all that it started, as a power cut does."""
        kill_all(self.launchers[number].pid)

    def lose_for_good(self, number: int) -> None:
        """Lose one, and never start it again."""
        self.gone.add(number)
        self.lose(number)

    def finish(self, seconds: float) -> None:
        """Wait until all that are left have ended well."""
        until(lambda: not self.keeper.is_alive(), seconds, f"{self.folder} at its end")

    def close(self) -> None:
        """Leave nothing running, whatever happened."""
        self.wanted = False
        self.keeper.join()
        for number in (0, 1):
            self.lose(number)


FOR_GOOD = "the second machine lost for good, of --nnodes=1:2"
DISTURBANCES: dict[str, Callable[[Machines], None]] = {
    "a process killed (-9)": Machines.kill_process,
    "the second machine lost": lambda machines: machines.lose(1),
    "the first machine, where they meet, lost": lambda machines: machines.lose(0),
    FOR_GOOD: lambda machines: machines.lose_for_good(1),
}


def train(
    place: Path,
    training: list[str],
    disturb: Callable[[Machines], None] | None = None,
    nodes: str = "2",
) -> tuple[int, int]:
    """Train to the end; the step at which it was disturbed, and how many launchers it took."""
    machines, at = Machines(place, training, nodes), 0
    with contextlib.closing(machines):
        if disturb is not None:
            until(lambda: lines(place) > 40, 1800, "two machines under way")
            at = step(place)
            disturb(machines)
        machines.finish(1800)
    return at, machines.starts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="recipes/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "two-machines")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    settings = [*QUIET, *EXACT, "training.duration=25ep", *arguments.set]
    training = ["--recipe", arguments.recipe, *words(settings)]
    whole = arguments.folder.resolve() / "whole"
    train(whole, training)
    faults = 0
    for number, (name, disturb) in enumerate(DISTURBANCES.items()):
        place = whole.with_name(f"disturbed-{number}")
        at, starts = train(place, training, disturb, "1:2" if name == FOR_GOOD else "2")
        title = f"two machines, at step {at}: {name}; launchers started {starts} times"
        faults += (judge_elastic if name == FOR_GOOD else judge)(whole, place, title)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
