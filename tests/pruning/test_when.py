"""When to prune: triggers, waiting, rewinding, ticks; EarlyCroP's metrics."""

import json

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from prunezoo import models
from prunezoo.pruning.events import plan_events, steps_repeated
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.schedule.triggers import TRIGGERS, Trigger, WouldKeep
from prunezoo.pruning.training_view import State
from prunezoo.reporting.conventions import earlycrop
from prunezoo.schema.recipe import load
from prunezoo.training import loop
from prunezoo.training.lr import factor
from tests.support.runs import DIGITS, ROOT, TINY
from tests.support.small_training import (
    AVERAGED,
    CHANNEL,
    STEPS,
    Training,
    network,
    recipe,
)

# ── rounds, triggers and rates ───────────────────────────────────────────────────────────────────
EPI = {"name": "epi", "r": 1, "tau": 0.0, "ratios": [0.5]}


def pruned(epochs: int = 8, **keys) -> tuple[Training, Pruner, list[dict]]:
    training = Training(epochs=epochs)
    pruner = Pruner(recipe(**keys), training)
    lines: list[dict] = []
    pruner.tell = lines.append
    training.run(pruner)
    return training, pruner, lines


def test_epi_is_told_every_epoch_and_rounds_wait_after_it_fires():
    schedule = {"trigger": EPI, "latest": "3ep", "wait": "4it", "rounds": 3, "every": "2it"}
    keys = CHANNEL | AVERAGED | {"application": "mask_then_surgery", "schedule": schedule}
    training, pruner, lines = pruned(epochs=5, **keys)
    assert [line["trigger/epochs"] for line in lines] == [1, 2, 3]
    assert [line["trigger/fired"] for line in lines] == [False] * 3  # r + 5 epochs have not passed
    assert all(sum(line["epi/structure_0.5"]) == 24 for line in lines)  # of 8 + 16 + 24
    assert ["epi/removed_0.5" in line for line in lines] == [False, True, True]
    assert pruner.started == 3 * STEPS + 4
    hashes = [record["prune/hash"] for record in training.records]
    assert len(set(hashes)) == 3
    assert training.widths()[:-1] == [n["kept"] for n in pruner.last["prune/layers"].values()]
    assert sum(training.widths()[:-1]) == 24


NEVER = {"trigger": {"name": "drift", "threshold": 1e-9}, "latest": "100%"}


def test_what_training_owes_at_its_end_comes_within_an_epoch_too():
    """A trigger is asked at ends of epochs, and training may end between two."""
    training = Training(epochs=3)
    training.total_steps += 5
    pruner = Pruner(recipe(sparsity=0.5, schedule=NEVER), training)
    training.run(pruner)
    assert (pruner.started, pruner.done) == (35, 1)


def test_rounds_that_the_end_of_an_epoch_would_put_off_too_far_are_refused():
    """Asked at step 30 where 21 is the latest: the last of four rounds would be at 48."""
    late = NEVER | {"latest": "21it", "rounds": 4, "every": "6it"}
    with pytest.raises(ValueError, match="last round would be at step 48 and training ends at 40"):
        Pruner(recipe(sparsity=0.5, schedule=late), Training())
    Pruner(recipe(sparsity=0.5, schedule=late | {"latest": "20it"}), Training())


def test_masks_last_while_rounds_last_and_removal_comes_with_the_last_round():
    training = Training()
    schedule = {"start": "1ep", "wait": "1it", "rounds": 3, "every": "2it"}
    keys = CHANNEL | AVERAGED | {"application": "mask_then_surgery", "schedule": schedule}
    pruner = Pruner(recipe(**keys), training)
    seen = []
    while not pruner.over:
        training.run(pruner, until=training.work + 1)
        seen.append((training.work, len(training.records), training.widths()[:-1]))
    widths = {rounds: w for _, rounds, w in seen}
    assert widths[0] == widths[1] == widths[2] == [8, 16, 24]
    assert sum(widths[3]) == 24
    removed = [record["prune/asked"] for record in training.records]
    assert removed == pytest.approx([1 - 0.5 ** (i / 3) for i in (1, 2, 3)])
    kept = [sum(n["kept"] for n in r["prune/layers"].values()) for r in training.records]
    assert kept == [int(48 * 0.5 ** (i / 3) + 1e-9) for i in (1, 2, 3)]


def test_a_trigger_that_never_fires_shows_in_the_summary():
    schedule = {"trigger": {"name": "drift", "threshold": 1e-9}}
    _, pruner, _ = pruned(epochs=3, **CHANNEL, schedule=schedule)
    assert pruner.summary() == {"prune/rounds_done": 0, "prune/rounds": 1}


@pytest.mark.parametrize("name", TRIGGERS)
def test_every_trigger_goes_on_from_a_checkpoint_as_without_one(name: str):
    """All that it remembers is in `remembered` or in `tensors`, as plain values and tensors."""
    schedule = {"trigger": name, "start": "4ep", "latest": "100%"}  # so that all epochs are seen
    config = recipe(sparsity=0.5, schedule=schedule)

    def told(*stops: int) -> tuple[int | None, list[dict]]:
        training, lines = Training(epochs=5), []
        pruner = Pruner(config, training)
        for until in (*stops, 5 * STEPS + 1):
            pruner.tell = lines.append
            training.run(pruner, until=until)
            stored = pruner.state_dict()
            stored["values"] = json.loads(json.dumps(stored["values"]))
            pruner = Pruner(config, training)
            pruner.load_state_dict(stored, training)
        return pruner.started, lines

    whole = told()
    assert whole[1]
    assert told(25) == whole


def test_a_trigger_sees_the_training_and_not_the_network_alone(monkeypatch):
    """Such as the loss of a fixed part of the training images."""

    class Loss(Trigger):
        remembered = ("losses",)

        def __init__(self, removed: float, granularity: str) -> None:
            super().__init__()
            self.losses: list[float] = []

        def observe(self, epochs: int, state: State, would_keep: WouldKeep) -> dict[str, float]:
            inputs, targets = next(iter(state.subset(0.1, 32, stream="loss")))
            loss = state.reduce(state.task.loss(state.model(inputs), targets).detach())
            self.losses.append(float(loss))
            self.fired = loss < 0.1
            return {"loss": self.losses[-1]}

    monkeypatch.setitem(TRIGGERS, "random_epoch", Loss)
    _, pruner, lines = pruned(**CHANNEL, schedule={"trigger": "random_epoch", "latest": "100%"})
    losses = [line["loss"] for line in lines]
    assert losses[0] > 1 > 0.1 > losses[-1]
    assert pruner.started == STEPS * lines[-1]["trigger/epochs"] < 8 * STEPS


def test_a_random_epoch_follows_from_the_seed_of_the_run():
    def epoch(of_run: int, **options) -> int:
        training = Training(epochs=30)
        training.seed = of_run
        trigger = {"name": "random_epoch", "last": 30, **options}
        built = Pruner(recipe(sparsity=0.5, schedule={"trigger": trigger}), training)
        return built.trigger.epoch

    assert epoch(3) == epoch(3)
    assert len({epoch(seed) for seed in range(40)}) > 15
    assert epoch(3, seed=5) == epoch(4, seed=5)


class Averaging(Training):
    """A training whose average follows the weights, as `training.ema` does."""

    def step(self, pruner: Pruner) -> None:
        super().step(pruner)
        assert self.ema is not None
        with torch.no_grad():
            for average, weight in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.lerp_(weight, 0.01)
        pruner.hold_average(self)


@pytest.mark.parametrize("keys", [{"sparsity": 0.9}, CHANNEL], ids=["weights", "channels"])
def test_an_average_that_went_back_is_pruned_as_the_network_is(keys: dict):
    training = Averaging(epochs=2, averages=True)
    pruner = Pruner(recipe(**keys, schedule={"start": "1ep"}, rewind="3it"), training)
    training.run(pruner)
    assert training.ema is not None
    averages = dict(training.ema.named_parameters())
    assert pruner.method.masks
    for name, mask in pruner.method.masks.items():
        assert not averages[name].detach()[~mask].any(), name


@pytest.mark.parametrize("name", ["sgd", "lookahead_sgd"])
def test_an_optimizer_that_went_back_has_no_past(name: str):
    """timm's Lookahead keeps momenta and slow weights in the optimizer that it leads."""

    class Led(Training):
        def new_optimizer(self) -> torch.optim.Optimizer:
            return create_optimizer_v2(self.model, opt=name, lr=0.05, momentum=0.9)

    training = Led(epochs=2)
    pruner = Pruner(recipe(sparsity=0.5, schedule={"start": "1ep"}, rewind="3it"), training)
    training.run(pruner, until=STEPS)
    inner = getattr(training.optimizer, "_base_optimizer", training.optimizer)
    assert inner.state
    assert pruner.due(training)
    pruner.prune(training)
    assert not inner.state
    training.run(pruner, until=STEPS + 8)  # Lookahead takes its slow weights every sixth step
    for parameter_name, mask in pruner.method.masks.items():
        parameter = dict(training.model.named_parameters())[parameter_name]
        for value in inner.state[parameter].values():
            if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                assert not value[~mask].any()


def test_rewinding_after_the_last_round_keeps_the_weights_and_restarts_the_schedule():
    training = Training(epochs=2)
    schedule = {"start": "100%", "rounds": 3, "curve": "halving"}
    back = {"to": "0it", "weights": False, "after": "last"}
    config = recipe(sparsity=0.8, schedule=schedule, rewind=back)
    pruner = Pruner(config, training)
    training.run(pruner, until=2 * STEPS)
    assert pruner.due(training)
    before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    record = pruner.prune(training)
    assert record["prune/rounds_done"] == 3
    assert training.position == 0
    for name, parameter in training.model.named_parameters():
        mask = pruner.method.masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter.detach(), before[name] * mask)
    training.run(pruner)
    assert (training.position, training.work) == (2 * STEPS, 4 * STEPS)
    assert [line[-11:] for line in plan_events(config, STEPS, 2 * STEPS)] == ["back to 0it"]
    assert steps_repeated(config, STEPS, 2 * STEPS) == 2 * STEPS


def test_every_ltr_round_starts_from_bit_identical_weights():
    training = Training(epochs=2)
    keys = {"sparsity": 0.9, "schedule": {"start": "1ep", "rounds": 3, "curve": "halving"}}
    config = recipe(**keys, rewind="3it")
    pruner = Pruner(config, training)
    training.run(pruner, until=3)
    early = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    for number in range(3):
        training.run(pruner, until=STEPS + 7 * number)
        training.records.append(pruner.prune(training))
        assert training.position == 3
        for name, parameter in training.model.named_parameters():
            mask = pruner.method.masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
            assert torch.equal(parameter.detach(), early[name] * mask)
    training.run(pruner)
    assert training.work == 2 * STEPS + 3 * 7
    assert steps_repeated(config, STEPS, 2 * STEPS) == 3 * 7
    request = [record["prune/asked"] for record in training.records]
    assert request == pytest.approx([0.5, 0.7, 0.9])


def test_the_structural_ticket_has_the_weights_of_the_start():
    training = Training(epochs=3)
    first = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    keys = CHANNEL | {"application": "mask_then_surgery", "schedule": {"start": "1ep"}}
    pruner = Pruner(recipe(**keys, rewind={"to": "0it", "after": "last"}), training)
    training.run(pruner, until=STEPS)
    assert pruner.due(training)
    pruner.prune(training)
    assert training.position == 0
    assert training.widths()[:-1] != [8, 16, 24]
    for name, tensor in pruner.method.fitted(first).items():
        assert torch.equal(training.model.get_parameter(name), tensor)


def test_rates_rest_until_pruning_is_over(run_recipe, monkeypatch):
    rates: list[tuple[int, float, bool]] = []
    step = loop.train_step

    def noted(run, batch):
        position = run.position
        step(run, batch)
        rates.append((position, run.optimizer.param_groups[0]["lr"], run.pruner.over))

    monkeypatch.setattr(loop, "train_step", noted)
    settings = (
        *TINY,
        "training.lr_schedule={curve: one_cycle, cycle_momentum: [0.85, 0.95], after_pruning: on}",
        "pruning={criterion: magnitude, sparsity: 50%, schedule: {start: 7it},"
        " rewind: {to: 0it, weights: false, after: last}}",
    )
    _, folder = run_recipe(DIGITS, *settings)
    built, _ = load(ROOT / DIGITS, list(settings))
    config = built.training.lr_schedule
    for position, rate, over in rates:
        curve = factor(config, position, total=18, steps_per_epoch=2)
        assert rate == pytest.approx(0.1 * (curve if over else 1))
    assert [position for position, _, _ in rates] == [*range(7), *range(18)]
    assert json.loads((folder / "summary.json").read_text())["run/steps"] == 25


# ── ticks ────────────────────────────────────────────────────────────────────────────────────────
TICKS = (
    CHANNEL
    | AVERAGED
    | {
        "tick": "3it",
        "schedule": {"start": "5it", "rounds": 2, "every": "8it", "curve": "linear"},
    }
)


def test_ticks_train_gates_only_and_score_their_own_steps():
    training = Training(epochs=2)
    pruner = Pruner(recipe(**TICKS), training)
    gates = {id(p) for m in training.model if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    moved, counted = [], []
    for _ in range(5):
        before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
        training.run(pruner, until=training.work + 1)
        now = dict(training.model.named_parameters())
        moved.append({id(p) in gates for n, p in now.items() if not torch.equal(before[n], p)})
        counted.append(float(pruner.method.accumulator.tensors["steps"]))
    assert moved == [{True, False}] * 2 + [{True}] * 3
    assert counted == [0, 0, 1, 2, 3]
    training.run(pruner)
    assert [r["prune/asked"] for r in training.records] == [0.25, 0.5]
    assert training.records[-1]["prune/skipped_steps"] == 0


def test_ticks_need_room_and_averages():
    for keys in ({"tick": "6it"}, {"tick": "0it"}):
        with pytest.raises(ValueError, match="shorten tick"):
            Pruner(recipe(**TICKS | keys), Training())
    with pytest.raises(ValueError, match="set accumulate: true"):
        recipe(**TICKS | {"accumulate": False})
    with pytest.raises(ValueError, match="write start, and no trigger"):
        recipe(**TICKS | {"schedule": {"trigger": "epi"}})


def test_skipped_steps_are_counted_through_surgery_and_in_the_record():
    training = Training(epochs=3)
    keys = CHANNEL | AVERAGED | {"application": "surgery"}
    schedule = {"start": "5it", "rounds": 2, "every": "5it"}
    pruner = Pruner(recipe(**keys, schedule=schedule), training)
    training.run(pruner, until=3)
    for parameter in training.model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    pruner.observe(training)
    training.optimizer.zero_grad()
    training.run(pruner)
    assert [r["prune/skipped_steps"] for r in training.records] == [1, 1]


def test_watching_leaves_the_network_as_it_was():
    training = Training()
    before = {n: t.clone() for n, t in training.model.state_dict().items()}
    keys = CHANNEL | AVERAGED | {"schedule": {"start": "1ep"}}
    pruner = Pruner(recipe(**keys), training)
    pruner.load_state_dict(pruner.state_dict(), training)
    assert all(torch.equal(t, before[n]) for n, t in training.model.state_dict().items())
    assert training.model.training


# ── EarlyCroP's metrics ──────────────────────────────────────────────────────────────────────────
COSTS = {
    "cost/timed_steps": 3,
    "cost/evaluation_batches": 2,
    "cost/train_seconds": 0.4,
    "cost/evaluate_seconds": 0.1,
    "cost/memory_allocated_bytes": None,
}


@pytest.mark.parametrize(
    ("name", "classes", "printed"),
    [
        ("earlycrop_resnet18", 10, 397.8),
        ("earlycrop_vgg16", 10, 1723),
        ("earlycrop_resnet18", 20_000, 571.8),
    ],
)
def test_disk_of_dense_networks_is_the_published_one(name: str, classes: int, printed: float):
    with torch.device("meta"):
        model = models.build(name, num_classes=classes)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    result = earlycrop(COSTS, model, model)
    assert result["earlycrop/disk_megabits"] == pytest.approx(printed, rel=2e-4)


def test_metrics_count_as_the_published_code():
    masked, shrunk = Training(), Training()
    dense = network()
    for training, application in ((masked, "mask"), (shrunk, "surgery")):
        Pruner(recipe(**CHANNEL | {"application": application}), training).prune(training)
    of_mask, of_small = (earlycrop(COSTS, t.model, dense) for t in (masked, shrunk))
    weights = [p for n, p in shrunk.model.named_parameters() if "weight" in n]
    left = sum(p.numel() for p in weights)
    everything = 8 * 9 + 8 + 16 * 8 * 9 + 16 + 24 * 64 + 4 * 24  # BatchNorm scales too
    assert of_small["earlycrop/weight_sparsity"] == 1 - left / everything
    assert of_mask["earlycrop/weight_sparsity"] == pytest.approx(1 - left / everything)
    assert of_small["earlycrop/node_sparsity"] == 0.5  # of 8 + 16 + 24
    assert of_mask["earlycrop/node_sparsity"] == 0
    assert of_mask["earlycrop/disk_megabits"] > of_small["earlycrop/disk_megabits"]
    assert of_small["throughput/earlycrop_batch_milliseconds"] == pytest.approx(100)
    assert of_small["cost/earlycrop_memory_allocated_bytes"] is None
    stored = sum(t.numel() * t.element_size() for t in shrunk.model.state_dict().values())
    assert of_small["model/stored_bytes"] == stored < 4 * everything
