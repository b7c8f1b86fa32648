"""Mutated recipes, settings and table addresses in; exit status 0 or short lines out.

python benchmarks/fuzz_recipes.py [--count 2000] [--seed N] [--part K/N] [--failed FOLDER]
python benchmarks/fuzz_recipes.py --replay FOLDER/000123

Every case runs in this process, through the main() that the command line calls. It passes if within
--seconds and --gigabytes it ends with status 0, or another one and at least one line, none of them
long and none of a traceback or of a fault that nobody foresaw. The same seed, recipes and version
of hypothesis make the same cases. What fails is written below --failed, to be replayed.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from hypothesis import Phase, given, seed, settings

import tables
import train
from benchmarks.fuzz_cases import Case, cases

LONGEST = 2000  # characters of a line
UNFORESEEN = ("Traceback (most recent", "unexpected ", "out of memory (")  # lines
NAME = "recipe.yaml"


class Late(BaseException):
    """A case takes too long."""


@dataclass
class Outcome:
    """The end of a case; `fault` says why it failed, and is empty if it passed."""

    status: int | str
    said: str
    seconds: float
    fault: str = ""


@dataclass
class Tally:
    """Numbers of cases by their ends, and those that failed."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    failed: list[tuple[int, Case, Outcome]] = field(default_factory=list)

    def add(self, number: int, case: Case, outcome: Outcome) -> None:
        """Count one."""
        ended = (outcome.fault and "failed") or ("done" if outcome.status == 0 else "refused")
        self.outcomes[case.kind, ended] += 1
        self.seconds.append(outcome.seconds)
        if outcome.fault:
            self.failed.append((number, case, outcome))


def run(case: Case, folder: Path, *, seconds: int, gigabytes: float) -> Outcome:
    """Carry out a case with its files in `folder`, which is empty and the place to be."""
    if case.recipe is not None:
        (folder / NAME).write_bytes(case.recipe)
    main: Callable[[list[str]], int] = train.main if case.script == "train.py" else tables.main
    out, error, started = io.StringIO(), io.StringIO(), time.perf_counter()
    before = _peak()
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            status: int | str = main(list(case.words))
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except Late:
        status = f"over {seconds} s"
    except BaseException:
        status = "raised"
        error.write(traceback.format_exc())
    finally:
        signal.alarm(0)
    outcome = Outcome(status, error.getvalue(), time.perf_counter() - started)
    outcome.fault = _fault(outcome)
    if not outcome.fault and _peak() - before > gigabytes * 2**30:
        outcome.fault = f"{(_peak() - before) / 2**30:.1f} GiB"
    return outcome


def _fault(outcome: Outcome) -> str:
    lines = outcome.said.splitlines()
    if isinstance(outcome.status, str):
        return outcome.status
    unforeseen = [line for line in lines if line.startswith(UNFORESEEN)]
    if unforeseen:
        return unforeseen[0]
    if outcome.status and not any(line.strip() for line in lines):
        return f"status {outcome.status} and no line"
    longest = max(map(len, lines), default=0)
    return f"a line of {longest:,} characters" if longest > LONGEST else ""


def _peak() -> int:
    """Most bytes of memory that this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def guarded() -> Iterator[Path]:
    """An empty folder to work in, a signal for what takes too long, one thread, no warnings.

    No GPU is looked for: what fits one is another machine's matter.
    """

    def late(number: int, frame: Any) -> None:
        raise Late

    here, before = Path.cwd(), signal.signal(signal.SIGALRM, late)
    threads, environment = torch.get_num_threads(), dict(os.environ)
    os.environ |= {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(folder) / "a" / "place"
        place.mkdir(parents=True)
        os.chdir(place)
        try:
            yield place
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(environment)
            torch.set_num_threads(threads)
            signal.signal(signal.SIGALRM, before)


def fuzz(
    count: int,
    start: int,
    part: tuple[int, int] = (1, 1),
    *,
    seconds: int = 60,
    gigabytes: float = 4.0,
    show: Callable[[int, Case, Outcome], None] = lambda *_: None,
) -> Tally:
    """Try `count` cases, or the part K of N of them."""
    tally = Tally()
    with guarded() as place:
        for number in range(part[0] - 1, count, part[1]):
            case = drawn(start, number)
            outcome = run(case, place, seconds=seconds, gigabytes=gigabytes)
            tally.add(number, case, outcome)
            show(number, case, outcome)
    return tally


def drawn(start: int, number: int) -> Case:
    """One case, the same for the same two numbers.

    Each is drawn apart: in one long run hypothesis varies what it drew before, which would make
    many cases of the same kind. The first of a run is always the simplest one there is.
    """
    draws: list[Case] = []

    @seed(start * 1_000_003 + number)
    @settings(max_examples=2, deadline=None, database=None, phases=[Phase.generate])
    @given(cases())
    def each(case: Case) -> None:
        draws.append(case)

    each()
    return draws[-1]


def keep(failed: list[tuple[int, Case, Outcome]], folder: Path) -> None:
    """Write cases that failed, each into a folder of its own."""
    for number, case, outcome in failed:
        where = folder / f"{number:06}"
        where.mkdir(parents=True, exist_ok=True)
        if case.recipe is not None:
            (where / NAME).write_bytes(case.recipe)
        words = {"kind": case.kind, "script": case.script, "words": list(case.words)}
        (where / "case.json").write_text(json.dumps(words, indent=1) + "\n")
        (where / "said.txt").write_text(f"{outcome.fault}\n\n{outcome.said}", errors="replace")


def kept(folder: Path) -> Case:
    """A case that `keep` wrote."""
    stated = json.loads((folder / "case.json").read_text())
    recipe = folder / NAME
    content = recipe.read_bytes() if recipe.exists() else None
    return Case(stated["kind"], stated["script"], tuple(stated["words"]), content)


def summary(tally: Tally) -> str:
    """A table of kinds of cases and how they ended."""
    kinds = sorted({kind for kind, _ in tally.outcomes})
    lines = [f"{'kind of case':20}{'tried':>8}{'done':>8}{'refused':>9}{'failed':>8}"]
    for kind in [*kinds, "all"]:
        ends = [
            sum(n for (k, end), n in tally.outcomes.items() if end == name and kind in (k, "all"))
            for name in ("done", "refused", "failed")
        ]
        lines.append(f"{kind:20}{sum(ends):8,}{ends[0]:8,}{ends[1]:9,}{ends[2]:8,}")
    times = sorted(tally.seconds) or [0.0]
    lines.append(
        f"seconds a case: median {times[len(times) // 2]:.2f}, longest {times[-1]:.1f};"
        f" most memory {_peak() / 2**30:.1f} GiB"
    )
    return "\n".join(lines)


def _part(text: str) -> tuple[int, int]:
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"{text} is not a part such as 1/8")
    return int(k), int(n)


def main() -> int:
    """0 if every case passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="K/N", help="every N-th case")
    parser.add_argument("--seconds", type=int, default=60, help="that a case may take")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="that a case may add")
    parser.add_argument("--failed", type=Path, default=Path("runs/fuzz"), help="where faults go")
    parser.add_argument("--replay", type=Path, metavar="CASE", help="a case that failed before")
    arguments = parser.parse_args()
    limits = {"seconds": arguments.seconds, "gigabytes": arguments.gigabytes}
    if arguments.replay:
        case = kept(arguments.replay)
        with guarded() as place:
            outcome = run(case, place, **limits)
        print(outcome.said, f"{outcome.fault or 'passes'} (status {outcome.status})", sep="")
        return 1 if outcome.fault else 0

    def show(number: int, case: Case, outcome: Outcome) -> None:
        if outcome.fault:
            print(f"{number} {case.kind}: {outcome.fault[:200]}", file=sys.stderr, flush=True)

    tally = fuzz(arguments.count, arguments.seed, arguments.part, show=show, **limits)
    keep(tally.failed, arguments.failed)
    print(summary(tally))
    print(f"{len(tally.seconds) - len(tally.failed):,} of {len(tally.seconds):,} passed")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
