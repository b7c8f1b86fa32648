"""Distillation: its loss by hand, its cost, and runs that go on as if nothing had happened."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.kill import outcome
from prunezoo import models
from prunezoo.schema.recipe import RecipeError, load
from prunezoo.training.distillation import distance
from prunezoo.training.dry_run import plan
from prunezoo.training.folder.checkpoint import load as load_checkpoint
from prunezoo.training.folder.log import read
from tests.support.runs import DIGITS, ROOT, SYNTHETIC, launch_several, losses
from tests.support.tiers import slow_but

SHORT = ("training.duration=3ep", "checkpoint.every=8it", "model.options.width=0.5")
DENSE = "training.distillation=dense"
PRUNED = (
    "pruning={criterion: taylor, granularity: channel, macs: 50%, tolerance: 3%,"
    " application: surgery, schedule: {start: 20it, every: 12it, rounds: 2, curve: linear}}"
)


def teacher(path: Path, **options) -> str:
    stated = "".join(f", {key}: {value}" for key, value in options.items())
    return f"training.distillation={{teacher: {path}{stated}}}"


def saved(path: Path, name: str = "lenet_300", classes: int = 10, **options) -> Path:
    torch.manual_seed(1)
    models.save(models.build(name, num_classes=classes, in_channels=1, **options), path)
    return path


@pytest.fixture
def lenet(tmp_path) -> Path:
    return saved(tmp_path / "teacher.safetensors", image_size=8)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────
def test_the_distance_by_hand():
    """Two classes, T = 2: softmax(0, 2 ln 3 / 2) = (1/4, 3/4) against (1/2, 1/2)."""
    targets = torch.tensor([[0.0, 2 * math.log(3)]], dtype=torch.float64)
    logits = torch.zeros(1, 2, dtype=torch.float64)
    expected = 4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert float(distance(logits, targets, 2.0)) == pytest.approx(expected, rel=1e-14)
    both = distance(logits.repeat(2, 1), targets.repeat(2, 1), 2.0)
    assert float(both) == pytest.approx(2 * expected, rel=1e-14)


def test_its_slope_is_the_difference_of_soft_outputs():
    """∂/∂logits = T (softmax(logits / T) − softmax(targets / T)), Hinton et al., eq. 2 × T²."""
    stream = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 3, 5, generator=stream, dtype=torch.float64)
    logits.requires_grad_(True)
    distance(logits, targets, 3.0).backward()
    expected = 3 * ((logits / 3).softmax(1) - (targets / 3).softmax(1))
    torch.testing.assert_close(logits.grad, expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mix", [(), ("training.mixup=0.4",), ("training.cutmix=1.0",)])
def test_a_copy_of_the_teacher_has_nothing_to_learn(run_recipe, lenet, mix):
    """Also from mixed images: the teacher sees them as the student does."""
    model = f"model={{name: lenet_300, weights: {lenet}}}"
    still = (
        "training.optimizer.weight_decay=0",
        "training.duration=1ep",
        "training.accumulation=2",
    )
    _, folder = run_recipe(DIGITS, model, teacher(lenet, weight=1), *still, *mix)
    assert max(losses(folder)) < 1e-6
    after = load_file(folder / "model.safetensors")
    for name, tensor in load_file(lenet).items():
        torch.testing.assert_close(after[name], tensor)


def test_the_loss_is_a_mean_of_both_losses(run_recipe, lenet):
    """At a rate near zero the network stays, and losses add up as their weights say."""
    model = "model={name: lenet_300, options: {image_size: 8}}"
    still = ("training.optimizer.lr=1e-12", "training.duration=1ep", "training.precision=fp64")

    def loss(*settings: str, name: str) -> float:
        return losses(run_recipe(DIGITS, model, *still, *settings, folder=name)[1])[-1]

    task, soft = loss(name="task"), loss(teacher(lenet, weight=1), name="soft")
    both = loss(teacher(lenet, weight=0.3), name="both")
    assert soft > 1e-3
    assert both == pytest.approx(0.7 * task + 0.3 * soft, rel=1e-9)


# ── the cost ─────────────────────────────────────────────────────────────────────────────────────
def test_a_teacher_costs_one_pass(run_recipe, lenet):
    _, folder = run_recipe(DIGITS, *SHORT, teacher(lenet))
    result = summary(folder)
    macs = 64 * 300 + 300 * 100 + 100 * 10
    assert result["cost/teacher_macs"] == result["run/images"] * macs
    own = 6 * result["run/images"] * result["model/macs"]
    assert result["cost/training_flops"] == own + 2 * result["cost/teacher_macs"]


def test_a_dense_teacher_costs_from_the_first_round_on(run_recipe):
    _, folder = run_recipe(DIGITS, *SHORT, DENSE, PRUNED)
    result = summary(folder)
    after = result["run/images"] - 20 * 64
    assert result["cost/teacher_macs"] == after * result["dense/macs"]


def test_the_plan_prices_the_teacher(monkeypatch, lenet):
    monkeypatch.chdir(ROOT)
    recipe, source = load(DIGITS, [teacher(lenet), "training.duration=1it"])
    assert f"{2 * 64 * 50_200:.3g} of the teacher (1 pass)" in plan(recipe, source)
    recipe, source = load(DIGITS, [DENSE, PRUNED])
    assert "at most" in plan(recipe, source)


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────
def test_a_dense_teacher_is_the_network_before_the_first_round(run_recipe):
    steady = ("training.lr_schedule=constant", "model.options.width=0.5")
    _, dense = run_recipe(DIGITS, *steady, "training.duration=20it", folder="dense")
    _, pruned = run_recipe(DIGITS, *steady, DENSE, PRUNED, "training.duration=33it", folder="cut")
    newest = max((pruned / "checkpoints").glob("*.safetensors"))
    stored = load_checkpoint(newest).part("teacher")["tensors"]
    expected = load_file(dense / "model.safetensors")
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(stored[name], tensor)


AVERAGED = ("training.ema={decay: 0.9}", "training.mixup=0.2")


@pytest.mark.parametrize("step", slow_but([29], [19, 20, 29, 40]))
def test_a_crash_changes_nothing(run_recipe, whole_run, crash, step):
    settings = (DIGITS, *SHORT, *AVERAGED, DENSE, PRUNED)
    whole = whole_run(*settings)
    crash(*settings[1:], step=step)
    status, cut = run_recipe(*settings, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)


def test_a_teacher_that_changed_is_not_gone_on_with(run_recipe, crash, lenet, capsys):
    settings = (*SHORT, teacher(lenet))
    crash(*settings, step=11)
    saved(lenet, image_size=8)  # other weights
    models.save(models.build("lenet_300", num_classes=10, in_channels=1, image_size=8), lenet)
    status, _ = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    assert status == 2
    assert "has changed since the checkpoint was written" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_follow_a_teacher_as_one(run_recipe, tmp_path):
    """Up to the order of sums in float64, as tests/whole_runs/test_training.py says."""
    early = PRUNED.replace("20it", "3it").replace("12it", "4it")
    normed = "model={name: resnet56, options: {depth: 8, width: 0.5, option: B}}"
    words = (*SYNTHETIC, normed, "training.sync_batchnorm=on", "log.every=2it", DENSE, early)
    launch_several(tmp_path, {"two": [DIGITS, *words]})
    _, one = run_recipe(DIGITS, *words, folder="one")
    two = tmp_path / "two"
    assert losses(two) == pytest.approx(losses(one), rel=1e-10)
    for key in ("prune/hash", "cost/teacher_macs", "cost/training_flops"):
        assert summary(one)[key] == summary(two)[key]
    assert summary(two)["run/processes"] == 2
    assert any("prune/hash" in record for record in read(two / "log.jsonl"))


# ── faults ───────────────────────────────────────────────────────────────────────────────────────
ACCUMULATED = (
    "pruning={criterion: bn_taylor, accumulate: true, granularity: channel, macs: 50%,"
    " schedule: {start: 20it}}"
)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ((DENSE,), "the first round of pruning, and there is none; name a model file"),
        ((DENSE, "pruning={criterion: snip, sparsity: 50%}"), "at step 0 untrained; set pruning"),
        ((DENSE, ACCUMULATED), "pruning.accumulate: true scores by the gradients of training"),
        (("training.distillation=none.safetensors",), "none.safetensors: "),
    ],
)
def test_faults_are_found_by_a_plan(monkeypatch, settings, sentence):
    monkeypatch.chdir(ROOT)
    with pytest.raises(RecipeError, match=r"^training\.distillation: ") as caught:
        plan(*load(DIGITS, list(settings)))
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_teacher_of_other_data_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    five = saved(tmp_path / "five.safetensors", classes=5, image_size=8)
    with pytest.raises(RecipeError, match="tells 5 classes apart and the data have 10; name"):
        plan(*load(DIGITS, [teacher(five)]))
    large = saved(tmp_path / "large.safetensors", image_size=28)
    with pytest.raises(RecipeError, match=r"cannot take images of 1×8×8 \(.*\); name a network"):
        plan(*load(DIGITS, [teacher(large)]))
