"""Scores at initialisation are of a network that is normalised: by the batch's own statistics."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from prunezoo.models import build
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.criteria.measuring import layers
from prunezoo.schema.recipe import load

ROOT = Path(__file__).parents[2]
TRAIN = {
    name: inspect.signature(criterion.function).parameters["train"].default
    for name, criterion in CRITERIA.items()
    if "train" in inspect.signature(criterion.function).parameters
}
NETWORKS = {"vgg_bn_drop": {}, "resnet56": {"depth": 20}}


def logits(model, score):
    """Standard deviation of what the last layer gave for each batch while `score` ran."""
    seen = []
    last = list(layers(model).values())[-1]
    hook = last.register_forward_hook(lambda _, x, y: seen.append(y.detach()))
    score(model)
    hook.remove()
    return [float(y.std()) for y in seen if len(y) > 1]  # one image only shows what follows what


def images(count):
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 32, 32, generator=stream)
    return [(x, torch.randint(10, (count,), generator=stream))]


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("name", [name for name, train in TRAIN.items() if train])
def test_logits_at_initialisation_are_healthy_while_they_are_scored(name, net):
    """Of order 1: between a network that says nothing and one whose softmax is a single class."""
    torch.manual_seed(0)
    model = build(net, num_classes=10, **NETWORKS[net])
    outputs = logits(model, lambda m: CRITERIA[name](m, images(16)))
    assert outputs
    for deviation in outputs:
        assert 0.1 < deviation < 10


def test_running_statistics_at_initialisation_do_not_normalise():
    """So a test of healthy logits can fail."""
    torch.manual_seed(0)
    model = build("vgg_bn_drop", num_classes=10)
    (deviation,) = logits(model, lambda m: CRITERIA["snip"](m, images(16), train=False))
    assert deviation < 0.1


@pytest.mark.parametrize("train", [False, True])
def test_dropout_is_off_in_either_mode(train):
    layer = nn.Linear(3072, 10)
    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), layer)
    scores = CRITERIA["snip"](dropping, images(4), train=train)["2.weight"]
    plain = CRITERIA["snip"](nn.Sequential(nn.Flatten(), layer), images(4))["1.weight"]
    assert torch.equal(scores, plain)


RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_that_scores_at_initialisation_has_batch_statistics(path):
    pruning = load(path)[0].pruning
    if pruning is None or pruning.criterion.name not in TRAIN or pruning.accumulate:
        return
    if pruning.schedule.start.amount == 0 and pruning.schedule.trigger is None:
        stated = pruning.criterion.options.get("train", TRAIN[pruning.criterion.name])
        assert stated is True


@pytest.fixture
def fast():
    """Half precision, TF32 and kernels chosen by the clock, as training may have them."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    with torch.autocast("cpu", torch.bfloat16):
        yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = before


def test_scores_are_in_full_float32_whatever_training_is_in(fast):
    seen = []
    layer = nn.Linear(3072, 10)

    def note(*_):
        matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn
        seen.append((matmul, cudnn.allow_tf32, cudnn.benchmark, torch.is_autocast_enabled("cpu")))

    note()
    layer.register_forward_hook(note)
    CRITERIA["grasp"](nn.Sequential(nn.Flatten(), layer), images(4))
    note()
    before, *inside, after = seen
    assert before == after == (True, True, True, True)
    assert set(inside) == {(False, False, False, False)}
