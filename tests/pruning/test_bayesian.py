import copy
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from benchmarks.kill import outcome
from prunezoo import models
from prunezoo.models.axes.find import axes
from prunezoo.pruning.amount.budget import Ask
from prunezoo.pruning.amount.scope import floors
from prunezoo.pruning.amount.sizes import Sizes, positions
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.selection.bep.forecast import fit
from prunezoo.pruning.selection.bep.past_forecasts import PastForecasts
from prunezoo.pruning.selection.bep.saliency import History, Taps
from prunezoo.pruning.selection.bep.sizes import final_sizes
from prunezoo.training.folder.log import read
from tests.support.runs import (
    DIGITS,
    SYNTHETIC,
    launch_several,
    losses,
)
from tests.support.small_training import CHANNEL, STEPS, Training, recipe
from tests.support.tiers import slow_but

SMALL = (
    "training.duration=4ep",
    "data.validation=60%",  # leaves 8 steps an epoch
    "checkpoint.every=3it",
    "model.options.width=0.5",
)
BEP = (
    "pruning={criterion: activation_taylor, granularity: channel, scope: layer, channels: 50%,"
    " application: surgery, schedule: {start: 1ep, every: 1ep, end: 100%, curve: constant},"
    " selection: {name: bep, latents: 2, dense_latents: 2, draws: 500, steps: 5}}"
)
BUCKETS = (
    "pruning.selection.protocol=buckets",
    "pruning.selection.every=2",
    "pruning.selection.bucket=5",
)
LITE = ("pruning.schedule.initial=on", "pruning.selection.overhead=0.3")
FORECAST = CHANNEL | {
    "criterion": "activation_taylor",
    "scope": "layer",
    "schedule": {"start": "1ep", "curve": "constant"},
}
FEW = {
    "name": "bep",
    "protocol": "buckets",
    "every": 1,
    "bucket": 2,
    "latents": 2,
    "dense_latents": 2,
    "steps": 2,
    "draws": 200,
}


def events(folder: Path) -> list[dict]:
    return [r for r in read(folder / "log.jsonl") if "prune/layers" in r and "eval/loss" not in r]


def widths(event: dict) -> dict[str, int]:
    return {axis: counts["kept"] for axis, counts in event["prune/layers"].items()}


@pytest.mark.parametrize("extra", slow_but([(BUCKETS,)], [((),), (BUCKETS,), (LITE,)]))
def test_every_layer_ends_at_its_size_and_never_grows(run_recipe, extra):
    status, folder = run_recipe(DIGITS, *SMALL, BEP, *extra)
    assert status == 0
    prunings = events(folder)
    at = [event["step"] for event in prunings]
    assert at == [0] * ("schedule.initial" in str(extra)) + [8, 16, 24]
    sizes = [widths(event) for event in prunings]
    for before, after in pairwise(sizes):
        assert all(after[axis] <= before[axis] for axis in after)
    for counts in prunings[-1]["prune/layers"].values():
        assert counts["kept"] == counts["of"] // 2
    if not extra:
        assert any(sizes[0][axis] > sizes[-1][axis] for axis in sizes[0])


@pytest.mark.parametrize(
    "options",
    slow_but(
        [(("forecast=latest",),), (("untrained=off", "trend=off"),)],
        [
            (("forecast=latest",),),
            (("forecast=gp", "steps=2"),),
            (("forecast=smoothed",),),
            (("kernel=decay_constant", "prior=none", "steps=30"),),  # as by default
            (("inference=variational", "kernel=decay_constant"),),
            (("untrained=off", "trend=off"),),
        ],
    ),
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_other_forecasters_decide_by_the_same_algorithm(run_recipe, options):
    extra = [f"pruning.selection.{option}" for option in options]
    status, folder = run_recipe(DIGITS, *SMALL, BEP, *extra)
    assert status == 0
    for counts in events(folder)[-1]["prune/layers"].values():
        assert counts["kept"] == counts["of"] // 2
    first = load_file(folder / "saliency.safetensors")["times"][0].item()
    assert (first > 0) == ("untrained=off" in options)


@pytest.mark.slow
def test_the_latest_measurement_may_choose_among_as_many(run_recipe):
    only = BEP.replace("start: 1ep", "start: 3ep")
    _, folder = run_recipe(DIGITS, *SMALL, only, "pruning.selection.choose=latest")
    never = BEP.replace("start: 1ep, every: 1ep, end: 100%", "start: 100%")
    _, dense = run_recipe(DIGITS, *SMALL, never)
    left, all_units = (load_file(f / "saliency.safetensors") for f in (folder, dense))
    last = int((left["times"] <= 3).sum()) - 1
    for axis, size in widths(events(folder)[0]).items():
        best = all_units[axis][last].topk(size).values
        assert torch.equal(left[axis][last].sort(descending=True).values, best)


def test_decisions_before_the_second_pause_need_the_first(run_recipe, capsys):
    early = ("pruning.schedule.start=2it", "pruning.selection.untrained=off")
    status, _ = run_recipe(DIGITS, *SMALL, BEP, *early)
    assert status == 2
    assert "schedule.start: 4it" in capsys.readouterr().err  # pauses at 0, 3 and 5 of 8 steps


@pytest.mark.slow
def test_decisions_that_end_early_end_at_the_size_too(run_recipe):
    early = BEP.replace("end: 100%", "end: 2ep")
    assert early != BEP
    status, folder = run_recipe(DIGITS, *SMALL, early)
    prunings = events(folder)
    assert (status, [event["step"] for event in prunings]) == (0, [8, 16])
    assert all(c["kept"] == c["of"] // 2 for c in prunings[-1]["prune/layers"].values())


@pytest.mark.slow
def test_forecasts_are_logged_against_what_came_true(run_recipe):
    _, folder = run_recipe(DIGITS, *SMALL, BEP, "pruning.selection.penalty=1e-7")
    lines = [r for r in read(folder / "log.jsonl") if "forecast/truth" in r]
    last = widths(events(folder)[-1])
    assert {line["forecast/layer"] for line in lines} == set(last)
    history = load_file(folder / "saliency.safetensors")
    for line in lines:
        truth = torch.tensor(line["forecast/truth"], dtype=torch.float64)
        assert len(truth) == len(line["forecast/mean"]) == last[line["forecast/layer"]]
        assert min(line["forecast/sd"]) >= 0
        assert torch.equal(truth, history[line["forecast/layer"]][-1].double())


def test_a_truth_beyond_the_bound_of_its_decision_is_not_clipped():
    """Saliency doubles once it is forecast: an error of the forecast, in saliency's own unit."""
    times = torch.arange(6, dtype=torch.float64) / 3
    measured = torch.full((6, 3), 0.02, dtype=torch.float64)
    forecast = fit(times, measured, latents=2)
    past = PastForecasts()
    past.add("a", forecast, torch.tensor([True, True, True]), (2.0, 3.0, 4.0))
    now = torch.full((3,), 0.04, dtype=torch.float64)
    (line,) = past.records({"a": now})
    assert line["forecast/truth"] == now.tolist()
    assert forecast.scaling.upper < 0.04
    unit = forecast.scaling.upper / 10
    assert line["forecast/mean"] == pytest.approx((forecast.mean(4.0) * unit).tolist())
    error = forecast.mean(3.0) * unit - now
    assert past.error("a", now) == pytest.approx(float(error.square().mean().sqrt()))


def test_saliency_is_measured_thrice_an_epoch_and_training_does_not_notice(run_recipe):
    record = BEP.replace("start: 1ep, every: 1ep, end: 100%", "start: 100%")
    small = (*SMALL, "training.duration=2ep")
    _, plain = run_recipe(DIGITS, *small, folder="plain")
    _, watched = run_recipe(DIGITS, *small, record, folder="watched")
    assert losses(watched) == losses(plain)
    history = load_file(watched / "saliency.safetensors")
    steps = history.pop("times") * 8
    assert steps.tolist() == pytest.approx([0, 3, 5, 8, 11, 13, 16])
    final = widths(events(watched)[0])
    for axis, S in history.items():
        best = S[-1].topk(final[axis]).values.min()
        assert (S[-1] >= best).sum() == final[axis] == S.shape[1] // 2


def decided(schedule: dict, *, crash: bool = False, older: bool = False) -> tuple[list, int]:
    """The layers of rounds at 2, 3 and 4 epochs, a crash after the first or not; and T0 in steps.

    An older checkpoint does not say when rounds began.
    """
    training = Training(epochs=6)
    config = recipe(
        **FORECAST | {"schedule": schedule | {"rounds": 3, "every": "1ep", "curve": "constant"}},
        selection=FEW | {"penalty": 1e-9},
    )
    pruner = Pruner(config, training)
    if crash:
        training.run(pruner, until=24)
        stored = pruner.state_dict()
        values = json.loads(json.dumps(stored["values"]))
        if older:
            del values["method"]["selection"]["began"]
        training = copy.deepcopy(training)
        pruner = Pruner(config, training)
        pruner.load_state_dict(stored | {"values": values}, training)
    training.run(pruner)
    method: Any = pruner.method
    return [event["prune/layers"] for event in training.records], method.selection.began


def test_rounds_that_a_trigger_begins_are_planned_from_there():
    trigger = {"name": "random_epoch", "first": 2, "last": 2}
    told, begun = {"start": "2ep"}, {"start": "1ep", "trigger": trigger}
    expected = decided(told)
    assert decided(begun) == expected
    assert decided(begun, crash=True) == expected
    assert decided(told, crash=True, older=True) == expected


# of buckets, the step after the checkpoint is read in one case: that after 3, not that after 6
CRASHES = [((), 8), ((), 11), (BUCKETS, 5), (BUCKETS, 8), (LITE, 8)]


@pytest.mark.parametrize(("extra", "step"), slow_but([((), 8)], CRASHES))
def test_a_crash_around_decisions_changes_nothing(run_recipe, whole_run, crash, extra, step):
    settings = (*SMALL, BEP, *extra, "pruning.selection.penalty=1e-6")
    whole = whole_run(DIGITS, *settings)
    crash(*settings, step=step)
    status, cut = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)
    ours, theirs = (load_file(folder / "saliency.safetensors") for folder in (whole, cut))
    assert {n: S.tolist() for n, S in theirs.items()} == {n: S.tolist() for n, S in ours.items()}


@pytest.mark.slow
def test_two_processes_decide_as_one(run_recipe, tmp_path):
    """In pauses; of buckets tests/training/test_elastic.py says it."""
    run = [DIGITS, *SYNTHETIC, BEP, "training.duration=4ep", "pruning.calibration.batch_size=16"]
    launch_several(tmp_path / "two", {"pauses": run})
    _, one = run_recipe(*run, folder="one")
    folders = one, tmp_path / "two" / "pauses"
    first, second = (json.loads((f / "summary.json").read_text()) for f in folders)
    assert first["prune/hash"] == second["prune/hash"]
    ours, theirs = (load_file(f / "saliency.safetensors") for f in folders)
    for axis, S in ours.items():  # stored in float32
        torch.testing.assert_close(theirs[axis], S, rtol=1e-5, atol=1e-9)


class Step:
    """As much of a training as a bucket asks for."""

    def __init__(self, gradient_scale: float) -> None:
        self.position, self.gradient_scale = 0, gradient_scale

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


@pytest.mark.parametrize("name", ["bep_small_cnn", "timm/resnet18", "timm/mobilenetv2_050"])
def test_training_steps_give_the_scores_that_a_pass_of_their_own_would(name):
    torch.manual_seed(0)
    model = models.build(name, num_classes=10).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    image = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    result = axes(model, image)
    taps = Taps(model, result, image, every=1, bucket=2)
    batches = [(torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.randint(10, (4,)))] * 2
    expected = CRITERIA["activation_taylor"](model, batches)
    # BatchNorm in evaluation mode, as the criterion has it; taps ask that the rest trains
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    step: Any = Step(gradient_scale=0.25 * 8)
    received = None
    for images, labels in batches:
        taps.prepare(step.position)
        loss = nn.functional.cross_entropy(model(images), labels, reduction="sum")
        (loss * step.gradient_scale).backward()
        received = taps.observe(step)
        step.position += 1
    assert received is not None
    for layer, score in received.items():
        # rounded to float32 before positions of both signs are summed: in parts of the largest
        wanted = expected[layer].float()
        atol = 1e-6 * float(wanted.max())
        torch.testing.assert_close(score, wanted, rtol=1e-5, atol=atol)
    units = {n: result.labels[n][0] for n in result.weights}
    scored = {n for n, ids in units.items() if ids is not None and (ids >= 0).any()}
    assert set(received) == scored


def test_tokens_are_positions_of_a_linear_layers_map():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.wide, self.out = nn.Linear(3, 12), nn.Linear(12, 16), nn.Linear(12, 4)
            self.act, self.back = nn.GELU(), nn.Linear(16, 12)

        def forward(self, x):
            x = self.into(x.flatten(2).mT)
            return self.out((x + self.back(self.act(self.wide(x)))).mean(1))

    torch.manual_seed(0)
    model = Tokens()
    images, labels = torch.randn(8, 3, 7, 1), torch.randint(4, (8,))
    expected = CRITERIA["activation_taylor"](model, [(images, labels)])
    taps = Taps(model, axes(model, images[:1]), images[:1], every=1, bucket=1)
    taps.prepare(0)
    nn.functional.cross_entropy(model(images), labels, reduction="sum").backward()
    step: Any = Step(gradient_scale=1.0)
    received = taps.observe(step)
    assert received is not None
    assert {"into.weight", "wide.weight", "back.weight"} <= set(received)
    for layer, score in received.items():
        torch.testing.assert_close(score, expected[layer], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_map_that_ends_at_a_module_of_several_calls_is_that_of_its_own(block):
    """torchvision's blocks have one ReLU, after each BatchNorm and after the addition."""
    torch.manual_seed(0)
    width = 8 * block.expansion
    down = nn.Sequential(nn.Conv2d(8, width, 1), nn.BatchNorm2d(width)) if width > 8 else None
    stem = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)]
    model = nn.Sequential(*stem, block(8, 8, downsample=down), *head).eval()
    images, labels = torch.randn(16, 3, 8, 8), torch.randint(4, (16,))
    found = axes(model, images[:1])
    expected = CRITERIA["activation_taylor"](model, [(images, labels)])
    taps = Taps(model, found, images[:1], every=1, bucket=1)
    taps.prepare(0)
    for part in (slice(0, 8), slice(8, 16)):  # two micro-batches of one step
        nn.functional.cross_entropy(model(images[part]), labels[part], reduction="sum").backward()
    step: Any = Step(gradient_scale=1.0)
    received = taps.observe(step)
    assert received is not None
    assert {"3.conv1.weight", "3.conv2.weight"} <= set(received)
    for layer, score in received.items():
        torch.testing.assert_close(score, expected[layer].float(), rtol=1e-4, atol=1e-7)


def test_products_of_half_precision_neither_overflow_nor_vanish():
    model = models.build("digits_cnn", num_classes=10, in_channels=1)
    image = torch.zeros(1, 1, 8, 8)
    taps = Taps(model, axes(model, image), image, every=1, bucket=1)
    (name, weight), *_ = ((n, w) for n, w in model.named_parameters() if w.dim() == 4)
    a = torch.tensor([20.0, 2.0**-14]).half().repeat(1, len(weight) // 2).view(1, -1, 1, 1)
    slope = torch.tensor([4000.0, 2.0**-14]).half().repeat(1, len(weight) // 2).view(1, -1, 1, 1)
    taps.take(name, a, slope)
    assert taps._sums[name][:2].tolist() == [80_000, 2.0**-28]


def test_calls_that_are_not_whole_passes_are_refused_with_a_remedy():
    class Deeper(nn.Module):
        """Runs its ReLU once more in training."""

        def __init__(self):
            super().__init__()
            self.conv, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
            self.relu, self.fc = nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x):
            x = self.relu(self.second(self.relu(self.conv(x)))).mean((2, 3))
            return self.fc(self.relu(x) if self.training else x)

    image = torch.zeros(1, 1, 8, 8)
    model = Deeper()
    taps = Taps(model, axes(model, image), image, every=1, bucket=1)
    taps.prepare(0)
    model.train()(torch.ones(2, 1, 8, 8)).sum().backward()
    step: Any = Step(gradient_scale=1.0)
    with pytest.raises(PruningError, match=r"relu, which runs 2 times.* ran 3 .*protocol: pauses"):
        taps.observe(step)


@pytest.mark.parametrize("bucket", [1, 2])
def test_a_bucket_is_of_the_middle_of_its_steps(bucket):
    training = Training()
    pruner = Pruner(recipe(**FORECAST, selection=FEW | {"bucket": bucket}), training)
    training.run(pruner, until=6)
    middles = [(begun + bucket / 2) / STEPS for begun in range(0, 6, bucket)]
    assert pruner.history()["times"].tolist() == pytest.approx(middles)


def test_no_step_is_waited_for_after_the_last():
    training = Training(epochs=2)
    at_the_end = {"application": "surgery", "schedule": {"start": "100%", "curve": "constant"}}
    pruner = Pruner(recipe(**FORECAST | at_the_end, selection=FEW), training)
    training.run(pruner)
    method: Any = pruner.method
    assert (len(training.records), method.selection.taps.armed) == (1, False)


def test_a_step_that_is_not_finite_counts_for_nothing():
    model = models.build("digits_cnn", num_classes=10, in_channels=1)
    image = torch.zeros(1, 1, 8, 8)
    taps = Taps(model, axes(model, image), image, every=1, bucket=3)
    step: Any = Step(gradient_scale=1.0)
    means = []
    for factor in (1.0, float("inf"), 1.0):
        taps.prepare(step.position)
        x = torch.ones(2, 1, 8, 8)
        model.train()
        (model(x).sum() * factor).backward()
        received = taps.observe(step)
        step.position += 1
        means.append(received)
    assert means[:2] == [None, None]
    assert all(torch.isfinite(score).all() for score in means[2].values())


def test_a_map_made_by_a_function_is_refused_with_a_remedy():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.conv(x).relu().mean((2, 3)))

    image = torch.zeros(1, 1, 8, 8)
    model = Functional()
    with pytest.raises(ValueError, match=r"conv.weight.*nn.ReLU.*protocol: pauses"):
        Taps(model, axes(model, image), image, every=1, bucket=1)


def test_survivors_keep_their_history():
    history = History()
    history.add(0.0, {"a": torch.tensor([1.0, 2, 3])})
    history.remove({"a": torch.tensor([True, False, True])})
    history.add(1.0, {"a": torch.tensor([4.0, 5])})
    assert history.of("a").tolist() == [[1, 3], [4, 5]]
    assert history.times.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("removed", "label"), [(0.7, 223_884), (0.8, 95_028), (0.9, 24_348), (0.95, 6_188)]
)
def test_sizes_are_those_of_table_3(removed, label):
    """2 × kernel weights are what the table prints, truncated: 223K, 95K, 24K, 6K."""
    model, image = models.build("bep_small_cnn", num_classes=10), torch.zeros(1, 3, 32, 32)
    result = axes(model, image)
    sizes = Sizes(result, positions(model, image))
    widths = {axis: result.widths[axis] for axis in sizes.prunable}
    ask = Ask("channels", removed, sum(widths.values()), floors(widths, 0.001), widths, "layer")
    kept = final_sizes(sizes, ask, result, None)
    keep = {axis: torch.arange(widths[axis]) < n for axis, n in kept.items()}
    assert 2 * sizes.of("weights", keep) == label


def test_residual_streams_lose_their_own_share_and_the_size_is_met():
    model, image = models.build("timm/resnet18", num_classes=10), torch.zeros(1, 3, 64, 64)
    result = axes(model, image)
    sizes = Sizes(result, positions(model, image))
    widths = {axis: result.widths[axis] for axis in sizes.prunable}
    dense = sizes.of("macs", {})
    ask = Ask("macs", 0.6, dense, floors(widths, 0.001), widths, "layer")
    kept = final_sizes(sizes, ask, result, 0.25)
    for axis, n in kept.items():
        if len(result.producers(axis)) > 1:
            assert n == 3 * widths[axis] // 4
    keep = {axis: torch.arange(widths[axis]) < n for axis, n in kept.items()}
    assert sizes.of("macs", keep) == pytest.approx(0.4 * dense, rel=0.005)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pruning.scope=global", "set scope: layer"),
        ("pruning.schedule.curve=linear", "schedule.curve: constant"),
        ("pruning.selection.protocol=pause", "pauses"),
        (
            re.sub("{name: bep.*?}", "top_k", BEP),
            "remove it",
        ),
    ],
)
def test_faults_say_what_to_write(run_recipe, capsys, setting, message):
    given = (setting, *LITE[:1]) if setting.startswith("pruning=") else (BEP, setting)
    status, _ = run_recipe(DIGITS, *SMALL, *given)
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_criterion_that_steps_do_not_give_needs_pauses(run_recipe, capsys):
    status, _ = run_recipe(DIGITS, *SMALL, BEP, *BUCKETS, "pruning.criterion=taylor")
    assert status == 2
    assert "activation_taylor" in capsys.readouterr().err
    status, _ = run_recipe(DIGITS, *SMALL, BEP, "pruning.criterion=taylor", folder="any")
    assert status == 0


@pytest.mark.slow
def test_the_permissive_cut_costs_what_is_allowed(run_recipe):
    _, folder = run_recipe(DIGITS, *SMALL, BEP, *LITE, "pruning.selection.flops=params")
    first = events(folder)[0]["prune/params_kept"]
    last = events(folder)[-1]["prune/params_kept"]
    overhead = (1 / 4) * (first / last - 1)  # (T0/T) (F(B_0)/F(B_s) − 1), methods B.12
    assert 0.2 < overhead <= 0.3 + 1e-9
