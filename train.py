"""Train a recipe: until the pruner is due, prune, repeat; then test once and say what it cost.

accelerate launch train.py --recipe R.yaml [key=value …] [--resume] [--dry-run [--defaults]]
accelerate launch train.py --resume --output runs/NAME
"""

import argparse
import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from prunezoo.schema.command_line import Arguments

INTERRUPTS: list[int] = []  # signals that came before or after training


def main(arguments: list[str] | None = None) -> int:
    """Run a recipe: the whole story. The exit status is 0, or 1 for an unforeseen fault, 2 for a
    recipe or command that cannot be run, 3 for a loss or weights that became NaN or infinite, 4
    for a disk that fails, 75 after a signal (run again with --resume), 130 for Ctrl-C before
    training.
    """
    run = None
    try:
        command = parse(arguments)
        os.environ.setdefault("HF_HUB_OFFLINE", "0" if command.online else "1")
        from prunezoo.schema.recipe import load
        from prunezoo.schema.source import naming_settings

        recipe, source = load(command.recipe, command.set)
        if command.dry_run:
            from prunezoo.training.dry_run import plan

            whole = {"processes": command.processes or 1, "defaults": command.defaults}
            with naming_settings(source):
                print(plan(recipe, source, **whole), flush=True)
            return 0
        from prunezoo.reporting.conventions import conventions
        from prunezoo.training.best import evaluate_best
        from prunezoo.training.console import Report
        from prunezoo.training.evaluation import evaluate
        from prunezoo.training.loop import train_until_due, validate_last
        from prunezoo.training.pruning_event import prune
        from prunezoo.training.segment import measure_owed
        from prunezoo.training.start import start

        gc.enable()
        options = {"output": command.output, "resume": command.resume, "stem": command.recipe.stem}
        begun = start(recipe, source, **options)
        with naming_settings(source), begun as run, Report(run) as report, run.signals():
            measure_owed(run)
            while not run.done or run.pruning_due():
                train_until_due(run)
                if run.pruning_due():
                    with run.cost.phase("prune"):
                        report.event(prune(run))
                    validate_last(run)
                    run.save()
            run.finish()
            report.finish(evaluate(run, "test") | evaluate_best(run), conventions)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        from prunezoo.training.ending import end

        whole = "--traceback" in (sys.argv if arguments is None else arguments)
        return end(error, run, signals=INTERRUPTS, show_traceback=whole)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; everything that changes a result is in the recipe or in --set."""
    parser = Arguments(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--recipe", type=Path, help="a YAML file, as in recipes/; not needed to resume an --output"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a recipe value; may be repeated",
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as --set, and after it")
    parser.add_argument("--output", type=Path, help="run folder (default: a new one in runs/)")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last good checkpoint"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done; needs no data"
    )
    parser.add_argument(
        "--defaults",
        action="store_true",
        help="with --dry-run: also print the values that the recipe leaves at their defaults",
    )
    parser.add_argument(
        "--processes",
        type=count,
        help="with --dry-run: the number of processes that will run",
    )
    parser.add_argument(
        "--online", action="store_true", help="let data sets and weights be fetched"
    )
    parser.add_argument(
        "--traceback", action="store_true", help="if it fails, also print where in the code"
    )
    # intermixed, so that settings may stand between options
    command = parser.parse_intermixed_args(arguments)
    command.set += command.settings
    if command.processes and not command.dry_run:
        parser.error("--processes is for --dry-run; use accelerate launch --num_processes N")
    if command.defaults and not command.dry_run:
        parser.error("--defaults is for --dry-run; a run writes all values to recipe.resolved.yaml")
    if command.recipe is None:
        if not (command.resume and command.output):
            parser.error("--recipe is missing: a YAML file, or --resume --output of a run folder")
        command.recipe = command.output / "recipe.resolved.yaml"  # of the run that goes on
    return command


def count(text: str) -> int:
    """A number of processes."""
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text)):
        raise argparse.ArgumentTypeError(
            f"{text!r:.60} is not a number of processes; write 1 or more"
        )
    return int(text)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Note a signal before or after training: it ends the program, and no other disturbs that."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    INTERRUPTS.append(number)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    if "RANK" not in os.environ:  # a launcher ends its other ranks by SIGTERM, which is no news
        signal.signal(signal.SIGTERM, interrupt)
    gc.disable()  # until all is imported: what imports make stays, and going through it takes time
    status = main()
    from prunezoo.training.ending import leave

    leave(status)
