"""What pruning refuses: one line and exit status 2, before data are read wherever that shows."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import train
from prunezoo.pruning.application.penalty import GroupLasso, L1Bn
from prunezoo.pruning.criteria import CRITERIA, Criterion
from prunezoo.pruning.criteria.measuring import layer_weights
from prunezoo.pruning.errors import BudgetError, NoEffect, PruningError
from prunezoo.pruning.events import SHOWN, plan_events
from prunezoo.pruning.once import prune_once
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.schedule.triggers import Epi, MaskDistance, RandomEpoch
from prunezoo.pruning.selection.bep.selection import BayesianEarlyPruning
from prunezoo.pruning.selection.search import EagleEye, PruneFromScratch
from prunezoo.pruning.selection.selections import Threshold
from tests.support.runs import DIGITS
from tests.support.small_training import (
    AVERAGED,
    CHANNEL,
    STEPS,
    Training,
    network,
    recipe,
)
from tests.support.tiers import slow_but

CUT = "granularity: channel, channels: 30%, application: surgery, schedule: {start: 1ep}"
MNIST = (
    "model=mnist_cnn",
    "data={name: synthetic, channels: 1, image_size: 28, train_images: 64, test_images: 8}",
)
BEP = "criterion: activation_taylor, scope: layer, granularity: channel, channels: 30%"


def synthetic(size: int, **options: object) -> str:
    stated = {"train_images": 64, "test_images": 8} | options
    return f"data={{name: synthetic, image_size: {size}, {str(stated)[1:]}"


# what is asked for, the exit status, and what the one line says; None: the run goes through
LATE = {
    "l1_bn without BatchNorm": (
        [*MNIST, f"pruning={{criterion: magnitude, penalty: l1_bn, {CUT}}}"],
        "penalty: l1_bn needs BatchNorm scales",
    ),
    "bn_recalibrate without BatchNorm": (
        [*MNIST, f"pruning={{criterion: magnitude, compensation: bn_recalibrate, {CUT}}}"],
        "no BatchNorm; use compensation: none",
    ),
    "bn_scale without BatchNorm": (
        [*MNIST, f"pruning={{criterion: bn_scale, {CUT}}}"],
        "choose channel_norm or magnitude",
    ),
    "an average over no step": (
        ["pruning={criterion: bn_taylor, accumulate: true, granularity: channel, channels: 30%}"],
        "accumulate: the first round is at step 0",
    ),
    "an average of rounding errors": (
        [f"pruning={{criterion: taylor, accumulate: true, {CUT}}}"],
        "taylor's sums Σ g·w are 0 but for rounding; set criterion: bn_taylor",
    ),
    "signed scores divided": (
        [f"pruning={{criterion: grasp, importance: {{per: macs, absolute: none}}, {CUT}}}"],
        "set importance.absolute: after",
    ),
    "buckets of another criterion": (
        [
            "pruning={criterion: magnitude, scope: layer, granularity: channel, channels: 30%,"
            " selection: {name: bep, protocol: buckets}, schedule: {start: 1ep, curve: constant}}"
        ],
        "write criterion: activation_taylor, or protocol: pauses",
    ),
    "bep before it measured": (
        [f"pruning={{{BEP}, selection: bep, schedule: {{curve: constant}}}}"],
        "measured nothing before its first decision at step 0; start later",
    ),
    "mean_replacement": (
        [f"pruning={{criterion: magnitude, compensation: mean_replacement, {CUT}}}"],
        None,
    ),
    "exact padding on a residual network": (
        [
            "model={name: resnet56, options: {depth: 8, width: 0.25}}",
            f"pruning={{criterion: magnitude, {CUT},"
            " compensation: {name: mean_replacement, padding: exact}}",
        ],
        None,
    ),
    "a laboratory of unknown layers": (
        ["laboratory={every: 1ep, layers: [nope]}"],
        "no prunable layer is called nope; write one of all, firstconv",
    ),
    "a laboratory at every 0 steps": (
        ["laboratory={every: 0it}"],
        "every: 0it is not a distance between two stops; write 1ep or more",
    ),
    "classes that do not share images": (
        [
            "pruning={criterion: snip, sparsity: 50%, schedule: {start: 1ep},"
            " calibration: {class_balanced: true, batches: 1, batch_size: 7}}"
        ],
        "7 images do not divide among 10 classes",
    ),
    "nothing prunable": (
        [
            "model=timm/convnextv2_atto",
            synthetic(32),
            f"pruning={{criterion: magnitude, {CUT}}}",
        ],
        "no channel of this network can be pruned (stem.0: ",
    ),
    "a head that only trains, too small images": (
        ["model={name: timm/inception_v3, options: {aux_logits: true}}", synthetic(128)],
        "write data.image_size: 299, or choose another model",
    ),
    "a head that only trains": (
        ["model={name: timm/inception_v3, options: {aux_logits: true}}", synthetic(299)],
        "switch off auxiliary outputs",
    ),
    "mixup of one class": (
        [synthetic(8, num_classes=1), "training.mixup=0.2"],
        "all labels of synthetic are of one class, with nothing to tell apart",
    ),
    "cutmix of tiny images": (
        [synthetic(2), "training.cutmix=1"],
        None,
    ),
    "one image and BatchNorm": (
        [synthetic(2, train_images=5), "training.batch_size=1"],
        "cannot train on 1 at a time (ValueError: Expected more than 1 value per channel",
    ),
    "one image left for BatchNorm": (
        [synthetic(2, train_images=5, drop_last="false"), "training.batch_size=4"],
        "write data.drop_last: true",
    ),
    "accumulation that leaves an empty part": (
        [
            synthetic(8, train_images=10, drop_last="false"),
            "training.batch_size=8",
            "training.accumulation=4",
        ],
        None,
    ),
}


QUICK = [name for name, (settings, says) in LATE.items() if says and "timm" not in settings[0]]


@pytest.mark.parametrize("name", slow_but(QUICK, LATE))
def test_late_faults_are_one_line(name, run_recipe, capsys):
    settings, says = LATE[name]
    status, folder = run_recipe(
        DIGITS, synthetic(8), "training.batch_size=8", "training.duration=2ep", *settings
    )
    errors = capsys.readouterr().err.strip().splitlines()
    assert status == (0 if says is None else 2), errors
    if says is not None:
        assert len(errors) == 1
        assert says in errors[0]
        assert not (folder / "log.jsonl").exists() or not (folder / "log.jsonl").read_text()


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_no_fault_of_pruning(run_recipe, capsys):
    prunes = f"pruning={{criterion: taylor, {CUT}}}"
    status, _ = run_recipe(DIGITS, "training.optimizer.lr=1e30", "training.duration=2ep", prunes)
    assert status == 3
    assert "lower training.optimizer.lr" in capsys.readouterr().err


DRY = {
    "pruning={criterion: magnitude, sparsity: 50%, except: [nope]}": "linear layer in nope; write",
    "pruning={criterion: magnitude, sparsity: 99.99%}": "the floors alone keep 5 units and 1 were",
    "pruning={criterion: magnitude, granularity: channel, macs: 99.9%}": "what must stay alone has",
    "pruning={criterion: magnitude, granularity: channel, channels: 1%, scope: layer, floor: 99%}":
        "less than one unit",
    "pruning={criterion: magnitude, sparsity: 50%, schedule: {start: 200%}}":
        "200% is more than the whole; write 100% or less",
    "pruning={criterion: magnitude, sparsity: 50%, schedule: {rounds: 50, end: 20it}}":
        "50 rounds do not fit into the 20 steps from start to end",
    "pruning={criterion: magnitude, sparsity: 50%, schedule: {rounds: 3, every: 0.001ep}}":
        "every (0.001ep) is less than a step",
    "pruning={criterion: magnitude, sparsity: 50%, schedule: {rounds: 200000}}": "100000",
    "pruning={criterion: {name: grasp, temperature: 0}, sparsity: 50%}": "temperature is 0; write",
    "pruning={criterion: {name: random, seed: 99999999999999999999}, sparsity: 50%}":
        "of random: write",
    "pruning={criterion: magnitude, sparsity: 50%, regrow: {name: gradient, fraction: 7}}":
        "fraction is 7; write 0 … 1",
    "pruning={criterion: snip, sparsity: 50%, calibration: {batches: 999999999}}":
        "less than or equal",
    f"pruning={{{BEP}, selection: {{name: bep, lite: nope}}, schedule: {{start: 1ep,"
    " curve: constant}}": "lite: unknown name nope",
    f"pruning={{{BEP}, selection: {{name: bep, penalty: 2}}, schedule: {{start: 1ep,"
    " curve: constant}}": "write a number between 0 and 1",
    f"pruning={{{BEP}, selection: {{name: bep, protocol: buckets}}, schedule: {{start: 1ep,"
    " curve: constant}}": "schedule.start: 625it or more), or write smaller buckets",
    "laboratory={every: 10%}": "the laboratory counts steps; write it in ep or it",
    "laboratory={every: 1ep, iterative: {start: 1000ep}}": "training ends at 440; write less",
    "laboratory={every: 1ep, iterative: {start: 39ep, targets: [80%]}}": "its last target is"
    " reached at step 8429 and training ends at 440; write an earlier start",
    "laboratory={every: 1ep, held_out: validation}": "no images are held out; set data.validation",
}  # fmt: skip


@pytest.mark.parametrize("setting", DRY)
def test_a_dry_run_finds_what_the_recipe_alone_shows(setting, capsys):
    sizes = ("--set=training.batch_size=128", "--set=training.duration=40ep")
    status = train.main(["--recipe", DIGITS, "--dry-run", *sizes, f"--set={setting}"])
    errors = capsys.readouterr().err.strip().splitlines()
    assert (status, len(errors)) == (2, 1), errors
    assert DRY[setting] in errors[0]


def test_batches_to_score_on_divide_over_the_planned_processes(capsys):
    words = ["--processes=3", "--set=training.batch_size=33"]
    prunes = "--set=pruning={criterion: snip, sparsity: 50%}"
    assert train.main(["--recipe", DIGITS, "--dry-run", *words, prunes]) == 2
    assert "over 3 processes; write batch_size: 129" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (partial(Epi, 0.5, "channel", r=0), "r is 0"),
        (partial(Epi, 0.5, "channel", ratios=[2.0]), "ratio is 2"),
        (partial(MaskDistance, 0.5, "channel", previous=0), "previous is 0"),
        (partial(RandomEpoch, 0.5, "channel", first=9, last=3), "last is 3; write 9"),
        (partial(L1Bn, coefficient=-1.0), "coefficient is -1; write 0 or more"),
        (partial(GroupLasso, ratio=1.0), "ratio is 1"),
        (partial(GroupLasso, coefficient=float("nan")), "coefficient is nan"),
        (partial(Threshold, value=float("inf")), "value is inf"),
        (partial(PruneFromScratch, density=1.5), "density is 1.5; write 0 … 1"),
        (partial(EagleEye, batch_size=0), "batch_size is 0"),
        (partial(BayesianEarlyPruning, pauses=0), "pauses is 0"),
        (partial(BayesianEarlyPruning, every=0), "every is 0"),
        (partial(BayesianEarlyPruning, draws=0), "draws is 0"),
        (partial(BayesianEarlyPruning, stages=1.0), "stages is 1"),
    ],
)
def test_options_have_ranges(make, says):
    with pytest.raises(PruningError, match=says):
        make()


TIMES = [
    ({"schedule": {"trigger": "epi"}}, "training ends at 40; write an earlier latest"),
    ({"schedule": {"trigger": "mask_distance", "wait": "4ep"}}, "comes at step 90 or later"),
    ({"schedule": {"trigger": "drift", "start": "2ep", "latest": "1ep"}}, "write a later latest"),
    (AVERAGED | {"schedule": {"rounds": 2, "start": "1ep"}, "application": "surgery"},
     "rounds follow at one step"),
    (AVERAGED | {"schedule": {"trigger": {"name": "random_epoch", "last": 0}}},
     "the first round is at step 0"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "says"), TIMES)
def test_rounds_that_cannot_come_are_refused(keys, says):
    with pytest.raises(PruningError, match=says):
        Pruner(recipe(**CHANNEL | keys), Training())


ONE_ROUND = {"start": "1ep", "every": "1ep"}
RETURNING = {
    "regrow": {"name": "global_gradient", "first_mask": "score"},
    "application": "mask_then_surgery",
}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"schedule": ONE_ROUND | {"first": 0.3}}, "there is one; write rounds"),
        ({"schedule": ONE_ROUND | {"every": "2ep", "end": "2ep", "first": 0.3}}, "there is one"),
        ({"schedule": ONE_ROUND, "amenable_channels": 0.3, **RETURNING}, "the schedule has one"),
    ],
)
def test_one_round_is_not_the_first_of_several(keys: dict, says: str):
    with pytest.raises(PruningError, match=says):
        Pruner(recipe(**{"sparsity": 0.9} | keys), Training())


def test_a_trigger_that_latest_forces_needs_no_time_of_its_own():
    schedule = {"trigger": "epi", "latest": "2ep"}
    training = Training()
    training.run(
        Pruner(recipe(**CHANNEL | {"criterion": "magnitude"}, schedule=schedule), training)
    )
    assert len(training.records) == 1


def event(criterion, monkeypatch, **keys) -> Training:
    """A training in which a criterion of one's own scores the first round."""
    monkeypatch.setitem(CRITERIA, "mine", Criterion(criterion))
    training = Training()
    config = recipe(**keys)
    config = config.model_copy(
        update={"criterion": config.criterion.model_copy(update={"name": "mine"})}
    )
    Pruner(config, training).prune(training)
    return training


WEIGHTS = {"sparsity": 0.5}
UNITS = {"granularity": "channel", "channels": 0.5}


def equal(model, batches):
    return {name: torch.full((len(w),), 3.0) for name, w in layer_weights(model).items()}


def equal_weights(model, batches):
    return {name: torch.full_like(w, 3.0) for name, w in layer_weights(model).items()}


def infinite(model, batches):
    return {name: w.detach() / 0 for name, w in layer_weights(model).items()}


def rows(model, batches):
    return {name: w.detach()[0] for name, w in layer_weights(model).items()}


def foreign(model, batches):
    return {"nowhere.weight": torch.ones(3)}


def partly(model, batches):
    return dict(list(equal_weights(model, batches).items())[1:])


def channels(model, batches):
    return {name: w.detach().flatten(1).sum(1) for name, w in layer_weights(model).items()}


@pytest.mark.parametrize(
    ("criterion", "keys"), [(equal_weights, WEIGHTS), (equal, UNITS)], ids=["weight", "channel"]
)
def test_scores_that_are_all_the_same_rank_nothing(criterion, keys, monkeypatch):
    says = "round 1 of 1: criterion mine: every score is 3, which ranks nothing; prune after some"
    with pytest.raises(PruningError, match=says):
        event(criterion, monkeypatch, **keys)


@pytest.mark.parametrize("keys", [WEIGHTS, UNITS])
@pytest.mark.parametrize(
    ("criterion", "says"),
    [
        (infinite, "a score of 0.weight is NaN or infinite; lower"),
        (rows, r"the score of 0.weight is \(1, 3, 3\) and its weight \(8, 1, 3, 3\)"),
        (foreign, "scores nowhere.weight, which is no parameter of the network"),
        (partly, "has no score for 0"),
    ],
)
def test_scores_that_cannot_rank_are_refused_at_their_round(criterion, says, keys, monkeypatch):
    with pytest.raises(PruningError, match=f"^pruning at step 0, round 1 of 1: .*{says}"):
        event(criterion, monkeypatch, **keys)


def test_a_criterion_of_channels_that_no_list_names_is_refused_for_weights(monkeypatch):
    with pytest.raises(PruningError, match="mine scores channels, not single weights; set gran"):
        event(channels, monkeypatch, **WEIGHTS)
    assert event(channels, monkeypatch, **UNITS).records == []


def test_equal_scores_of_a_pruned_network_are_a_result(monkeypatch):
    """A network that collapsed in an earlier round; only a dense one must be ranked."""
    calls = []

    def collapses(model, batches):
        calls.append(len(calls))
        scores = {name: torch.rand(w.shape) for name, w in layer_weights(model).items()}
        return scores if calls == [0] else equal_weights(model, batches)

    event(collapses, monkeypatch, **WEIGHTS, schedule={"rounds": 3})
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("keys", [WEIGHTS, UNITS])
def test_weights_that_are_no_numbers_are_refused_where_no_score_shows_them(keys):
    training = Training()
    training.model.get_parameter("0.weight").data.fill_(float("nan"))
    with pytest.raises(PruningError, match=r"^pruning at .*: 0.weight has entries that are NaN"):
        Pruner(recipe(criterion="random", **keys), training).prune(training)


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_told_before_a_round(run_recipe, capsys):
    settings = ("training.optimizer.lr=1e30", "training.duration=2ep", "log.every=100ep")
    prunes = "pruning={criterion: random, sparsity: 50%, schedule: {start: 3it}}"
    status, _ = run_recipe(DIGITS, *settings, prunes)
    assert status == 3
    assert "the loss is NaN or infinite at step" in capsys.readouterr().err


def test_a_fault_in_a_round_says_where_and_keeps_its_kind():
    training = Training()
    pruner = Pruner(recipe(**CHANNEL | {"channels": 0.99, "floor": 0.2}), training)
    training.position = training.work = 7
    with pytest.raises(BudgetError, match=r"^pruning at step 7, round 1 of 1: channels: at most"):
        pruner.prune(training)
    config = recipe(granularity="channel", selection={"name": "threshold", "value": 1e-9})
    with pytest.raises(NoEffect, match=r"^pruning at step 0, round 1 of 1: all rounds are over"):
        Pruner(config, Training()).prune(Training())


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight


class Tied(nn.Module):
    """Words in, words out, by the same table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.outer(self.inner(self.table(words)).relu()))


TIED = (
    r"^head.weight is also table.weight, and a weight of two layers has no score of its own; give"
    r" each layer its own weight$"
)


@pytest.mark.parametrize("criterion", ["magnitude", "channel_norm", "group_norm", "snap"])
def test_a_layer_with_an_embeddings_weight_has_no_score(criterion):
    words = torch.zeros(1, 4, dtype=torch.long)
    options = {"batches": [(words, words)]} if criterion == "snap" else {}
    with pytest.raises(PruningError, match=TIED):
        prune_once(Tied(), words, criterion=criterion, channels=0.5, **options)


def test_other_layers_than_an_embeddings_are_pruned_by_their_own_scores():
    def inner_alone(model, batches):
        return {"inner.weight": model.inner.weight.detach().abs()}

    words = torch.zeros(1, 4, dtype=torch.long)
    pruned = prune_once(Tied(), words, criterion=inner_alone, channels=0.5)
    assert pruned.widths == {"inner": 8}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Shared(), "second.weight is also first.weight"),
        (Tied(), TIED),
        (nn.Sequential(weight_norm(nn.Linear(4, 4))), "0.weight is computed from other tensors"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), "no convolution or linear layer"),
    ],
)
def test_weights_that_no_mask_can_hold_are_refused(model, says):
    training = Training()
    training.model = model
    with pytest.raises(PruningError, match=says):
        Pruner(recipe(sparsity=0.5), training)


def test_except_may_not_name_everything():
    everything = {"except": [name for name, _ in network().named_modules() if name]}
    layers = {"except": ["0", "4", "9", "11"]}
    assert set(layers["except"]) < set(everything["except"])
    for keys in (WEIGHTS, UNITS):
        with pytest.raises(PruningError, match=r"except names every .*; shorten it"):
            Pruner(recipe(**keys, **layers), Training())


def test_a_network_of_one_layer_is_pruned():
    training = Training()
    training.model = nn.Linear(8, 4)
    training.optimizer = training.new_optimizer()
    record = Pruner(recipe(sparsity=0.5), training).prune(training)
    assert record["prune/got"] == 0.5


def test_a_plan_of_many_rounds_shows_the_first_and_the_last():
    schedule = {"rounds": 1000, "every": "1it"}
    lines = plan_events(recipe(sparsity=0.9, schedule=schedule), STEPS, 2000)
    assert len(lines) == SHOWN + 1
    assert lines[0].startswith("step 0 ")
    assert lines[-1].startswith("step 999 ")
    assert lines[-2] == f"… {1000 - SHOWN} more …"


def test_a_training_without_images_to_score_with_is_told_so():
    training = Training()
    training.calibration = lambda *_, **__: iter(())
    pruner = Pruner(recipe(criterion="snip", sparsity=0.5), training)
    with pytest.raises(PruningError, match="pruning at step 0, round 1 of 1: no images to score"):
        pruner.prune(training)
