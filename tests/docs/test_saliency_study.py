import matplotlib.image
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr

from prunezoo.pruning.selection.bep.forecast import fit
from studies import saliency
from studies.saliency import CHOICES, LATEST, MODELS, main, read, seen

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


@pytest.fixture
def record(tmp_path):
    """Writes histories of 30 epochs, two layers."""

    def write(seed):
        g = torch.Generator().manual_seed(seed)
        times = torch.arange(1, 31).float()
        decay = torch.exp(-times[:, None] * torch.tensor([0.01, 0.3]))
        layers = {
            name: (decay @ torch.rand(2, width, generator=g))
            + 0.05 * torch.rand(30, width, generator=g)
            for name, width in (("a", 3), ("b", 4))
        }
        path = tmp_path / f"run{seed}.safetensors"
        save_file({"times": times, **layers}, path)
        return path

    return write


@pytest.fixture(autouse=True)
def few_choices(monkeypatch):
    """One forecaster of each kind; the whole table takes minutes."""
    fewer = {LATEST: CHOICES[LATEST], "smoothed": {"forecast": "smoothed", "latents": 2}}
    fewer |= {"without t = 0": {"untrained": False, "latents": 2}}
    monkeypatch.setattr(saliency, "CHOICES", fewer)


def test_table_and_figures_come_from_the_histories(record, tmp_path, capsys):
    path, out = record(0), tmp_path / "out"
    main([str(path), "--out", str(out), "--layers", "b"])
    rows = pd.read_csv(out / "likelihoods.csv").set_index(["size", "model"])
    assert len(rows) == 3 * (2 + len(MODELS) + len(saliency.CHOICES))
    history = read(path)
    part, S = seen(history.times, "medium"), history.layers["b"]
    assert int(part.sum()) == 8  # 40/150 of 30 epochs
    forecast = fit(history.times[part], S[part], latents=4)
    nats = forecast.log_likelihood(history.times[~part], S[~part])
    assert rows.loc[("medium", "4-MOGP"), "log_likelihood"] == pytest.approx(nats.sum().item())
    assert rows.loc[("medium", "4-MOGP"), "per_measurement"] == pytest.approx(nats.mean() / 22)
    for model, guess in (
        ("4-MOGP", forecast.mean(30.0)),
        ("first", S[0]),
        ("last three", S[part][-3:].mean(0)),
        ("latest", S[part][-1]),
    ):
        ours = rows.loc[("medium", model), "rank"]
        assert ours == pytest.approx(spearmanr(guess, S[-1]).statistic)
    later = history.times[~part]
    _, low, high = forecast.interval(later)
    truth = forecast.scaling.turn(forecast.scaling.apply(S[~part]))
    inside = ((truth - low) * (high - truth) >= 0).double().mean()
    assert rows.loc[("medium", "4-MOGP"), "covered"] == pytest.approx(inside.item())
    judged = pd.read_csv(out / "forecasters.csv", index_col=0)
    assert judged.loc["latest", "ahead"] == "0 of 3"
    mean = rows.xs("4-MOGP", level="model")["rank"].mean()
    assert judged.loc["4-MOGP", "rank"] == pytest.approx(mean, abs=5e-4)
    cell = f"{-1e-4 * nats.sum():.3g} ({1e-4 * 2 * nats.std(correction=0):.2g})"
    assert cell in capsys.readouterr().out
    for number in (1, 3, 5):
        pixels = matplotlib.image.imread(out / f"figure_{number}.png")
        assert pixels.std() > 0.02


def test_a_forecaster_that_takes_too_long_is_left_out(record):
    rows = saliency.likelihoods([read(record(0))], ["a"], "exact", without=["smoothed"])
    models = set(rows["model"])
    assert "smoothed" not in models
    assert models == {"first", "last three", LATEST, "without t = 0", *MODELS}


@pytest.mark.slow
def test_errors_over_runs_are_their_standard_error(record, tmp_path, capsys):
    main([str(record(1)), str(record(2)), "--out", str(tmp_path), "--layers", "a"])
    rows = pd.read_csv(tmp_path / "likelihoods.csv")
    part = rows[(rows["size"] == "large") & (rows["model"] == "GP")]["log_likelihood"] * -1e-4
    assert f"{part.mean():.3g} ({part.sem():.2g})" in capsys.readouterr().out


def test_what_is_no_history_says_so(record, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"conv.weight": torch.zeros(2)}, path)
    with pytest.raises(SystemExit, match="needs `times`"):
        read(path)
    with pytest.raises(SystemExit, match="there are \\['a', 'b'\\]"):
        main([str(record(3)), "--out", str(tmp_path), "--layers", "c"])
