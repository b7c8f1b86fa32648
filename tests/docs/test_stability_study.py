"""Linear mode connectivity: barriers by hand, and children that are the parent where they must."""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from prunezoo.schema.recipe import RecipeError
from studies.stability import Line, between, measure, table
from tests.support.runs import DIGITS, ROOT

SMALL = (
    "training.duration=4ep",
    "model.options.width=0.5",
    "data.validation=20%",
    "log.tracker=none",
    "cost.tracker=none",
    "evaluation.every=4ep",
)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(ROOT)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_a_barrier_by_hand():
    assert Line(0, 1, [10.0, 40.0, 14.0]).barrier == 28
    assert Line(0, 1, [10.0, 11.0, 14.0]).barrier == 2  # above the mean of 12: an end
    assert Line(0, 1, [10.0, 5.0, 10.0]).barrier == 0


def test_two_minima_of_a_quartic_have_the_height_between_them():
    """Loss (w² − 1)², minima at −1 and 1: 1 in the middle."""
    ends = ({"w": torch.tensor(w), "n": torch.tensor(int(w))} for w in (-1.0, 1.0))
    first, second = ends
    weights = [between(first, second, i / 10) for i in range(11)]
    assert all(int(state["n"]) == -1 for state in weights)
    errors = [float((state["w"] ** 2 - 1) ** 2) for state in weights]
    assert Line(0, 1, errors).barrier == pytest.approx(1)


def test_a_child_in_the_same_order_is_its_parent():
    """From any epoch, and from the start: the same images in the same order, bit for bit."""
    lines = measure(ROOT / DIGITS, SMALL, [0, 2], [0], 3)
    for line in lines:
        assert line.errors[0] == line.errors[-1] == line.errors[1]


def test_a_child_in_another_order_is_another_network():
    early, late = measure(ROOT / DIGITS, SMALL, [0, 3], [1], 5)
    assert len(set(early.errors)) > 1
    assert early.errors[0] == late.errors[0]
    assert f"| 0 | 1 | {early.errors[0]:.2f} |" in table([early, late])


def test_a_sparse_network_keeps_its_masks_on_the_line():
    pruned = "pruning={criterion: magnitude, sparsity: 50%, schedule: {start: 1ep}}"
    (line,) = measure(ROOT / DIGITS, [*SMALL, pruned], [1], [0], 2)
    assert line.errors[0] == line.errors[1]


@pytest.mark.parametrize(
    ("settings", "epochs", "sentence"),
    [
        (["data.validation=0"], [0], "errors are of the validation split; write 10%"),
        ([], [0, 4], "0 4 of a training.duration of 4ep; write epochs before its end"),
        (["training.duration=60it"], [0], "the duration in epochs"),
    ],
)
def test_what_cannot_be_measured_is_said_first(settings, epochs, sentence):
    with pytest.raises(RecipeError, match=sentence):
        measure(ROOT / DIGITS, [*SMALL, *settings], epochs, [1], 2)
