"""A grid of pruning epochs: its trainings, the best epoch, policies against it, tables and plot."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from prunezoo.reporting.intervals import half_width, shown
from prunezoo.reporting.pages.palette import GREEN, VERMILION
from prunezoo.reporting.records import Job, Record
from studies.benchmark.comparison import paired

KINDS = {"PaT": "fixed_epoch", "EPI": "epi", "lottery ticket": "lottery_ticket"}
WATCHING = "EPI, watching"
COLOURS = {"PaT": GREEN, "lottery ticket": "#777777", "EPI": VERMILION}
NO_GRID = "no grid"  # of pruning epochs, to compare with
LONG = "training.duration=90ep"  # of runs that only watch: the paper's length
SHARES = "[0.1, 0.3, 0.5, 0.8, 0.9]"  # of which they follow EPI


class Point(NamedTuple):
    """A run of the grid: kind, fraction of channels removed, first pruning epoch, seed."""

    kind: str
    ratio: float
    epoch: int
    seed: int


class Place(NamedTuple):
    """What its recipe and settings say of a run; the epoch of EPI is what it chose, so 0."""

    kind: str
    ratio: float
    epoch: int


Points = dict[Point, Record]


@dataclass(frozen=True)
class Part:
    """A network scored by one criterion: a grid of pruning epochs at each ratio, and EPI.

    `folder` and `prefix`: of records. `settings`: of all trainings. `seconds`: of one core for a
    training of the grid. `tickets`: ratios that are run as lottery tickets too. `seeds`: the only
    ones, if given. `watching`: with runs that only watch. `data`: it needs the data set's folder.
    `caution`: what the page says below its comparison with EPI.
    """

    folder: str
    prefix: str
    title: str
    settings: tuple[str, ...]
    tau: float
    ratios: tuple[float, ...]
    epochs: tuple[int, ...]
    seconds: float
    tickets: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    watching: bool = True
    data: bool = False
    caution: str = ""

    @property
    def slug(self) -> str:
        """The part's word in names of files."""
        return "_".join((self.folder.rpartition("/")[2], self.prefix.rstrip("-"))).rstrip("_")

    def job(self, place: Place, seed: int) -> Job:
        """One training."""
        kind, ratio, epoch = place
        recipe = KINDS.get(kind, "epi")
        chosen = "" if recipe == "epi" else f"-epoch{epoch}"
        settings = (*self.settings, f"pruning.channels={ratio:g}", *self._when(kind, epoch))
        name = recipe if kind != WATCHING else "watching"
        place_name = f"{self.folder}/{self.prefix}{name}-{100 * ratio:g}{chosen}"
        return Job(None, f"recipes/pat/{recipe}.yaml", settings, seed=seed, study=place_name)

    def _when(self, kind: str, epoch: int) -> tuple[str, ...]:
        tau = () if self.tau == 0.944 else (f"pruning.schedule.trigger.tau={self.tau}",)
        if kind == "EPI":
            return tau
        if kind == WATCHING:  # nothing goes before the last epochs
            watch = ("pruning.schedule.start=89ep", "pruning.schedule.latest=89ep")
            return (*tau, f"pruning.schedule.trigger.ratios={SHARES}", LONG, *watch)
        return (f"pruning.schedule.start={epoch}ep",)

    @cached_property
    def places(self) -> dict[tuple[str, frozenset[str]], Place]:
        """Experiment → place."""
        grid = [Place("PaT", ratio, epoch) for ratio in self.ratios for epoch in self.epochs]
        chosen = [Place("EPI", ratio, 0) for ratio in self.ratios]
        tickets = [Place("lottery ticket", r, epoch) for r in self.tickets for epoch in self.epochs]
        watching = [Place(WATCHING, self.ratios[0], 0)] if self.watching else []
        places = [*watching, *chosen, *grid, *tickets]
        return {self.job(place, 0).experiment: place for place in places}

    def jobs(self, seeds: Sequence[int]) -> list[Job]:
        """The trainings of these seeds: EPI's own first, then grids, seed by seed."""
        allowed = [seed for seed in seeds if not self.seeds or seed in self.seeds]
        groups = ((WATCHING, "EPI"), ("PaT",), ("lottery ticket",))
        return [
            self.job(place, seed)
            for kinds in groups
            for seed in allowed
            for place in self.places.values()
            if place.kind in kinds
        ]

    def cost(self, job: Job) -> float:
        """Seconds of one core: as of the grid, a ticket's second training and a watch's length."""
        times = {"lottery ticket": 1.6, WATCHING: 90 / 40}
        return self.seconds * times.get(self.places[job.experiment].kind, 1.0)

    def block(self, job: Job) -> str:
        """The part of the plan that a training belongs to."""
        return f"{self.title.partition(';')[0]}, {self.places[job.experiment].kind}"

    def results(self, records: Sequence[Record]) -> Points:
        """The grid's records, by point; EPI's by the epoch that it chose."""
        points: Points = {}
        for record in records:
            place = self.places.get(record.job.experiment)
            if place is not None and place.kind != WATCHING:
                kind, ratio, epoch = place
                chosen = record.summary["derived/first_pruning_epoch"] if kind == "EPI" else epoch
                points[Point(kind, ratio, int(chosen), record.job.seed)] = record
        return points

    def watched(self, records: Sequence[Record]) -> list[Record]:
        """The records of runs that only watch, one a seed."""
        return [r for r in records
                if (at := self.places.get(r.job.experiment)) and at.kind == WATCHING]  # fmt: skip


def test(record: Record) -> float:
    """Test accuracy, in %."""
    return record.summary["eval/top1_percent"]


def fired(record: Record) -> bool:
    """Return True if EPI started the pruning, False if the recipe's `latest` did."""
    return bool(record.history.get("watched", [])[-1]["trigger/fired"])


def validation(record: Record) -> float:
    """Last validation accuracy, in %."""
    return record.history["accuracy"][-1][1]


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
    if not curve(points, "PaT", ratio):
        return []
    best = best_epoch(points, ratio)
    at_best = {p.seed: test(r) for p, r in points.items() if p[:3] == ("PaT", ratio, best)}
    pairs = [(policy[s], at_best[s]) for s in sorted(policy) if s in at_best]
    return [statistics.fmean(values) - reference for values, reference in pairs]


def policies(points: Points, ratio: float) -> dict[str, dict[int, list[float]]]:
    """Table 1's policies → seed → test accuracies.

    The grid's epochs of the first third, where the grid is denser early and the paper draws evenly;
    epoch 0; the grid's epoch nearest to a third; and EPI's.
    """
    epochs = list(curve(points, "PaT", ratio))
    third = max((r.summary["run/epochs"] / 3 for p, r in points.items() if p.kind == "PaT"))
    nearest = {min(epochs, key=lambda epoch: abs(epoch - third))} if epochs else set()
    chosen = {
        "random, of the grid's first third": {epoch for epoch in epochs if epoch <= third},
        "init": {0},
        "pre-defined (a third)": nearest,
    }
    gaps: dict[str, dict[int, list[float]]] = {}
    for name, wanted in chosen.items():
        gaps[name] = defaultdict(list)
        for point, record in points.items():
            if point.kind == "PaT" and point.ratio == ratio and point.epoch in wanted:
                gaps[name][point.seed].append(test(record))
    of_epi = [(p.seed, test(r)) for p, r in points.items() if p[:2] == ("EPI", ratio)]
    return gaps | {"EPI": {seed: [accuracy] for seed, accuracy in of_epi}}


def grid_table(part: Part, points: Points) -> str:
    """Test accuracy (%) by pruning epoch."""
    columns = [("PaT", r) for r in part.ratios] + [("lottery ticket", r) for r in part.tickets]
    heads = [f"{kind}, {ratio:.0%} of channels" for kind, ratio in columns]
    lines = [f"| pruning epoch | {' | '.join(heads)} |", "|--:|" + "--:|" * len(heads)]
    for epoch in part.epochs:
        cells = [shown([test(r) for r in curve(points, *c).get(epoch, [])]) for c in columns]
        lines.append(f"| {epoch} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def policy_table(part: Part, points: Points) -> str:
    """Accuracy of each policy minus the best epoch's, and a verdict on EPI's."""
    heads = [f"{ratio:.0%} of channels" for ratio in part.ratios]
    lines = [f"| policy | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    gaps = {
        ratio: {
            name: against_best(points, ratio, seeds)
            for name, seeds in policies(points, ratio).items()
        }
        for ratio in part.ratios
    }
    for name in next(iter(gaps.values())):
        cells = [shown(gaps[r][name]) if curve(points, "PaT", r) else NO_GRID for r in part.ratios]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    said = [verdict(points, r, gaps[r]["EPI"]) for r in part.ratios if curve(points, "EPI", r)]
    said += [part.caution] if part.caution else []
    return "\n".join(lines) + "\n\n" + "".join(f"* {line}\n" for line in said)


def differences(part: Part, points: Points) -> str:
    """Accuracy by pruning epoch minus the best epoch's and minus the ticket's, over the same seeds.

    Without a table where no epoch has two seeds.
    """
    grid = {r: {e: by_seed(c) for e, c in curve(points, "PaT", r).items()} for r in part.ratios}
    tickets = {
        r: {e: by_seed(c) for e, c in curve(points, "lottery ticket", r).items()}
        for r in part.tickets
    }
    best = {r: of_epochs[best_epoch(points, r)] for r, of_epochs in grid.items() if of_epochs}
    if not any(len(seeds) > 1 for seeds in best.values()):
        return ""
    columns = [(f"minus epoch {best_epoch(points, r)}, {r:.0%} of channels", r) for r in best]
    heads = [name for name, _ in columns]
    heads += [f"minus its lottery ticket, {r:.0%} of channels" for r in tickets]
    lines = [f"| pruning epoch | {' | '.join(heads)} |", "|--:|" + "--:|" * len(heads)]
    for epoch in part.epochs:
        gaps = [paired(grid[r].get(epoch, {}), best[r]) for r in best]
        gaps += [paired(grid[r].get(epoch, {}), of.get(epoch, {})) for r, of in tickets.items()]
        lines.append(f"| {epoch} | {' | '.join(map(shown, gaps))} |")
    return "Differences over the same seeds, points:\n\n" + "\n".join(lines) + "\n"


def by_seed(records: Sequence[Record]) -> dict[int, float]:
    """Seed → test accuracy, in %."""
    return {record.job.seed: test(record) for record in records}


def verdict(points: Points, ratio: float, gap: Sequence[float]) -> str:
    """A sentence comparing EPI's epoch with the best one, by the 95 % interval of paired seeds."""
    of_epi = [(p.epoch, fired(points[p])) for p in sorted(points) if p[:2] == ("EPI", ratio)]
    at = ", ".join(f"{e}" if by_itself else f"{e} (the latest allowed)" for e, by_itself in of_epi)
    began = f"{ratio:.0%} of channels: EPI began at epoch {at}"
    if not gap:
        accuracies = [test(points[p]) for p in sorted(points) if p[:2] == ("EPI", ratio)]
        return f"{began}; its accuracy is {shown(accuracies)} %, with {NO_GRID} to compare it with."
    mean, noise = statistics.fmean(gap), half_width(gap)
    best = f"the best by validation is {best_epoch(points, ratio)}"
    if noise is None:
        said = f"is {mean:+.2f} points from the best epoch's, one seed"
    elif abs(mean) <= noise:
        said = f"cannot be told from the best epoch's ({mean:+.2f} ± {noise:.2f} points)"
    else:
        side = "behind" if mean < 0 else "ahead of"
        said = f"is {abs(mean):.2f} ± {noise:.2f} points {side} the best epoch's"
    return f"{began}; {best}. Its accuracy {said}."


def draw(part: Part, points: Points, path: Path) -> None:
    """Draw accuracy against pruning epoch, one panel for each ratio, a star for each EPI run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ratios = [ratio for ratio in part.ratios if curve(points, "PaT", ratio)]
    count = len(ratios)
    figure, panels = plt.subplots(1, count, figsize=(4.4 * count, 4.4), squeeze=False)
    for panel, ratio in zip(panels[0], ratios, strict=True):
        for kind, marker in (("PaT", "o"), ("lottery ticket", "s")):
            accuracies = {e: [test(r) for r in records]
                          for e, records in curve(points, kind, ratio).items()}  # fmt: skip
            if accuracies:
                means = [statistics.fmean(values) for values in accuracies.values()]
                errors = [half_width(values) or 0.0 for values in accuracies.values()]
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
    named = {}
    for panel in panels[0]:
        named |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named, loc="lower center", ncols=len(named))
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
