"""Steps with a gradient scaler, as `precision: fp16` has them; torch's runs on the CPU as well."""

import math

import pytest
import torch

from prunezoo.training import loop, start
from tests.support.runs import DIGITS, losses

SETTINGS = (
    "training.duration=20it",
    "training.optimizer.momentum=0.9",
    "training.clip_norm=0.5",
    "training.ema={decay: 0.9}",
    "log.every=1it",
    "pruning={criterion: bn_taylor, accumulate: true, granularity: channel, channels: 50%,"
    " schedule: {start: 5it, every: 10it, rounds: 2}}",
)


@pytest.fixture
def scaled(monkeypatch):
    """Give runs a scaler; fp16 itself would take too long on a CPU."""
    make = start.make_accelerator

    def with_scaler(*words):
        accelerator = make(*words)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        return accelerator

    return lambda: monkeypatch.setattr(start, "make_accelerator", with_scaler)


def test_a_scaler_changes_no_step(run_recipe, scaled):
    """A power of two is multiplied and divided without rounding: clipped gradients are the same."""
    _, plain = run_recipe(DIGITS, *SETTINGS, folder="plain")
    scaled()
    status, folder = run_recipe(DIGITS, *SETTINGS, folder="scaled")
    assert status == 0
    assert losses(folder) == losses(plain)


def test_a_step_whose_gradients_overflow_is_left_out(run_recipe, scaled, monkeypatch):
    after, before, there = loop.after_step, {}, {}

    def watched(run):
        after(run)
        if run.work == 8:
            before.update(state(run))
            before["hooks"] = [p.register_hook(overflow) for p in run.model.parameters()]
        if run.work == 9:
            there.update(state(run))
            there["scale"] = run.accelerator.scaler.get_scale()
            for hook in before["hooks"]:
                hook.remove()

    monkeypatch.setattr(loop, "after_step", watched)
    scaled()
    assert run_recipe(DIGITS, *SETTINGS)[0] == 0
    assert there["scale"] == 512.0  # halved: the step was left out
    for part in ("weights", "momenta", "masks", "total", "steps"):
        assert same_tensors(before[part], there[part]), part
    assert not all(mask.all() for mask in there["masks"].values())
    assert there["skipped"] - before["skipped"] == 1
    assert there["position"] - before["position"] == there["work"] - before["work"] == 1
    for name, average in there["averages"].items():  # which goes on towards the weights
        expected = before["averages"][name].lerp(before["weights"][name], 0.1)
        torch.testing.assert_close(average, expected)


def overflow(slope):
    return slope * math.inf


def state(run):
    """Copies of all that a step may change."""
    seen = run.pruner.method.accumulator.tensors
    updates = {
        "weights": dict(run.model.named_parameters()),
        "averages": dict(run.ema.named_parameters()),
        "momenta": {
            i: s["momentum_buffer"] for i, s in run.optimizer.state_dict()["state"].items()
        },
        "masks": run.pruner.method.masks,
        "total": {"": seen["total"]},
        "steps": {"": seen["steps"]},
    }
    copies = {k: {n: t.detach().clone() for n, t in part.items()} for k, part in updates.items()}
    return copies | {
        "skipped": int(seen["skipped"]),
        "position": run.position,
        "work": run.work,
    }


def same_tensors(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())
