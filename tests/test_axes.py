import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from models import MODELS, build
from models.axes import axes, masks, shrink
from models.trace import named_tensors


def randomise(model):
    """Weights behind which no channel can hide: none is 0, nothing saturates."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=(len(parameter) / parameter.numel()) ** 0.5)
            else:
                parameter.uniform_(0.2, 0.8)
    return model.double().eval()


def random_keep(found, least=1):
    """Each axis loses its own random share of random units."""
    keep = {}
    for axis, width in found.widths.items():
        kept = torch.randint(min(least, width), width + 1, ())
        keep[axis] = torch.randperm(width) < kept
    return keep


def masked_copy(model, found, keep):
    model = copy.deepcopy(model)
    held = masks(found, keep)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in held:
                parameter.mul_(held[name])
    return model


def check_equal(model, image, found, keep):
    """The masked network and the shrunken one agree; returns the latter and its axes."""
    small = copy.deepcopy(model)
    left = shrink(small, found, keep)
    with torch.no_grad():
        expected, got = masked_copy(model, found, keep)(image), small(image)
    assert expected.std() > 1e-3
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert {name: tuple(t.shape) for name, t in named_tensors(small).items()} == left.shapes
    assert left.widths == {axis: int(kept.sum()) for axis, kept in keep.items()}
    return small, left


def free_share(found):
    """Of all output channels of convolutions and linear layers."""
    rows = [units for name in found.weights if (units := found.labels[name][0]) is not None]
    return float((torch.cat(rows) >= 0).double().mean())


# The share that cannot be pruned is the classifier, and in brackets what the code of the network
# says in numbers, or mixes.
TIMM = {
    "resnet18": 0.82,
    "resnet50": 0.96,
    "resnext50_32x4d": 0.96,
    "seresnet50": 0.96,
    "resnest14d": 0.92,
    "wide_resnet50_2": 0.96,
    "resnetblur50": 0.92,  # (what a blur reads)
    "vgg11_bn": 0.9,
    "densenet121": 0.9,
    "mobilenetv1_100": 0.9,
    "mobilenetv2_100": 0.93,
    "mobilenetv3_large_100": 0.94,
    "mobilenetv3_small_100": 0.9,
    "efficientnet_b0": 0.95,
    "tf_efficientnetv2_b0": 0.95,
    "regnetx_002": 0.9,
    "regnety_002": 0.9,
    "convnext_atto": 0.55,  # (LayerNorm over the residual channels)
    "ghostnet_100": 0.93,
    "dla34": 0.85,
    "dla46_c": 0.75,
    "inception_v3": 0.93,
    "res2net50_14w_8s": 0.6,  # (split into pieces of a written width)
    "skresnet18": 0.6,  # (likewise)
    "hrnet_w18_small": 0.9,
    "cspresnet50": 0.45,  # (likewise)
    "cspdarknet53": 0.5,  # (likewise)
    "darknet53": 0.93,
    "repvgg_a0": 0.85,
    "mixnet_s": 0.1,  # (likewise: every expanded width)
    "mnasnet_100": 0.93,
    "tinynet_a": 0.93,
    "legacy_xception": 0.95,
    "selecsls42": 0.9,
    "ese_vovnet19b_dw": 0.9,
    "hardcorenas_a": 0.9,
    "fbnetc_100": 0.93,
    "dpn48b": 0.65,  # (likewise)
    "lcnet_050": 0.8,
    "rexnet_100": 0.88,  # (sums with the first channels of a written number)
}


@pytest.mark.parametrize("name", TIMM)
def test_shrunken_is_masked_for_every_family(name):
    torch.manual_seed(0)
    options = {"mlp_ratio": 0.05} if name.startswith("vgg") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm on renamed models
        model = randomise(timm.create_model(name, num_classes=100, **options))
    size = 96 if name == "inception_v3" else 64
    found = axes(model, torch.randn(1, 3, size, size, dtype=torch.float64))
    assert free_share(found) >= TIMM[name]
    image = torch.randn(2, 3, size, size, dtype=torch.float64)
    check_equal(model, image, found, random_keep(found))
