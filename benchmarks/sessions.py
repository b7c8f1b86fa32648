"""Sessions of runs, one after another in one launch of ranks, each cut short where asked.

python -m torch.distributed.run --standalone --nproc_per_node=2 benchmarks/sessions.py FILE.json

The file lists sessions: recipe, settings, folder, resume, and the step after which it loses power,
or none. Starting ranks takes longer than such a run; so one launch serves many.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from accelerate.state import AcceleratorState, GradientState

import train
from prunezoo.training import loop
from prunezoo.training.ending import leave

QUIET = ("log.tracker=none", "cost.tracker=none")
Session = dict[str, Any]


class PowerCut(BaseException):
    """Nothing may catch it, as nothing notices a power cut."""


def session(
    recipe: str, settings: list[str], folder: Path, *, resume: bool = False, until: int = 0
) -> Session:
    """A session to come: it starts or resumes a run and ends it, or stops at a step."""
    return {
        "recipe": recipe,
        "settings": settings,
        "folder": str(folder),
        "resume": resume,
        "until": until,
    }


def launch(processes: int, sessions: list[Session], note: Path) -> None:
    """Run sessions on `processes` ranks of the CPU; `note` is where their list is written.

    Raises:
        RuntimeError: a session ended badly, or went on past its step.
    """
    note.write_text(json.dumps(sessions))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    output = note.with_suffix(".out")
    with output.open("wb") as out:
        status = subprocess.run(
            [sys.executable, *launcher, "benchmarks/sessions.py", str(note)],
            cwd=ROOT,
            env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=out,
        ).returncode
    if status:
        lines = output.read_text(errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line and "Child" not in line]
        raise RuntimeError(f"{processes} ranks, {output}: " + "\n".join(errors[-6:]))


def run(session: Session) -> None:
    """One session in this process, which is one of the ranks.

    Raises:
        RuntimeError: it ended badly, or went on past its step.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    words = ["--recipe", session["recipe"], "--output", session["folder"]]
    words += [f"--set={setting}" for setting in (*QUIET, *session["settings"])]
    words += ["--resume"] if session["resume"] else []
    after = loop.after_step

    def cut(state: Any) -> None:
        after(state)
        if state.work == session["until"]:
            raise PowerCut

    with patch.object(loop, "after_step", cut):
        try:
            status = train.main(words)
        except PowerCut:
            return
    if status or session["until"]:
        raise RuntimeError(
            f"{session['folder']}: status {status} where {session['until']} was asked"
        )


def main(note: str) -> int:
    gc.freeze()  # each segment ends with a collection of garbage, slow over all that was imported
    for session in json.loads(Path(note).read_text()):
        run(session)
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1]))
