"""A run folder: chosen, taken by one job at a time, and changed by nobody else."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from prunezoo.models.files.tensor_files import save_tensors
from prunezoo.pruning.laboratory import table as laboratory_table
from prunezoo.reporting.records import collect, load_records
from prunezoo.schema.recipe import RecipeError, load
from prunezoo.training import loop
from prunezoo.training.folder import lock
from prunezoo.training.folder import run_folder as folder
from prunezoo.training.folder.environment import changes, with_earlier, write_json
from prunezoo.training.folder.log import read
from prunezoo.training.folder.run_folder import Finished
from prunezoo.training.start import ENVIRONMENT, RESOLVED, _command
from tests.support.image_files import write_folders
from tests.support.runs import (
    DIGITS,
    ROOT,
    TINY,
    losses,
)

SMALL = (*TINY, "training.duration=3ep", "checkpoint.every=2it")


# ── names ────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def at(tmp_path, monkeypatch):
    """Take a folder for a seed, as a start or as a resume, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    taken = []

    def take(seed: int, resume: bool = False, stem: str = "r", output: Path | None = None) -> str:
        recipe, _ = load(ROOT / DIGITS, [f"seed={seed}"])
        where, _ = folder.take(recipe, stem, output, resume)
        taken.append(where)
        return where.name.replace(recipe.hash(), "HASH")

    yield take
    for where in taken:
        lock.give_back(where)


def finish(name: str, seed: int, changed: int | None = None) -> Path:
    """Write a summary into a folder of runs/, or only a log last written to at a given time."""
    recipe, _ = load(ROOT / DIGITS, [])
    path = Path("runs") / name.replace("HASH", recipe.hash())
    summary = {"recipe/hash": recipe.hash(), "run/seed": seed}
    if changed is None:
        write_json(path / "summary.json", summary)
    else:
        (path / "log.jsonl").touch()
        os.utime(path / "log.jsonl", (changed, changed))
    return path


def test_default_names_count_up(at):
    assert [at(0) for _ in range(3)] == ["r-HASH-seed0", "r-HASH-seed0-2", "r-HASH-seed0-3"]


def test_a_deleted_folders_name_is_free_again(at):
    first, _ = at(0), at(0)
    shutil.rmtree(finish(first, 0))
    assert at(0) == "r-HASH-seed0"


def test_seed_1_has_nothing_to_do_with_seed_10(at):
    at(10)
    with pytest.raises(RecipeError, match="no run runs/r-"):
        at(1, resume=True)
    assert at(1) == "r-HASH-seed1"


@pytest.mark.parametrize("stem", ["odd[1]*", "a?b", "{x}", "."])
def test_a_recipes_name_is_no_pattern(at, stem):
    assert at(0, stem=stem) == f"{stem}-HASH-seed0"
    assert at(0, stem=stem) == f"{stem}-HASH-seed0-2"
    for name, changed in ((f"{stem}-HASH-seed0", 2_000), (f"{stem}-HASH-seed0-2", 1_000)):
        finish(name, 0, changed=changed)
    assert at(0, stem=stem, resume=True) == f"{stem}-HASH-seed0"


def test_resume_takes_the_unfinished_run_that_was_written_to_last(at):
    names = [at(0) for _ in range(4)]
    finish(names[0], 0, changed=1_000)
    finish(names[1], 0, changed=3_000)
    finish(names[2], 0, changed=2_000)
    finish(names[3], 0)
    assert at(0, resume=True) == names[1]


def test_resume_of_finished_runs_alone_says_that_they_are(at):
    finish(at(0), 0)
    with pytest.raises(Finished, match=r"seed0: this run is finished; nothing was changed"):
        at(0, resume=True)


def test_folders_made_at_the_same_time_are_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ready = threading.Barrier(8)

    def new(_: int) -> Path:
        ready.wait()
        return folder._new("run")

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(new, range(8)))
    assert len(folders) == len(list(Path("runs").iterdir())) == 8


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/nothing", "x" * 300])
def test_a_place_that_is_no_folder_is_one_line(at, output):
    Path("file").touch()
    with pytest.raises(
        RecipeError, match="choose an --output folder that can be written"
    ) as caught:
        at(0, output=Path(output))
    assert "\n" not in str(caught.value)


# ── one job at a time ────────────────────────────────────────────────────────────────────────────
HOLD = """
import os, sys, time
from pathlib import Path
from prunezoo.training.folder import lock
lock.take(Path(sys.argv[1]))
forked = sys.argv[2] == "fork" and os.fork() == 0
os.write(1, b"%s %d\\n" % (b"forked" if forked else b"held", os.getpid()))
time.sleep(600)
"""


@pytest.fixture
def hold():
    """Hold a folder in another process, which may have forked; gives it and the ids it printed."""
    holders = []

    def start(where: Path, how: str = "alone") -> tuple[subprocess.Popen, dict[str, int]]:
        words = [sys.executable, "-c", HOLD, str(where), how]
        holder = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        holders.append(holder)
        assert holder.stdout is not None
        lines = [holder.stdout.readline().split() for _ in range(2 if how == "fork" else 1)]
        return holder, {word: int(number) for word, number in lines}

    yield start
    for holder in holders:
        os.killpg(holder.pid, signal.SIGKILL)  # a forked worker too
        holder.communicate()


def test_a_second_job_is_told_who_holds_the_folder(tmp_path, hold):
    _, said = hold(tmp_path)
    line = rf"is in use by process {said['held']} on \S+ since .*; wait for it to end, or choose"
    with pytest.raises(RecipeError, match=line):
        lock.take(tmp_path)


def test_a_killed_job_holds_nothing_though_its_workers_live(tmp_path, hold):
    holder, said = hold(tmp_path, "fork")
    with pytest.raises(RecipeError, match="in use"):
        lock.take(tmp_path)
    holder.kill()
    holder.wait()
    os.kill(said["forked"], 0)  # it lives
    assert lock.take(tmp_path) is None
    lock.give_back(tmp_path)
    assert not (tmp_path / lock.NAME).exists()


def test_a_folder_given_back_can_be_taken(tmp_path):
    for _ in range(2):
        lock.take(tmp_path)
        assert f"process {os.getpid()} " in (tmp_path / lock.NAME).read_text()
        lock.give_back(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_was_deleted_under_the_job_is_no_lock(tmp_path, monkeypatch):
    """Its holder deletes it as it ends, while another job has just opened it."""
    real, deleted = fcntl.lockf, []

    def slow(file, how):
        if not deleted:
            deleted.append(Path(file.name))
            deleted[0].unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "lockf", slow)
    lock.take(tmp_path)
    assert deleted
    assert (tmp_path / lock.NAME).exists()
    lock.give_back(tmp_path)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    assert "let no second job write there" in (lock.take(tmp_path) or "")
    lock.give_back(tmp_path)


def test_a_run_that_runs_is_neither_started_nor_resumed(run_recipe, crash, hold, capsys):
    crash(*SMALL, step=5)
    _, where = run_recipe(DIGITS, *SMALL, folder="other")  # for its path alone
    cut = where.parent / "cut"
    hold(cut)
    before = contents(cut)
    capsys.readouterr()
    status, _ = run_recipe(DIGITS, *SMALL, folder="cut", resume=True)
    assert status == 2
    assert "is in use by process" in one_line(capsys)
    assert contents(cut) == before


# ── what a refusal and a finished run leave alone ────────────────────────────────────────────────
def contents(where: Path) -> dict[str, bytes]:
    return {str(p.relative_to(where)): p.read_bytes() for p in where.rglob("*") if p.is_file()}


def one_line(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_finished_run_stays_as_it_is(run_recipe, capsys):
    _, where = run_recipe(DIGITS, *SMALL)
    before, written = contents(where), where.stat().st_mtime_ns
    capsys.readouterr()
    assert run_recipe(DIGITS, *SMALL, resume=True)[0] == 0
    assert one_line(capsys).endswith("this run is finished; nothing was changed")
    assert run_recipe(DIGITS, *SMALL, "training.optimizer.lr=0.3", resume=True)[0] == 2
    assert "written with recipe" in one_line(capsys)
    assert run_recipe(DIGITS, *SMALL, "seed=3", resume=True)[0] == 2
    assert "written with seed 0, this run has 3" in one_line(capsys)
    assert (contents(where), where.stat().st_mtime_ns) == (before, written)


def test_a_summary_that_is_none_is_one_line(run_recipe, capsys):
    _, where = run_recipe(DIGITS, *SMALL)
    capsys.readouterr()
    for text in ("{", "[]", "{}"):
        (where / "summary.json").write_text(text)
        assert run_recipe(DIGITS, *SMALL, resume=True)[0] == 2
        assert "not the summary of a run; delete it to go on" in one_line(capsys)


@pytest.mark.parametrize("change", ["training.optimizer.lr=0.3", "seed=3"])
def test_a_refused_resume_changes_nothing(run_recipe, crash, tmp_path, capsys, change):
    crash(*SMALL, step=5)
    before = contents(tmp_path / "cut")
    capsys.readouterr()
    assert run_recipe(DIGITS, *SMALL, change, folder="cut", resume=True)[0] == 2
    assert "written with" in one_line(capsys)
    assert contents(tmp_path / "cut") == before


@pytest.mark.parametrize("per_class", [3, 12])
def test_data_of_another_size_are_refused(run_recipe, crash, tmp_path, capsys, per_class):
    """Fewer or more in the same place: the steps that are done would be others."""
    write_folders(tmp_path / "data", per_class=8)
    data = f"data={{name: {tmp_path / 'data'}, image_size: 12}}"
    settings = (data, "training.batch_size=6", "training.duration=2ep", "checkpoint.every=3it")
    crash(*settings, step=5)
    shutil.rmtree(tmp_path / "data")
    write_folders(tmp_path / "data", per_class=per_class)
    before = contents(tmp_path / "cut")
    capsys.readouterr()
    assert run_recipe(DIGITS, *settings, folder="cut", resume=True)[0] == 2
    text = f"written with 24 training images, and the data now have {3 * per_class}; put the data"
    assert text in one_line(capsys)
    assert contents(tmp_path / "cut") == before


def test_a_run_that_goes_on_by_its_folder_alone_keeps_its_job(run_recipe, crash, tmp_path):
    settings = (*SMALL, "training.optimizer.lr=0.05")
    crash(*settings, step=5)
    assert run_recipe(None, folder="cut", resume=True)[0] == 0
    _, whole = run_recipe(DIGITS, *settings)
    for run in ("cut", whole.name):
        collect(tmp_path / run, tmp_path / "results" / run)
    cut, never_cut = load_records(tmp_path / "results")
    assert cut.job == never_cut.job
    assert cut.job.recipe == DIGITS
    assert "training.optimizer.lr=0.05" in cut.job.extra


def test_a_run_says_that_it_goes_on_in_another_environment_and_keeps_the_first(
    run_recipe, crash, tmp_path, capsys
):
    crash(*SMALL, step=5)
    about = tmp_path / "cut" / ENVIRONMENT
    now = json.loads(about.read_text())
    first = now | {"commit": "abc", "packages": now["packages"] | {"torch": "1.0"}}
    about.write_text(json.dumps(first))
    capsys.readouterr()
    assert run_recipe(DIGITS, *SMALL, folder="cut", resume=True)[0] == 0
    said = f"goes on in another environment: commit abc → {now['commit']}, torch 1.0 → "
    assert said in capsys.readouterr().err
    after = json.loads(about.read_text())
    assert after.pop("earlier") == [first]
    assert changes(after, now) == []


def test_an_environment_of_earlier_sessions_is_kept_once():
    first, second = {"cpu": "a", "command": "x"}, {"cpu": "b", "command": "x"}
    assert with_earlier({}, first) == first
    assert with_earlier(first, first | {"command": "y"}) == first | {"command": "y"}
    both = with_earlier(first, second)
    assert both == second | {"earlier": [first]}
    assert with_earlier(both, second) == both
    back = with_earlier(both, first)
    assert back == first | {"earlier": [first, second]}
    assert with_earlier(back, second)["earlier"] == [first, second]
    assert with_earlier({"earlier": 5, "packages": [1]}, second)["cpu"] == "b"


def test_values_that_changed_under_a_run_are_refused(run_recipe, crash, tmp_path, capsys):
    """As where another default came with other code: the recipe's hash is the same."""
    crash(*SMALL, step=5)
    path = tmp_path / "cut" / RESOLVED
    text = path.read_text()
    path.write_text(text.replace("label_smoothing: 0.0", "label_smoothing: 0.3"))
    before = contents(tmp_path / "cut")
    capsys.readouterr()
    assert run_recipe(DIGITS, *SMALL, folder="cut", resume=True)[0] == 2
    line = f"{path}: training.label_smoothing was 0.3 when the run began and is 0.0 now; resume wi"
    assert one_line(capsys).startswith(line)
    assert contents(tmp_path / "cut") == before
    path.write_text(text.replace("label_smoothing: 0.0", "of_other_code: 1"))
    assert run_recipe(DIGITS, *SMALL, folder="cut", resume=True)[0] == 0
    said = capsys.readouterr().err.splitlines()[0]
    assert "unknown key of_other_code" in said
    assert said.endswith("; its values are not compared with those of now")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"command": 5}', '{"command": "a \'b"}'])
def test_a_command_that_is_lost_is_not_kept(tmp_path, text):
    about = tmp_path / ENVIRONMENT
    assert _command(about) == {}
    about.write_text(text)
    assert _command(about) == {}
    about.write_text('{"command": "train.py --recipe a.yaml"}')
    assert _command(about) == {"command": "train.py --recipe a.yaml"}


def test_a_start_that_fails_leaves_no_folder(run_recipe):
    status, where = run_recipe(DIGITS, "data={name: cifar10, path: nowhere}")
    assert status == 2
    assert not where.exists()


# ── a folder that is lost, a disk that is full ───────────────────────────────────────────────────
def disturbed(monkeypatch, step: int, disturb) -> None:
    after = loop.after_step

    def disturbing(run):
        if run.work == step:
            run.wait_for_checkpoint()
            disturb(run.folder)
        after(run)

    monkeypatch.setattr(loop, "after_step", disturbing)


def replaced(where: Path) -> None:
    where.unlink()
    where.mkdir()


@pytest.mark.parametrize(
    ("disturb", "line"),
    [
        (shutil.rmtree, "was deleted or moved while the run wrote to it"),
        (lambda where: where.rename(where.with_name("moved")), "was deleted or moved"),
        (lambda where: (where / "log.jsonl").unlink(), "deleted or changed by something else"),
        (lambda where: (where / "log.jsonl").write_text("{}\n"), "deleted or changed"),
        (lambda where: replaced(where / "log.jsonl"), "log.jsonl: Is a directory"),
    ],
    ids=["deleted", "moved", "log deleted", "log written by another", "log a folder"],
)
def test_a_run_folder_lost_is_one_line(run_recipe, monkeypatch, capsys, disturb, line):
    disturbed(monkeypatch, 3, disturb)
    status, where = run_recipe(DIGITS, *SMALL)
    assert status == 4
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert not (where / "summary.json").exists()


def test_deleted_checkpoints_are_written_again(run_recipe, monkeypatch):
    _, whole = run_recipe(DIGITS, *SMALL, folder="whole")
    disturbed(monkeypatch, 3, lambda where: shutil.rmtree(where / "checkpoints"))
    status, where = run_recipe(DIGITS, *SMALL)
    assert status == 0
    assert losses(where) == losses(whole)
    assert read(where / "log.jsonl")[-1]["step"] == 6


@pytest.fixture
def full_disk():
    """Let no file of this process grow beyond some bytes, as on a disk without room."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "a.safetensors": lambda path: save_tensors({"x": torch.ones(1000)}, path),
    "a.json": lambda path: write_json(path, {"x": "y" * 3000}),
    "a.parquet": lambda path: laboratory_table.write([{"x": os.urandom(9000)}], path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_file_before_or_none(tmp_path, full_disk, name):
    path = tmp_path / name
    with pytest.raises(OSError, match="File too large") as caught:
        WRITERS[name](path)
    assert caught.value.filename == str(path)
    assert not list(tmp_path.iterdir())
    path.write_text("before")
    with pytest.raises(OSError, match="File too large"):
        WRITERS[name](path)
    assert contents(tmp_path) == {name: b"before"}
