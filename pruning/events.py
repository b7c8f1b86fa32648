"""A pruning as plain data for the log: the amount asked for, and the amount removed."""

from itertools import groupby
from typing import Any

from prunezoo.pruning.errors import NoEffect
from prunezoo.pruning.schedule.schedule import Schedule
from prunezoo.pruning.selection.selections import SELECTIONS
from prunezoo.schema.pruning import PruningConfig

Record = dict[str, Any]


def record(target: Record, outcome: Record) -> Record:
    """The event as flat, JSON-ready values, with the denominator in each name.

    prune/weight_sparsity_of_layer_weights: removed / dense, over weights of convolutions and linear
    layers. prune/node_sparsity_of_prunable_units: removed / dense, over the units that may go.
    prune/compression_ratio: dense / kept parameters of the whole network, masked ones not kept.
    prune/skipped_steps: training steps whose gradients were not finite and are in no average.
    prune/compression_error: (r − r_e) / r of the ratio asked for (thesis, eq. 4.2): positive where
    too little went.
    """
    event = {f"prune/{key}": value for key, value in (target | outcome).items()}
    ratio = outcome["params_dense"] / max(1, outcome["params_kept"])  # 0 where masks leave nothing
    event["prune/compression_ratio"] = ratio
    if target.get("compression_ratio_asked"):
        wanted = target["compression_ratio_asked"]
        event["prune/compression_error"] = (wanted - ratio) / wanted
    return event


def target_of(config: PruningConfig, removed: float) -> Record:
    """The amount removed by the last round, and the recipe's compression ratio, if it has one."""
    name, value = config.amount or ("", 0.0)
    ratio = value if name == "compression_ratio" else None
    return {"asked": removed if name else None, "compression_ratio_asked": ratio}


def check_effect(config: PruningConfig, removed: float, event: Record) -> None:
    """Refuse a last event after which the network is as large as the dense one.

    Raises:
        NoEffect: something was to go, and the cut is one that removes what it is asked to.
    """
    wanted = config.cut == "exact" and (config.amount is None or removed > 0)
    if wanted and event["prune/compression_ratio"] == 1:
        raise NoEffect(
            "all rounds are over and nothing was removed: the amount is less than one unit, or"
            " no score was below the threshold; ask for more, or raise the threshold"
        )


SHOWN = 8  # points of training that a dry run lists


def plan_events(config: PruningConfig, steps_per_epoch: int, total_steps: int) -> list[str]:
    """A line for every point of training at which rounds are due, for a dry run.

    Of more than SHOWN points the first ones and the last are listed.
    """
    schedule = Schedule.of(config.schedule, steps_per_epoch, total_steps)
    steps = schedule.steps()
    # rounds that rewind are visits of their own, though they are due at the same step
    visits = groupby(range(schedule.rounds), lambda n: (steps[n], config.rewinds_each and n))
    groups = [list(numbers) for _, numbers in visits]
    shown = groups if len(groups) <= SHOWN else [*groups[: SHOWN - 1], groups[-1]]
    lines = [
        _planned(config, schedule, rounds, steps[rounds[-1]], steps_per_epoch) for rounds in shown
    ]
    if len(groups) > SHOWN:
        lines.insert(-1, f"… {len(groups) - SHOWN} more …")
    return lines


def steps_repeated(config: PruningConfig, steps_per_epoch: int, total_steps: int) -> int | None:
    """Steps that are trained again after rewinds; None where a trigger decides how many."""
    back = config.rewind
    if back is None or not back.schedule:
        return 0
    if config.schedule.trigger is not None:
        return None
    steps = Schedule.of(config.schedule, steps_per_epoch, total_steps).steps()
    to = back.to.steps(steps_per_epoch, total_steps)
    return sum(step - to for step in (steps if config.rewinds_each else steps[-1:]))


def _planned(
    config: PruningConfig, schedule: Schedule, rounds: list[int], at: int, steps_per_epoch: int
) -> str:
    """Description of the rounds that are due at a step."""
    last, ends = rounds[-1], rounds[-1] == schedule.rounds - 1
    where = f"step {at} (epoch {at / steps_per_epoch:g})"
    if config.schedule.trigger is not None:
        after = at - schedule.start + schedule.wait
        where = f"{after} steps after {config.schedule.trigger.name} fires"
    numbers = f"{rounds[0] + 1}" + (f"–{last + 1}" if len(rounds) > 1 else "")
    name, _ = config.amount or ("", 0.0)
    part = f"{100 * schedule.sparsity(config.removed, last):.4f}".rstrip("0").rstrip(".")
    removed = f"{part}% of {name}" if name else "by score"
    if not ends:
        removed = SELECTIONS[config.selection.name].midway.format(removed)
    goes = ends or config.rewinds_each
    back = f", then back to {config.rewind.to}" if config.rewind and goes else ""
    lifted = f", masks lifted {schedule.dense} steps before" if schedule.dense and last else ""
    return f"{where}: round {numbers} of {schedule.rounds}, {removed} removed{lifted}{back}"
