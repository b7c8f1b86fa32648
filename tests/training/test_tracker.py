"""A tracker starts, or one line says why it did not; training never waits for one."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import wandb
from accelerate import Accelerator, tracking
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker

from prunezoo.schema.training import LogConfig
from prunezoo.training.folder.log import read
from prunezoo.training.folder.tracker import Tracker
from tests.support.runs import DIGITS

KNOWN = [tracking.LoggerType(name) for name in ("tensorboard", "wandb", "mlflow", "trackio")]
VALUES = {"seed": 0, "model": {"name": "digits_cnn", "weights": None}, "log": {"tags": ["a"]}}


class Flat(GeneralTracker):
    """Takes what TensorBoard's writer takes: numbers, words and switches, none inside others."""

    name = "tensorboard"
    requires_logging_directory = True
    noted: ClassVar[list] = []

    def __init__(self, run_name, logging_dir, **_):
        super().__init__()

    def start(self):
        self.noted.clear()

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        if not all(isinstance(value, int | float | str) for value in values.values()):
            raise ValueError("value should be one of int, float, str, bool, or torch.Tensor.\nmore")
        self.noted.append(values)

    def log(self, values, step, **_):
        self.noted.append((step, values))


class Broken(Flat):
    def start(self):
        raise RuntimeError


class Lost(Flat):
    """Its server is gone: at a line of the log, and again at the end."""

    def log(self, values, step, **_):
        raise BrokenPipeError(32, "Broken pipe")

    def finish(self):
        raise ConnectionError("HTTPConnectionPool(host='mlflow'): Max retries exceeded.")


class Told(Flat):
    """Notes how a run is to be shown, as MLflow and Trackio take it."""

    requires_logging_directory = False

    def __init__(self, project, /, **how):
        super().__init__(project, None)
        self.how = how


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Start a recipe's tracker in an empty folder; returns it and its line."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(tracking, "_available_trackers", KNOWN)

    def start(kind=Flat, past=(), **settings) -> tuple[Tracker, str]:
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, kind.name, kind)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        config = LogConfig(**settings)
        accelerator = Accelerator(log_with=config.tracker, project_dir=tmp_path)
        tracker = Tracker(tmp_path, accelerator)
        return tracker, tracker.start(config, VALUES, lambda: past)

    return start


def test_a_tracker_is_given_a_flat_recipe_and_numbers(started, tmp_path):
    tracker, line = started(tracker="tensorboard")
    tracker.write({"step": 3, "images": 6, "train/loss": 0.5, "prune/measure": "macs"})
    assert line == f"tensorboard logs to {tmp_path}/prunezoo"
    assert Flat.noted == [
        {
            "seed": 0,
            "model.name": "digits_cnn",
            "model.weights": "null",
            "log.tags": '["a"]',
        },
        (3, {"images": 6, "train/loss": 0.5}),
    ]


def test_sizes_are_said_again_until_the_next_pruning(started):
    tracker, _ = started(tracker="tensorboard")
    tracker.set_sizes(
        {"model/params": 20, "prune/unit": "channel", "prune/layers": {"a": {"kept": 4}}}
    )
    event = {
        "prune/unit": "channel",
        "prune/layers": {"a": {"kept": 3}},
        "prune/scores": {"a": 0.5},
    }
    tracker.write({"step": 1, "train/loss": 0.5})
    tracker.write({"step": 2, **event, "prune/rounds": 1, "model/params": 9})
    tracker.write({"step": 3, "train/loss": 0.4})
    after = {"model/params": 9, "widths/a": 3, "scores/a": 0.5}
    assert Flat.noted[1:] == [
        (1, {"model/params": 20, "widths/a": 4, "train/loss": 0.5}),
        (2, after),
        (3, after | {"train/loss": 0.4}),
    ]


def test_mlflow_and_trackio_are_told_how_a_run_is_shown(started, tmp_path, monkeypatch):
    place = SimpleNamespace(get_tracking_uri=lambda: "sqlite:///here.db")
    monkeypatch.setitem(sys.modules, "mlflow", place)
    how = {"name": "one", "notes": "a line", "tags": ["a"]}
    tracker, line = started(type("M", (Told,), {"name": "mlflow"}), tracker="mlflow", **how)
    (told,) = tracker.accelerator.trackers
    assert told.how == {"run_name": "one", "description": "a line", "tags": {"a": ""}}
    assert line == "mlflow logs to sqlite:///here.db"
    tracker, line = started(type("T", (Told,), {"name": "trackio"}), tracker="trackio", group="g")
    (told,) = tracker.accelerator.trackers
    assert told.how == {"name": tmp_path.name, "group": "g"}
    assert line == "trackio logs; to see it: trackio show --project prunezoo"


def test_a_resumed_run_goes_on_with_the_sizes_it_had(started):
    tracker, _ = started(tracker="tensorboard", past=[{"step": 2, "model/params": 9}])
    tracker.write({"step": 3})
    assert Flat.noted[-1] == (3, {"model/params": 9})


def test_a_tracker_that_does_not_start_is_left_out_in_a_line(started):
    tracker, line = started(Broken, tracker="tensorboard")
    assert line == "tensorboard did not start (RuntimeError:); log.jsonl goes on"
    tracker.write({"step": 3})
    tracker.close()
    assert not tracker.accelerator.trackers


def test_a_tracker_that_fails_later_is_left_out_in_a_line(started, capsys):
    tracker, _ = started(Lost, tracker="tensorboard")
    tracker.write({"step": 3})
    tracker.write({"step": 4})
    tracker.close()
    assert capsys.readouterr().err == (
        "tensorboard failed (BrokenPipeError: [Errno 32] Broken pipe) and is left out;"
        " log.jsonl is the record\n"
    )
    tracker, _ = started(Lost, tracker="tensorboard")
    tracker.close()
    assert capsys.readouterr().err == (
        "tensorboard failed (ConnectionError: HTTPConnectionPool(host='mlflow'): Max retries"
        " exceeded) and is left out; log.jsonl is the record\n"
    )


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://alice:s3cret@db.example/mlflow", "postgresql://db.example/mlflow"),
        ("mysql://alice:s3/c?r@et@db:3306/runs", "mysql://db:3306/runs"),
        ("https://s3cret@db.example/", "https://db.example/"),
        ("postgresql://db/mlflow?user=alice&password=s3cret", "postgresql://db/mlflow"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("sqlite:////home/me@here/mlflow.db", "sqlite:////home/me@here/mlflow.db"),
    ],
)
def test_no_line_shows_a_password(started, monkeypatch, address, shown):
    place = SimpleNamespace(get_tracking_uri=lambda: address)
    monkeypatch.setitem(sys.modules, "mlflow", place)
    _, line = started(type("M", (Told,), {"name": "mlflow"}), tracker="mlflow")
    assert line == f"mlflow logs to {shown}"

    def refused(_):
        raise ValueError(f"{'no way ' * 23}to {address}")  # longer than a line may be

    _, line = started(type("R", (Told,), {"name": "mlflow", "start": refused}), tracker="mlflow")
    assert line.startswith("mlflow did not start (ValueError: no way")
    assert not any(part in line for part in ("alice", "s3"))


@pytest.mark.slow
def test_wandb_without_a_key_leaves_something_to_upload(started, tmp_path, monkeypatch):
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    tracker, line = started(tracker="wandb", mode="online")
    tracker.write({"step": 3, "images": 6})
    tracker.close()
    assert line.startswith("W&B offline, as it did not start online (UsageError: No API key ")
    assert line.endswith(f"; to upload: wandb sync {tmp_path}/wandb/offline-run-*")
    # as at the end of a process: W&B's own one ends once all is written; and this test's variables
    # are forgotten
    wandb.teardown()
    (piece,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert piece.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Broken, "tensorboard did not start"),
        (Lost, "tensorboard failed (BrokenPipeError"),
    ],
)
def test_training_ends_as_ever_with_a_tracker_that_broke(
    kind, said, run_recipe, monkeypatch, capsys
):
    monkeypatch.setattr(tracking, "_available_trackers", KNOWN)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", kind)
    settings = ("log.tracker=tensorboard", "training.duration=5it", "log.every=1it")
    status, folder = run_recipe(DIGITS, *settings)
    assert status == 0
    assert capsys.readouterr().err.count(said) == 1
    records = read(Path(folder) / "log.jsonl")
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4, 5]
    assert "eval/loss" in records[-1]
