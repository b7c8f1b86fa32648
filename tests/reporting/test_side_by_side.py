"""Runs side by side: what they gave, and only what differs between their recipes."""

from pathlib import Path

import pytest

from prunezoo.reporting.tables.side_by_side import side_by_side
from prunezoo.schema.recipe import load
from prunezoo.schema.source import RecipeError
from prunezoo.training.start import RESOLVED, resolved
from tests.support.runs import DIGITS, ROOT
from tests.support.synthetic_runs import make_run

QUICK = "recipes/quickstart.yaml"


def run(root: Path, name: str, recipe: str, *settings: str, **summary: str) -> Path:
    folder = make_run(root / name, **summary)
    (folder / RESOLVED).write_text(resolved(*load(ROOT / recipe, list(settings))))
    return folder


def recipe_rows(rows: list[list[str]]) -> dict[str, list[str]]:
    names = [row[0] for row in rows]
    begin = names.index("recipes differ in") + 1
    return {name: cells for name, *cells in rows[begin:]}


def test_keys_that_differ_are_shown_and_no_others(tmp_path):
    a = run(tmp_path, "a", QUICK, "log.every=7it", "training.optimizer.lr=0.2")
    b = run(tmp_path, "b", QUICK, "pruning.macs=75%", "seed=3", "training.optimizer.lr=0.20")
    assert recipe_rows(side_by_side([a, b]).rows) == {
        "seed": ["0", "3"],
        "pruning.macs": ["0.5", "0.75"],
    }


def test_what_a_section_has_by_default_does_not_differ_from_none(tmp_path):
    """A dense run has no pruning; of the other's some twenty keys, those that are written count."""
    dense = run(tmp_path, "dense", DIGITS)
    pruned = run(tmp_path, "pruned", QUICK)
    found = recipe_rows(side_by_side([dense, pruned]).rows)
    assert found["pruning.criterion.name"] == ["–", "taylor"]
    assert found["pruning.macs"] == ["–", "0.5"]
    assert "pruning.scope" not in found
    assert not any(cells == ["–", "–"] for cells in found.values())


def test_equal_recipes_have_no_rows_of_them(tmp_path):
    folders = [run(tmp_path, f"every{n}", QUICK, f"log.every={n}it") for n in (2, 3)]
    assert not any("recipe" in row[0] for row in side_by_side(folders).rows)


@pytest.mark.parametrize(
    ("stated", "word"),
    [
        ([{}, {}], "image"),  # of before runs said it
        ([{"task__name": "language"}], "row"),
        ([{"data__name": "diabetes", "task__name": "regression"}], "example"),
        ([{"data__example": "transition"}, {"task__name": "reinforcement"}], "transition"),
        ([{"data__example": "row"}, {}], "example"),
        ([{"data__example": "<b>"}], "example"),
    ],
)
def test_speed_and_size_are_in_the_examples_of_the_data(tmp_path, stated, word):
    folders = [make_run(tmp_path / str(n), **each) for n, each in enumerate(stated)]
    names = [row[0] for row in side_by_side(folders).rows]
    assert f"MACs per {word}" in names
    assert f"{word}s/s in training, last segment" in names


def test_hours_are_those_of_gpus_only_where_there_was_one(tmp_path):
    cpu = make_run(tmp_path / "cpu", cost__gpu_hours=0.0)
    gpu = make_run(tmp_path / "gpu")
    hours = {row[0]: row[1:] for row in side_by_side([cpu]).rows if row[0].endswith("hours")}
    assert hours == {"device hours": ["2.0000"]}
    hours = {row[0]: row[1:] for row in side_by_side([cpu, gpu]).rows if "hours" in row[0]}
    assert hours == {"device hours": ["2.0000"] * 2, "GPU hours": ["0.0000", "2.0000"]}


@pytest.mark.parametrize(
    ("changed", "title", "row"),
    [
        ({}, "synthetic_cnn on cifar10, Synthetic Processor", None),
        ({"model__name": "x"}, "cifar10, Synthetic Processor", ["network", "synthetic_cnn", "x"]),
        ({"data__name": "x"}, "synthetic_cnn, Synthetic Processor", ["data", "cifar10", "x"]),
        (
            {"run__device": "GPU"},
            "synthetic_cnn on cifar10",
            ["device", "Synthetic Processor", "GPU"],
        ),
        (
            {"model__name": "x", "data__name": "y", "run__device": "z"},
            "runs of different networks and data",
            ["network", "synthetic_cnn", "x"],
        ),
    ],
)
def test_the_title_is_what_all_runs_have(changed, title, row, tmp_path):
    a = make_run(tmp_path / "a", data__name="cifar10")
    b = make_run(tmp_path / "b", **{"data__name": "cifar10"} | changed)
    grid = side_by_side([a, b])
    assert grid.title == title
    assert row is None or grid.rows[0] == row


def test_a_folder_without_its_recipe_is_said(tmp_path):
    a, b = run(tmp_path, "a", QUICK), make_run(tmp_path / "b")
    grid = side_by_side([a, b])
    assert grid.remarks == [f"{b}: no recipe.resolved.yaml to compare"]
    assert not any("recipe" in row[0] for row in grid.rows)
    (b / RESOLVED).write_text("a: [")
    with pytest.raises(RecipeError, match="not YAML"):
        side_by_side([a, b])
