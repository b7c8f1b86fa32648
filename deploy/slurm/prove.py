"""On a running Slurm: an array and a job of two nodes, killed and requeued, end as undisturbed.

NODES=2 deploy/slurm/one_node.sh start /tmp/one
SLURM_CONF=/tmp/one/slurm.conf python deploy/slurm/prove.py

Needs no GPU; some minutes. Weights, logs and summaries are compared, times and energies aside; of
a job that goes on with one node instead of two, losses and weights up to the order of sums.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from deploy.proof import EXACT, QUIET, judge, judge_elastic, lines, step, until, words

TWO_NODES = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=30"]
DIGITS = ["extends=../base/digits/digits_cnn.yaml", "pruning.compression_ratio=4"]


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def begin(folder: Path) -> str:
    """Submit the job of two nodes; its number."""
    command = ["sbatch", "--parsable", *TWO_NODES, f"--output={folder}.out", "--export=ALL"]
    recipe = ["--recipe", "recipes/quickstart.yaml", "--output", str(folder)]
    settings = words([*QUIET, *EXACT, "training.duration=25ep"])
    return slurm(*command, "deploy/slurm/train.sbatch", *recipe, *settings)


def kill_rank(job: str) -> None:
    """Kill one of the job's training processes as the kernel does when memory is short."""
    node = slurm("squeue", "--noheader", "--job", job, "--format=%B")
    for pid in slurm("scontrol", "listpids", job, node).split():
        path = Path(f"/proc/{pid}/cmdline")
        if pid.isdigit() and path.exists() and path.read_bytes().split(b"\0")[2:3] == [b"train.py"]:
            os.kill(int(pid), 9)
            return
    raise SystemExit(f"no training process of job {job} was found")


def take_a_node(job: str) -> None:
    """Queue the job again, for one node from now on, and without the pause that Slurm makes."""
    slurm("scontrol", "requeue", job)
    waits = ("squeue", "--noheader", "--job", job, "--states=PENDING")
    until(lambda: bool(slurm(*waits)), 60, f"job {job} waiting")
    for change in ("NumTasks=1", "NumNodes=1", "StartTime=now"):
        slurm("scontrol", "update", f"jobid={job}", change)


ONE_LEFT = "queued again on one node instead of two"
DISTURBANCES: dict[str, Callable[[str], object]] = {
    "a process killed (-9), torchrun starts again": kill_rank,
    "the time limit's warning, saved and queued again": lambda job: slurm(
        "scancel", "--batch", "--signal=USR1", job
    ),
    "taken from its nodes and queued again": lambda job: slurm("scontrol", "requeue", job),
    ONE_LEFT: take_a_node,
}


def prove_job(folder: Path) -> int:
    whole = folder / "whole"
    begin(whole)
    until((whole / "summary.json").exists, 300, "the undisturbed job")
    faults = 0
    for number, (name, disturb) in enumerate(DISTURBANCES.items()):
        place = folder / f"disturbed-{number}"
        job = begin(place)
        until(lambda place=place: lines(place) > 20, 300, f"job {job} under way")
        at = step(place)
        disturb(job)
        until((place / "summary.json").exists, 1200, f"job {job} after: {name}")
        compare = judge_elastic if name == ONE_LEFT else judge
        faults += compare(whole, place, f"two nodes, at step {at}: {name}")
    return faults


def table(folder: Path, submit: str) -> list[str]:
    command = [sys.executable, "tables.py", f"--results={folder}/results", "run", "foresight/4.2"]
    command += ["--only", "CIFAR-10,SNIP", "--seeds=2", f"--runs={folder}/runs", "--jobs=2"]
    command += [*words([*QUIET, *DIGITS, "training.duration=20ep"]), f"--submit={submit}"]
    return command


def prove_array(folder: Path) -> int:
    subprocess.run(table(folder / "here", "here"), check=True)
    with subprocess.Popen(table(folder / "array", "slurm"), stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        array = command.stdout.readline(), command.stdout.readline()
        job = array[1].decode().split()[1].rstrip(":")
        runs = folder / "array" / "runs"
        until(lambda: len(list(runs.glob("*/log.jsonl"))) >= 2, 600, "two runs of the array")
        until(lambda: all(lines(p) > 20 for p in runs.glob("*seed[01]")), 600, "their first steps")
        slurm("scancel", "--signal=USR2", f"{job}_0")
        slurm("scontrol", "requeue", f"{job}_1")
        print(f"array {job}: warned its first run, took the machine from its second")
        print(command.communicate()[0].decode(), end="")
    faults = 0
    for place in sorted((folder / "here" / "runs").glob("*seed[01]")):
        faults += judge(place, runs / place.name, f"array, {place.name}")
    return faults + (len(list((folder / "array" / "results").rglob("*.json"))) != 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "prove-slurm")
    parser.add_argument("only", nargs="*", choices=["job", "array", []])
    arguments = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PROCESSES": "1"}
    os.environ |= {"PYTHON": sys.executable}
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    parts = {"job": prove_job, "array": prove_array}
    return int(sum(parts[name](arguments.folder.resolve()) for name in arguments.only or parts) > 0)


if __name__ == "__main__":
    sys.exit(main())
