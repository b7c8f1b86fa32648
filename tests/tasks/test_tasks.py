"""Every task: sums add up, losses are of single examples, what does not fit is said in one line."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy

from prunezoo.models import trees
from prunezoo.models.trees import Shape
from prunezoo.schema.headline import ACCURACY, Headline
from prunezoo.schema.training import TrainingConfig
from prunezoo.tasks import TASKS, Targets, TaskError
from prunezoo.tasks.classification import CLASSES, Classification
from prunezoo.tasks.detection import Detection
from prunezoo.tasks.language import UNASKED, Language
from prunezoo.tasks.regression import Regression
from prunezoo.tasks.reinforcement import TRANSITION, Reinforcement
from prunezoo.tasks.segmentation import IGNORED, Segmentation
from prunezoo.tasks.task import added, over_ranks
from prunezoo.training.data.annotated import Boxes

LABELS = Targets(7)
VECTOR = Targets(2, Shape((2,)), unit="points", scale=10.0)
WORDS = Targets(7, Shape((4,), torch.int64))
DEPTH = Targets(1, Shape((1, 3, 4)), unit="m", distances=True)
PIXELS = Targets(5, Shape((6, 4), torch.int64))
OBJECTS = Boxes.targets(4, (32, 32))
ACTIONS = Targets(3, TRANSITION)
CASES = {
    "labels": (Classification(LABELS), (7,)),
    "bce": (Classification(LABELS, loss="bce"), (7,)),
    "vector": (Regression(VECTOR), (2,)),
    "l1": (Regression(VECTOR, loss="l1"), (2,)),
    "depth": (Regression(DEPTH), (1, 3, 4)),
    "words": (Language(WORDS), (4, 7)),
    "pixels": (Segmentation(PIXELS), (5, 6, 4)),
    "two heads": (Segmentation(PIXELS, auxiliary=0.3), (5, 6, 4)),
    "objects": (Detection(OBJECTS), (50, 4)),
    "actions": (Reinforcement(ACTIONS), (3,)),
}


def examples(name, count=6):
    """Outputs and targets in float64; a third of the distances was not measured."""
    task, shape = CASES[name]
    draw = torch.Generator().manual_seed(3)
    if isinstance(task, Segmentation):
        outputs = torch.randn(2, count, *shape, generator=draw, dtype=torch.float64)
        masks = torch.randint(7, (count, 6, 4), generator=draw)  # what is above 4 does not count
        masks = torch.where(masks > 4, IGNORED, masks)
        if name == "pixels":
            return task, outputs[0], masks
        return task, {"out": outputs[0], "aux": outputs[1]}, masks
    if isinstance(task, Detection):
        return task, *objects(count, shape[0], draw)
    outputs = torch.randn(count, *shape, generator=draw, dtype=torch.float64)
    if task.has_logits:
        return task, outputs, torch.randint(7, (count,), generator=draw)
    if isinstance(task, Language):
        words = torch.randint(7, (count, 4), generator=draw)
        return task, outputs, words.masked_fill(words == 3, UNASKED)
    if task.needs_episodes:
        numbers = torch.randn(2, count, generator=draw, dtype=torch.float64)
        chosen = torch.randint(2, (count,), generator=draw)
        of = {"return": numbers[0], "score": numbers[1], "ended": torch.ones(count)}
        return task, outputs, {"action": chosen, **of}
    targets = torch.randn(count, *shape, generator=draw, dtype=torch.float64)
    if task.targets.distances:
        targets = targets.abs() * (targets > -0.5)
        outputs = outputs.abs() + 0.1
    return task, outputs, targets


def objects(count, anchors, draw):
    """Outputs about anchors and up to three objects an image, of which the first image has none."""

    def boxes(*sizes):
        corners = 0.6 * torch.rand(*sizes, 2, generator=draw, dtype=torch.float64)
        sides = 0.1 + 0.3 * torch.rand(*sizes, 2, generator=draw, dtype=torch.float64)
        return torch.cat([corners, corners + sides], -1)

    outputs = {
        "logits": 2 * torch.randn(count, anchors, 4, generator=draw, dtype=torch.float64),
        "boxes": torch.randn(count, anchors, 4, generator=draw, dtype=torch.float64),
        "anchors": boxes(anchors).expand(count, -1, -1),
    }
    labels = torch.randint(1, 4, (count, 64), generator=draw)
    there = torch.arange(64) < torch.arange(count)[:, None] % 4
    targets = {
        "boxes": boxes(count, 64) * there[..., None],
        "labels": labels * there,
        "difficult": there & (torch.rand(count, 64, generator=draw) < 0.4),
    }
    return outputs, targets


def rows(tree, part):
    return trees.mapped(lambda leaf: leaf[part], tree)


def test_each_task_of_the_registry_is_tried_here():
    assert {type(task) for task, _ in CASES.values()} == set(TASKS.values())


@pytest.mark.parametrize("name", CASES)
def test_losses_are_each_examples_own(name):
    task, outputs, targets = examples(name)
    losses = task.losses(outputs, targets)
    assert losses.shape == (6,)
    pairs = [(rows(outputs, slice(i, i + 1)), rows(targets, slice(i, i + 1))) for i in range(6)]
    alone = [task.losses(*pair) for pair in pairs]
    torch.testing.assert_close(losses, torch.cat(alone))
    torch.testing.assert_close(task.loss(outputs, targets), losses.mean())
    torch.testing.assert_close(task.loss_sum(outputs, targets), losses.sum())
    torch.testing.assert_close(task.training_loss(outputs, targets), losses.sum())


@pytest.mark.parametrize("name", CASES)
def test_sums_add_up_over_batches_and_ranks(name):
    task, outputs, targets = examples(name)
    whole = task.sums(outputs, targets)
    parts = task.no_sums(torch.device("cpu"))
    assert whole.keys() == parts.keys() == set(task.summed)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        parts = added(parts, task.sums(rows(outputs, part), rows(targets, part)))
    for key, total in parts.items():
        assert total.shape == whole[key].shape
    assert task.metrics(parts) == pytest.approx(task.metrics(whole), rel=1e-12)
    halved = over_ranks(whole, lambda sums: sums / 4)  # a mean over ranks in place of a sum
    assert task.metrics(halved) == pytest.approx(task.metrics(whole), rel=1e-12)
    assert whole["examples"] == 6
    assert {"loss", task.headline.key} <= task.metrics(whole).keys()


def test_accuracies_by_hand():
    logits = torch.eye(7)[[0, 1, 2, 3]] + torch.tensor([0.5, 0, 0, 0, 0, 0, 0])
    metrics = CLASSES.metrics(CLASSES.sums(logits, torch.tensor([0, 1, 2, 0])))
    assert metrics["top1_percent"] == 75.0
    assert metrics["top5_percent"] == 100.0


@pytest.mark.parametrize(("smoothing", "threshold"), [(0.0, None), (0.1, None), (0.1, 0.2)])
def test_binary_cross_entropy_is_timms(smoothing, threshold):
    """timm's is the mean over examples and classes; its Mixup has smoothed the shares before."""
    training = TrainingConfig.model_validate(
        {"duration": "1ep", "batch_size": 4, "label_smoothing": smoothing}
    )
    task = Classification(LABELS, training, loss="bce", target_threshold=threshold)
    theirs = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold)
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, generator=draw, dtype=torch.float64)
    labels = torch.tensor([1, 2, 3, 4])
    ours = task.training_loss(logits, labels) / 4
    torch.testing.assert_close(ours, theirs(logits, labels), rtol=1e-12, atol=0)
    shares = mixup_target(labels, 7, lam=0.15, smoothing=smoothing).double()
    ours = task.training_loss(logits, task.mixed(labels, labels.flip(0), 0.15, torch.float64)) / 4
    torch.testing.assert_close(ours, theirs(logits, shares), rtol=1e-6, atol=0)  # theirs are fp32


def test_a_threshold_is_a_share_and_of_binary_cross_entropy():
    for options in ({"target_threshold": 0.2}, {"target_threshold": 1.5, "loss": "bce"}):
        with pytest.raises(TaskError, match="write loss: bce and"):
            Classification(LABELS, **options)


def test_rmse_is_in_the_units_of_the_data():
    outputs, targets = torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [1.0, 3.0]])
    task = Regression(VECTOR)
    metrics = task.metrics(task.sums(outputs, targets))
    assert metrics["rmse_points"] == pytest.approx(10 * math.sqrt(12 / 4))
    assert metrics["loss"] == pytest.approx((1 + 5) / 2)
    assert "rel" not in metrics


def test_depth_by_hand_counts_what_was_measured():
    target = torch.tensor([2.0, 4.0, 1.0, 0.0]).view(1, 1, 2, 2)
    output = torch.tensor([2.2, 3.0, 2.0, 50.0]).view(1, 1, 2, 2)
    task = Regression(Targets(1, Shape((1, 2, 2)), unit="m", distances=True))
    metrics = task.metrics(task.sums(output, target))
    assert metrics["rmse_m"] == pytest.approx(math.sqrt((0.04 + 1 + 1) / 3), rel=1e-6)
    assert metrics["rel"] == pytest.approx((0.1 + 0.25 + 1.0) / 3, rel=1e-6)
    assert metrics["delta1_percent"] == pytest.approx(100 / 3)  # 4 / 3 is not within 1.25
    output = output.requires_grad_()
    task.loss(output, target).backward()
    assert output.grad is not None
    assert output.grad.view(-1)[3] == 0


def test_log_perplexity_by_hand_counts_places_and_losses_rows():
    first = [[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]
    chances = torch.tensor([first, [[0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]])
    targets = torch.tensor([[0, 2], [1, UNASKED]])
    task = Language(Targets(3, Shape((2,), torch.int64)))
    metrics = task.metrics(task.sums(chances.log(), targets))
    one, two = -(math.log(0.5) + math.log(0.6)), -math.log(0.8)
    assert metrics["log_perplexity_nats"] == pytest.approx((one + two) / 3)
    assert metrics["perplexity"] == pytest.approx(math.exp((one + two) / 3))
    assert metrics["loss"] == pytest.approx((one / 2 + two) / 2)
    shifted = task.metrics(task.sums(chances.log() + 5, targets))  # logits are as good
    assert shifted == pytest.approx(metrics, rel=1e-5)


def test_uniform_chances_have_the_perplexity_of_their_number_and_nothing_asked_is_no_loss():
    task = Language(WORDS)
    words = torch.tensor([[0, 1, 2, 3]])
    assert task.metrics(task.sums(torch.zeros(1, 4, 7), words))["perplexity"] == pytest.approx(7)
    outputs = torch.randn(1, 4, 7, requires_grad=True)
    nothing = torch.full((1, 4), UNASKED)
    task.loss(outputs, nothing).backward()
    assert outputs.grad is not None
    assert not outputs.grad.any()
    assert task.metrics(task.sums(outputs, nothing))["log_perplexity_nats"] == 0
    far = torch.zeros(1, 4, 7).index_fill(2, torch.tensor([0]), 1e4)
    assert task.metrics(task.sums(far, words + 1))["perplexity"] == math.inf


def test_overlaps_of_classes_by_hand():
    """Class 0 has 2 of 3 pixels right and one too many, class 1 one of 2; class 2 is not there."""
    masks = torch.tensor([[[0, 0, 0], [1, 1, IGNORED]]])
    found = torch.tensor([[[0, 0, 1], [0, 1, 2]]])
    logits = F.one_hot(found, 3).permute(0, 3, 1, 2).float()
    task = Segmentation(Targets(3, Shape((2, 3), torch.int64)))
    metrics = task.metrics(task.sums(logits, masks))
    assert metrics["miou_percent"] == pytest.approx(100 * (2 / 4 + 1 / 3) / 2)
    assert metrics["pixel_accuracy_percent"] == pytest.approx(60)
    ignored = torch.full_like(masks, IGNORED)
    assert task.metrics(task.sums(logits, ignored))["miou_percent"] == 0
    logits = logits.requires_grad_()
    task.loss(logits, masks).backward()
    assert logits.grad is not None
    assert not logits.grad[0, :, 1, 2].any()
    assert logits.grad[0, :, 0, 0].any()


def test_the_auxiliary_head_adds_its_share_of_the_loss_and_no_metric():
    task, outputs, masks = examples("two heads")
    plain, out = Segmentation(PIXELS), outputs["out"]
    both = plain.losses(out, masks) + 0.3 * plain.losses(outputs["aux"], masks)
    torch.testing.assert_close(task.losses(outputs, masks), both)
    torch.testing.assert_close(plain.losses({"out": out}, masks), plain.losses(out, masks))
    figures = [t.metrics(t.sums(o, masks)) for t, o in ((task, outputs), (plain, out))]
    assert figures[0]["miou_percent"] == figures[1]["miou_percent"]


def test_nothing_measured_is_no_loss_and_no_nan():
    task = Regression(DEPTH)
    nothing = torch.zeros(2, 1, 3, 4)
    assert task.loss(torch.ones(2, 1, 3, 4), nothing) == 0
    assert task.metrics(task.sums(torch.ones(2, 1, 3, 4), nothing))["rmse_m"] == 0


def transition(action, to_go, score=0.0, ended=0.0):
    numbers = {"return": to_go, "score": score, "ended": ended}
    return {"action": torch.tensor([action])} | {k: torch.tensor([v]) for k, v in numbers.items()}


def test_actor_critic_by_hand():
    """Policy (1/4, 3/4), value 2, return 5: −log(3/4) · 3 + ½ · 9 − 0.01 · H."""
    task = Reinforcement(ACTIONS, entropy=0.01, value=0.5)
    outputs = torch.tensor([[0.0, math.log(3), 2.0]], dtype=torch.float64, requires_grad=True)
    targets = transition(1, 5.0)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    loss = task.loss(outputs, targets)
    assert loss.item() == pytest.approx(-math.log(0.75) * 3 + 4.5 - 0.01 * entropy)
    loss.backward()
    # the advantage is a constant: the value learns from its own error alone
    assert outputs.grad is not None
    assert outputs.grad[0, 2].item() == pytest.approx(-2 * 0.5 * 3)
    without = Reinforcement(ACTIONS, entropy=0.0, value=0.0)
    assert without.loss(outputs, targets).item() == pytest.approx(-math.log(0.75) * 3)


def test_the_return_is_of_episodes_that_ended():
    task = Reinforcement(ACTIONS)
    sums = task.no_sums(torch.device("cpu"))
    for targets in (transition(0, 3.0), transition(1, 2.0, 7.0, 1.0), transition(0, 1.0, 4.0, 1.0)):
        sums = added(sums, task.sums(torch.zeros(1, 3), targets))
    assert sums["examples"] == 2
    assert task.metrics(sums)["return"] == 5.5
    running = task.metrics(task.sums(torch.zeros(1, 3), transition(0, 3.0)))
    assert math.isnan(running["return"])
    assert math.isfinite(running["loss"])


def test_smoothing_and_mixing_are_classifications_own():
    training = TrainingConfig.model_validate(
        {"duration": "1ep", "batch_size": 4, "label_smoothing": 0.1}
    )
    task = Classification(LABELS, training)
    logits, labels = torch.randn(4, 7), torch.tensor([1, 2, 3, 4])
    assert task.training_loss(logits, labels) != task.loss_sum(logits, labels)
    shares = task.mixed(labels, labels.flip(0), 0.25, torch.float64)
    assert shares[0].tolist() == [0, 0.25, 0, 0, 0.75, 0, 0]
    for key in ("label_smoothing", "mixup", "cutmix"):
        training = TrainingConfig.model_validate({"duration": "1ep", "batch_size": 4, key: 0.1})
        with pytest.raises(TaskError, match=f"training.{key} is for classes, and the task is regr"):
            Regression(VECTOR, training)


@pytest.mark.parametrize(
    ("task", "right", "wrong", "said"),
    [
        (Classification(LABELS), (3, 7), (3, 6), r"gives (3, 6) in training where (3, 7) logits"),
        (Regression(VECTOR), (3, 2), (3,), "gives (3,) in training where (3, 2) numbers"),
        (Regression(DEPTH), (3, 1, 3, 4), (3, 1, 6, 8), "where (3, 1, 3, 4) numbers are expected"),
        (Language(WORDS), (3, 4, 7), (3, 7), "where (3, 4, 7) logits of words are expected"),
        (
            Segmentation(PIXELS),
            (3, 5, 6, 4),
            (3, 5, 3, 2),
            "where (3, 5, 6, 4) logits are expected",
        ),
        (Reinforcement(ACTIONS), (3, 3), (3, 2), "where (3, 3) logits of actions and a value"),
    ],
)
def test_outputs_that_do_not_fit_are_named(task, right, wrong, said):
    assert task.misfit(torch.zeros(right), 3) == ""
    assert said in task.misfit(torch.zeros(wrong), 3)
    assert "gives dict" in task.misfit({"a": torch.zeros(right)}, 3)


def test_outputs_of_an_ssd_that_do_not_fit_are_named():
    task, outputs, _ = examples("objects", 3)
    assert task.misfit(outputs, 3) == ""
    assert task.misfit(outputs, 4).startswith("gives logits (3, 50, 4) in training where {logits: ")
    assert "gives boxes (3, 50)" in task.misfit(outputs | {"boxes": torch.zeros(3, 50)}, 3)
    assert "gives (3, 4)" in task.misfit(torch.zeros(3, 4), 3)


def test_targets_of_another_task_are_refused():
    with pytest.raises(TaskError, match=r"task: regression needs numbers .* targets of cifar10"):
        Regression(LABELS).check_targets("cifar10")
    with pytest.raises(TaskError, match=r"task: classification needs a label .* write task: regr"):
        Classification(VECTOR).check_targets("diabetes")
    for task, needs in ((Classification(WORDS), "a label"), (Regression(WORDS), "numbers to come")):
        with pytest.raises(TaskError, match=rf"needs {needs} .* are words; write task: language"):
            task.check_targets("penn_treebank")
    for targets, are in ((LABELS, "labels"), (VECTOR, "numbers"), (Targets(1, {}), "of another")):
        with pytest.raises(TaskError, match=rf"language needs rows of words, .* are {are}"):
            Language(targets).check_targets("mine")
    Language(WORDS).check_targets("penn_treebank")
    with pytest.raises(TaskError, match=r"targets of voc2012 are classes of pixels; write task: s"):
        Classification(PIXELS).check_targets("voc2012")
    with pytest.raises(TaskError, match=r"of voc2012 are boxes; write task: detection$"):
        Segmentation(OBJECTS).check_targets("voc2012")
    with pytest.raises(TaskError, match=r"of cifar10 are labels of classes; write task: classific"):
        Detection(LABELS).check_targets("cifar10")
    with pytest.raises(TaskError, match=r"all labels of mine are of one class, with nothing to"):
        Classification(Targets(1)).check_targets("mine")
    Segmentation(PIXELS).check_targets("voc2012")
    Detection(OBJECTS).check_targets("voc2012")
    for task in (Regression, Classification):
        with pytest.raises(TaskError, match=r"targets of gymnasium/CartPole-v1 .* remove task"):
            task(ACTIONS).check_targets("gymnasium/CartPole-v1")
    with pytest.raises(TaskError, match=r"reinforcement needs an environment .* digits is none"):
        Reinforcement(LABELS).check_targets("digits")
    Reinforcement(ACTIONS).check_targets("gymnasium/CartPole-v1")
    Regression(VECTOR).check_targets("diabetes")
    Classification(LABELS).check_targets("digits")


def test_a_headline_knows_which_end_is_good_and_survives_a_record():
    rmse = Regression(VECTOR).headline
    assert rmse.improves(1.0, 2.0)
    assert not rmse.improves(2.0, 2.0)
    assert (rmse.error(3.0), ACCURACY.error(97.0)) == (3.0, 3.0)
    assert rmse.shown(62.807) == "62.81 points"
    assert ACCURACY.shown(99.444) == "99.44 %"
    assert Headline.of(Regression(VECTOR).facts()) == rmse
    assert Headline.of(CLASSES.facts()) is ACCURACY


def test_trees_of_tensors():
    tree = {"words": torch.arange(6).view(3, 2), "pair": (torch.zeros(3), torch.ones(3, 1))}
    assert trees.size(tree) == 3
    assert trees.numbers(tree) == 12
    assert [trees.size(part) for part in trees.split(tree, [1, 2])] == [1, 2]
    assert trees.split(tree, [1, 2])[1]["words"].tolist() == [[2, 3], [4, 5]]
    assert len(trees.each(tree)) == 3
    assert trees.size(trees.repeated(tree, 5)) == 5
    cast = trees.cast(tree, torch.float64)
    assert cast["words"].dtype == torch.int64
    assert cast["pair"][0].dtype == torch.float64
    shapes = {"image": Shape((3, 8, 8)), "age": Shape(())}
    assert trees.zeros(shapes, 2)["image"].shape == (2, 3, 8, 8)
    assert sorted(trees.described(shapes).split(", ")) == ["1", "3×8×8"]


def test_keys_around_a_pruning_end_with_the_unit():
    assert ACCURACY.around("before") == "prune/validation_top1_before_percent"
    assert Regression(VECTOR).headline.around("after") == "prune/validation_rmse_after_points"
    line = Language(WORDS).headline
    assert line.around("after") == "prune/validation_log_perplexity_after_nats"
    assert line.shown(4.3264) == "4.326 nats"
    assert Headline("rmse", "lower", 0.0, "RMSE").around("after") == "prune/validation_rmse_after"
