"""Structures that a trigger watched: kept in the log, in the record, and drawn as figure 6."""

import json
from pathlib import Path

import pytest

from prunezoo.reporting.errors import RecordError
from prunezoo.reporting.pages.experiments import by_setting
from prunezoo.reporting.pages.stability import indicators, layers, stability_figures
from prunezoo.reporting.records import Record, collect, load_records
from tests.support.synthetic_runs import make_run

COUNTS = [[8, 10, 6], [9, 9, 6], [9, 10, 5]]
EPI = [None, 0.9, 0.95]


def watched(*, structures: bool = True) -> list[dict]:
    """What EPI wrote at the end of three epochs, at 50 % and at 10 %."""
    events = []
    for epochs, (counts, epi) in enumerate(zip(COUNTS, EPI, strict=True), 1):
        event = {"step": 20 * epochs, "images": epochs, "trigger/epochs": epochs}
        event |= {"trigger/fired": epochs == 3}
        if structures:
            event |= {"epi/tau": 0.944, "epi/ratio": 0.5, "epi/structure_0.5": counts}
            event |= {"epi/structure_0.1": [15, 15, 14]}
        if epi is not None:
            event |= {"epi/removed_0.5": epi, "epi/removed_0.1": 1.0}
        events.append(event)
    return events


def recorded(tmp_path: Path, events: list[dict]) -> tuple[Record, Path]:
    folder = make_run(tmp_path / "run")
    with (folder / "log.jsonl").open("a") as log:
        log.write("".join(json.dumps(event) + "\n" for event in events))
    path = collect(folder, tmp_path / "results")
    return load_records(tmp_path / "results")[0], path


def test_a_record_keeps_every_structure_on_one_line(tmp_path: Path):
    record, path = recorded(tmp_path, watched())
    assert record.history["watched"] == watched()
    lines = [line.strip() for line in path.read_text().splitlines() if "structure_0.5" in line]
    assert lines == [f'"epi/structure_0.5": {counts},'.replace(",]", "]") for counts in COUNTS]


def test_figure_6_shows_what_the_record_says(tmp_path: Path):
    record, _ = recorded(tmp_path, watched())
    events = record.history["watched"]
    assert indicators(events) == {0.1: [(2, 1.0), (3, 1.0)], 0.5: [(2, 0.9), (3, 0.95)]}
    assert layers(events) == [[(1, 8), (2, 9), (3, 9)], [(1, 10), (2, 9), (3, 10)],
                              [(1, 6), (2, 6), (3, 5)]]  # fmt: skip
    experiments = next(iter(by_setting([record]).values()))
    epi, structure = stability_figures("a setting", experiments, tmp_path)
    for text in ("10 % removed", "50 % removed", "threshold", "epochs trained"):
        assert text in epi.svg
    for text in ("layer 1", "layer 3", "units that would stay"):
        assert text in structure.svg
    assert {path.suffix for path in tmp_path.glob(f"{epi.name}.*")} == {".png", ".svg"}


def test_records_without_structures_or_without_epi_are_drawn_as_far_as_they_go(tmp_path: Path):
    record, _ = recorded(tmp_path, watched(structures=False))
    experiments = next(iter(by_setting([record]).values()))
    (epi,) = stability_figures("a setting", experiments, tmp_path)
    assert "threshold" not in epi.svg
    bare, _ = recorded(tmp_path / "bare", [])
    assert stability_figures("a setting", next(iter(by_setting([bare]).values())), tmp_path) == []


def test_a_damaged_structure_is_refused(tmp_path: Path):
    _, path = recorded(tmp_path, watched())
    path.write_text(path.read_text().replace("[8, 10, 6]", '[8, "ten", 6]'))
    with pytest.raises(RecordError, match=r"history\.watched\.0"):
        load_records(tmp_path / "results")
