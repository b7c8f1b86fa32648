"""A model is loaded from a file, from the folder that holds it, or from the hub's cache."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from prunezoo.models import ModelError, build, header, load, save

REVISION = "0123456789abcdef0123456789abcdef01234567"
IMAGE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path) -> Path:
    """A folder with a model."""
    folder = tmp_path / "release"
    folder.mkdir()
    save(build("digits_cnn", num_classes=4, in_channels=1), folder / "model.safetensors", {"a": 1})
    return folder


@pytest.fixture
def cache(saved, tmp_path, monkeypatch) -> Path:
    """The hub's cache, offline, with the model as owner/name."""
    repository = tmp_path / "hub/models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(REVISION)
    (repository / "snapshots").mkdir()
    saved.rename(repository / "snapshots" / REVISION)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots" / REVISION


def test_a_folder_is_loaded_by_the_model_in_it(saved):
    assert torch.equal(load(saved)(IMAGE), load(saved / "model.safetensors")(IMAGE))
    assert header(saved)["notes"] == {"a": 1}


@pytest.mark.parametrize("address", ["hf://owner/name", "hf://owner/name@main", "hf:/owner/name"])
def test_the_cache_is_enough_without_a_network(cache, address):
    assert torch.equal(load(address)(IMAGE), load(cache)(IMAGE))
    # as recipes and command lines may have made a path of it
    assert header(Path(address))["notes"] == {"a": 1}


@pytest.mark.parametrize(
    ("address", "line"),
    [
        (
            "hf://owner/other",
            "hf://owner/other: model.safetensors is not in the Hugging F",
        ),
        (
            "hf://owner/name@v2",
            "hf://owner/name@v2: model.safetensors is not in the Hugging",
        ),
        ("hf://owner", "hf://owner: not an address on the hub; write hf://owner/name or"),
        ("hf://owner/name/file", "not an address on the hub"),
        ("hf://--o/n--", "hf://--o/n--: not a name of a repository; write hf://owner/name"),
    ],
)
def test_what_cannot_be_reached_is_one_line(cache, address, line):
    with pytest.raises(ModelError) as caught:
        load(address)
    assert str(caught.value).startswith(line) or line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_line_says_how_to_fetch_it(cache):
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set; fetch it once with a network"):
        load("hf://owner/other")


def test_a_repository_without_a_model_says_so(monkeypatch):
    import huggingface_hub

    def gone(*_, **__):
        raise huggingface_hub.errors.EntryNotFoundError("https://secret")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gone)
    with pytest.raises(ModelError, match=r"^hf://owner/name: has no file model.safetensors; name"):
        load("hf://owner/name")
