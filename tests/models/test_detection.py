"""SSDs and FCNs compute what torchvision's do, lose channels as masks do, take trunks' weights."""

from pathlib import Path

import pytest
import torch
import torchvision
from huggingface_hub import constants
from torch.nn import BatchNorm2d
from torchvision.models.detection.image_list import ImageList

from prunezoo.models import MODELS, ModelError, build, load, save
from prunezoo.models.axes.find import axes, shrink
from prunezoo.models.pretrained import pretrained_for
from tests.models.test_axes import masked_copy, random_keep, randomise

SIZES = {"ssd300_vgg16": 300, "ssdlite_mobilenet_v3": 320}
THEIRS = {
    "ssd300_vgg16": "ssd300_vgg16",
    "ssdlite_mobilenet_v3": "ssdlite320_mobilenet_v3_large",
}
OPTIONS = {"ssd300_vgg16": {}, "ssdlite_mobilenet_v3": {"reduced_tail": True}}
FCN = "torchvision/fcn_resnet50"


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_an_ssd_is_torchvisions_without_what_comes_after_it(name):
    ours = build(name, num_classes=5, **OPTIONS[name]).eval()
    theirs = torchvision.models.get_model(
        THEIRS[name], weights=None, weights_backbone=None, num_classes=5
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(1, 3, SIZES[name], SIZES[name], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, maps = ours(x), list(theirs.backbone(x).values())
        head = theirs.head(maps)
        (anchors,) = theirs.anchor_generator(ImageList(x, [tuple(x.shape[2:])]), maps)
    assert torch.equal(found["logits"], head["cls_logits"])
    assert torch.equal(found["boxes"], head["bbox_regression"])
    torch.testing.assert_close(found["anchors"][0] * SIZES[name], anchors)


@pytest.mark.parametrize(
    ("name", "anchors"),
    [("ssd300_vgg16", 8732), ("ssd512_vgg16", 24564), ("ssdlite_mobilenet_v3", 3234)],
)
def test_anchors_are_as_many_as_in_the_papers(name, anchors):
    side = MODELS[name].size
    with torch.device("meta"):
        model = build(name, num_classes=21)
    found = model(torch.zeros(2, 3, side, side, device="meta"))
    assert found["logits"].shape == (2, anchors, 21)
    assert found["boxes"].shape == found["anchors"].shape == (2, anchors, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "axes_", "units"), [("ssd300_vgg16", 22, 7680)])
def test_trunk_and_head_lose_channels_as_masks_do(name, axes_, units):
    """All but what L2-normalises over its channels, and the outputs."""
    torch.manual_seed(0)
    model = randomise(build(name, num_classes=5, **OPTIONS[name])).float()
    x = torch.randn(1, 3, SIZES[name], SIZES[name])
    channels = axes(model, x, verify=False)
    assert (len(channels.widths), sum(channels.widths.values())) == (axes_, units)
    kinds = {reason.rpartition(": ")[2] for reason in channels.fixed.values()}
    norm = "linalg_vector_norm over channels"
    assert kinds == {"the image's channels", "the network's output", norm}
    keep = random_keep(channels, least=8)
    masked = masked_copy(model, channels, keep)
    shrink(model, channels, keep)
    with torch.no_grad():
        expected, found = masked(x), model(x)
    for key in ("logits", "boxes"):
        scale = float(expected[key].abs().max())
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-4 * scale)


def test_a_small_ssd_is_saved_pruned_and_read_again(tmp_path):
    torch.manual_seed(0)
    model = build("small_ssd", num_classes=4, width=0.5).eval()
    x = torch.randn(2, 3, 64, 64)
    channels = axes(model, x[:1])
    assert set(channels.widths) == {f"backbone.stages.{i}.0" for i in range(5)}
    shrink(model, channels, random_keep(channels, least=2))
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    for key, value in model(x).items():
        assert torch.equal(again(x)[key], value)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Torch's cache, empty, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def put(cache, weights, network):
    """A classifier's tensors in the place of some weights."""
    tensors = network.state_dict()
    torch.save(tensors, cache / Path(weights.url).name)
    return tensors


def test_an_ssdlite_starts_from_the_weights_of_its_trunk(cache):
    name = "ssdlite_mobilenet_v3"
    with pytest.raises(OSError, match=r"neither in torch's cache"):
        build(name, num_classes=5, pretrained=True)
    weights = torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V1
    torch.manual_seed(1)
    tensors = put(cache, weights, torchvision.models.mobilenet_v3_large())
    model = build(name, num_classes=5, pretrained=True)
    first, last = (model.get_submodule("backbone.features")[i] for i in (0, 1))
    assert torch.equal(first[0][0].weight, tensors["features.0.0.weight"])
    assert torch.equal(last[-1][0].weight, tensors["features.16.0.weight"])
    norm = next(m for m in model.modules() if isinstance(m, BatchNorm2d))
    assert (norm.eps, norm.momentum) == (0.001, 0.03)
    with pytest.raises(ModelError, match=r"weights have the whole tail; write reduced_tail: false"):
        build(name, num_classes=5, pretrained=True, reduced_tail=True)
    with pytest.raises(
        ModelError, match=r"has one trunk with ImageNet's weights; write pretrained"
    ):
        pretrained_for(name, "IMAGENET1K_V2")
    assert pretrained_for(name).classes is None


def test_an_fcn_starts_from_the_weights_of_its_trunk_or_its_own(cache):
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    tensors = put(cache, weights, torchvision.models.resnet50())
    model = build(FCN, num_classes=4, pretrained="IMAGENET1K_V1", aux_loss=True)
    assert torch.equal(
        model.get_parameter("backbone.layer4.2.conv3.weight"), tensors["layer4.2.conv3.weight"]
    )
    assert pretrained_for(FCN, "IMAGENET1K_V1").classes is None
    own = pretrained_for(FCN)
    assert (own.classes, own.size) == (21, 520)
    with pytest.raises(
        ModelError, match=r"has no weights V9; write pretrained: COCO_.* or IMAGENET"
    ):
        build(FCN, num_classes=4, pretrained="V9")


def test_an_fcn_gives_logits_of_pixels_and_of_a_head_half_way():
    with torch.device("meta"):
        x = torch.zeros(2, 3, 64, 48)
        both = build(FCN, num_classes=4, aux_loss=True)(x)
        one = build(FCN, num_classes=4)(x)
    assert {key: tuple(value.shape) for key, value in both.items()} == {
        "out": (2, 4, 64, 48),
        "aux": (2, 4, 64, 48),
    }
    assert one.keys() == {"out"}
    with pytest.raises(ModelError, match=r"has no option aux; it has aux_loss"):
        build(FCN, num_classes=4, aux=True)


def test_an_ssd_takes_colours_alone():
    with pytest.raises(ModelError, match=r"SSD takes 3 channels, not 1; write other data"):
        build("small_ssd", num_classes=4, in_channels=1)
