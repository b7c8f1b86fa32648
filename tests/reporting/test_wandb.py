"""What W&B is given, read back from the files that `wandb sync` uploads."""

import json
import os
import shlex
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from wandb.proto import wandb_internal_pb2 as proto
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import train
from prunezoo.reporting import papers
from prunezoo.schema.recipe import load
from prunezoo.training.folder.log import read
from tests.support.runs import DIGITS, ROOT

MISSING = {  # without a GPU or a meter of energy
    "cost/emissions_kgco2e",
    "cost/earlycrop_memory_allocated_bytes",
    "grid/abs_top1_change",  # of several runs
}
SETTINGS = (
    "log.tracker=wandb",
    "training.duration=20it",
    "checkpoint.every=6it",
    "log.every=2it",
    "data.validation=10%",
    "evaluation.every=10it",
    "pruning={criterion: magnitude, granularity: channel, macs: 50%, application: surgery}",
    "pruning.schedule={start: 4it, rounds: 2, every: 10it, curve: linear}",
)
SWEEP = ROOT / "deploy/wandb/sweep.yaml"


def records(path: Path) -> Iterator[proto.Record]:
    """The records of a .wandb file: blocks of 32 KiB that hold pieces of checksum, length, kind."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            yield proto.Record.FromString(whole)
            whole = b""


def written(path: Path) -> list[proto.Record]:
    """All records of a file, once W&B's own process has written the last, the exit."""
    for _ in range(300):
        kinds = list(records(path))
        if kinds and kinds[-1].HasField("exit"):
            return kinds
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def items(*messages: list) -> dict[str, object]:
    """Keys and values of a message's items, as W&B shows them."""
    pairs = [(i.key or i.nested_key[0], i.value_json) for message in messages for i in message]
    return {key: json.loads(value) for key, value in pairs}


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Variables of an offline run that `tables.py run` started, and nothing of the machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_RUN_GROUP", "foresight/4.2/CIFAR-10,SNIP")
        patch.setenv("WANDB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def test_a_resumed_offline_run_is_one_upload_of_every_step_once(offline, run_recipe, crash):
    settings = (
        *SETTINGS,
        'log.tags=["foresight","foresight/4.2","CIFAR-10,SNIP","seed 0"]',
        "log.name=half of it",
        "log.job_type=table",
        "log.notes=a line",
        "log.model=true",
    )
    crash(*settings, step=10)  # four steps after its checkpoint
    status, folder = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    assert status == 0
    (piece,) = folder.glob("wandb/offline-run-*/*.wandb")
    stored = written(piece)
    runs = [r.run for r in stored if r.HasField("run")]
    run = runs[0]
    (known,) = {r.run_id for r in runs}
    assert known == (folder / "wandb_id.txt").read_text().strip()  # of both sessions
    assert known.startswith(f"{folder.name}-")
    # else wandb sync would put its steps behind those of an earlier upload
    assert not any(r.resume for r in runs)
    steps = [r.history.step.num for r in stored if r.HasField("history")]
    log = read(folder / "log.jsonl")
    assert steps == sorted({r["step"] for r in log})
    assert steps[-1] == 20
    assert run.run_group == "foresight/4.2/CIFAR-10,SNIP"
    assert list(run.tags) == ["foresight", "foresight/4.2", "CIFAR-10,SNIP", "seed 0"]
    assert (run.display_name, run.job_type, run.notes) == ("half of it", "table", "a line")
    history = [items(r.history.item) for r in stored if r.HasField("history")]
    check_charts(history, log)
    check_summary(items(*(r.summary.update for r in stored)), log[-1])
    check_model([r.artifact for r in stored if r.HasField("artifact")], folder)


def check_charts(history: list[dict], log: list[dict]) -> None:
    """Every chart has several values, and sizes begin with the dense network's."""
    charts: dict[str, list[float]] = {}
    for line in history:
        for key, value in line.items():
            charts.setdefault(key, []).append(value)
    single = {key for key, values in charts.items() if len(values) < 2}
    assert not {key for key in single if not key.startswith("_")}
    assert not {key for key in charts if key.startswith(("cost/e", "run/", "dense/", "derived/"))}
    first, last = log[-1]["dense/params"], log[-1]["model/params"]
    assert [charts["model/params"][0], charts["model/params"][-1]] == [first, last]
    events = [line["prune/layers"] for line in log if "prune/layers" in line][:2]
    for layer, sizes in events[0].items():
        widths = [sizes["of"], *(event[layer]["kept"] for event in events)]
        assert sorted(set(charts[f"widths/{layer}"])) == sorted(set(widths))
        assert len(charts[f"scores/{layer}"]) > 2


def check_summary(summary: dict, last: dict) -> None:
    """All that the papers' tables compare is in the summary, as the record has it."""
    keys = {c.record for t in papers.tables().values() for c in t.columns.values() if c.record}
    assert keys - summary.keys() - MISSING == set()
    assert summary["eval/top1_percent"] == last["eval/top1_percent"]
    assert summary["run/device"] == last["run/device"]


def check_model(artifacts: list, folder: Path) -> None:
    """The model and its record are an artifact, to be uploaded from the run folder itself."""
    (artifact,) = artifacts
    assert (artifact.name, artifact.type) == (f"model-{folder.name}", "model")
    files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
    assert set(files) == {"model.safetensors", "summary.json", "log.jsonl",
                          "recipe.resolved.yaml", "environment.json"}  # fmt: skip
    assert all(Path(path) == folder / name for name, path in files.items())


# ── sweeps ───────────────────────────────────────────────────────────────────────────────────────
def sweep_commands() -> list[list[str]]:
    """The command lines that W&B's agent would make: the first and the last value of each key."""
    sweep = yaml.safe_load(SWEEP.read_text())
    parameters = sweep["parameters"].items()
    commands = []
    for end in (0, -1):
        args = {
            key: {"value": line.get("values", [line.get("value")])[end]} for key, line in parameters
        }
        made = create_sweep_command_args({"args": args})
        made |= {"env": ["/usr/bin/env"], "program": [sweep["program"]], "interpreter": ["python"]}
        words = []
        for word in create_sweep_command(list(sweep["command"])):
            known = word.startswith("${") and word.strip("${}") in made
            words += made[word.strip("${}")] if known else [word]
        commands.append([str(word) for word in words])
    return commands


def test_the_agents_command_lines_are_recipes(monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = sweep_commands()
    assert lines[0] != lines[-1]
    for line in lines:
        start = line.index("train.py")
        command = train.parse(line[start + 1 :])
        recipe, _ = load(command.recipe, command.set)
        assert recipe.log.mode == "online"  # an agent's runs are of a sweep on the server
    names = {word.partition("=")[0] for word in lines[0] if "=" in word}
    assert yaml.safe_load(SWEEP.read_text())["parameters"].keys() <= names


@pytest.mark.slow
def test_an_agents_run_runs_offline_too(tmp_path, monkeypatch):
    line = sweep_commands()[0]
    line[line.index("python")] = sys.executable
    variables = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "abc123", "WANDB_RUN_ID": "of-sweep"}
    done = subprocess.run(
        [*line, "training.duration=4it", "pruning=null", "--output", str(tmp_path / "run")],
        cwd=ROOT,
        env=os.environ | variables | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (piece,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    (run, *_) = [r.run for r in written(piece) if r.HasField("run")]
    assert (run.run_id, run.sweep_id) == ("of-sweep", "abc123")


def test_the_sweep_says_how_it_is_used():
    lines = SWEEP.read_text().splitlines()
    said = [shlex.split(line.strip("# ")) for line in lines if line.startswith("# wandb ")]
    assert [words[:2] for words in said] == [["wandb", "sweep"], ["wandb", "agent"]]
    assert said[0][-1] == str(SWEEP.relative_to(ROOT))
