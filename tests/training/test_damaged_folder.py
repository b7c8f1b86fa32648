"""Resuming what a crash, a disk or a stranger left: exactly, or one line that says why not."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.kill import outcome
from prunezoo import models
from prunezoo.training import loop
from prunezoo.training.folder.log import read
from tests.support.runs import DIGITS, SYNTHETIC, TINY, summary
from tests.training.test_run_folder import contents

pytestmark = pytest.mark.slow
PRUNED = (
    "pruning={criterion: magnitude, granularity: channel, channels: 25%, application: surgery,"
    " schedule: {start: 4it}}"
)
SHORT = (*TINY, "training.duration=6ep", "checkpoint.every=3it", "evaluation.every=2it", PRUNED)
SHORT += ("data.validation=10%", "training.batch_size=640", "training.ema={decay: 0.9}")
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A whole run and one cut at step 11, made once for all tests of this file."""
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture
def cut(run_recipe, crash, kept, tmp_path, capsys):
    """A copy of the run that was cut: checkpoints of steps 6 and 9."""
    if not (kept / "cut").exists():
        _, whole = run_recipe(DIGITS, *SHORT, folder="whole")
        crash(*SHORT, step=11)
        whole.rename(kept / "whole")
        (tmp_path / "cut").rename(kept / "cut")
    shutil.copytree(kept / "cut", tmp_path / "cut", symlinks=True)
    capsys.readouterr()
    return tmp_path / "cut"


def checkpoints(where: Path) -> list[Path]:
    return sorted((where / "checkpoints").glob("step_*.safetensors"))


def flip(path: Path, at: int = -50) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 64
    path.write_bytes(data)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").touch()


def as_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def before(path: Path, text: bytes) -> None:
    """Write text into the log before its last checkpoint, in the place of what is there."""
    data = path.read_bytes()
    path.write_bytes(data[:200] + text + data[200 + len(text) :])


def test_an_undamaged_run_says_in_one_line_where_it_goes_on(cut, kept, run_recipe, capsys):
    newest = checkpoints(cut)[-1]
    status, _ = run_recipe(DIGITS, *SHORT, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(kept / "whole")
    went, then, *_ = capsys.readouterr().err.splitlines()
    assert went == f"goes on from {newest}: step 9 of 12 (epoch 4.5 of 6), 3 steps left"
    assert then.startswith(f"{cut} · ")
    assert not list(cut.rglob("*.damaged"))


# ── one good checkpoint left ─────────────────────────────────────────────────────────────────────
NEWEST: dict[str, tuple[Damage, str]] = {
    "flipped": (flip, "does not fit its checksum"),
    "cut": (lambda path: os.truncate(path, 3000), "does not fit its checksum"),
    "empty": (lambda path: os.truncate(path, 0), "does not fit its checksum"),
    "a folder": (as_folder, "can't be read (Is a directory)"),
    "a loop": (as_loop, "can't be read (Too many levels of symbolic links)"),
    "no checksum": (lambda path: path.with_suffix(".sha256").unlink(), "has no checksum"),
    "checksum not text": (
        lambda path: path.with_suffix(".sha256").write_bytes(b"\xff\xfe\x00\x80"),
        "does not fit its checksum",
    ),
    "checksum a folder": (
        lambda path: as_folder(path.with_suffix(".sha256")),
        "can't be read (Is a directory)",
    ),
}


@pytest.mark.parametrize("damage", NEWEST)
def test_a_damaged_newest_checkpoint_is_said_and_the_older_goes_on(
    cut, kept, run_recipe, capsys, damage
):
    older, newest = checkpoints(cut)
    NEWEST[damage][0](newest)
    status, _ = run_recipe(DIGITS, *SHORT, folder="cut", resume=True)
    assert status == 0
    mended, went, *_ = capsys.readouterr().err.splitlines()
    assert mended == f"{newest.name} {NEWEST[damage][1]} (now *.damaged)"
    assert went.startswith(f"goes on from {older}: step ")
    assert outcome(cut) == outcome(kept / "whole")
    assert os.path.lexists(f"{newest}.damaged")


@pytest.mark.parametrize("stray", ["step_zzz.safetensors", "step_000000099.partial", ".tmpx"])
def test_a_stray_file_is_no_checkpoint(cut, kept, run_recipe, capsys, stray):
    (cut / "checkpoints" / stray).write_text("x")
    assert run_recipe(DIGITS, *SHORT, folder="cut", resume=True)[0] == 0
    assert outcome(cut) == outcome(kept / "whole")
    assert "damaged" not in capsys.readouterr().err


# ── none left ────────────────────────────────────────────────────────────────────────────────────
def refused(run_recipe, capsys, cut: Path, text: str) -> None:
    """Resuming says one line, in which `text` is, and leaves every file as it was."""
    kept = contents(cut)
    status, _ = run_recipe(DIGITS, *SHORT, folder="cut", resume=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert status == 4
    assert contents(cut) == kept


def test_when_all_checkpoints_are_damaged_nothing_begins_again(cut, run_recipe, capsys):
    for path in checkpoints(cut):
        flip(path)
    faults = ", ".join(f"{p.name} does not fit its checksum" for p in reversed(checkpoints(cut)))
    text = f"no checkpoint is good ({faults}); put back a copy of one"
    refused(run_recipe, capsys, cut, text)


@pytest.mark.parametrize("what", ["checkpoints", "checkpoints/*"])
def test_deleted_checkpoints_are_missed(cut, run_recipe, capsys, what):
    for path in cut.glob(what):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(run_recipe, capsys, cut, "the checkpoints of this run are gone; put them back, or")


def test_a_run_that_never_had_a_checkpoint_begins_again(run_recipe, crash, kept, cut, capsys):
    shutil.rmtree(cut)
    crash(*SHORT, step=2)
    status, _ = run_recipe(DIGITS, *SHORT, folder="cut", resume=True)
    assert status == 0
    assert f"{cut}: no checkpoint yet; begins again at step 0" in capsys.readouterr().err
    assert outcome(cut) == outcome(kept / "whole")


# ── the log ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("tail", [b"\xff\xfe\0half", b"\0" * 500, b"\0" * 500 + b"\n", b"[1]\n"])
def test_what_a_power_cut_leaves_at_the_end_of_the_log_is_cut(cut, kept, run_recipe, tail):
    with (cut / "log.jsonl").open("ab") as file:
        file.write(tail)
    assert run_recipe(DIGITS, *SHORT, folder="cut", resume=True)[0] == 0
    assert outcome(cut) == outcome(kept / "whole")


LOGS: dict[str, tuple[Damage, str]] = {
    "deleted": (lambda log: log.unlink(), "bytes that the checkpoint counts are missing"),
    "cut": (lambda log: os.truncate(log, 300), "bytes that the checkpoint counts are missing"),
    "zeros": (lambda log: before(log, b"\0" * 60), "unreadable lines are left out"),
    "not JSON": (lambda log: before(log, b"}}garbage"), "unreadable lines are left out"),
    "no record": (lambda log: before(log, b"\n17\n"), "unreadable lines are left out"),
    "all of it": (lambda log: log.write_bytes(b"\0\n" * 9_999), "unreadable lines are left out"),
}


@pytest.mark.parametrize("damage", LOGS)
def test_a_log_that_lost_lines_says_so_and_the_run_goes_on(cut, kept, run_recipe, capsys, damage):
    log = cut / "log.jsonl"
    LOGS[damage][0](log)
    status, _ = run_recipe(DIGITS, *SHORT, folder="cut", resume=True)
    assert status == 0
    assert LOGS[damage][1] in capsys.readouterr().err
    (note,) = [record for record in read(log) if "log/faults" in record]
    assert LOGS[damage][1] in note["log/faults"][0]
    for line in log.read_text().splitlines():
        json.loads(line)
    assert outcome(cut)[0] == outcome(kept / "whole")[0]


def test_a_log_that_is_a_folder_is_one_line(cut, run_recipe, capsys):
    as_folder(cut / "log.jsonl")
    status, _ = run_recipe(DIGITS, *SHORT, folder="cut", resume=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 4
    assert line == f"{cut}/log.jsonl: Is a directory; remove it or choose another --output"


# ── the best weights ─────────────────────────────────────────────────────────────────────────────
BEST: dict[str, tuple[Damage, str]] = {
    "flipped": (flip, "checksum"),
    "header": (lambda path: flip(path, 20), ""),
    "cut": (lambda path: os.truncate(path, 1000), ""),
    "deleted": (lambda path: path.unlink(), "no such file"),
    "another's": (lambda path: shutil.copy(path.parent / "other", path), "of step 2, not 9"),
}


@pytest.mark.parametrize("damage", BEST)
def test_lost_best_weights_give_way_to_the_best_from_there_on(
    cut, kept, run_recipe, capsys, damage
):
    values = {"best_percent": 100.0, "best_work": 9}  # which no later evaluation exceeds
    rewrite(checkpoints(cut)[-1], lambda t, v, m: v["progress"].update(values))
    best = cut / "model.best.safetensors"
    for path, step in ((best, 9), (cut / "other", 2)):
        models.save(models.load(best), path, {"step": step})
    BEST[damage][0](best)
    status, _ = run_recipe(DIGITS, *SHORT, folder="cut", resume=True)
    errors = capsys.readouterr().err
    assert status == 0
    (line,) = [each for each in errors.splitlines() if "best weights from here on" in each]
    assert BEST[damage][1] in line
    whole = summary(kept / "whole")
    figures = summary(cut)
    assert figures["eval/top1_percent"] == whole["eval/top1_percent"]
    assert figures["best/step"] == models.header(best)["notes"]["step"] > 9
    assert (cut / "model.safetensors").read_bytes() == outcome(kept / "whole")[0]


def test_best_weights_of_steps_that_a_crash_took_back_are_lost_by_another_replay_alone(
    run_recipe, crash, monkeypatch, capsys
):
    evaluate = loop.evaluate

    def rising(run, split):
        return evaluate(run, split) | {"eval/top1_percent": float(run.work)}

    monkeypatch.setattr(loop, "evaluate", rising)
    settings = (*SHORT, "checkpoint.every=6it", "pruning=null")
    _, whole = run_recipe(DIGITS, *settings, folder="whole")
    crash(*settings, step=11)
    best = whole.parent / "cut" / "model.best.safetensors"
    shutil.copytree(best.parent, best.parent.with_name("other"))
    capsys.readouterr()
    status, resumed = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    assert status == 0
    said = "of step 10, not 6; goes on, and the best weights from here on"
    assert said in capsys.readouterr().err
    assert outcome(resumed) == outcome(whole)
    assert best.read_bytes() == (whole / best.name).read_bytes()

    monkeypatch.setattr(
        loop, "evaluate", lambda *words: rising(*words) | {"eval/top1_percent": 1.0}
    )
    status, other = run_recipe(DIGITS, *settings, folder="other", resume=True)
    assert status == 0
    assert summary(other)["best/step"] == 8
    assert models.header(other / best.name)["notes"]["step"] == 8


def test_a_laboratory_table_that_is_none_is_one_line(run_recipe, crash, capsys, tmp_path):
    config = "laboratory={every: 2it, images: 32, batch_size: 16, remove: [10%], scores: [rand]}"
    settings = (*SYNTHETIC, "training.precision=fp32", "checkpoint.every=3it", config)
    crash(*settings, step=5)
    table = tmp_path / "cut" / "laboratory.parquet"
    os.truncate(table, 100)
    capsys.readouterr()
    status, _ = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 4
    assert line.startswith(f"{table}: not readable (")
    assert line.endswith("put back a copy, or delete it to go on without its rows")


# ── a stranger's checkpoint ──────────────────────────────────────────────────────────────────────
def rewrite(path: Path, edit: Callable[[dict, dict, dict], Any]) -> None:
    """Change tensors, values or metadata of a checkpoint, and let its checksum fit."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    values = json.loads(metadata["values"])
    values = (edit(tensors, values, metadata), values)[1]
    metadata["values"] = metadata.get("new", json.dumps(values))
    save_file(tensors, path, metadata)
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


def named(tensors: dict, part: str, end: str = "") -> str:
    return next(k for k in sorted(tensors) if k.startswith(part) and k.endswith(end))


def narrow(tensors: dict, values: dict) -> None:
    """A last layer that reads one feature less than there is."""
    for part in ("model", "ema"):
        name = next(k for k, t in tensors.items() if k.startswith(f"{part}/") and t.ndim == 2)
        tensors[name] = tensors[name][:, 1:].clone()
        layer = name.removeprefix(f"{part}/").removesuffix(".weight")
    values["widths"][layer]["in_features"] -= 1


HOSTILE: dict[str, tuple[Callable[[dict, dict, dict], Any], str]] = {
    "values a list": (lambda t, v, m: m.update(new="[1]"), "no table of values"),
    "values not JSON": (lambda t, v, m: m.update(new="{"), "no table of values"),
    "values deep": (lambda t, v, m: m.update(new="[" * 99_999), "no table of values"),
    "values empty": (lambda t, v, m: v.clear(), "recipe"),
    "format 9": (lambda t, v, m: m.update(format="9"), "checkpoint format 9, this version reads 1"),
    "no format": (lambda t, v, m: m.pop("format"), "checkpoint format None"),
    "unknown layer": (lambda t, v, m: v["widths"].update(evil={"x": 1}), "evil"),
    "forward replaced": (
        lambda t, v, m: next(iter(v["widths"].values())).update(forward="x"),
        "forward",
    ),
    "widths of text": (
        lambda t, v, m: next(iter(v["widths"].values())).update(out_channels="9"),
        "out_channels",
    ),
    "unknown progress": (lambda t, v, m: v["progress"].update(zzz=1), "progress.zzz"),
    "progress missing": (lambda t, v, m: v["progress"].pop("work"), "progress.work"),
    "position negative": (lambda t, v, m: v["progress"].update(position=-5), "progress.position"),
    "position huge": (
        lambda t, v, m: v["progress"].update(position=10**9),
        "progress.position is 1000000000 of 9",
    ),
    "work huge": (lambda t, v, m: v["progress"].update(work=10**9), "progress.work is"),
    "images huge": (lambda t, v, m: v["progress"].update(images=10**400), "progress.images"),
    "seconds huge": (lambda t, v, m: v["totals"].update(wall_seconds=10**400), "wall_seconds"),
    "position text": (lambda t, v, m: v["progress"].update(position="x"), "progress.position"),
    "position true": (lambda t, v, m: v["progress"].update(position=True), "progress.position"),
    "best not a number": (
        lambda t, v, m: v["progress"].update(best_percent=float("nan")),
        "progress.best_percent",
    ),
    "another serial": (lambda t, v, m: v["progress"].update(serial=7), "it is number 7"),
    "totals missing": (lambda t, v, m: v.pop("totals"), "totals"),
    "totals text": (lambda t, v, m: v["totals"].update(wall_seconds="x"), "totals.wall_seconds"),
    "watch empty": (lambda t, v, m: v.update(watch=[]), "watch"),
    "watch of two": (lambda t, v, m: v.update(watch=[[1.0, 1.0]] * 2), "not of 1 processes"),
    "watch ragged": (lambda t, v, m: v.update(watch=[[1.0]]), "watch"),
    "examples text": (lambda t, v, m: v["examples"].update(test="x"), "examples.test"),
    "examples a list": (lambda t, v, m: v.update(examples=[1]), "examples"),
    "processes none": (lambda t, v, m: v.update(processes=0), "processes"),
    "log negative": (lambda t, v, m: v.update(log_bytes=-1), "log_bytes"),
    "no groups": (
        lambda t, v, m: v["optimizer"].update(groups=[]),
        "1 groups of parameters, not 0",
    ),
    "lr is code": (
        lambda t, v, m: v["optimizer"]["groups"][0].update(lr="__import__('os')"),
        "lr of the optimizer",
    ),
    "groups of others": (
        lambda t, v, m: v["optimizer"]["groups"][0].update(params=[0, 0]),
        "params of the optimizer",
    ),
    "momentum of none": (
        lambda t, v, m: t.update({"optimizer/999/momentum_buffer": torch.ones(1)}),
        "999",
    ),
    "momentum's shape": (
        lambda t, v, m: t.update({named(t, "optimizer/0"): torch.ones(2, 3)}),
        "has the shape (2, 3)",
    ),
    "momentum's index": (
        lambda t, v, m: t.update({"optimizer/x/momentum_buffer": torch.ones(1)}),
        "not a state of this run",
    ),
    "tensor missing": (lambda t, v, m: t.pop(named(t, "model/")), "no tensor"),
    "tensor extra": (lambda t, v, m: t.update({"model/evil.weight": torch.ones(1)}), "evil.weight"),
    "tensor's shape": (
        lambda t, v, m: t.update({(k := named(t, "model/", "weight")): t[k][:1].clone()}),
        "its widths say",
    ),
    "layers that do not fit": (lambda t, v, m: narrow(t, v), "shapes cannot be multiplied"),
    "average missing": (lambda t, v, m: t.pop(named(t, "ema/")), "not a state of this run"),
    "pruner empty": (lambda t, v, m: v.update(pruner={}), "not a state of this run"),
    "pruner's rounds": (lambda t, v, m: v["pruner"].update(done=10**9), "of 1 rounds are over"),
    "pruner's start": (lambda t, v, m: v["pruner"].update(started="x"), "rounds began at step 'x'"),
    "pruner's tensors": (
        lambda t, v, m: [t.pop(k) for k in list(t) if k.startswith("pruner/")],
        "not a state of this run",
    ),
}


@pytest.mark.parametrize("stranger", HOSTILE)
def test_a_checkpoint_of_other_values_is_one_line(cut, run_recipe, capsys, stranger):
    path = checkpoints(cut)[-1]
    rewrite(path, HOSTILE[stranger][0])
    refused(run_recipe, capsys, cut, HOSTILE[stranger][1])
