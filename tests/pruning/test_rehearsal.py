"""The rehearsal refuses what a round would refuse, and nothing that a round would not."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from prunezoo.models import zoo
from prunezoo.models.axes.find import axes
from prunezoo.pruning import rehearsal
from prunezoo.pruning.amount.budget import (
    Ask,
    BudgetError,
    check_floor,
    select_channels,
)
from prunezoo.pruning.amount.scope import floors
from prunezoo.pruning.amount.sizes import Sizes, positions
from prunezoo.pruning.compensation.compensations import COMPENSATIONS
from prunezoo.pruning.criteria import CRITERIA, Criterion
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.rehearsal import check_laboratory
from prunezoo.schema.laboratory import LaboratoryConfig
from prunezoo.schema.pruning import PruningConfig
from prunezoo.schema.recipe import RecipeError, load
from prunezoo.training.data.data import info
from prunezoo.training.ranks.shares import portions
from prunezoo.training.rehearsal import _smallest_share, rehearse
from tests.support.runs import DIGITS, ROOT
from tests.support.small_training import (
    STEPS,
    Training,
    images,
    network,
    recipe,
)
from tests.support.tiers import slow_but

check = partial(rehearsal.check, steps_per_epoch=STEPS, total_steps=4 * STEPS)


def plain() -> nn.Module:
    """Without BatchNorm."""
    return nn.Sequential(*(m for m in network().children() if not isinstance(m, nn.BatchNorm2d)))


class Twice(nn.Module):
    """One layer that runs twice, so that it has no map of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.again(F.relu(self.first(x))))))
        return self.last(x.mean((2, 3)))


class Written(nn.Module):
    """Channels of `second` cannot go: the code counts them. It has no BatchNorm either."""

    def __init__(self, num_classes: int = 4, in_channels: int = 1) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.last = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        return self.last(x.view(-1, 6, x.shape[2] * x.shape[3]).mean(2))


def training_of(model: nn.Module) -> Training:
    """On a network whose scales differ, as they do once it has been trained."""
    training = Training()
    training.model = copy.deepcopy(model)
    for module in training.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
    training.optimizer = training.new_optimizer()
    return training


def really(config: PruningConfig, model: nn.Module) -> str | None:
    """What a round on values says."""
    training = training_of(model)
    try:
        Pruner(config, training).prune(training)
    except PruningError as error:
        return str(error)
    return None


def rehearsed(config: PruningConfig, model: nn.Module, device: str = "meta") -> str | None:
    """What the rehearsal says."""
    image = torch.zeros(1, 1, 8, 8, device=device)
    model = copy.deepcopy(model).to(device)
    try:
        check(config, model, image)
    except PruningError as error:
        return str(error)
    return None


def agree(config: PruningConfig, model: nn.Module) -> str | None:
    """Both say the same, but for where the round stands in training."""
    said, forecast = really(config, model), rehearsed(config, model)
    assert (said is None) == (forecast is None), (said, forecast)
    if said is not None:
        assert said.removeprefix("pruning at step 0, round 1 of 1: ") == forecast
    return said


NETWORKS = {"plain": plain(), "normed": network(), "twice": Twice()}
UNITS = {"granularity": "channel", "channels": 0.5}


@pytest.mark.parametrize("model", slow_but(["normed"], NETWORKS))
@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_of_channels_are_judged_without_values(criterion, model):
    agree(recipe(criterion=criterion, **UNITS), NETWORKS[model])


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("criterion", [n for n in CRITERIA if CRITERIA[n].per == "weight"])
def test_criteria_of_weights_are_judged_without_values(criterion, model):
    agree(recipe(criterion=criterion, sparsity=0.5), NETWORKS[model])


def test_some_of_all_that_was_a_refusal():
    assert "choose channel_norm" in (agree(recipe(criterion="bn_scale", **UNITS), plain()) or "")
    assert "runs twice" in (agree(recipe(criterion="rs", **UNITS), Twice()) or "")


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("keys", [UNITS, {"sparsity": 0.5}])
def test_compensations_are_judged_without_values(compensation, keys, model):
    try:
        config = recipe(compensation=compensation, **keys)
    except ValidationError:
        return  # refused by the recipe itself
    agree(config, NETWORKS[model])


@pytest.mark.parametrize("amount", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("measure", ["channels", "params", "macs", "activation_bytes"])
@pytest.mark.parametrize("floor", [0.01, 0.3])
def test_sizes_that_floors_forbid_are_refused(measure, amount, floor):
    config = recipe(granularity="channel", floor=floor, tolerance=0.9, **{measure: amount})
    agree(config, network())


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
@pytest.mark.parametrize("sparsity", [0.5, 0.999, 0.9999])
def test_weights_that_floors_forbid_are_refused(scope, sparsity):
    said = really(recipe(sparsity=sparsity, scope=scope), network())
    assert (said is None) == (rehearsed(recipe(sparsity=sparsity, scope=scope), network()) is None)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    removed=st.floats(0, 0.999),
    floor=st.floats(0.01, 1),
    round_to=st.sampled_from([1, 3]),
    measure=st.sampled_from(["channels", "params", "macs", "activation_bytes"]),
)
def test_a_floor_is_too_high_where_no_ranking_can_meet_it(removed, floor, round_to, measure):
    sizes = Sizes(channels, positions(model, torch.zeros(1, 1, 8, 8)))
    widths = {axis: channels.widths[axis] for axis in sizes.prunable}
    dense = sizes.of(measure, {})
    ask = Ask(measure, removed, dense, floors(widths, floor), widths, "global", 0.9, round_to)
    scores = {axis: torch.rand(width) for axis, width in widths.items()}
    try:
        select_channels(scores, sizes, ask)
        said = ""
    except BudgetError as error:
        said = str(error)
    if "must stay" in said:
        with pytest.raises(BudgetError, match="what must stay alone has"):
            check_floor(sizes, ask)
    else:
        check_floor(sizes, ask)


model = network()
channels = axes(model, torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_with_negative_scores_are_known(criterion):
    scores = CRITERIA[criterion](training_of(model).model, [images(3, 16)])
    if any(bool((score < 0).any()) for score in scores.values()):
        assert CRITERIA[criterion].signed
    units = CRITERIA[criterion].by_unit(scores, channels)
    if not CRITERIA[criterion].is_signed({}):
        assert all(bool((score >= 0).all()) for score in units.values())


def test_a_rehearsal_leaves_the_network_as_it_was():
    training = training_of(network())
    before = copy.deepcopy(training.model.state_dict())
    bep = {"name": "bep", "protocol": "buckets", "bucket": 5, "every": 1}
    config = recipe(
        criterion="activation_taylor",
        scope="layer",
        selection=bep,
        schedule={"start": "1ep", "curve": "constant"},
        **UNITS,
    )
    training.model.train()
    check(config, training.model, training.example_input)
    after = training.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(m.training and not m._forward_hooks for m in training.model.modules())
    assert all(p.grad is None and p.device.type == "cpu" for p in training.model.parameters())


def test_axes_that_only_values_show_to_be_fixed_are_judged_with_values(monkeypatch):
    """A trace takes `second` for prunable and the criterion does not score it."""
    config = recipe(criterion="bn_scale", **UNITS)
    assert "bn_scale has no score for second" in (rehearsed(config, Written()) or "")
    assert rehearsed(config, Written(), "cpu") is None
    assert really(config, Written()) is None
    monkeypatch.setitem(zoo.MODELS, "written", zoo.Entry(Written))
    prunes = "pruning={criterion: bn_scale, granularity: channel, channels: 50%}"
    stated, _ = load(ROOT / DIGITS, ["model=written", prunes])
    rehearse(stated, info(stated.data))
    with pytest.raises(RecipeError, match=r"^pruning: criterion activation_taylor"):
        rehearse(*_with_a_criterion_that_lacks_a_layer(monkeypatch, stated))


class AllWritten(nn.Module):
    """Two convolutions that add up, and a reshape with the number of their channels."""

    def __init__(self, num_classes: int = 4, in_channels: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8 * 64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(F.relu(self.second(x) + x).view(-1, 512))


def test_a_network_whose_code_counts_all_channels_is_refused_before_training(monkeypatch):
    """By a dry run too, and a large network, which is not tried with values, is not."""
    config = recipe(**UNITS)
    said = rehearsed(config, AllWritten()) or ""
    assert "does not run with fewer channels (RuntimeError: " in said
    monkeypatch.setitem(zoo.MODELS, "all_written", zoo.Entry(AllWritten))
    prunes = "pruning={criterion: snip, granularity: channel, channels: 50%, application: surgery}"
    stated, _ = load(ROOT / DIGITS, ["model=all_written", prunes])
    with pytest.raises(RecipeError, match=r"written in the code .*; write flatten\(1\) for view"):
        rehearse(stated, info(stated.data))
    monkeypatch.setattr("prunezoo.training.rehearsal.TRIED", 0)
    rehearse(stated, info(stated.data))


def _with_a_criterion_that_lacks_a_layer(monkeypatch, stated):
    def lacking(model, batches, *, reduce=None):
        return {"last.weight": torch.ones(len(model.last.weight))}

    monkeypatch.setitem(CRITERIA, "activation_taylor", Criterion(lacking))
    criterion = stated.pruning.criterion.model_copy(update={"name": "activation_taylor"})
    pruning = stated.pruning.model_copy(update={"criterion": criterion})
    return stated.model_copy(update={"pruning": pruning}), info(stated.data)


def test_what_asks_for_values_is_left_to_its_round(monkeypatch):
    def looks(model, batches):
        weights = {f"{n}.weight": m.weight for n, m in model.named_modules() if hasattr(m, "bias")}
        assert all(w.abs().max().item() > 0 for w in weights.values())
        return {name: w.detach().abs() for name, w in weights.items()}

    monkeypatch.setitem(CRITERIA, "magnitude", Criterion(looks))
    assert agree(recipe(sparsity=0.5), plain()) is None


class Odd(torch.optim.SGD):
    """Its state has no shape that surgery knows."""

    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["odd"] = torch.zeros(parameter.numel() + 1)


def test_an_optimizer_that_surgery_cannot_slice_is_refused():
    image = torch.zeros(1, 1, 8, 8, device="meta")

    def make(model: nn.Module) -> Odd:
        return Odd(model.parameters(), lr=0.1)

    for application, refused in (("surgery", True), ("mask_then_surgery", True), ("mask", False)):
        config = recipe(**UNITS, application=application)
        if not refused:
            check(config, network().to("meta"), image, optimizer=make)
            continue
        with pytest.raises(PruningError, match=r"Odd: 0.weight: odd is .* use another"):
            check(config, network().to("meta"), image, optimizer=make)


def test_batches_divide_over_processes_and_classes():
    image, model = torch.zeros(1, 1, 8, 8, device="meta"), network().to("meta")
    check(recipe(criterion="snip", sparsity=0.5), model, image, processes=4)
    with pytest.raises(PruningError, match=r"of 32 images .* over 3 processes; write .*: 33"):
        check(recipe(criterion="snip", sparsity=0.5), model, image, processes=3)
    options = {"batches": 1, "batch_size": 30, "class_balanced": True}
    with pytest.raises(PruningError, match="30 images do not divide among 4 classes"):
        check(recipe(criterion="snip", sparsity=0.5, calibration=options), model, image)


def test_a_laboratory_is_tried_out():
    image = torch.zeros(1, 1, 8, 8, device="meta")

    def look(model: nn.Module, **keys) -> None:
        config = LaboratoryConfig.model_validate({"every": "1ep"} | keys)
        model = model.to("meta")
        check_laboratory(config, model, image, steps_per_epoch=STEPS, total_steps=4 * STEPS)

    look(network(), layers=["firstconv", "4"], padding="exact")
    with pytest.raises(PruningError, match="laboratory: no prunable layer is called 5"):
        look(network(), layers=["5"])
    with pytest.raises(PruningError, match="runs twice"):
        look(Twice())
    with pytest.raises(PruningError, match=r"iterative.start is step 50 and training ends at 40"):
        look(network(), iterative={"start": "5ep"})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 200), st.booleans(), st.integers(1, 4), st.integers(1, 4))
def test_the_smallest_share_is_the_smallest(size, count, drop_last, parts, processes):
    recipe, _ = load(
        ROOT / DIGITS,
        [
            f"training.batch_size={size}",
            f"training.accumulation={parts}",
            f"data={{name: synthetic, drop_last: {str(drop_last).lower()}, train_images: {count}}}",
        ],
    )
    ends = [size, *([] if drop_last or count % size == 0 else [count % size])]
    shares = [
        len(rows)
        for end in ends
        for rank in range(processes)
        for rows in portions(end, rank, processes, parts)
    ]
    assert _smallest_share(recipe, info(recipe.data), processes) == max(1, min(shares))
