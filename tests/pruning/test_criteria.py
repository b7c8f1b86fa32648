import random as python_random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import nn

from prunezoo.models import build
from prunezoo.models.axes.find import axes
from prunezoo.pruning.amount.granularity import channel_scores
from prunezoo.pruning.criteria import CRITERIA, Criterion
from prunezoo.pruning.criteria.measuring import layer_weights
from prunezoo.pruning.errors import PruningError
from prunezoo.schema.options import traits
from tests.support.criteria_networks import (
    NETS,
    data,
    equal,
    loss,
    stage,
    tiny_network,
)

ROOT = Path(__file__).parents[2]


def test_a_criterion_is_a_function_and_a_line():
    """No other code names one that needs nothing special, so a new one touches no other place."""
    folders = ("schema", "models", "pruning", "training", "reporting")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    lines = [line.strip() for path in files for line in path.read_text("utf-8").splitlines()]
    assert [line for line in lines if re.search(r"\bfpgm\b", line)] == [
        '"fpgm": Criterion(weights.fpgm, per="channel"),',
        "def fpgm(model: nn.Module, batches: Batches) -> Scores:",
    ]


def test_a_recipe_is_checked_by_the_traits_that_pruning_goes_by():
    stated = traits("prunezoo.pruning.criteria", "CRITERIA")
    assert stated.keys() == CRITERIA.keys()
    for name, criterion in CRITERIA.items():
        assert criterion == Criterion(criterion.function, **stated[name])


def state(model):
    return {
        "tensors": {n: t.clone() for n, t in model.state_dict().items()},
        "grads": {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        },
        "wanted": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "random": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": python_random.getstate(),
    }


def applicable(name, net):
    return net != "mlp" or name != "bn_scale"


CASES = [(name, net) for name in CRITERIA for net in NETS if applicable(name, net)]


@pytest.mark.parametrize(("name", "net"), CASES)
def test_scores_have_the_shapes_and_are_finite_and_the_same_again(name, net):
    model = tiny_network(net)
    first = CRITERIA[name](model, data(5, 3))
    assert first
    theta = layer_weights(model)
    for key, score in first.items():
        assert score.shape in (theta[key].shape, theta[key].shape[:1])
        assert score.isfinite().all()
        assert not score.requires_grad
    assert equal(first, CRITERIA[name](model, data(5, 3)))


def modes(name):
    stated = "train" in (CRITERIA[name].function.__kwdefaults__ or {})
    return [{"train": False}, {"train": True}] if stated else [{}]


@pytest.mark.parametrize(
    ("name", "net", "options"), [(*case, options) for case in CASES for options in modes(case[0])]
)
def test_scoring_leaves_everything_as_it_was(name, net, options):
    model = tiny_network(net)
    model.train()
    next(model.children()).eval()
    for parameter in list(model.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
        parameter.requires_grad_(False)
    before = state(model)
    scores = CRITERIA[name](model, data(4), **options)
    for score in scores.values():
        score.add_(1)  # a score that shared memory with a weight would change it
    assert equal(state(model), before)


LOOKING = [case for case in CASES if not CRITERIA[case[0]].shape_only]


@pytest.mark.parametrize(("name", "net"), [case for case in CASES if case not in LOOKING])
def test_pixels_do_not_count_where_only_the_shape_does(name, net):
    model, (batch,) = tiny_network(net), data(4)
    other = [(torch.zeros_like(batch[0][:1]), torch.zeros(1, dtype=torch.long))]
    assert equal(CRITERIA[name](model, [batch]), CRITERIA[name](model, other))


@pytest.mark.parametrize(("name", "net"), LOOKING)
def test_without_images_a_criterion_scores_weights_or_says_what_it_needs(name, net):
    model, said = tiny_network(net), ""
    try:
        scores = CRITERIA[name](model, [])
    except PruningError as error:
        scores, said = None, str(error)
    assert "give" in said or equal(scores, CRITERIA[name](model, data(4)))


def rank(name, model, share, agreed, options):
    """Scores of one rank whose i-th mean over ranks is agreed[i]; and every tensor it sent."""
    sent = []

    def reduce(tensor):
        sent.append(tensor)
        return agreed[len(sent) - 1] if len(sent) <= len(agreed) else tensor

    return CRITERIA[name](model, share, reduce=reduce, **options), sent


AVERAGED = [n for n in CRITERIA if "reduce" in (CRITERIA[n].function.__kwdefaults__ or {})]


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in AVERAGED for options in modes(name)]
)
def test_two_ranks_with_half_batches_score_as_one_with_the_whole(name, options):
    """Both ranks run again for every mean they take, until all the means are agreed."""
    whole = data(8, 8, dtype=torch.float64)
    shares = [[(x[half], y[half]) for x, y in whole] for half in (slice(0, 4), slice(4, 8))]
    model = tiny_network("residual", torch.float64)
    agreed = []
    while True:
        (scores, ours), (others, theirs) = (
            rank(name, model, share, agreed, options) for share in shares
        )
        if len(agreed) == len(ours):
            break
        agreed.append((ours[len(agreed)] + theirs[len(agreed)]) / 2)
    assert equal(scores, others)
    expected = CRITERIA[name](model, whole, **options)
    for key, score in scores.items():
        torch.testing.assert_close(score, expected[key], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", [n for n in AVERAGED if n not in ("gate_decorator", "prospr")])
def test_every_image_counts_the_same_in_batches_of_any_size(name):
    """Unless a batch is normalised by its own statistics, or is a step of its own."""
    images, labels = data(8, dtype=torch.float64)[0]
    model = tiny_network("depthwise", torch.float64)
    options = modes(name)[0]
    whole = CRITERIA[name](model, [(images, labels)], **options)
    batches = [(images[:1], labels[:1]), (images[1:], labels[1:])]
    uneven = CRITERIA[name](model, batches, **options)
    for key, score in whole.items():
        torch.testing.assert_close(uneven[key], score, rtol=1e-9, atol=1e-14)


def planted(model):
    """Output channel 1 of the second layer writes and reads far more strongly than the others."""
    with torch.no_grad():
        model[1].weight.mul_(0.05)
        model[1].bias.zero_()
        model[1].weight[1] *= 100
        model[3].weight[:, 1] *= 5
    return model


BY_OTHER_THAN_STRENGTH = {
    "random": "its draws",
    "bn_scale": "scales of BatchNorm, of which the network has none",
    "ntk_sap": "newly drawn weights",
}


@pytest.mark.parametrize("name", [n for n in CRITERIA if n not in BY_OTHER_THAN_STRENGTH])
def test_a_planted_strong_channel_scores_highest(name):
    """By size for the criteria that keep their sign, whose sign the planting does not choose."""
    model = planted(tiny_network("mlp"))
    axes = SimpleNamespace(
        widths={"a": 8}, offsets={"a": 0}, labels={"1.weight": (torch.arange(8),)}
    )
    score = {"1.weight": CRITERIA[name](model, data(32))["1.weight"]}
    units = CRITERIA[name].by_unit(score, axes)["a"]
    best = units.abs().argmax() if name in ("rs", "mrs", "grasp") else units.argmax()
    assert best == 1, "if it scores by something else, say so in BY_OTHER_THAN_STRENGTH"


def torch_pruning_group(model, conv):
    dependencies = tp.DependencyGraph().build_dependency(model, data(1)[0][0])
    out = list(range(conv.out_channels))
    return dependencies.get_pruning_group(conv, tp.prune_conv_out_channels, out)


@pytest.mark.parametrize(
    ("name", "options", "importance"),
    [
        ("magnitude", {"reduce": "l2"}, tp.importance.MagnitudeImportance(2, "first", None)),
        ("channel_norm", {}, tp.importance.MagnitudeImportance(1, "first", None)),
        ("snip", {}, tp.importance.TaylorImportance("first", None, multivariable=False)),
        ("taylor", {"absolute": "after"}, tp.importance.TaylorImportance("first", None, True)),
    ],
)
def test_channels_rank_as_torch_pruning_ranks_them(name, options, importance):
    model, batches = tiny_network("depthwise"), data(8)
    scores = CRITERIA[name](model, batches, **modes(name)[0])
    units = channel_scores(scores, stage(model, "6.weight"), **options)["a"]
    loss(model, batches).backward()
    theirs = importance(torch_pruning_group(model, model[6])).double()
    expected = theirs.sqrt() if name == "magnitude" else theirs  # theirs is not rooted
    torch.testing.assert_close(units, expected, rtol=1e-5, atol=1e-8)
    # their sizes differ by a percent, or are 0: a channel that ReLU never lets through
    assert torch.equal(units.argsort(stable=True), theirs.argsort(stable=True))


def test_fpgm_is_torch_prunings_where_no_weight_is_negative():
    """Theirs has distances of |w|, where the paper has those of w."""
    model = tiny_network("depthwise")
    with torch.no_grad():
        model[6].weight.abs_()
    ours = CRITERIA["fpgm"](model, data(1))["6.weight"]
    theirs = tp.importance.FPGMImportance(1, "first", None)(torch_pruning_group(model, model[6]))
    torch.testing.assert_close(ours, theirs)


def test_tied_batch_norms_are_averaged_as_in_torch_pruning():
    model = tiny_network("residual")
    axes = stage(model, "stem.weight", "conv2.weight")
    units = CRITERIA["bn_scale"].by_unit(CRITERIA["bn_scale"](model, data(1)), axes)["a"]
    norms = [nn.modules.batchnorm._BatchNorm]
    importance = tp.importance.MagnitudeImportance(1, "mean", None, target_types=norms)
    theirs = importance(torch_pruning_group(model, model.stem)).double()
    torch.testing.assert_close(units, theirs, rtol=1e-5, atol=1e-8)


GATE = "one gate over tied layers has the sum of their derivatives"
LENGTH = "the norm of all weights of a unit, which grows with their number"
COST = "what a unit is worth is the sum over the layers that it goes from"
SUMMED = {
    **dict.fromkeys(("taylor", "bn_taylor", "snap", "crop_s", "grasp"), GATE),
    **dict.fromkeys(("magnitude", "channel_norm", "group_norm"), LENGTH),
    **dict.fromkeys(("lamp", "lookahead", "gradient", "snip", "synflow", "crop", "obd"), COST),
    **dict.fromkeys(("obc", "woodfisher", "prospr", "ntk_sap", "phew"), COST),
    **dict.fromkeys(("fpgm", "gate_decorator", "activation", "activation_taylor"), COST),
    **dict.fromkeys(("rs", "abs_rs", "mrs", "abs_mrs"), COST),
}  # these keep tied channels longer, on purpose; `importance.members: mean` makes it a choice


def test_tied_and_single_channels_go_alike_unless_their_scores_are_summed_on_purpose():
    """Independent scores, alike in all layers of a ResNet; the lower half of its units goes."""
    options = {"depth": 20, "option": "B"}
    model = build("resnet56", num_classes=10, **options)
    channels = axes(model, torch.zeros(1, 3, 32, 32), verify=False)
    tied = {axis for axis in channels.widths if len(channels.producers(axis)) > 1}
    stream = torch.Generator().manual_seed(0)
    gaps = dict.fromkeys(CRITERIA, 0.0)
    for _ in range(5):
        rows = {n: torch.rand(len(w), generator=stream) for n, w in layer_weights(model).items()}
        weights = {
            n: torch.rand(w.shape, generator=stream) for n, w in layer_weights(model).items()
        }
        for name, criterion in CRITERIA.items():
            drawn = rows if criterion.per == "channel" else weights
            scores = {n: s - 0.5 if criterion.absolute == "after" else s for n, s in drawn.items()}
            gaps[name] += kept_more(criterion.by_unit(scores, channels), tied) / 5
    for name, gap in gaps.items():
        if name not in SUMMED:
            # 5 draws of 112 tied units: a standard deviation is 0.02
            assert abs(gap) < 0.1, f'{name}: write its members="mean", or say why in SUMMED'
        elif CRITERIA[name].per == "channel":  # sums over weights follow the layers' sizes too
            assert gap > 0.1, name


def kept_more(units, tied):
    """Fraction of tied units above the median less that of single units."""
    middle = torch.cat(list(units.values())).median()
    shares = [
        torch.cat([u for axis, u in units.items() if (axis in tied) == wanted]) > middle
        for wanted in (True, False)
    ]
    return float(shares[0].double().mean() - shares[1].double().mean())


def test_lamp_is_torch_prunings_normalisation_of_squares():
    weights = torch.randn(40)
    model = nn.Linear(40, 1)
    model.weight.data.copy_(weights)
    theirs = tp.importance.LAMPImportance()._lamp(weights.square())
    torch.testing.assert_close(CRITERIA["lamp"](model, [])["weight"][0], theirs)
