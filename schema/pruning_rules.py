"""Rules across the parts of a `pruning:` section: each a condition and a sentence."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from prunezoo.schema.duration import Duration

# schema.pruning imports this file, so it can be imported here for types alone
if TYPE_CHECKING:
    from prunezoo.schema.pruning import PruningConfig

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


def _moves_the_mask(p: "PruningConfig") -> bool:
    return p.regrow is not None and p.regrow.name != "score"


def _begins_at_random(p: "PruningConfig") -> bool:
    if p.regrow is None or p.regrow.name == "score":
        return False
    return p.regrow.options.get("first_mask", "random") == "random"


def _first_is_too_much(p: "PruningConfig") -> bool:
    return p.schedule.first is not None and p.schedule.first >= p.removed


def _rounds_at_once(p: "PruningConfig") -> bool:
    return p.schedule.every == NONE and p.schedule.end is None


def _several_rounds(p: "PruningConfig") -> bool:
    return p.schedule.rounds > 1 or p.schedule.every != NONE


def _lifts(p: "PruningConfig") -> bool:
    return p.schedule.dense != NONE


def _n_of_m(p: "PruningConfig") -> bool:
    return ":" in p.scope


def _soft(p: "PruningConfig") -> bool:
    return p.application == "soft"


def _straight_through(p: "PruningConfig") -> bool:
    return p.application == "straight_through"


def _replaces_means(p: "PruningConfig") -> bool:
    return p.compensation.name == "mean_replacement"


def _adjusts_weights(p: "PruningConfig") -> bool:
    return p.compensation.name in ("mean_replacement", "least_squares", "woodfisher")


def _penalises_units(p: "PruningConfig") -> bool:
    return p.penalty is not None and p.penalty.name in ("group_lasso", "growing_group_norm")


def _normalises(p: "PruningConfig") -> bool:
    return p.importance.normalise != "none"


def _bep(p: "PruningConfig") -> bool:
    return p.selection.name == "bep"


def _watches_structure(p: "PruningConfig") -> bool:
    return p.schedule.trigger is not None and p.schedule.trigger.name in ("epi", "mask_distance")


def _watches_ratios(p: "PruningConfig") -> bool:
    return p.schedule.trigger is not None and not p.schedule.trigger.options.keys().isdisjoint(
        ("ratio", "ratios")
    )


def _sanity(p: "PruningConfig", *names: str) -> bool:
    return p.sanity is not None and p.sanity.name in names


def _moves_masks(p: "PruningConfig") -> bool:
    return _straight_through(p) or _soft(p) or _lifts(p) or p.amenable_channels is not None


def _two_sided(p: "PruningConfig") -> bool:
    return p.cut == "two_sided"


def _spread(p: "PruningConfig") -> bool:
    """True if rounds are due at several steps."""
    many = p.schedule.rounds > 1 and p.schedule.every != NONE
    return many or p.schedule.end is not None


def _counts_units(p: "PruningConfig") -> bool:
    return p.amount is None or p.amount[0] in ("sparsity", "compression_ratio", "channels")


RULES = [
    Rule(
        lambda p: _weights(p) and p.criterion.traits.get("per") == "channel",
        "{p.criterion.name} scores channels, not single weights; set granularity: channel, or"
        " choose another criterion",
    ),
    Rule(
        lambda p: _weights(p) and "surgery" in p.application and p.amenable_channels is None,
        "application: {p.application} removes whole channels; set granularity: channel",
    ),
    Rule(
        lambda p: _weights(p) and p.amount is not None and p.amount[0] in SIZES,
        "{p.amount[0]} counts channels; set granularity: channel, or write sparsity",
    ),
    Rule(
        lambda p: _channels(p) and p.sparsity is not None,
        "sparsity counts single weights; write channels, params or macs",
    ),
    Rule(
        lambda p: _channels(p) and p.scope in ("erk", "smart_ratios"),
        "scope: {p.scope} shares out single weights; write global or layer",
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
        lambda p: _normalises(p) and p.scope == "layer",
        "scope: layer ranks inside each layer, where importance.normalise changes nothing; remove"
        " one of the two",
    ),
    Rule(
        lambda p: _normalises(p) and p.selection.name in ("eagle_eye", "prune_from_scratch"),
        "selection: {p.selection.name} shares the amount out among layers itself; remove"
        " importance.normalise",
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
        lambda p: _regrows_by_score(p) and not _rounds_at_once(p),
        "regrow: score returns weights as they were at the start; set schedule.every: 0it, and no"
        " end",
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
        lambda p: (
            _begins_at_random(p)
            and _several_rounds(p)
            and p.schedule.curve != "constant"
            and p.schedule.first is None
        ),
        "regrow: {p.regrow.name} begins with a random mask of the first round's size; set"
        " schedule.curve: constant, schedule.first, or regrow.first_mask: score",
    ),
    Rule(
        lambda p: _weights(p) and _penalises_units(p),
        "penalty: {p.penalty.name} is over channels; set granularity: channel",
    ),
    Rule(
        lambda p: _adjusts_weights(p) and p.rewind is not None and p.rewind.weights,
        "rewind would undo {p.compensation.name}; write one of the two, or rewind.weights: false",
    ),
    Rule(
        lambda p: (
            p.compensation.name == "bn_recalibrate"
            and p.rewind is not None
            and p.rewind.weights
            and (p.rewinds_each or not _several_rounds(p))
        ),
        "rewind would undo bn_recalibrate; write one of the two, or rewind.weights: false",
    ),
    Rule(
        lambda p: _replaces_means(p) and _weights(p),
        "mean_replacement replaces channels; set granularity: channel",
    ),
    Rule(
        lambda p: _channels(p) and p.compensation.name == "woodfisher",
        "compensation: woodfisher adjusts single weights; set granularity: weight, or compensation:"
        " least_squares",
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
        lambda p: p.schedule.initial and p.schedule.trigger is not None,
        "schedule.initial keeps what the steps up to the first decision may cost, and a trigger"
        " leaves their number open; remove trigger and write schedule.start",
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
        lambda p: _watches_structure(p) and _moves_the_mask(p),
        "schedule.trigger: {p.schedule.trigger.name} waits for a settled mask, and the first mask"
        " of regrow: {p.regrow.name} is drawn at random; remove trigger and write schedule.start",
    ),
    Rule(
        lambda p: _watches_ratios(p) and p.amount is None,
        "schedule.trigger: ratio and ratios are fractions of an amount, and selection:"
        " {p.selection.name} has none; remove them",
    ),
    Rule(
        lambda p: (
            p.compensation.name == "reinitialise" and p.rewind is not None and p.rewind.weights
        ),
        "rewind would undo reinitialise; set rewind.weights: false, or remove one of the two",
    ),
    Rule(
        lambda p: _bep(p) and p.sanity is not None,
        "selection: bep goes on forecasting the units that it kept; remove sanity, or set"
        " selection: top_k",
    ),
    Rule(
        lambda p: _sanity(p, "invert") and p.selection.name != "top_k",
        "sanity: invert turns a ranking round, which selection: {p.selection.name} does not go by;"
        " set selection: top_k",
    ),
    Rule(
        lambda p: p.sanity is not None and _moves_the_mask(p),
        "regrow: {p.regrow.name} moves the mask throughout training; remove sanity, or regrow",
    ),
    Rule(
        lambda p: (
            _sanity(p, "shuffle", "restructure") and _replaces_means(p) and p.schedule.rounds > 1
        ),
        "sanity: {p.sanity.name} could not take back what mean_replacement did in earlier rounds;"
        " set schedule.rounds: 1",
    ),
    Rule(
        lambda p: p.sanity is not None and _moves_masks(p),
        "sanity checks a mask that stays as it is; remove sanity, or what moves it"
        " (application: soft or straight_through, schedule.dense, amenable_channels)",
    ),
    Rule(
        lambda p: _sanity(p, "shuffle", "restructure") and _n_of_m(p),
        "sanity: {p.sanity.name} would break the pattern {p.scope}; write invert, or another scope",
    ),
    Rule(
        lambda p: _sanity(p, "restructure") and _spread(p),
        "sanity: restructure draws one structure, so that all rounds are due at one step; remove"
        " schedule.every and end",
    ),
    Rule(
        lambda p: _sanity(p, "restructure") and not _counts_units(p),
        "sanity: restructure keeps the number of units, not {p.amount[0]}; write channels",
    ),
    Rule(
        lambda p: _two_sided(p) and _channels(p),
        "cut: two_sided is a threshold on single weights; set granularity: weight",
    ),
    Rule(
        lambda p: _two_sided(p) and p.scope not in ("global", "layer"),
        "cut: two_sided shares nothing out by scope: {p.scope}; write global or layer",
    ),
    Rule(
        lambda p: _two_sided(p) and (p.schedule.rounds > 1 or p.schedule.end is not None),
        "cut: two_sided is made once; set schedule.rounds: 1 and remove end",
    ),
    Rule(
        lambda p: _two_sided(p) and (p.regrow is not None or bool(p.floor)),
        "cut: two_sided keeps what its threshold leaves; remove regrow and floor",
    ),
    Rule(
        lambda p: _channels(p) and _n_of_m(p),
        "scope: {p.scope} is a pattern of single weights; set granularity: weight",
    ),
    Rule(
        lambda p: _n_of_m(p) and p.floor is not None,
        "scope: {p.scope} says how many weights stay everywhere; remove floor",
    ),
    Rule(
        lambda p: _n_of_m(p) and p.regrow is not None,
        "regrow would break the pattern {p.scope}; remove it, or set application: straight_through",
    ),
    Rule(
        lambda p: (
            _n_of_m(p)
            and _several_rounds(p)
            and (p.schedule.curve != "constant" or p.schedule.first is not None)
        ),
        "scope: {p.scope} removes the same amount in every round; set schedule.curve: constant, and"
        " no schedule.first",
    ),
    Rule(
        lambda p: p.schedule.first is not None and (not _several_rounds(p) or _bep(p)),
        "schedule.first is where a curve over several rounds begins; write rounds or every, or"
        " remove it",
    ),
    Rule(
        _first_is_too_much,
        "schedule.first removes as much as all rounds together; write less",
    ),
    Rule(
        lambda p: _lifts(p) and _channels(p),
        "schedule.dense lifts masks from single weights; set granularity: weight",
    ),
    Rule(
        lambda p: _lifts(p) and p.schedule.every == NONE and p.schedule.end is None,
        "schedule.dense lies between rounds; write every, or rounds and end",
    ),
    Rule(
        lambda p: _lifts(p) and (p.regrow is not None or p.rewind is not None),
        "schedule.dense returns all weights before each round; remove regrow and rewind",
    ),
    Rule(
        lambda p: p.amenable_channels is not None and _channels(p),
        "amenable_channels go with their weights; set granularity: weight",
    ),
    Rule(
        lambda p: (
            p.amenable_channels is not None
            and (p.regrow is None or p.regrow.name != "global_gradient")
        ),
        "amenable_channels give their weights to other layers; set regrow: global_gradient",
    ),
    Rule(
        lambda p: p.amenable_channels is not None and not _several_rounds(p),
        "amenable_channels go round by round; write schedule.every and schedule.end, or rounds",
    ),
    Rule(
        lambda p: p.amenable_channels is not None and p.application == "surgery",
        "amenable_channels are cut out in the last round; set application: mask_then_surgery",
    ),
    Rule(
        lambda p: (
            p.amenable_channels is not None
            and (p.rewind is not None or p.compensation.name != "none")
        ),
        "amenable_channels leave nothing to go back to; remove rewind and compensation",
    ),
    Rule(
        lambda p: p.refine > 0 and not _straight_through(p),
        "refine pulls at weights that go on training; set application: straight_through",
    ),
    Rule(
        lambda p: _straight_through(p) and _channels(p),
        "application: straight_through masks single weights; set granularity: weight",
    ),
    Rule(
        lambda p: _straight_through(p) and p.criterion.name != "magnitude",
        "application: straight_through ranks the weights at every step; set criterion: magnitude",
    ),
    Rule(
        lambda p: _straight_through(p) and (p.regrow is not None or _lifts(p)),
        "application: straight_through returns weights by itself; remove regrow and schedule.dense",
    ),
    Rule(
        lambda p: _straight_through(p) and (p.rewind is not None or p.compensation.name != "none"),
        "application: straight_through leaves the weights as they are; remove rewind and"
        " compensation",
    ),
    Rule(
        lambda p: _soft(p) and _weights(p),
        "application: soft zeroes whole filters; set granularity: channel",
    ),
    Rule(
        lambda p: _soft(p) and not _spread(p),
        "application: soft lets filters return between rounds, and there is one point for them;"
        " write schedule.rounds and schedule.every",
    ),
    Rule(
        lambda p: _soft(p) and p.rewinds_each,
        "application: soft trains on with what a round left; remove rewind, or set rewind.after:"
        " last",
    ),
    Rule(
        lambda p: _soft(p) and p.selection.name not in ("top_k", "threshold", "knapsack"),
        "application: soft chooses among all channels in every round, by their scores; set"
        " selection: top_k",
    ),
]
