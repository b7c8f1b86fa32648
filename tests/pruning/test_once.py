"""One call: the words of a recipe, what it leaves, and what it refuses."""

import copy
import functools
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunezoo.models import build
from prunezoo.models.count import count
from prunezoo.models.errors import ModelError
from prunezoo.pruning import Criterion, PruningError, latency_table, prune_once
from prunezoo.pruning.amount.latency import Latency
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.errors import BudgetError, NoEffect
from prunezoo.pruning.pruner import Pruner
from prunezoo.tasks import Regression, Targets, Task, TaskError
from tests.support.small_training import Training, images, network, recipe

IMAGE = torch.zeros(1, 1, 8, 8)
BATCHES = [images(1, 32), images(2, 32)]
NAMES = {"conv1": "0", "conv2": "4", "hidden": "9", "last": "11"}  # of network()'s layers


def widths(model):
    return [len(model[int(name)].weight) for name in NAMES.values()]


def macs(model):
    return count(model, IMAGE).macs


def left(criterion="magnitude", **words):
    """A fresh network after one call, and what the call said."""
    model = network()
    return model, prune_once(model, IMAGE, criterion=criterion, **words)


class Fixed(Training):
    """A training whose calibration images are BATCHES."""

    def calibration(self, *sizes, **options):
        return iter(BATCHES)


SECTIONS = [
    {"macs": "50%"},
    {"macs": 0.3, "scope": "layer", "round_to": 4},
    {"params": 0.5, "criterion": "snip", "tolerance": "2%", "floor": 0.25},
    {"channels": 0.5, "except": ["4", "classifier"], "criterion": {"name": "grasp"}},
    {"channels": 0.5, "importance": {"normalise": "mean", "reduce": "max", "per": "macs"}},
    {"compression_ratio": 4, "criterion": "random"},
    {"nodes": "40%", "criterion": "taylor", "compensation": "mean_replacement"},
    {"activation_bytes": 0.3, "compensation": "bn_recalibrate", "criterion": "synflow"},
    {"channels": 0.5, "compensation": {"name": "least_squares", "ridge": 0.01}},
]


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_a_call_does_what_a_recipe_of_the_same_words_does(section):
    """To the bit: weights, averaged copy, and momenta after a step more."""

    def trained():
        training = Fixed(averages=True)
        training.run(Pruner(recipe(sparsity=0.5, schedule={"start": "4ep"}), training), until=5)
        return training

    theirs, ours = trained(), trained()
    settings = section | {"granularity": "channel", "application": "surgery"}
    pruner = Pruner(recipe(**settings), theirs)
    pruner.prune(theirs)
    words = {"except_" if word == "except" else word: value for word, value in section.items()}
    words = {"criterion": "magnitude"} | words  # of recipe()
    given = {"batches": BATCHES, "optimizer": ours.optimizer, "ema": ours.ema}
    result = prune_once(ours.model, IMAGE, **words, **given)
    assert sum(ours.widths()) < sum(network_widths())
    assert result.widths == pruner.method.axes.widths
    for training in (theirs, ours):
        loss = F.cross_entropy(training.model(BATCHES[0][0]), BATCHES[0][1])
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
    for a, b in ((ours.model, theirs.model), (ours.ema, theirs.ema)):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


def network_widths():
    return widths(network())


@pytest.mark.parametrize("amount", ["macs", "params", "activation_bytes"])
def test_amounts_are_written_as_in_a_recipe(amount):
    share, half = (left(**{amount: a}, tolerance=0.01) for a in ("50%", 0.5))
    assert widths(share[0]) == widths(half[0])
    dense, now = half[1].sizes[amount]
    assert 0.495 * dense <= now <= 0.5 * dense
    assert now == getattr(count(half[0], IMAGE), amount)


def test_the_result_says_what_stayed_and_prints_it():
    model, result = left(channels=0.5, floor=0.25)
    assert result.widths == {axis: int(kept.sum()) for axis, kept in result.keep.items()}
    assert list(result.widths.values()) == widths(model)[:3]
    assert result.sizes["macs"] == (macs(network()), macs(model))
    assert result.fixed["11"] == "the network's output"
    said = str(result).splitlines()
    now, dense = macs(model), macs(network())
    assert f"MACs left: {now:,} of {dense:,} ({100 * now / dense:.1f} %)" in said
    assert f"0: {result.widths['0']} of 8" in "\n".join(said)


def test_axes_at_their_floor_are_named():
    """By a criterion that wants all of the second layer gone, and nothing else."""

    def dislikes(model, batches):
        return {f"{n}.weight": torch.full_like(model[int(n)].weight, float(n != "4"))
                for n in NAMES.values()}  # fmt: skip

    for words, least in (({"floor": 0.25}, 4), ({"floor": 0.2, "round_to": 2}, 4), ({}, 1)):
        model, result = left(dislikes, channels=0.3, **words)
        assert len(model[4].weight) == least
        assert result.at_floor == ["4"]
        assert f"4: {least} of 16, its floor" in str(result)
    model, result = left(dislikes, channels=0.25)
    assert len(model[4].weight) == 4
    assert result.at_floor == []
    assert "floor" not in str(result)


def test_one_unit_before_the_classifier_is_a_warning():
    def dislikes(model, batches):
        return {f"{n}.weight": torch.full_like(model[int(n)].weight, float(n != "9"))
                for n in NAMES.values()}  # fmt: skip

    model, result = left(dislikes, channels=23 / 48)
    assert len(model[9].weight) == 1
    (warning,) = result.warnings
    assert warning == (
        "warning: 9: 1 of 24 units is left before 11, which has one number to tell its classes"
        ' apart by; prune less, set floor, or write except_=["9"]'
    )
    assert str(result).endswith(warning)
    assert len(left(dislikes, channels=23 / 48, except_=["9"])[0][9].weight) == 24
    floored, result = left(dislikes, channels=23 / 48, floor=0.1)
    assert len(floored[9].weight) == 3
    assert result.warnings == []
    assert left(channels=0.5)[1].warnings == []


def test_a_function_of_ones_own_is_a_criterion():
    half = {"channels": 0.5}

    def mine(model, batches, *, seed=0, factor=1.0):
        images, _ = next(iter(batches))
        assert images.shape == (32, 1, 8, 8)
        return {n: factor * p.detach().abs() for n, p in model.named_parameters() if p.dim() > 1}

    like_magnitude = Criterion(mine, reduce="l2", members="concat")
    ours, _ = left(like_magnitude, **half, batches=BATCHES)
    assert widths(ours) == widths(left(**half)[0])
    inverted = Criterion(functools.partial(mine, factor=-1.0), reduce="sum", signed=True)
    assert widths(left(inverted, **half, batches=BATCHES)[0]) != widths(ours)
    summed = {n: s.sum((1, 2, 3)) if s.dim() == 4 else s.sum(1)
              for n, s in mine(network(), BATCHES).items()}  # fmt: skip
    per_channel = left(lambda model, batches: summed, **half)[0]
    assert widths(per_channel) == widths(left(mine, **half, batches=BATCHES)[0])


def test_a_name_takes_options_as_in_a_recipe():
    def drawn(seed):
        _, result = left({"name": "random", "seed": seed}, channels=0.5)
        return {axis: kept.tolist() for axis, kept in result.keep.items()}

    assert drawn(1) == drawn(1) != drawn(2)


SHAPE_ONLY = [name for name, criterion in CRITERIA.items() if criterion.shape_only]


@pytest.mark.parametrize("name", SHAPE_ONLY)
def test_no_batches_are_needed_where_only_the_shape_of_images_counts(name):
    spared = ["9"] if name == "bn_scale" else []  # which has no BatchNorm

    def pruned(**given):
        model = network()
        nn.init.uniform_(model[1].weight, generator=torch.Generator().manual_seed(0))
        prune_once(model, IMAGE, criterion=name, channels=0.3, except_=spared, **given)
        return widths(model)

    assert pruned() == pruned(batches=BATCHES)
    assert sum(pruned()) < sum(network_widths())


def test_batches_may_be_an_iterator_and_are_gone_through_twice():
    words = {"criterion": "snip", "macs": 0.5, "compensation": "bn_recalibrate"}
    models = [left(**words, batches=batches)[0] for batches in (BATCHES, iter(BATCHES))]
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name])


def made_up_table(model):
    """Times in proportion to outputs × inputs, so that the best is known."""
    grids = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            o, i = module.weight.shape[:2]
            outputs, inputs = torch.arange(1, o + 1), torch.arange(1, i + 1)
            grids[f"{name}.weight:outputs"], grids[f"{name}.weight:inputs"] = outputs, inputs
            grids[f"{name}.weight:ms"] = torch.outer(outputs, inputs).double()
    return Latency.of(grids)


def test_a_latency_table_is_taken_as_it_is():
    table = made_up_table(network())
    _, result = left(latency=0.5, latency_table=table, tolerance=0.1)
    dense, now = result.sizes["latency"]
    assert dense == 8 * 1 + 16 * 8 + 24 * 64 + 4 * 24
    w = list(result.widths.values())
    columns = 4 * w[1]  # of the flattened maps
    assert now == pytest.approx(w[0] + w[1] * w[0] + w[2] * columns + 4 * w[2])
    assert 0.45 * dense <= now <= 0.5 * dense
    _, cheaper = left(channels=0.5, latency_table=table, importance={"per": "latency"})
    assert cheaper.sizes["latency"][0] == dense


@pytest.mark.usefixtures("quick_latencies")
def test_latency_is_measured_where_no_table_is_given():
    _, result = left(latency=0.3, tolerance=0.5)
    dense, now = result.sizes["latency"]
    assert 0 < now <= 0.7 * dense
    assert isinstance(latency_table(network(), IMAGE, seconds=1e-4), Latency)


def test_advice_can_be_followed():
    """Every refusal below says which word to write; written, the call succeeds."""
    with pytest.raises(BudgetError, match=r"set tolerance: [\d.]+%, or another size") as caught:
        left(macs=0.6, tolerance=0)
    tolerance = str(caught.value).partition("tolerance: ")[2].partition(",")[0]
    left(macs=0.6, tolerance=tolerance)
    with pytest.raises(BudgetError, match="lower floor or round_to, or shorten except"):
        left(macs=0.9, floor=0.5)
    left(macs=0.9, floor=0.02)


README = (Path(__file__).parents[2] / "pruning/README.md").read_text(encoding="utf-8")
LINES = re.findall(r"^left = (prune_once\(.*?\))(?:  #.*)?$", README, re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_the_readmes_lines_run_and_do_what_they_say(line):
    model, image = build("resnet18_cifar", num_classes=10, width=0.25), torch.zeros(1, 3, 32, 32)
    batches = [(torch.randn(16, 3, 32, 32), torch.randint(10, (16,)))]
    names = {"model": model, "image": image, "batches": batches, "mine": CRITERIA["fpgm"].function}
    names |= {"prune_once": prune_once, "Criterion": Criterion}
    names["table"] = latency_table(model, image, batch_size=1, points=2, seconds=1e-4)
    before = count(model, image)
    left = eval(line, names)
    measure, amount = re.findall(r"image, (\w+)=([^,)]+)", line)[0]
    stays = 1 / eval(amount) if measure == "compression_ratio" else 1 - share(eval(amount))
    measure = {"compression_ratio": "params"}.get(measure, measure)
    dense, now = left.sizes[measure]
    assert now <= stays * dense
    assert count(model, image).macs < before.macs
    assert getattr(before, measure, dense) == dense


def share(amount):
    return float(amount.strip("%")) / 100 if isinstance(amount, str) else amount


def test_the_readme_has_the_lines():
    assert len(LINES) == 8


def no_axis(**words):
    return prune_once(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), IMAGE, **words)


def returns_a_list(model, batches):
    return [1.0]


def takes_the_first(model, batches):
    return next(iter(batches))


MACS = {"macs": 0.5}
REFUSED = [
    ({}, "give one amount, as in macs=0.5, of activation_bytes, channels, compression_ratio, "),
    ({"macs": 0.5, "params": 0.5}, "give one amount"),
    ({"macs": 50}, "macs: not a fraction below 1; write one such as 0.5 or 50%"),
    ({"macs": 1.5}, "macs: not a fraction below 1; write one such as 0.5 or 50%"),
    ({"macs": 0}, "macs=0 removes nothing; ask for more"),
    ({"compression_ratio": 1}, "compression_ratio=1 removes nothing"),
    ({"macs": math.nan}, "macs: Input should be "),
    ({"macs": "half"}, "macs: 'half' is not a fraction; write 0.5 or 50%"),
    ({"macs": "50 percent"}, "macs: '50 percent' is not a fraction; write 0.5 or 50%"),
    (MACS | {"critrion": "x"}, "unknown word critrion (did you mean criterion? known: "),
    ({"sparsity": 0.5}, "sparsity counts single weights; write channels, params or macs"),
    ({"flops": 0.5}, "unknown word flops (did you mean floor? known: activation_bytes, batches, "),
    (MACS | {"except": ["9"]}, "unknown word except (did you mean except_? known: "),
    (MACS | {"schedule": {}}, "unknown word schedule (known: "),
    (MACS | {"except_": ["8"]}, "except: no convolution or linear layer in 8; "),
    (MACS | {"scope": "erk"}, "scope: erk shares out single weights; write global or layer"),
    (MACS | {"scope": "glob"}, "scope: 'glob' is not one of "),
    (MACS | {"importance": {"normalize": "mean"}}, "unknown key normalize in importance (did you"),
    (MACS | {"criterion": "size"}, "criterion: unknown name size (known: magnitude"),
    (MACS, "criterion taylor needs images to score with; give batches=[(images, targets), …], or"),
    (MACS | {"criterion": takes_the_first}, "criterion takes_the_first needs images to score"),
    (MACS | {"criterion": returns_a_list}, "criterion returns_a_list returned a list; return"),
    (MACS | {"criterion": lambda m, b: {}}, "criterion <lambda> has no score for 0, 4, 9; choose"),
    (MACS | {"batches": BATCHES[0]}, "batches are pairs; write batches=[(inputs, targets)]"),
    (MACS | {"compensation": "bn_recalibrate"}, "compensation: bn_recalibrate needs images to l"),
    (MACS | {"compensation": "mean_replacement"}, "compensation: mean_replacement needs images"),
    (MACS | {"compensation": "least_squares"}, "compensation: least_squares needs images to look"),
    (MACS | {"ema": nn.Sequential(network())}, "ema: 0.0.weight is not as in the model; pass"),
    (MACS | {"optimizer": torch.optim.SGD(network().parameters())}, "optimizer: holds no paramet"),
    (MACS | {"latency_table": made_up_table(network())}, "latency_table: nothing is asked of"),
    (
        {"latency": 0.5, "latency_table": Latency({})},
        "latency_table has no times of 0.weight, 8 × 1; measure it with latency_table(model, exam",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
def test_a_refusal_is_one_line_and_changes_nothing(arguments, sentence):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruningError) as caught:
        prune_once(model, IMAGE, **arguments)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


X, Y = BATCHES[0]
NO_LABELS = "targets are no labels of 4 classes; give task=Regression(Targets(outputs=4)) of prune"
BATCH = [
    ((X, torch.randn(32, 4)), NO_LABELS),
    ((X, torch.randint(2, (32, 4)).float()), NO_LABELS),
    ((X, torch.randint(2, (32, 4))), NO_LABELS),
    ((X, Y.float()), NO_LABELS),
    ((X, Y[:, None]), "targets are (32, 1), where labels are (32,); reshape them"),
    ((X, Y.int()), "labels are torch.int32; write targets.long()"),
    ((X, Y + 1), "a label is 4 and the model has 4 outputs; count from 0"),
    ((X, {"label": Y}), "outputs are a (32, 4) and targets a dict, where tensors are expected; g"),
    (
        {"image": X, "label": Y},
        "batches are pairs, and one is a dictionary of image, label; write batches=[(b['image'], ",
    ),
    ((X, Y, Y), "batches are pairs, and one is 3 parts; write batches=[(inputs, targets), …]"),
    ((X.numpy(), Y), "batches: holds a ndarray; give tensors, as of torch.as_tensor"),
    ((X * math.nan, Y), "batches: an input is NaN; leave out the examples that are"),
]


@pytest.mark.parametrize(("batch", "sentence"), BATCH)
def test_batches_that_the_loss_does_not_take_are_one_line(batch, sentence):
    with pytest.raises(PruningError) as caught:
        left("taylor", macs=0.5, batches=[BATCHES[1], batch])
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_targets_of_any_kind_go_with_their_task_or_with_a_criterion_without_a_loss():
    numbers = [(x, torch.randn(32, 4)) for x, _ in BATCHES]
    left("activation", macs=0.5, batches=numbers)
    left("taylor", macs=0.5, batches=numbers, task=Regression(Targets(outputs=4)))
    left("taylor", macs=0.5, batches=[(x, x.new_full((32, 4), 0.25)) for x, _ in BATCHES])
    one = [(x, torch.randn(32)) for x, _ in BATCHES]
    with pytest.raises(
        TaskError, match=r"outputs are \(32, 4\) and targets \(32,\); give them one"
    ):
        left("taylor", macs=0.5, batches=one, task=Regression(Targets(outputs=1)))


class Several(Task):
    """Several labels an image."""

    def losses(self, outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


def test_a_task_of_ones_own_needs_its_losses_alone():
    data = [(x, F.one_hot(y, 4) + F.one_hot(3 - y, 4).float()) for x, y in BATCHES]
    model, _ = left("taylor", channels=0.5, batches=data, task=Several(Targets(outputs=4)))
    assert sum(widths(model)) < sum(network_widths())


def test_inputs_are_given_in_the_models_precision():
    model = network().bfloat16()
    prune_once(model, IMAGE, macs=0.5, batches=BATCHES)
    assert sum(widths(model)) < sum(network_widths())


class Odd(torch.optim.SGD):
    """Its state has no shape that surgery knows."""

    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["odd"] = torch.zeros(parameter.numel() + 1)


def odd(model):
    (optimizer := Odd(model.parameters(), lr=0)).step()
    return {"optimizer": optimizer}


def twice(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["params"].append(model[0].weight)
    return {"optimizer": optimizer}


@pytest.mark.parametrize("compensation", ["none", "mean_replacement"])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (odd, "Odd: 0.weight: odd is (73,) where (8, 1, 3, 3) was expected; begin a new optim"),
        (twice, "optimizer: holds 0.weight more than once; make it from model.parameters()"),
        (lambda model: {"ema": model}, "ema: is the model itself; pass its averaged copy, or no"),
    ],
)
def test_what_cannot_be_sliced_is_refused_before_a_weight_is_changed(given, sentence, compensation):
    model = network()
    before = copy.deepcopy(model.state_dict())
    words = {"criterion": "magnitude", "compensation": compensation, "batches": BATCHES}
    with pytest.raises(PruningError) as caught:
        prune_once(model, IMAGE, channels=0.5, **words, **given(model))
    assert str(caught.value).startswith(sentence)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_nothing_to_prune_and_nothing_removed():
    with pytest.raises(PruningError, match=r"no channel of this network can be pruned \(1: the n"):
        no_axis(macs=0.5)
    with pytest.raises(NoEffect, match="nothing was removed: the amount is less than one unit"):
        left(channels=0.1, scope="layer", round_to=8)


def test_a_table_of_a_narrower_network_is_refused():
    model, _ = left(macs=0.5)
    with pytest.raises(PruningError, match=r"latency_table has no times of \d+\.weight, "):
        left(latency=0.5, latency_table=made_up_table(model))
    wide = made_up_table(network())
    left(latency=0.3, latency_table=wide, tolerance=0.1)  # widths it knows


def parallel(model):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        return nn.parallel.DistributedDataParallel(model)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("wrapped", "sentence"),
    [
        (nn.DataParallel, "the model is wrapped in DataParallel; pass its .module"),
        (parallel, "the model is wrapped in DistributedDataParallel; pass its .module"),
        (torch.compile, "the model was compiled by torch.compile; pass the original (._orig_mod)"),
        (
            lambda model: nn.Sequential(torch.compile(model)),
            "0 was compiled by torch.compile; pass the original (._orig_mod), and compile it after",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_wrapped_networks_are_refused(wrapped, sentence):
    with pytest.raises(ModelError) as caught:
        prune_once(wrapped(network()), IMAGE, macs=0.5)
    assert str(caught.value).startswith(sentence)
