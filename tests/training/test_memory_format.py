"""channels_last training goes on from a checkpoint as it was: files keep no memory format."""

import pytest
import torch

from prunezoo.models.axes.labels import take
from prunezoo.training import loop
from tests.support.runs import DIGITS, losses

SETTINGS = (
    "training.duration=2ep",
    "training.batch_size=192",
    "model.options.width=0.5",
    "training.channels_last=true",
    "log.every=1it",
    "checkpoint.every=5it",
)
SURGERY = (
    "pruning={criterion: taylor, granularity: channel, channels: 50%, application: surgery,"
    " schedule: {start: 1ep}}"
)


@pytest.mark.parametrize("optimizer", ["{name: sgd, momentum: 0.9}", "{name: adam, lr: 1e-3}"])
def test_a_resumed_run_keeps_the_memory_format(run_recipe, crash, monkeypatch, optimizer):
    """Fused optimizers on a GPU refuse states that lie otherwise than their weights."""
    settings = (*SETTINGS, SURGERY, f"training.optimizer={optimizer}")
    _, whole = run_recipe(DIGITS, *settings, folder="whole")
    crash(*settings, step=12)
    step, seen = loop.train_step, []

    def watched(run, batch):
        step(run, batch)
        for parameter, state in run.optimizer.state.items():
            last = [t for t in (parameter, *state.values()) if t.shape == parameter.shape]
            seen.append(all(t.stride() == parameter.stride() for t in last) and len(last) > 1)
            if parameter.dim() == 4 and min(parameter.shape[1:]) > 1:
                seen.append(parameter.is_contiguous(memory_format=torch.channels_last))

    monkeypatch.setattr(loop, "train_step", watched)
    status, resumed = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    assert status == 0
    assert seen
    assert all(seen)
    assert losses(resumed) == losses(whole)


def test_the_memory_format_survives_a_cut_to_one_channel():
    """Kernels choose by strides, also where a dimension of one makes several right."""
    weight = torch.ones(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    one = take(weight, [(1, torch.tensor([2]))])
    less = take(one, [(0, torch.arange(5))])
    for cut in (one, less):
        fresh = torch.empty(cut.shape, memory_format=torch.channels_last)
        assert cut.stride() == fresh.stride()
    assert take(weight.contiguous(), [(1, torch.tensor([2]))]).stride() == (9, 9, 3, 1)
