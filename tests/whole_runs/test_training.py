import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch._dynamo.utils as dynamo
from safetensors.torch import load_file
from torch import nn

from benchmarks.kill import outcome
from prunezoo import models
from prunezoo.pruning.laboratory.laboratory import Laboratory
from prunezoo.training import loop
from prunezoo.training.folder import checkpoint
from prunezoo.training.folder.log import read
from tests.support.runs import (
    DIGITS,
    ROOT,
    SYNTHETIC,
    launch_several,
    losses,
    summary,
    torchrun,
)
from tests.support.tiers import slow_but

SHORT = ("training.duration=3ep", "checkpoint.every=8it", "model.options.width=0.5")
PRUNED = (
    "pruning={criterion: taylor, granularity: channel, macs: 50%, tolerance: 3%,"
    " application: surgery, schedule: {start: 20it, every: 12it, rounds: 2, curve: linear}}"
)


def test_a_run_leaves_a_whole_folder(run_recipe):
    status, folder = run_recipe(DIGITS, *SHORT, "data.validation=20%")
    assert status == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["eval/images"] == 360
    assert summary["run/steps"] == 3 * 17
    assert summary["cost/training_flops"] == 6 * summary["run/images"] * summary["model/macs"]
    assert summary["throughput/images_per_second"] > 0
    assert (folder / "environment.json").exists()
    resolved = (folder / "recipe.resolved.yaml").read_text()
    assert f"lr: 0.1  # {DIGITS}:8" in resolved
    assert "duration: 3ep  # --set training.duration=3ep" in resolved
    records = read(folder / "log.jsonl")
    assert [r["step"] for r in records] == sorted(r["step"] for r in records)
    assert any("validation/top1_percent" in r for r in records)
    model = models.load(folder / "model.safetensors")
    assert sum(p.numel() for p in model.parameters()) == summary["model/params"]


DENSE = "pruning=null"
WEIGHTS = "pruning={criterion: snip, compression_ratio: 10}"


@pytest.mark.parametrize("pruning", [DENSE, WEIGHTS, PRUNED])
def test_a_network_without_convolutions_is_trained_and_pruned(run_recipe, pruning):
    model = "model={name: lenet_300, options: {image_size: 8}}"
    status, folder = run_recipe(DIGITS, model, "training.duration=3ep", pruning)
    assert status == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["eval/top1_percent"] > 50  # 10 by chance
    weights, macs = {DENSE: (1, 1), WEIGHTS: (0.1, 1), PRUNED: (0.5, 0.5)}[pruning]
    assert 1 - summary["model/sparsity"] == pytest.approx(weights, abs=0.03)
    assert summary["model/macs"] / summary["dense/macs"] == pytest.approx(macs, abs=0.03)


AVERAGED = ("training.optimizer=adamw", "training.ema={decay: 0.9}", "training.clip_norm=1.0")
ACCUMULATED = ("training.optimizer=rmsprop", "training.accumulation=2", "training.mixup=0.2")
MIXED = ("training.optimizer=timm/lamb", "training.cutmix=1.0", "data.validation=10%")
LAST = ("training.channels_last=on", PRUNED)


@pytest.mark.parametrize(
    "extra",
    slow_but([(AVERAGED,)], [((),), (AVERAGED,), (ACCUMULATED,), (MIXED,), (LAST,)]),
)
def test_a_crash_changes_nothing(run_recipe, crash, extra):
    _, whole = run_recipe(DIGITS, *SHORT, *extra, folder="whole")
    crash(*SHORT, *extra, step=29)
    status, cut = run_recipe(DIGITS, *SHORT, *extra, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)


@pytest.mark.slow
def test_a_crash_between_training_and_evaluation(run_recipe, crash):
    settings = (*SHORT, "data.validation=10%")
    _, whole = run_recipe(DIGITS, *settings, folder="whole")
    crash(*settings)
    _, cut = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    assert outcome(cut) == outcome(whole)


def test_costs_of_a_crashed_run_include_what_was_lost(run_recipe, crash):
    crash(*SHORT, step=15)
    _, folder = run_recipe(DIGITS, *SHORT, folder="cut", resume=True)
    assert json.loads((folder / "summary.json").read_text())["cost/redone_seconds"] > 0


def test_a_run_folder_is_never_overwritten(run_recipe, capsys):
    run_recipe(DIGITS, *SHORT)
    status, _ = run_recipe(DIGITS, *SHORT)
    assert status == 2
    assert "add --resume, or choose another folder" in capsys.readouterr().err


def test_another_recipe_does_not_resume(run_recipe, crash, capsys):
    crash(*SHORT, step=15)
    status, _ = run_recipe(DIGITS, *SHORT, "training.batch_size=32", folder="cut", resume=True)
    assert status == 2
    assert "written with recipe" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_and_says_where(run_recipe, capsys):
    status, folder = run_recipe(DIGITS, *SHORT, "training.optimizer.lr=1e30")
    assert status == 3
    errors = capsys.readouterr().err
    assert "the loss is NaN or infinite at step" in errors
    assert "training.clip_norm" in errors
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize("every", ["0it", "1it"])
def test_weights_that_the_last_update_ruined_are_no_result(every, run_recipe, capsys):
    """They are still finite, but no square of them is."""
    settings = ("training.optimizer.lr=1e38", "training.duration=1it", "checkpoint.keep=1")
    settings += (f"checkpoint.every={every}",)
    for resume in (False, True):
        status, folder = run_recipe(DIGITS, *settings, resume=resume)
        assert status == 3
        said = capsys.readouterr().err
        assert "the norm of the weights is NaN or infinite after step 1 (learning rate" in said
        assert "last good checkpoint: none yet; lower training.optimizer.lr" in said
        assert not list(folder.rglob("*.safetensors"))
        assert not (folder / "summary.json").exists()


@pytest.mark.parametrize("network", ["model", "ema"])
def test_ruined_weights_take_no_good_checkpoint_s_place(network, run_recipe, monkeypatch, capsys):
    settings = (*SHORT, "training.ema={decay: 0.9}", "checkpoint.every=1it", "checkpoint.keep=1")
    after = loop.after_step

    def ruined(run):
        if run.work == 3:
            next(getattr(run, network).parameters()).data[0] = float("nan")
        after(run)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "after_step", ruined)
        status, folder = run_recipe(DIGITS, *settings)
    good = folder / "checkpoints" / "step_000000002_save_0002.safetensors"
    assert status == 3
    said = capsys.readouterr().err
    assert "the norm of the weights is NaN or infinite after step 3" in said
    assert f"last good checkpoint: {good};" in said
    assert run_recipe(DIGITS, *settings, resume=True)[0] == 0


def test_figures_that_are_no_numbers_are_null_and_named(run_recipe, capsys):
    """JSON has no NaN. The weights are finite here, and what the network makes of them is not."""
    settings = ("training.optimizer.lr=1e18", "training.duration=1it", "checkpoint.every=0it")
    status, folder = run_recipe(DIGITS, *settings)
    assert status == 0

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    text = (folder / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse)["eval/loss"] is None
    assert "NaN or infinite, and null in the summary: eval/loss; the" in capsys.readouterr().err


def test_a_signal_saves_and_stops_with_its_own_status(run_recipe, monkeypatch):
    _, whole = run_recipe(DIGITS, *SHORT, folder="whole")
    with monkeypatch.context() as patched:
        after = loop.after_step

        def signalled(run):
            if run.work == 11:
                os.kill(os.getpid(), signal.SIGTERM)
            after(run)

        patched.setattr(loop, "after_step", signalled)
        status, folder = run_recipe(DIGITS, *SHORT, folder="cut")
    assert status == 75
    assert checkpoint.latest(folder / "checkpoints") is not None
    status, cut = run_recipe(DIGITS, *SHORT, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)


AT_THE_END = PRUNED.replace("start: 20it, every: 12it, rounds: 2, curve: linear", "start: 100%")


@pytest.mark.parametrize("rewind", [(), ("pruning.rewind={to: 2it, after: last}",)])
def test_a_signal_in_the_last_step_leaves_its_round_to_the_run_that_goes_on(
    run_recipe, monkeypatch, rewind
):
    words = (*SYNTHETIC, "data.validation=17", AT_THE_END, *rewind)
    _, whole = run_recipe(DIGITS, *words, folder="whole")
    with monkeypatch.context() as patched:
        after = loop.after_step

        def signalled(run):
            if run.done and not run.pruner.over:
                os.kill(os.getpid(), signal.SIGTERM)
            after(run)

        patched.setattr(loop, "after_step", signalled)
        status, _ = run_recipe(DIGITS, *words, folder="cut")
    assert status == 75
    status, cut = run_recipe(DIGITS, *words, folder="cut", resume=True)
    assert status == 0
    assert summary(cut)["prune/rounds_done"] == 1
    assert outcome(cut) == outcome(whole)


def test_what_a_round_after_the_last_step_leaves_is_measured(run_recipe):
    """Else the dense network's accuracy would stand for it, where an epoch is chosen by it."""
    words = (*SHORT, "data.validation=20%", AT_THE_END, "evaluation.around_pruning=on")
    _, folder = run_recipe(DIGITS, *words)
    lines = read(folder / "log.jsonl")
    around = next(line for line in lines if any("after" in key for key in line))
    validation = [line["validation/loss"] for line in lines if "validation/loss" in line]
    accuracy = [line["validation/top1_percent"] for line in lines if "validation/loss" in line]
    assert accuracy[-1] == next(v for k, v in around.items() if "after" in k)
    assert validation[-1] != validation[-2]
    assert summary(folder)["best/validation_top1_percent"] == accuracy[-1]


def test_accumulation_takes_the_same_steps(run_recipe):
    _, alone = run_recipe(DIGITS, *SYNTHETIC, folder="one")
    _, two = run_recipe(DIGITS, *SYNTHETIC, "training.accumulation=4", folder="two")
    assert losses(alone) == pytest.approx(losses(two), rel=1e-10)  # float64: 4e-16 apart


NORMED = ("model={name: resnet56, options: {depth: 8, width: 0.5}}", "training.sync_batchnorm=on")
OFTEN = PRUNED.replace("20it", "3it").replace("12it", "4it")
HELD_OUT = (
    "laboratory={every: 4it, images: 32, batch_size: 16, remove: [10%], layers: [all],"
    " scores: [rand, abs_mrs], held_out: validation}"
)
TWICE = {
    name: [DIGITS, *SYNTHETIC, "log.every=2it", *extra]
    for name, extra in {
        "plain": (),
        "BatchNorm": NORMED,
        "pruned": (*NORMED, "model.options.option=B", OFTEN),
        "shuffled": (*NORMED, "model.options.option=B", OFTEN, "pruning.sanity=shuffle"),
        # one image is left for the laboratory's second batch of validation, and none for rank 1
        "laboratory": (HELD_OUT, "data.validation=17"),
    }.items()
}


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> Path:
    """The folders of these runs on two processes, from one launch."""
    folder = tmp_path_factory.mktemp("two")
    launch_several(folder, TWICE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TWICE)
def test_two_processes_train_and_prune_as_one(run_recipe, on_two, name):
    """Up to the order of sums in float64, which twelve steps of SGD do not amplify: 4e-16 apart."""
    _, alone = run_recipe(*TWICE[name])
    two = on_two / name
    first, second = (json.loads((f / "summary.json").read_text()) for f in (alone, two))
    assert second["run/processes"] == 2
    assert losses(two) == pytest.approx(losses(alone), rel=1e-10)
    same = ["run/steps", "run/images", "eval/images", "eval/top1_percent", "cost/forward_macs"]
    same += ["prune/hash", "prune/layers", "model/macs", "model/params"]
    for key in same:
        assert first.get(key) == second.get(key)
    assert ("prune/hash" in first) == (name in ("pruned", "shuffled"))
    ours, theirs = (load_file(f / "model.safetensors") for f in (alone, two))
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_two_processes_measure_the_penalties_that_one_does(run_recipe, on_two):
    _, alone = run_recipe(*TWICE["laboratory"])
    first, second = (
        pd.read_parquet(folder / "laboratory.parquet") for folder in (alone, on_two / "laboratory")
    )
    measured = ["loss", "top1_percent", "penalty", "held_out_loss", "held_out_top1_percent"]
    assert first[measured[-2:]].notna().all(axis=None)
    # float64: sums in another order
    pd.testing.assert_frame_equal(first[measured], second[measured], rtol=1e-10, atol=1e-12)
    assert (first["selected"].dropna() == second["selected"].dropna()).all()


@pytest.mark.slow
def test_asking_for_two_and_getting_one_is_an_error(tmp_path):
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "train.py",
    ]
    done = subprocess.run(
        [*words, "--recipe", DIGITS, "--output", str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "2 processes were asked for and 1 runs" in done.stderr


@pytest.mark.slow
def test_a_kill_9_changes_nothing(run_recipe, tmp_path):
    """The short version of benchmarks/kill.py: one kill, really by the system."""
    words = [sys.executable, "benchmarks/kill.py", "--kills", "1", "--processes", "1"]
    done = subprocess.run(
        [
            *words,
            "--recipe",
            DIGITS,
            "--folder",
            str(tmp_path / "kill"),
            "--set",
            "training.duration=4ep",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1/1 identical" in done.stdout


@pytest.mark.slow
def test_the_laboratory_is_not_noticed_by_training_and_survives_a_crash(run_recipe, crash):
    small = (*SYNTHETIC, "training.precision=fp32", "training.duration=3ep", "checkpoint.every=5it")
    small += ("data.validation=17", "evaluation.every=4it")
    _, off = run_recipe(DIGITS, *small, folder="off")
    _, on = run_recipe(DIGITS, *small, HELD_OUT, folder="on")
    assert losses(on) == losses(off)
    assert tensors(on) == tensors(off)
    crash(*small, HELD_OUT, step=9)
    _, cut = run_recipe(DIGITS, *small, HELD_OUT, folder="cut", resume=True)
    tables = [pd.read_parquet(folder / "laboratory.parquet") for folder in (on, cut)]
    pd.testing.assert_frame_equal(*tables)
    assert set(tables[0]["step"]) == {4, 8, 12}
    intact = tables[0][tables[0]["experiment"] == "intact"]
    lines = [line for line in read(on / "log.jsonl") if "validation/loss" in line]
    for name in ("loss", "top1_percent"):
        logged = [line[f"validation/{name}"] for line in lines]
        # float32: batches of another size
        assert intact[f"held_out_{name}"].tolist() == pytest.approx(logged, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 12])  # a round is due; the last
def test_a_signal_cuts_the_laboratory_short_and_resuming_measures_again(
    run_recipe, whole_run, monkeypatch, step
):
    twice = PRUNED.replace("20it", "4it").replace("12it", "3it")
    small = (*SYNTHETIC, *NORMED, "model.options.option=B", twice, "training.duration=3ep")
    small += ("data.validation=17", "evaluation.every=4it", "log.every=3it", HELD_OUT)
    whole = whole_run(DIGITS, *small)
    with monkeypatch.context() as patched:
        measured = Laboratory._penalties

        def signalled(*words):
            if words[-1] == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return measured(*words)

        patched.setattr(Laboratory, "_penalties", signalled)
        status, cut = run_recipe(DIGITS, *small, folder="cut")
    assert status == 75
    table = cut / "laboratory.parquet"
    assert (pd.read_parquet(table)["step"].max() if table.exists() else 0) == step - 4
    status, _ = run_recipe(DIGITS, *small, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)
    pd.testing.assert_frame_equal(
        pd.read_parquet(table), pd.read_parquet(whole / "laboratory.parquet")
    )


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_cuts_the_laboratory_short_on_both(run_recipe, tmp_path):
    """Resumed on one, the run has the rows of one process, up to float64's order of sums."""
    words = [f"--set={setting}" for setting in ("log.tracker=none", "cost.tracker=none")]
    words += [f"--set={setting}" for setting in TWICE["laboratory"][1:]]
    folder = ("--recipe", DIGITS, "--output", str(tmp_path / "cut"))
    done = torchrun(2, "tests/support/rank_signal.py", *folder, *words)
    assert "stopped by a signal at step 4" in done.stderr
    assert not (tmp_path / "cut" / "laboratory.parquet").exists()
    _, whole = run_recipe(*TWICE["laboratory"], folder="whole")
    status, cut = run_recipe(*TWICE["laboratory"], folder="cut", resume=True)
    assert status == 0
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-10)
    first, second = (pd.read_parquet(folder / "laboratory.parquet") for folder in (whole, cut))
    pd.testing.assert_frame_equal(first, second, rtol=1e-10, atol=1e-12)


def test_accuracy_around_prunings_is_measured_unnoticed_and_survives_a_crash(run_recipe, crash):
    small = (*SHORT, PRUNED, "data.validation=30%", "evaluation.every=20it")
    around = "evaluation.around_pruning=on"
    _, off = run_recipe(DIGITS, *small, folder="off")
    _, on = run_recipe(DIGITS, *small, around, folder="on")
    assert losses(on) == losses(off)
    assert tensors(on) == tensors(off)
    crash(*small, around, step=25)
    _, cut = run_recipe(DIGITS, *small, around, folder="cut", resume=True)
    names = [f"prune/validation_top1_{when}_percent" for when in ("before", "after")]
    measured = [
        [(line["step"], *(line[name] for name in names)) for line in read(folder / "log.jsonl")
         if names[0] in line]
        for folder in (on, cut)
    ]  # fmt: skip
    assert measured[0] == measured[1]
    assert [line[0] for line in measured[0][:2]] == [20, 32]
    logged = next(e for e in read(on / "log.jsonl") if "validation/top1_percent" in e)
    assert (logged["step"], logged["validation/top1_percent"]) == measured[0][0][:2]
    assert measured[0][0][1] != measured[0][0][2]


def tensors(folder: Path) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("step", slow_but([20], [19, 20, 27, 32]))
def test_a_crash_around_prunings_changes_nothing(run_recipe, whole_run, crash, step):
    settings = (DIGITS, *SHORT, PRUNED, "training.ema={decay: 0.9}")
    whole = whole_run(*settings)
    crash(*settings[1:], step=step)
    status, cut = run_recipe(*settings, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)
    assert outcome(whole)[2]["model/macs"] < 0.53 * outcome(whole)[2]["dense/macs"]


def test_a_full_disk_is_one_line_and_its_own_status(run_recipe, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "checkpoints/x")

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    status, folder = run_recipe(DIGITS, *SHORT)
    assert status == 4
    errors = capsys.readouterr().err
    assert "can't write the checkpoint" in errors
    assert "No space left on device" in errors
    assert not (folder / "summary.json").exists()


@pytest.mark.slow
def test_an_event_compiles_the_step_once(run_recipe, monkeypatch):
    """Graphs are compiled in the first step of each segment, and in no other step of training."""
    compile_module, after, seen = nn.Module.compile, loop.after_step, []
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, mode=None: compile_module(self, backend="eager")
    )

    def noted(run):
        after(run)
        seen.append(dynamo.counters["stats"]["unique_graphs"])

    monkeypatch.setattr(loop, "after_step", noted)
    torch.compiler.reset()
    dynamo.counters.clear()
    pruning = "{criterion: magnitude, granularity: channel, channels: 50%, application: surgery,"
    schedule = " schedule: {start: 4it, every: 6it, rounds: 3}}"
    once = ("training.compile=true", "training.duration=2ep", "training.batch_size=128")
    status, _ = run_recipe(DIGITS, *once, f"pruning={pruning}{schedule}")
    assert status == 0
    new = enumerate((b - a for a, b in pairwise([0, *seen])), start=1)
    compiled = {step: graphs for step, graphs in new if graphs}
    assert set(compiled) == {1, 5, 11, 17}
    assert len(set(compiled.values())) == 1
