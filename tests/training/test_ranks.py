"""Processes that train together: what they send, and what a process is left with."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from prunezoo.training.start import _small_share
from tests.support.runs import DIGITS, SYNTHETIC, launch_several, losses

SINGLE = (*SYNTHETIC, "training.precision=fp32", "log.every=1it")


@pytest.mark.slow
def test_compressed_gradients_train_alike(tmp_path):
    """bf16 keeps 8 bits of a gradient: the first step's loss is the same, later ones are near."""
    words = {"plain": (), "compressed": ("training.compress_gradients=on",)}
    launch_several(tmp_path, {name: [DIGITS, *SINGLE, *more] for name, more in words.items()})
    plain, compressed = (losses(tmp_path / name) for name in words)
    assert compressed[0] == plain[0]
    assert compressed != plain
    assert compressed == pytest.approx(plain, rel=0.01)


def test_one_process_compresses_nothing(run_recipe):
    _, plain = run_recipe(DIGITS, *SINGLE, folder="plain")
    status, folder = run_recipe(DIGITS, *SINGLE, "training.compress_gradients=on", folder="on")
    assert status == 0
    assert losses(folder) == losses(plain)


@pytest.mark.parametrize(("change", "warned"), [
    ({}, True),
    ({"processes": 1}, False),
    ({"batch_size": 256}, False),
    ({"batch_size": 256, "accumulation": 2}, True),
    ({"sync_batchnorm": True}, False),
    ({"asked": 8}, False),
    ({"model": nn.Linear(2, 2)}, False),
])  # fmt: skip
def test_small_shares_of_batchnorm_are_named(change, warned):
    values = {"batch_size": 128, "accumulation": 1, "sync_batchnorm": False, "processes": 8}
    values |= {"asked": None, "model": nn.BatchNorm2d(3)} | change
    training = SimpleNamespace(**values)
    recipe = SimpleNamespace(training=training, processes=values["asked"])
    run: Any = SimpleNamespace(recipe=recipe, processes=values["processes"], model=values["model"])
    assert bool(_small_share(run)) == warned
