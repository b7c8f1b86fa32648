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
from matplotlib.figure import Figure

from prunezoo.reporting.intervals import NOT_RUN, SAYS, half_width, shown
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.pages.drawing import draw
from prunezoo.reporting.pages.looks import MARKERS
from prunezoo.reporting.pages.palette import COLOURS
from prunezoo.reporting.records import Job, Record
from studies.benchmark.comparison import paired

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
BASELINES = ("Random-U", "SNIP", "GraSP, original")  # that the others are compared with
SECONDS = {
    "CartPole-v1": 12.0,
    "LunarLander-v3": 37.0,
    "Acrobot-v1": 21.0,
}  # of one core, a training
Cell = tuple[str, str, str]  # environment, method, sparsity


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


def differences(environment: str, records_of: dict[Cell, list[Record]]) -> str:
    """Return minus that of each baseline over the same seeds, as Markdown."""
    lines = [f"| method | removed | {' | '.join(f'minus {name}' for name in BASELINES)} |"]
    lines += ["|---|--:|" + "--:|" * len(BASELINES)]
    for _, method, sparsity in cells(environment)[1:]:
        ours = by_seed(records_of.get((environment, method, sparsity), []))
        of = {b: by_seed(records_of.get((environment, b, sparsity), [])) for b in BASELINES}
        gaps = ["" if b == method else shown(paired(ours, of[b]), 1) for b in BASELINES]
        lines.append(f"| {method} | {sparsity} | {' | '.join(gaps)} |")
    return "\n".join(lines) + "\n"


def by_seed(records: Sequence[Record]) -> dict[int, float]:
    """Seed → mean return of the test episodes."""
    return dict(zip((r.job.seed for r in records), returns(records), strict=True))


def paint(environment: str, records_of: dict[Cell, list[Record]], axes: Axes) -> None:
    """Return of each method, a panel for each sparsity with a scale of its own.

    A band where nothing was removed.
    """
    figure, sparsities = axes.figure, SPARSITIES[environment]
    assert isinstance(figure, Figure)
    axes.remove()
    figure.set_size_inches(2.6 * len(sparsities) + 1.4, 2.8)
    panels = figure.subplots(1, len(sparsities), sharey=True, squeeze=False)[0]
    dense = returns(records_of.get((environment, DENSE, ""), []))
    for panel, sparsity in zip(panels, sparsities, strict=True):
        if dense:
            mean, error = statistics.fmean(dense), half_width(dense) or 0.0
            panel.axvline(mean, color=COLOURS[0])
            panel.axvspan(mean - error, mean + error, color=COLOURS[0], alpha=0.2, lw=0)
        for y, method in enumerate(METHODS):
            values = returns(records_of.get((environment, method, sparsity), []))
            if values:
                panel.errorbar(
                    statistics.fmean(values),
                    y,
                    xerr=half_width(values) or 0.0,
                    marker=MARKERS[y + 1],
                    color=COLOURS[y + 1],
                    capsize=2,
                )
                panel.plot(values, [y] * len(values), "|", color=COLOURS[y + 1], alpha=0.6)
        panel.set_title(f"{sparsity} of the weights asked to go", fontsize=9)
        panel.set_xlabel("mean return")
        panel.locator_params(axis="x", nbins=5)
    panels[0].set_yticks(range(len(METHODS)), labels=list(METHODS))
    panels[0].set_ylim(len(METHODS) - 0.5, -0.5)
    figure.subplots_adjust(wspace=0.12)


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
        caption = (
            f"{environment}: return by method and weights removed; mean, 95 % interval and seeds,"
            f" band: the dense network's"
        )
        draw(name, caption, folder, lambda axes, e=environment: paint(e, records_of, axes))
        page += [f"## {environment}\n", table(environment, records_of)]
        page += ["Differences in return over the same seeds:\n"]
        page += [differences(environment, records_of)]
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
