"""What W&B is given, read back from the files that `wandb sync` uploads."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as proto

from reporting import papers
from tests.support.runs import DIGITS
from training.folder.log import read

MISSING = {  # without a GPU, a meter of energy or a pruning
    "cost/emissions_kgco2e",
    "cost/earlycrop_memory_allocated_bytes",
    "derived/first_pruning_epoch",
    "grid/abs_top1_change",  # of several runs
}
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


def written(path: Path) -> list[proto.Record]:
    """All records of a file, once W&B's own process has written the last, the exit."""
    for _ in range(300):
        kinds = list(records(path))
        if kinds and kinds[-1].HasField("exit"):
            return kinds
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def test_a_resumed_offline_run_is_one_upload_of_every_step_once(run_recipe, crash, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_GROUP", "foresight/4.2/CIFAR-10,SNIP")
    tags = 'log.tags=["foresight","foresight/4.2","CIFAR-10,SNIP","seed 0"]'
    crash(*SETTINGS, tags, step=10)  # four steps after its checkpoint
    status, folder = run_recipe(DIGITS, *SETTINGS, tags, folder="cut", resume=True)
    assert status == 0
    (piece,) = folder.glob("wandb/offline-run-*/*.wandb")
    stored = written(piece)
    runs = [r.run for r in stored if r.HasField("run")]
    run = runs[0]
    assert {r.run_id for r in runs} == {folder.name}
    # else wandb sync would put its steps behind those of an earlier upload
    assert not any(r.resume for r in runs)
    steps = [r.history.step.num for r in stored if r.HasField("history")]
    assert steps == sorted({r["step"] for r in read(folder / "log.jsonl")})
    assert steps[-1] == 20
    assert run.run_group == "foresight/4.2/CIFAR-10,SNIP"
    assert list(run.tags) == ["foresight", "foresight/4.2", "CIFAR-10,SNIP", "seed 0"]
    shown = {item.nested_key[0] for r in stored for item in r.history.item}
    keys = {c.record for t in papers.tables().values() for c in t.columns.values() if c.record}
    assert {key for key in keys - shown if not key.startswith("prune/")} <= MISSING
