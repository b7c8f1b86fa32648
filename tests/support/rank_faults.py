"""Faults of one rank, met in a launch of several; each rank writes what it raised.

python -m torch.distributed.run … tests/support/rank_faults.py FOLDER
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from accelerate import PartialState  # noqa: E402

from prunezoo.schema.recipe import RecipeError  # noqa: E402
from prunezoo.training.ending import leave  # noqa: E402
from prunezoo.training.ranks.faults import FAULTS, from_main, together  # noqa: E402


def refuse() -> None:
    raise RecipeError("not this folder")


def main(folder: str) -> int:
    ranks = PartialState(cpu=True)
    lines = [
        f"processes {ranks.num_processes}",
        from_main(lambda: f"made by {ranks.process_index}"),
    ]
    with together():
        lines.append("no fault")
    try:
        with together():
            if ranks.process_index == 1:
                raise OSError(28, "No space left on device", "a/file")
    except FAULTS as error:
        lines.append(f"{type(error).__name__} {error}")
    try:
        from_main(refuse)
    except FAULTS as error:
        lines.append(f"{type(error).__name__} {error}")
    (Path(folder) / f"{ranks.process_index}.txt").write_text("\n".join(lines))
    return 0


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
