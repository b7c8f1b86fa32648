"""The benchmark's page: terms, coverage, the short table, and every table by setting and point."""

from collections.abc import Sequence

from prunezoo.reporting import operations
from prunezoo.reporting.intervals import shown
from studies.benchmark.rows import DENSE, ORACLE, OWN, PRUNE_TRAIN, SMALL, Kind
from studies.benchmark.runs import COSTS, Group, Run, Runs
from studies.benchmark.tables import (
    BUDGETS,
    COSTS_MORE,
    OUTSIDE,
    REFERENCE,
    across,
    at_budget,
    differences,
    equal_cost,
    equal_epochs,
    fronts,
    groups,
    markdown,
    mean,
    pair_table,
    rank_table,
    read_off,
    share,
    unsized,
)
from studies.benchmark.trainings import (
    CLOSE_SEEDS,
    MIDDLE,
    REMOVED,
    SEEDS,
    SETTINGS,
    Setting,
)

KINDS: tuple[Kind, ...] = ("channels", "weights")
CAPTION = "test accuracy against what training cost, by when a method prunes"
AMOUNTS = {"channels": "MACs, by channels", "weights": "weights, by masks"}

TERMS = f"""## Terms

* Equal for all rows of a setting: first weights (but for the narrower network, which has its own)
  and order of images of a seed, training images,
  augmentation, optimizer, batch size, one learning-rate schedule that ends at 0 (each pass of
  methods that train several times has one), what may be pruned (everything but the classifier's
  outputs), 500 images to score on where images are needed.
* A method's own numbers are its recipe's; where they cannot fit so short a training they are
  shares of it (`studies/benchmark/rows.py` has each).
* **Equal epochs**: all passes of a method together go over as many images as the dense training.
* **Equal cost**: the rows of that table were run a second time, for as many epochs as spend the
  dense training's operations or more, up to 60 % where a trigger fires late (some first for other
  lengths, which lay too far from that cost or short of it, and were replaced whatever their
  accuracy); the accuracy at
  exactly the dense network's cost, in operations or in CPU seconds, is read between the two runs
  of a seed, linear in the cost's logarithm, never beyond them ("{OUTSIDE}"; "{COSTS_MORE}": as many
  epochs cost more already). Over a wide gap, as in CPU seconds of rows that prune at the start,
  that is rather too low, as most is learnt first; and seconds of the two lengths were measured
  under different load, so that the columns at equal seconds decide nothing. Masked weights cost
  what the dense network does, but for scoring: their rows have one length, whose accuracy stands
  for both costs.
* FLOPs are those of training steps (6 a MAC) and of what pruning computes besides: scores, BEP's
  pauses, searches, compensation (2 a MAC of each pass that ran; docs/cost.md). CPU seconds leave
  out set-up, evaluation and checkpoints. Energy is that of the whole machine during a run, most of
  it estimated, and depends on what else ran.
* Validation images, held out from training, choose the oracle's epoch and the short table's rows;
  test images nothing.
* Intervals: mean ± Student's 95 % interval over seeds. Differences are paired by seeds, with p
  adjusted by Holm's method for the number of rows in the table. Of the dense network, and of rows
  of every setting that three seeds put within five points of the reference on the first network,
  {CLOSE_SEEDS} seeds are planned there; p takes no account of that. "The cut" is the one that cost
  the most validation accuracy.
* "{SMALL}" is a narrower network of about as many MACs, nothing pruned. "{ORACLE}" is the best
  of five epochs, at the cost of all five. MACs are met from below within 5 % of what may stay
  (10 % by methods with many sizes on the way, or that leave layers of one channel), weights
  exactly.
"""
ACROSS = """Rows run in every setting, paired by seeds;
intervals are over the seeds of a setting, not adjusted.
"""
LIMITS = """## What this cannot tell

* Networks are small, data few, schedules short, so that every method has little time: to settle,
  to forecast, to recover. The papers train for 80 to 160 epochs; an order found here need not be
  theirs.
* At equal cost what is small from the start has five times the epochs of the dense network, which
  has not learnt all that it can in its own. Where it has, they are worth less.
* Three seeds give wide intervals (Student's factor is 4.30, of five 2.78); adjusted for all rows of
  a table few differences can be significant. A row without one is not shown to be equal.
* Methods keep their papers' numbers or these scaled; none was tuned for this setting.
* Imagenette is a check on other images with 600 of them, too few for accuracies to mean much by
  themselves.
"""


def page(runs: Runs, planned: int) -> str:
    """The whole page as Markdown; `planned` is the number of trainings of the plan."""
    hours = sum(run.number("cost/cpu_seconds") or 0.0 for run in runs.all) / 3600
    parts = [
        "# When and by what to prune, at equal cost\n",
        f"{len(runs.all)} runs, of {planned} planned, {hours:.1f} CPU hours; made by"
        " `python -m studies.benchmark show` from the records next to this page, one line each in"
        " [runs.csv](runs.csv).\n",
        f"![{CAPTION}](cost.svg)\n",
        short_table(runs, SETTINGS[0]),
        TERMS,
    ]
    said = [operations.remark([run.record for run in runs.all]), _shared_cores(runs)]
    parts += [f"{sentence}.\n" for sentence in said if sentence]
    for kind in KINDS:
        table = across(runs, kind, MIDDLE)
        if table:
            amount = f"{REMOVED[kind][MIDDLE]} % of {AMOUNTS[kind]}"
            parts += [f"## All settings: {amount}, equal epochs\n", ACROSS, table]
    for setting in SETTINGS:
        if any(run.training.setting is setting for run in runs.all):
            parts += _setting(runs, setting)
    return "\n".join([*parts, LIMITS])


def _shared_cores(runs: Runs) -> str:
    """How far a row's CPU seconds an operation are apart; empty if nothing was run twice."""
    rates: dict[tuple[str, str, int], list[float]] = {}
    for run in runs.all:
        flops, seconds = run.number(operations.TOTAL), run.number(COSTS["CPU seconds"])
        if flops and seconds:
            setting, row, point, *_ = run.training
            rates.setdefault((setting.name, row.name, point), []).append(seconds / flops)
    most = max((max(of) / min(of) for of in rates.values()), default=1.0)
    if most < 1.005:
        return ""
    return (
        "CPU seconds are of cores shared with other work: of two runs of one row, of either length,"
        f" one took up to {most:.2g} times as long an operation"
    )


def short_table(runs: Runs, setting: Setting) -> str:
    """Controls, the papers' own, and of each moment the row best on validation images.

    The README's table.
    """
    parts = []
    long = _has_long(runs, setting, MIDDLE)
    for kind in KINDS:
        if not _ran(runs, setting, kind, MIDDLE):
            continue
        ordered = groups(runs, setting, kind, MIDDLE)
        against = differences({g.row.name: g.by_seed() for g in ordered}, REFERENCE[kind])
        names = _chosen(ordered, kind)
        chosen = [group for group in ordered if group.row.name in names]
        rows = [group.row for group in chosen]
        # seconds of the two lengths were measured under different load
        budgets = BUDGETS[:1] if long and kind == "channels" else ()
        columns = [at_budget(runs, setting, rows, MIDDLE, budget) for budget in budgets]
        dense = runs.group(setting, setting.dense, MIDDLE, "equal epochs")
        lines = [
            [
                group.row.name,
                group.row.moment,
                str(len(group.runs)),
                shown(list(group.by_seed().values())),
                against.get(group.row.name, ""),
                *(
                    read_off(runs, setting, group.row, MIDDLE, budget, column[group.row.name])
                    for budget, column in zip(budgets, columns, strict=True)
                ),
                share(group, dense, operations.TOTAL),
                f"{mean(group.values('cost/training_cpu_seconds')):.0f}",
            ]
            for group in chosen
        ]
        heads = [
            f"{setting.name}, {REMOVED[kind][MIDDLE]} % of {AMOUNTS[kind]}",
            "when",
            "seeds",
            "test accuracy, %",
            f"− {REFERENCE[kind]}",
            *(f"at dense training's {budget}, %" for budget in budgets),
            "FLOPs, % of dense",
            "CPU s",
        ]
        parts.append(markdown(heads, lines))
    return "\n".join(parts)


def _chosen(ordered: Sequence[Group], kind: Kind) -> set[str]:
    """Names of the controls, of the papers' own, and of each moment's best row by validation."""
    best: dict[str, tuple[float, str]] = {}
    most = max((len(group.runs) for group in ordered), default=0)
    for group in (group for group in ordered if len(group.runs) >= min(SEEDS, most)):
        moment = group.row.moment
        if moment in ("start", "early", "during", "after"):
            accuracy = mean([run.validation for run in group.runs])
            best[moment] = max(best.get(moment, (-1.0, "")), (accuracy, group.row.name))
    return {DENSE, REFERENCE[kind], *OWN} | {name for _, name in best.values()}


def _setting(runs: Runs, setting: Setting) -> list[str]:
    images = max(_steps(run) for run in runs.all if run.training.setting is setting)
    parts = [
        f"## {setting.name}: {setting.about}\n",
        f"{setting.epochs} epochs, {images:.0f} training steps at equal epochs;"
        f" `recipes/base/{setting.base}.yaml`.\n",
    ]
    for kind in KINDS:
        points = [p for p in setting.points if _ran(runs, setting, kind, p)]
        for point in points:
            name = f"{setting.name}: {REMOVED[kind][point]} % of {AMOUNTS[kind]}"
            parts += [f"### {name}, equal epochs\n", equal_epochs(runs, setting, kind, point)]
            if kind == "channels" and _has_long(runs, setting, point):
                parts += [f"### {name}, equal cost\n", equal_cost(runs, setting, kind, point)]
            if pairs := pair_table(runs, setting, kind, point):
                about = "Paired by seeds; Student's 95 % interval, not adjusted.\n"
                parts += [f"### {name}, methods and their controls\n", about, pairs]
        if points:
            parts += [f"### {setting.name}: ranks, {kind}\n", rank_table(runs, setting, kind)]
            parts += [f"### {setting.name}: Pareto fronts, {kind}\n", fronts(runs, setting, kind)]
    return [*parts, *_prune_train(runs, setting)]


def _ran(runs: Runs, setting: Setting, kind: Kind, point: int) -> bool:
    """Whether anything but the dense network, which is at every point, has a run there."""
    return any(group.row.name != DENSE for group in groups(runs, setting, kind, point))


def _prune_train(runs: Runs, setting: Setting) -> Sequence[str]:
    lines = unsized(runs, setting)
    if not lines:
        return []
    return [
        f"### {setting.name}: {PRUNE_TRAIN}, which asks for no size\n",
        "One row a strength of its lasso; in no comparison above.\n",
        lines,
    ]


def _steps(run: Run) -> float:
    steps, epochs = run.number("run/steps") or 0.0, run.number("run/epochs") or 1.0
    return run.training.setting.epochs * steps / epochs


def _has_long(runs: Runs, setting: Setting, point: int) -> bool:
    return any(
        run.training[0] is setting and run.training[2:4] == (point, "equal cost")
        for run in runs.all
    )
