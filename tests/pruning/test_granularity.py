import math
from types import SimpleNamespace

import pytest
import torch
import torch_pruning as tp

from prunezoo.pruning.amount.granularity import channel_scores, normalised
from prunezoo.pruning.criteria import CRITERIA
from tests.support.criteria_networks import data, tiny_network


def chain(**producers):
    """A stand-in for Axes: axis "a" of width 3, then "b" of width 2; tensors with their labels."""
    labels = {n: (None if u is None else torch.tensor(u), None) for n, u in producers.items()}
    return SimpleNamespace(widths={"a": 3, "b": 2}, offsets={"a": 0, "b": 3}, labels=labels)


ONE = torch.tensor([[1.0, -2.0], [3.0, -4.0], [0.0, 5.0]])


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("sum", [-1.0, -1.0, 5.0]),
        ("mean", [-0.5, -0.5, 2.5]),
        ("l2", [math.sqrt(5), 5.0, 5.0]),
        ("rms", [math.sqrt(2.5), math.sqrt(12.5), math.sqrt(12.5)]),
        ("max", [1.0, 3.0, 5.0]),
        ("first", [1.0, 3.0, 0.0]),
    ],
)
def test_a_layer_collapses_to_its_output_channels(reduce, expected):
    units = channel_scores({"w": ONE}, chain(w=[0, 1, 2]), reduce=reduce)
    assert units.keys() == {"a"}
    torch.testing.assert_close(units["a"], torch.tensor(expected, dtype=torch.float64))


def test_the_largest_of_negative_scores_is_negative():
    units = channel_scores({"w": -1 - ONE.abs()}, chain(w=[0, 1, 2]), reduce="max")
    assert units["a"].tolist() == [-2, -4, -1]


def test_tied_layers_of_opposite_sign_cancel_when_abs_comes_after_the_sum():
    axes = chain(u=[0, 1, 2], v=[0, 1, 2])
    scores = {"u": torch.tensor([1.0, 2.0, -3.0]), "v": torch.tensor([-1.0, 2.0, 1.0])}
    for absolute, expected in {"none": [0, 4, -2], "after": [0, 4, 2], "before": [2, 4, 4]}.items():
        assert channel_scores(scores, axes, absolute=absolute)["a"].tolist() == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [("sum", [4.0, 2.0]), ("mean", [2.0, 2.0]), ("max", [3.0, 2.0]), ("first", [1.0, 2.0])],
)
def test_members_combine_over_the_layers_that_score_a_unit(members, expected):
    axes = chain(
        u=[3, 4], v=[-1, 3]
    )  # v's first row stays, its second shares a unit with u's first
    scores = {"u": torch.tensor([1.0, 2.0]), "v": torch.tensor([9.0, 3.0])}
    assert channel_scores(scores, axes, members=members)["b"].tolist() == expected


def test_concat_is_the_reduction_over_all_elements_of_all_members():
    axes = chain(u=[3, 4], v=[3, 4])
    u, v = torch.randn(2, 5, 3, 3), torch.randn(2, 7)
    both = torch.cat([u.flatten(1), v], dim=1).double()
    expected = {
        "sum": both.sum(1),
        "mean": both.mean(1),
        "l2": both.norm(dim=1),
        "rms": both.square().mean(1).sqrt(),
        "max": both.amax(1),
        "first": both[:, 0],
    }
    for reduce, value in expected.items():
        units = channel_scores({"u": u, "v": v}, axes, reduce=reduce, members="concat")["b"]
        torch.testing.assert_close(units, value, rtol=1e-6, atol=1e-6)


def test_all_rows_of_a_group_are_one_unit():
    w = torch.tensor([[1.0], [-2.0], [3.0], [5.0]])
    axes = chain(w=[3, 3, 4, 4])
    for reduce, expected in {
        "sum": [-1, 8],
        "max": [1, 5],
        "mean": [-0.5, 4],
        "first": [1, 3],
    }.items():
        assert channel_scores({"w": w}, axes, reduce=reduce)["b"].tolist() == expected


def test_permuting_channels_permutes_scores():
    w, order = torch.randn(3, 4, 3, 3), torch.tensor([2, 0, 1])
    straight = channel_scores({"w": w}, chain(w=[0, 1, 2]), reduce="rms")["a"]
    permuted = channel_scores({"w": w[order]}, chain(w=order.tolist()), reduce="rms")["a"]
    torch.testing.assert_close(permuted, straight, rtol=36 * 2.0**-52, atol=0)  # sums of 36


@pytest.mark.parametrize("reduce", ["sum", "max", "first"])
def test_a_layer_whose_channels_all_stay_is_left_out(reduce):
    axes = chain(w=[0, 1, 2], stay=None, fixed=[-1, -1, -1])
    scores = dict.fromkeys(("w", "stay", "fixed"), ONE)
    expected = channel_scores({"w": ONE}, axes, reduce=reduce)
    units = channel_scores(scores, axes, reduce=reduce)
    assert units.keys() == {"a"}
    assert torch.equal(units["a"], expected["a"])
    assert channel_scores({"stay": ONE, "fixed": ONE}, axes, reduce=reduce) == {}


def test_a_half_scored_axis_is_an_error():
    with pytest.raises(ValueError, match=r"axis a: 1 of its 3 units have no score.*except"):
        channel_scores({"w": ONE[:2]}, chain(w=[0, 1]))


def test_criteria_with_one_score_per_channel_are_for_channels_only():
    model = tiny_network("residual")
    for name, criterion in CRITERIA.items():
        if any(score.dim() == 1 for score in criterion(model, data(2)).values()):
            assert criterion.per == "channel", name


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("none", [[3.0, -1.0, 8.0], [4.0, 3.0]]),
        ("mean", [[1.5, -0.5, 4.0], [8 / 7, 6 / 7]]),
        ("l2", [[3 / math.sqrt(10), -1 / math.sqrt(10), 8 / math.sqrt(10)], [0.8, 0.6]]),
    ],
)
def test_normalised_by_hand_over_the_units_alive(way, expected):
    scores = {"a": torch.tensor([3.0, -1.0, 8.0]), "b": torch.tensor([4.0, 3.0])}
    alive = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, True])}
    for score, values in zip(normalised(scores, alive, way).values(), expected, strict=True):
        torch.testing.assert_close(score, torch.tensor(values))


@pytest.mark.parametrize("way", ["mean", "l2"])
def test_the_scale_of_an_axis_does_not_count_and_zeros_stay(way):
    alive = {axis: torch.ones(3, dtype=torch.bool) for axis in "ab"}
    score = torch.tensor([1.0, 2.0, 4.0])
    both = normalised({"a": score, "b": 1000 * score}, alive, way)
    torch.testing.assert_close(both["a"], both["b"])
    zeros = normalised({"a": score * 0, "b": score}, alive, way)["a"]
    assert torch.equal(zeros, torch.zeros(3))


def test_normalised_as_torch_pruning_does():
    scores = torch.rand(7, generator=torch.Generator().manual_seed(0))
    theirs = tp.importance.GroupMagnitudeImportance()._normalize(scores, "mean")
    ours = normalised({"a": scores}, {"a": torch.ones(7, dtype=torch.bool)}, "mean")["a"]
    assert torch.equal(ours, theirs)
