"""PaT's figure 3 at the digits' scale: accuracy against the pruning epoch, EPI's choice marked.

python studies/when.py run [--seeds 0 1 2] [--jobs 2]
python studies/when.py show    # table and plot, into results/pat/digits

Every pruning epoch, for prune-aware training and for the structural lottery ticket, and one run in
which EPI chooses. The best epoch is chosen on a validation split, accuracies are on test images.
`run` resumes where it stopped and runs nothing twice.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.stats import t as student

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.pages.palette import GREEN, VERMILION
from prunezoo.reporting.records import Job, Record, standard_error

RATIOS = (0.5, 0.8)
EPOCHS = (0, 1, 2, 4, 6, 8, 10, 12, 16, 20, 26, 32)  # of 40
DIGITS = (
    "extends=../base/digits/digits_cnn.yaml",
    "model.options.width=0.5",
    "data.validation=20%",
    "pruning.schedule.wait=2it",
    "pruning.schedule.every=2it",
    "pruning.schedule.rounds=8",
)
FOLDER = "pat/digits"
KINDS = {"PaT": "fixed_epoch", "lottery ticket": "lottery_ticket", "EPI": "epi"}
COLOURS = {"PaT": GREEN, "lottery ticket": "#777777", "EPI": VERMILION}
QUIET = ("log.tracker=none", "log.every=10ep", "checkpoint.every=40ep")


class Point(NamedTuple):
    """A run of the study: kind, fraction of channels removed, first pruning epoch, seed."""

    kind: str
    ratio: float
    epoch: int
    seed: int


Points = dict[Point, Record]


def job(kind: str, ratio: float, epoch: int, seed: int) -> Job:
    """One training of the study; EPI chooses its own epoch."""
    start = () if kind == "EPI" else (f"pruning.schedule.start={epoch}ep",)
    settings = (*DIGITS, f"pruning.channels={ratio:g}", *start)
    when = "" if kind == "EPI" else f"-epoch{epoch}"
    name = f"{FOLDER}/{KINDS[kind]}-{100 * ratio:g}{when}"
    return Job(None, f"recipes/pat/{KINDS[kind]}.yaml", settings, seed=seed, study=name)


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings, seed by seed."""
    return [job(kind, ratio, epoch, seed) for seed in seeds for ratio in RATIOS
            for epoch in EPOCHS for kind in KINDS]  # fmt: skip


def results(records: Sequence[Record]) -> Points:
    """The study's records, by point."""
    places = [(kind, ratio, epoch) for kind in KINDS for ratio in RATIOS for epoch in EPOCHS]
    place_of = {job(*place, 0).experiment: place for place in places}
    points: Points = {}
    for record in records:
        place = place_of.get(record.job.experiment)
        if place is not None:
            kind, ratio, epoch = place
            epoch = int(record.summary["derived/first_pruning_epoch"]) if kind == "EPI" else epoch
            points[Point(kind, ratio, epoch, record.job.seed)] = record
    return points


def test(record: Record) -> float:
    """Test accuracy, in %."""
    return record.summary["eval/top1_percent"]


def fired(record: Record) -> bool:
    """Return True if EPI started the pruning, False if the recipe's `latest` did."""
    return bool(record.history.get("watched", [])[-1]["trigger/fired"])


def validation(record: Record) -> float:
    """Last validation accuracy, in %."""
    return record.history["accuracy"][-1][1]


def spread(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 for a single value."""
    return standard_error(values) or 0.0


def curve(points: Points, kind: str, ratio: float) -> dict[int, list[Record]]:
    """Pruning epoch → records, one a seed."""
    by_epoch: dict[int, list[Record]] = defaultdict(list)
    for point, record in sorted(points.items()):
        if (point.kind, point.ratio) == (kind, ratio):
            by_epoch[point.epoch].append(record)
    return dict(sorted(by_epoch.items()))


def best_epoch(points: Points, ratio: float) -> int:
    """The pruning epoch with the highest mean validation accuracy, the earliest of equal ones."""
    means = {
        e: statistics.fmean(map(validation, r)) for e, r in curve(points, "PaT", ratio).items()
    }
    return min(means, key=lambda epoch: (-means[epoch], epoch))


def against_best(points: Points, ratio: float, policy: dict[int, list[float]]) -> list[float]:
    """Test accuracy of a policy (seed → accuracies) minus the best epoch's, seed by seed."""
    best = best_epoch(points, ratio)
    at_best = {p.seed: test(r) for p, r in points.items() if p[:3] == ("PaT", ratio, best)}
    pairs = [(policy[s], at_best[s]) for s in sorted(policy) if s in at_best]
    return [statistics.fmean(values) - reference for values, reference in pairs]


def policies(points: Points, ratio: float) -> dict[str, dict[int, list[float]]]:
    """Table 1's policies → seed → test accuracies.

    A random epoch of the first third, epoch 0, the grid's epoch nearest to a third, and EPI's.
    """
    epochs = list(curve(points, "PaT", ratio))
    third = max((r.summary["run/epochs"] / 3 for p, r in points.items() if p.kind == "PaT"))
    chosen = {
        "random": {epoch for epoch in epochs if epoch <= third},
        "init": {0},
        "pre-defined (a third)": {min(epochs, key=lambda epoch: abs(epoch - third))},
    }
    gaps: dict[str, dict[int, list[float]]] = {}
    for name, wanted in chosen.items():
        gaps[name] = defaultdict(list)
        for point, record in points.items():
            if point.kind == "PaT" and point.ratio == ratio and point.epoch in wanted:
                gaps[name][point.seed].append(test(record))
    of_epi = [(p.seed, test(r)) for p, r in points.items() if p[:2] == ("EPI", ratio)]
    return gaps | {"EPI": {seed: [accuracy] for seed, accuracy in of_epi}}


def measured(values: Sequence[float]) -> str:
    """Mean ± standard error."""
    return f"{statistics.fmean(values):.2f} ± {spread(values):.2f}" if values else "not run"


def grid_table(points: Points) -> str:
    """Test accuracy (%) by pruning epoch, mean ± standard error over seeds."""
    columns = [(kind, ratio) for kind in ("PaT", "lottery ticket") for ratio in RATIOS]
    heads = [f"{kind}, {ratio:.0%} of channels" for kind, ratio in columns]
    lines = [f"| pruning epoch | {' | '.join(heads)} |", "|--:|" + "--:|" * len(heads)]
    epochs = sorted({point.epoch for point in points if point.kind == "PaT"})
    for epoch in epochs:
        cells = [measured([test(r) for r in curve(points, *c).get(epoch, [])]) for c in columns]
        lines.append(f"| {epoch} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def policy_table(points: Points) -> str:
    """Accuracy of each policy minus the best epoch's, and a verdict on EPI's."""
    heads = [f"{ratio:.0%} of channels" for ratio in RATIOS]
    lines = [f"| policy | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    gaps = {
        ratio: {
            name: against_best(points, ratio, seeds)
            for name, seeds in policies(points, ratio).items()
        }
        for ratio in RATIOS
    }
    for name in next(iter(gaps.values())):
        lines.append(f"| {name} | " + " | ".join(measured(gaps[r][name]) for r in RATIOS) + " |")
    said = [verdict(points, ratio, gaps[ratio]["EPI"]) for ratio in RATIOS if gaps[ratio]["EPI"]]
    return "\n".join(lines) + "\n\n" + "".join(f"* {line}\n" for line in said)


def verdict(points: Points, ratio: float, gap: Sequence[float]) -> str:
    """A sentence comparing EPI's epoch with the best one, by the 95 % interval of paired seeds."""
    of_epi = [(p.epoch, fired(points[p])) for p in sorted(points) if p[:2] == ("EPI", ratio)]
    at = ", ".join(f"{e}" if by_itself else f"{e} (the latest allowed)" for e, by_itself in of_epi)
    # Student's t: of three seeds 4.30 standard errors, where 2 would hold 82 % only
    quantile = float(student.ppf(0.975, len(gap) - 1)) if len(gap) > 1 else 0.0
    mean, noise = statistics.fmean(gap), quantile * spread(gap)
    inside = "within the noise of" if abs(mean) <= noise else "outside the noise of"
    return (
        f"{ratio:.0%} of channels: EPI began at epoch {at}; the best by validation is"
        f" {best_epoch(points, ratio)}. Its accuracy is {inside} the best epoch's"
        f" ({mean:+.2f} points, 95 % interval of paired seeds ± {noise:.2f})."
    )


def draw(points: Points, path: Path) -> None:
    """Draw accuracy against pruning epoch, one panel for each ratio, a star for each EPI run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(RATIOS), figsize=(11, 4.4), squeeze=False)
    for panel, ratio in zip(panels[0], RATIOS, strict=True):
        for kind, marker in (("PaT", "o"), ("lottery ticket", "s")):
            accuracies = {e: [test(r) for r in records]
                          for e, records in curve(points, kind, ratio).items()}  # fmt: skip
            means = [statistics.fmean(values) for values in accuracies.values()]
            errors = [spread(values) for values in accuracies.values()]
            panel.errorbar(list(accuracies), means, yerr=errors, marker=marker,
                           color=COLOURS[kind], capsize=2, label=kind)  # fmt: skip
        for alone, label, fill in ((True, "EPI's choice", "full"), (False, "EPI: latest", "none")):
            chosen = [(p.epoch, test(r)) for p, r in points.items()
                      if p[:2] == ("EPI", ratio) and fired(r) == alone]  # fmt: skip
            places = zip(*chosen, strict=True) if chosen else ((), ())
            panel.plot(*places, "*", ms=13, color=COLOURS["EPI"], fillstyle=fill, label=label)
        panel.set_title(f"{ratio:.0%} of channels removed")
        panel.set_xlabel("pruning epoch")
        panel.set_ylabel("test accuracy, %")
        panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def show(records: Sequence[Record], folder: Path) -> str | None:
    """The page of the study; draws its plot into the folder."""
    points = results(records)
    if {p.kind for p in points} != set(KINDS):
        return None
    draw(points, folder / "epochs.png")
    return (
        "# Digits: accuracy against pruning epoch\n\nPaT's figure 3 (arXiv:2110.12007) on 8×8"
        " digits with a small CNN; test accuracy in %, mean ± standard error over seeds;"
        " from the records beside this page, by `studies/when.py show`.\n\n"
        + grid_table(points)
        + "\nTest accuracy minus the best epoch's, points:\n\n"
        + policy_table(points)
        + "\n![accuracy against pruning epoch](epochs.png)\n"
    )


if __name__ == "__main__":
    sys.exit(carry_out(Study(__doc__, FOLDER, jobs, show, seeds=(0, 1, 2), local=QUIET)))
