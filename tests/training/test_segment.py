"""What training wraps a network in, autocast and compilation, ends where pruning looks at it."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from prunezoo.models.layers import conv_bn_relu, named
from prunezoo.models.zoo import MODELS, Entry
from prunezoo.pruning import channel_pruning
from prunezoo.training import build, loop, segment
from prunezoo.training.build import build_model
from tests.support.runs import DIGITS, losses, summary

SMALL = ("training.duration=2ep", "training.batch_size=192", "model.options.width=0.5")
CHANNELS = "granularity: channel, channels: 50%, application: surgery"
SURGERY = f"pruning={{criterion: taylor, {CHANNELS}, schedule: {{start: 1ep}}}}"
HALF = (*SMALL, "training.precision=bf16", SURGERY)
BUCKETS = (
    "pruning={criterion: activation_taylor, granularity: channel, scope: layer, channels: 50%,"
    " floor: 0.001, application: surgery, calibration: {batch_size: 64}, selection: {name: bep,"
    " protocol: buckets, every: 2, bucket: 4, latents: 2, dense_latents: 2, draws: 100},"
    " schedule: {start: 1ep, every: 1ep, end: 100%, curve: constant}}"
)


@pytest.fixture(autouse=True)
def half_precision(monkeypatch):
    """Let bf16 run on any CPU; slow where it is emulated."""
    monkeypatch.setattr(build, "_cpu_has_bf16", lambda: True)


@pytest.fixture
def one_convolution(monkeypatch):
    """The name of a network that is quick to compile."""

    def build(num_classes: int, in_channels: int) -> nn.Sequential:
        features = (*conv_bn_relu(in_channels, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return named(features=nn.Sequential(*features), classifier=nn.Linear(16, num_classes))

    monkeypatch.setitem(MODELS, "one_convolution", Entry(build, channels=1, size=8))
    return "one_convolution"


@pytest.fixture
def compiled(monkeypatch):
    """Tracing and gradients as the compiler makes them, without the code that it would generate."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, mode=None: compile_module(self, backend="aot_eager")
    )
    torch.compiler.reset()
    torch.compiler.set_stance("default")  # a run that a test broke off may have left another
    counters.clear()
    yield counters
    torch.compiler.reset()


def test_every_step_is_in_the_recipe_s_precision(run_recipe, monkeypatch):
    """Before and after a pruning."""
    step, types = loop.train_step, []

    def watched(run, batch):
        convolution = next(m for m in run.model.modules() if isinstance(m, nn.Conv2d))
        hook = convolution.register_forward_hook(lambda *words: types.append(words[-1].dtype))
        step(run, batch)
        hook.remove()

    monkeypatch.setattr(loop, "train_step", watched)
    status, folder = run_recipe(DIGITS, *HALF, "log.every=1it")
    assert status == 0
    assert types == [torch.bfloat16] * len(losses(folder))


def test_an_interrupted_run_in_half_precision_ends_as_an_undisturbed_one(run_recipe, crash):
    settings = (*HALF, "log.every=1it", "checkpoint.every=5it")
    _, whole = run_recipe(DIGITS, *settings, folder="whole")
    crash(*settings, step=12)
    status, resumed = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    assert status == 0
    assert losses(resumed) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("criterion", "precision"), [("snip", "bf16"), ("grasp", "fp32")])
def test_scores_inside_a_segment_are_those_of_the_plain_network(
    run_recipe, compiled, monkeypatch, criterion, precision
):
    """A trigger ranks after every epoch, while training is compiled or in half precision too.

    A scoring batch is as large as a training batch, so that compiled code would serve for both.
    """
    unit_scores, seen = channel_pruning.unit_scores, []

    def compared(config, state, *words, **options):
        scores = unit_scores(config, state, *words, **options)
        plain = copy.copy(state)
        plain.model = build_model(state.recipe, state.data.info, state.device)
        plain.model.load_state_dict(state.model.state_dict())
        torch.testing.assert_close(scores, unit_scores(config, plain, *words, **options))
        seen.append(all(score.abs().sum() > 0 for score in scores.values()))
        return scores

    monkeypatch.setattr(channel_pruning, "unit_scores", compared)
    trigger = "{trigger: {name: mask_distance, previous: 1, distance: 0.0}, latest: 3ep}"
    calibration = "calibration: {batch_size: 192}"
    pruning = f"{{criterion: {criterion}, {CHANNELS}, {calibration}, schedule: {trigger}}}"
    how = ("training.compile=true", f"training.precision={precision}", "training.duration=4ep")
    status, _ = run_recipe(DIGITS, *SMALL, *how, f"pruning={pruning}")
    assert status == 0
    assert len(seen) > 2
    assert all(seen)


@pytest.mark.parametrize(
    ("application", "graphs"), [("mask", 1), ("mask_then_surgery", 2), ("surgery", 4)]
)
def test_only_a_change_of_shapes_compiles_again(run_recipe, compiled, application, graphs):
    schedule = "schedule: {start: 2it, every: 2it, rounds: 3}"
    kind = f"criterion: magnitude, granularity: channel, channels: 50%, application: {application}"
    status, _ = run_recipe(DIGITS, *SMALL, f"pruning={{{kind}, {schedule}}}", "training.compile=on")
    assert status == 0
    assert compiled["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize(
    ("rounds", "steps"),
    [
        ("schedule: {start: 100%, rounds: 3}, rewind: 5it", 14 + 3 * 9),
        ("schedule: {start: 100%}", 14),
    ],
)
def test_a_network_is_wrapped_once_however_often_masks_rewind_it(
    run_recipe, monkeypatch, rounds, steps
):
    """And the wrappers' memory is free once the run is over."""
    wrap, runs = segment._wrapped, []
    monkeypatch.setattr(segment, "_wrapped", lambda run: (runs.append(run), wrap(run))[1])
    tickets = f"pruning={{criterion: magnitude, sparsity: 70%, {rounds}}}"
    status, folder = run_recipe(DIGITS, *SMALL, tickets)
    assert status == 0
    assert summary(folder)["run/steps"] == steps
    (run,) = runs
    assert run.wrapped is None


@pytest.mark.slow
def test_steps_that_bep_reads_run_uncompiled(run_recipe, compiled):
    status, _ = run_recipe(DIGITS, *SMALL, BUCKETS, "training.compile=true")
    assert status == 0
    assert not compiled["graph_break"]
    assert compiled["stats"]["unique_graphs"] == 2  # one a segment


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(
            ("training.ema={decay: 0.9}", "training.accumulation=2"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_compiled_run_ends_as_one_that_is_not(run_recipe, compiled, more):
    """Two events: one graph for each of three networks, and the same bits."""
    twice = SURGERY.replace("{start: 1ep}", "{start: 3it, every: 6it, rounds: 2}")
    settings = (*SMALL, "log.every=1it", twice, *more)
    _, plain = run_recipe(DIGITS, *settings, folder="plain")
    status, folder = run_recipe(DIGITS, *settings, "training.compile=on", folder="compiled")
    assert status == 0
    assert compiled["stats"]["unique_graphs"] == 3
    assert not compiled["graph_break"]
    assert losses(folder) == losses(plain)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_generated_code_trains_as_torch_s_own_kernels(
    run_recipe, one_convolution, monkeypatch, tmp_path
):
    """Inductor's C++ through an event, an average and accumulation: one graph a segment.

    It adds in another order: √(192 images · 36 places) · 6e-8 of float32 is 5e-6 of a sum.
    """
    settings = (f"model={one_convolution}", *SMALL[:2], "log.every=1it", SURGERY)
    settings += ("training.ema={decay: 0.9}", "training.accumulation=2")
    _, plain = run_recipe(DIGITS, *settings, folder="plain")
    # a cache of its own: Inductor's forgets which instructions its code was made for
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "generated"))
    # other processes would import torch first, which takes longer than these few kernels
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    torch.compiler.reset()
    counters.clear()
    status, folder = run_recipe(DIGITS, *settings, "training.compile=on", folder="compiled")
    torch.compiler.reset()
    assert status == 0
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_hit"]
    assert losses(folder) == pytest.approx(losses(plain), rel=5e-6)
    assert losses(folder) != losses(plain)  # or nothing was generated
    first, second = (summary(each) for each in (plain, folder))
    for key in ("prune/hash", "model/params", "eval/images"):
        assert first[key] == second[key]
