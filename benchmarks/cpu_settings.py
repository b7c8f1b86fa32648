"""The tests with the instructions and the sums of other CPUs, on one and on two threads.

python benchmarks/cpu_settings.py [--quick] [-k EXPRESSION] [--only "as it comes" …]

Each setting keeps a library from what this CPU has and others have not, so that kernels and orders
of sums are those of another machine. The six hold every pair of two libraries' limits, and every
limit with one thread and with two. A series that was cut goes on, also on another day: a setting
with a line in results/benchmarks/cpu_settings.jsonl is not run again unless the line is removed,
and the table names the commit of each. The whole series (no option) is written to
results/benchmarks/cpu_settings.txt. Exit status 1 if a test failed.
"""

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch

from prunezoo.training.folder.environment import cpu_name

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
SAME = {"MKL_CBWR": "COMPATIBLE"}
OLD, NEWER = ({"ATEN_CPU_CAPABILITY": word} for word in ("default", "avx2"))
SETTINGS: dict[str, tuple[dict[str, str], int]] = {  # every pair of two values is in one of them
    "as it comes": ({}, 1),
    "oneDNN AVX2, MKL compatible": (AVX2 | SAME, 2),
    "ATen default, MKL compatible": (OLD | SAME, 2),
    "ATen default, oneDNN AVX2": (OLD | AVX2, 1),
    "ATen AVX2, MKL compatible": (NEWER | SAME, 1),
    "ATen AVX2, oneDNN AVX2": (NEWER | AVX2, 2),
}
LIMITS = {name for limits, _ in SETTINGS.values() for name in limits}
RECORD = ROOT / "results/benchmarks/cpu_settings.jsonl"
TABLE = RECORD.with_suffix(".txt")
REPORT = ROOT / "runs/cpu_settings.xml"


def state() -> str:
    """The last commit of more than results, and a digest of local changes."""
    code = ["--", ".", ":!results"]
    words = (["log", "-1", "--format=%h", "--abbrev=10", *code], ["diff", "HEAD", *code])
    head, changes = (subprocess.check_output(["git", *w], cwd=ROOT, text=True) for w in words)
    digest = hashlib.blake2b(changes.encode(), digest_size=4).hexdigest()
    return head.strip() + (f"+{digest}" if changes else "")


def run(setting: str, choice: list[str]) -> dict[str, Any]:
    """The tests in one setting: counts, seconds, and the names of those that failed."""
    limits, threads = SETTINGS[setting]
    environment = {k: v for k, v in os.environ.items() if k not in LIMITS} | limits
    environment |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    workers = os.cpu_count() or 1
    words = ["-n", str(workers), "--dist", "worksteal", "--junitxml", str(REPORT), *choice]
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, env=environment)
    if not REPORT.exists():
        raise SystemExit(f"{setting}: pytest ended without a report")
    (suite,) = ElementTree.parse(REPORT).getroot()
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    tests, skipped = (int(suite.get(key, 0)) for key in ("tests", "skipped"))
    counts = {"passed": tests - skipped - len(failed), "failed": failed, "skipped": skipped}
    return counts | {"threads": threads, "seconds": round(float(suite.get("time", 0)))}


def table(results: list[dict[str, Any]]) -> list[str]:
    """One line a setting, and below it the tests that failed."""
    lines = [f"{'setting':29} threads  passed  failed  skipped  seconds  commit"]
    for result in results:
        counts = f"{result['passed']:6}  {len(result['failed']):6}  {result['skipped']:7}"
        lines.append(
            f"{result['setting']:29} {result['threads']:7}  {counts}  {result['seconds']:7}"
            f"  {result['at']}"
        )
        lines += [f"  failed: {name}" for name in result["failed"]]
    return lines


def heading() -> list[str]:
    """Header of the record: command, machine, versions, settings."""
    limits = [
        f"#   {name}: {' '.join(f'{k}={v}' for k, v in limits.items()) or 'no limit'}"
        for name, (limits, _) in SETTINGS.items()
    ]
    machine = f"{cpu_name()}, ATen {torch.backends.cpu.get_cpu_capability()}"
    today = datetime.date.today().isoformat()
    return [
        f"# python {' '.join(['benchmarks/cpu_settings.py', *sys.argv[1:]])}",
        f"# {machine}, torch {torch.__version__}, {today}",
        "# each: OMP_NUM_THREADS=<threads> python -m pytest -n <cores>, threads sleep, under",
        *limits,
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the quick tier only")
    parser.add_argument("-k", help="a part of the tests, as pytest has it")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args()
    choice = ["-m", "not slow"] if arguments.quick else []
    choice += ["-k", arguments.k] if arguments.k else []
    RECORD.touch()
    results: list[dict[str, Any]] = []
    earlier = [json.loads(line) for line in RECORD.read_text().splitlines()]
    for setting in arguments.only:
        key = {"choice": choice, "setting": setting}
        matches = [result for result in earlier if key.items() <= result.items()]
        results.append(matches[-1] if matches else key | {"at": state()} | run(setting, choice))
        if not matches:
            with RECORD.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    lines = [*heading(), *table(results)]
    print("\n".join(lines))
    if len(results) == len(SETTINGS) and not choice:
        TABLE.write_text("\n".join(lines) + "\n")
    return int(any(result["failed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
