import gc
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from hypothesis import settings

import train
from prunezoo.pruning.amount.latency import latency_table
from prunezoo.reporting.records import Job, collect
from prunezoo.training import loop
from tests.support.ranks import PAIR
from tests.support.runs import DIGITS, Crash
from tests.support.synthetic_runs import (
    CLAIMS,
    ROW,
    make_recipe,
    make_run,
)

ROOT = Path(__file__).parent.parent
QUIET = ["log.tracker=none", "cost.tracker=none", "log.every=5it"]
# The same examples on every machine, however slow it is.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


def pytest_collection_finish() -> None:
    """A run's segments end with a collection of garbage, slow over all that pytest has imported."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()
    PAIR.end()


@pytest.fixture(autouse=True)
def _compiler_as_it_was():
    """A run that a test breaks off may have held the compiler back for its next step."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.set_stance("default")


@pytest.fixture
def run_recipe(tmp_path: Path, monkeypatch) -> Callable[..., tuple[int, Path]]:
    """Run train.py in this process; returns its exit status and the run folder.

    Without a recipe it goes on by the folder alone.
    """
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(ROOT)

    def run(
        recipe: str | None, *settings: str, folder: str = "run", resume: bool = False, **_: Any
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        words = ["--recipe", recipe] if recipe else []
        words += ["--output", str(tmp_path / folder), *(["--resume"] if resume else [])]
        words += [f"--set={s}" for s in (*QUIET, *settings)]
        monkeypatch.setattr(sys, "argv", ["train.py", *words])  # as the run folder says it
        return train.main(words), tmp_path / folder

    return run


@pytest.fixture(scope="session")
def _whole_runs(tmp_path_factory) -> tuple[Path, dict[tuple[str, ...], Path]]:
    return tmp_path_factory.mktemp("whole"), {}


@pytest.fixture
def whole_run(run_recipe, _whole_runs) -> Callable[..., Path]:
    """The folder of a run that several tests compare theirs with, made once."""
    root, runs = _whole_runs

    def run(*words: str) -> Path:
        if words not in runs:
            status, runs[words] = run_recipe(*words, folder=str(root / str(len(runs))))
            assert status == 0
        return runs[words]

    return run


@pytest.fixture
def crash(run_recipe, monkeypatch):
    """Run a recipe up to a step, or to its first evaluation, and lose power there."""

    def run(*words: str, step: int = 0, recipe: str = DIGITS, folder: str = "cut") -> None:
        after = loop.after_step

        def cut(run):
            after(run)
            if run.work == step:
                raise Crash

        def no_power(*_):
            raise Crash

        with monkeypatch.context() as patched:
            if step:
                patched.setattr(loop, "after_step", cut)
            else:
                patched.setattr(loop, "evaluate", no_power)
            with pytest.raises(Crash):
                run_recipe(recipe, *words, folder=folder)

    return run


@pytest.fixture
def quick_latencies(monkeypatch) -> None:
    """Layers are timed at two widths each way for milliseconds: the default takes seconds."""
    defaults = cast(Any, inspect.unwrap(latency_table)).__kwdefaults__
    monkeypatch.setitem(defaults, "points", 2)
    monkeypatch.setitem(defaults, "seconds", 1e-3)


@pytest.fixture
def project(tmp_path):
    """A made-up checkout: one recipe of two claimed rows, and three seeds of its first row."""
    make_recipe(tmp_path, "bep/a", CLAIMS)
    for seed, accuracy in enumerate((69.0, 70.0, 71.0)):
        job = Job(f"bep/3/{ROW}", "recipes/bep/a.yaml", seed=seed)
        folder = make_run(tmp_path / "runs" / job.name, seed=seed, eval__top1_percent=accuracy)
        collect(folder, tmp_path / "results", job)
    return tmp_path
