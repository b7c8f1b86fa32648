"""The grid of pruning epochs: its trainings, the best epoch, and a policy's distance from it."""

from dataclasses import replace
from pathlib import Path

import pytest

import tables
from prunezoo.reporting import papers
from prunezoo.reporting.errors import ReportingError
from prunezoo.reporting.jobs.epoch_grid import epoch_grid
from prunezoo.reporting.jobs.launch import plan_jobs
from prunezoo.reporting.records import Job, Record
from prunezoo.reporting.tables.compare import compare
from prunezoo.reporting.tables.oracle import CHANGE, best_epochs, changes, group, is_point
from tests.support.runs import ROOT

ROW = "pat/1/gradient,ResNet50,"
VALIDATED = "data.validation=2%"
EPI, DIGITS = "recipes/pat/epi.yaml", "recipes/quickstart.yaml"
TABLE = papers.find_table("pat/1")


def run(policy: str, ratio: float, epoch: int | None, top1: float, **about) -> Record:
    """A run of table 1, a point of the grid where `epoch` says so, else the policy's own."""
    fixed = () if epoch is None else (f"pruning.schedule.start={epoch}ep",)
    job = Job(ROW + policy, EPI, (), (f"pruning.channels={ratio}", *fixed), about.get("seed", 0))
    summary = {
        "prune/asked": ratio * (1 + 1e-15),
        "derived/first_pruning_epoch": about.get("began", epoch) + 0.032,
        "eval/top1_percent": top1,
        "data/name": "imagenet",
        "run/epochs": 90.0,
    }
    history = {"accuracy": [[1, 0.0], [2, about.get("validation", top1)]], "prunings": []}
    return Record(job, summary, history | {"forecasts": []})


GRID = [
    run("Random", 0.1, 0, 70.0),
    run("Random", 0.1, 10, 76.0),
    run("Random", 0.1, 20, 79.0, validation=75.0),  # best on test images, which do not choose
    run("Random", 0.5, 0, 60.0),
    run("Random", 0.5, 20, 66.0),
]
POLICY = [run("EPI", 0.1, None, 75.5, began=13), run("EPI", 0.5, None, 67.0, began=14)]


def test_the_best_epoch_is_chosen_by_validation_images():
    assert best_epochs(GRID) == {0.1: 10, 0.5: 20}
    assert best_epochs([run("Random", 0.5, e, 50.0) for e in (20, 10)]) == {0.5: 10}
    blind = [replace(point, history={"accuracy": []}) for point in GRID]
    assert best_epochs(blind) == {}


def test_a_change_is_absolute_and_pairs_seeds():
    assert changes(POLICY, GRID) == {0: {0.1: 0.5, 0.5: 1.0}}
    others = [run("Random", 0.1, epoch, 80.0 - epoch, seed=1) for epoch in (0, 10)]
    third = run("EPI", 0.1, None, 78.0, began=12, seed=1)
    # means of validation are now 75 and 73: epoch 0 is best, for both seeds
    assert changes([*POLICY, third], [*GRID, *others]) == {0: {0.1: 5.5, 0.5: 1.0}, 1: {0.1: 2.0}}
    assert changes([run("EPI", 0.3, None, 70.0, began=12)], GRID) == {}  # no such fraction


def test_a_row_of_table_1_shows_the_mean_over_ratios():
    init = [run("Init", 0.1, None, 70.0, began=0), run("Init", 0.5, None, 60.0, began=0)]
    rows = {row.row: row for row in compare(TABLE, [], [*GRID, *POLICY, *init])}
    column = TABLE.columns["abs_top1_change_vs_oracle"]
    ours = rows["gradient,ResNet50,EPI"].ours(column)
    assert ours is not None
    assert (ours.mean, ours.seeds) == (0.75, 1)
    assert rows["gradient,ResNet50,Init"].ours(column).mean == 6.0
    assert "mean over 10, 50 % removed" in rows["gradient,ResNet50,EPI"].differs
    assert not rows["gradient,ResNet50,Random"].records  # points of the grid are no policy
    assert rows["gradient,ResNet34,EPI"].ours(column) is None
    alone = {row.row: row for row in compare(TABLE, [], POLICY)}["gradient,ResNet50,EPI"]
    assert alone.ours(column) is None
    assert CHANGE not in POLICY[0].summary


def test_a_grid_is_every_start_at_every_amount_without_the_trigger():
    jobs = epoch_grid([Job(None, EPI, (), (VALIDATED,))], {}, ["0ep", "9ep"], ["10%", "40%"], ROOT)
    off = ("pruning.schedule.trigger=null", "pruning.schedule.latest=null")
    ten, own = (VALIDATED, "pruning.channels=10%"), (VALIDATED,)  # 40 % is the recipe's own
    assert [job.extra for job in jobs] == [
        ten,
        own,
        *[(*extra, f"pruning.schedule.start={s}ep", *off) for extra in (ten, own) for s in (0, 9)],
    ]
    assert [is_point(job) for job in jobs] == [False] * 2 + [True] * 4
    assert len({group(job, "channels") for job in jobs}) == 1
    assert len({job.name for job in jobs}) == 6
    fixed = epoch_grid([Job(None, DIGITS, (), (VALIDATED,))], {}, ["2ep"], [], ROOT)
    assert [job.extra for job in fixed] == [own, (*own, "pruning.schedule.start=2ep")]


def test_rows_that_differ_in_the_policy_share_one_grid():
    arguments = tables.parse(
        ["plan", "pat/1", "--only", "gradient,ResNet50,*", "--starts", "0ep,30ep",
         "--amounts", "30%,50%", "--set", VALIDATED], tables.COMMANDS,
    )  # fmt: skip
    jobs = tables.jobs_of(arguments)
    points = [job for job in jobs if is_point(job)]
    assert len(jobs) == 4 * 2 + 2 * 2
    assert {job.row for job in points} == {ROW + "Random"}
    arguments.only = "gradient,ResNet50,EPI"
    assert [job for job in tables.jobs_of(arguments) if is_point(job)] == points
    arguments.starts = arguments.amounts = []
    plain = plan_jobs(
        TABLE, tables.claimed(arguments), only=arguments.only, seeds=[0], extra=[VALIDATED]
    )
    assert tables.jobs_of(arguments) == plain


@pytest.mark.parametrize(
    ("recipe", "settings", "sentence"),
    [
        (EPI, [], "write --set data.validation=2%"),
        ("recipes/base/digits/digits_cnn.yaml", [VALIDATED], "prunes nothing"),
        ("recipes/pat/prune_train.yaml", [VALIDATED], "states no amount"),
        (DIGITS, ["data.validation=-1"], "greater than or equal to 0"),
    ],
)
def test_a_recipe_without_a_grid_says_what_to_write(recipe, settings, sentence):
    with pytest.raises(ReportingError, match=sentence):
        epoch_grid([Job(None, recipe, (), tuple(settings))], {}, ["1ep"], ["50%"], ROOT)


@pytest.mark.slow
def test_a_grid_of_digits_is_run_resumed_and_shown(tmp_path: Path, capsys):
    words = ["--results", str(tmp_path / "results"), "run", DIGITS, "--starts", "0ep,1ep",
             "--set", "data.validation=60%", "--set",
             "training.duration=2ep", "--local", "log.tracker=none", "--local",
             "cost.tracker=none", "--runs", str(tmp_path / "runs")]  # fmt: skip
    assert tables.main(words) == 0
    assert "3 runs, 0 have a record, 3 to do" in capsys.readouterr().out
    assert tables.main(words) == 0
    assert "3 runs, 3 have a record, 0 to do" in capsys.readouterr().out
    assert tables.main(["--results", str(tmp_path / "results"), "show", DIGITS]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("50", "best epoch"))
