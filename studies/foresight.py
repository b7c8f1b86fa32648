"""The thesis's section 4.2.3 for real: 14 strategies × 7 compression ratios on the MNIST CNN.

python studies/foresight.py run --data data/mnist [--seeds 0] [--jobs 2] [--set key=value …]
python studies/foresight.py show    # table and plots, into results/foresight/mnist_cnn

`run` goes on where it stopped and runs nothing twice.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from reporting.launch import Places, missing, run_here, run_jobs
from reporting.records import Job, Record, load_records

RATIOS = (1, 2, 4, 8, 16, 32, 64)
LAYER = "pruning.scope=layer"
STRATEGIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "GlobalMag": ("magnitude", ()),
    "LayerMag": ("magnitude", (LAYER,)),
    "GlobalGrad": ("gradient", ()),
    "LayerGrad": ("gradient", (LAYER,)),
    "GlobalAct": ("activation", ()),
    "LayerAct": ("activation", (LAYER,)),
    "GlobalLAP": ("lookahead", ()),
    "LayerLAP": ("lookahead", (LAYER,)),
    "LAMP": ("lamp", ()),
    "SNIP": ("snip", ()),
    "GraSP": ("grasp", ()),
    "SynFlow": ("synflow", ()),
    "Random": ("random", ()),
    "OBD": ("obd", ()),
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FOLDER = "foresight/mnist_cnn"


def job(strategy: str, ratio: int, seed: int, extra: tuple[str, ...] = ()) -> Job:
    """One training of the study; ratio 1 is the dense network, which is the same for all."""
    if ratio == 1:
        return Job(None, "recipes/base/mnist/mnist_cnn.yaml", (), extra, seed)
    name, settings = STRATEGIES[strategy]
    settings = (*settings, f"pruning.compression_ratio={ratio}")
    return Job(None, f"recipes/foresight/{name}.yaml", settings, extra, seed)


def jobs(seeds: list[int], extra: tuple[str, ...]) -> list[Job]:
    """Every training, small ratios first, the dense network once a seed."""
    every = [job(s, r, seed, extra) for seed in seeds for r in RATIOS for s in STRATEGIES]
    return list(dict.fromkeys(every))


def run(asked: argparse.Namespace) -> int:
    """Run what is missing and collect each record as it ends."""
    here = ["log.tracker=none", *([f"data.path={asked.data.resolve()}"] if asked.data else [])]
    places = Places(ROOT, ROOT / "runs" / "foresight", ROOT / "results", local=tuple(here))
    left = missing(jobs(asked.seeds, tuple(asked.set)), places)
    print(f"{len(left)} trainings to run, {asked.jobs} at a time", flush=True)
    failed = 0
    for one, status in run_jobs(left, places, run_here, asked.jobs):
        failed += bool(status)
        print(f"{one.name} seed {one.seed}: exit status {status}", flush=True)
    return int(failed > 0)


def results() -> dict[str, dict[int, list[Record]]]:
    """Strategy → ratio → records, the dense network standing for every strategy at ratio 1."""
    places = {
        (one.recipe, frozenset(one.set)): (strategy, ratio)
        for strategy in STRATEGIES
        for ratio in RATIOS[1:]
        for one in [job(strategy, ratio, 0)]
    }
    dense = (job("", 1, 0).recipe, frozenset())
    found: dict[str, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in load_records(ROOT / "results"):
        key = (record.job.recipe, frozenset((*record.job.set, *record.job.extra)))
        if key == dense:
            for strategy in STRATEGIES:
                found[strategy][1].append(record)
        elif key in places:
            strategy, ratio = places[key]
            found[strategy][ratio].append(record)
    return found


def top1(records: list[Record]) -> float:
    return statistics.fmean(r.summary["eval/top1_percent"] for r in records)


def compression_error(records: list[Record], ratio: int) -> float:
    """(asked − got) / asked compression ratio of the whole network."""
    got = statistics.fmean(r.summary.get("prune/compression_ratio", 1.0) for r in records)
    return (ratio - got) / ratio


def table() -> str:
    """Test accuracy (%) by strategy and compression ratio, as Markdown."""
    found = results()
    heads = [*(f"{r}×" for r in RATIOS), "worst compression error"]
    lines = [f"| strategy | {' | '.join(heads)} |"]
    lines += ["|---|" + "--:|" * (len(RATIOS) + 1)]
    for strategy in STRATEGIES:
        of = found[strategy]
        cells = [f"{top1(of[r]):.2f}" if of[r] else "not run" for r in RATIOS]
        errors = [abs(compression_error(of[r], r)) for r in RATIOS if of[r]]
        worst = f"{100 * max(errors):.3f} %" if errors else "–"
        lines.append(f"| {strategy} | " + " | ".join(cells) + f" | {worst} |")
    return "\n".join(lines) + "\n"


def draw(path: Path) -> None:
    """Accuracy against compression, and the compression error, one line a strategy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = results()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), width_ratios=(3, 2))
    for index, strategy in enumerate(STRATEGIES):
        of = {r: found[strategy][r] for r in RATIOS if found[strategy][r]}
        style = {
            "color": COLOURS[index % 7],
            "marker": "osv^DPX*<>hpd8"[index],
            "linestyle": "-" if index < 7 else "--",
            "label": strategy,
        }
        left.plot(list(of), [top1(of[r]) for r in of], **style)
        right.plot(list(of), [100 * compression_error(of[r], r) for r in of], **style)
    for axis, name in ((left, "test accuracy, %"), (right, "compression error, %")):
        axis.set_xscale("log", base=2, subs=[])
        axis.set_xticks(RATIOS, [str(r) for r in RATIOS])
        axis.set_xlabel("compression ratio (whole network)")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    left.legend(ncols=2, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def show() -> int:
    """Print the table and write it and the plots beside the records."""
    folder = ROOT / "results" / FOLDER
    text = table()
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(
        "# MNIST CNN: accuracy against compression\n\nTest accuracy in %, 5 epochs, learning rate"
        " 1e-4 (thesis, section 4.2.3); from the records in this folder by"
        " `studies/foresight.py show`.\n\n"
        + text
        + "\n![accuracy against compression, and compression error](compression.png)\n"
    )
    draw(folder / "compression.png")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run_it = commands.add_parser("run")
    run_it.add_argument("--data", type=Path, help="folder of MNIST (default: data/mnist)")
    run_it.add_argument("--seeds", type=int, nargs="+", default=[0])
    run_it.add_argument("--jobs", type=int, default=1)
    run_it.add_argument("--set", action="append", default=[])
    commands.add_parser("show")
    asked = parser.parse_args()
    return run(asked) if asked.command == "run" else show()


if __name__ == "__main__":
    sys.exit(main())
