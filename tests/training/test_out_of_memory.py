"""After memory ran out a line says what to lower, and on a GPU which batch would fit."""

import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from prunezoo import models
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.schema.recipe import load
from prunezoo.training import loop, out_of_memory
from prunezoo.training.build import build_task
from prunezoo.training.data.data import info
from prunezoo.training.distillation import Teacher
from prunezoo.training.ending import end
from prunezoo.training.evaluation import evaluate
from prunezoo.training.out_of_memory import _share_that_fits, advice, remedy
from tests.support.runs import DIGITS, ROOT

FAULT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free.\nmore"
LOWER = "lower training.batch_size, or raise training.accumulation, which computes it in parts"


class Device:
    """A device on which a training takes `fixed` bytes, and `each` for an image."""

    def __init__(self, fixed: float, each: float, room: float) -> None:
        self.fixed, self.each, self.size = fixed, each, room

    def room(self) -> float:
        return self.size

    def peak(self, work) -> float:
        work()
        return self.fixed + self.each * work.args[-1]


def failed(call) -> BaseException:
    try:
        call()
    except torch.OutOfMemoryError as error:
        return error
    raise AssertionError("it should have failed")


def out(*_, **__):
    raise torch.OutOfMemoryError(FAULT)


def training(*settings: str, device: str = "cuda", processes: int = 1):
    """What is looked at of a run on digits, with weights on the CPU."""
    recipe, _ = load(ROOT / DIGITS, list(settings))
    model = models.build("digits_cnn", num_classes=10, in_channels=1)
    example = torch.zeros(1, 1, 8, 8)
    return SimpleNamespace(
        recipe=recipe,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        example_input=example,
        processes=processes,
        device=torch.device(device),
        formatted=lambda images: images,
        accelerator=SimpleNamespace(autocast=nullcontext),
        task=build_task(recipe, info(recipe.data)),
        teacher=Teacher(recipe, example),
        folder=None,
    )


# ── the batch that fits ──────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("stepped", [False, True])
def test_the_share_that_fits_follows_from_two_small_passes(stepped):
    """The copy's weights do not count, momentum that is still to come does."""
    run = training()
    size = sum(t.numel() * t.element_size() for t in run.model.state_dict().values())
    if stepped:
        run.model(torch.zeros(2, 1, 8, 8)).sum().backward()
        run.optimizer.step()
    momentum = 0 if stepped else size
    device = Device(fixed=5e6 + size, each=1e4, room=(5e6 + momentum + 100.5 * 1e4) / 0.9)
    before = [p.clone() for p in run.model.state_dict().values()]
    assert _share_that_fits(failed(out), run, device) == 100
    assert all(map(torch.equal, run.model.state_dict().values(), before))
    assert all(p.grad is None for p in run.model.parameters())


def test_tensors_of_the_failed_step_are_let_go():
    kept = []

    def step():
        held = torch.zeros(3)
        kept.append(weakref.ref(held))
        out()

    error = failed(step)
    assert kept[0]() is not None
    _share_that_fits(error, training(), Device(0, 1, 1e9))
    assert kept[0]() is None


@pytest.mark.parametrize(
    ("settings", "processes", "fits", "text"),
    [
        ((), 1, 20, "about 20 images fit at a time, by what small batches take: write training."),
        ((), 1, 20, "accumulation: 4, which computes a batch in parts, or training.batch_size: 20"),
        ((), 2, 20, "accumulation: 2, which computes a batch in parts, or training.batch_size: 40"),
        ((), 1, 64, "about 63 images fit"),  # 64 did not
        (("training.accumulation=2",), 1, 9, "accumulation: 8, which computes a batch in parts, o"),
        (("training.accumulation=2",), 1, 9, "training.batch_size: 18"),
        ((), 1, 0, "not one image fits; lower the network's width or depth (model.options)"),
    ],
)
def test_what_fits_is_written_as_settings(settings, processes, fits, text):
    assert text in advice(training(*settings, processes=processes), fits)  # of 64 images a step


def test_the_advice_can_be_followed():
    run = training()
    for fits in range(1, 64):
        parts = int(advice(run, fits).split("accumulation: ")[1].split(",")[0])
        recipe, _ = load(ROOT / DIGITS, [f"training.accumulation={parts}"])
        recipe.check_processes(1)
        assert 64 // parts <= fits


# ── what ran out of memory ───────────────────────────────────────────────────────────────────────
def test_a_gpu_s_line_names_the_batch(monkeypatch, capsys):
    device = Device(fixed=1e6, each=1e4, room=2e6)
    monkeypatch.setattr(out_of_memory, "CudaMemory", lambda: device)
    assert end(failed(out), training()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("out of memory (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
    assert "; about 63 images fit at a time" in line


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_without_a_measurement_the_line_says_what_to_lower(kind, monkeypatch):
    monkeypatch.setattr(out_of_memory, "CudaMemory", out)  # measuring may fail in the same way
    assert remedy(failed(out), training(device=kind), ROOT) == LOWER
    assert remedy(MemoryError(), None, ROOT) == LOWER


class Full:
    """A run whose every part takes too much memory."""

    __getattr__ = out


PLACES = {
    "evaluation.batch_size": lambda: evaluate(Full(), "test"),
    "pruning.calibration.batch_size": lambda: CRITERIA["snip"](training().model, map(out, [1])),
}


@pytest.mark.parametrize("key", PLACES)
def test_batches_of_a_size_of_their_own_are_named(key):
    assert remedy(failed(PLACES[key]), training(), ROOT) == f"lower {key}"


def test_a_pruner_s_part_in_a_step_is_the_step_s():
    error = failed(lambda: loop.train_step(Full(), SimpleNamespace(global_count=1)))
    assert remedy(error, None, ROOT) == LOWER
