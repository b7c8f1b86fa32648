"""The command line of tables.py."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prunezoo.schema.command_line import Arguments
from prunezoo.schema.duration import Duration

ROOT = Path(__file__).resolve().parents[2]
RATES = {
    "images-per-second": "of one run's training, instead of what records say",
    "watts": "that one run draws, instead of what records say",
    "kg-per-kwh": "CO2e of the grid, instead of what records say",
    "price": "of a device hour, in any currency",
}
MOST = 1000  # seeds, jobs at a time, devices: more is a typing error
Commands = Mapping[str, Callable[[argparse.Namespace], int]]


def parse(arguments: Sequence[str] | None, commands: Commands) -> argparse.Namespace:
    """The parsed arguments; `do` is the function of the command."""
    parser = Arguments(description="The papers' tables: theirs, ours, and what is missing.")
    _everywhere(parser)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    parsers = {
        name: subparsers.add_parser(name, help=(do.__doc__ or "").splitlines()[0])
        for name, do in commands.items()
    }
    for name, do in commands.items():
        parsers[name].set_defaults(do=do)
        _everywhere(parsers[name], again=True)
    for name in ("show", "run", "plan"):
        parsers[name].add_argument(
            "tables", nargs="*", metavar="TABLE", help="e.g. bep/3, or a recipe's file; none: all"
        )
        parsers[name].add_argument("--all", action="store_true", help="every table")
    _show(parsers["show"])
    for name in ("run", "plan"):
        _choice(parsers[name])
    parsers["run"].add_argument("--jobs", type=count, default=1, help="how many at a time")
    parsers["run"].add_argument("--submit", choices=("here", "slurm"), default="here")
    parsers["run"].add_argument(
        "--slurm",
        type=_pair,
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="of sbatch, e.g. gres=gpu:1; time is in minutes",
    )
    _plan(parsers["plan"])
    parsers["beside"].add_argument("folders", type=Path, nargs="+", metavar="RUN")
    parsers["collect"].add_argument("folders", type=Path, nargs="+", metavar="RUN")
    parsers["collect"].add_argument("--weights", help="download URL of its model.safetensors")
    _report(parsers["report"])
    parsers["zoo"].add_argument("--output", type=Path, default=ROOT / "docs" / "zoo.md")
    records = ROOT / "results" / "records.csv"
    parsers["records"].add_argument("--output", type=Path, default=records)
    return parser.parse_args(arguments)


def seeds(text: str) -> list[int]:
    """Seeds 0, 1, 2 of `3`; 0 and 4 of `0,4`; 3 of `3,`.

    Raises:
        argparse.ArgumentTypeError: no seed, more than MOST, or not a seed.
    """
    listed = [seed(one) for one in text.split(",") if one]
    if not listed or text.strip() == "0":
        raise argparse.ArgumentTypeError(
            f"{text}: no seeds; for seed 0 write 1 (the number of seeds) or `0,`"
        )
    if (len(listed) if "," in text else listed[0]) > MOST:
        raise argparse.ArgumentTypeError(f"{text:.20}: more than {MOST} seeds; write fewer")
    return list(dict.fromkeys(listed)) if "," in text else list(range(*listed))


def seed(text: str) -> int:
    """One seed.

    Raises:
        argparse.ArgumentTypeError: a negative number, or not a number.
    """
    if not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text:.20} is not a seed, such as 3")
    return int(text)


def count(text: str) -> int:
    """A number of jobs or devices, from 1 to MOST.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text:.20} is not a number from 1 to {MOST}")
    return int(text)


def rate(text: str) -> float:
    """A factor of a forecast, 0 or more.

    Raises:
        argparse.ArgumentTypeError: a negative or infinite number, or not a number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text:.20} is not a number of 0 or more")
    return value


def listed(text: str) -> list[str]:
    """The parts of a list such as `10%,50%`.

    Raises:
        argparse.ArgumentTypeError: an empty part.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text:.40}: an empty part; write a list such as 10%,50%")
    return list(dict.fromkeys(parts))


def duration(text: str) -> list[str]:
    """Pruning epochs such as `0ep,10ep`.

    Raises:
        argparse.ArgumentTypeError: a part that is not a duration.
    """
    try:
        return [str(Duration.parse(part)) for part in listed(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    value = rate(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text:.20} is not above 0")
    return value


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: write OPTION=VALUE, such as partition=gpu")
    if key.lstrip("-") == "time" and not (value.isdecimal() and 0 < int(value[:9]) < 10**7):
        raise argparse.ArgumentTypeError(f"{text:.40}: write the time in minutes, such as time=600")
    return key.lstrip("-"), value


def _everywhere(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Options that may stand before the command and, `again`, after it."""
    kept = argparse.SUPPRESS  # else a default below would replace what was written above
    results = kept if again else ROOT / "results"
    claims = kept if again else ROOT / "papers/claims"
    parser.add_argument("--results", type=Path, default=results, help="records of runs")
    parser.add_argument("--claims", type=Path, default=claims, help="rows' recipes")
    shown = kept if again else False
    parser.add_argument("--traceback", action="store_true", default=shown, help="of an error")


def _show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, help="folder for one file a table")
    for name in ("json", "csv", "markdown"):
        parser.add_argument(
            f"--{name}",
            dest="format",
            action="store_const",
            const=name,
            default="text",
            help=f"as {name}, not as text",
        )


def _choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="*", help="pattern of rows, e.g. 'CIFAR-10,95K,*'")
    parser.add_argument("--seeds", type=seeds, default=[0], help="a number of seeds, or a list 0,2")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the recipe; makes an experiment of its own",
    )
    parser.add_argument(
        "--local",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of this machine, e.g. data.path=/data/cifar10; no part of a run's name or record",
    )
    parser.add_argument(
        "--starts",
        type=duration,
        default=[],
        metavar="START,…",
        help="also the grid of these pruning epochs, e.g. 0ep,10ep, to find the best one",
    )
    parser.add_argument(
        "--amounts",
        type=listed,
        default=[],
        metavar="AMOUNT,…",
        help="each of these in place of the recipe's own, e.g. 10%%,50%%",
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders are")
    parser.add_argument("--launcher", help="instead of python, e.g. 'accelerate launch …'")


def _plan(parser: argparse.ArgumentParser) -> None:
    for name, unit in RATES.items():
        kind = _positive if name in ("images-per-second", "watts") else rate
        parser.add_argument(f"--{name}", type=kind, metavar="NUMBER", help=unit)
    parser.add_argument("--processes", type=count, default=1, help="devices of one run")
    parser.add_argument("--device", help="name of the device in records (default: this one)")
    parser.add_argument(
        "--benchmark", action="store_true", help="measure this device's throughput now"
    )


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "report", help="folder")
    parser.add_argument("--wandb", action="store_true", help="also the W&B report and workspace")
    parser.add_argument("--entity", default="", help="save them there; without it only wandb.json")
    parser.add_argument("--project", default="prunezoo")
