import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunezoo.models import MODELS, build
from prunezoo.models.count import (
    LayerCount,
    count,
    stored_bytes,
    weight_sparsity,
)
from prunezoo.models.paper_counts import (
    earlycrop_compressed_bits,
    earlycrop_node_sparsity,
    earlycrop_weight_sparsity,
)
from prunezoo.reporting.conventions import bep_flops, bep_weight_flops
from tests.support.windowed import Windowed


def on_meta(name: str, classes: int, **options) -> nn.Module:
    """The network without its numbers, which are not needed to count."""
    with torch.device("meta"):
        return build(name, num_classes=classes, in_channels=MODELS[name].channels, **options)


def images(size: int | tuple[int, int], channels: int = 3) -> torch.Tensor:
    sides = size if isinstance(size, tuple) else (size, size)
    return torch.zeros(1, channels, *(sides if size else ()), device="meta")


# The papers' networks


@pytest.mark.parametrize(
    ("name", "classes", "size", "options", "params", "macs"),
    [
        ("bep_small_cnn", 10, 32, {}, 1_250_858, 20_741_120),
        ("bep_small_cnn", 100, 32, {}, 1_297_028, 20_787_200),
        ("bep_vgg16", 10, 32, {}, 33_663_050, 332_111_872),
        ("bep_vgg16", 100, 32, {}, 34_031_780, 332_480_512),
        ("resnet50", 1000, 224, {}, 25_557_032, 4_089_184_256),
        ("resnet34", 1000, 224, {}, 21_797_672, 3_663_761_408),
        ("resnet18", 1000, 224, {}, 11_689_512, 1_814_073_344),
        ("resnet56", 10, 32, {}, 853_018, 125_485_696),
        ("resnet56", 10, 32, {"option": "B"}, 855_770, 125_747_840),
        ("resnet56", 100, 32, {}, 858_868, 125_491_456),
        ("mobilenet_v1", 1000, 224, {}, 4_231_976, 568_740_352),
        ("vgg_bn_drop", 10, 32, {}, 14_991_946, 313_463_808),
        ("vgg_bn_drop", 100, 32, {}, 15_038_116, 313_509_888),
        ("mnist_cnn", 10, 28, {}, 431_080, 2_293_000),
        ("lenet_300", 10, 28, {}, 266_610, 266_200),
        ("mlp", 1, 0, {}, 4_929, 4_800),  # 11 · 64 + 65 · 64 + 65
        (
            "mlp",
            3,
            0,
            {"units": 128, "depth": 3},
            34_819,
            34_432,
        ),  # 11 · 128 + 2 · 129 · 128 + 129 · 3
        ("small_unet", 3, 16, {}, 58_115, 4_177_920),
        # without BatchNorm in the up-projections and the last bias 63,555,200 (XPFly1989/FCRN)
        ("fcrn", 1, (228, 304), {}, 63_555_200 + 2 * (3 * 960 + 1024) + 1, 42_708_665_344),
        ("small_conv", 10, 32, {}, 424_394, 6_044_416),
        ("medium_conv", 10, 32, {}, 1_688_458, 20_411_904),
        ("vgg_11", 10, 32, {}, 9_750_922, 153_293_824),
        ("vgg_11", 1000, 224, {"image_size": 224}, 22_841_704, 7_499_075_584),
        ("alexnet", 1000, 227, {}, 50_844_008, 636_330_528),
        ("earlycrop_resnet18", 10, 64, {}, 11_707_978, 148_572_672),
        ("earlycrop_resnet18", 20_000, 224, {}, 16_845_408, 1_819_205_632),
        ("earlycrop_vgg16", 10, 64, {}, 50_703_946, 1_324_130_304),
        ("earlycrop_vgg16", 100, 32, {}, 51_072_676, 356_597_760),
        ("resnext101_32x16d", 1000, 224, {}, 194_026_792, 36_163_289_088),
        ("resnext101_32x48d", 1000, 224, {}, 828_411_176, 153_310_199_808),
        ("resnet18_cifar", 10, 32, {}, 11_173_962, 555_422_720),
        ("vgg16_bn", 1000, 224, {}, 138_365_992, 15_470_264_320),
        ("mobilenet_v2", 1000, 224, {}, 3_504_872, 300_774_272),
    ],
)
def test_size_to_the_unit(name, classes, size, options, params, macs):
    model = on_meta(name, classes, **options)
    counted = count(model, images(size, MODELS[name].channels))
    assert (counted.params, counted.macs) == (params, macs)


@pytest.mark.parametrize(
    ("classes", "width", "flops"),
    [
        (10, 1, 2_500_288),
        (10, 0.3, 223_884),
        (10, 0.2, 95_028),
        (10, 0.1, 24_348),
        (10, 0.05, 6_188),
        (100, 1, 2_592_448),
        (100, 0.3, 251_424),
        (100, 0.2, 113_388),
        (100, 0.1, 33_528),
        (100, 0.05, 10_688),
    ],
)
def test_bep_small_cnn_labels(classes, width, flops):
    model = on_meta("bep_small_cnn", classes, width=width)
    assert bep_weight_flops(count(model, images(32)).image_sizes) == flops


@pytest.mark.parametrize(
    ("classes", "width", "flops", "last_digit"),
    [
        (10, 0.2, 26.508e6, 1e3),
        (10, 0.1, 6.6885e6, 1e2),
        (10, 0.05, 1.7241e6, 1e2),
        (10, 0.025, 414.0e3, 1e2),
        (100, 0.3, 60.16e6, 1e4),
        (100, 0.2, 26.66e6, 1e4),
        (100, 0.1, 6.762e6, 1e3),
        (100, 0.05, 1.761e6, 1e3),
    ],
)
def test_bep_vgg_labels_to_the_last_digit(classes, width, flops, last_digit):
    model = on_meta("bep_vgg16", classes, width=width)
    assert abs(bep_flops(count(model, images(32)).image_sizes) - flops) <= last_digit / 2


def test_pat_resnet50_label():
    """PaT's FLOPs are multiply-accumulates and two for each BatchNorm output."""
    counted = count(on_meta("resnet50", 1000), images(224))
    assert round((counted.macs + 2 * counted.norm_outputs) / 1e9, 2) == 4.11


@pytest.mark.parametrize(
    ("name", "classes", "megabits", "fp32_megabytes"),
    [
        ("earlycrop_resnet18", 10, 397.8, 46.8),
        ("earlycrop_resnet18", 20_000, 571.8, 67.4),
        ("earlycrop_vgg16", 10, 1723.1, 202.8),
        ("earlycrop_vgg16", 100, 1735.6, 204.3),
    ],
)
def test_earlycrop_disk_labels(name, classes, megabits, fp32_megabytes):
    model = on_meta(name, classes)
    # Every number non-zero, without drawing 50 million of them.
    ones = nn.Module()
    for key, parameter in model.named_parameters():
        ones.register_parameter(
            key.replace(".", "_"), nn.Parameter(torch.ones(1).expand(parameter.shape))
        )
    assert round(earlycrop_compressed_bits(ones) / 1e6, 1) == megabits
    assert round(4 * sum(p.numel() for p in model.parameters()) / 1e6, 1) == fp32_megabytes


# Counting


def test_layers_by_hand_with_groups_stride_and_reuse():
    shared = nn.Conv2d(6, 6, 1, bias=False)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),  # 8×8 → 4×4
        nn.BatchNorm2d(6),
        shared,
        shared,
        nn.Flatten(2),  # (N, 6, 16): a linear layer at 6 positions
        nn.Linear(16, 5),
    )
    counted = count(model, torch.zeros(3, 4, 8, 8))
    assert counted.layers == {
        "0": LayerCount(params=6 * 2 * 9 + 6, macs=16 * 108, positions=16, outputs=96),
        "2": LayerCount(params=36, macs=2 * 16 * 36, positions=32, outputs=192),
        "5": LayerCount(params=85, macs=6 * 80, positions=6, outputs=30),
    }
    assert counted.params == 114 + 12 + 36 + 85
    assert counted.macs == 1728 + 1152 + 480
    assert counted.activation_bytes == 4 * (96 + 192 + 30)
    assert counted.image_sizes == {
        "macs": counted.macs,
        "weights": 108 + 36 + 80,
        "biased_outputs": 96 + 30,
        "norm_outputs": 96,
        "norm_channels": 6,
        "max_pool_outputs": 0,
    }


def test_a_transposed_convolution_multiplies_at_the_positions_that_it_reads():
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2),  # 5×5 → 9×9
        nn.ConvTranspose1d(9, 2, 1),  # reads 9 channels at 7 positions
    )
    model.forward = lambda x: model[1](model[0](input=x).flatten(1, 2).mT[:, :, :7])
    counted = count(model, torch.zeros(3, 4, 5, 5))
    assert counted.layers == {
        "0": LayerCount(params=4 * 3 * 9 + 6, macs=25 * 4 * 3 * 9, positions=25, outputs=6 * 81),
        "1": LayerCount(params=9 * 2 + 2, macs=7 * 9 * 2, positions=7, outputs=2 * 7),
    }
    assert counted.macs == 2700 + 126
    assert counted.activation_bytes == 4 * (486 + 14)
    assert counted.weights == counted.biased_outputs == 0  # papers' own counts have none


@pytest.mark.parametrize(
    "name", ["mobilenet_v1", "resnet56", "timm/regnetx_002", "mobilenet_v3_small"]
)
def test_same_as_pytorchs_own_counter(name):
    torch.manual_seed(0)
    options = {} if name not in ("mobilenet_v1", "resnet56") else {"width": 0.5}
    model, image = build(name, num_classes=10, **options).eval(), torch.randn(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    assert counter.get_total_flops() == 2 * count(model, image).macs


@pytest.mark.parametrize(
    "name", ["mobilevit_xxs", "swinv2_tiny_window8_256", "eva02_tiny_patch14_224"]
)
def test_attention_s_layers_are_those_of_pytorchs_own_counter(name):
    # a layer is given windows of an image, or its weight is given to a function
    model, image = timm.create_model(name).to("meta").eval(), images(224)
    if model.default_cfg["input_size"][-1] == 256:
        image = images(256)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    layers = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)
    found = counter.get_flop_counts()["Global"]
    assert sum(found.get(kind, 0) for kind in layers) == 2 * count(model, image).macs


def test_layers_of_windows_and_weights_given_to_a_function_by_hand():
    counted = count(Windowed(), torch.zeros(3, 8, 4))
    assert counted.layers == {
        "qkv": LayerCount(params=30, macs=8 * 24, positions=8, outputs=8 * 6),
        "proj": LayerCount(params=28, macs=8 * 24, positions=8, outputs=8 * 4),
    }


def test_counting_leaves_everything_as_found():
    torch.manual_seed(0)
    model = build("bep_vgg16", num_classes=10, width=0.1).train()
    model.get_submodule("features.1").eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch, state = torch.randn(2, 3, 32, 32), torch.get_rng_state()
    count(model, batch)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


def test_modes_and_hooks_are_put_back_when_the_image_does_not_fit():
    model = build("digits_cnn", num_classes=10, in_channels=1)
    with pytest.raises(RuntimeError, match="channels"):
        count(model, torch.zeros(1, 3, 8, 8))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


# Sparsity


def two_layers() -> nn.Sequential:
    """8·3 weights, a scale of 8, 2·8 weights; all non-zero."""
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    return model


def test_sparsity_of_masked_weights():
    model, dense = two_layers(), two_layers()
    assert weight_sparsity(model) == 0
    assert earlycrop_weight_sparsity(model, dense) == 0
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias.zero_()  # biases never count
    assert weight_sparsity(model) == pytest.approx(12 / 40)
    assert earlycrop_weight_sparsity(model, dense) == pytest.approx(12 / 48)
    assert earlycrop_node_sparsity(model, dense) == 0
    assert stored_bytes(model) == stored_bytes(dense) == 4 * (24 + 8 + 8 + 8 + 16 + 2 + 16) + 8


def test_sparsity_of_removed_channels():
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    nn.init.ones_(model[1].weight)
    dense = two_layers()
    assert weight_sparsity(model, dense) == pytest.approx(1 - 30 / 40)
    assert earlycrop_weight_sparsity(model, dense) == pytest.approx(1 - 36 / 48)
    assert earlycrop_node_sparsity(model, dense) == pytest.approx(1 - 6 / 8)


def test_compressed_bits_by_hand():
    model = two_layers()
    with torch.no_grad():
        model[0].weight[0, 0] = 0
    # matrices 8×3, 8×1 (the scale) and 2×8
    assert earlycrop_compressed_bits(model) == 34 * (23 + 8 + 16) + 2 * (4 + 2 + 3)


def test_reference_sizes_on_the_meta_device_are_those_of_real_networks():
    real = build("resnet56", num_classes=10, depth=8)
    assert weight_sparsity(real, on_meta("resnet56", 10, depth=8)) == pytest.approx(0, abs=1e-12)
    assert count(real, torch.zeros(1, 3, 32, 32)) == count(
        on_meta("resnet56", 10, depth=8), images(32)
    )
    assert earlycrop_node_sparsity(real, on_meta("resnet56", 10, depth=8)) == 0
