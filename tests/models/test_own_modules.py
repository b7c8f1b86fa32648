"""Files of modules that `build` did not make: saved pruned, and loaded into a fresh one."""

import copy
import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from prunezoo.models import ModelError, build, header, load, load_into, save
from prunezoo.models.axes.find import axes, shrink
from prunezoo.models.bias_map import add_bias_map
from prunezoo.pruning import prune_once
from tests.support.tiers import slow_but


class Own(nn.Module):
    """Tied weights, a grouped convolution, a slope per channel, tables that a state leaves out."""

    table: torch.Tensor | None

    def __init__(self, width=8, act=nn.ReLU):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm, self.slope = nn.BatchNorm2d(width), nn.PReLU(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.again = nn.Conv2d(width, width, 1)
        self.again.bias = self.depthwise.bias
        self.act = act()
        self.head = nn.Linear(width, 5)
        self.register_buffer(
            "gain", torch.linspace(1, 2, width).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("table", None, persistent=False)

    def forward(self, x):
        if self.table is None:
            self.table = torch.full((), 3.0, dtype=x.dtype, device=x.device)
        x = self.slope(self.norm(self.stem(x))) * self.gain
        x = self.act(self.again(self.depthwise(x)))
        return self.head(x.mean((2, 3))) + self.table


MODELS = {
    "own": Own,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5),
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),
    "regnet": lambda: timm.create_model("regnetx_002", num_classes=5),
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=5),
    "resnetblur18": lambda: timm.create_model("resnetblur18", num_classes=5),
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
PATH = "a.safetensors"


def made(name="own", **options):
    torch.manual_seed(0)
    return MODELS[name](**options).double().eval()


def pruned(name="own", **words):
    model = made(name)
    given = {"channels": 0.4, "tolerance": 0.05} | words
    prune_once(model, IMAGES[:1], batches=[(IMAGES, torch.tensor([0, 1]))], **given)
    return model


PRUNED = [(name, "none") for name in MODELS]
COMPENSATED = [("own", "mean_replacement"), ("resnet18", "mean_replacement")]


@pytest.mark.parametrize(
    ("name", "compensation"),
    slow_but([("own", "none"), ("resnet18", "none"), *COMPENSATED], PRUNED + COMPENSATED),
)
def test_a_pruned_module_comes_back_to_the_bit(name, compensation, tmp_path):
    model = pruned(name, compensation=compensation)
    save(model, tmp_path / PATH, {"top1_percent": 93.1})
    fresh = MODELS[name]().eval()
    again = load_into(fresh, tmp_path / PATH)
    assert again is fresh
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])
        assert tensor.dtype == again.state_dict()[key].dtype
    assert repr(again) == repr(model)
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert header(tmp_path / PATH)["notes"] == {"top1_percent": 93.1}
    first = (tmp_path / PATH).read_bytes()
    save(again, tmp_path / PATH, {"top1_percent": 93.1})
    assert (tmp_path / PATH).read_bytes() == first


def test_it_trains_on_and_is_pruned_again(tmp_path):
    models = [pruned(), made()]
    save(models[0], tmp_path / PATH)
    load_into(models[1], tmp_path / PATH)
    for model in models:
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
        model(IMAGES).square().sum().backward()
        optimizer.step()
        prune_once(
            model.eval(), IMAGES[:1], channels=0.3, criterion="magnitude", optimizer=optimizer
        )
    assert torch.equal(models[0](IMAGES), models[1](IMAGES))


def test_what_is_shared_stays_shared_and_frozen_stays_frozen(tmp_path):
    model, fresh = pruned(), made()
    save(model, tmp_path / PATH)
    fresh.head.weight.requires_grad_(False)
    load_into(fresh.train(), tmp_path / PATH)
    assert fresh.again.bias is fresh.depthwise.bias
    assert len(list(fresh.parameters())) == len(list(model.parameters()))
    assert [n for n, p in fresh.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert fresh.training


def test_buffers_that_a_state_leaves_out_are_cut_and_kept(tmp_path):
    model, fresh = pruned(), made()
    assert model.gain.shape[1] < 8  # else this says nothing
    model(IMAGES)
    model.seen += 3
    save(model, tmp_path / PATH)
    load_into(fresh, tmp_path / PATH)
    assert torch.equal(fresh.gain, model.gain)
    assert fresh.table == 3  # made in the first pass, and None before
    assert fresh.seen == 3
    assert fresh.state_dict().keys() == made().state_dict().keys()


def test_bias_maps_come_back(tmp_path):
    model, fresh = made("resnet18"), made("resnet18")
    add_bias_map(model.layer1[0].conv2, torch.randn(64, 8, 8, dtype=torch.float64))
    save(model, tmp_path / PATH)
    assert torch.equal(load_into(fresh, tmp_path / PATH)(IMAGES), model(IMAGES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_says_the_precision_and_the_module_the_memory_format(dtype, tmp_path):
    model, fresh = pruned().to(dtype), made().to(memory_format=torch.channels_last)
    save(model, tmp_path / PATH)
    load_into(fresh, tmp_path / PATH)
    assert {p.dtype for p in fresh.parameters()} == {dtype}
    assert fresh.again.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(fresh.again.weight, model.again.weight)


def test_a_module_without_values_gets_the_files(tmp_path):
    model = pruned()
    save(model, tmp_path / PATH)
    with torch.device("meta"):
        fresh = Own()
    assert torch.equal(load_into(fresh.eval(), tmp_path / PATH)(IMAGES), model(IMAGES))


def test_a_network_of_build_goes_into_a_module_and_is_checked(tmp_path):
    model = build("digits_cnn", num_classes=10, in_channels=1)
    channels = axes(model, torch.zeros(1, 1, 8, 8))
    shrink(model, channels, {a: torch.arange(n) > 0 for a, n in channels.widths.items()})
    save(model, tmp_path / PATH)
    fresh = load_into(build("digits_cnn", num_classes=10, in_channels=1), tmp_path / PATH)
    image = torch.randn(2, 1, 8, 8)
    assert torch.equal(fresh.eval()(image), model.eval()(image))
    with pytest.raises(ModelError, match=r"a\.safetensors: widths of \S+, which is not a layer of"):
        load_into(made(), tmp_path / PATH)


def test_load_names_the_way_for_a_module_of_ones_own(tmp_path):
    save(made(), tmp_path / PATH)
    with pytest.raises(ModelError, match=r"a\.safetensors: a Own that was not made by models\.bui"):
        load(tmp_path / PATH)
    assert header(tmp_path / PATH)["module"]["kind"] == "Own"
    assert header(tmp_path / PATH)["module"]["layers"]["act"] == "ReLU"


def unchanged(model, before):
    kind, state, text, buffers = before
    assert [type(m) for m in model.modules()] == kind
    assert repr(model) == text
    assert [id(p) for p in model.parameters()] == [id(p) for p in state]
    assert dict(model.named_buffers()).keys() == buffers


OTHERS = {
    "another width": (
        lambda: Own(6),
        "again.bias is float64 (7,) where this network has float64 (6,); pr",
    ),
    "another activation": (lambda: Own(act=nn.GELU), "act is a ReLU in the file and a GELU here"),
    "another class": (
        lambda: torchvision.models.resnet18(num_classes=5),
        "conv1 is a Conv2d here, and the file has no such layer",
    ),
    "a layer less": (lambda: without("slope"), "slope is a PReLU in the file, and there is none h"),
    "a layer more": (lambda: plus(), "more is a Linear here, and the file has no such layer"),
    "fewer classes": (
        lambda: classes(4),
        "head.bias is float64 (5,) where this network has float64 (4,); pr",
    ),
    "a bias more": (lambda: biased(), "no tensor stem.bias, which this network has; its options d"),
    "not tied": (
        lambda: tied(),
        "again.weight is float64 (7, 7, 1, 1) where this network has floa",
    ),
}


def without(name):
    model = Own()
    delattr(model, name)
    return model


def plus():
    model = Own()
    model.more = nn.Linear(2, 2)
    return model


def classes(number):
    model = Own()
    model.head = nn.Linear(8, number)
    return model


def biased():
    model = Own()
    model.stem.bias = nn.Parameter(torch.zeros(8))
    return model


def tied():
    model = Own()
    model.again.weight = nn.Parameter(model.depthwise.weight[:, :, :1, :1])
    return model


@pytest.mark.parametrize("name", OTHERS)
def test_another_module_is_refused_in_one_line_and_left_as_it_was(name, tmp_path):
    make, sentence = OTHERS[name]
    model = made()
    channels = axes(model, IMAGES[:1])
    shrink(model, channels, {a: torch.arange(n) > 0 for a, n in channels.widths.items()})
    save(model, tmp_path / PATH)
    other = make().double()
    before = (
        [type(m) for m in other.modules()],
        list(other.parameters()),
        repr(other),
        dict(other.named_buffers()).keys(),
    )
    values = copy.deepcopy(other.state_dict())
    with pytest.raises(ModelError) as caught:
        load_into(other, tmp_path / PATH)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / PATH}: {sentence}")
    assert "\n" not in said
    unchanged(other, before)
    assert all(torch.equal(tensor, values[key]) for key, tensor in other.state_dict().items())
    assert load_into(Own(), tmp_path / PATH).head.weight.shape == (5, 7)


def test_values_that_differ_under_two_names_of_one_tensor_are_refused(tmp_path):
    model = made()
    model.again.bias = nn.Parameter(model.depthwise.bias.detach() + 1)
    save(model, tmp_path / PATH)
    with pytest.raises(
        ModelError, match=r"again\.bias has other values than a name that it shares"
    ):
        load_into(made(), tmp_path / PATH)


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"scale": 3}

    def set_extra_state(self, state):
        pass


REFUSED = {
    "more than tensors": (
        lambda: Extra(2, 2),
        "Extra: its state has _extra_state, which is no par",
    ),
    "no values": (
        lambda: nn.Linear(2, 2, device="meta"),
        "weight has no values yet; run the model",
    ),
    "lazy": (lambda: nn.LazyLinear(2), "weight has no values yet; run the model once"),
    "complex": (
        lambda: nn.Linear(2, 2).to(torch.complex64),
        "weight is no dense tensor of real nu",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_what_is_not_saved_is_said(name, tmp_path):
    make, sentence = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        save(make(), tmp_path / PATH)
    assert str(caught.value).startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_an_attribute_called_structure_is_the_modules_own(tmp_path):
    model, fresh = made(), made()
    model.structure = {"rooms": 3}
    save(model, tmp_path / PATH)
    assert torch.equal(load_into(fresh, tmp_path / PATH)(IMAGES), model(IMAGES))


def hostile(folder, changes=None, tensors=None):
    """What `load_into` says of a file of ours with other metadata or tensors; the module stays."""
    path, model = folder / PATH, made()
    save(model, path)
    raw = json.loads(header_text(path))
    raw.pop("sha256")
    raw["module"] |= changes or {}
    given = load_file(path) | (tensors or {})
    save_file(given, path, {"prunezoo": json.dumps(signed(raw, given))})
    fresh = made()
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(ModelError) as caught:
        load_into(fresh, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in fresh.state_dict().items())
    assert repr(fresh) == repr(made())
    said = str(caught.value)
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


def header_text(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()["prunezoo"]


def signed(raw, tensors):
    from prunezoo.models.files.description import digest

    return raw | {"sha256": digest(raw, tensors)}


@pytest.mark.parametrize(
    ("changes", "tensors", "said"),
    [
        ({"widths": {"nope": {"out_channels": 3}}}, {}, "widths of nope, which is not a layer"),
        ({"widths": {"stem": {"out_channels": 0}}}, {}, "metadata, module.widths.stem.out_ch"),
        ({"widths": {"stem": {"out_channels": 10**7}}}, {}, "metadata, module.widths.stem.out_"),
        ({"widths": {"stem": {"forward": 1}}}, {}, "metadata, module.widths.stem.forward"),
        ({"widths": {"stem": {"out_channels": 9}}}, {}, "stem.weight is float64 (8, 3, 3, 3), it"),
        ({"widths": {"depthwise": {"groups": 3}}}, {}, "widths of depthwise: 3 groups do not divi"),
        ({"layers": {"stem": 5}}, {}, "metadata, module.layers.stem: Input should be a valid str"),
        ({"layers": {}}, {}, "stem is a Conv2d here, and the file has no such layer"),
        ({"layers": [1]}, {}, "metadata, module.layers: Input should be a valid dictionary"),
        ({"kind": 5}, {}, "metadata, module.kind: Input should be a valid string"),
        ({"name": "resnet18"}, {}, "metadata, module.name: Extra inputs are not permitted"),
        ({}, {"evil.weight": torch.zeros(2)}, "a tensor evil.weight, which this network does not"),
        ({}, {"forward": torch.zeros(2)}, "a tensor forward, which this network does not have"),
        ({}, {"stem.weight": torch.zeros(9, 3, 3, 3)}, "stem.weight is float32 (9, 3, 3, 3) where"),
        ({}, {"stem.weight": torch.zeros(8, 3, 3)}, "stem.weight is float32 (8, 3, 3) where this"),
        ({}, {"seen": torch.zeros(())}, "seen is float32 () where this network has int64 ()"),
        ({}, {"stem.bias": torch.zeros(3)}, "stem.bias is float32 (3,), its widths say (8,)"),
    ],
    ids=str,
)
def test_a_strangers_file_changes_nothing(changes, tensors, said, tmp_path):
    assert hostile(tmp_path, changes, tensors).startswith(said)


def test_a_file_without_its_checksum_or_with_another_is_refused(tmp_path):
    path = tmp_path / PATH
    save(made(), path)
    raw, tensors = json.loads(header_text(path)), load_file(path)
    for change, said in (
        ({"sha256": "0"}, "damaged since it was"),
        ({}, "metadata, sha256: Field"),
    ):
        text = {key: value for key, value in raw.items() if key != "sha256"} | change
        save_file(tensors, path, {"prunezoo": json.dumps(text)})
        with pytest.raises(ModelError, match=said):
            load_into(made(), path)
    with pytest.raises(ModelError, match="no such file"):
        load_into(made(), tmp_path / "nothing")
