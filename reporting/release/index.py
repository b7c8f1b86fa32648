"""Write zoo/README.md, a line for each release: `python -m prunezoo.reporting.release.index`."""

from pathlib import Path

from prunezoo.models.files.places import MODEL
from prunezoo.reporting.release.folder import RECORD, released_record

ZOO = Path(__file__).resolve().parents[2] / "zoo"
HEAD = """# Weights

Small networks, dense and pruned while they trained, to be tried from a fresh clone:
`models.load("zoo/NAME")`, or `python evaluate.py zoo/NAME`. `python export.py RUN --hub FOLDER
--license NAME` writes such a folder; its card has the result, the cost, the channels that are left
and the recipe.

"""
COLUMNS = ("name", "recipe", "seed", "test top-1, %", "parameters", "of dense", "MACs", "of dense")
COLUMNS += ("file, kB", "g CO2e")


def index_page(folder: Path) -> str:
    """The page as Markdown."""
    rows = [_row(path.parent) for path in sorted(folder.glob(f"*/{RECORD}"))]
    lines = [COLUMNS, ("---", "---", *["--:"] * 8), *rows]
    return HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(release: Path) -> list[str]:
    record = released_record(release)
    parts = [f"[{release.name}]({release.name}/README.md)"]
    parts += [f"[{record.job.recipe}](../{record.job.recipe})", str(record.job.seed)]
    parts.append(_shown(record.number("eval/top1_percent"), ".2f"))
    for key in ("params", "macs"):
        now, dense = record.number(f"model/{key}"), record.number(f"dense/{key}")
        parts.append(_shown(now, ",.0f"))
        parts.append(_shown(now / dense if now and dense else None, ".0%"))
    kilograms = record.number("cost/emissions_kgco2e")
    parts.append(_shown((release / MODEL).stat().st_size / 1e3, ",.1f"))
    parts.append(_shown(None if kilograms is None else 1e3 * kilograms, ".2g"))
    return parts


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


if __name__ == "__main__":
    (ZOO / "README.md").write_text(index_page(ZOO), encoding="utf-8")
