"""EarlyCroP's figure of reinforcement learning: the return of sparse actors, on three environments.

python studies/reinforcement.py plan
python studies/reinforcement.py run [--seeds 0 1 2 3 4] [--jobs 2] [--minutes 60]
python studies/reinforcement.py show    # table and plots, into results/reinforcement

The slides draw the return of a 3-layer network against its sparsity; they print no number, so the
sparsities are ours.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.axes import Axes

from prunezoo.reporting.intervals import NOT_RUN, SAYS, half_width, shown
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.pages.drawing import draw
from prunezoo.reporting.pages.looks import MARKERS
from prunezoo.reporting.pages.palette import COLOURS
from prunezoo.reporting.records import Job, Record

ENVIRONMENTS = {
    "CartPole-v1": "cartpole",
    "LunarLander-v3": "lunar_lander",
    "Acrobot-v1": "acrobot",
}
SPARSITIES = {
    "CartPole-v1": ("95%", "98%"),
    "LunarLander-v3": ("80%", "95%"),
    "Acrobot-v1": ("80%", "95%", "98%"),
}
DENSE = "dense"
# recipe, amount, more; the structured one removes as many parameters as the others do weights
METHODS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "Random-U": ("random_u", "sparsity", ()),
    "SNIP": ("snip", "sparsity", ()),
    "GraSP": ("grasp", "sparsity", ()),  # the published code's, the reverse of the original
    "GraSP, original": ("grasp", "sparsity", ("pruning.criterion.reversed=false",)),
    "EarlyCroP-U": ("earlycrop_u", "sparsity", ()),
    "EarlyCroP-S": ("earlycrop_s", "params", ()),
}
TEST = ("data.validation=0", "cost.tracker=none")  # no weights are chosen: the last are tested
SEEDS = (0, 1, 2, 3, 4)
SECONDS = {
    "CartPole-v1": 12.0,
    "LunarLander-v3": 37.0,
    "Acrobot-v1": 21.0,
}  # of one core, a training
Cell = tuple[str, str, str]  # environment, method, sparsity
DENSITY = {"80%": 20.0, "95%": 5.0, "98%": 2.0}  # weights that stay, in %


def job(environment: str, method: str, sparsity: str, seed: int) -> Job:
    """One training; of the dense network without a sparsity."""
    base = f"base/{ENVIRONMENTS[environment]}/mlp.yaml"
    recipe, settings = base, TEST
    if method != DENSE:
        name, amount, more = METHODS[method]
        recipe = f"earlycrop/reinforcement/{name}.yaml"
        settings = (f"extends=../../{base}", f"pruning.{amount}={sparsity}", *more, *TEST)
    method = method.replace(", ", "-")
    name = "-".join(filter(None, (environment, method, sparsity.rstrip("%"))))
    study = f"reinforcement/{name}"
    return Job(None, f"recipes/{recipe}", settings, seed=seed, study=study)


def cells(environment: str) -> list[Cell]:
    """The dense network, and each method at each sparsity."""
    pruned = [
        (environment, method, sparsity)
        for sparsity in SPARSITIES[environment]
        for method in METHODS
    ]
    return [(environment, DENSE, ""), *pruned]


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings, seed by seed."""
    return [job(*cell, seed) for seed in seeds for e in ENVIRONMENTS for cell in cells(e)]


def results(records: list[Record]) -> dict[Cell, list[Record]]:
    """The records of each cell, one a seed."""
    places = {job(*cell, 0).experiment: cell for e in ENVIRONMENTS for cell in cells(e)}
    records_of: dict[Cell, list[Record]] = {}
    for record in records:
        if cell := places.get(record.job.experiment):
            records_of.setdefault(cell, []).append(record)
    return records_of


def returns(records: Sequence[Record]) -> list[float]:
    """Mean return of the test episodes, of each seed."""
    return [float(record.summary["eval/return"]) for record in records]


def line(cell: Cell, records: list[Record]) -> str:
    """A row of the table."""
    _, method, sparsity = cell
    if not records:
        return f"| {method} | {sparsity} | 0 | {NOT_RUN} | | | |"
    values = returns(records)
    first = [r.summary.get("derived/first_pruning_epoch") for r in records]
    epochs = ", ".join(f"{epoch:g}" for epoch in first if epoch is not None)
    weights = statistics.fmean(100 * float(r.summary["model/sparsity"]) for r in records)
    figures = f"{shown(values, 1)} | {min(values):.1f} | {weights:.1f} %"
    return f"| {method} | {sparsity} | {len(values)} | {figures} | {epochs} |"


def table(environment: str, records_of: dict[Cell, list[Record]]) -> str:
    """Returns by method and sparsity, as Markdown."""
    head = (
        "| method | removed | seeds | return | worst seed | weights gone | pruned at epoch |\n"
        "|---|--:|--:|--:|--:|--:|---|"
    )
    rows = [line(cell, records_of.get(cell, [])) for cell in cells(environment)]
    return "\n".join([head, *rows]) + "\n"


def paint(environment: str, records_of: dict[Cell, list[Record]], axes: Axes) -> None:
    """Return against the weights that stay: a line a method, a band where nothing was removed."""
    dense = returns(records_of.get((environment, DENSE, ""), []))
    if dense:
        mean, error = statistics.fmean(dense), half_width(dense) or 0.0
        axes.axhline(mean, color=COLOURS[0], label=DENSE)
        axes.axhspan(mean - error, mean + error, color=COLOURS[0], alpha=0.2, lw=0)
    sparsities = SPARSITIES[environment]
    for i, method in enumerate(METHODS, 1):
        there = [s for s in sparsities if (environment, method, s) in records_of]
        values = [returns(records_of[environment, method, s]) for s in there]
        axes.errorbar(
            [DENSITY[s] * 1.03 ** (i - 3.5) for s in there],  # side by side
            list(map(statistics.fmean, values)),
            yerr=[half_width(each) or 0.0 for each in values],
            marker=MARKERS[i],
            color=COLOURS[i],
            capsize=2,
            label=method,
        )
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks([DENSITY[s] for s in sparsities], labels=sparsities)
    axes.minorticks_off()
    axes.set_xlabel("weights asked to go")
    axes.set_ylabel(f"mean return of test episodes, {environment}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def show(records: list[Record], folder: Path) -> str | None:
    """The page of the study; draws its plots into the folder."""
    records_of = results(records)
    if not records_of:
        return None
    page = [
        "# Sparse actors\n",
        "Advantage actor-critic with a network of three hidden layers, as EarlyCroP's slides have"
        " it, pruned by their methods; mean return of 100 test episodes, played by the likeliest"
        f" action of the last weights, {SAYS}. The slides show this as a figure of which no number"
        " is printed, so the sparsities are ours. From records in this folder, by"
        " `studies/reinforcement.py show`.\n",
    ]
    for environment, name in ENVIRONMENTS.items():
        if not any(cell[0] == environment for cell in records_of):
            continue
        caption = f"{environment}: return against the weights removed, mean and 95 % interval"
        draw(name, caption, folder, lambda axes, e=environment: paint(e, records_of, axes))
        page += [f"## {environment}\n", table(environment, records_of)]
        page.append(f"![{caption}]({name}.png)\n")
    return "\n".join(page)


def _environment(job: Job) -> str:
    return next(name for name in ENVIRONMENTS if name in job.place)


STUDY = Study(
    __doc__,
    "reinforcement",
    jobs,
    show,
    seconds=lambda job: SECONDS[_environment(job)],
    seeds=SEEDS,
    block=_environment,
)

if __name__ == "__main__":
    sys.exit(carry_out(STUDY))
