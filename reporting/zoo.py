"""The model zoo page, from run records: recipe, result, cost, size, weights, how to load."""

from collections.abc import Sequence

from reporting.records import Record
from reporting.show import Grid, markdown

HEAD = """# Model zoo

Every line is one run; its numbers are those of the record it links to. Weights load anywhere in
one line, pruned or not, without pickle; a run that publishes none is trained by its recipe.

"""


def zoo_page(records: Sequence[Record]) -> str:
    """The page as Markdown; says so where nothing has been run yet."""
    trained = [record for record in records if "eval/top1_percent" in record.summary]
    if not trained:
        return HEAD + "No run has been recorded yet.\n"
    made = Grid("Runs", list(COLUMNS), [_line(record) for record in trained])
    commands = "\n".join(_command(record) for record in trained)
    table = markdown(made).partition("\n\n")[2].rstrip()
    return f"{HEAD}{table}\n\n## How to get each\n\n{commands}\n"


COLUMNS = (
    "model",
    "row or recipe",
    "seed",
    "top-1 [%]",
    "parameters",
    "MACs",
    "weights removed [%]",
    "device hours",
    "kg CO2e",
    "record",
)


def _line(record: Record) -> list[str]:
    s = record.summary
    return [
        f"{s.get('model/name')} on {s.get('data/name')}",
        record.job.row or f"[{record.job.recipe}](../{record.job.recipe})",
        str(record.job.seed),
        f"{s['eval/top1_percent']:.2f}",
        _shown(s.get("model/params"), ","),
        _shown(s.get("model/macs"), ","),
        _shown(s.get("model/sparsity"), ".2f", 100),
        _shown(s.get("cost/device_hours"), ".3g"),
        _shown(s.get("cost/emissions_kgco2e"), ".2g"),
        f"[JSON](../{record.path})",
    ]


def _command(record: Record) -> str:
    """One line of code where there are weights, else the command that makes them."""
    name = f"- {record.job.row or record.job.recipe}, seed {record.job.seed}: "
    if record.weights:
        return name + f'`models.load("model.safetensors")` of [these weights]({record.weights})'
    settings = " ".join(f"--set '{setting}'" for setting in record.job.settings)
    return name + f"`python train.py --recipe {record.job.recipe} {settings}`, then " + LOAD


LOAD = '`models.load("runs/…/model.safetensors")`'


def _shown(value: float | None, form: str, times: float = 1) -> str:
    return "–" if value is None else format(value * times, form)
