"""Strided 1×1 convolutions, and the bug of oneDNN that they are kept from."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunezoo import models
from prunezoo.models.axes.find import axes
from prunezoo.models.pointwise import subsample_first
from prunezoo.schema.recipe import load
from prunezoo.training.build import placed

ROOT = Path(__file__).resolve().parents[2]
CRASH = """
import sys, torch
import prunezoo
from prunezoo.models.pointwise import subsample_first
torch.set_num_threads(1)
last = torch.channels_last
layer = torch.nn.Conv2d(int(sys.argv[1]), 12, 1, stride=2, bias=False).to(memory_format=last)
if sys.argv[2] == "mended":
    subsample_first(layer)
images = torch.randn(32, int(sys.argv[1]), 64, 64).to(memory_format=last)
for _ in range(30):
    layer(images).square().sum().backward()
    kept = [torch.zeros(1000) for _ in range(100)]
few = layer.weight.grad / 30
exact = layer.weight.detach().double().requires_grad_()
torch.conv2d(images.double(), exact, stride=2).square().sum().backward()
assert (few - exact.grad).abs().max() < 1e-4 * exact.grad.abs().max()
"""


def ends(channels, how):
    command = [sys.executable, "-c", CRASH, str(channels), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("channels", [4, 11, 15])
def test_few_channels_neither_crash_nor_give_another_gradient(channels):
    done = ends(channels, "mended")
    assert done.returncode == 0, done.stderr


def network(few):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, few, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(few, 20, 1, stride=2),
        nn.ReLU(),
        nn.Conv2d(20, 6, 1, stride=(1, 2)),
        nn.Conv2d(6, 4, 1, stride=(1, 3), bias=False),
    )
    return net.to(memory_format=torch.channels_last)


def passed(net, images):
    outputs = net(images)
    slopes = torch.autograd.grad(outputs.square().sum(), list(net.parameters()))
    return outputs, *slopes


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("few", [9, 15, 16])
def test_results_and_gradients_are_those_of_the_strided_layer(few, layout):
    images = torch.randn(2, 3, 16, 24).double().contiguous(memory_format=layout)
    plain = network(few).double()
    mended = subsample_first(copy.deepcopy(plain))
    for a, b in zip(passed(plain, images), passed(mended, images), strict=True):
        torch.testing.assert_close(b, a)
        assert b.stride() == a.stride()


def test_a_copy_reads_by_its_own_weights():
    mended = network(9)
    subsample_first(mended)
    copied = copy.deepcopy(mended)
    nn.init.zeros_(copied.get_parameter("2.weight"))
    images = torch.randn(2, 3, 16, 16)
    assert mended[:3](images).flatten(2).std(2).sum() > 0
    assert copied[:3](images).flatten(2).std(2).sum() == 0


def test_layers_that_are_not_meant_stay_as_they_are():
    class Own(nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return F.conv2d(input, weight, bias, self.stride)

    kept = [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 4, 1, stride=2, padding=1),
        nn.Conv2d(4, 4, 1, stride=2, groups=2),
        nn.Conv1d(4, 4, 1, stride=2),
        Own(4, 4, 1, stride=2),
    ]
    assert not any("_conv_forward" in vars(layer) for layer in map(subsample_first, kept))


def test_channels_below_and_above_the_block_are_pruned_as_before():
    plain = models.build("resnet56", num_classes=10, depth=8, option="B", width=1.5)
    image = torch.randn(1, 3, 32, 32)
    mended = subsample_first(copy.deepcopy(plain))
    assert any("_conv_forward" in vars(layer) for layer in mended.modules())
    assert axes(mended, image).widths == axes(plain, image).widths
    assert axes(mended, image).fixed == axes(plain, image).fixed


@pytest.mark.parametrize("last", [True, False])
def test_training_on_the_cpu_with_channels_last_is_kept_from_it(last):
    recipe, _ = load(
        ROOT / "recipes/base/cifar10/resnet8_short.yaml",
        [f"training.channels_last={str(last).lower()}"],
    )
    net = models.build("resnet56", num_classes=10, depth=8, option="B")
    placed(net, recipe, torch.device("cpu"))
    mended = [name for name, layer in net.named_modules() if "_conv_forward" in vars(layer)]
    assert len(mended) == (2 if last else 0)
