"""SSD's loss and detections are torchvision's; average precision is that of a sorted list."""

import pytest
import torch
from torchvision.models.detection import _utils, ssd300_vgg16
from torchvision.ops import box_iou

from prunezoo.tasks.average_precision import BINS, THRESHOLDS, average_precision, bins, verdicts
from prunezoo.tasks.boxes import matched, offsets, overlaps, placed
from prunezoo.tasks.detection import KEYS, Detection
from tests.tasks.test_tasks import OBJECTS, examples, rows


@pytest.fixture(scope="module")
def theirs():
    """Torchvision's SSD, of which only the loss and the post-processing are used."""
    with torch.device("meta"):
        return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4)


def real(targets, image):
    there = targets["labels"][image] > 0
    return {key: value[image][there] for key, value in targets.items()}


def test_boxes_overlap_and_are_coded_as_torchvision_does():
    _, outputs, targets = examples("objects")
    anchors, boxes = outputs["anchors"][0], real(targets, 3)["boxes"]
    torch.testing.assert_close(overlaps(boxes, anchors), box_iou(boxes, anchors))
    coder = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(
        offsets(boxes[:1].expand(50, 4), anchors),
        coder.encode_single(boxes[:1].expand(50, 4), anchors),
    )
    there = placed(outputs["boxes"][0], anchors)
    torch.testing.assert_close(there, coder.decode_single(outputs["boxes"][0], anchors))
    torch.testing.assert_close(offsets(there, anchors), outputs["boxes"][0])


def test_anchors_are_matched_as_torchvision_does():
    _, outputs, targets = examples("objects")
    found = matched(overlaps(targets["boxes"], outputs["anchors"]), targets["labels"] > 0, 0.5)
    matcher = _utils.SSDMatcher(0.5)
    assert (found[0] == -1).all()  # no object in it
    for image in (1, 2, 3, 5):
        iou = box_iou(real(targets, image)["boxes"], outputs["anchors"][image])
        assert torch.equal(found[image], matcher(iou))


def test_of_two_objects_the_last_has_the_anchor_that_both_want():
    iou = torch.tensor([[[0.9, 0.1], [0.6, 0.3], [0.99, 0.99]]])
    there = torch.tensor([[True, True, False]])
    assert matched(iou, there, 0.5).tolist() == [[1, -1]]


@pytest.mark.parametrize("image", [1, 2, 3])
def test_an_images_loss_is_torchvisions(theirs, image):
    task, outputs, targets = examples("objects")
    loss = task.losses(outputs, targets)[image]
    truth = real(targets, image)
    iou = box_iou(truth["boxes"], outputs["anchors"][image])
    head = {"bbox_regression": outputs["boxes"][[image]], "cls_logits": outputs["logits"][[image]]}
    matches = [_utils.SSDMatcher(0.5)(iou)]
    parts = theirs.compute_loss([truth], head, [outputs["anchors"][image]], matches)
    torch.testing.assert_close(loss, sum(parts.values()))


def test_an_image_without_objects_teaches_nothing_and_is_no_nan():
    task, outputs, targets = examples("objects")
    outputs = {key: value[:1].clone().requires_grad_() for key, value in outputs.items()}
    loss = task.losses(outputs, rows(targets, slice(0, 1)))
    loss.sum().backward()
    assert loss.tolist() == [0]
    assert all(outputs[key].grad.isfinite().all() for key in ("logits", "boxes"))


def test_detections_are_torchvisions(theirs):
    _, outputs, _ = examples("objects")
    theirs.topk_candidates, theirs.detections_per_img = 400, 200
    head = {"bbox_regression": outputs["boxes"].float(), "cls_logits": outputs["logits"].float()}
    # their boxes are clipped to a picture of one pixel, ours to the whole
    anchors = [each.float() for each in outputs["anchors"]]
    expected = theirs.postprocess_detections(head, anchors, [(1, 1)] * 6)
    found = Detection(OBJECTS).detections({key: outputs[key].float() for key in KEYS})
    for (boxes, labels, scores), other in zip(found, expected, strict=True):
        torch.testing.assert_close(boxes, other["boxes"])
        torch.testing.assert_close(scores, other["scores"])
        assert torch.equal(labels, other["labels"])
        assert len(boxes) > 20


def right_and_wrong(shared, labels, threshold, truth):
    """Verdicts in the order of scores, by Pascal VOC's rule, one at a time."""
    taken, found = set(), []
    for row, label in zip(shared, labels, strict=True):
        best, thing = 0.0, None
        for number, overlap in enumerate(row):
            if truth["labels"][number] == label and overlap > best:
                best, thing = overlap, number
        near = thing is not None and best >= threshold
        difficult = near and bool(truth["difficult"][thing])
        right = near and not difficult and thing not in taken
        taken |= {thing} if right else set()
        found.append((right, not right and not difficult))
    return found


def test_verdicts_are_those_of_one_detection_after_another():
    task, outputs, targets = examples("objects")
    seen = set()
    for image, (boxes, labels, _) in enumerate(task.detections(outputs)):
        truth = {key: value[image] for key, value in targets.items()}
        truth["boxes"] = truth["boxes"].float()
        # each object is also found well twice, or these detections would hardly be right
        there = truth["labels"] > 0
        boxes = torch.cat([truth["boxes"][there] + 0.003, boxes, truth["boxes"][there]])
        labels = torch.cat([truth["labels"][there], labels, truth["labels"][there]])
        right, wrong = verdicts(boxes, labels, truth)
        shared = [[float(overlaps(a[None], b[None])) for b in truth["boxes"]] for a in boxes]
        for row in (0, 5, 9):
            expected = right_and_wrong(shared, labels.tolist(), THRESHOLDS[row], truth)
            assert list(zip(right[row].tolist(), wrong[row].tolist(), strict=True)) == expected
            seen |= set(expected)
    assert seen == {(True, False), (False, True), (False, False)}


def curve(verdict, objects):
    """The area under the highest precision at each recall, of verdicts in the order of scores."""
    hits, points = 0, []
    for place, right in enumerate(verdict, 1):
        hits += right
        points.append((hits / objects, hits / place))
    area, before = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[place:])
        before = recall
    return area


def counts(verdict, places):
    right = torch.zeros(1, 1, BINS, dtype=torch.float64)
    wrong = torch.zeros_like(right)
    for hit, place in zip(verdict, places, strict=True):
        (right if hit else wrong)[0, 0, place] += 1
    return right, wrong


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_a_sorted_list(seed):
    draw = torch.Generator().manual_seed(seed)
    verdict = (torch.rand(60, generator=draw) < 0.4).tolist()
    places = torch.randperm(BINS, generator=draw)[:60].sort(descending=True).values.tolist()
    found = average_precision(*counts(verdict, places), torch.tensor([40.0]).double())
    assert float(found) == pytest.approx(curve(verdict, 40), rel=1e-12)


def test_average_precisions_by_hand():
    def precision(verdict, objects, places):
        return float(average_precision(*counts(verdict, places), torch.tensor([objects]).double()))

    assert precision([True, True], 2, [9, 8]) == 1
    assert precision([True, True], 4, [9, 8]) == 0.5
    assert precision([False, True], 1, [9, 8]) == 0.5
    assert precision([True, False, True], 2, [9, 8, 7]) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert precision([False, True], 1, [9, 9]) == 0.5  # equally certain: neither comes first
    assert precision([True, False], 1, [9, 9]) == 0.5
    assert precision([], 1, []) == 0
    none = torch.zeros(1, dtype=torch.float64)
    assert float(average_precision(*counts([False], [3]), none)) == 0


def test_classes_that_do_not_occur_are_no_part_of_the_mean():
    right, wrong = (torch.zeros(1, 3, BINS, dtype=torch.float64) for _ in range(2))
    right[0, 0, 5] = wrong[0, 1, 5] = wrong[0, 2, 7] = 1
    objects = torch.tensor([1.0, 1.0, 0.0]).double()
    assert float(average_precision(right, wrong, objects)) == 0.5


def test_a_step_of_scores_is_one_percent_of_their_odds():
    scores = torch.tensor([0.01, 0.5, 0.5024, 0.9, 1.0, 0.0])
    assert bins(scores).tolist() == [40, 500, 500, 719, BINS - 1, 0]


def test_a_perfect_network_has_full_marks_and_one_that_sees_nothing_none():
    *_, targets = examples("objects")
    difficult = targets["difficult"].clone()
    targets["difficult"] &= False
    anchors = targets["boxes"]
    logits = torch.nn.functional.one_hot(targets["labels"], 4).double()
    perfect = {"logits": 20 * logits, "boxes": torch.zeros_like(anchors), "anchors": anchors}
    # two objects of a class may overlap by more than detections may
    figures = Detection(OBJECTS, overlap=0.99)
    metrics = figures.metrics(figures.sums(perfect, targets))
    assert metrics["map50_percent"] == metrics["map_percent"] == 100
    blind = perfect | {"logits": torch.tensor([20.0, 0, 0, 0]).expand_as(logits)}
    assert figures.metrics(figures.sums(blind, targets))["map50_percent"] == 0
    targets["difficult"] = difficult
    assert difficult.any()
    assert figures.metrics(figures.sums(perfect, targets))["map50_percent"] == 100
