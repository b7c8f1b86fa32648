"""Reports of runs whose best result is the lowest."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from prunezoo.reporting.pages.experiments import COSTS, Point, by_setting, pareto, points
from prunezoo.reporting.pages.figures import accuracy_figures, speedup_figure
from prunezoo.reporting.pages.html import page, runs_grid
from prunezoo.reporting.pages.looks import looks_of
from prunezoo.reporting.pages.zoo import zoo_page
from prunezoo.reporting.records import Job, collect, load_records
from prunezoo.reporting.tables.oracle import best_epochs
from prunezoo.reporting.tables.side_by_side import side_by_side
from prunezoo.schema.headline import Headline
from tests.support.synthetic_runs import make_run

RMSE = Headline("rmse_m", "lower", 0.0, "RMSE [m]")
FACTS = {
    "task/name": "regression",
    "task/headline": "eval/rmse_m",
    "task/better": "lower",
    "task/label": "RMSE [m]",
    "data/name": "nyu_depth_v2",
}


def regression(folder: Path, rmse: float, **changes: object) -> Path:
    facts = {key.replace("/", "__"): value for key, value in FACTS.items()}
    made = make_run(folder, **facts, eval__rmse_m=rmse, **changes)
    path = made / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in summary.items() if not k.startswith("eval/top")}))
    return made


@pytest.fixture
def records(tmp_path):
    for method, rmse, sparsity in (("a", 0.9, 0.5), ("b", 0.5, 0.5), ("c", 0.7, 0.9)):
        folder = regression(tmp_path / "runs" / method, rmse, model__sparsity=sparsity)
        collect(folder, tmp_path / "results", Job(None, f"recipes/{method}.yaml"))
    return load_records(tmp_path / "results")


def test_a_record_says_which_end_is_good(records):
    assert {record.headline for record in records} == {RMSE}
    assert all(record.measured for record in records)
    (setting,) = by_setting(records)
    assert setting.endswith("on nyu_depth_v2, regression")


def test_the_front_is_of_the_lowest_errors(records):
    (experiments,) = by_setting(records).values()
    placed = points(experiments, COSTS[0])
    assert [p.y for p in pareto(placed, more=True, headline=RMSE)] == [0.7, 0.5]
    best = [Point("x", 1.0, 3.0, 0), Point("y", 2.0, 1.0, 0), Point("z", 3.0, 2.0, 0)]
    assert [p.label for p in pareto(best, more=False, headline=RMSE)] == ["x", "y"]
    assert [p.label for p in pareto(best, more=False)] == ["x"]


def test_tables_and_pages_name_the_metric_and_its_unit(records, tmp_path):
    grid = runs_grid(by_setting(records))
    assert "RMSE [m]" in grid.headings
    assert "top-1 [%]" not in grid.headings
    assert "RMSE [m]" in zoo_page(records)
    html = page({}, records, tmp_path / "figures")
    assert "RMSE against weights removed" in html
    assert "test RMSE [m]" in html


def test_a_points_tooltip_has_the_unit_of_its_axis(records, tmp_path):
    (experiments,) = by_setting(records).values()
    looks = looks_of(e.method for e in experiments)
    against_sparsity, *_ = accuracy_figures("x", experiments, looks, tmp_path)
    titles = re.findall(r"<title>([^<]*)</title>", against_sparsity.svg)
    assert {t.rpartition(", ")[2] for t in titles} >= {"0.9 m", "0.5 m", "0.7 m"}
    speedup = speedup_figure("x", experiments, looks, tmp_path)
    assert speedup
    titles = re.findall(r"<title>([^<]*)</title>", speedup.svg)
    assert {t.rpartition(", ")[2] for t in titles} == {"2.5 ×"}


def test_runs_of_two_tasks_stand_side_by_side(tmp_path):
    folders = [regression(tmp_path / "one", 0.61237), make_run(tmp_path / "two")]
    rows = {row[0]: row[1:] for row in side_by_side(folders).rows}
    assert rows["test RMSE"] == ["0.6124 m", "–"]
    assert rows["test accuracy"] == ["–", "70.00 %"]


def test_the_best_epoch_is_that_of_the_lowest_error(records):
    def at(epoch, error):
        summary = records[0].summary | {"prune/asked": 0.5, "derived/first_pruning_epoch": epoch}
        history = records[0].history | {"accuracy": [[100, error]]}
        return replace(records[0], summary=summary, history=history)

    assert best_epochs([at(1, 0.9), at(4, 0.4), at(9, 0.6)]) == {0.5: 4}
