"""Training on a pretended GPU: devices, waits of the host, layouts, resuming.

Kernels, streams, several GPUs, compiled code and CUDA graphs are not seen here.
"""

import json

import pytest
import torch
from accelerate import Accelerator

from prunezoo import models
from prunezoo.pruning.application.masks import Hold
from prunezoo.training import loop
from prunezoo.training.random import seed_layers
from tests.support.gpu_recipes import BETWEEN, RECIPES, SMALL, WAITING, between
from tests.support.pretend_gpu import Layout, Mixed, OnGPU
from tests.support.pretend_machine import NAME, pretended_gpu
from tests.support.runs import DIGITS, Crash, losses
from tests.support.tiers import slow_but

RESUMED = ("adam", "fp16, adam", "surgery", "epi", "bep, buckets")


@pytest.fixture
def on_gpu(run_recipe, monkeypatch):
    """Run a recipe on the pretended GPU, up to a power cut if asked: status, GPU and folder."""

    def run(*settings, cut=0, **options):
        after = loop.after_step

        def cutting(run):
            after(run)
            if run.work == cut:
                raise Crash

        with monkeypatch.context() as patched, pretended_gpu() as gpu:
            patched.setattr(loop, "after_step", cutting)
            try:
                status, folder = run_recipe(DIGITS, *SMALL, *settings, **options)
            except Crash:
                return None, gpu, None
        return status, gpu, folder

    return run


REFUSED = {
    "sum": lambda x: x + torch.ones(3),
    "list": lambda x: torch.cat([x, torch.ones(3)]),
    "index": lambda x: x.index_select(0, torch.tensor([0])),
    "generator": lambda x: torch.rand(3, device="cuda", generator=torch.Generator()),
    "mask": lambda x: torch._foreach_mul_([x], [torch.ones(3)]),
}
WAITS = {
    "item": lambda x: x.sum().item(),
    "condition": lambda x: bool(x.any()),
    "list": lambda x: x.tolist(),
    "copy": lambda x: x.cpu(),
    "boolean index": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_refuses_is_refused(name):
    with pretended_gpu(), pytest.raises(Mixed):
        REFUSED[name](torch.ones(3, device="cuda"))


@pytest.mark.parametrize("name", WAITS)
def test_what_the_host_waits_for_is_noted(name):
    with pretended_gpu() as gpu:
        x = torch.ones(3, device="cuda")
        assert isinstance(x * 2.0 + torch.tensor(1.0), OnGPU)  # a scalar of the CPU may take part
        assert not gpu.seen("wait")
        WAITS[name](x)
        assert gpu.seen("wait")


def test_states_of_another_layout_than_their_weights_are_refused():
    with pretended_gpu():
        weight = torch.nn.Parameter(torch.ones(4, 3, 2, 2, device="cuda"))
        weight.grad = torch.ones_like(weight)
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
        optimizer.step()
        momentum = optimizer.state[weight]["momentum_buffer"]
        last = momentum.to(memory_format=torch.channels_last)
        optimizer.state[weight]["momentum_buffer"] = last
        with pytest.raises(Layout):
            optimizer.step()


def test_a_mask_on_the_cpu_is_seen(on_gpu, monkeypatch, capsys):
    held = Hold._held_moments
    monkeypatch.setattr(Hold, "_held_moments", lambda h: [(m, x.cpu()) for m, x in held(h)])
    assert on_gpu(*RECIPES["weights"])[0] == 1
    assert "unexpected Mixed" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_latencies")
@pytest.mark.parametrize("name", slow_but(["masks"], RECIPES))
def test_tensors_are_on_one_device_and_a_step_waits_for_nothing(on_gpu, name):
    status, gpu, folder = on_gpu(*RECIPES[name])
    assert status == 0
    assert json.loads((folder / "summary.json").read_text())["run/device"] == NAME
    assert gpu.seen("wait", inside="evaluate")  # as its figures are read
    assert bool(gpu.seen("wait", inside="train_step")) == (name in WAITING)
    assert not gpu.seen("one by one", inside="train_step")
    assert between(gpu).keys() <= BETWEEN.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_resuming_on_a_gpu_is_exact(on_gpu, name):
    settings = (*RECIPES[name], "log.every=1it", "checkpoint.every=5it")
    _, _, whole = on_gpu(*settings, folder="whole")
    assert on_gpu(*settings, folder="cut", cut=12)[0] is None
    status, _, resumed = on_gpu(*settings, folder="cut", resume=True)
    assert status == 0
    assert losses(resumed) == losses(whole)


def test_sgd_is_not_fused_where_the_first_step_may_be_skipped(on_gpu, monkeypatch):
    """Its momentum would be memory that nothing was written to, which may hold anything."""
    init, step, skipped, fused = Accelerator.__init__, loop.train_step, [], []

    def scaled(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.scaler = torch.amp.GradScaler("cuda", init_scale=1e9)

    def watched(run, batch):
        before = run.accelerator.scaler.get_scale()
        step(run, batch)
        skipped.append(run.accelerator.scaler.get_scale() < before)
        fused.extend(group.get("fused") for group in run.optimizer.param_groups)

    monkeypatch.setattr(Accelerator, "__init__", scaled)
    monkeypatch.setattr(loop, "train_step", watched)
    status, _, _ = on_gpu("training.precision=fp16", "training.duration=3it")
    assert status == 0
    assert skipped[0]
    assert not any(fused)


@pytest.mark.parametrize(("name", "pixels"), [("earlycrop_resnet18", 64), ("earlycrop_vgg16", 64)])
def test_earlycrops_networks_can_be_deterministic(name, pixels):
    """`training.deterministic`: a GPU refuses the backward pass of the adaptive pool."""
    with pretended_gpu():
        pool = torch.nn.AdaptiveAvgPool2d(2)
        torch.use_deterministic_algorithms(True)
        try:
            image = torch.rand(2, 3, 6, 6, device="cuda", requires_grad=True)
            with pytest.raises(RuntimeError, match="deterministic"):
                pool(image).sum().backward()
            model = models.build(name, num_classes=10, width=0.02).to("cuda")
            model(torch.rand(2, 3, pixels, pixels, device="cuda")).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)


def test_layers_draw_the_same_whatever_drew_before():
    with pretended_gpu():
        device = torch.device("cuda")
        seed_layers(device, 5)
        first = torch.rand(3), torch.cuda.default_generators[0].initial_seed()
        seed_layers(device, 5)
        assert torch.equal(torch.rand(3), first[0])
        assert first[1] == 5
