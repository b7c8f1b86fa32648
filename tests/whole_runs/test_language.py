"""Language is trained, pruned, interrupted and spread over processes as classification is."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.kill import outcome
from prunezoo.training.folder.log import read
from prunezoo.training.trained import find
from tests.support.runs import launch_several, losses, summary, trained_as_one

SMALL = "recipes/base/python_text/small_lstm.yaml"
POINTER = "recipes/base/python_text/pointer_sentinel_lstm.yaml"
SHORT = (
    "training.duration=4ep",
    "training.batch_size=16",
    "training.optimizer.lr=0.02",
    "checkpoint.every=8it",
    "log.every=1ep",
)
EXACT = (
    "training.precision=fp64",
    "training.optimizer={name: sgd, lr: 1.0}",
    "model.options.dropout=0",
    "log.every=2it",
)
CHANNELS = (
    "pruning={criterion: taylor, granularity: channel, channels: 50%, application: %s,"
    " schedule: {start: 6it}, calibration: {batches: 2, batch_size: 16}}"
)
SURGERY = CHANNELS.replace("%s", "surgery")
WEIGHTS = (
    "pruning={criterion: snip, sparsity: 80%, schedule: {start: 6it},"
    " calibration: {batches: 2, batch_size: 16}}"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """A text of lines of eight words, of which two say all others; settings that name it."""
    folder = tmp_path_factory.mktemp("text")
    draw = torch.Generator().manual_seed(0)
    for part, lines in (("train", 120), ("valid", 20), ("test", 20)):
        rows = []
        for _ in range(lines):
            first, step = torch.randint(1, 5, (2,), generator=draw).tolist()
            words = [(first + step * place) % 5 for place in range(8)]
            rows.append(" ".join(f"w{word}" for word in words))
        (folder / f"own.{part}.txt").write_text("\n".join(rows) + "\n")
    return f"data={{name: {folder}, target: next_word, length: 12}}"


def small(text: str, recipe: str) -> tuple[str, ...]:
    """Settings of a few seconds; the pointer's width is 0.4 of 300 otherwise."""
    return (text, *SHORT, f"model.options.width={0.25 if recipe == SMALL else 0.1}")


@pytest.mark.parametrize(("recipe", "pruning"), [(SMALL, SURGERY), (POINTER, WEIGHTS)])
def test_a_crash_changes_nothing(run_recipe, crash, text, recipe, pruning):
    settings = (*small(text, recipe), pruning)
    status, whole = run_recipe(recipe, *settings, folder="whole")
    assert status == 0
    row = find(str(whole)).image()  # as an export takes it
    assert (row.shape, row.dtype) == ((1, 12), torch.int64)
    crash(*settings, step=10, recipe=recipe)
    status, cut = run_recipe(recipe, *settings, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)


@pytest.mark.parametrize("recipe", [SMALL, POINTER])
def test_surgery_trains_as_masks_do(run_recipe, text, recipe):
    """Up to the order of sums in float64; some twenty steps of SGD do not amplify it."""
    settings = (*small(text, recipe), *EXACT)
    _, cut = run_recipe(recipe, *settings, SURGERY, folder="small")
    _, held = run_recipe(recipe, *settings, CHANNELS.replace("%s", "mask"), folder="held")
    assert losses(cut) == pytest.approx(losses(held), rel=1e-9)
    # outputs are rounded to float32 before they are measured
    key = "eval/log_perplexity_nats"
    assert summary(cut)[key] == pytest.approx(summary(held)[key], rel=1e-6)
    assert summary(cut)["model/params"] < summary(held)["model/params"]


@pytest.fixture(scope="module")
def on_two(tmp_path_factory, text) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch_several(folder, twice(text))
    return folder


def twice(text: str) -> dict[str, list[str]]:
    return {
        "weights": [SMALL, *small(text, SMALL), *EXACT, WEIGHTS],
        "units": [POINTER, *small(text, POINTER), *EXACT, SURGERY],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights", "units"])
def test_two_processes_train_and_prune_as_one(run_recipe, on_two, text, name):
    _, alone = run_recipe(*twice(text)[name])
    trained_as_one(on_two / name, alone, rel=1e-6)


def test_it_learns_what_follows_and_keeps_the_best_weights(run_recipe, text, capsys):
    settings = (*small(text, SMALL), "training.duration=25ep", "log.every=5ep")
    _, folder = run_recipe(SMALL, *settings)
    line = summary(folder)
    # two of nine places cannot be foreseen; each word's chance alone leaves about ln 6, 1.8 nats
    assert line["eval/log_perplexity_nats"] < 1.2
    assert line["task/better"] == "lower"
    values = [
        r[k] for r in read(folder / "log.jsonl") if (k := "validation/log_perplexity_nats") in r
    ]
    assert line["best/validation_log_perplexity_nats"] == min(values)
    assert "eval/top1_percent" not in line
    # the last table has the last validation, next to the best
    (shown,) = re.findall(
        r"│ validation log perplexity +│ +│ +(\S+) nats ", capsys.readouterr().out
    )
    assert float(shown) == pytest.approx(values[-1], rel=1e-3)


REFUSED = {
    "training.label_smoothing=0.1": "training.label_smoothing is for classes, and the task is lang",
    "training.mixup=0.2": "training.mixup is for classes, and the task is language; remove it",
    "task=classification": "are words; write task: language",
    "task=regression": "are words; write task: language",
    "model=digits_cnn": "digits_cnn on 12 cannot train",
    "data.validation=10%": "data.validation means nothing for",
    "data.length=1": "data.length",
    "pruning={criterion: grasp, sparsity: 50%}": "the task is language; write temperature: 1",
    "pruning={criterion: synflow, sparsity: 50%}": (
        "criterion: synflow puts ones in, and this network reads whole numbers; choose another"
    ),
    "pruning={criterion: ntk_sap, sparsity: 50%}": "ntk_sap puts normal noise in",
    "pruning={criterion: rs, granularity: channel, channels: 50%}": (
        "lstm.recur.weight: its layer runs twice in one forward pass and so has no single output"
    ),
    "pruning={criterion: snip, sparsity: 50%, calibration: {class_balanced: true}}": (
        "calibration.class_balanced: true is for labels of classes, and the task is language"
    ),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(run_recipe, capsys, text, setting):
    status, folder = run_recipe(SMALL, text, setting)
    said = capsys.readouterr().err
    assert status == 2
    assert REFUSED[setting] in said
    assert len(said.strip().splitlines()) == 1
    assert not (folder / "log.jsonl").exists()


def test_a_missing_text_is_named(run_recipe, capsys, tmp_path):
    data = f"data={{name: {tmp_path}, target: next_word}}"
    assert run_recipe(SMALL, data)[0] == 2
    assert "no text *.train.txt there" in capsys.readouterr().err
