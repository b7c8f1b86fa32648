import copy
import functools
import json
from pathlib import Path

import pytest

from prunezoo.reporting.claims import find_claims
from prunezoo.schema import source
from prunezoo.schema.pruning import PruningConfig
from prunezoo.schema.recipe import RecipeError, load, schema
from prunezoo.schema.section import Named
from prunezoo.schema.source import scalar

ROOT = Path(__file__).parents[2]
GOOD = """\
model: mnist_cnn
data: mnist
training:
  duration: 5ep
  batch_size: 128
"""


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def fault(folder: Path, text: str, *settings: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(write(folder, text), list(settings))
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-4", 1e-4),
        ("5e3", 5000.0),
        ("12", 12),
        ("on", True),
        ("Off", False),
        ("50%", 0.5),
        ("1:30", "1:30"),
        ("90ep", "90ep"),
        ("null", None),
        ("0x10", "0x10"),
        ("none", "none"),
    ],
)
def test_values_mean_what_a_person_means(word, value):
    actual = scalar(word)
    assert actual == value
    assert isinstance(actual, type(value))


def test_typed_fields(tmp_path):
    text = (
        GOOD
        + "  optimizer: {name: adam, lr: 1e-4}\n  channels_last: on\n  lr_schedule: {warmup: 50%}\n"
    )
    recipe, _ = load(write(tmp_path, text))
    assert recipe.training.optimizer.lr == 1e-4
    assert recipe.training.channels_last is True
    assert recipe.training.lr_schedule.warmup.steps(10, 100) == 50
    assert recipe.training.duration.steps(10) == 50


@pytest.mark.parametrize("share", ["10%", "10 %", "'10%'", "' 10 %'", "0.1", "'0.1'"])
def test_a_share_in_quotes_or_with_a_blank_is_the_same(tmp_path, share):
    text = GOOD.replace("data: mnist", f"data: {{name: mnist, validation: {share}}}")
    data = load(write(tmp_path, text))[0].data
    assert (type(data.validation + 0.0), data.validation) == (float, 0.1)


@pytest.mark.parametrize("word", ["null", "Null", "NULL", "~", ""])
def test_null_in_any_letters_takes_away_what_the_recipe_below_has(tmp_path, word):
    base = write(tmp_path, GOOD + "pruning: {criterion: magnitude, sparsity: 50%}\n")
    (tmp_path / "child.yaml").write_text(f"extends: {base.name}\npruning: {word}\n")
    assert load(tmp_path / "child.yaml")[0].pruning is None
    (tmp_path / "child.yaml").write_text(f"extends: {base.name}\npruning: {{}}\n")
    assert load(tmp_path / "child.yaml")[0].pruning is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GOOD + "  bath_size: 3\n",
            "r.yaml:6: unknown key bath_size in training (did you mean batch_size?",
        ),
        (GOOD + "sede: 3\n", "r.yaml:6: unknown key sede (did you mean seed?"),
        (
            GOOD + "  precision: bf15\n",
            "r.yaml:6: training.precision: 'bf15' is not one of 'fp32', 'bf16', 'fp16' or 'fp64'"
            " (did you mean bf16?)",
        ),
        (
            GOOD + "  accumulation: two\n",
            "r.yaml:6: training.accumulation: two is not a whole number; write one such as 64",
        ),
        (
            GOOD + "  optimizer:\n",
            "r.yaml:6: training.optimizer: null where keys are due; remove it to have the defaults,"
            " or write keys (alpha, betas,",
        ),
        (
            GOOD + "  ema: 0.999\n",
            "training.ema: 0.999 where keys are due; write null to be without it, or write keys (d",
        ),
        (
            GOOD + "pruning: off\n",
            "r.yaml:6: pruning: false where keys are due; write null to be without it, or",
        ),
        (GOOD + "  clip_norm: 0,1\n", "clip_norm: 0,1 is not a number; write one such as 0.1"),
        (GOOD + "  tf32: 7\n", "training.tf32: 7 is not a switch; write on or off"),
        (
            GOOD + "cost: {country: NO}\n",
            "false is not a word; write one (in quotes where it is on",
        ),
        (GOOD + "seed: 1\nseed: 2\n", "r.yaml:7: seed is written twice, first on line 6; keep one"),
        ("model: x\n", "r.yaml: data is missing; write it"),
        (
            GOOD.replace("5ep", "5"),
            "r.yaml:4: training.duration: 5 is not a duration; write 90ep, 500it or 50%",
        ),
        (
            GOOD + "  optimizer: sgdd\n",
            "unknown optimizer sgdd (did you mean sgd?); use sgd, adam, adamw, rmsprop, or ",
        ),
        (
            GOOD + "  accumulation: 2\n  compile: reduce-overhead\n",
            "write compile: true, or accumulation: 1",
        ),
        (
            GOOD + "evaluation: {around_pruning: on}\n",
            "evaluation.around_pruning measures validation images; write data.validation: 10%",
        ),
        (GOOD + "extends: nothing.yaml\n", "r.yaml:6: extends nothing.yaml: no such file"),
        (
            GOOD + "extends: r.yaml\n",
            "extends goes in a circle (r.yaml → r.yaml); remove one of them",
        ),
        (GOOD + "  x: [\n", "r.yaml:7: not YAML: "),
        ("- a\n", "a recipe is a map of keys"),
    ],
)
def test_errors_say_where_what_and_what_to_write(tmp_path, text, expected):
    assert expected in fault(tmp_path, text)


def test_all_faults_are_told_together(tmp_path):
    lines = fault(tmp_path, GOOD + "  bath_size: 3\nsede: 3\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["r.yaml:6", "r.yaml:7"]


def test_set_overrides_and_is_checked(tmp_path):
    path = write(tmp_path, GOOD)
    recipe, source = load(
        path, ["training.batch_size=64", "training.optimizer={name: adam, lr: 1e-3}"]
    )
    assert recipe.training.batch_size == 64
    assert recipe.training.optimizer.lr == 1e-3
    assert source.locate(("training", "batch_size")) == "--set training.batch_size=64"
    assert "--set training.bath_size=1: unknown key bath_size" in fault(
        tmp_path, GOOD, "training.bath_size=1"
    )
    assert "write --set key=value" in fault(tmp_path, GOOD, "seed")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.optimiser.lr=1", "unknown key optimiser in training (did you mean optimizer? "),
        ("pruning.criterion.trian=on", "pruning.criterion: taylor has no option trian (did you"),
        ("pruning.criterion.train=7", "pruning.criterion: train: 7 of taylor: "),
        ("pruning.compensation.nme=none", "pruning.compensation.name is missing; write it"),
        ("task.entropy=0.1", "task.name is missing; write it"),
        ("lr=0.1", "unknown key lr (did you mean training.optimizer.lr or "),
        ("macs=50%", "unknown key macs (did you mean pruning.macs? "),
        (
            "pruning.trigger=epi",
            "unknown key trigger in pruning (did you mean pruning.schedule.trig",
        ),
    ],
)
def test_a_fault_of_a_setting_is_not_blamed_on_the_recipe(tmp_path, setting, expected):
    pruned = "pruning: {criterion: taylor, granularity: channel, macs: 50%, application: surgery}\n"
    assert fault(tmp_path, GOOD + pruned, setting).startswith(f"--set {setting}: {expected}")


def test_set_reaches_into_a_bare_word(tmp_path):
    recipe, _ = load(write(tmp_path, GOOD), ["model.options.width=0.5"])
    assert recipe.model.name == "mnist_cnn"
    assert recipe.model.options == {"width": 0.5}


@pytest.mark.parametrize("kind", Named.__subclasses__())
def test_a_section_adds_to_the_bare_word_of_its_base(kind):
    """Whichever key the word is a value of: a schedule's is its curve."""
    first = next(iter(kind.model_fields))
    name = next((word for word, key in source.BARE.items() if key == first), "section")
    base = source.Source({name: "cosine"}, {(name,): ("a.yaml", 1)}, "a.yaml")
    source.merge(base, source.Source({name: {"other": 1}}, {(name,): ("b.yaml", 1)}, "b.yaml"))
    assert base.values == {name: {first: "cosine", "other": 1}}
    assert base.locate((name, first)) == "a.yaml:1"


def test_extends_merges_maps_and_replaces_the_rest(tmp_path):
    base = GOOD + "  lr_schedule: {curve: step, milestones: [1ep, 2ep]}\n"
    write(tmp_path, base, "base.yaml")
    child = "extends: base.yaml\ntraining:\n  lr_schedule: {milestones: [3ep]}\n"
    recipe, source = load(write(tmp_path, child))
    assert [str(m) for m in recipe.training.lr_schedule.milestones] == ["3ep"]
    assert recipe.training.batch_size == 128
    assert source.locate(("training", "batch_size")).endswith("base.yaml:5")
    assert source.locate(("training", "lr_schedule", "milestones")).endswith("r.yaml:3")


def test_an_indivisible_batch_proposes_the_nearest(tmp_path):
    recipe, _ = load(write(tmp_path, GOOD), ["training.batch_size=1000"])
    with pytest.raises(RecipeError, match="use 999 or 1002"):
        recipe.check_processes(3)
    recipe.check_processes(4)


def test_durations_print_as_they_were_written(tmp_path):
    recipe, _ = load(
        ROOT / "recipes" / "quickstart.yaml",
        ["training.duration=1234567it", "checkpoint.every=0.1ep"],
    )
    assert str(recipe.training.duration) == "1234567it"
    assert str(recipe.checkpoint.every) == "0.1ep"


def test_asking_for_more_processes_than_run(tmp_path):
    recipe, _ = load(write(tmp_path, GOOD), ["processes=2"])
    with pytest.raises(RecipeError, match="asks for 2 processes and 1 run"):
        recipe.check_processes(1)


def test_the_hash_ignores_defaults_and_what_changes_no_result(tmp_path):
    path = write(tmp_path, GOOD)
    plain = load(path)[0].hash()
    assert plain == "e197e5e3", "frozen: a new option must not rename old runs"
    same = ["seed=3", "log.tracker=none", "training.accumulation=1", "cost.country=FRA"]
    assert load(path, same)[0].hash() == plain
    assert load(path, ["training.batch_size=64"])[0].hash() != plain


def test_the_checked_in_schema_is_current():
    stored = json.loads((ROOT / "recipes" / "schema.json").read_text())
    assert stored == schema(), "run: python -m prunezoo.schema.recipe > recipes/schema.json"


RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_there_are_recipes():
    assert len(RECIPES) >= 13


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_recipe_loads_and_names_itself(path):
    load(path)
    header = path.read_text().split("\n\n")[0]
    assert f"--recipe {path.relative_to(ROOT)}" in header


@pytest.mark.slow
def test_every_recipe_over_channels_removes_them():
    """Masks alone leave MACs, and all that is counted from them, those of the dense network."""
    for path in RECIPES:
        pruning = load(path)[0].pruning
        if pruning is not None and pruning.granularity == "channel":
            assert pruning.application != "mask", path


def test_what_every_claim_sets_makes_a_recipe(monkeypatch):
    once = functools.cache(source._read_one)  # some five hundred claims of fifty files
    monkeypatch.setattr(source, "_read_one", lambda path: copy.deepcopy(once(path)))
    for claim in find_claims(ROOT / "papers/claims"):
        recipe, _ = load(ROOT / claim.recipe, list(claim.set))
        if claim.recipe.startswith(("recipes/pat", "recipes/earlycrop", "recipes/methods")):
            assert isinstance(recipe.pruning, PruningConfig)
