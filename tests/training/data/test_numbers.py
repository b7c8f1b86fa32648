"""Data whose targets are numbers: a table, colours of images, depths of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from prunezoo.schema.data import AugmentConfig, DataConfig
from prunezoo.training.data.data import DataError, info, open_data
from prunezoo.training.data.depth import resized
from prunezoo.training.data.finishing import LUMA

CPU = torch.device("cpu")


def opened(rank=0, world_size=1, seed=0, **config):
    config = DataConfig.model_validate(config)
    return open_data(config, seed=seed, device=CPU, rank=rank, world_size=world_size)


# ── a table ──────────────────────────────────────────────────────────────────────────────────────
def test_diabetes_is_the_same_for_every_seed_and_standard():
    data = opened(name="diabetes", drop_last=False)
    assert data.info == info(DataConfig(name="diabetes"))
    (train,) = data.evaluation_batches("train", 1000)
    (test,) = data.evaluation_batches("test", 1000)
    assert (train.inputs.shape, test.targets.shape) == ((354, 10), (88, 1))
    torch.testing.assert_close(train.inputs.mean(0), torch.zeros(10), rtol=0, atol=1e-5)
    torch.testing.assert_close(train.inputs.std(0), torch.ones(10), rtol=1e-4, atol=0)
    assert abs(float(train.targets.mean())) < 1e-5
    (other,) = opened(name="diabetes", seed=5).evaluation_batches("test", 1000)
    assert torch.equal(test.inputs, other.inputs)


def test_a_line_through_the_measures_predicts_as_is_known():
    """Ordinary least squares leaves about 54 points on the whole table, its deviation is 77."""
    data = opened(name="diabetes")
    (train,) = data.evaluation_batches("train", 1000)
    (test,) = data.evaluation_batches("test", 1000)
    line = torch.linalg.lstsq(train.inputs.double(), train.targets.double()).solution
    error = (test.inputs.double() @ line - test.targets).square().mean().sqrt()
    assert 45 < 77 * float(error) < 65


@pytest.mark.parametrize("target", ["diabetes", "synthetic"])
def test_two_ranks_see_what_one_does(target):
    config = {"name": target} if target == "diabetes" else COLOURS
    whole = list(opened(**config).train_batches(1, 8))
    shares = [list(opened(rank, 2, **config).train_batches(1, 8)) for rank in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([p.inputs for p in parts]), batch.inputs)
        assert torch.equal(torch.cat([p.targets for p in parts]), batch.targets)


# ── colours ──────────────────────────────────────────────────────────────────────────────────────
COLOURS = {
    "name": "synthetic",
    "target": "colour",
    "image_size": 12,
    "train_images": 32,
    "test_images": 8,
}


def test_what_goes_in_is_the_grey_of_what_should_come_out():
    augment = AugmentConfig(crop_padding=2, flip=True, rotation=20, resize=16)
    data = opened(**COLOURS, augment=augment.model_dump(), mean=[0.25], std=[0.5])
    assert data.info.example.sizes == (1, 16, 16)
    assert data.info.targets.shape.sizes == (3, 16, 16)
    for batch in data.train_batches(0, 16):
        assert 0 <= batch.targets.min() < batch.targets.max() <= 1
        luma = torch.tensor(LUMA).view(1, 3, 1, 1)
        grey = (batch.targets * luma).sum(1, keepdim=True)
        torch.testing.assert_close(batch.inputs * 0.5 + 0.25, grey, rtol=0, atol=1e-5)


def test_cutout_hides_what_is_to_be_found():
    plain, cut = (opened(**COLOURS, augment={"cutout": n}) for n in (0, 6))
    for a, b in zip(plain.train_batches(0, 16), cut.train_batches(0, 16), strict=True):
        assert torch.equal(a.targets, b.targets)
        assert (b.inputs == 0).double().mean() > 0.05
        assert torch.equal(a.inputs[b.inputs != 0], b.inputs[b.inputs != 0])


def test_grey_images_have_no_colours_to_find():
    with pytest.raises(DataError, match=r"mnist: data.target: colour needs images in colour"):
        info(DataConfig(name="mnist", target="colour"))


# ── depths ───────────────────────────────────────────────────────────────────────────────────────
def scene(number):
    """A picture (48, 64, 3) and its distances in metres (48, 64), some not measured."""
    draw = np.random.default_rng(number)
    depth = draw.uniform(0.5, 9.0, (48, 64)).astype(np.float32).round(3)
    depth[draw.random(depth.shape) < 0.1] = 0
    return draw.integers(0, 256, (48, 64, 3), dtype=np.uint8), depth


def write_pairs(folder, train=6, test=3):
    for part, numbers in (("train", range(train)), ("test", range(train, train + test))):
        (folder / part).mkdir(parents=True)
        for number in numbers:
            picture, depth = scene(number)
            Image.fromarray(picture).save(folder / part / f"{number}_colors.png")
            millimetres = (depth * 1000).round().astype(np.uint16)
            Image.fromarray(millimetres).save(folder / part / f"{number}_depth.png")
    return {"name": str(folder), "target": "depth", "sides": [24, 32], "target_sides": [12, 16]}


def test_pairs_of_files_are_read_in_metres(tmp_path):
    data = opened(**write_pairs(tmp_path / "rooms"), workers=0)
    assert (data.info.train_images, data.info.test_images) == (6, 3)
    assert data.info.targets.distances
    (batch,) = data.evaluation_batches("test", 8)
    assert (batch.inputs.shape, batch.targets.shape) == ((3, 3, 24, 32), (3, 1, 12, 16))
    assert set(batch.targets.flatten().tolist()) <= {
        float(np.float32(round(v * 1000) / np.float32(1000))) for n in (6, 7, 8)
        for v in scene(n)[1].flatten()
    }  # fmt: skip
    assert 0.05 < (batch.targets == 0).double().mean() < 0.2
    assert data.info.unused == ()
    (tmp_path / "rooms" / "val").mkdir()
    assert opened(**data.config.model_dump(exclude_unset=True)).info.unused == ("val",)


def test_mirrored_pictures_keep_their_depths(tmp_path):
    config = write_pairs(tmp_path / "rooms", train=12)
    plain, mirrored = (opened(**config, workers=0, augment={"flip": f}) for f in (False, True))
    flipped = 0
    for a, b in zip(plain.train_batches(0, 6), mirrored.train_batches(0, 6), strict=True):
        for x, y, u, v in zip(a.inputs, a.targets, b.inputs, b.targets, strict=True):
            turned = not torch.equal(x, u)
            flipped += turned
            assert torch.equal(x.flip(2) if turned else x, u)
            assert torch.equal(y.flip(2) if turned else y, v)
    assert 0 < flipped < 12


def test_the_middle_of_a_picture_lies_over_the_middle_of_its_depths():
    depth = torch.zeros(1, 240, 320)
    depth[:, 100:140, 140:180] = 2.0
    picture = (depth * 100).to(torch.uint8).expand(3, -1, -1).contiguous()
    image, target = resized((picture, depth), (228, 304), (228, 304))
    assert image.shape == (3, 228, 304)
    assert torch.equal(image[0] == 200, target[0] == 2.0)


def write_labelled(folder, total=9):
    h5py = pytest.importorskip("h5py")
    folder.mkdir()
    scenes = [scene(number) for number in range(total)]
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.stack([p.transpose(2, 1, 0) for p, _ in scenes])
        file["depths"] = np.stack([d.T for _, d in scenes])
    numbers = np.arange(1, total + 1)[:, None]
    savemat(folder / "splits.mat", {"trainNdxs": numbers[:6], "testNdxs": numbers[6:]})
    return {"name": str(folder), "target": "depth", "sides": [24, 32], "target_sides": [12, 16]}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_labelled_file_holds_what_the_pairs_do(tmp_path, workers):
    matlab = opened(**write_labelled(tmp_path / "mat"), workers=workers)
    pairs = opened(**write_pairs(tmp_path / "pairs"), workers=0)
    for split in ("train", "test"):
        (a,), (b,) = (d.evaluation_batches(split, 8) for d in (matlab, pairs))
        assert torch.equal(a.inputs, b.inputs)
        torch.testing.assert_close(a.targets, b.targets, rtol=0, atol=1e-6)


def faulty(folder, fault):
    config = write_pairs(folder)
    match fault:
        case "no depth":
            (folder / "train/3_depth.png").unlink()
        case "eight bits":
            Image.new("L", (64, 48)).save(folder / "train/0_depth.png")
        case "other size":
            Image.new("I;16", (32, 24)).save(folder / "train/0_depth.png")
        case "damaged":
            (folder / "train/0_depth.png").write_bytes(b"no image")
        case "no test":
            (folder / "test").rename(folder / "elsewhere")
    return config


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no depth", "3_depth.png is missing; copy it, or remove its picture"),
        ("eight bits", "0_depth.png: L 64×48 is no depth picture; write 16-bit grey"),
        ("other size", "0_depth.png: picture and distances are 48×64 and 24×32; make them the"),
        ("damaged", "0_depth.png: not a readable image; copy it again"),
        ("no test", "neither nyu_depth_v2_labeled.mat with splits.mat"),
    ],
)
def test_damaged_depths_are_named(tmp_path, fault, said):
    with pytest.raises(DataError) as raised:
        list(opened(**faulty(tmp_path / "rooms", fault), workers=0).evaluation_batches("train", 8))
    assert said in str(raised.value)


def test_other_changes_of_pictures_with_depth_are_refused(tmp_path):
    config = write_pairs(tmp_path / "rooms")
    with pytest.raises(DataError, match="are mirrored alone; write flip, or remove it"):
        opened(**config, augment={"rotation": 5})
    with pytest.raises(DataError, match=r"data.decoder means nothing for"):
        opened(**config, decoder="gpu")


def test_known_data_are_counted_without_files():
    about = info(DataConfig(name="nyu_depth_v2", validation=95))
    assert (about.train_images, about.validation_images, about.test_images) == (700, 95, 654)
    assert about.example.sizes == (3, 228, 304)
    with pytest.raises(DataError, match=r"neither nyu_depth_v2_labeled.mat"):
        opened(name="nyu_depth_v2", path="tests")
