"""The benchmark: its statistics, its plan at equal cost, its page from made-up records."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from scipy import stats

from prunezoo.models.count import count
from prunezoo.models.zoo import MODELS
from prunezoo.reporting.intervals import half_width
from prunezoo.reporting.jobs import study
from prunezoo.reporting.jobs.launch import Places
from prunezoo.reporting.records import Record, load_records
from prunezoo.schema.recipe import load
from studies.benchmark import __main__ as benchmark
from studies.benchmark import comparison, page, tables
from studies.benchmark.picture import draw
from studies.benchmark.rows import (
    DENSE,
    EVERYWHERE,
    FAR,
    FIXED,
    PRUNE_TRAIN,
    SMALL,
    Row,
    fixed_name,
)
from studies.benchmark.runs import Runs, table
from studies.benchmark.trainings import (
    MIDDLE,
    REMOVED,
    SETTINGS,
    Training,
    equal_cost_epochs,
    planned,
)

ROOT = Path(benchmark.__file__).resolve().parents[2]
RESNET = SETTINGS[0]


def row_named(name: str) -> Row:
    return next(row for row in RESNET.rows() if row.name == name)


# ── statistics ───────────────────────────────────────────────────────────────────────────────────
def test_intervals_and_p_values_are_scipys():
    first, second = {0: 50.0, 1: 52.5, 2: 49.0, 7: 1.0}, {0: 48.0, 1: 52.0, 2: 48.5}
    gap = comparison.paired(first, second)
    assert gap == [2.0, 0.5, 0.5]
    paired = stats.ttest_rel([50.0, 52.5, 49.0], [48.0, 52.0, 48.5])
    assert comparison.p_value(gap) == pytest.approx(paired.pvalue)
    width = half_width(gap)
    assert width == pytest.approx(paired.confidence_interval(0.95).high - 1.0)
    assert half_width([1.0]) is comparison.p_value([1.0]) is None
    assert comparison.p_value([2.0, 2.0]) == 0
    assert comparison.p_value([0.0, 0.0]) == 1


def test_three_seeds_take_students_factor_of_4_30():
    width = half_width([-1.0, 0.0, 1.0])
    assert width == pytest.approx(4.302652729911275 / math.sqrt(3))


def test_holm_by_hand():
    adjusted = comparison.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9})
    by_hand = {"d": 0.025, "a": 0.04, "c": 0.09, "b": 0.09, "e": 0.9}
    assert adjusted == pytest.approx(by_hand)
    assert comparison.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_ranks_share_ties_and_count_shared_seeds_only():
    places = comparison.ranks({"a": {0: 9.0, 1: 5.0}, "b": {0: 8.0}, "c": {0: 9.0, 1: 6.0}})
    assert places == {"a": {0: 1.5}, "b": {0: 3.0}, "c": {0: 1.5}}


def test_accuracy_at_a_cost_lies_between_the_runs_and_is_never_extrapolated():
    runs = [(400.0, 60.0), (100.0, 50.0)]
    assert comparison.at_cost(runs, 200.0) == pytest.approx(55.0)  # half of the way to four times
    assert comparison.at_cost(runs, 100.0) == 50.0
    assert comparison.at_cost(runs, 407.0) == 60.0  # within 2 %
    assert comparison.at_cost(runs, 90.0) is comparison.at_cost(runs, 500.0) is None
    assert comparison.at_cost([(100.0, 50.0)], 99.0) == 50.0


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────
def test_every_training_has_a_recipe_and_a_name_of_its_own():
    jobs = [training.job for training in planned(1)]
    assert len({job.name for job in jobs}) == len(set(jobs)) == len(jobs)
    for job in jobs:
        recipe, _ = load(ROOT / job.recipe, job.settings)
        assert (recipe.pruning is None) == (not recipe.evaluation.around_pruning)
        assert recipe.training.lr_schedule.curve == "cosine"
        assert not recipe.training.lr_schedule.after_pruning
        assert re.fullmatch(r"benchmark/\w+/[\w+-]+-seed0", job.name)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_all_rows_of_a_setting_are_trained_alike(setting):
    def terms(row: Row, point: int) -> tuple[object, ...]:
        training = Training(setting, row, point, "equal epochs", 0)
        recipe, _ = load(ROOT / training.job.recipe, training.job.settings)
        assert recipe.training.duration.unit == "ep"
        assert row.passes * recipe.training.duration.amount == pytest.approx(training.budget, 0.04)
        if recipe.pruning is not None and not row.strengths:
            name = "macs" if row.kind == "channels" else "sparsity"
            assert recipe.pruning.amount == (name, REMOVED[row.kind][point] / 100)
            assert recipe.pruning.excluded == []
            assert recipe.pruning.floor is None
        if recipe.pruning is not None:
            calibration = recipe.pruning.calibration
            assert calibration.batches * calibration.batch_size == 500
        own = {"duration": None}
        model = recipe.model.name if row.name == SMALL else recipe.model
        return model, recipe.data, recipe.training.model_copy(update=own)

    dense = terms(setting.dense, MIDDLE)
    for row in setting.rows():
        for point in setting.points:
            same = terms(row, point)
            assert same[1:] == dense[1:], row.name
            assert same[0] == (dense[0].name if row.name == SMALL else dense[0]), row.name


def test_one_setting_has_all_rows_and_the_others_those_that_are_run_everywhere():
    names = {row.name for row in RESNET.rows()}
    assert names > EVERYWHERE | {fixed_name(share) for share in FIXED}
    for setting in SETTINGS[1:]:
        assert {row.name for row in setting.rows()} == EVERYWHERE


@pytest.mark.parametrize("removed", REMOVED["channels"])
def test_a_longer_run_spends_the_dense_operations_if_it_prunes_at_its_row_s_share(removed):
    left = 1 - removed / 100
    for row in RESNET.rows():
        epochs = equal_cost_epochs(row, 20, removed)
        if row.kind == "weights" or row.strengths:
            assert epochs == 20
            continue
        spent = epochs * (row.first + (1 - row.first) * left)
        assert 20 - 1e-9 <= spent < 21.1, row.name


@pytest.mark.parametrize("setting", SETTINGS[:2], ids=lambda setting: setting.name)
def test_the_network_small_from_the_start_has_about_the_macs_of_each_point(setting):
    recipe, _ = load(ROOT / f"recipes/base/{setting.base}.yaml")
    options = dict(recipe.model.options)
    image = torch.zeros(1, 3, 32, 32)
    build = MODELS[recipe.model.name].constructor
    whole = count(build(10, 3, **options), image).macs
    for point in setting.points:
        left = count(build(10, 3, width=setting.widths[point], **options), image).macs / whole
        assert left == pytest.approx(1 - REMOVED["channels"][point] / 100, abs=0.015)


def test_the_plan_goes_from_what_is_run_everywhere_to_the_rest():
    order = planned(3)
    assert len(set(order)) == len(order)
    assert sum(t.row.name == DENSE for t in order) == 3 * len(SETTINGS) + 2
    places = list(dict.fromkeys((t.setting.name, t.point, t.length) for t in order))
    assert places == [
        ("resnet8", 1, "equal epochs"),
        ("resnet8", 1, "equal cost"),
        ("small_conv", 1, "equal epochs"),
        ("imagenette", 1, "equal epochs"),
        ("resnet8", 0, "equal epochs"),
        ("resnet8", 2, "equal epochs"),
        ("small_conv", 1, "equal cost"),
        ("imagenette", 1, "equal cost"),
    ]
    epochs = [t for t in order if t.setting is RESNET and t[2:4] == (MIDDLE, "equal epochs")]
    core = [(seed, r) for seed in range(3) for r in RESNET.rows() if r.name in EVERYWHERE]
    rest = [(seed, r) for seed in range(3) for r in RESNET.rows() if r.name not in EVERYWHERE]
    close = [(seed, r) for seed in (3, 4) for r in RESNET.rows() if r.name in EVERYWHERE - FAR]
    assert [(t.seed, t.row) for t in epochs] == core + rest + close
    more = {t[:4] for t in order if t.seed > 2}
    assert more < {t[:4] for t in order if t.seed < 3}
    assert {t.length for t in order if t.seed > 2} == {"equal epochs", "equal cost"}
    assert {t.seed for t in planned(2)} == {0, 1}
    assert {t.row.name for t in order if t.length == "equal cost"} <= EVERYWHERE | {
        fixed_name(share) for share in FIXED
    }
    other = {t.row.name for t in order if t.point != MIDDLE}
    assert other == EVERYWHERE - {DENSE} | {PRUNE_TRAIN}


# ── running ──────────────────────────────────────────────────────────────────────────────────────
def test_a_run_goes_on_where_it_stopped_and_starts_nothing_after_its_minutes(
    tmp_path, monkeypatch, capsys
):
    started: list[str] = []

    def train(job, places: Places) -> int:
        started.append(job.name)
        folder = places.folder(job)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"run/seed": job.seed}))
        (folder / "settings").write_text(" ".join((*places.launcher, *places.local)))
        clock[0] += 40
        return 0

    clock = [0.0]
    monkeypatch.setattr(study.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.setattr(study, "run_here", train)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    words = ["--results", str(tmp_path / "results"), "run", "--seeds", "1", "--minutes", "1"]
    words += ["--settings", "small_conv", "--data", str(tmp_path)]
    names = [t.job.name for t in planned(1) if t.setting.name == "small_conv"]
    assert benchmark.main(words) == 0
    assert started == names[:2]
    assert f"{len(names) - 2} trainings are left" in capsys.readouterr().out
    assert benchmark.main(words) == 0
    assert started == names[:4]
    assert (tmp_path / "results" / f"{names[3]}.json").exists()
    folder = tmp_path / "runs/benchmark" / names[0].replace("/", "-")
    assert (folder / "settings").read_text().startswith("nice -n 5 ")
    assert f"data.path={tmp_path}" in (folder / "settings").read_text()
    assert study.os.environ["OMP_NUM_THREADS"] == "1"


# ── the page ─────────────────────────────────────────────────────────────────────────────────────
def made_up(training: Training, accuracy: float, **changes: object) -> Record:
    """A record that is plainly no result; `changes` replace summary values, a__b for a/b."""
    left = 1 - training.removed / 100
    share = training.budget / training.setting.epochs
    channels = training.row.kind == "channels"
    summary = {
        "run/device": "Synthetic Processor",
        "run/epochs": float(training.budget),
        "run/steps": 78 * training.budget,
        "dense/macs": 1000,
        "model/macs": round(1000 * left) if channels else 1000,
        "model/sparsity": 1 - left,
        "eval/top1_percent": accuracy,
        "cost/training_flops": 1e12 * share * (left if channels else 1.0),
        "cost/training_cpu_seconds": 100.0 * share * (0.5 + 0.5 * left if channels else 1.0),
        "cost/cpu_seconds": 120.0 * share,
        "cost/energy_kwh": 1e-3 * share,
        "prune/layers": {"a": {"kept": 5, "of": 16}, "b": {"kept": 3, "of": 16}},
        "derived/first_pruning_epoch": 4.0,
    }
    summary |= {key.replace("__", "/"): value for key, value in changes.items()}
    summary.setdefault("cost/total_flops", summary["cost/training_flops"])
    cuts = [
        {
            "step": step,
            "images": 64 * step,
            "prune/validation_top1_before_percent": before,
            "prune/validation_top1_after_percent": after,
        }
        for step, before, after in ((0, 90.0, 1.0), (9, 41.0, 40.0), (18, 42.0, 30.0))
    ]
    history = {"accuracy": [[1, accuracy - 1]], "prunings": cuts, "forecasts": []}
    path = f"results/{training.job.name}.json"
    return Record(training.job, summary, history, {"commit": "c0ffee"}, path=path)


def made_up_runs() -> Runs:
    """Three seeds of some rows; GraSP is 2 points above SMALL in each seed but one."""
    gaps = {DENSE: 20.0, SMALL: 0.0, "GraSP channels": 2.0, "random channels": -1.0, "SNIP": 4.0}
    gaps |= {fixed_name(share): share / 100 for share in FIXED} | {"random, ERK": 3.0}
    records = []
    for training in (t for t in planned(3) if t.seed < 3):
        gap = gaps.get(training.row.name)
        if gap is not None and training.setting is RESNET and training.point == MIDDLE:
            noise = 0.5 * (training.row.name == "GraSP channels" and training.seed == 2)
            longer = 5.0 * (training.length == "equal cost")
            records.append(made_up(training, 50 + training.seed + gap + noise + longer))
    return Runs(records)


def cells(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_is_compared_with_the_control_seed_by_seed():
    text = tables.equal_epochs(made_up_runs(), RESNET, "channels", MIDDLE)
    crop = cells(text, "GraSP channels")
    gap = stats.ttest_1samp([2.0, 2.0, 2.5], 0.0)
    width = gap.confidence_interval(0.95).high - 13 / 6
    p = min(1.0, 6 * gap.pvalue)  # the other six gaps are exact, so smaller
    assert crop[5].startswith(f"+2.17 ± {width:.2f}, p ")
    assert float(crop[5].partition("p ")[2]) <= p
    assert crop[3] == "3"
    assert crop[6:9] == ["20.0", "3", "20"]
    assert crop[11] == "42.0 → 30.0"  # not at the start, where nothing was learnt
    assert cells(text, SMALL)[5] == ""
    oracle = cells(text, f"oracle: PaT's best epoch: {fixed_name(75)}")
    assert oracle[9] == f"{5 * 60} (all 5)"


def test_settings_stand_side_by_side():
    above = {"resnet8": 2.0, "small_conv": -1.0, "imagenette": 5.0}
    records = []
    for training in planned(2):
        if training.point == MIDDLE and training.length == "equal epochs":
            gap = {SMALL: 0.0, "SNIP channels": above[training.setting.name]}.get(training.row.name)
            if gap is not None:
                records.append(made_up(training, 50 + gap + training.seed * (1 + 0.1 * gap)))
    whole = tables.across(Runs(records), "channels", MIDDLE)
    row = cells(whole, "SNIP channels")
    assert [cell.partition(" ")[0] for cell in row[1:]] == ["+2.10", "-1.05", "+5.25", "+2.10"]
    assert row[1].endswith(f"± {half_width([2.0, 2.2]):.2f}")
    alone = [record for record in records if "resnet8" in record.job.name]
    assert tables.across(Runs(alone), "channels", MIDDLE) == ""


@pytest.mark.parametrize("setting", SETTINGS[1:])
def test_a_setting_without_every_fixed_epoch_has_no_oracle(setting):
    trainings = [t for t in planned(1) if t.setting is setting and t.point == MIDDLE]
    records = [made_up(t, 40.0) for t in trainings if t.length == "equal epochs"]
    text = tables.equal_epochs(Runs(records), setting, "channels", MIDDLE)
    assert cells(text, fixed_name(50))[3] == "1"
    assert "oracle" not in text


def test_a_layer_of_one_channel_is_marked_and_a_trigger_that_did_not_fire_is_told():
    training = next(t for t in planned(1) if t.row.name == "EarlyCroP-S")
    record = made_up(training, 40.0, prune__layers={"a": {"kept": 1, "of": 16}})
    record.history["watched"] = [{"step": 9, "images": 9, "trigger/fired": False}]
    row = cells(tables.equal_epochs(Runs([record]), RESNET, "channels", MIDDLE), "EarlyCroP-S")
    assert row[7] == "**1**"
    assert row[2] == "4 (latest)"


def test_equal_cost_is_read_between_the_two_lengths():
    text = tables.equal_cost(made_up_runs(), RESNET, "channels", MIDDLE)
    # a fifth of the operations for five times the epochs: the longer run itself
    assert cells(text, SMALL)[1].startswith("56.00")
    # 0.6 of the CPU time at equal epochs, 3 at equal cost
    share = math.log(1 / 0.6) / math.log(5)
    assert cells(text, SMALL)[3].startswith(f"{51 + 5 * share:.2f}")
    assert cells(text, DENSE)[1].startswith("71.00")
    # pruned late, it cannot be had for less than what was run
    assert cells(text, "random channels")[2].startswith("-1.00")


def test_a_method_is_paired_with_its_controls_at_equal_epochs_and_at_equal_operations(monkeypatch):
    pairs = ("GraSP channels", "random channels"), ("GraSP channels", "SNIP channels")
    monkeypatch.setattr(tables, "PAIRS", pairs)
    runs = made_up_runs()
    gap = stats.ttest_1samp([3.0, 3.0, 3.5], 0.0)
    said = f"{19 / 6:+.2f} ± {gap.confidence_interval(0.95).high - 19 / 6:.2f}"
    lines = tables.pair_table(runs, RESNET, "channels", MIDDLE).splitlines()[2:]
    # the longer runs, of both, are five points higher; of SNIP's channels there is none
    assert lines == [f"| GraSP channels − random channels | {said} | {said} |"]
    short = Runs([r.record for r in runs.all if r.training.length == "equal epochs"])
    assert tables.pair_table(short, RESNET, "channels", MIDDLE).endswith(f" | {said} | not run |\n")


def test_a_cost_that_no_two_lengths_hold_is_a_word():
    runs = made_up_runs()
    rows = {row.name: row for row in RESNET.rows()}

    def word(name: str, budget: str = "FLOPs") -> str:
        return tables.read_off(runs, RESNET, rows[name], MIDDLE, budget, {})

    assert word("random channels") == "outside"
    assert word("SNAP") == "not run"
    for run in runs.group(RESNET, rows["random channels"], MIDDLE, "equal epochs").runs:
        run.record.summary["cost/training_cpu_seconds"] = 101.0
    assert word("random channels", "CPU seconds") == "costs more"


def test_ranks_and_fronts_follow_the_accuracies():
    runs = made_up_runs()
    order = [line.split("|")[1].strip() for line in tables.rank_table(
        runs, RESNET, "channels").splitlines()[2:]]  # fmt: skip
    assert order[0] == "GraSP channels"
    assert order[-1] == "random channels"
    more = next(t for t in planned() if t.row.name == "GraSP channels" and t.seed == 3)
    longer = Runs([*(run.record for run in runs.all), made_up(more, 55.0)])
    assert tables.rank_table(longer, RESNET, "channels") == tables.rank_table(
        runs, RESNET, "channels"
    )
    front = tables.fronts(runs, RESNET, "channels").splitlines()
    assert "GraSP channels" in front[0]
    assert "random channels" not in front[0]
    assert front[0].endswith("dense 71.0 %")


def test_the_page_says_what_was_run_and_every_line_leads_to_a_record(tmp_path):
    runs = made_up_runs()
    text = page.page(runs, len(planned()))
    assert f"{len(runs.all)} runs, of {len(planned())} planned" in text
    assert "## small_conv" not in text  # of which there is no record
    lines = table(runs).splitlines()
    assert len(lines) == 1 + len(runs.all)
    assert all(line.endswith(".json") for line in lines[1:])
    assert "of training steps alone" not in text
    assert "times as long" not in text  # the same work took the same time
    again = next(run for run in runs.all if run.seed)
    again.record.summary["cost/training_cpu_seconds"] *= 1.5
    assert "one took up to 1.5 times as long an operation" in page.page(runs, 1)
    del runs.all[0].record.summary["cost/total_flops"]
    older = page.page(runs, len(planned()))
    assert f"FLOPs of 1 of {len(runs.all)} runs shown are those of training steps alone" in older
    assert draw(runs, tmp_path / "cost.svg")
    svg = (tmp_path / "cost.svg").read_text()
    assert "prefers-color-scheme:dark" in svg
    assert "#1a1a19" not in svg.replace("--ink:#1a1a19", "")
    assert ">GraSP channels</text>" in svg  # on the front, at both lengths
    assert ">GraSP channels, longer</text>" in svg
    assert "↓" not in svg
    first = svg
    assert draw(runs, tmp_path / "cost.svg")
    assert (tmp_path / "cost.svg").read_text() == first


def test_what_failed_is_told_at_the_pictures_edge(tmp_path):
    runs = made_up_runs()
    for run in runs.all:
        if run.training.row.name == "GraSP channels":
            run.record.summary["eval/top1_percent"] = 10.0
    draw(runs, tmp_path / "cost.svg")
    assert ">GraSP channels: 10.0 ↓</text>" in (tmp_path / "cost.svg").read_text()


def test_nothing_is_shown_without_records_of_the_benchmark(tmp_path, capsys):
    assert benchmark.main(["--results", str(tmp_path), "show"]) == 2
    assert "no records of this study" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_committed_pages_are_what_the_records_say(tmp_path):
    runs = Runs(load_records(ROOT / "results"))
    written = ROOT / "results/benchmark/README.md"
    assert written.exists() == bool(runs.all)
    if runs.all:
        assert written.read_text() == page.page(runs, len(planned()))
        assert (written.parent / "runs.csv").read_text() == table(runs)


def test_the_readmes_table_is_the_pages():
    text = (ROOT / "README.md").read_text().partition("results/benchmark/cost.svg)\n\n")[2]
    of_page = (ROOT / "results/benchmark/README.md").read_text().splitlines()
    rows = text.partition("\n\n")[0].splitlines()[2:]  # below a heading of its own
    assert len(rows) > 5
    assert all(row in of_page for row in rows)
