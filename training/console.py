"""Output for people: a live bar during training, then results, costs and the run folder."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType

from rich.console import Console
from rich.table import Table
from torch import nn

from prunezoo.training.display import Display, clock
from prunezoo.training.folder.environment import write_json
from prunezoo.training.folder.log import Record, finite, read
from prunezoo.training.folder.run_folder import SUMMARY
from prunezoo.training.history import History, Summary, derived, history
from prunezoo.training.ranks.faults import together
from prunezoo.training.run import Run
from prunezoo.training.summary import dense_size, device_name, size, summarize

Conventions = Callable[[Summary, nn.Module, nn.Module], Summary]


class Report(AbstractContextManager["Report"]):
    """Prints on the main process only; log and summary hold everything that it prints."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.console = Console(
            quiet=not run.is_main, file=sys.stderr, highlight=False, markup=False
        )
        self.display = Display(run, self.console)

    def __enter__(self) -> "Report":
        run = self.run
        self.say(f"{run.folder} · {device_name(run.device)} · {_processes(run.processes)}")
        values = run.recipe.model_dump(mode="json")
        run.log.tracker.set_sizes(dense_size(run) | run.pruner.before())
        line = run.log.tracker.start(run.recipe.log, values, partial(read, run.log.path))
        if line:
            self.say(line)
        self.display.start()
        # the loop knows no console: it calls what it is given
        run.show = self.display.show
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.display.stop()
        self.run.cost.stop()
        self.run.log.tracker.close()

    def say(self, text: str) -> None:
        """Print a line on the main process."""
        self.console.print(text, soft_wrap=True)

    def event(self, record: Record) -> None:
        """Log the result of a pruning, and print it in a line."""
        run = self.run
        sizes = size(run)
        run.write({**record, **sizes})
        if self.display.live or not record.get("prune/quiet"):
            self.say(
                f"pruned at epoch {run.work / run.steps_per_epoch:.1f}:"
                f" {sizes['model/params']:,} parameters, {sizes['model/macs']:,} MACs,"
                f" weight sparsity {100 * sizes['model/sparsity']:.1f} %"
            )

    def finish(self, result: dict[str, float], conventions: Conventions) -> None:
        """Write the summary, last of all files, and print both results and costs.

        `conventions`: figures that follow from the summary, the final and the dense network.
        """
        run = self.run
        # outside together(): it is a collective call
        run.cost.refresh_energy()
        summary = summarize(run, result)
        summary |= conventions(summary, run.model, run.dense_network)
        with together():
            if run.is_main:
                # with the summary, which alone names the task's metric
                past = history([*read(run.log.path), summary])
                summary = derived(summary, past) | summary
                for record in (*run.pruner.records(), summary):
                    run.log.append({**run.progress.stamp(), **record})
                # last: the folder counts as finished once this file is there
                write_json(run.folder / SUMMARY, {k: finite(v) for k, v in summary.items()})
                self.display.stop()
                overflown = [k for k, v in summary.items() if v is not None and finite(v) is None]
                if overflown:
                    self.say(
                        f"NaN or infinite, and null in the summary: {', '.join(overflown)}; the"
                        " network's outputs are too large, lower training.optimizer.lr"
                    )
                if run.recipe.log.model:
                    self.say(run.log.tracker.keep_model())
                Console(highlight=False, markup=False).print(self.table(summary, past))

    def table(self, s: Summary, past: History) -> Table:
        """Result and cost of the run, the dense network next to the final one."""
        table = Table(title=f"{s['model/name']} on {s['data/name']}", caption=str(self.run.folder))
        table.add_column("")
        table.add_column("dense", justify="right")
        table.add_column("final", justify="right")
        example = s["data/example"]
        for name, key in (("parameters", "params"), (f"MACs per {example}", "macs")):
            table.add_row(name, f"{s['dense/' + key]:,}", f"{s['model/' + key]:,}")
        first, last = (rate(s["cost/segments"][end]) for end in (0, -1))
        table.add_row(f"training {example}s/s", first, last)
        unknown = "not measured" if self.run.recipe.pruning else ""
        for name, text in self.results(s, past):
            table.add_row(name, unknown, text)
            unknown = ""
        table.add_row("wall clock", "", clock(s["cost/wall_hours"] * 3600))
        kind = "GPU" if s["cost/gpu_hours"] else "device"
        table.add_row(f"{kind} hours", "", f"{s[f'cost/{kind.lower()}_hours']:.4f}")
        if s["cost/energy_kwh"] is not None:
            table.add_row("energy", "", f"{1e3 * s['cost/energy_kwh']:.2f} Wh")
            table.add_row("emissions", "", f"{1e3 * s['cost/emissions_kgco2e']:.2f} g CO2e")
        if s["cost/cpu_energy_kwh"] is not None:  # also where there is no total
            table.add_row("", "", s["cost/energy_source"])
        return table

    def results(self, s: Summary, past: History) -> Iterator[tuple[str, str]]:
        """The headline of the final weights, and of those that were best on validation."""
        headline = self.run.task.headline
        name, key = headline.name, headline.key
        yield f"test {name}", headline.shown(s[headline.test])
        if past["accuracy"]:
            yield f"validation {name}", headline.shown(past["accuracy"][-1][1])
        if f"best/{key}" in s:
            epoch = s["best/step"] / self.run.steps_per_epoch
            best = headline.shown(s[f"best/validation_{key}"])
            yield f"best validation {name}", f"{best} at epoch {epoch:.1f}"
            yield f"test {name} of the best", headline.shown(s[f"best/{key}"])


def rate(segment: dict[str, float]) -> str:
    """Examples a second of a segment, or a dash where nothing was timed."""
    seconds = segment["timed_seconds"]
    return f"{segment['timed_images'] / seconds:,.0f}" if seconds > 0 else "–"


def _processes(number: int) -> str:
    return f"{number} process{'' if number == 1 else 'es'}"
