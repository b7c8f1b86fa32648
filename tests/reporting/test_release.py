"""Releases: cards that the hub can read, no path or token that leaves, folders that load again."""

import copy
import json
import re
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants

import export
from prunezoo import models
from prunezoo.models import build, load, save
from prunezoo.models.export import Exported
from prunezoo.models.speed import medians
from prunezoo.pruning import prune_once
from prunezoo.reporting.records import Job, Record
from prunezoo.reporting.release import folder as releases
from prunezoo.reporting.release import speed
from prunezoo.reporting.release.card import metadata
from prunezoo.reporting.release.folder import release, without_folders
from prunezoo.reporting.release.index import ZOO, index_page
from prunezoo.reporting.release.speed import hint
from prunezoo.schema.recipe import load as load_recipe
from tests.support.runs import ROOT
from tests.support.synthetic_runs import make_run

RECIPE = """
model: digits_cnn
data: {name: digits, path: null}
training: {duration: 1ep, batch_size: 64}
pruning: {criterion: taylor, granularity: channel, macs: 50%}
log: {project: secret_project}
"""
COMMAND = (
    "train.py --recipe /home/me/recipes/a.yaml --set data.path=/home/me/data --output /home/me/x"
)
IMAGES = {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.25]}
RELEASED = 300_000  # bytes of each file of weights in zoo/
TOKEN = "hf_" + "x" * 34


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A made-up finished run whose model was pruned."""
    monkeypatch.chdir(tmp_path)
    made = make_run(
        tmp_path / "runs/a",
        command=COMMAND,
        data__name="digits",
        cost__energy_source="made up",
        **{f"eval__{key}": value for key, value in {"top1_percent": 97.5, "loss": 0.25}.items()},
    )
    (made / "recipe.resolved.yaml").write_text(RECIPE)
    dense = build("digits_cnn", num_classes=10, in_channels=1, width=0.5)
    vars(dense)["structure"]["options"] = {}  # narrower than its description: as if pruned
    save(dense, made / "model.safetensors", {"images": IMAGES})
    return made


def test_a_release_has_what_others_need_and_loads(run, tmp_path):
    folder = release(run, tmp_path / "out/digits", "mit")
    names = {"README.md", "model.safetensors", "recipe.resolved.yaml", "record.json"}
    assert {path.name for path in folder.iterdir()} == names
    image = torch.randn(1, 1, 8, 8)
    assert torch.equal(load(folder)(image), load(run)(image))
    recipe = load_recipe(folder / "recipe.resolved.yaml")[0]
    assert recipe.hash() == load_recipe(run / "recipe.resolved.yaml")[0].hash()
    record = json.loads((folder / "record.json").read_text())
    assert record["summary"]["eval/top1_percent"] == 97.5
    # and again, over itself
    assert release(run, folder, "mit") == folder


def test_the_cards_metadata_are_as_the_hub_reads_them(run, tmp_path):
    card = ModelCard((release(run, tmp_path / "out", "mit") / "README.md").read_text())
    data = card.data
    assert (data.license, data.library_name) == ("mit", "prunezoo")
    assert (data.pipeline_tag, data.tags) == ("image-classification", ["pruning", "taylor"])
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == (
        *("digits", "accuracy", 0.975),
    )
    assert data.co2_eq_emissions["emissions"] == 200.0  # grams of 0.2 kg
    assert data.co2_eq_emissions["hardware_used"] == "Synthetic Processor"


def test_a_card_of_another_task_is_not_of_image_classification(run):
    figures = {"task/name": "language", "eval/log_perplexity_nats": 4.0}
    recipe = load_recipe(run / "recipe.resolved.yaml")[0]
    data = metadata(Record(Job(None, "recipes/x.yaml"), figures), recipe, "mit", "a model")
    assert (data.pipeline_tag, data.eval_results) == (None, None)
    assert "classification" not in data.to_yaml()
    assert "pipeline_tag" not in data.to_yaml()


def test_the_cards_text_says_result_channels_cost_images_and_use(run, tmp_path, monkeypatch):
    text = (release(run, Path("out"), "mit") / "README.md").read_text()
    for part in (
        "# digits_cnn on digits, pruned while it trained",
        "| parameters | 1,250,858 | 47,514 |",
        "| eval/top1_percent | | 97.5 |",
        "| features.0 | 16 | 8 |",
        "Images are 1×8×8, values from 0 to 1, minus [0.5], divided by [0.25].",
        "Synthetic Processor:\n2 device hours, 500 Wh, 200 g CO2e (made up).",
        'model = models.load("out")',
        "macs: 0.5",
    ):
        assert part in text
    names: dict = {}
    block = text.partition("```python\n")[2].partition("```")[0]
    exec(block, names)
    assert isinstance(names["model"], torch.nn.Module)


def test_no_path_of_the_machine_leaves_with_it(run, tmp_path):
    recipe = RECIPE.replace("name: digits, path: null", "name: /home/me/my pictures/digits")
    recipe = recipe.replace("model: digits_cnn", "model: {name: digits_cnn, weights: /home/me/w.x}")
    (run / "recipe.resolved.yaml").write_text(recipe)
    folder = release(run, tmp_path / "out", "mit")
    for path in folder.iterdir():
        text = path.read_bytes().decode(errors="ignore")
        assert "/home/me" not in text, path.name
        assert str(tmp_path) not in text, path.name
        assert "secret_project" not in text, path.name
    values = yaml.safe_load((folder / "recipe.resolved.yaml").read_text())
    assert values["model"]["weights"] == "w.x"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("data.name=/home/me/x", "data.name=x"),
        ("--recipe /a/b.yaml", "--recipe b.yaml"),
        ("recipes/a/b.yaml", "recipes/a/b.yaml"),
        ("images/s and 3 / 4", "images/s and 3 / 4"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("timm/resnet18 ./a/b ../c/d ~/e/f", "timm/resnet18 ./a/b ../c/d ~/e/f"),
    ],
)
def test_of_a_path_from_the_root_the_last_part_stays(text, kept):
    assert without_folders(text) == kept


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (["--onnx", "--dynamic-batch"], ["PyTorch: images/s, batches of 32", "ONNX Runtime: one "]),
        (["--torch-export"], ["PyTorch: one image [ms]", "torch.export: one image [ms]"]),
    ],
)
def test_an_export_is_shown_next_to_the_dense_network(words, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prunezoo.models.speed.LEAST", 1)
    monkeypatch.setattr("prunezoo.reporting.release.speed.medians", partial(medians, seconds=0.0))
    output = tmp_path / "model.file"
    assert export.main([str(ZOO / "digits_pruned"), *words, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert output.exists()
    assert f"{output}: as PyTorch to " in out
    table = dict(re.findall(r"^ ?(\S.*?\S) {2,}(\S.*)$", out, flags=re.MULTILINE))
    assert table["parameters"].split() == ["16,794", "7,152", "2.35×"]
    for row in rows:
        assert any(name.startswith(row) for name in table), table


@pytest.mark.parametrize(("round_to", "found"), [(1, "hidden"), (8, None)])
def test_a_slow_pruned_network_is_told_of_widths_that_kernels_want(round_to, found):
    dense = models.build("mlp", num_classes=3, in_channels=4, units=128, depth=3)
    pruned = copy.deepcopy(dense)
    prune_once(
        pruned,
        torch.zeros(1, 4),
        criterion="magnitude",
        macs="60%",
        tolerance=0.2,
        round_to=round_to,
    )
    said = hint(dense, pruned)
    assert bool(said) == bool(found)
    assert all("layers, as hidden" in line and "round_to: 8" in line for line in said)
    assert not hint(dense, dense)


@pytest.mark.parametrize("slow", ["dense", "pruned"])
def test_the_hint_is_given_where_the_pruned_network_is_slower(slow, monkeypatch, tmp_path):
    seconds = {"dense": 1.0, "pruned": 1.0} | {slow: 2.0}
    monkeypatch.setattr(speed, "medians", lambda calls: {call: seconds[call[1]] for call in calls})
    monkeypatch.setattr(speed, "hint", lambda dense, pruned: ["a hint"])
    model, file = models.build("digits_cnn", num_classes=10, in_channels=1), tmp_path / "file"
    file.write_bytes(b"x")
    made = Exported(file, model, 0.0)
    image = torch.zeros(1, 1, 8, 8)
    grid = speed.speed_grid({n: model for n in seconds}, lambda *_: made, "ONNX", image, 4)
    assert ("a hint" in grid.remarks) == (slow == "pruned")
    alone = speed.speed_grid({"pruned": model}, lambda *_: made, "ONNX", image, 4)
    assert "a hint" not in alone.remarks


def test_an_export_needs_a_place_and_an_image_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    alone = tmp_path / "alone.safetensors"
    models.save(load(ZOO / "digits_pruned"), alone)
    status, err = said(capsys, str(alone), "--onnx")
    assert (status, err) == (2, "the model has no image size with it; give --image-size")
    status, err = said(capsys, "hf://me/none", "--onnx", "--output", "x")
    assert status == 2
    assert "hf://me/none: model.safetensors is not in the Hugging Face cache" in err


def said(capsys, *words: str) -> tuple[int, str]:
    try:
        status = export.main(list(words))
    except SystemExit as left:
        status = int(left.code or 0)
    return status, capsys.readouterr().err.strip()


def test_faults_of_a_release_are_one_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    (full / "thesis.doc").write_text("x")
    for words, line in (
        ([str(run), "--hub", str(full), "--license", "mit"], "holds thesis.doc; give a new folder"),
        ([str(empty), "--hub", "out", "--license", "mit"], "no model.safetensors; give the folder"),
        ([str(run), "--hub", "out"], "--license is missing: under which one the weights go out"),
        ([str(run), "--hub", "hf://me/a", "--license", "mit"], "sending needs the network; add --"),
        ([str(run), "--hub", "hf://me", "--license", "mit"], "hf://me: not an address on the hub"),
        ([str(run), "--hub", "hf://me/a@v1", "--license", "mit"], "is sent to the main branch; "),
        (
            [str(run), "--onnx", "--image-size", "big"],
            "'big' is not a number of pixels; write 1 or",
        ),
        ([str(run)], "one of the arguments --onnx --torch-export --hub is required"),
    ):
        status, err = said(capsys, *words)
        assert (status, len(err.splitlines())) == (2, 1), err
        assert line in err
    assert not Path("out").exists()


class StandIn:
    """Takes what would be sent; `fault` is raised instead."""

    fault: Exception | None = None
    sent: dict[str, bytes]

    def __init__(self) -> None:
        StandIn.sent = {}

    def create_repo(self, name: str, *, exist_ok: bool) -> str:
        assert exist_ok
        return f"https://huggingface.co/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: str, **_: object) -> None:
        if StandIn.fault is not None:
            raise StandIn.fault
        StandIn.sent = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    monkeypatch.setattr(StandIn, "fault", None)


def test_a_release_is_sent_whole(run, hub, capsys):
    assert export.main([str(run), "--hub", "hf://me/a", "--license", "mit", "--online"]) == 0
    assert capsys.readouterr().out.strip() == "https://huggingface.co/me/a"
    assert set(StandIn.sent) == set(releases.FILES)
    assert b'models.load("hf://me/a")' in StandIn.sent["README.md"]
    assert StandIn.sent["model.safetensors"] == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", [OSError, RuntimeError, ValueError])
def test_a_refusal_shows_no_token(run, hub, capsys, monkeypatch, kind):
    monkeypatch.setattr(StandIn, "fault", kind(f"401 for Bearer {TOKEN}"))
    words = [str(run), "--hub", "hf://me/a", "--license", "mit", "--online"]
    status, err = said(capsys, *words)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "log in with `hf auth login`" in err
    assert TOKEN not in err


def test_the_index_of_the_weights_is_current():
    assert (ZOO / "README.md").read_text() == index_page(ZOO), (
        "write it again with python -m prunezoo.reporting.release.index"
    )


def test_the_weights_are_small_and_load_from_a_fresh_clone():
    folders = sorted(path.parent for path in ZOO.glob("*/model.safetensors"))
    assert len(folders) >= 4
    for folder in folders:
        assert (folder / "model.safetensors").stat().st_size < RELEASED
        model, images = load(folder), models.header(folder)["notes"]["images"]
        model(torch.zeros(1, images["channels"], images["height"], images["width"]))
        recipe = load_recipe(folder / "recipe.resolved.yaml")[0]
        record = json.loads((folder / "record.json").read_text())
        assert recipe.hash() == record["summary"]["recipe/hash"]
        assert ModelCard((folder / "README.md").read_text()).data.license
        assert (ROOT / record["job"]["recipe"]).exists()
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 2_000_000
