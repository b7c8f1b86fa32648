"""Pictures with masks and boxes: VOC's folders and plain ones, the same window for both."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from prunezoo.schema.data import AugmentConfig, DataConfig
from prunezoo.tasks.segmentation import IGNORED
from prunezoo.training.data.annotated import Boxes
from prunezoo.training.data.data import DataError, info, open_data
from prunezoo.training.data.layouts.voc import CLASSES, MOST_BOXES, read_objects
from prunezoo.training.data.scenes import main
from prunezoo.training.data.views import view
from tests.support.scenes import write_scenes

CPU = torch.device("cpu")
BORDER = torch.tensor([0, 0, 0], dtype=torch.uint8)
ALL = {"flip": True, "scale": [0.5, 2]}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("set") / "scenes", train=12, val=5)


def opened(folder, target="mask", rank=0, world_size=1, seed=0, **config):
    config = {"name": str(folder), "target": target, "sides": [24, 24], "workers": 0} | config
    config = DataConfig.model_validate(config)
    return open_data(config, seed=seed, device=CPU, rank=rank, world_size=world_size)


# ── windows ──────────────────────────────────────────────────────────────────────────────────────
def corners(height, width):
    """A picture whose green and blue are its row and column, its mask, and three boxes."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.stack([torch.full_like(rows, 200), rows, columns]).to(torch.uint8)
    boxes = torch.tensor([[3.0, 2.0, 9.0, 8.0], [20.0, 4.0, 28.0, 10.0], [5.0, 14.0, 15.0, 19.0]])
    mask = torch.zeros(height, width, dtype=torch.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes.long().tolist(), 1):
        mask[top:bottom, left:right] = number
    return picture, mask, boxes


@pytest.mark.parametrize("stretched", [True, False])
@pytest.mark.parametrize("draw", range(8))
def test_boxes_lie_around_their_masks_in_every_window(stretched, draw):
    picture, mask, boxes = corners(20, 32)
    draws = torch.rand(7, generator=torch.Generator().manual_seed(draw)).tolist()
    augment = AugmentConfig.model_validate(ALL)
    window = view((20, 32), (40, 48), augment, draws, stretched=stretched)
    shown, marked = window.picture(picture, BORDER), window.mask(mask, IGNORED)
    assert (shown.shape, marked.shape) == ((3, 40, 48), (40, 48))
    # the border of both is the same
    assert torch.equal(shown[0] == 0, marked == IGNORED)
    moved, inside = window.boxes(boxes, (20, 32))
    for number, (box, there) in enumerate(zip(moved, inside, strict=True), 1):
        rows, columns = torch.nonzero(marked == number, as_tuple=True)
        if not len(rows):
            assert not there
            continue
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        torch.testing.assert_close(torch.stack(found).float(), box, rtol=0, atol=1.01)


def test_without_draws_the_whole_picture_lies_in_the_middle():
    picture, mask, boxes = corners(20, 32)
    augment = AugmentConfig.model_validate(ALL)
    window = view((20, 32), (32, 32), augment, None, stretched=False)
    assert torch.equal(window.picture(picture, BORDER)[:, 6:26], picture)
    assert (window.mask(mask, IGNORED)[[*range(6), *range(26, 32)]] == IGNORED).all()
    moved, inside = window.boxes(boxes, (20, 32))
    assert inside.all()
    assert torch.equal(moved, boxes + torch.tensor([0.0, 6, 0, 6]))
    stretched = view((20, 32), (40, 32), augment, None, stretched=True)
    assert not (stretched.mask(mask, IGNORED) == IGNORED).any()
    moved, _ = stretched.boxes(boxes, (20, 32))
    assert torch.equal(moved, boxes * torch.tensor([1.0, 2, 1, 2]))


def test_a_box_whose_centre_is_outside_is_not_in_the_window():
    augment = AugmentConfig(scale=(2, 2))
    draws = [0.0] * 7
    draws[2] = 0.9  # not mirrored; the upper left quarter
    window = view((20, 32), (20, 32), augment, draws, stretched=True)
    boxes = torch.tensor([[10.0, 0, 20, 10], [12.0, 0, 20.5, 10]])
    moved, inside = window.boxes(boxes, (20, 32))
    assert inside.tolist() == [True, False]
    assert moved[0].tolist() == [20, 0, 32, 20]


# ── batches ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("target", ["mask", "boxes"])
def test_two_ranks_and_workers_see_what_one_process_does(scenes, target):
    whole = list(opened(scenes, target, augment=ALL).train_batches(1, 4))
    shares = [
        list(opened(scenes, target, rank, 2, augment=ALL, workers=rank).train_batches(1, 4))
        for rank in (0, 1)
    ]
    assert len(whole) == 3
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([p.inputs for p in parts]), batch.inputs)
        targets = [p.targets if target == "boxes" else {"mask": p.targets} for p in parts]
        together = batch.targets if target == "boxes" else {"mask": batch.targets}
        for key, value in together.items():
            assert torch.equal(torch.cat([t[key] for t in targets]), value)


def test_masks_and_boxes_of_composed_pictures_agree(scenes):
    (masks,) = opened(scenes).evaluation_batches("test", 8)
    (boxes,) = opened(scenes, "boxes").evaluation_batches("test", 8)
    assert torch.equal(masks.inputs, boxes.inputs)
    assert masks.inputs.shape == (5, 3, 24, 24)
    assert boxes.targets["boxes"].shape == (5, MOST_BOXES, 4)
    for image in range(5):
        there = boxes.targets["labels"][image] > 0
        labels = boxes.targets["labels"][image][there].tolist()
        assert set(labels) == set(masks.targets[image].unique().tolist()) - {0}
        for box, label in zip(boxes.targets["boxes"][image][there], labels, strict=True):
            left, top, right, bottom = (24 * box).round().long().tolist()
            inside = masks.targets[image][top:bottom, left:right] == label
            assert inside.any(0).all() or inside.any(1).all()
            assert inside[0].any()
            assert inside[:, -1].any()


def test_shapes_and_classes_are_those_of_the_folder(scenes):
    about = opened(scenes, validation=2).info
    assert (about.train_images, about.validation_images, about.test_images) == (10, 2, 5)
    assert (about.task, about.targets.outputs) == ("segmentation", 11)
    assert about.example.sizes == (3, 24, 24)
    assert opened(scenes, "boxes").info.task == "detection"


def test_vocs_sets_are_known_without_files():
    about = info(DataConfig(name="voc2012", target="mask"))
    assert (about.train_images, about.test_images, about.targets.outputs) == (1464, 1449, 21)
    assert about.example.sizes == (3, 480, 480)
    about = info(DataConfig(name="voc0712", target="boxes", validation=551))
    assert (about.train_images, about.validation_images, about.test_images) == (16000, 551, 4952)
    assert info(DataConfig(name="scenes", target="boxes")).targets.outputs == 4


def test_a_year_is_found_inside_the_kit_and_its_counts_are_checked(tmp_path):
    write_scenes(tmp_path / "VOCdevkit" / "VOC2012", train=3, val=2)
    config = {"name": "voc2012", "path": str(tmp_path)}
    with pytest.raises(DataError, match=r"20 classes, 3 and 2 pictures, expected 20 classes, 1464"):
        opened(tmp_path, **config)
    with pytest.raises(DataError, match=r"VOC2007/JPEGImages is missing; get VOC2007 from http"):
        opened(tmp_path, "boxes", **config | {"name": "voc0712"})
    both = r"VOC2007/JPEGImages and .*VOC2012/JPEGImages are missing; get VOC2007 and VOC2012 from"
    with pytest.raises(DataError, match=both):
        opened(tmp_path, "boxes", name="voc0712", path=str(tmp_path / "nowhere"))


def test_a_set_with_masks_and_boxes_wants_to_know_which():
    with pytest.raises(
        DataError, match=r"voc2012 has masks and boxes; write data.target: mask, or"
    ):
        info(DataConfig(name="voc2012"))


def test_plain_folders_of_images_and_masks(tmp_path):
    for part in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / part / kind).mkdir(parents=True)
        for number in range(3):
            picture, mask, _ = corners(20, 32)
            image = Image.fromarray(picture.permute(1, 2, 0).numpy())
            image.save(tmp_path / part / "images" / f"{number}.png")
            Image.fromarray(mask.numpy()).save(tmp_path / part / "masks" / f"{number}.png")
    with pytest.raises(
        DataError, match=r"classes.txt is missing; write the name of a class a line"
    ):
        opened(tmp_path)
    (tmp_path / "classes.txt").write_text("low\nhigh\nwide\n")
    data = opened(tmp_path, sides=[20, 32])
    (batch,) = data.evaluation_batches("test", 4)
    assert data.info.targets.outputs == 4
    assert torch.equal(batch.targets[0], corners(20, 32)[1].long())
    assert data.info.unused == ()
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    assert opened(tmp_path, sides=[20, 32]).info.unused == ("val",)
    with pytest.raises(
        DataError, match=r"neither JPEGImages and ImageSets/Main/train.txt; docs/data"
    ):
        opened(tmp_path, "boxes")


def test_the_command_says_what_it_wrote_and_keeps_what_is_there(tmp_path, capsys):
    words = ["--output", str(tmp_path / "set"), "--train", "2", "--val", "1", "--side", "24"]
    assert main(words) == 0
    assert "2 pictures to train on, 1 to test on" in capsys.readouterr().out
    assert main(words) == 2
    assert "holds other files; choose another --output" in capsys.readouterr().err
    assert main([*words[:1], str(tmp_path / "other"), "--classes", "11"]) == 2
    assert "--classes 11: the objects have 10; write fewer" in capsys.readouterr().err


# ── faults ───────────────────────────────────────────────────────────────────────────────────────
def annotation(*objects, head=""):
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in objects
    )
    return f"{head}<annotation>{things}</annotation>"


def test_an_annotation_counts_pixels_from_one(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(
        annotation(("cat", 1, 1, 10, 20.5), ("aeroplane", 3, 4, 5, 6)).replace(
            "</bndbox></object></annotation>",
            "</bndbox><difficult>1</difficult><part><name>head</name></part></object></annotation>",
        )
    )
    found = read_objects(path, CLASSES)
    assert found.boxes.tolist() == [[0, 0, 10, 20.5], [2, 3, 5, 6]]
    assert found.labels.tolist() == [8, 1]
    assert found.difficult.tolist() == [False, True]
    path.write_text(annotation())
    assert read_objects(path, CLASSES).boxes.shape == (0, 4)


OF_OTHER_PICTURES = {
    "larger": ("<size><width>80</width><height>60</height></size>", 9, "made for 60×80 pixels"),
    "turned": ("<size><width>20</width><height>32</height></size>", 9, "as its EXIF orientation"),
    "without a size": ("", 34, "a box reaches beyond the picture of 20×32 pixels; correct it"),
    "of size 0": ("<size><width>0</width><height>0</height></size>", 34, "beyond the picture of"),
}


@pytest.mark.parametrize("case", OF_OTHER_PICTURES)
def test_boxes_of_a_picture_of_another_size_are_refused(tmp_path, case):
    size, right, said = OF_OTHER_PICTURES[case]
    path = tmp_path / "a.xml"
    window = view((20, 32), (20, 32), AugmentConfig(), None, stretched=True)
    path.write_text(annotation(("cat", 1, 1, right, 9)).replace("<object>", f"{size}<object>"))
    with pytest.raises(DataError, match=said):
        Boxes.read(path, CLASSES, (20, 32), window)
    good = "<size><width>32</width><height>20</height></size>" if right == 9 else ""
    path.write_text(annotation(("cat", 1, 1, 33, 21)).replace("<object>", f"{good}<object>"))
    assert Boxes.read(path, CLASSES, (20, 32), window)[1].tolist()[:2] == [8, 0]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>'
XML = {
    "bomb": (annotation(("&c;", 1, 1, 2, 2), head=BOMB), "has no document type; remove it"),
    "outside": (annotation(head='<!DOCTYPE a SYSTEM "file:///etc/passwd">'), "no document type"),
    "other encoding": (annotation(head=BOMB).encode("utf-16"), "not a readable annotation"),
    "cut": (annotation(("cat", 1, 1, 9, 9))[:-20], "not a readable annotation (XML); copy it"),
    "long": (b" " * (2**20 + 1), "1048577 bytes are too many for an annotation"),
    "class": (annotation(("unicorn", 1, 1, 9, 9)), "'unicorn' is no known class; name it in cla"),
    "words": (annotation(("cat", "a", 1, 9, 9)), "is not four numbers; correct it"),
    "nan": (annotation(("cat", "nan", 1, 9, 9)), "is empty; correct it"),
    "backwards": (annotation(("cat", 9, 1, 3, 9)), "is empty; correct it"),
    "many": (annotation(*[("cat", 1, 1, 9, 9)] * 65), "65 objects are more than 64; remove some"),
}


@pytest.mark.parametrize("fault", XML)
def test_annotations_that_no_tool_of_vocs_writes_are_refused(tmp_path, fault):
    content, said = XML[fault]
    path = tmp_path / "a.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as raised:
        read_objects(path, CLASSES)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def broken(folder, fault):
    write_scenes(folder, train=3, val=2)
    mask = folder / "SegmentationClass" / "train_000001.png"
    lists = folder / "ImageSets" / "Segmentation" / "train.txt"
    match fault:
        case "no mask":
            mask.unlink()
        case "no picture":
            (folder / "JPEGImages" / "train_000002.jpg").unlink()
        case "number":
            Image.fromarray(np.full((24, 24), 77, dtype=np.uint8)).save(mask)
        case "colours":
            Image.new("RGB", (24, 24)).save(mask)
        case "size":
            Image.new("L", (24, 12)).save(mask)
        case "jpeg":
            mask.write_bytes((folder / "JPEGImages" / "train_000001.jpg").read_bytes())
        case "flipped bit":
            data = bytearray(mask.read_bytes())
            data[-20] ^= 4
            mask.write_bytes(bytes(data))
        case "path":
            lists.write_text("../../secret\n")
        case "empty list":
            lists.write_text("")
        case "no list":
            lists.unlink()
        case "classes":
            (folder / "classes.txt").write_text("a\na\n")


BROKEN = {
    "no mask": "SegmentationClass/train_000001.png is missing; copy it, or remove it from",
    "no picture": "JPEGImages/train_000002.jpg is missing; copy it, or remove it from",
    "number": "train_000001.png: 77 is none of classes 0 to 10, nor 255, which does not count",
    "colours": "train_000001.png: RGB is no mask; write a PNG with a palette, or in 8-bit grey",
    "size": "train_000001.png: picture and mask are 24×24 and 12×24; make them the same",
    "jpeg": "train_000001.png: not a readable PNG",
    "flipped bit": "train_000001.png: not a readable PNG",
    "path": "train.txt: '../../secret' is no name of a picture; remove it",
    "empty list": "train.txt: no pictures; copy it again",
    "no list": "train.txt is missing; it names a picture a line",
    "classes": "classes.txt: write 1 to 254 names of classes, each once, a line each",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_damaged_sets_are_named(tmp_path, fault):
    broken(tmp_path / "set", fault)
    with pytest.raises(DataError) as raised:
        list(opened(tmp_path / "set").evaluation_batches("train", 8))
    assert BROKEN[fault] in str(raised.value)


def test_masks_of_0_and_255_have_no_class(tmp_path):
    write_scenes(tmp_path / "set", train=3, val=2)
    for path in (tmp_path / "set" / "SegmentationClass").glob("val*.png"):
        found = np.asarray(Image.open(path))
        Image.fromarray(np.where(found > 0, 255, 0).astype(np.uint8)).save(path)
    said = r"SegmentationClass: 2 test masks hold 0 and 255 only; write 1 where the first class is"
    with pytest.raises(DataError, match=said):
        opened(tmp_path / "set")


def test_other_changes_of_pictures_are_refused(scenes):
    with pytest.raises(DataError, match=r"pictures with mask take scale and flip; remove the rest"):
        opened(scenes, augment={"rotation": 5})
    with pytest.raises(DataError, match=r"data.decoder means nothing for"):
        opened(scenes, decoder="gpu")
    with pytest.raises(ValueError, match=r"augment.scale is of pictures with masks or boxes"):
        DataConfig.model_validate({"name": "cifar10", "augment": {"scale": [0.5, 1]}})
    with pytest.raises(ValueError, match="sides are of pictures with depth, masks or boxes"):
        DataConfig.model_validate({"name": "cifar10", "sides": [8, 8]})
    with pytest.raises(ValueError, match="scale is a range of sizes such as"):
        DataConfig.model_validate(
            {"name": "voc2012", "target": "mask", "augment": {"scale": [2, 1]}}
        )
