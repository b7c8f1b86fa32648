from types import SimpleNamespace
from typing import cast

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from prunezoo.pruning.selection.bep.forecast import Forecast
from studies.decisions import (
    BY,
    REMOVED,
    VARIED,
    Layer,
    Task,
    _judge,
    main,
    promises,
    replay,
)
from studies.saliency import read


@pytest.fixture
def history(tmp_path):
    """14 epochs of two layers whose saliency decays at each unit's own rate."""
    g = torch.Generator().manual_seed(0)
    times = torch.arange(0, 14.01, 0.5)
    layers = {}
    for name, width in (("a", 10), ("b", 20)):
        rates, levels = torch.rand(2, width, generator=g) * torch.tensor([[0.2], [3.0]])
        layers[name] = torch.exp(-times[:, None] * rates) * levels
    path = tmp_path / "history.safetensors"
    save_file({"times": times, **layers}, path)
    return path


def test_whoever_knows_the_end_keeps_the_best_and_spends_the_budget(history):
    record = read(history)
    times = record.times * (150 / 14)
    for removed in REMOVED:
        layer = replay(times, record.layers["b"], Task(removed, 1e-4, dynamic=True, by="truth"))
        size = round((1 - removed) * 20)
        assert layer.kept == [size] * 13  # nothing is gained by waiting
        assert set(layer.alive.nonzero().flatten().tolist()) == set(
            layer.S[-1].topk(size).indices.tolist()
        )


def test_every_forecaster_ends_at_the_size_and_never_grows(history):
    record = read(history)
    for by in BY:
        layer = replay(record.times * (150 / 14), record.layers["a"], Task(0.59, 1e-4, True, by))
        assert layer.kept == sorted(layer.kept, reverse=True)
        assert layer.kept[-1] == 4


def test_a_promise_is_kept_where_the_truth_is_what_was_forecast():
    """Lemma 3's bound by hand: one unit pruned, its gain 2, λ_t (T − t) = 0.1 and λ_t ε = 0.9."""

    class Certain:
        """A forecast of one pruned unit with mean 0.9 and hardly any variance."""

        scaling = SimpleNamespace(upper=10.0)

        def mean(self, time):
            return torch.tensor([5.0, 3.0, 0.9]).double()

        def variance(self, time):
            return torch.full((3,), 1e-12).double()

        def covariance(self, time, first, second):
            return torch.full(first.shape, 1e-12).double()

    layer = Layer(torch.zeros(1, 3), torch.ones(3).bool(), 1.0)
    keep = torch.tensor([True, True, False])
    _judge(
        layer,
        cast(Forecast, Certain()),
        torch.tensor([5.0, 1.0, 3.0]).double(),
        keep,
        size=2,
        slack=0.1,
    )
    assert layer.gains[0].tolist() == [2.0]  # 3 takes the place of 1 among the best two
    # ν = 0, so that Φ = ½ of the mean stays, and θ adds next to nothing
    assert layer.bounds[0].item() == pytest.approx(0.1 + 0.45, abs=1e-5)
    assert promises([layer]) == {0.05: (1, 1), 0.1: (1, 1), 0.25: (1, 1), 0.5: (0, 1)}


def test_tables_and_the_figure_come_from_the_history(history, tmp_path, capsys):
    main([str(history), "--out", str(tmp_path / "out")])
    rows = pd.read_csv(tmp_path / "out/decisions.csv")
    assert len(rows) == 12 + 2 * (len(BY) - 1)
    truth = rows[rows["decides by"] == "truth"]
    assert (truth["true saliency kept, % of the best"] == 100).all()
    assert (tmp_path / "out/figure_4.png").stat().st_size > 5000
    assert "promised" in capsys.readouterr().out


def test_table_4_varies_one_number_and_its_defaults_are_one_replay(history, tmp_path, monkeypatch):
    monkeypatch.setitem(VARIED, "latents", (1, 12))
    monkeypatch.setitem(VARIED, "step", (10, 100))
    main([str(history), "--out", str(tmp_path / "out"), "--table-4", "latents", "step"])
    rows = pd.read_csv(tmp_path / "out/table_4.csv", index_col=["hyperparameter", "value"])
    assert list(rows.columns) == ["80 % removed", "90 % removed", "95 % removed"]
    assert list(rows.loc["latents"].loc[12]) == list(rows.loc["step"].loc[10])
    record = read(history)
    once = Task(0.8, 1e-4, dynamic=True, step=100)
    layer = replay(record.times * (150 / 14), record.layers["a"], once)
    assert len(layer.kept) == 2  # at 20 and at 120
    assert once.options == {"forecast": "mogp"}
    variational = Task(0.8, 1e-4, dynamic=True, inducing=1).options
    assert variational == {"forecast": "mogp", "inference": "variational", "inducing": 1}
