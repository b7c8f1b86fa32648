"""Train a recipe: until the pruner is due, prune, repeat; then test once and say what it cost.

accelerate launch train.py --recipe R.yaml [--set key=value …] [--resume] [--dry-run]
"""

import argparse
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run a recipe; the exit status is 0, or 2 for a fault in what was asked, 3 for a loss that is
    no number, 4 for a disk that fails, 75 after a signal (saved; run again with --resume).
    """
    asked = parse(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if asked.online else "1")
    from training.recipe import RecipeError, load

    try:
        recipe, source = load(asked.recipe, asked.set)
        if asked.dry_run:
            from training.plan import plan

            print(plan(recipe, source, processes=asked.processes))
            return 0
        return train(asked, recipe, source)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2


def train(asked: argparse.Namespace, recipe, source) -> int:
    """The whole story of a run."""
    from models.errors import ModelError
    from pruning.errors import PruningError
    from training.checkpoint import CheckpointError
    from training.data import DataError
    from training.loop import evaluate, evaluate_best, train_until_due
    from training.report import Report
    from training.run import STOPPED, NotFinite, Stopped
    from training.start import start

    try:
        run = start(
            recipe, source, output=asked.output, resume=asked.resume, stem=asked.recipe.stem
        )
        with Report(run) as report, run.signals():
            while not run.done:
                train_until_due(run)
                if run.pruner.due(run):
                    with run.cost.phase("prune"):
                        report.event(run.pruner.prune(run))
                    run.save()
            report.finish(evaluate(run, "test") | evaluate_best(run))
    except (DataError, ModelError, PruningError, CheckpointError, NotFinite, Stopped) as error:
        print(error, file=sys.stderr)
        return {CheckpointError: 4, NotFinite: 3, Stopped: STOPPED}.get(type(error), 2)
    except OSError as error:
        where = error.filename or "a file"
        print(f"{where}: {error.strerror}; free space or choose another --output", file=sys.stderr)
        return 4
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; everything that changes a result stands in the recipe or in --set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True, help="a YAML file, as in recipes/")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="lay over it"
    )
    parser.add_argument("--output", type=Path, help="run folder (default: a new one in runs/)")
    parser.add_argument("--resume", action="store_true", help="go on from the last good checkpoint")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done; needs no data"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="for --dry-run: how many are planned"
    )
    parser.add_argument(
        "--online", action="store_true", help="let data sets and weights be fetched"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
