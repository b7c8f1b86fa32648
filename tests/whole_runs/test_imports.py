"""Packages that a command must not wait for; each process tries several commands in turn."""

import subprocess
import sys

import pytest

from prunezoo.reporting import papers
from tests.conftest import ROOT

LIBRARIES = {"codecarbon", "datasets", "gpytorch", "matplotlib", "pandas", "scipy", "sklearn"}
LIBRARIES |= {"timm", "torchvision", "wandb", "torch._dynamo", "torch._inductor"}
LIBRARIES |= {"torch.distributed.tensor", "triton.runtime"}
QUICKSTART = ["--recipe", "recipes/quickstart.yaml"]
QUIET = [
    "--set",
    "log.tracker=none",
    "--set",
    "cost.tracker=none",
    "--set",
    "training.duration=4it",
]


def imported(code: str, heavy: set[str]) -> set[str]:
    """The heavy packages that are there after the code has run in a new process."""
    code = f"import sys, {code}\nprint(*{heavy} & set(sys.modules))"
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert end.returncode == 0, end.stderr
    return set(end.stdout.splitlines()[-1].split())


@pytest.mark.slow
def test_checking_a_recipe_and_showing_tables_needs_no_torch(tmp_path):
    commands = [
        ["train", "--help"],
        ["train", *QUICKSTART, "--recipie"],
        ["train", "--recipe", "recipes/nowhere.yaml"],
        ["train", *QUICKSTART, "--set", "pruning.criterion=tailor"],
        ["tables", "--help"],
        ["tables", "show", "bep/33"],
        ["tables", "show", "--all", "--csv", "--output", str(tmp_path)],
    ]
    code = f"""models, pruning, tables, train
statuses = []
for script, *words in {commands}:
    try:
        statuses.append({{"train": train, "tables": tables}}[script].main(words))
    except SystemExit as end:
        statuses.append(end.code)
assert statuses == [0, 2, 2, 2, 0, 2, 0], statuses"""
    assert imported(code, {"torch", "numpy", *LIBRARIES}) == set()
    assert len(list(tmp_path.glob("*.csv"))) == len(papers.tables())


@pytest.mark.slow
def test_training_without_trackers_needs_neither_compiler_nor_other_libraries(tmp_path):
    quiet = [*QUICKSTART, *QUIET, "--output", str(tmp_path / "run")]
    code = f"""gc, torch, train
from prunezoo.pruning.selection.bep.forecast import fit
assert train.main({[*QUICKSTART, "--dry-run"]}) == 0
gc.disable()  # as the script does while it imports
assert train.main({quiet}) == 0
assert gc.isenabled()
fit(torch.arange(5.0), torch.rand(5, 3), latents=2)"""
    assert imported(code, LIBRARIES) == set()
