"""Two processes that run recipes for all tests of a session: a start takes longer than a run."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


class Ranks:
    """Two ranks of one launch, started at the first request, and again after one that failed."""

    def __init__(self) -> None:
        self.launched: subprocess.Popen | None = None
        self.place, self.number = Path(), 0

    def run(self, folder: Path, runs: dict[str, list[str]]) -> None:
        """Runs in folders of these names: [recipe, *settings]."""
        self.ask({"folder": str(folder), "runs": runs})

    def ask(self, what: dict[str, Any]) -> None:
        """Carry out a request of several_runs.py.

        Raises:
            AssertionError: an exit status is not 0; holds the end of what the ranks wrote.
        """
        if self.launched is None or self.launched.poll() is not None:
            self._start()
        assert self.launched is not None
        request = self.place / f"{self.number}.json"
        answers = [request.with_suffix(f".{rank}.done") for rank in range(2)]
        written = request.with_suffix(".part")
        written.write_text(json.dumps(what))
        written.rename(request)
        self.number += 1
        while self.launched.poll() is None and not all(map(Path.exists, answers)):
            time.sleep(0.02)
        done = [a.read_text() if a.exists() else "none" for a in answers]
        assert done == ["0", "0"], (done, (self.place / "written").read_text()[-3000:])

    def _start(self) -> None:
        self.place, self.number = Path(tempfile.mkdtemp(prefix="ranks-")), 0
        with (self.place / "written").open("w") as output:
            self.launched = subprocess.Popen(
                [sys.executable, *TWO, "tests/support/several_runs.py", str(self.place)],
                cwd=ROOT,
                env=os.environ | ON_CPU,
                stdout=output,
                stderr=output,
            )

    def end(self) -> None:
        """Let them leave; what they wrote goes with them."""
        if self.launched is not None:
            (self.place / "end").touch()
            self.launched.wait(60)
            shutil.rmtree(self.place)
            self.launched = None


PAIR = Ranks()
