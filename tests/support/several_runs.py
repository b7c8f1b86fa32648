"""Recipes one after another on ranks that start but once: requests are files in a folder.

python -m torch.distributed.run … several_runs.py FOLDER

`N.json`, the arguments of `carry_out`, is answered by `N.R.done` of each rank R, which holds the
exit status. `end` ends the ranks; so does an hour without a request.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from accelerate.state import AcceleratorState, GradientState  # noqa: E402

import train  # noqa: E402
from benchmarks import sessions as sessions_of  # noqa: E402
from benchmarks.sessions import Session  # noqa: E402
from prunezoo.training.ending import leave  # noqa: E402

QUIET = ["log.tracker=none", "cost.tracker=none", "log.every=5it"]
PATIENCE_SECONDS = 3600


def main(place: Path) -> int:
    gc.freeze()  # as in conftest.py
    rank = os.environ["RANK"]
    for number in count():
        request = place / f"{number}.json"
        until = time.monotonic() + PATIENCE_SECONDS
        while not request.exists():
            if (place / "end").exists() or time.monotonic() > until:
                return 0
            time.sleep(0.02)
        status = carry_out(**json.loads(request.read_text()))
        answer = place / f"{number}.{rank}.done"
        answer.with_suffix(".part").write_text(str(status))
        answer.with_suffix(".part").rename(answer)
        if status:
            return status
    return 0


def carry_out(
    folder: str = "", runs: dict[str, list[str]] | None = None, sessions: Sequence[Session] = ()
) -> int:
    """Runs in folders of these names: [recipe, *settings]; or sessions of runs, cut where asked.

    The first exit status that is not 0; a session that ends badly raises.
    """
    for session in sessions:
        sessions_of.run(session)
    for name, (recipe, *settings) in (runs or {}).items():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        words = ["--recipe", recipe, "--output", str(Path(folder) / name)]
        status = train.main(words + [f"--set={s}" for s in (*QUIET, *settings)])
        if status:
            return status
    return 0


if __name__ == "__main__":
    leave(main(Path(sys.argv[1])))
