"""Faults that nobody foresaw end in one line, which says where the run stands and how to go on."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from prunezoo.training import ending, loop
from tests.support.runs import DIGITS

ROOT = Path(__file__).parents[2]
PLAN = ["--recipe", str(ROOT / DIGITS), "--dry-run"]


@pytest.mark.slow
def test_an_unforeseen_error_leaves_one_line_and_a_way_on(run_recipe, monkeypatch, capsys):
    after = loop.after_step

    def broken(run):
        after(run)
        if run.work == 30:
            run.nothing["x"]

    monkeypatch.setattr("prunezoo.training.run.Run.nothing", {}, raising=False)
    settings = ("training.duration=2ep", "checkpoint.every=1ep")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "after_step", broken)
        status, folder = run_recipe(DIGITS, *settings)
    said = capsys.readouterr().err.splitlines()
    good = next((folder / "checkpoints").glob("*.safetensors"))
    assert status == 1
    assert said[-1].startswith("unexpected KeyError: 'x' (tests/training/test_ending.py:")
    assert said[-1].endswith(
        f"; log: {folder}/log.jsonl; last good checkpoint: {good}; go on with --resume;"
        " --traceback shows the rest"
    )
    assert not any("Traceback" in line for line in said)
    assert run_recipe(DIGITS, *settings, resume=True)[0] == 0


def test_the_traceback_is_there_for_who_asks(monkeypatch, capsys):
    monkeypatch.setattr("prunezoo.training.dry_run.plan", lambda *_, **__: {}["x"])
    assert train.main(PLAN) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unexpected KeyError: 'x' (tests/training/test_ending.py:")
    assert train.main([*PLAN, "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_memory_that_runs_out_names_the_batch_size(error, capsys):
    assert ending.end(error, None) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("out of memory (")
    assert "lower training.batch_size" in line


def test_a_fault_of_another_process_is_not_ours(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    run = SimpleNamespace(folder=tmp_path)
    assert ending.end(RuntimeError("pair.cc: Connection closed by peer [::1]"), run) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rank 0: another process of this run has ended; its own line says why")


@pytest.mark.slow
def test_one_rank_s_fault_ends_all_in_a_line_each(tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += ["tests/support/rank_fault.py", "--recipe", DIGITS, "--output", str(tmp_path / "run")]
    for setting in ("training.duration=2ep", "log.tracker=none", "cost.tracker=none"):
        words += ["--set", setting]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    ours = [line for line in ended.stderr.splitlines() if line.startswith("rank ")]
    assert ended.returncode == 1
    assert sorted(line.partition(";")[0].partition(" (")[0] for line in ours) == [
        "rank 0: another process of this run has ended",
        "rank 1: unexpected KeyError: 'x'",
    ]


def test_ctrl_c_before_training_is_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("prunezoo.training.dry_run.plan", interrupted)
    assert train.main(PLAN) == 130
    assert capsys.readouterr().err == "interrupted; nothing was trained; start it again\n"


@pytest.mark.parametrize(
    ("number", "status", "why"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "stopped by SIGTERM")],
)
def test_a_signal_is_known_when_other_code_makes_an_error_of_it(
    monkeypatch, capsys, number, status, why
):
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(train, "INTERRUPTS", [])
    with pytest.raises(KeyboardInterrupt):
        train.interrupt(number, None)
    # no second one disturbs the end
    assert {signal.getsignal(s) for s in before} == {signal.SIG_IGN}
    for other, handler in before.items():
        signal.signal(other, handler)
    assert train.main(["--recipe", "/nope"]) == status
    assert capsys.readouterr().err == f"{why}; nothing was trained; start it again\n"


@pytest.mark.parametrize(
    ("rank", "status", "said"),
    [
        ({}, 75, "stopped by SIGTERM; nothing was trained; start it again\n"),
        ({"RANK": "1"}, -signal.SIGTERM, ""),  # its launcher ends it, and says why
    ],
    ids=["alone", "rank"],
)
def test_sigterm_before_training_is_one_line_of_a_process_on_its_own(rank, status, said):
    code = """
import os, runpy, signal, sys
from prunezoo.schema import recipe
recipe.load = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
sys.argv = ["train.py", "--recipe", "a.yaml"]
runpy.run_path("train.py", run_name="__main__")
"""
    env = {name: value for name, value in os.environ.items() if name != "RANK"} | rank
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (status, said)


@pytest.mark.slow
def test_a_folder_s_name_is_no_markup(run_recipe, capsys):
    status, folder = run_recipe(DIGITS, "training.duration=1it", folder="x[/bold]")
    assert status == 0
    said = capsys.readouterr()
    assert f"{folder} · " in said.err
    assert "x[/bold]" in said.out.replace("\n", "").replace(" ", "")


LEAVING = """
import atexit, sys
from torch import distributed
from prunezoo.training.ending import leave

class Held:
    def __del__(self):
        print("finalized")

if sys.argv[1] == "ranks":
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
atexit.register(print, "at exit")
held = Held()  # lives until the interpreter is finalized
print("trained")
leave(75)
"""


@pytest.mark.parametrize("kind", ["alone", "ranks"])
def test_ranks_leave_without_finalizing_the_interpreter(kind):
    left = subprocess.run(
        [sys.executable, "-c", LEAVING, kind], cwd=ROOT, capture_output=True, text=True
    )
    finalized = ["finalized"] if kind == "alone" else []  # where gloo's threads would abort it
    assert left.stdout.splitlines() == ["trained", "at exit", *finalized], left.stderr
    assert left.returncode == 75
