"""Loss and accuracy of a model that was trained before, on any data set.

python evaluate.py runs/NAME                                    as at the end of its training
python evaluate.py zoo/NAME                                     a small network of this checkout
python evaluate.py model.safetensors --data FOLDER [--json]     or hf://owner/name, or timm/NAME
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from prunezoo.schema.command_line import Arguments


def main(arguments: list[str] | None = None) -> int:
    """Evaluate a model. The exit statuses are those of train.py."""
    try:
        command = parse(arguments)
        os.environ.setdefault("HF_HUB_OFFLINE", "0" if command.online else "1")
        from prunezoo.training.evaluation import measure
        from prunezoo.training.trained import Trained, find, held_out_otherwise, recipe_of

        found = find(command.model)
        recipe = recipe_of(command.model, found, command.recipe, command.data, command.set)
        trained = Trained(found.model, recipe)
        trained.check_split(command.split)
        figures, _ = measure(trained, command.split)
        if trained.accelerator.is_main_process:
            if command.split == "validation" and held_out_otherwise(command.model, found, recipe):
                print("warning: the model was trained on some of these images", file=sys.stderr)
            about = trained.about() | {"data/split": command.split}
            show(command.model, about | figures, as_json=command.json)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        from prunezoo.training.ending import end

        whole = "--traceback" in (sys.argv if arguments is None else arguments)
        return end(error, None, show_traceback=whole)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Arguments(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "model",
        help="a run's folder, zoo/NAME, a model.safetensors, hf://owner/name, or the name of a"
        " network with pretrained weights",
    )
    parser.add_argument(
        "--data", metavar="NAME", help="another data set: a name, a folder, or an id on the hub"
    )
    parser.add_argument(
        "--recipe", type=Path, help="whose data and precision count (default: the model's own)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a recipe value; may be repeated",
    )
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--json", action="store_true", help="print one JSON table")
    parser.add_argument(
        "--online", action="store_true", help="let data sets and weights be fetched"
    )
    parser.add_argument(
        "--traceback", action="store_true", help="if it fails, also print where in the code"
    )
    return parser.parse_args(arguments)


def show(model: str, figures: dict[str, Any], *, as_json: bool) -> None:
    """Print the figures, one a line or as JSON."""
    if as_json:
        print(json.dumps({"model": model} | figures, indent=1), flush=True)
        return
    print(model)
    for key, value in figures.items():
        shown = f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
        print(f"  {key:<22} {shown}", flush=True)


if __name__ == "__main__":
    status = main()
    from prunezoo.training.ending import leave

    leave(status)
