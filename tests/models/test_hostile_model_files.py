"""Model files of strangers: nothing in them is run, read, fetched or allocated."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunezoo.models import ModelError, build, header, load
from prunezoo.models.files.description import FORMAT

LAST = "classifier.weight"
FIRST = "features.0.weight"
ROOT = Path(__file__).parents[2]
STRUCTURE: dict[str, Any] = {
    "name": "digits_cnn",
    "num_classes": 2,
    "in_channels": 1,
    "options": {"width": 0.1},
    "widths": {},
}


def state() -> dict[str, torch.Tensor]:
    return dict(build("digits_cnn", num_classes=2, in_channels=1, width=0.1).state_dict())


def refusal(folder: Path, described: Any, tensors: dict[str, torch.Tensor] | None = None) -> str:
    """What `load` says of a file with this metadata: always one line that names the file."""
    path = folder / "x.safetensors"
    text = described if isinstance(described, str) else json.dumps(described)
    save_file(state() if tensors is None else tensors, path, {"prunezoo": text})
    with pytest.raises(ModelError) as caught:
        load(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


def stated(**changes: Any) -> dict[str, Any]:
    return {"format": FORMAT, "structure": STRUCTURE | changes, "notes": {}}


def test_the_file_that_the_others_are_made_of_loads(tmp_path):
    described, path = json.dumps(stated()), tmp_path / "x.safetensors"
    save_file(state(), path, {"prunezoo": described})
    assert load(path).structure["options"] == {"width": 0.1}


@pytest.fixture
def timm_builds_nothing(monkeypatch):
    """An alarm where options of a file reach timm: only the look at its signatures may."""
    import timm

    built = timm.create_model

    def create_model(name, *arguments, **options):
        assert not arguments or arguments == (False,)
        assert options.keys() <= {"num_classes", "in_chans"}
        return built(name, *arguments, **options)

    monkeypatch.setattr("timm.create_model", create_model)


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "resnext101_32x48d"])
@pytest.mark.parametrize(
    "option",
    [
        {"checkpoint_path": "evil.pth"},
        {"pretrained": True},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": "evil.pth"}},
        {"pretrained_cfg": {"url": "file:///evil.pth"}},
        {"pretrained_cfg_overlay": {"file": "evil.pth"}},
        {"pretrained_strict": False},
        {"pretrained_model_args": {"a": 1}},
        {"pretrained_filter_fn": "os.system"},
        {"cache_dir": "/"},
        {"timm_name": "local-dir:/"},
        {"features_only": True},
        {"out_indices": [1]},
        {"feature_cls": "fx"},
        {"feature_cfg": {}},
        {"model_cfg": {}},
        {"kwargs_filter": ["a"]},
        {"pruned": True},
        {"scriptable": True},
        {"exportable": True},
        {"no_jit": True},
        {"device": "cuda"},
        {"dtype": "float16"},
        {"in_chans": 4},
        {"self": 1},
        {"init": "xavier"},
        {"name": "os"},
    ],
    ids=lambda option: "+".join(option),
)
def test_no_option_of_a_file_reaches_what_opens_or_fetches(
    timm_builds_nothing, tmp_path, name, option
):
    said = refusal(tmp_path, stated(name=name, options=option))
    assert "is not an option" in said or "has no option" in said


@pytest.mark.parametrize(
    "value",
    [
        *("../x.py", "os.system", "/etc/passwd", "http://a", "a b", "x" * 100),
        *(-1, 10**7, 10**400, 1e999, [[[-1]]], {"a/b": 1}, [0] * 20_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_option_of_timms_is_plain(timm_builds_nothing, tmp_path, value):
    said = refusal(tmp_path, stated(name="timm/resnet18", options={"act_layer": value}))
    assert said.startswith("timm/resnet18: act_layer ")


def test_a_recipe_sets_no_more_than_a_file_does():
    for option in ({"checkpoint_path": "a"}, {"pretrained_cfg": {}}, {"act_layer": nn.ReLU}):
        with pytest.raises(ModelError, match=r"has no option|is not a number, word, list or map"):
            build("timm/resnet18", num_classes=2, **option)


def test_options_that_timm_knows_are_its_own():
    model = build("timm/resnet18", num_classes=2, act_layer="gelu", drop_rate=0.1, layers=[1] * 4)
    assert len(list(model.get_submodule("layer1").children())) == 1
    assert any(type(m).__name__ == "GELU" for m in model.modules())
    assert build("mobilenet_v2", num_classes=2, bn_eps=0.5).get_submodule("bn1").eps == 0.5


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ("{", "metadata that is not JSON"),
        ("[" * 100_000, "metadata that is not JSON"),
        ('{"format": ' + "9" * 5000 + "}", "metadata that is not JSON"),
        ("[]", "metadata, it: Input should be a valid dictionary"),
        ("null", "metadata, it: Input should be a valid dictionary"),
        ("5", "metadata, it: Input should be a valid dictionary"),
        ({"structure": STRUCTURE, "notes": {}}, "metadata, format: Field required"),
        ({"format": 9}, f"not in format {FORMAT}; load it with the code that wrote it"),
        ({"format": "1"}, f"not in format {FORMAT}; load it with the code that wrote it"),
        ({"format": FORMAT}, "metadata, structure: Field required"),
        ({"format": FORMAT, "structure": None}, "metadata, structure: Input should be"),
        ({"format": FORMAT, "structure": {}}, "metadata, structure.name: Field required"),
        (stated() | {"notes": [1]}, "metadata, notes: Input should be a valid dictionary"),
        (stated() | {"more": 1}, "metadata, more: Extra inputs are not permitted"),
        (stated() | {"sha256": "0"}, "damaged since it was written: its checksum does not fit"),
        (stated(name=5), "metadata, structure.name: "),
        (stated(name=None), "metadata, structure.name: "),
        (stated(name="timm/local-dir:/"), "metadata, structure.name: "),
        (stated(name="timm/hf-hub:a/b"), "metadata, structure.name: "),
        (stated(name="a\nb"), "metadata, structure.name: "),
        (
            stated(name="nonesuch"),
            "unknown model nonesuch; use timm/<name>, torchvision/<name> or one of ",
        ),
        (
            stated(name="os.system"),
            "unknown model os.system; use timm/<name>, torchvision/<name> or one of ",
        ),
        (stated(name="timm/../../x"), "timm has no network ../../x"),
        (stated(options=[1]), "metadata, structure.options: "),
        (stated(options=None), "metadata, structure.options: "),
        (stated(options={"zzz": 1}), "digits_cnn has no option zzz; it has width"),
        (
            stated(options={"num_classes": 3}),
            "metadata, structure.options: num_classes is not an o",
        ),
        (
            stated(options={"width": 1e9}),
            "digits_cnn: width 1000000000.0 is not above 0 and at most",
        ),
        (stated(options={"width": 0}), "digits_cnn: width 0 is not above 0 and at most"),
        (stated(options={"width": -1}), "digits_cnn: width -1 is not above 0 and at most"),
        (stated(options={"width": True}), "digits_cnn: width True is not a number"),
        (stated(options={"width": "x"}), "digits_cnn: width x is not a number"),
        (stated(options={"width": {"a": 1}}), "digits_cnn: width {'a': 1} is not a number"),
        (stated(num_classes=10**12), "metadata, structure.num_classes: "),
        (stated(num_classes=-5), "metadata, structure.num_classes: "),
        (stated(num_classes=0), "metadata, structure.num_classes: "),
        (stated(num_classes="x"), "metadata, structure.num_classes: "),
        (stated(num_classes=True), "metadata, structure.num_classes: "),
        (stated(in_channels=10**10), "metadata, structure.in_channels: "),
        (stated(in_channels=0), "metadata, structure.in_channels: "),
        (stated(num_classes=3), "classifier.weight is float32 (2, 3), its widths say (3, 3)"),
        (stated(widths=[1]), "metadata, structure.widths: "),
        (stated(widths=None), "metadata, structure.widths: "),
        (stated(widths={"": 7}), "metadata, structure.widths."),
        (stated(widths={"nope": {"out_channels": 3}}), "widths of nope, which is not a layer"),
        (stated(widths={"": {"out_channels": 3}}), "widths of '', which is not a layer"),
        (stated(widths={LAST[:10]: {"out_channels": 3}}), "widths of classifier: out_channels 3"),
        (stated(widths={LAST[:10]: {"in_features": [3]}}), "widths of classifier: in_features [3"),
        (stated(widths={LAST[:10]: {"in_features": 2}}), "classifier.weight is float32 (2, 3), "),
        (stated(widths={"features.0": {"groups": 0}}), "metadata, structure.widths.features.0.gr"),
        (stated(widths={"features.0": {"groups": 7}}), "widths of features.0: 7 groups do not"),
        (stated(widths={"features.1": {"num_features": 9}}), "features.1.weight is float32 (1,), "),
    ],
    ids=lambda value: (value if isinstance(value, str) else json.dumps(value))[:60],
)
def test_metadata_that_is_not_of_save(tmp_path, described, said):
    assert said in refusal(tmp_path, described)


@pytest.mark.parametrize("key", ["forward", "__class__", "__dict__", "_parameters", "training"])
def test_a_file_sets_no_attributes_but_widths(tmp_path, key):
    for name in ("", "features.0"):
        said = refusal(tmp_path, stated(widths={name: {key: 1}}))
        assert said.startswith("metadata, structure.widths.")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("evil.weight", torch.zeros(2), "a tensor evil.weight, which this network does not have"),
        ("../../etc/passwd", torch.zeros(2), "a tensor ../../etc/passwd, which this network does"),
        ("", torch.zeros(2), "a tensor '', which this network does not have"),
        ("bias_map", torch.zeros(2, 2, 2), "a tensor bias_map, which this network does not have"),
        ("features.0.bias_map", torch.zeros(2), "a tensor features.0.bias_map, which this net"),
        ("features.0.bias_map", torch.zeros(2, 3, 3), "features.0.bias_map is float32 (2, 3, 3), "),
        ("features.0.bias", torch.zeros(2), "features.0.bias is float32 (2,), its widths say (1,)"),
        ("features.0.forward", torch.zeros(2), "a tensor features.0.forward, which this network"),
        ("__class__", torch.zeros(2), "a tensor __class__, which this network does not have"),
        (FIRST, torch.zeros(3), f"{FIRST} is float32 (3,) where this network has float32 (1, 1, "),
        (FIRST, torch.zeros(0, 1, 3, 3), f"{FIRST} is float32 (0, 1, 3, 3) where this network"),
        (FIRST, torch.zeros(2, 1, 3, 3), f"{FIRST} is float32 (2, 1, 3, 3) where this network"),
        (FIRST, torch.zeros(1, 1, 1, 1), f"{FIRST} is float32 (1, 1, 1, 1), its widths say"),
        (FIRST, torch.zeros(1, 1, 3, 3).long(), f"{FIRST} is int64 (1, 1, 3, 3) where"),
    ],
)
def test_tensors_of_another_network(tmp_path, name, tensor, said):
    assert refusal(tmp_path, stated(), state() | {name: tensor}).startswith(said)


def test_tensors_that_are_missing(tmp_path):
    missing = "no tensor classifier.bias, which this network has; its options differ"
    assert refusal(tmp_path, stated(), {FIRST: state()[FIRST]}) == missing
    assert refusal(tmp_path, stated(), {"a": torch.zeros(1)}).startswith("a tensor a, which")


LIMITED = """
import resource, sys
import timm
from prunezoo import models
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
for path in sys.argv[1:]:
    try:
        models.load(path)
    except models.ModelError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_file_that_claims_a_huge_network_takes_no_memory_for_it(tmp_path):
    claims: list[tuple[str, dict[str, Any], str]] = [
        ("bep_vgg16", {"width": 2000.0}, "no tensor features.0.bias"),
        ("bep_vgg16", {"width": 1e6}, "bep_vgg16: too large to be built"),
        ("timm/resnet18", {"layers": [10**6, 1, 1, 1]}, "timm/resnet18: more than 10,000 layers"),
        ("mnist_cnn", {"image_size": 900_000}, "a tensor features.1.bias"),
        ("timm/vit_tiny_patch16_224", {"img_size": 900_000}, "a tensor"),
    ]
    paths = [str(tmp_path / f"{number}.safetensors") for number in range(len(claims))]
    for path, (name, options, _) in zip(paths, claims, strict=True):
        save_file(state(), path, {"prunezoo": json.dumps(stated(name=name, options=options))})
    words = [sys.executable, "-c", LIMITED, *paths]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    for path, line, claim in zip(paths, ran.stdout.splitlines(), claims, strict=True):
        assert line.startswith(f"{path}: {claim[2]}")


def test_what_is_no_file_of_tensors_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    remedy = "give a model.safetensors written by models.save"
    for absent in (tmp_path / "none", tmp_path, Path("/dev/null"), "a\0b"):
        with pytest.raises(ModelError, match=rf": no such file; {remedy}"):
            load(absent)
    for metadata in (None, {"format": "pt"}):
        save_file(state(), path, metadata)
        with pytest.raises(ModelError) as caught:
            header(path)
        assert str(caught.value) == f"{path}: tensors without the network they belong to; {remedy}"
    entry = {"__metadata__": {"prunezoo": "{}"}}
    huge = {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}
    heads = [json.dumps(entry | {"a": huge}), "[" * 100_000, "{x", "{}"]
    written = [len(head).to_bytes(8, "little") + head.encode() + bytes(4) for head in heads]
    for data in (b"", b"1234567", (2**63).to_bytes(8, "little") + b"{}", *written):
        path.write_bytes(data)
        with pytest.raises(ModelError, match=r"x\.safetensors: not a safetensors file \(.*\); "):
            load(path)
