import math
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from prunezoo.models import MODELS, ModelError, build, initialise
from prunezoo.models.dense import unpooled
from prunezoo.models.layers import GridMean
from prunezoo.models.resnet import PadShortcut
from prunezoo.schema.recipe import load

OURS = [
    n
    for n, entry in MODELS.items()
    if "width" in entry.parameters and entry.gives == "logits" and not entry.words
]
LAST = "classifier.weight"


def small(name: str, **options) -> tuple[nn.Module, torch.Tensor]:
    """A narrow network in evaluation mode with lived-in statistics, and images for it."""
    torch.manual_seed(0)
    entry = MODELS[name]
    model = build(name, num_classes=7, in_channels=entry.channels, width=0.1, **options)
    images = torch.randn(4, *entry.shape)
    model(images)
    return model.eval(), images


# Networks


@pytest.mark.parametrize("name", OURS)
def test_our_networks_give_logits_and_second_derivatives(name):
    model, images = small(name)
    logits = model(images)
    assert logits.shape == (4, 7)
    assert logits.isfinite().all()
    assert isinstance(model.get_submodule("classifier"), nn.Linear)
    first = model.get_parameter(next(n for n, p in model.named_parameters() if p.dim() > 1))
    (gradient,) = torch.autograd.grad(logits.pow(2).sum(), first, create_graph=True)
    gradient.pow(2).sum().backward()
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


def test_dense_networks_give_numbers_for_every_pixel():
    unet = build("small_unet", num_classes=3, in_channels=1, width=0.25)
    assert unet(torch.randn(2, 1, 12, 20)).shape == (2, 3, 12, 20)
    with torch.device("meta"):
        fcrn = build("fcrn", num_classes=1)
        assert fcrn(torch.zeros(2, 3, 228, 304)).shape == (2, 1, 128, 160)
    with pytest.raises(ModelError, match="fcrn: trunk 'vgg' is not one of resnet18, resnet34"):
        build("fcrn", num_classes=1, trunk="vgg")


def test_unpooled_values_lie_in_the_upper_left_of_zeros():
    x = unpooled(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert x[0, 0].tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("name", MODELS)
def test_no_activation_overwrites_its_input(name):
    with torch.device("meta"):
        model = build(name, num_classes=10, in_channels=MODELS[name].channels)
    assert not [n for n, m in model.named_modules() if getattr(m, "inplace", False)]


def test_timm_itself_overwrites_inputs_so_that_the_check_above_can_fail():
    assert any(getattr(m, "inplace", False) for m in timm.create_model("resnet18").modules())


def test_bep_small_cnn_has_kerass_start_as_a_baseline_of_its_own():
    """Glorot's uniform weights, no biases, pixels / 255."""
    path = Path(__file__).parents[2] / "recipes/base/cifar10/bep_small_cnn_keras.yaml"
    recipe, _ = load(path)
    assert (recipe.data.mean, recipe.data.std) == ((0, 0, 0), (1, 1, 1))
    model = build(recipe.model.name, num_classes=10, **recipe.model.options)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.bias is not None
            assert not layer.bias.any()
            positions = layer.weight[0, 0].numel() if layer.weight.ndim == 4 else 1
            fans = (layer.weight.shape[0] + layer.weight.shape[1]) * positions
            bound = math.sqrt(6 / fans)
            assert 0.95 * bound < layer.weight.abs().max() <= bound


def test_bep_small_cnn_is_the_published_list_of_layers():
    kinds = [type(m).__name__ for m in build("bep_small_cnn", num_classes=10).modules()]
    conv_pair = ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Dropout"]
    head = ["Sequential", "Linear", "ReLU", "Dropout", "Linear"]
    assert kinds == ["Sequential"] * 2 + conv_pair * 2 + ["Flatten"] + head
    rates = [m.p for m in build("bep_small_cnn", num_classes=10).modules() if type(m) is nn.Dropout]
    assert rates == [0.25, 0.25, 0.5]


def test_thesis_vgg_drops_after_every_convolution_that_no_pool_follows():
    features = list(build("vgg_bn_drop", num_classes=10, width=0.1).get_submodule("features"))
    after_relu = [type(b).__name__ for a, b in pairwise(features) if type(a) is nn.ReLU]
    drop, pool = "Dropout", "MaxPool2d"
    assert after_relu == [drop, pool] * 2 + [drop, drop, pool] * 3
    rates = [m.p for m in features if isinstance(m, nn.Dropout)]
    assert rates == [0.3] + [0.4] * 7


def test_option_a_shortcut_subsamples_and_pads_both_sides():
    x = torch.arange(2.0 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    y = PadShortcut(new_channels=3, stride=2)(x)
    assert y.shape == (2, 6, 3, 3)
    assert torch.equal(y[:, 1:4], x[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert not y[:, [0, 4, 5]].any()


@pytest.mark.parametrize(
    ("name", "peer", "changes"),
    [
        ("mobilenet_v1", "mobilenetv1_100", {"act_layer": "relu"}),
        ("resnet18_cifar", "resnet18", {}),
    ],
)
def test_same_function_as_timms_network(name, peer, changes):
    torch.manual_seed(0)
    ours, theirs = build(name, num_classes=10), timm.create_model(peer, num_classes=10, **changes)
    if name == "resnet18_cifar":
        vars(theirs)["_modules"]["conv1"] = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        vars(theirs)["_modules"]["maxpool"] = nn.Identity()
    # Both list their layers in order of use.
    values = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict({key: value for key, value in values})
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), atol=1e-5, rtol=1e-5)


def test_residual_branches_start_at_scale_one_as_in_torchvision_and_not_as_in_timm():
    for name, expected in {"resnet18": True, "timm/resnet18": False}.items():
        norms = [m for m in build(name, num_classes=10).modules() if isinstance(m, nn.BatchNorm2d)]
        assert all((norm.weight == 1).all() for norm in norms) is expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet56x"},
            "unknown model resnet56x (did you mean resnet56?); use timm",
        ),
        ({"name": "timm/resnt18"}, "timm has no network resnt18; did you mean timm/resnet18?"),
        ({"name": "resnet56", "depht": 20}, "resnet56 has no option depht; it has depth, width, "),
        ({"name": "resnet56", "depth": 21}, "depth 21 is not 6n + 2; use 8, 14, 20, 32, 44, 56"),
        ({"name": "resnet56", "option": "C"}, "unknown shortcut option C; use A or B"),
        ({"name": "alexnet", "image_size": 32}, "image_size 32 is too small for this network"),
        ({"name": "alexnet", "pretrained": True}, "alexnet has no pretrained weights; write pre"),
        ({"name": "resnext101_32x48d", "pretrained": True}, "resnext101_32x48d has no pretrained"),
        ({"name": "resnet18", "pretrained": True, "init": "xavier"}, "resnet18: init xavier would"),
        ({"name": "resnet18", "wdth": 2}, "timm/resnet18.tv_in1k has no option wdth; it has "),
        (
            {"name": "resnet18", "drop_rate": 5},
            "timm/resnet18.tv_in1k: drop_rate 5 is not a rate fr",
        ),
        ({"name": "resnet18", "global_pool": "a"}, "timm/resnet18.tv_in1k: timm cannot build it"),
        ({"name": "resnet18", "layers": [-1] * 4}, "timm/resnet18.tv_in1k: layers [-1, -1, -1, -"),
        ({"name": "digits_cnn", "width": -1}, "digits_cnn: width -1 is not above 0 and at most"),
        ({"name": "digits_cnn", "width": float("nan")}, "digits_cnn: width nan is not above 0 an"),
        ({"name": "digits_cnn", "width": "a"}, "digits_cnn: width a is not a number"),
        ({"name": "mnist_cnn", "image_size": 10**6}, "mnist_cnn: too large to be built (Runtime"),
        ({"name": "resnet56", "depth": 600_002}, "resnet56: more than 10,000 layers; lower its"),
        ({"name": 7}, "unknown model 7; use timm/<name>, torchvision/<name> or one "),
        ({"name": "digits_cnn", "init": "glorot"}, "unknown initialisation glorot; use default, "),
    ],
)
def test_build_says_what_to_write_instead(arguments, message):
    with pytest.raises(ModelError, match="^" + re.escape(message)):
        build(num_classes=10, **arguments)


def test_a_number_of_classes_is_one():
    for wrong in (0, -1, 10**9, 2.0, "10", None, True):
        with pytest.raises(
            ModelError, match=r"digits_cnn: num_classes .* is not a whole number from"
        ):
            build("digits_cnn", num_classes=wrong)


def test_a_network_larger_than_memory_is_refused_before_it_fills_it(monkeypatch):
    free = SimpleNamespace(available=4 * 1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(ModelError, match=r"digits_cnn: its weights need more than the 0\.0 GiB of"):
        build("digits_cnn", num_classes=10)
    with torch.device("meta"):
        build("digits_cnn", num_classes=10)


def test_unreachable_pretrained_weights_are_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"pretrained weights are neither") as caught:
        build("resnet18", num_classes=1000, pretrained=True)
    assert str(caught.value).startswith("timm/resnet18.tv_in1k: ")
    assert "\n" not in str(caught.value)


# Initial weights


def test_earlycrop_weights_are_orthogonal_with_its_gain_and_the_last_layer_with_one():
    model = build("earlycrop_resnet18", num_classes=10, width=0.25)
    gain = math.sqrt(2 / (1 + 0.05**2))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for name, layer in layers.items():
        matrix = layer.weight.detach().flatten(1)
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        expected = torch.eye(len(matrix)) * (1 if name == "classifier" else gain**2)
        torch.testing.assert_close(matrix @ matrix.T, expected, atol=1e-4, rtol=0)
    biased = layers["stage1.0.conv1"]
    assert 0 < biased.bias.abs().max() <= 1 / math.sqrt(9 * 16)


@pytest.mark.parametrize(
    ("scheme", "std"),
    # fan_in 400, fan_out 800
    [
        ("default", 1 / math.sqrt(3 * 400)),
        ("xavier", math.sqrt(2 / 1200)),
        ("kaiming", 0.05 * 2**0.5),
    ],
)
def test_initial_weights_have_the_stated_spread(scheme, std):
    model = nn.Sequential(nn.Linear(400, 800), nn.BatchNorm1d(800))
    linear, norm = model
    nn.init.constant_(norm.weight, 3)
    initialise(model, scheme, torch.Generator().manual_seed(0))
    assert linear.weight.std().item() == pytest.approx(std, rel=0.01)
    assert linear.weight.mean().item() == pytest.approx(0, abs=std / 50)
    bound = {"default": 1 / 20, "xavier": 0.0, "kaiming": 0.0}[scheme]
    assert linear.bias.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert (norm.weight == 1).all()


@pytest.mark.parametrize("scheme", ["default", "xavier", "kaiming", "orthogonal"])
def test_initial_weights_depend_on_the_generator_alone(scheme):
    first, second = (build("digits_cnn", num_classes=10, in_channels=1) for _ in range(2))
    state = torch.get_rng_state()
    for model in (first, second):
        assert initialise(model, scheme, torch.Generator().manual_seed(5)) is model
    assert torch.equal(torch.get_rng_state(), state)
    other = build("digits_cnn", num_classes=10, in_channels=1)
    initialise(other, scheme, torch.Generator().manual_seed(6))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.get_parameter(LAST), other.get_parameter(LAST))


def test_build_initialises_after_the_network_has():
    torch.manual_seed(3)
    plain = build("mnist_cnn", num_classes=10, in_channels=1)
    before = plain.get_parameter(LAST).detach().clone()
    initialise(plain, "xavier")
    torch.manual_seed(3)
    xavier = build("mnist_cnn", num_classes=10, in_channels=1, init="xavier")
    assert torch.equal(xavier.get_parameter(LAST), plain.get_parameter(LAST))
    assert not torch.equal(xavier.get_parameter(LAST), before)


def test_default_initialisation_is_pytorchs_own():
    torch.manual_seed(3)
    linear = nn.Linear(20, 10)
    expected = linear.weight.detach().clone(), linear.bias.detach().clone()
    torch.manual_seed(3)
    initialise(linear, "default")
    assert torch.equal(linear.weight, expected[0])
    assert torch.equal(linear.bias, expected[1])


@pytest.mark.parametrize("size", [(4, 4), (8, 6), (2, 2), (5, 7)])
def test_means_over_a_grid_are_those_of_adaptive_pooling(size):
    image = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours, theirs = GridMean(2)(image), nn.AdaptiveAvgPool2d(2)(image)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn_like(ours)
    slopes = [torch.autograd.grad(y, image, slope)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*slopes)
