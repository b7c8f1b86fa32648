"""The benchmark's tables: methods at equal epochs and at equal cost, ranks, Pareto fronts."""

import statistics
from collections.abc import Mapping, Sequence

from prunezoo.reporting.intervals import NOT_RUN, half_width, shown
from prunezoo.reporting.operations import TOTAL
from prunezoo.reporting.pages.experiments import Point, pareto
from studies.benchmark.comparison import at_cost, holm, p_value, paired, ranks
from studies.benchmark.rows import (
    CHECKS,
    DENSE,
    FIXED,
    ORACLE,
    PAIRS,
    RANDOM_ERK,
    SMALL,
    Kind,
    Row,
    fixed_name,
)
from studies.benchmark.runs import COSTS, Group, Run, Runs
from studies.benchmark.trainings import LENGTHS, MIDDLE, SEEDS, SETTINGS, Setting

REFERENCE: dict[Kind, str] = {"channels": SMALL, "weights": RANDOM_ERK}
BUDGETS = ("FLOPs", "CPU seconds")
Accuracies = Mapping[str, Mapping[int, float]]  # method → seed → test accuracy
OUTSIDE, COSTS_MORE = "outside", "costs more"


def groups(runs: Runs, setting: Setting, kind: Kind, point: int) -> list[Group]:
    """Runs at equal epochs of every row of a kind that was run at all, the most accurate first."""
    rows = [r for r in setting.rows() if r.kind == kind and r.moment != "control"]
    rows = [row for row in rows if not row.strengths]
    found = [runs.group(setting, row, point, "equal epochs") for row in _controls(setting, kind)]
    found += [runs.group(setting, row, point, "equal epochs") for row in rows]
    return sorted((g for g in found if g.runs), key=lambda g: -mean(list(g.by_seed().values())))


def _controls(setting: Setting, kind: Kind) -> list[Row]:
    return [setting.dense, setting.small] if kind == "channels" else [setting.dense]


def equal_epochs(runs: Runs, setting: Setting, kind: Kind, point: int) -> str:
    """Every row after as many images: accuracy, its difference from the reference, size, cost."""
    ordered = groups(runs, setting, kind, point)
    accuracies = {group.row.name: group.by_seed() for group in ordered}
    dense = runs.group(setting, setting.dense, point, "equal epochs")
    unit = "channels" if kind == "channels" else "weights"
    heads = [
        "method", "when", "cut at epoch", "seeds", "top-1, %", f"− {REFERENCE[kind]}",
        "MACs left, %", f"fewest {unit} in a layer", "FLOPs, % of dense", "CPU s", "Wh",
        "the cut: before → after, %",
    ]  # fmt: skip
    against = differences(accuracies, REFERENCE[kind])
    whole = runs.dense_macs(setting)
    lines = [
        [
            group.row.name,
            group.row.moment,
            _cut_epoch(group.runs),
            str(len(group.runs)),
            shown(list(group.by_seed().values())),
            against.get(group.row.name, ""),
            _mean(group, "model/macs", 100 / whole, "{:.1f}"),
            _fewest(group.runs),
            share(group, dense, TOTAL),
            _mean(group, "cost/training_cpu_seconds", 1.0, "{:.0f}"),
            _mean(group, "cost/energy_kwh", 1e3, "{:.2f}"),
            _fall(group.runs),
        ]
        for group in ordered
    ]
    if kind == "channels":
        lines += _oracle(runs, setting, point)
    return markdown(heads, lines)


def equal_cost(runs: Runs, setting: Setting, kind: Kind, point: int) -> str:
    """Every row run longer at what dense training costs, in operations and in CPU time."""
    names = [group.row for group in groups(runs, setting, kind, point)]
    longer = {row.name for row in names if runs.group(setting, row, point, "equal cost").runs}
    names = [row for row in names if row.name in {DENSE, *longer}]
    heads, columns = ["method"], []
    for budget in BUDGETS:
        found = at_budget(runs, setting, names, point, budget)
        columns.append((budget, found, differences(found, REFERENCE[kind])))
        heads += [f"top-1 at the dense network's {budget}, %", f"− {REFERENCE[kind]}"]
    lines = []
    for row in names:
        cells = [
            cell
            for budget, found, against in columns
            for cell in (
                read_off(runs, setting, row, point, budget, found[row.name]),
                against.get(row.name, ""),
            )
        ]
        lines.append([row.name, *cells])
    order = {row.name: -mean(list(columns[0][1][row.name].values())) for row in names}
    return markdown(heads, sorted(lines, key=lambda line: order[line[0]]))


def at_budget(
    runs: Runs, setting: Setting, rows: Sequence[Row], point: int, budget: str
) -> dict[str, dict[int, float]]:
    """Method → seed → accuracy at the mean cost of dense training, between two lengths run."""
    key = COSTS[budget]
    dense = runs.group(setting, setting.dense, point, "equal epochs").values(key)
    found: dict[str, dict[int, float]] = {row.name: {} for row in rows}
    if not dense:
        return found
    for row in rows:
        seeds: dict[int, list[tuple[float, float]]] = {}
        for length in LENGTHS:
            for run in runs.group(setting, row, point, length).runs:
                cost = run.number(key)
                if cost:
                    seeds.setdefault(run.seed, []).append((cost, run.accuracy))
        for seed, known in seeds.items():
            # of weights every row costs what the dense network does, and dense costs itself
            alone = row.kind == "weights" and len(known) == 1
            accuracy = known[0][1] if alone else at_cost(known, mean(dense))
            if accuracy is not None:
                found[row.name][seed] = accuracy
    return found


def differences(accuracies: Accuracies, reference: str) -> dict[str, str]:
    """Method → paired difference from the reference, its interval and Holm's p, as text."""
    gaps = {
        name: paired(of, accuracies[reference])
        for name, of in accuracies.items()
        if name != reference and reference in accuracies
    }
    p_values = {name: p for name, gap in gaps.items() if (p := p_value(gap)) is not None}
    adjusted = holm(p_values)
    said = {}
    for name, gap in gaps.items():
        if gap:
            width = half_width(gap)
            text = f"{statistics.fmean(gap):+.2f}"
            said[name] = text + (f" ± {width:.2f}, p {adjusted[name]:.2g}" if width else "")
    return said


def pair_table(runs: Runs, setting: Setting, kind: Kind, point: int) -> str:
    """Methods against their controls, at equal epochs and operations; empty if none was run."""
    pairs = (*PAIRS, *CHECKS)
    named = {name for pair in pairs for name in pair}
    rows = {row.name: row for row in setting.rows() if row.name in named and row.kind == kind}
    epochs = {
        name: runs.group(setting, row, point, "equal epochs").by_seed()
        for name, row in rows.items()
    }
    at_flops = at_budget(runs, setting, list(rows.values()), point, BUDGETS[0])
    lines = []
    for method, control in pairs:
        cells = [_gap(of.get(method, {}), of.get(control, {})) for of in (epochs, at_flops)]
        if cells[0] != NOT_RUN:
            lines.append([f"{method} − {control}", *cells])
    heads = ["difference, points", "equal epochs", f"at the dense network's {BUDGETS[0]}"]
    return markdown(heads, lines) if lines else ""


def _gap(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    gap = paired(first, second)
    return shown_gap(gap) if len(gap) > 1 else NOT_RUN


def across(runs: Runs, kind: Kind, point: int) -> str:
    """Rows run in several settings: their differences from the reference in each, at equal epochs.

    Empty where fewer than two settings were run.
    """
    gaps: dict[str, dict[str, list[float]]] = {}  # row → setting → differences by seed
    for setting in SETTINGS:
        of = {g.row.name: g.by_seed() for g in groups(runs, setting, kind, point)}
        reference = of.pop(REFERENCE[kind], {})
        for name, accuracies in of.items():
            gap = paired(accuracies, reference)
            if gap:
                gaps.setdefault(name, {})[setting.name] = gap
    ran = [s.name for s in SETTINGS if any(s.name in of for of in gaps.values())]
    whole = {
        name: mean([mean(of[setting]) for setting in ran])
        for name, of in gaps.items()
        if len(of) == len(ran)
    }
    if len(ran) < 2 or not whole:
        return ""
    lines = [
        [name, *(shown_gap(gaps[name][setting]) for setting in ran), f"{whole[name]:+.2f}"]
        for name in sorted(whole, key=lambda name: -whole[name])
    ]
    return markdown([f"− {REFERENCE[kind]}, points", *ran, "mean of settings"], lines)


def rank_table(runs: Runs, setting: Setting, kind: Kind) -> str:
    """Mean rank over the setting's points, among the rows run at all of them; interval over seeds.

    Of a row with fewer seeds than are planned of all there is no rank.
    """
    blocks = []
    for point in setting.points:
        of = {g.row.name: g.by_seed() for g in groups(runs, setting, kind, point)}
        of.pop(DENSE, None)
        enough = min(SEEDS, max(map(len, of.values()), default=0))
        blocks.append({name: seeds for name, seeds in of.items() if len(seeds) >= enough})
    blocks = [block for block in blocks if block]
    shared = set.intersection(*map(set, blocks)) if blocks else set()
    placed = [ranks({name: block[name] for name in sorted(shared)}) for block in blocks]
    seeds = set.intersection(*(set(p[name]) for p in placed for name in shared)) if shared else ()
    means = {n: [mean([p[n][seed] for p in placed]) for seed in sorted(seeds)] for n in shared}
    ordered = sorted(means, key=lambda name: (mean(means[name]), name))
    lines = [[name, str(len(means[name])), shown(means[name])] for name in ordered]
    heads = ["method", "seeds", f"mean rank of {len(means)}, {len(blocks)} operating point(s)"]
    return markdown(heads, lines)


def fronts(runs: Runs, setting: Setting, kind: Kind) -> str:
    """The rows that no other beats in both accuracy and a cost, over all points and lengths."""
    lines = []
    for label, key in COSTS.items():
        points = [
            Point(group.row.name, mean(values), mean(list(group.by_seed().values())), 0.0, size)
            for group, size in _everything(runs, setting, kind)
            if (values := group.values(key))
        ]
        names = [f"{p.label}{p.details} {p.y:.1f} %" for p in pareto(points, more=False)]
        lines.append(f"* {label}: {'; '.join(names) or NOT_RUN}")
    return "\n".join(lines) + "\n"


def _everything(runs: Runs, setting: Setting, kind: Kind) -> list[tuple[Group, str]]:
    found = []
    for point in setting.points:
        for row in setting.rows():
            for length in LENGTHS:
                group = runs.group(setting, row, point, length)
                dense = row.name == DENSE
                once = not dense or point == setting.points[0]
                if group.runs and (dense or row.kind == kind) and once:
                    removed = group.runs[0].training.removed
                    longer = ", longer" if length == "equal cost" else ""
                    found.append((group, f" (−{removed} %{longer})" if removed else ""))
    return found


def _oracle(runs: Runs, setting: Setting, point: int) -> list[list[str]]:
    """The pruning epoch with the best mean validation accuracy; its cost is that of the search."""
    fixed = {fixed_name(share) for share in FIXED}
    rows = [row for row in setting.rows() if row.name in fixed]
    tried = [runs.group(setting, row, point, "equal epochs") for row in rows]
    if len(rows) < len(fixed) or not all(group.runs for group in tried):
        return []
    best = max(tried, key=lambda group: mean([run.validation for run in group.runs]))
    seconds = sum(mean(group.values("cost/training_cpu_seconds") or [0.0]) for group in tried)
    accuracy = shown(list(best.by_seed().values()))
    cost = f"{seconds:.0f} (all {len(tried)})"
    name = f"{ORACLE}: {best.row.name}"
    row = [name, "early", _cut_epoch(best.runs), str(len(best.runs)), accuracy]
    return [[*row, "", "", "", "", cost, "", ""]]


def unsized(runs: Runs, setting: Setting) -> str:
    """Rows that cannot be asked for a size, a line each strength; empty if none was run."""
    dense = runs.group(setting, setting.dense, MIDDLE, "equal epochs")
    lines = []
    for row in (row for row in setting.rows() if row.strengths):
        for point in sorted(setting.points):
            group = runs.group(setting, row, point, "equal epochs")
            if group.runs:
                whole = 100 / runs.dense_macs(setting)
                lines.append(
                    [
                        f"{row.name}, {row.strengths[point].rpartition('=')[2]}",
                        str(len(group.runs)),
                        shown(list(group.by_seed().values())),
                        _mean(group, "model/macs", whole, "{:.1f}"),
                        _fewest(group.runs),
                        share(group, dense, TOTAL),
                        _mean(group, "cost/training_cpu_seconds", 1.0, "{:.0f}"),
                    ]
                )
    heads = ["method", "seeds", "top-1, %", "MACs left, %", "fewest channels in a layer"]
    return markdown([*heads, "FLOPs, % of dense", "CPU s"], lines) if lines else ""


# ── cells ────────────────────────────────────────────────────────────────────────────────────────
def mean(values: Sequence[float]) -> float:
    """The mean; −∞ of nothing, which sorts last."""
    return statistics.fmean(values) if values else float("-inf")


def read_off(
    runs: Runs, setting: Setting, row: Row, point: int, budget: str, found: Mapping[int, float]
) -> str:
    """Accuracy at the dense network's cost; a word if no seed was run both below and above it."""
    if found:
        return shown(list(found.values()))
    dense = runs.group(setting, setting.dense, point, "equal epochs").values(COSTS[budget])
    own = runs.group(setting, row, point, "equal epochs").values(COSTS[budget])
    if own and min(own) > mean(dense):
        return COSTS_MORE
    return OUTSIDE if runs.group(setting, row, point, "equal cost").runs else NOT_RUN


def _mean(group: Group, key: str, times: float, form: str) -> str:
    values = group.values(key)
    return form.format(times * mean(values)) if values else ""


def share(group: Group, dense: Group, key: str) -> str:
    """A mean cost in % of the dense network's."""
    whole = dense.values(key)
    return _mean(group, key, 100 / mean(whole), "{:.0f}") if whole else ""


def _cut_epoch(runs: Sequence[Run]) -> str:
    """Epochs of the first cut, one a seed where they differ; `latest` where no trigger fired."""
    told = []
    for run in runs:
        if run.first_epoch is not None:
            late = " (latest)" if run.fired is False else ""
            told.append(f"{run.first_epoch:.3g}{late}")
    return ", ".join(told if len(set(told)) > 1 else told[:1])


def _fewest(runs: Sequence[Run]) -> str:
    """The smallest of all seeds; a layer of one is marked."""
    found = [run.fewest for run in runs if run.fewest is not None]
    if not found:
        return ""
    return f"**{min(found)}**" if min(found) <= 1 else str(min(found))


def _fall(runs: Sequence[Run]) -> str:
    falls = [run.fall for run in runs if run.fall is not None]
    if not falls:
        return ""
    return f"{mean([f.before for f in falls]):.1f} → {mean([f.after for f in falls]):.1f}"


def shown_gap(gap: Sequence[float]) -> str:
    """The mean difference with its interval; of one seed the difference alone."""
    width = half_width(gap)
    return f"{mean(gap):+.2f}" + (f" ± {width:.2f}" if width is not None else "")


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; texts on the left, figures on the right."""
    rule = "|---|" + "--:|" * (len(heads) - 1)
    return "\n".join([_line(heads), rule, *map(_line, lines)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
