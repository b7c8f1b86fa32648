"""Several recipes one after another in one launch of ranks, which start but once.

python -m torch.distributed.run … several_runs.py FOLDER '{"name": ["r.yaml", "key=value"]}'
"""

import gc
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from accelerate.state import AcceleratorState, GradientState  # noqa: E402

import train  # noqa: E402
from prunezoo.training.ending import leave  # noqa: E402

QUIET = ["log.tracker=none", "cost.tracker=none", "log.every=5it"]


def main(folder: str, runs: str) -> int:
    gc.freeze()  # as in conftest.py
    for name, (recipe, *settings) in json.loads(runs).items():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        words = ["--recipe", recipe, "--output", str(Path(folder) / name)]
        status = train.main(words + [f"--set={s}" for s in (*QUIET, *settings)])
        if status:
            return status
    return 0


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
