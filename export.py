"""A trained model for use elsewhere: as an ONNX or torch.export file, or published with a card.

python export.py runs/NAME --onnx --dynamic-batch --output model.onnx
python export.py runs/NAME --hub FOLDER --license apache-2.0       or --hub hf://owner/name
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from prunezoo.reporting.answer import answer
from prunezoo.schema.command_line import Arguments
from prunezoo.schema.recipe import RecipeError

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
RUNTIMES = {"onnx": "ONNX Runtime", "torch": "torch.export"}


def main(arguments: list[str] | None = None) -> int:
    """Export or publish a model. The exit status is 0, or that of `answer`."""
    parsed = parse(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if parsed.online else "1")
    do = publish if parsed.hub else export
    return answer(partial(do, parsed), rest=parsed.traceback)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Arguments(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", help="as for evaluate.py; with --hub: a finished run's folder")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--onnx", dest="kind", action="store_const", const="onnx")
    kinds.add_argument("--torch-export", dest="kind", action="store_const", const="torch")
    kinds.add_argument(
        "--hub",
        metavar="FOLDER|hf://OWNER/NAME",
        help="write weights, recipe, record and a model card there",
    )
    parser.add_argument("--license", help="of the published weights, as the hub names it")
    parser.add_argument("--output", type=Path, help="the file (default: next to the model's)")
    parser.add_argument("--dynamic-batch", action="store_true", help="for batches of any size")
    parser.add_argument(
        "--image-size", type=pixels, help="pixels a side (default: of its training)"
    )
    parser.add_argument("--online", action="store_true", help="let weights be fetched and sent")
    parser.add_argument(
        "--traceback", action="store_true", help="if it fails, also print where in the code"
    )
    parsed = parser.parse_args(arguments)
    if parsed.hub and not parsed.license:
        parser.error("--license is missing: under which one the weights go out, as apache-2.0")
    return parsed


def pixels(text: str) -> int:
    """A side of images."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not a number of pixels; write 1 or more")
    return int(text)


def export(arguments: argparse.Namespace) -> int:
    """Write the file, and print its size and speed next to the dense network's."""
    from prunezoo.models.count import count as sizes_of
    from prunezoo.models.export import export_onnx, export_program
    from prunezoo.reporting.release.speed import BATCH, speed_grid
    from prunezoo.reporting.tables.printing import print_grid
    from prunezoo.training.trained import find

    found = find(arguments.model)
    found.model.float()  # as runtimes elsewhere expect
    image, dense = found.image(arguments.image_size), found.dense()
    make = export_onnx if arguments.kind == "onnx" else export_program
    notes = {"model": found.structure["name"], "images": found.images}
    write = partial(make, image=image, dynamic_batch=arguments.dynamic_batch, notes=notes)
    exported = write(found.model, path=output_of(arguments))
    print(f"{exported.path}: as PyTorch to {exported.difference:.1e} of the largest output")
    pruned = sizes_of(dense, image) != sizes_of(found.model, image)
    networks = {"dense": dense, "pruned": found.model} if pruned else {"model": found.model}
    batch = BATCH if arguments.dynamic_batch else 1
    print_grid(speed_grid(networks, write, RUNTIMES[arguments.kind], image, batch))
    return 0


def output_of(arguments: argparse.Namespace) -> Path:
    """The file to write: --output, else next to a model that is a file here.

    Raises:
        RecipeError: the model is elsewhere.
    """
    from prunezoo.models.files.places import is_hub, located

    if arguments.output:
        return arguments.output
    if is_hub(arguments.model) or not located(arguments.model).exists():
        raise RecipeError(f"{arguments.model} is in no folder here; give --output FILE")
    return located(arguments.model).with_suffix(ENDINGS[arguments.kind])


def publish(arguments: argparse.Namespace) -> int:
    """Write a release's folder, or send it to the hub."""
    from prunezoo.reporting.release.folder import release
    from prunezoo.reporting.release.hub import send

    folder, license = Path(arguments.model), arguments.license
    if arguments.hub.startswith("hf:"):
        print(send(folder, arguments.hub, license))
    else:
        print(release(folder, Path(arguments.hub), license))
    return 0


if __name__ == "__main__":
    sys.exit(main())
