"""What W&B is given, read back from the files that `wandb sync` uploads."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2 as proto

from tests.runs import DIGITS
from training.log import read

SETTINGS = ("log.tracker=wandb", "training.duration=20it", "checkpoint.every=6it", "log.every=2it")


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


def pieces(folder: Path) -> list[list[proto.Record]]:
    return [list(records(path)) for path in sorted(folder.glob("wandb/*/*.wandb"))]


def steps(piece: list[proto.Record]) -> list[int]:
    return [r.history.step.num for r in piece if r.HasField("history")]


@pytest.fixture
def resumed(run_recipe, crash, monkeypatch) -> Path:
    """A run that lost power at step 10, four steps after its checkpoint, and went on."""
    for name in ("WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.setenv(name, {"WANDB_MODE": "offline"}.get(name, "true"))
    monkeypatch.setenv("WANDB_RUN_GROUP", "foresight/4.2/CIFAR-10,SNIP")
    tags = 'log.tags=["foresight","foresight/4.2","CIFAR-10,SNIP","seed 0"]'
    crash(*SETTINGS, tags, step=10)
    status, folder = run_recipe(DIGITS, *SETTINGS, tags, folder="cut", resume=True)
    assert status == 0
    return folder


def test_a_resumed_offline_run_is_one_upload_of_every_step_once(resumed):
    (piece,) = pieces(resumed)
    (run,) = [r.run for r in piece if r.HasField("run")]
    logged = read(resumed / "log.jsonl")
    assert run.run_id == resumed.name
    assert not run.resume  # or wandb sync would put its steps behind those of an earlier upload
    assert steps(piece) == sorted({r["step"] for r in logged})
    assert steps(piece)[-1] == 20


def test_a_run_is_grouped_and_tagged_by_paper_table_row_and_seed(resumed):
    (piece,) = pieces(resumed)
    (run,) = [r.run for r in piece if r.HasField("run")]
    assert run.run_group == "foresight/4.2/CIFAR-10,SNIP"
    assert list(run.tags) == ["foresight", "foresight/4.2", "CIFAR-10,SNIP", "seed 0"]
