"""Model files: what is saved comes back, and a file can do nothing but give its tensors."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prunezoo.models import ModelError, build, header, load, load_into, save
from prunezoo.models.bias_map import add_bias_map
from prunezoo.models.files.description import FORMAT

LAST = "classifier.weight"


def prune_first_block(model: nn.Module, names: list[str], keep: list[int]) -> None:
    """Keep some outputs of conv `names[0]` with BatchNorm `names[1]`, read by conv `names[2]`."""
    conv, norm, reader = (model.get_submodule(name) for name in names)
    conv.weight = nn.Parameter(conv.weight.detach()[keep])
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias.detach()[keep])
    conv.out_channels = len(keep)
    for key in ("weight", "bias"):
        setattr(norm, key, nn.Parameter(getattr(norm, key).detach()[keep]))
    for key in ("running_mean", "running_var"):
        setattr(norm, key, getattr(norm, key)[keep])
    norm.num_features = len(keep)
    reader.weight = nn.Parameter(reader.weight.detach()[:, keep])
    reader.in_channels = len(keep)


BLOCKS = {
    "resnet18_cifar": ["stage1.0.conv1", "stage1.0.bn1", "stage1.0.conv2"],
    "resnet56": ["stage1.0.conv1", "stage1.0.bn1", "stage1.0.conv2"],
    "earlycrop_resnet18": ["stage1.0.conv1", "stage1.0.bn1", "stage1.0.conv2"],
    "bep_vgg16": ["features.0", "features.1", "features.3"],
    "timm/test_resnet": ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2"],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_pruned_model_is_the_same_after_save_and_load(name, tmp_path):
    torch.manual_seed(0)
    options = {} if name.startswith("timm/") else {"width": 0.25}
    model, images = build(name, num_classes=5, **options), torch.randn(2, 3, 32, 32)
    prune_first_block(model, BLOCKS[name], [0, 2, 3])
    model(images)
    model.get_submodule(BLOCKS[name][1]).weight.requires_grad_(False)
    save(model, tmp_path / "model.safetensors", {"top1_percent": 93.1})
    again = load(tmp_path / "model.safetensors")
    assert not again.training
    assert torch.equal(again(images), model.eval()(images))
    assert again.structure == model.structure
    assert repr(again) == repr(model)
    assert header(tmp_path / "model.safetensors")["notes"] == {"top1_percent": 93.1}
    assert header(tmp_path / "model.safetensors")["structure"]["widths"][BLOCKS[name][0]] == {
        "in_channels": model.get_submodule(BLOCKS[name][0]).in_channels,
        "out_channels": 3,
        "groups": 1,
    }
    first = (tmp_path / "model.safetensors").read_bytes()
    save(again, tmp_path / "model.safetensors", {"top1_percent": 93.1})
    assert (tmp_path / "model.safetensors").read_bytes() == first


def act(model):
    model.stem[2] = nn.SiLU()


def stride(model):
    model.stem[0].stride = (2, 2)


def dropout(model):
    model.classifier = nn.Sequential(nn.Dropout(0.5), model.classifier)


def wider(model):
    block = ["stage1.1.conv1", "stage1.1.bn1", "stage1.1.conv2"]
    prune_first_block(model, block, [*range(16), 0])  # one unit twice


@pytest.mark.parametrize("change", [act, stride, dropout, wider])
def test_a_network_that_was_changed_after_build_is_its_owners(change, tmp_path):
    models = [build("resnet18_cifar", num_classes=5, width=0.25) for _ in range(2)]
    for model in models:
        change(model)
        model.eval()
    prune_first_block(models[0], BLOCKS["resnet18_cifar"], [0, 2, 3])
    save(models[0], tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"a Sequential that was not made by models.build, or cha"):
        load(tmp_path / "a.safetensors")
    load_into(models[1], tmp_path / "a.safetensors")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(models[1](images), models[0](images))


@pytest.mark.parametrize("classes", [3, 20])
def test_a_head_of_other_classes_is_in_the_structure(classes, tmp_path):
    model, images = build("resnet18_cifar", num_classes=5, width=0.25), torch.randn(2, 3, 32, 32)
    model.classifier = nn.Linear(model.classifier.in_features, classes)
    prune_first_block(model, BLOCKS["resnet18_cifar"], [0, 2, 3, 4, 5])  # as many as classes built
    state = torch.get_rng_state()
    save(model, tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    again = load(tmp_path / "a.safetensors")
    assert again.structure == model.structure | {"num_classes": classes}
    assert torch.equal(again(images), model.eval()(images))


def test_biases_and_bias_maps_that_pruning_added_are_kept(tmp_path):
    torch.manual_seed(0)
    model = build("resnet18_cifar", num_classes=7, width=0.1).eval()
    images = torch.randn(4, 3, 32, 32)
    block = model.get_submodule("stage2.0")
    block.conv1.bias = nn.Parameter(torch.randn(12))
    add_bias_map(block.conv2, torch.randn(12, 16, 16))
    save(model, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors")(images), model(images))


def test_half_precision_stays_half_precision(tmp_path):
    model = build("digits_cnn", num_classes=10, in_channels=1).bfloat16()
    save(model, tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").get_parameter(LAST).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("part", [False, True])
def test_only_the_model_itself_is_saved(tmp_path, part):
    model = build("digits_cnn", num_classes=10, in_channels=1)
    for wrapper, said in (
        (nn.DataParallel(model), r"is wrapped in DataParallel; pass its \.module$"),
        (
            torch.compile(model),
            r"was compiled by torch\.compile; pass the original \(\._orig_mod\)",
        ),
    ):
        whole = nn.Sequential(wrapper) if part else wrapper
        with pytest.raises(ModelError, match=("^0 " if part else "^the model ") + said):
            save(whole, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    model = build("digits_cnn", num_classes=10, in_channels=1)
    save(model, path)
    before = path.read_bytes()

    def full_disk(tensors, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prunezoo.models.files.tensor_files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(model, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_tables_that_a_state_leaves_out_are_there_again(tmp_path):
    torch.manual_seed(0)
    model, images = build("timm/test_vit_relpos", num_classes=5).eval(), torch.randn(2, 3, 160, 160)
    held = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    assert held  # else this says nothing
    save(model, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors")(images), model(images))


def test_files_of_earlier_versions_have_no_checksum_and_load(tmp_path):
    model, path = build("digits_cnn", num_classes=10, in_channels=1), tmp_path / "a.safetensors"
    structure = model.structure | {"widths": {}}
    described = {"format": FORMAT, "structure": structure, "notes": {"seed": 3}}
    save_file(model.state_dict(), path, {"prunezoo": json.dumps(described)})
    assert torch.equal(load(path).get_parameter(LAST), model.get_parameter(LAST))
    assert header(path) == {"structure": structure, "notes": {"seed": 3}}


def test_a_flipped_bit_is_never_another_network(tmp_path):
    """One bit in 150 of all: in the length, the header, the description or the weights."""
    path, damaged = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save(build("digits_cnn", num_classes=10, in_channels=1, width=0.5), path, {"seed": 3})
    whole, rng, loaded = path.read_bytes(), random.Random(4), 0
    head = int.from_bytes(whole[:8], "little") + 8
    for number in range(150):
        data = bytearray(whole)
        data[rng.randrange(head if number % 3 else len(whole))] ^= 1 << rng.randrange(8)
        damaged.write_bytes(data)
        try:
            again = load(damaged)
        except ModelError:
            continue
        loaded += 1
        assert header(damaged) == header(path)
        for name, tensor in load_file(path).items():
            assert torch.equal(again.state_dict()[name], tensor)
    assert loaded <= 3  # of padding and the like


def test_a_changed_weight_or_note_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    save(build("digits_cnn", num_classes=10, in_channels=1), path, {"seed": 3})
    whole = path.read_bytes()
    for damage in (whole[:-1] + b"\x55", whole.replace(b'\\"seed\\": 3', b'\\"seed\\": 4')):
        assert damage != whole
        path.write_bytes(damage)
        with pytest.raises(ModelError, match=r"a\.safetensors: damaged since it was written: its"):
            load(path)


def test_notes_are_what_json_can_hold(tmp_path):
    model = build("digits_cnn", num_classes=10, in_channels=1)
    with pytest.raises(ModelError, match=r"notes that JSON cannot hold: .*PosixPath"):
        save(model, tmp_path / "a.safetensors", {"where": tmp_path})
    assert not list(tmp_path.iterdir())


def test_weights_that_a_network_uses_twice_are_kept(tmp_path):
    torch.manual_seed(0)
    model, images = build("timm/coat_lite_tiny", num_classes=5).eval(), torch.randn(1, 3, 224, 224)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert torch.equal(again(images), model(images))
    assert len(list(again.parameters())) == len(list(model.parameters()))
