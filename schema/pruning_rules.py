"""Rules across the parts of a `pruning:` section: each a condition and a sentence."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from schema.duration import Duration

# schema.pruning imports this file, so it can be imported here for types alone
if TYPE_CHECKING:
    from schema.pruning import PruningConfig

NONE = Duration(0, "it")
SIZES = ("channels", "nodes", "params", "macs", "activation_bytes", "latency")


class Rule(NamedTuple):
    """A condition on section p, and what to say where it holds; {p.scope} stands for p's scope."""

    broken: Callable[["PruningConfig"], bool]
    sentence: str


def check_rules(p: "PruningConfig") -> None:
    """Refuse a section whose parts do not go together.

    Raises:
        ValueError: the sentence of the first rule that is broken.
    """
    for rule in RULES:
        if rule.broken(p):
            raise ValueError(rule.sentence.format(p=p))


def _weights(p: "PruningConfig") -> bool:
    return p.granularity == "weight"


def _channels(p: "PruningConfig") -> bool:
    return p.granularity == "channel"


def _accumulates(p: "PruningConfig") -> bool:
    return _channels(p) and p.criterion.traits.get("accumulates") is not None


def _regrows_by_score(p: "PruningConfig") -> bool:
    return p.regrow is not None and p.regrow.name == "score"


def _regrows_at_one_sparsity(p: "PruningConfig") -> bool:
    return p.regrow is not None and p.regrow.name != "score" and p.schedule.rounds > 1


def _replaces_means(p: "PruningConfig") -> bool:
    return p.compensation.name == "mean_replacement"


def _penalises_units(p: "PruningConfig") -> bool:
    return p.penalty is not None and p.penalty.name in ("group_lasso", "growing_group_norm")


def _bep(p: "PruningConfig") -> bool:
    return p.selection.name == "bep"


def _watches_structure(p: "PruningConfig") -> bool:
    return p.schedule.trigger is not None and p.schedule.trigger.name in ("epi", "mask_distance")


def _watches_ratios(p: "PruningConfig") -> bool:
    return p.schedule.trigger is not None and not p.schedule.trigger.options.keys().isdisjoint(
        ("ratio", "ratios")
    )


RULES = [
    Rule(
        lambda p: _weights(p) and p.criterion.traits.get("per") == "channel",
        "{p.criterion.name} scores channels, not single weights; set granularity: channel, or"
        " choose another criterion",
    ),
    Rule(
        lambda p: _weights(p) and p.application != "mask",
        "application: {p.application} removes whole channels; set granularity: channel",
    ),
    Rule(
        lambda p: _weights(p) and p.amount is not None and p.amount[0] in SIZES,
        "{p.amount[0]} counts channels; set granularity: channel, or write sparsity",
    ),
    Rule(
        lambda p: _channels(p) and p.amount is not None and p.amount[0] == "sparsity",
        "sparsity counts single weights; write channels, params or macs",
    ),
    Rule(
        lambda p: _channels(p) and p.scope == "erk",
        "scope: erk shares out single weights; write global or layer",
    ),
    Rule(
        lambda p: _weights(p) and p.round_to > 1,
        "round_to counts channels; set granularity: channel",
    ),
    Rule(
        lambda p: _weights(p) and p.importance != type(p.importance)(),
        "importance is for channels; set granularity: channel",
    ),
    Rule(
        lambda p: _channels(p) and p.regrow is not None,
        "regrow returns single weights; set granularity: weight",
    ),
    Rule(
        lambda p: _channels(p) and p.floor == 0,
        "a layer of no channels computes nothing; write a floor above 0 (0.001 leaves one)",
    ),
    Rule(
        lambda p: _regrows_by_score(p) and p.schedule.every != NONE,
        "regrow: score returns weights as they were at the start; set schedule.every: 0it",
    ),
    Rule(
        lambda p: _regrows_by_score(p) and p.criterion.name != "snip",
        "regrow: score judges the weights as they were; set criterion: snip",
    ),
    Rule(
        lambda p: p.accumulate and not _accumulates(p),
        "accumulate is for scores of channels by {p.criterion.accumulating}",
    ),
    Rule(
        lambda p: p.tick is not None and not p.accumulate,
        "a tick is there to be scored; set accumulate: true",
    ),
    Rule(
        lambda p: p.tick is not None and p.schedule.trigger is not None,
        "a tick ends with a round whose step is known; write start, and no trigger",
    ),
    Rule(
        lambda p: _regrows_at_one_sparsity(p) and p.schedule.curve != "constant",
        "regrow moves weights at one sparsity; set schedule.curve: constant",
    ),
    Rule(
        lambda p: _weights(p) and _penalises_units(p),
        "penalty: {p.penalty.name} is over channels; set granularity: channel",
    ),
    Rule(
        lambda p: _replaces_means(p) and p.rewind is not None,
        "rewind would undo mean_replacement; write one of the two",
    ),
    Rule(
        lambda p: _replaces_means(p) and _weights(p),
        "mean_replacement replaces channels; set granularity: channel",
    ),
    Rule(
        lambda p: _weights(p) and p.selection.name != "top_k",
        "selection: {p.selection.name} looks at channels; set granularity: channel",
    ),
    Rule(
        lambda p: _bep(p) and p.scope != "layer",
        "selection: bep shares the amount out by layers; set scope: layer",
    ),
    Rule(
        lambda p: _bep(p) and p.schedule.curve != "constant",
        "selection: bep ends at the whole amount; set schedule.curve: constant",
    ),
    Rule(
        lambda p: _bep(p) and (p.accumulate or p.importance.per is not None),
        "selection: bep goes by what it measures itself; remove accumulate and importance.per",
    ),
    Rule(
        lambda p: p.schedule.initial and not _bep(p),
        "schedule.initial is the permissive cut of selection: bep; remove it",
    ),
    Rule(
        lambda p: p.selection.name == "eagle_eye" and p.scope != "global",
        "selection: eagle_eye draws the share of each layer; set scope: global",
    ),
    Rule(
        lambda p: p.selection.name == "knapsack" and p.scope != "global",
        "selection: knapsack shares the amount out among layers; set scope: global",
    ),
    Rule(
        lambda p: p.selection.name == "knapsack" and p.importance.per is not None,
        "selection: knapsack weighs scores against costs itself; remove importance.per",
    ),
    Rule(
        lambda p: (
            _watches_structure(p) and p.selection.name not in ("top_k", "threshold", "knapsack")
        ),
        "schedule.trigger: {p.schedule.trigger.name} asks after every epoch what would stay, and"
        " selection: {p.selection.name} answers once, by a search or from forecasts of its own;"
        " set selection: top_k, or remove trigger and write schedule.start",
    ),
    Rule(
        lambda p: _watches_structure(p) and p.regrow is not None and p.regrow.name != "score",
        "schedule.trigger: {p.schedule.trigger.name} waits for a settled mask, and the first mask"
        " of regrow: {p.regrow.name} is drawn at random; remove trigger and write schedule.start",
    ),
    Rule(
        lambda p: _watches_ratios(p) and p.amount is None,
        "schedule.trigger: ratio and ratios are fractions of an amount, and selection:"
        " {p.selection.name} has none; remove them",
    ),
]
