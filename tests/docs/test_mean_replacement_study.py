import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from prunezoo.pruning.laboratory.table import compact, write
from studies import penalty_figures as study
from studies import penalty_records as records

METHODS = [f"{bp}{score}" for score in records.SCORES for bp in ("", "bp_")]


def row(method, seed, step, penalty, **more):
    score = method.removeprefix("bp_")
    common = {"data": "cifar10", "model": "medium_conv", "seed": seed, "step": step}
    common |= {"experiment": "one_shot", "layers": "all", "amount": "0.1", "fine_tune": 0}
    common |= {"score": score, "bias_propagation": method != score, "penalty": penalty}
    return common | {"units": 10, "removed": 2, "selected": b"\xc0\x00"} | more


def run(folder, seed, layers=("all", "midconv"), fine_tune=(0, 10)):
    """A run in which bias propagation halves every penalty."""
    draw = np.random.default_rng(seed)
    rows = []
    for step in (10, 20, 30, 40):
        quality = {"loss": 1 / step, "top1_percent": 50.0}
        common = {"data": "cifar10", "model": "medium_conv", "seed": seed, "step": step}
        rows.append(common | {"experiment": "intact"} | quality)
        for layer in layers:
            for n, (i, method) in ((n, m) for n in fine_tune for m in enumerate(METHODS)):
                penalty = (1 + i // 2) / step / (2 if method.startswith("bp_") else 1)
                more = {"layers": layer, "fine_tune": n, **quality}
                if not method.startswith("bp_"):
                    more["squared_activation"] = draw.random(2)
                rows.append(row(method, seed, step, penalty, **more))
    folder.mkdir()
    write(rows, folder / "laboratory.parquet")
    return folder


def test_the_performance_profile_is_the_share_of_cells_within_the_interpolated_threshold():
    penalties = pd.DataFrame({"a": [0.0, 0.0, 1.0], "b": [1.0, 4.0, 1.0], "c": [2.0, 1.0, 1.0]})
    shares = records.profile(penalties, np.array([0.0, 0.5, 0.75, 1.0]))
    # Thresholds by cell: (2, 4, 1), (1, 2, 1), (0.5, 1, 1), (0, 0, 1).
    assert shares["a"].tolist() == [1, 1, 1, 1]
    assert shares["b"].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3])
    assert shares["c"].tolist() == pytest.approx([1, 2 / 3, 2 / 3, 1 / 3])


def test_intervals_are_80_percent_t_intervals_over_seeds():
    values = pd.DataFrame([[1.0, 2, 3, 4, 5, 6, 7, 8], [0.0] * 8])
    mean, half = records.interval(values)
    assert mean.tolist() == [4.5, 0]
    assert half[0] == pytest.approx(1.41492 * np.std(range(1, 9), ddof=1) / np.sqrt(8), rel=1e-4)
    assert half[1] == 0


def test_units_count_once_they_were_selected():
    bits = [
        b"\xc0\x00",
        b"\x80\x00",
        b"\x00\x40",
        b"\xff\xff",
    ]  # bits beyond the 10 units are padding
    rows = [
        row("mrs", 3, step, 0.0, selected=b) for step, b in zip((4, 1, 2, 3), bits, strict=True)
    ]
    fractions = records.ever_selected(pd.DataFrame(rows))
    assert fractions["step"].tolist() == [1, 2, 3, 4]
    assert fractions["fraction"].tolist() == [0.1, 0.2, 1.0, 1.0]


def iterative(experiment, fine_tune, losses):
    """Rows of one method that lost so much at each fraction."""
    return [
        row("bp_abs_mrs", 0, 30, loss, experiment=experiment, loss=loss, removed=removed)
        | {"fine_tune": fine_tune, "top1_percent": 50.0, "held_out_loss": 2 * loss}
        for removed, loss in losses.items()
    ]


@pytest.mark.parametrize("trained_on", [False, True])
def test_figure_10_shows_the_end_of_training_where_copies_trained_on(trained_on):
    rows = iterative("iterative", 100, {2: 0.5, 4: 1.0})
    expected = {"Figure 10: medium_conv, after each round": ([0.2, 0.4], [0.5, 1.0])}
    if trained_on:
        rows += iterative("trained_on", 900, {4: 0.25})
        expected = {"Figure 10: medium_conv, at the end of training": ([0.4], [0.25])}
    figure = study.figure_10(pd.DataFrame(rows))
    ((title, points),) = expected.items()
    assert figure.get_suptitle() == title
    loss, held_out, *_ = figure.axes
    assert tuple(map(list, loss.lines[0].get_data())) == points
    assert list(held_out.lines[0].get_ydata()) == [2 * y for y in points[1]]
    study.plt.close(figure)


def test_figure_11_compares_after_fine_tuning_in_the_second_half(tmp_path):
    figure = study.figure_11(records.load([run(tmp_path / "tuned", 0, fine_tune=(0, 10, 500))]))
    assert [axes.get_title() for axes in figure.axes] == [
        "10 steps of fine-tuning", "500 steps of fine-tuning",
    ]  # fmt: skip
    # of steps 30 and 40, in two choices of layers
    assert {len(c.get_offsets()) for axes in figure.axes for c in axes.collections} == {4}
    study.plt.close(figure)
    figure = study.figure_11(records.load([run(tmp_path / "plain", 0, fine_tune=(0,))]))
    assert [len(c.get_offsets()) for axes in figure.axes for c in axes.collections] == [8, 8]
    study.plt.close(figure)


def test_iterative_steps_are_not_taken_for_fine_tuning_of_one_shots(tmp_path):
    table = records.load([run(tmp_path / "run", 0)])
    table = pd.concat([table, pd.DataFrame(iterative("iterative", 100, {2: 0.5}))])
    figure = study.figure_4(table)
    assert [axes.get_title().splitlines()[0] for axes in figure.axes] == ["10 steps of fine-tuning"]
    study.plt.close(figure)


def test_figures_are_drawn_alike_from_a_record_and_from_the_run(tmp_path):
    folder = run(tmp_path / "run", 0)
    record = tmp_path / "medium-seed0.json"
    record.write_text('{"penalties": "medium-seed0.penalties.parquet"}')
    compact(folder / "laboratory.parquet", tmp_path / "medium-seed0.penalties.parquet")
    whole, small = (records.load([source]) for source in (folder, record))
    # single precision
    pd.testing.assert_frame_equal(
        records.summary(whole), records.summary(small), check_dtype=False, rtol=1e-6
    )
    shares = [records.ever_selected(t.dropna(subset="selected")) for t in (whole, small)]
    pd.testing.assert_frame_equal(*shares)
    drawn = [t[(t["layers"] == "midconv") & (t["fine_tune"] == 0)] for t in (whole, small)]
    squares = [np.concatenate(list(t["squared_activation"].dropna())) for t in drawn]
    assert squares[0].tolist() == squares[1].tolist()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit, match="or their records"):
        records.load([tmp_path / "other.json"])


@pytest.mark.slow
def test_one_command_draws_what_was_run_and_says_what_was_not(tmp_path, monkeypatch, capsys):
    folders = [str(run(tmp_path / str(seed), seed)) for seed in (0, 1)]
    out = tmp_path / "figures"
    monkeypatch.setattr("sys.argv", ["study", *folders, str(tmp_path / "empty"), "--out", str(out)])
    study.main()
    drawn = {path.stem for path in out.glob("*.png")}
    assert drawn == {f"figure_{n}" for n in (2, 3, 4, 5, 6, 7, 8, 9, 11)}
    assert "figure 10: no iterative pruning; set laboratory.iterative" in capsys.readouterr().out
    summary = pd.read_csv(out / "summary.csv")
    assert summary["layers"].tolist() == ["all", "midconv"]
    assert (summary["bp_wins"] == 1).all()
    assert summary["measurements"].tolist() == [8, 8]  # 4 steps of 2 seeds
    assert summary["bp_rs"].tolist() == pytest.approx((summary["rs"] / 2).tolist(), rel=1e-3)


def test_what_propagation_changes_has_an_interval_over_the_same_seeds(tmp_path):
    table = records.load([run(tmp_path / str(seed), seed) for seed in (0, 1)])
    late = table["seed"] == 1
    table.loc[late, "penalty"] = 2 * table.loc[late, "penalty"]
    found = records.gains(table).set_index(["layers", "after", "score"])
    mean = np.mean([1 / step for step in (10, 20, 30, 40)])  # a half of it is gained by seed 0
    first = found.loc[("all", "0 steps", records.SCORES[0])]
    assert first["seeds"] == 2
    assert first["with minus without"] == pytest.approx(-0.75 * mean)
    assert first["95 % interval ±"] == pytest.approx(12.706 * 0.25 * mean, rel=1e-3)
    assert set(found.index.get_level_values("after")) == {"0 steps", "10 steps"}


def test_points_of_figure_3_lie_where_the_penalties_say(tmp_path):
    table = records.load([run(tmp_path / "run", 0)])
    figure = study.figure_3(table)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    points = np.concatenate([c.get_offsets().data for c in axes.collections])
    assert len(points) == 4 * 2 * 6
    assert np.allclose(points[:, 1], points[:, 0] / 2)
    assert "100.0 % of 48 below" in axes.get_title()
    study.plt.close(figure)


def test_halves_split_each_run_at_half_of_its_own_steps(tmp_path):
    table = records.load([run(tmp_path / "run", 0)])
    assert set(records.halves(table, second=True)["step"]) == {30, 40}
    assert set(records.halves(table, second=False)["step"]) == {10, 20}


def test_runs_without_a_laboratory_are_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"no laboratory\.parquet"):
        records.load([tmp_path])
