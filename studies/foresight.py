"""The thesis's section 4.2.3: 14 strategies × 7 compression ratios on the MNIST CNN.

python studies/foresight.py run --data data/mnist [--seeds 0] [--jobs 2]
python studies/foresight.py show    # table and plots, into results/foresight/mnist_cnn

`run` resumes where it stopped and runs nothing twice. All strategies start from PyTorch's own
initialisation; the thesis gives SNIP alone Xavier's, which by itself moves it by 20 points at 16×.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.pages.palette import BLACK, OKABE_ITO
from prunezoo.reporting.records import Job, Record

FOLDER = "foresight/mnist_cnn"
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
    "SNIP": ("snip", ("model.options.init=null",)),
    "GraSP": ("grasp", ()),
    "SynFlow": ("synflow", ()),
    "Random": ("random", ()),
    "OBD": ("obd", ()),
}
COLOURS = (*OKABE_ITO, BLACK)
Groups = dict[str, dict[int, list[Record]]]


def job(strategy: str, ratio: int, seed: int) -> Job:
    """One training of the study; ratio 1 is the dense network of all strategies."""
    if ratio == 1:
        return Job(None, "recipes/base/mnist/mnist_cnn.yaml", seed=seed, study=f"{FOLDER}/dense")
    recipe, settings = STRATEGIES[strategy]
    settings = (*settings, f"pruning.compression_ratio={ratio}")
    name = f"{FOLDER}/{strategy}-{ratio}x"
    return Job(None, f"recipes/foresight/{recipe}.yaml", settings, seed=seed, study=name)


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings, small ratios first; a seed's dense network is listed for each strategy."""
    return [job(strategy, r, seed) for seed in seeds for r in RATIOS for strategy in STRATEGIES]


def results(records: list[Record]) -> Groups:
    """Strategy → ratio → records; at ratio 1 each strategy has the dense network."""
    places = {
        job(strategy, ratio, 0).experiment: (strategy, ratio)
        for strategy in STRATEGIES
        for ratio in RATIOS[1:]
    }
    dense = job("", 1, 0).experiment
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for record in records:
        key = record.job.experiment
        if key == dense:
            for strategy in STRATEGIES:
                groups[strategy][1].append(record)
        elif key in places:
            strategy, ratio = places[key]
            groups[strategy][ratio].append(record)
    return groups


def top1(records: list[Record]) -> float:
    """Mean test accuracy, in %."""
    return statistics.fmean(r.summary["eval/top1_percent"] for r in records)


def compression_error(records: list[Record], ratio: int) -> float:
    """(r − reached) / r of a compression ratio r of the whole network."""
    reached = statistics.fmean(r.summary.get("prune/compression_ratio", 1.0) for r in records)
    return (ratio - reached) / ratio


def table(groups: Groups) -> str:
    """Test accuracy (%) by strategy and compression ratio, as Markdown."""
    heads = [*(f"{r}×" for r in RATIOS), "worst compression error"]
    lines = [f"| strategy | {' | '.join(heads)} |"]
    lines += ["|---|" + "--:|" * (len(RATIOS) + 1)]
    for strategy in STRATEGIES:
        of = groups[strategy]
        cells = [f"{top1(of[r]):.2f}" if of[r] else "not run" for r in RATIOS]
        errors = [abs(compression_error(of[r], r)) for r in RATIOS if of[r]]
        worst = f"{100 * max(errors):.3f} %" if errors else "–"
        lines.append(f"| {strategy} | " + " | ".join(cells) + f" | {worst} |")
    return "\n".join(lines) + "\n"


def draw(groups: Groups, path: Path) -> None:
    """Draw accuracy and compression error against compression, one line for each strategy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2), width_ratios=(3, 2))
    for index, strategy in enumerate(STRATEGIES):
        of = {r: groups[strategy][r] for r in RATIOS if groups[strategy][r]}
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
    figure.legend(*left.get_legend_handles_labels(), loc="lower center", ncols=7, fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def show(records: list[Record], folder: Path) -> str | None:
    """The page of the study; draws its plots into the folder."""
    groups = results(records)
    if not groups:
        return None
    draw(groups, folder / "compression.png")
    return (
        "# MNIST CNN: accuracy against compression\n\nTest accuracy in %, 5 epochs, learning rate"
        " 1e-4 (thesis, section 4.2.3); from the records beside this page, by"
        " `studies/foresight.py show`.\n\n"
        + table(groups)
        + "\n![accuracy against compression, and compression error](compression.png)\n"
    )


if __name__ == "__main__":
    sys.exit(carry_out(Study(__doc__, FOLDER, jobs, show)))
