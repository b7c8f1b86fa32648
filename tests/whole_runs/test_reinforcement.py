"""Networks that act are trained, pruned, interrupted and spread over processes as others are."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.kill import outcome
from prunezoo.schema.recipe import RecipeError, load
from prunezoo.training.dry_run import plan
from prunezoo.training.folder.log import read
from tests.support.runs import launch_several, losses, summary, trained_as_one

CARTPOLE = "recipes/base/cartpole/mlp.yaml"
LANDER = "recipes/base/lunar_lander/mlp.yaml"
if find_spec("Box2D") is None:  # no wheels for every machine: requirements.txt says which
    LANDER = "recipes/base/acrobot/mlp.yaml"
SHORT = (
    "model.options={units: 32, depth: 3}",
    "data.play={environments: 4, transitions: 256, episodes: 4, reward_scale: 0.1}",
    "data.validation=2",
    "training.duration=4ep",
    "training.batch_size=64",
    "training.optimizer.lr=0.005",
    "evaluation.every=2ep",
    "checkpoint.every=3it",
    "log.every=1it",
)
CHANNELS = (
    "pruning={criterion: taylor, granularity: channel, channels: 50%, application: %s,"
    " schedule: {start: 6it}, calibration: {batches: 2, batch_size: 32}}"
)
SURGERY = CHANNELS.replace("%s", "surgery")
WEIGHTS = (
    "pruning={criterion: snip, sparsity: 80%, schedule: {start: 6it},"
    " calibration: {batches: 2, batch_size: 32}}"
)
CROP = (
    "pruning={criterion: crop, sparsity: 80%, schedule: {start: 6it, rounds: 3, curve: halving},"
    " calibration: {batches: 2, batch_size: 32}}"
)
EXACT = ("training.precision=fp64", "training.optimizer={name: sgd, lr: 0.02}")


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        (CARTPOLE, SURGERY),
        (CARTPOLE, CROP),
        (LANDER, WEIGHTS),
        (CARTPOLE, "training.ema={decay: 0.9}"),
    ],
)
def test_a_crash_changes_nothing(run_recipe, crash, recipe, settings):
    status, whole = run_recipe(recipe, *SHORT, settings, folder="whole")
    assert status == 0
    crash(*SHORT, settings, step=10, recipe=recipe)
    status, cut = run_recipe(recipe, *SHORT, settings, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)


def test_surgery_trains_as_masks_do(run_recipe):
    """Up to the order of sums in float64; the same actions are drawn, so the games are the same."""
    _, small = run_recipe(CARTPOLE, *SHORT, *EXACT, SURGERY, folder="small")
    _, held = run_recipe(CARTPOLE, *SHORT, *EXACT, CHANNELS.replace("%s", "mask"), folder="held")
    assert losses(small) == pytest.approx(losses(held), rel=1e-9)
    assert summary(small)["eval/return"] == summary(held)["eval/return"]
    assert summary(small)["model/params"] < summary(held)["model/params"]


def test_a_record_says_what_was_played(run_recipe):
    _, folder = run_recipe(CARTPOLE, *SHORT)
    line = summary(folder)
    assert (line["task/headline"], line["task/better"]) == ("eval/return", "higher")
    assert line["eval/images"] == 4
    assert line["run/images"] == 16 * 64
    # a pass to act, and three to learn
    assert line["cost/acting_macs"] == line["cost/forward_macs"] == line["dense/macs"] * 1024
    assert line["cost/training_flops"] == 8 * line["cost/forward_macs"]
    values = [r["validation/return"] for r in read(folder / "log.jsonl") if "validation/loss" in r]
    assert line["best/validation_return"] == max(values)
    assert 8 <= line["eval/return"] <= 500


TWICE = {
    "surgery": [CARTPOLE, *SHORT, *EXACT, SURGERY],
    "weights": [LANDER, *SHORT, *EXACT, WEIGHTS, "training.accumulation=2"],
}


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch_several(folder, TWICE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TWICE)
def test_two_processes_play_and_prune_as_one(run_recipe, on_two, name):
    _, alone = run_recipe(*TWICE[name])
    trained_as_one(on_two / name, alone, "cost/acting_macs", rel=1e-9)


@pytest.mark.slow
def test_cartpole_is_learnt(run_recipe):
    settings = ("data.play.transitions=4096", "data.play.episodes=20", "data.validation=0")
    _, folder = run_recipe(CARTPOLE, *settings)
    assert summary(folder)["eval/return"] > 100  # an untrained network gets about 10


def test_a_dry_run_knows_the_network_and_the_passes_that_act():
    """FLARE's network for CartPole: 5 · 128 + 2 · 129 · 128 + 129 · 3 parameters."""
    recipe, source = load(CARTPOLE, ["training.duration=10it"])
    text = plan(recipe, source)
    assert "mlp: 34,051 parameters, 33,664 MACs" in text
    assert f"and {2 * 33_664 * 1280:.3g} of acting (1 pass)" in text
    digits = plan(*load("recipes/quickstart.yaml"))
    assert "of acting" not in digits
    recipe, source = load(CARTPOLE, ["training.batch_size=96"])
    with pytest.raises(RecipeError, match=r"play.environments: 16 do not divide over 3 proc"):
        plan(recipe, source, processes=3)


REFUSED = {
    "training.label_smoothing=0.1": "training.label_smoothing is for classes, and the task is rein",
    "task=regression": "task: regression needs numbers to come near to, and the targets of gymnas",
    "task={name: reinforcement, entropy: -1}": "task.entropy is -1; write a number from 0 to 1000",
    "training.batch_size=100": "batches of 100 transitions do not divide over 16 environments",
    "data.play.environments=0": "data.play.environments",
    "data.validation=10%": "validation is a number of episodes here; write one, such as 20",
    "data.workers=4": "data.workers means nothing for gymnasium/CartPole-v1; remove it",
    "data.target=depth": "data.target means nothing for gymnasium/CartPole-v1; remove it",
    "data.name=gymnasium/CartPole-v7": "gymnasium has no such environment (did you mean",
    "data.name=digits": "play is of environments, such as gymnasium/CartPole-v1; remove it",
    "model=digits_cnn": "digits_cnn on 4 cannot train",
    "pruning={criterion: grasp, sparsity: 50%}": "write temperature: 1",
    "pruning={criterion: snip, sparsity: 50%, calibration: {batch_size: 100}}": (
        "a batch of 100 transitions to score on does not divide over 16 environments"
    ),
    "pruning={criterion: channel_norm, granularity: channel, macs: 50%, selection: eagle_eye}": (
        "pruning.selection: eagle_eye measures single examples, and the return is of whole episodes"
    ),
    "laboratory={layers: [hidden.0], every: 4it}": (
        "laboratory measures single examples, and the return is of whole episodes"
    ),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_is_not_for_environments_is_refused_in_one_line(run_recipe, capsys, setting):
    status, folder = run_recipe(CARTPOLE, setting)
    said = capsys.readouterr().err
    assert status == 2
    assert REFUSED[setting] in said
    assert len(said.strip().splitlines()) == 1
    assert not (folder / "log.jsonl").exists()


def test_images_are_not_played(run_recipe, capsys):
    assert run_recipe("recipes/quickstart.yaml", "task=reinforcement")[0] == 2
    assert "task: reinforcement needs an environment to act in, and digits is none" in (
        capsys.readouterr().err
    )
