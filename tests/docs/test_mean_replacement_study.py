import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pruning.laboratory.table import write
from studies import mean_replacement as study
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
