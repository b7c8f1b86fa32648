import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from prunezoo.models.axes.find import axes, masks
from prunezoo.pruning.compensation.compensations import mean_replacement
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.laboratory import table as laboratory_table
from prunezoo.pruning.laboratory.bench import Bench
from prunezoo.pruning.laboratory.laboratory import CutShort, Laboratory
from prunezoo.pruning.laboratory.removal import axes_of, without_lowest
from prunezoo.schema.laboratory import SCORES, LaboratoryConfig


class Net(nn.Module):
    """Two convolutions, BatchNorm and dropout; counts its forward passes over all copies."""

    images_seen = 0

    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.drop = nn.Conv2d(8, 6, 3), nn.Dropout(0.3)
        self.fc1, self.fc2 = nn.Linear(24, 10), nn.Linear(10, 4)

    def forward(self, x):
        Net.images_seen += len(x)
        x = self.norm(self.conv1(x)).relu()
        x = F.max_pool2d(self.conv2(x).relu(), 2).flatten(1)
        return self.fc2(self.drop(self.fc1(x).relu()))


def draw(batches, batch_size, *, stream="calibration", dtype=torch.float32):
    """Images and labels that depend on the stream and on nothing else."""
    random = torch.Generator().manual_seed(sum(map(ord, stream)))
    for _ in range(batches):
        x = torch.randn(batch_size, 1, 8, 8, generator=random)
        yield x.to(dtype), (x.mean((1, 2, 3)) * 8).round().long() % 4


def net(seed=0):
    torch.manual_seed(seed)
    model = Net()
    train(model, 20)
    return model


def train(model, steps, laboratory=None):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    model.train()
    for step, (x, y) in enumerate(draw(steps, 16, stream="training"), 1):
        F.cross_entropy(model(x), y).backward()
        if laboratory and laboratory.due(step):
            laboratory.measure(model, step)  # between backward and step: gradients are there
        optimizer.step()
        optimizer.zero_grad()
    return [*model.state_dict().values(), *(s["momentum_buffer"] for s in optimizer.state.values())]


def config(**block):
    return LaboratoryConfig(**{"every": "5it", "images": 40, "batch_size": 20, **block})


def laboratory(model, *, held_out=None, total_steps=None, **block):
    dtype, notes = model.fc1.weight.dtype, {"seed": 0, "model": "net"}
    model_axes = axes(model, torch.zeros(1, 1, 8, 8, dtype=dtype))
    drawn = partial(draw, dtype=dtype)
    return Laboratory(
        config(**block),
        model_axes,
        drawn,
        notes=notes,
        held_out=held_out,
        total_steps=total_steps,
    )


def loss_of(model):
    model = copy.deepcopy(model).eval()
    drawn = draw(2, 20, stream="laboratory", dtype=model.fc1.weight.dtype)
    x, y = (torch.cat(t) for t in zip(*drawn, strict=True))
    with torch.no_grad():
        return F.cross_entropy(model(x), y).item()


def removed(row, names, model_axes):
    """Keep masks from a row's bits, in the order of `names`."""
    bits = [int(b) for byte in row["selected"] for b in f"{byte:08b}"]
    keep = {}
    for name in names:
        width = model_axes.widths[name]
        keep[name], bits = torch.tensor(bits[:width]) == 0, bits[width:]
    return keep


# ── training does not notice ─────────────────────────────────────────────────────────────────────
def test_training_with_the_laboratory_is_bit_identical_to_training_without():
    rates = {"fine_tune": {"steps": [2], "batch_size": 8}, "iterative": {"start": "10it"}}
    rates["iterative"] |= {"each": 0.25, "until": 0.5, "steps": 1, "batch_size": 8}
    model = net()
    lab = laboratory(model, remove=[0.25, 1], layers=["all", "firstconv"], padding="exact", **rates)
    assert {row["experiment"] for row in lab.measure(copy.deepcopy(model), 10)} == {
        "intact", "one_shot", "iterative",
    }  # fmt: skip
    with_lab, without = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(7)
    on = train(with_lab, 12, lab)
    torch.manual_seed(7)
    off = train(without, 12)
    assert all(torch.equal(a, b) for a, b in zip(on, off, strict=True))
    assert any(row["step"] == 5 for row in lab.rows)


def test_a_stop_that_is_asked_to_end_leaves_no_row_and_the_next_is_whole():
    tuned = {"fine_tune": {"steps": [2], "batch_size": 8}, "iterative": {"start": "5it"}}
    tuned["iterative"] |= {"each": 0.25, "until": 0.25, "steps": 2, "batch_size": 8}
    model = net()
    lab, asked = laboratory(model, scores=["norm"], **tuned), []
    lab._asked_to_end = lambda: bool(asked.append(1))
    whole = lab.measure(model, 5)
    questions, before = len(asked), copy.deepcopy(model.state_dict())
    lab = laboratory(model, scores=["norm"], **tuned)
    for last in range(1, questions + 1):
        answers = iter([False] * (last - 1) + [True])
        lab._asked_to_end = lambda: next(answers)  # noqa: B023  called in this turn alone
        with pytest.raises(CutShort):
            lab.measure(model, 5)
    assert not lab.rows
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    lab._asked_to_end = lambda: False
    torch.testing.assert_close(
        [row["loss"] for row in lab.measure(model, 5)],
        [row["loss"] for row in whole],
        rtol=0,
        atol=0,
    )


def test_held_out_batches_are_reported_on_and_change_nothing_else():
    model = net()
    held_out = list(draw(1, 12, stream="held out"))
    plain = laboratory(model, scores=["norm"]).measure(model, 5)
    reported = laboratory(model, scores=["norm"], held_out=lambda: held_out).measure(model, 5)
    bench = Bench(model, axes(model, torch.zeros(1, 1, 8, 8)), held_out, reduce=lambda t: t)
    assert reported[0]["held_out_loss"] == bench.loss
    assert reported[0]["held_out_top1_percent"] == bench.quality["top1_percent"]
    for row, more in zip(plain, reported, strict=True):
        assert row["loss"] == more["loss"]
        assert more["held_out_loss"] != more["loss"]


def test_hooks_of_the_model_do_not_run_on_copies():
    model = net()
    seen = []
    lab = laboratory(model)
    model.conv1.register_forward_hook(lambda *_: seen.append(1))
    lab.measure(model, 5)
    assert not seen
    model(torch.zeros(2, 1, 8, 8))
    assert seen


# ── what is measured ─────────────────────────────────────────────────────────────────────────────
def test_each_penalty_is_the_loss_of_a_network_pruned_by_hand_minus_the_intact_loss():
    model = net().double()
    lab = laboratory(model, remove=[0.25], layers=["all", "conv2"])
    rows = [r for r in lab.measure(model, 5) if r["experiment"] == "one_shot"]
    assert len(rows) == 2 * 6 * 2
    intact = loss_of(model)
    batches = list(draw(2, 20, stream="laboratory", dtype=torch.float64))
    for row in rows:
        keep = removed(row, axes_of(model, lab.axes, row["layers"]), lab.axes)
        pruned = copy.deepcopy(model)
        if row["bias_propagation"]:
            mean_replacement(pruned, lab.axes, keep, batches)
        for name, mask in masks(lab.axes, keep).items():
            pruned.get_parameter(name).data.mul_(mask)
        # a loss of about 1 has a few hundred roundings behind it
        assert row["penalty"] == pytest.approx(loss_of(pruned) - intact, abs=1e-13)
        assert row["removed"] == sum(int((~k).sum()) for k in keep.values())
    assert len({round(row["penalty"], 9) for row in rows}) > 6


def test_absolute_scores_are_of_products_or_of_their_sums():
    model = net().double()
    scores = {}
    for absolute in ("inside", "after"):
        lab = laboratory(model, layers=["conv2"], scores=["abs_mrs"], absolute=absolute)
        bench = Bench(model, lab.axes, lab._batches, reduce=lambda t: t)
        scores[absolute] = lab._scores(bench, 5)["abs_mrs"]["conv2"]
        expected = CRITERIA["abs_mrs"](model, lab._batches, absolute=absolute)["conv2.weight"]
        torch.testing.assert_close(scores[absolute], expected)
    assert (scores["inside"] > scores["after"]).all()


def test_constant_units_cost_nothing_when_their_biases_are_propagated():
    model = net().double()
    with torch.no_grad():
        model.conv2.weight[:2] = 0
        model.conv2.bias[:2] = torch.tensor([0.5, 1.0])
    lab = laboratory(model, layers=["conv2"], remove=[2])
    rows = [r for r in lab.measure(model, 5) if r.get("score") == "abs_mrs"]
    plain, propagated = rows
    assert removed(plain, ["conv2"], lab.axes)["conv2"].tolist() == [False] * 2 + [True] * 4
    assert abs(propagated["penalty"]) < 1e-13 < plain["penalty"] + 1e-3
    assert plain["squared_activation"].tolist() == pytest.approx([0.25, 1.0], rel=1e-5)


def test_a_stop_costs_at_most_three_passes_over_the_subset_per_score():
    model = net()
    lab = laboratory(model, remove=[0.25])
    Net.images_seen = 0
    lab.measure(model, 5)
    # A pass with gradients counts as three.
    passes = (Net.images_seen - 1) / 40 + 2
    assert passes <= 3 * len(SCORES)


def test_scores_that_choose_the_same_units_share_their_measurement():
    model = net()
    with torch.no_grad():  # the first unit is dead: every score but the random one wants it
        model.conv2.weight[0], model.conv2.bias[0] = 0, 0
    lab = laboratory(model, layers=["conv2"], remove=[1], scores=["norm", "abs_rs", "abs_mrs"])
    Net.images_seen = 0
    rows = [r for r in lab.measure(model, 5) if r["experiment"] == "one_shot"]
    assert (Net.images_seen - 1) / 40 == 1 + 2 + 2  # intact, scores, with and without propagation
    assert len(rows) == 6
    assert len({row["selected"] for row in rows}) == 1


def test_fine_tuning_is_measured_at_each_number_of_steps_and_keeps_removed_units_at_zero():
    model = net()
    lab = laboratory(model, scores=["norm"], fine_tune={"steps": [1, 3], "every": "10it"})
    assert [r["fine_tune"] for r in lab.measure(model, 5)[1:]] == [0, 0]
    rows = lab.measure(model, 10)[1:]
    assert [r["fine_tune"] for r in rows] == [0, 1, 3] * 2
    assert len({r["loss"] for r in rows}) == 6
    bench = Bench(model, lab.axes, list(draw(2, 20)), reduce=lambda t: t)
    keep = {"conv2": torch.arange(6) > 1}
    bench.prune(keep, bias_propagation=True)
    before = bench.model.conv2.weight.clone()
    assert list(bench.fine_tune(draw(3, 8), keep, 0.1)) == [1, 2, 3]
    assert not bench.model.conv2.weight[:2].any()
    assert not torch.equal(before[2:], bench.model.conv2.weight[2:])
    bench.restore()
    assert torch.equal(bench.model.conv2.weight, model.conv2.weight)


def test_iterative_pruning_removes_more_each_round_and_never_returns_a_unit():
    model = net()
    block = {"start": "7it", "each": 0.25, "until": 0.75, "steps": 2, "batch_size": 8}
    lab = laboratory(model, scores=["rand", "abs_mrs"], iterative=block)
    assert [lab.due(step) for step in range(5, 9)] == [True, False, True, False]
    rows = lab.measure(model, 7)
    assert len(rows) == 2 * 2 * 3
    for method in range(4):
        counts = [r["removed"] for r in rows[3 * method : 3 * method + 3]]
        assert counts == [2 + 2 + 3, 4 + 3 + 5, 6 + 5 + 8]  # of 8, 6 and 10, rounded half up
        bits = [int.from_bytes(r["selected"]) for r in rows[3 * method : 3 * method + 3]]
        assert all(early & late == early for early, late in pairwise(bits))


def test_a_copy_at_its_target_trains_on_to_the_end_of_the_training_as_by_hand():
    model = net().double()
    model.drop.p = 0
    block = {"start": "7it", "each": 0.25, "until": 0.5, "targets": [0.25], "steps": 1, "lr": 0.1}
    lab = laboratory(model, scores=["norm"], iterative=block, total_steps=11)
    row = next(r for r in lab.measure(model, 7) if r["experiment"] == "trained_on")
    assert (row["amount"], row["bias_propagation"], row["fine_tune"]) == ("0.25", False, 4)
    pruned = copy.deepcopy(model).train()
    keep = removed(row, axes_of(model, lab.axes, "all"), lab.axes)
    names = masks(lab.axes, keep)
    optimizer = torch.optim.SGD(pruned.parameters(), 0.1)
    # one step of the round, three up to step 11
    for stream, steps in (("7 1 0", 1), ("7 1 0 0", 3)):
        stream = f"laboratory fine-tuning {stream}"
        for x, y in draw(steps, 64, stream=stream, dtype=torch.float64):
            for name, mask in names.items():
                pruned.get_parameter(name).data.mul_(mask)
            F.cross_entropy(pruned(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, mask in names.items():
        pruned.get_parameter(name).data.mul_(mask)
    assert row["loss"] == pytest.approx(loss_of(pruned), abs=1e-13)
    assert row["penalty"] == pytest.approx(loss_of(pruned) - loss_of(model), abs=1e-13)


def test_rounds_are_the_same_with_and_without_targets():
    model = net()
    block = {"start": "7it", "each": 0.25, "until": 0.75, "steps": 2, "batch_size": 8}
    plain = laboratory(model, scores=["abs_mrs"], iterative=block).measure(model, 7)
    block |= {"targets": [0.25, 0.75]}
    rows = laboratory(model, scores=["abs_mrs"], iterative=block, total_steps=20).measure(model, 7)
    assert [r for r in rows if r["experiment"] == "iterative"] == plain
    ends = [r for r in rows if r["experiment"] == "trained_on"]
    assert [(r["amount"], r["fine_tune"]) for r in ends] == [("0.25", 13), ("0.75", 9)] * 2


# ── choices ──────────────────────────────────────────────────────────────────────────────────────
def test_words_and_names_of_layers():
    model = net()
    model_axes = axes(model, torch.zeros(1, 1, 8, 8))
    words = ("all", "firstconv", "midconv", "lastconv", "firstdense", "conv2")
    chosen = [axes_of(model, model_axes, word) for word in words]
    assert chosen == [
        ["conv1", "conv2", "fc1"],
        ["conv1"],
        ["conv2"],
        ["conv2"],
        ["fc1"],
        ["conv2"],
    ]
    with pytest.raises(ValueError, match="write one of all, firstconv"):
        axes_of(model, model_axes, "fc2")  # the classifier is never pruned


@pytest.mark.parametrize(
    ("width", "remove", "left"),
    [
        (32, 0.01, 31),
        (10, 0.05, 9),
        (10, 0.25, 7),
        (10, 0.24, 8),
        (6, 1, 5),
        (6, 99, 1),
        (1, 0.5, 1),
    ],
)
def test_how_many_units_stay(width, remove, left):
    scores = torch.arange(width).flip(0).double()
    keep = without_lowest(scores, remove)
    assert keep.sum() == left
    assert keep[:left].all()


def test_amounts_are_fractions_or_whole_units():
    assert config(remove=["10%", 0.5, 1, "2"]).remove == (0.1, 0.5, 1, 2)
    for wrong in (0, 1.0, "100%", -1, "ten"):
        with pytest.raises(ValidationError, match=r"write 10% \(of each layer\) or 1 \(unit\)"):
            config(remove=[wrong])
    with pytest.raises(ValidationError, match="batch_size: 10"):
        config(images=30, batch_size=20)
    with pytest.raises(ValidationError, match="both as fractions"):
        config(iterative={"start": "1it", "each": 1, "until": "50%"})
    for target in ("25%", "90%", 1):
        with pytest.raises(
            ValidationError, match=r"never reached; write a multiple of each \(0.1\)"
        ):
            config(iterative={"start": "1it", "each": "10%", "targets": [target]})


# ── records ──────────────────────────────────────────────────────────────────────────────────────
def test_a_table_is_read_as_written_up_to_a_step(tmp_path):
    model = net()
    lab = laboratory(model, remove=[0.25], scores=["norm", "mrs"])
    for step in (5, 10):
        lab.measure(model, step)
    path = tmp_path / "laboratory.parquet"
    assert laboratory_table.read(path) == []
    laboratory_table.write(lab.rows, path)
    back = laboratory_table.read(path)
    assert [set(row) for row in back] == [set(row) for row in lab.rows]
    for row, again in zip(lab.rows, back, strict=True):
        squares, same = row.pop("squared_activation", None), again.pop("squared_activation", None)
        assert (squares is None and same is None) or squares.tolist() == same.tolist()
        assert row == again
    assert {row["step"] for row in laboratory_table.read(path, until=9)} == {5}
    assert [p.name for p in tmp_path.iterdir()] == ["laboratory.parquet"]
