import pytest
import torch
from torch.optim import SGD, Adam, lr_scheduler

from prunezoo.schema.duration import Duration
from prunezoo.schema.training import LrScheduleConfig
from prunezoo.training.lr import factor, momentum

EPOCH, TOTAL = 10, 100


def ours(config: LrScheduleConfig, steps: int = TOTAL) -> list[float]:
    return [factor(config, p, total=TOTAL, steps_per_epoch=EPOCH) for p in range(steps)]


def theirs(make, every: int = 1) -> list[float]:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    values = []
    for step in range(TOTAL):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return values


@pytest.mark.parametrize(
    ("config", "make", "every"),
    [
        ({"curve": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL), 1),
        (
            {"curve": "cosine", "per": "epoch"},
            lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
            EPOCH,
        ),
        (
            {"curve": "exponential", "gamma": 0.985},
            lambda o: lr_scheduler.ExponentialLR(o, 0.985),
            EPOCH,
        ),
        (
            {"curve": "step", "milestones": ["3ep", "75%"]},
            lambda o: lr_scheduler.MultiStepLR(o, [30, 75]),
            1,
        ),
        (
            {"curve": "one_cycle"},
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=TOTAL + 1),
            1,
        ),
        ({"curve": "linear"}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, TOTAL), 1),
    ],
)
def test_equals_torch(config, make, every):
    total = TOTAL + 1 if config["curve"] == "one_cycle" else TOTAL
    values = [
        factor(LrScheduleConfig(**config), p, total=total, steps_per_epoch=EPOCH)
        for p in range(TOTAL)
    ]
    assert values == pytest.approx(theirs(make, every), abs=1e-12)


def test_one_cycle_momentum_equals_torch():
    config = LrScheduleConfig(curve="one_cycle", cycle_momentum=(0.85, 0.95))
    optimizer = Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=TOTAL)
    for position in range(TOTAL - 1):
        expected = optimizer.param_groups[0]["betas"][0]
        assert momentum(config, position, total=TOTAL) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_warmup_is_linear_and_ends_at_the_base():
    values = ours(LrScheduleConfig(curve="constant", warmup=Duration.parse("2ep")))
    assert values[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert set(values[20:]) == {1.0}


def test_epochs_and_milestones_count_from_the_start_of_training():
    falls = [1 / 8] * 10 + [1 / 16] * 10  # of epochs 3 and 4, after two of warm-up and one more
    steps = {"curve": "step", "milestones": ["1ep", "2ep", "3ep", "4ep"]}
    for curve in ({"curve": "exponential"}, steps):
        config = LrScheduleConfig(**curve, gamma=0.5, warmup=Duration.parse("2ep"))
        assert ours(config)[30:50] == pytest.approx(falls)


def test_warmup_per_epoch_rises_as_the_papers_write_it():
    config = LrScheduleConfig(curve="cosine", per="epoch", warmup=Duration.parse("4ep"))
    assert ours(config)[:40:10] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("warmup", "rises"),
    [("5it", [1.0]), ("4%", [1.0]), ("2.5ep", [0.4, 0.8, 1.0]), ("20it", [0.5, 1.0])],
)
def test_warmup_per_epoch_may_end_inside_an_epoch(warmup, rises):
    config = LrScheduleConfig(curve="linear", per="epoch", warmup=Duration.parse(warmup))
    values, warm = ours(config), config.warmup.steps(EPOCH, TOTAL)
    falls = [1 - (p - warm) / (TOTAL - warm) for p in range(len(rises) * EPOCH, TOTAL, EPOCH)]
    expected = [value for value in (*rises, *falls) for _ in range(EPOCH)]
    assert values == pytest.approx(expected)
