"""The report and the saved view of W&B, as its own models read them back."""

import json
from pathlib import Path

import pytest

import tables
from prunezoo.reporting import papers
from prunezoo.reporting.pages.experiments import COSTS
from prunezoo.reporting.pages.wandb import (
    ACCURACY,
    build_report,
    build_workspace,
    payload,
    write_payload,
)
from prunezoo.reporting.records import load_records


def test_the_wandb_payload_is_what_the_librarys_own_models_read_back(compared, results, tmp_path):
    runs = load_records(results)
    path = write_payload(compared, runs, tmp_path, entity="", project="prunezoo")
    sent = json.loads(path.read_text())
    blocks = sent["report"]["spec"]["blocks"]
    grids = [block for block in blocks if block["type"] == "panel-grid"]
    *every, tables_own = [grid["metadata"]["runSets"][0] for grid in grids]
    assert [runset["filters"]["filters"] for runset in every] == [[], [], []]
    assert tables_own["filters"]["filters"][0]["value"] == ["bep/3"]
    assert tables_own["grouping"] == [{"section": "run", "name": "group"}]
    texts = [block.get("content", "") for block in blocks]
    assert any("67.7 ± 0.7" in text for text in texts)
    (every,) = [text for text in texts if "| bep/3/CIFAR-10,95K,SNIP |" in text]
    assert "68.5 ± 0.5" in every


def test_the_wandb_view_opens_on_accuracy_cost_and_prunings_of_every_run(compared):
    sent = payload(build_workspace(compared, entity="nobody", project="prunezoo"))
    section = sent["spec"]["section"]
    shown = section["panelBankConfig"]["sections"]
    assert [(s["name"], s["isOpen"]) for s in shown] == [
        ("Accuracy", True), ("Cost", True), ("Pruning", True)]  # fmt: skip
    charted = json.dumps(shown)
    for key in (
        ACCURACY.test,
        "validation/top1_percent",
        *(c.key for c in COSTS),
        "model/macs",
        "^widths/",
    ):
        assert key in charted
    assert "emissions [kg CO2e]" in charted  # as the summary has it
    (runset,) = section["runSets"]
    assert "Tags" not in json.dumps(runset["filters"])
    assert not runset.get("grouping")
    pinned = runset["runFeed"]["columnPinned"]
    table = papers.find_table("bep/3")
    keys = {f"summary:{c.record}" for c in table.columns.values() if c.record}
    assert keys | {f"summary:{ACCURACY.test}"} <= {key for key, shown in pinned.items() if shown}


def test_a_block_that_wandb_would_not_accept_is_an_error(compared, monkeypatch):
    report = build_report(compared, [], entity="", project="prunezoo")
    model = report._to_model()
    model.spec.blocks.append(type(model.spec.blocks[0]).model_construct(children=None))
    monkeypatch.setattr(type(report), "_to_model", lambda self: model)
    with pytest.raises(ValueError, match="W&B"):
        payload(report)


def test_the_command_writes_all_of_it(results, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    where = ["--results", str(results), "--claims", str(tmp_path / "none")]
    assert tables.main([*where, "report", "--wandb", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.split()
    assert [Path(p).name for p in printed] == ["wandb.json", "report.html"]
    assert all(Path(p).stat().st_size > 1000 for p in printed)
