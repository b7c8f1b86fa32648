"""Exported networks compute what PyTorch does, or are refused; times are taken in turns."""

import itertools
import json

import onnx
import pytest
import timm
import torch
import torchvision
from torch import nn

from prunezoo import models
from prunezoo.models import ModelError, export, speed
from prunezoo.models.export import TOLERANCE, export_onnx, export_program
from prunezoo.pruning import prune_once

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "timm": lambda: timm.create_model("test_resnet", num_classes=10),
    "torchvision": lambda: torchvision.models.squeezenet1_1(num_classes=10),
}


def pruned(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    prune_once(model, IMAGE, macs=0.5, criterion="magnitude")
    return model.eval()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


SMALL = torch.zeros(1, 3, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("make", [export_onnx, export_program])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_computes_the_same_elsewhere(name, make, tmp_path):
    model = pruned(name)
    file = make(model, tmp_path / "model", IMAGE, dynamic_batch=True)
    assert 0 <= file.difference <= TOLERANCE
    for size in (1, 2, 5):
        images = torch.randn(size, 3, 64, 64)
        with torch.no_grad():
            right = model(images)
        torch.testing.assert_close(file.run(images), right, rtol=0, atol=1e-4 * right.abs().max())
    assert file.bytes == (tmp_path / "model").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "small_lstm"])
@pytest.mark.parametrize("make", [export_onnx, export_program])
def test_vectors_and_rows_of_words_go_in_as_images_do(name, make, tmp_path):
    entry = models.MODELS[name]
    model = models.build(name, num_classes=12, in_channels=entry.channels).eval()
    example = entry.example(entry.channels)
    file = make(model, tmp_path / "model", example, dynamic_batch=True)
    assert 0 <= file.difference <= TOLERANCE
    others = torch.randint(12, (3, 8)) if entry.words else torch.randn(3, 10)
    with torch.no_grad():
        torch.testing.assert_close(file.run(others), model(others), rtol=0, atol=1e-4)


def test_an_onnx_file_tells_its_images_and_its_inputs(tmp_path):
    notes = {"images": {"height": 8}}
    file = export_onnx(small(), tmp_path / "m.onnx", SMALL, dynamic_batch=True, notes=notes)
    proto = onnx.load(file.path)
    assert {p.key: json.loads(p.value) for p in proto.metadata_props}["prunezoo"] == notes
    (images,) = proto.graph.input
    sizes = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert (images.name, sizes) == ("images", ["batch", 3, 8, 8])
    assert [output.name for output in proto.graph.output] == ["outputs"]


def test_a_program_holds_its_notes_and_a_fixed_batch(tmp_path):
    notes = {"images": {"height": 8}}
    file = export_program(small(), tmp_path / "m.pt2", SMALL, notes=notes)
    extra = {"prunezoo": ""}
    program = torch.export.load(file.path, extra_files=extra)
    assert json.loads(extra["prunezoo"]) == notes
    with pytest.raises(AssertionError, match="Guard failed"):
        program.module()(torch.zeros(2, 3, 8, 8))


def test_the_model_is_left_as_it_was(tmp_path):
    model = small().double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = export_program(model, tmp_path / "m.pt2", SMALL.double())
    assert file.run(SMALL).dtype == torch.float32
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_a_file_that_computes_something_else_is_refused_and_removed(wrong, tmp_path, monkeypatch):
    model = small()
    monkeypatch.setattr(export, "onnx_session", lambda _: lambda images: model(images) + wrong)
    with pytest.raises(ModelError, match=r"m.onnx: its outputs differ from PyTorch's by .* of the"):
        export_onnx(model, tmp_path / "m.onnx", SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [export_onnx, export_program])
def test_a_failed_comparison_leaves_the_earlier_file(make, tmp_path, monkeypatch):
    path = tmp_path / "model"
    make(small(), str(path), SMALL)
    before = path.read_bytes()
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="it is not kept; try the other format"):
        make(small(), path, SMALL)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("words", [torch.arange(8)[None], torch.zeros(1, 8, dtype=torch.long)])
def test_a_classifier_of_few_words_is_compared_on_them(words, tmp_path):
    model = nn.Sequential(nn.Embedding(8, 6), nn.Flatten(), nn.Linear(48, 50))
    file = export_program(model, tmp_path / "m.pt2", words, dynamic_batch=True)
    assert file.difference <= TOLERANCE


class Branching(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


class Pair(nn.Module):
    def forward(self, images):
        return images, images


@pytest.mark.parametrize(
    ("model", "image", "line"),
    [
        (Branching(), SMALL, "torch.export cannot express the network ("),
        (Pair(), SMALL, "Pair gives no single tensor; export a part that does"),
        (
            small(),
            (SMALL, SMALL),
            "Sequential: an example is a tuple, and one tensor is what can b",
        ),
        (small(), torch.zeros(1, 3, 9, 9), "Sequential cannot take 3×9×9 (RuntimeError: "),
    ],
)
def test_what_cannot_be_exported_is_one_line(model, image, line, tmp_path):
    with pytest.raises(ModelError) as caught:
        export_program(model, tmp_path / "m.pt2", image)
    assert str(caught.value).startswith(line)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    known = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnx" else known(name))
    with pytest.raises(ModelError, match=r"^ONNX needs onnx; pip install 'prunezoo\[export\]'$"):
        export_onnx(nn.Flatten(), tmp_path / "m.onnx", torch.zeros(1, 1, 8, 8))


def test_times_are_medians_of_rounds_in_turns(monkeypatch):
    """A clock that only the calls move; the machine slows down in the middle of it."""
    now, order = [0.0], []
    cost = {"a": itertools.chain([9.0] * 5, itertools.repeat(2.0)), "b": itertools.repeat(1.0)}
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def call(name: str) -> None:
        order.append(name)
        now[0] += next(cost[name])

    times = speed.medians({name: lambda name=name: call(name) for name in cost}, seconds=0.1)
    assert times == {"a": 2.0, "b": 1.0}
    assert "".join(order) == "ab" * (speed.WARMUPS + speed.LEAST)
