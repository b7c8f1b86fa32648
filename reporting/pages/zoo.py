"""The model zoo page, from records: recipe, result, cost, size, weights, commands."""

import shlex
from collections.abc import Sequence
from urllib.parse import quote

from prunezoo.reporting.pages.experiments import Experiment, by_setting
from prunezoo.reporting.records import UNSAID, Record
from prunezoo.reporting.tables.grid import Grid, markdown

HEAD = """# Model zoo

One line an experiment: means over its seeds, ± standard error, from the records that the seeds link
to. Sizes and costs are those of one run. Weights load in one line on any machine, pruned or not,
without pickle:

```python
from prunezoo import models

model = models.load("zoo/digits_pruned")  # or runs/…/model.safetensors
```

Small networks come with this checkout: [zoo/](../zoo/README.md). Where no weights are published,
the command below each table trains them.

"""
COLUMNS = (
    "recipe",
    "with",
    "seeds",
    "",  # the headline
    "parameters",
    "MACs",
    "weights removed [%]",
    "device hours",
    "kg CO2e",
    "weights",
)


def zoo_page(records: Sequence[Record]) -> str:
    """The page as Markdown."""
    settings = by_setting(r for r in records if r.measured)
    if not settings:
        return HEAD + "No run has been recorded yet.\n"
    return HEAD + "\n".join(_section(name, experiments) for name, experiments in settings.items())


def _section(name: str, experiments: Sequence[Experiment]) -> str:
    lines = [_line(experiment) for experiment in experiments]
    # a column that is empty in every line is left out
    full = [i for i, _ in enumerate(COLUMNS) if any(line[i] for line in lines)]
    headings = [name or experiments[0].headline.short for name in COLUMNS]
    table_grid = Grid(
        name, [headings[i] for i in full], [[line[i] for i in full] for line in lines]
    )
    table = markdown(table_grid).replace("###", "##", 1).rstrip()
    commands = "\n".join(_command(experiment.records[0]) for experiment in experiments)
    hidden = f"<details><summary>Commands</summary>\n\n```sh\n{commands}\n```\n\n</details>"
    return f"{table}\n\n{hidden}\n"


def _line(experiment: Experiment) -> list[str]:
    key = experiment.headline.test
    first, error = experiment.records[0], experiment.error(key)
    weights = [(r.job.seed, r.weights or "") for r in experiment.records]
    return [
        _link(first.job.row or experiment.method, first.job.recipe),
        experiment.details,
        " ".join(_link(str(r.job.seed), r.path) for r in experiment.records),
        _shown(experiment.mean(key), ".2f") + (f" ± {error:.2f}" if error else ""),
        _shown(experiment.mean("model/params"), ",.0f"),
        _shown(experiment.mean("model/macs"), ",.0f"),
        _shown(experiment.mean("model/sparsity"), ".2f", 100),
        _shown(experiment.mean("cost/device_hours"), ".3g"),
        _shown(experiment.mean("cost/emissions_kgco2e"), ".2g"),
        " ".join(f"[{seed}]({url})" for seed, url in weights if url.startswith("https://")),
    ]


def _link(text: str, path: str) -> str:
    return f"[{text}](../{quote(path, safe='/+')})"


def _command(record: Record) -> str:
    kept = [s for s in record.job.settings if not s.startswith(UNSAID)]
    # always quoted, so that the commands of a table look alike
    quoted = [shlex.quote(s) if "'" in s else f"'{s}'" for s in kept]
    said = f"python train.py --recipe {shlex.quote(record.job.recipe)} "
    return " ".join((said + " ".join(f"--set {s}" for s in quoted)).splitlines())


def _shown(value: float | None, form: str, times: float = 1) -> str:
    return "–" if value is None else format(value * times, form)
