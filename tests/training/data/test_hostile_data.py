"""Class folders and kept files that are broken or hostile: one sentence, with a fitting remedy."""

import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from prunezoo.training.data.data import DataError
from prunezoo.training.data.layouts import cache as keeping
from prunezoo.training.data.layouts import labels
from tests.support.image_files import (
    CLASSES,
    opened,
    pictures,
    png,
    write,
    write_folders,
    write_photographs,
    write_shards,
)
from tests.support.refusals import (
    PNG,
    STREAMED,
    read_all,
    refused,
)

pytestmark = pytest.mark.usefixtures("cache")


LINKS = {
    "dangling": (
        lambda a: (a / "gone.png").symlink_to("/nowhere/x.png"),
        r"train/ant/gone.png: a link to /nowhere/x.png, which is not there; copy it again",
    ),
    "to itself": (
        lambda a: (a / "self.png").symlink_to("self.png"),
        "self.png: Too many levels of symbolic links; remove the link, which leads back to itself",
    ),
    "to its folder": (
        lambda a: (a / "loop").symlink_to(".."),
        "ant/loop/ant: a link to a folder that it lies in; remove the link",
    ),
    "to a device": (
        lambda a: (a / "z.png").symlink_to("/dev/zero"),
        "z.png: a pipe or device, not an im",
    ),
    "a pipe": (lambda a: os.mkfifo(a / "p.png"), "p.png: a pipe or device, not an image; remove"),
    "to text": (lambda a: (a / "t.png").symlink_to("/etc/passwd"), "t.png: not a readable image"),
}


@pytest.mark.parametrize("fault", LINKS)
def test_links_that_lead_nowhere(tmp_path, fault, kind):
    write_folders(tmp_path / "set")
    spoil, message = LINKS[fault]
    spoil(tmp_path / "set" / "train" / "ant")
    refused(tmp_path / "set", message, **kind)


def test_links_that_lead_somewhere_are_followed(tmp_path, kind):
    train, _ = write_folders(tmp_path / "real")
    for split in ("train", "val"):
        (tmp_path / "set" / split).mkdir(parents=True)
        for name in CLASSES:
            (tmp_path / "set" / split / name).symlink_to(tmp_path / "real" / split / name)
    assert read_all(tmp_path / "set", **kind).info.train_images == len(train)


def test_names_that_are_no_text(tmp_path, kind):
    """Class and file names of any bytes; before, the key of kept pixels could not be made."""
    write_folders(tmp_path / "set")
    for split in (b"train", b"val"):
        folder = os.fsencode(tmp_path / "set") + b"/" + split
        os.rename(folder + b"/cow", folder + b"/\xff\xfe")
    shutil.copyfile(
        tmp_path / "set" / "train" / "ant" / "000.png",
        os.fsencode(tmp_path / "set") + b"/train/ant/\xfc\n\xe4 .png",
    )
    data = read_all(tmp_path / "set", **kind)
    assert data.info.targets.outputs == 3
    assert data.info.train_images == 10


def test_a_folder_of_a_long_path_is_kept_under_a_short_name(tmp_path):
    place = tmp_path.joinpath(*["a" * 60] * 5)
    write_folders(place)
    opened(place)
    assert list((tmp_path / "cache").glob("*.safetensors"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_while_training_runs(tmp_path, workers):
    write_photographs(tmp_path / "set")
    data = opened(tmp_path / "set", image_size=32, workers=workers)
    (tmp_path / "set" / "train" / "bee" / "1.JPEG").unlink()
    with pytest.raises(DataError, match=r"bee/1.JPEG: No such file or directory; copy it again$"):
        list(data.train_batches(0, 4))


def test_an_image_of_gigabytes_is_not_read(tmp_path):
    write_folders(tmp_path / "set")
    with (tmp_path / "set" / "train" / "ant" / "big.png").open("wb") as file:
        file.truncate(2**31)
    refused(tmp_path / "set", r"big.png: 2147483648 bytes are too many for an image")


ANNOTATIONS = {
    "no class": (b"0.png\n", r"no file .*0.png or no class \(none\)"),
    "another folder": (b"../../train/ant/000.png\tant\n", "no file .*or no class ant"),
    "no text": (b"\xff\xfe\t\xff\n", "val_annotations.txt: no file"),
    "nothing": (b"\n", "val_annotations.txt: empty file"),
}


@pytest.mark.parametrize("fault", ANNOTATIONS)
def test_annotations_of_tiny_imagenet(tmp_path, fault):
    text, message = ANNOTATIONS[fault]
    write_folders(tmp_path / "set")
    write(tmp_path / "set" / "val" / "images" / "0.png", PNG)
    write(tmp_path / "set" / "val" / "val_annotations.txt", text)
    refused(tmp_path / "set", message)


def test_what_the_system_refuses_is_named(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied", "x/train")

    monkeypatch.setattr("prunezoo.training.data.layouts.folders._class_folders", denied)
    write_folders(tmp_path / "set")
    refused(tmp_path / "set", r"^x/train: Permission denied; let this user read it$")


@pytest.mark.parametrize(
    "content",
    [
        {"zzz": torch.zeros(1)},
        {"images0": torch.zeros(9, 3, 12, 12), "images1": torch.zeros(3, 3, 12, 12)},
        {"images0": torch.zeros(8, 3, 12, 12, dtype=torch.uint8)},
    ],
)
def test_a_cache_of_other_content_is_made_again(tmp_path, cache, content):
    train, _ = write_folders(tmp_path / "set")
    opened(tmp_path / "set")
    (file,) = cache.glob("*.safetensors")
    save_file(content, file)
    assert torch.equal(opened(tmp_path / "set").stores["train"].bordered, train)


@pytest.mark.parametrize(
    "row", [(9, 0, 10, 0), (0, -5, 10, 0), (0, 0, 10**12, 0), (0, 0, 10, -1), (0, 2**62, 2**62, 0)]
)
def test_an_index_of_other_shards_is_made_again(tmp_path, cache, row):
    write_shards(tmp_path / "set")
    good = read_all(tmp_path / "set", **STREAMED).stores["train"].labels
    for file in cache.glob("tar-index*"):
        save_file({"index": torch.tensor([row])}, file)
    assert torch.equal(read_all(tmp_path / "set", **STREAMED).stores["train"].labels, good)


def test_the_key_of_what_is_kept_takes_any_path(tmp_path):
    file = tmp_path / os.fsdecode(b"\xff.png")
    file.write_bytes(b"x")
    assert len(keeping._key([file], ())) == 20


def test_labels_are_counted_from_zero():
    assert labels.checked([0, 2], str, 3).tolist() == [0, 2]
    assert labels.checked([0], str).dtype == torch.int64
    with pytest.raises(DataError, match=r"^0: there are no labels"):
        labels.checked([], str)
    with pytest.raises(DataError, match=r"^1: label \[0, 1, 2, 3, 4, 5, ...\] is not"):
        labels.checked([0, list(range(10**6))], str)


def test_the_command_names_the_image_and_the_remedy(run_recipe, tmp_path, monkeypatch, capfd):
    write_photographs(tmp_path / "set")
    bad = tmp_path / "set" / "train" / "cow" / "2.JPEG"
    data = f"data={{name: {tmp_path / 'set'}, image_size: 32, workers: 2, stream: true}}"
    small = ["model=digits_cnn", "training.batch_size=4", "training.duration=1ep", data]
    whole = png(pictures(1, 64)[0])
    for content in (whole[:900] + bytes([whole[900] ^ 4]) + whole[901:], None):
        if content is None:
            bad.unlink()
            bad.symlink_to("/nowhere/x.png")
        else:
            bad.write_bytes(content)
        status, _ = run_recipe("recipes/quickstart.yaml", *small, folder=f"run{content is None}")
        errors = capfd.readouterr().err.splitlines()
        assert status == 2
        assert [line for line in errors if str(bad) in line] == errors[-1:]
        assert errors[-1].endswith("copy it again")
