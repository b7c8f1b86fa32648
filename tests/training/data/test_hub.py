import dataclasses
import time

import pytest

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.data import DataError
from prunezoo.training.data.layouts import hub, open_splits
from tests.support.image_files import (
    CLASSES,
    opened,
    pictures,
    png,
)

pytestmark = pytest.mark.usefixtures("cache")


@dataclasses.dataclass
class Loaded:
    """What load_dataset was asked for."""

    arguments: tuple = ()
    options: dict = dataclasses.field(default_factory=dict)
    images: list = dataclasses.field(default_factory=list)


@pytest.fixture
def loaded(monkeypatch):
    import datasets

    request = Loaded()
    request.images = [{"bytes": png(image), "path": None} for image in pictures(4)]

    def table(labels):
        features = {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=list(CLASSES))}
        features["coarse_label"] = datasets.ClassLabel(names=["a", "b"])
        rows = {"img": request.images, "fine_label": labels, "coarse_label": [0, 1, 0, 1]}
        return datasets.Dataset.from_dict(rows, features=datasets.Features(features))

    def load(*arguments, **options):
        request.arguments, request.options = arguments, options
        splits = {
            "train": table([0, 1, 2, 0]),
            "test": table([-1] * 4),
            "validation": table([2] * 4),
        }
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "_reachable", lambda: True)
    return request


def test_hub_data_sets_load_by_the_pinned_revision_and_run_no_code(loaded):
    data = opened("owner/photos", revision="abc123", columns={"label": "fine_label"})
    assert loaded.arguments == ("owner/photos",)
    assert loaded.options == {"name": None, "revision": "abc123"}
    assert data.stores["test"].labels.tolist() == [2, 2, 2, 2]  # `test` has no labels there
    assert data.stores["train"].labels.tolist() == [0, 1, 2, 0]


def test_columns_are_found_by_type_and_asked_for_when_that_is_not_enough(loaded):
    message = (
        r"which column holds the label\? Set data.columns.label to one of fine_label, coarse_l"
    )
    with pytest.raises(DataError, match=message):
        opened("owner/photos")
    splits = open_splits(DataConfig(name="cifar100"))
    assert loaded.arguments == ("uoft-cs/cifar100",)
    assert splits.train.labels.tolist() == [0, 1, 2, 0]


def test_without_the_hub_the_message_comes_at_once(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    start, before = time.monotonic(), datasets.config.HF_HUB_OFFLINE
    with pytest.raises(
        DataError, match=r"cifar10 was not found: .*hub cannot be reached.*hf download"
    ):
        opened("cifar10")
    assert time.monotonic() - start < 3
    assert before == datasets.config.HF_HUB_OFFLINE


def test_a_pinned_revision_is_not_replaced_by_whatever_is_cached(loaded, monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    with pytest.raises(DataError, match="revision abc123 is not in the cache"):
        opened("owner/photos", revision="abc123", columns={"label": "fine_label"})


def test_a_table_of_the_hub_names_images_of_its_cache_alone(loaded, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    inside, outside = tmp_path / "hub" / "downloads" / "x.png", tmp_path / "y.png"
    for path in (inside, outside):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pictures(1)[0]))
    columns = {"label": "fine_label"}
    loaded.images = [{"bytes": None, "path": str(inside)}] * 4
    assert opened("owner/photos", columns=columns).info.train_images == 4
    loaded.images = [{"bytes": None, "path": str(outside)}] * 4
    with pytest.raises(DataError, match=r"photos train, row 0: it names .*y.png, which is not in"):
        opened("owner/photos", columns=columns)
