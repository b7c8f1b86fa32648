"""Each rule across the parts of a pruning section is broken by some section, and says so."""

import re

import pytest
from pydantic import ValidationError

from prunezoo.schema.pruning import PruningConfig
from prunezoo.schema.pruning_rules import RULES

WEIGHTS = {"criterion": "magnitude", "sparsity": 0.5}
UNITS = {"criterion": "magnitude", "granularity": "channel", "channels": 0.5}
TWO_OF_FOUR = {"criterion": "magnitude", "scope": "2:4"}
STRAIGHT = {"application": "straight_through"}
SOFT = {"application": "soft", "schedule": {"rounds": 2, "every": "1ep"}}
AMENABLE = {"amenable_channels": 0.4, "regrow": "global_gradient",
            "schedule": {"rounds": 2, "curve": "constant"}}  # fmt: skip
BEP = UNITS | {"selection": "bep", "scope": "layer", "schedule": {"curve": "constant"}}

BROKEN = [  # by rule: a section that breaks it and none before it
    WEIGHTS | {"criterion": "taylor"},
    WEIGHTS | {"application": "surgery"},
    {"criterion": "magnitude", "macs": 0.5},
    WEIGHTS | {"granularity": "channel"},
    UNITS | {"scope": "erk"},
    WEIGHTS | {"round_to": 8},
    WEIGHTS | {"importance": {"reduce": "max"}},
    UNITS | {"scope": "layer", "importance": {"normalise": "mean"}},
    UNITS | {"selection": "eagle_eye", "importance": {"normalise": "mean"}},
    UNITS | {"regrow": "random"},
    UNITS | {"floor": 0},
    WEIGHTS | {"regrow": "score", "schedule": {"every": "1ep"}},
    WEIGHTS | {"regrow": "score"},
    UNITS | {"accumulate": True},
    UNITS | {"tick": "1it"},
    UNITS | {"criterion": "snip", "accumulate": True, "tick": "1it",
              "schedule": {"trigger": "epi"}},
    WEIGHTS | {"regrow": "gradient", "schedule": {"rounds": 2}},
    WEIGHTS | {"penalty": "group_lasso"},
    UNITS | {"compensation": "mean_replacement", "rewind": "0it"},
    WEIGHTS | {"compensation": "bn_recalibrate", "rewind": "0it"},
    WEIGHTS | {"compensation": "mean_replacement"},
    UNITS | {"compensation": "woodfisher"},
    WEIGHTS | {"selection": "eagle_eye"},
    BEP | {"scope": "global"},
    BEP | {"schedule": {}},
    BEP | {"importance": {"per": "macs"}},
    UNITS | {"schedule": {"initial": True}},
    BEP | {"schedule": {"initial": True, "curve": "constant", "trigger": "drift"}},
    UNITS | {"selection": "eagle_eye", "scope": "layer"},
    UNITS | {"selection": "knapsack", "scope": "layer"},
    UNITS | {"selection": "knapsack", "importance": {"per": "macs"}},
    UNITS | {"selection": "eagle_eye", "schedule": {"trigger": "epi"}},
    WEIGHTS | {"regrow": "gradient", "schedule": {"trigger": "mask_distance"}},
    {"criterion": "magnitude", "granularity": "channel", "selection": "threshold",
     "schedule": {"trigger": {"name": "epi", "ratio": 0.5}}},
    WEIGHTS | {"compensation": "reinitialise", "rewind": "0it"},
    BEP | {"sanity": "shuffle"},
    UNITS | {"selection": "prune_from_scratch", "sanity": "invert"},
    WEIGHTS | {"regrow": "random", "sanity": "shuffle", "schedule": {"curve": "constant"}},
    UNITS | {"compensation": "mean_replacement", "sanity": "shuffle", "schedule": {"rounds": 2}},
    TWO_OF_FOUR | {"application": "straight_through", "sanity": "invert"},
    TWO_OF_FOUR | {"sanity": "shuffle"},
    WEIGHTS | {"sanity": "restructure", "schedule": {"rounds": 2, "every": "1it"}},
    UNITS | {"channels": None, "macs": 0.5, "sanity": "restructure"},
    UNITS | {"cut": "two_sided"},
    WEIGHTS | {"cut": "two_sided", "scope": "erk"},
    WEIGHTS | {"cut": "two_sided", "schedule": {"rounds": 2}},
    WEIGHTS | {"cut": "two_sided", "floor": 0.1},
    {"criterion": "magnitude", "granularity": "channel", "scope": "2:4"},
    TWO_OF_FOUR | {"floor": 0.1},
    TWO_OF_FOUR | {"regrow": "gradient"},
    TWO_OF_FOUR | {"schedule": {"rounds": 2}},
    WEIGHTS | {"schedule": {"first": 0.2}},
    WEIGHTS | {"schedule": {"first": 0.5, "rounds": 2}},
    UNITS | {"schedule": {"dense": "1ep", "rounds": 2, "every": "2ep"}},
    WEIGHTS | {"schedule": {"dense": "1ep", "rounds": 2}},
    WEIGHTS | {"regrow": "random", "schedule": {"dense": "1ep", "every": "2ep",
                                                "curve": "constant"}},
    UNITS | {"amenable_channels": 0.4},
    WEIGHTS | {"amenable_channels": 0.4},
    WEIGHTS | AMENABLE | {"schedule": {}},
    WEIGHTS | AMENABLE | {"application": "surgery"},
    WEIGHTS | AMENABLE | {"rewind": "0it"},
    WEIGHTS | {"refine": 1e-4},
    UNITS | STRAIGHT,
    WEIGHTS | STRAIGHT | {"criterion": "snip"},
    WEIGHTS | STRAIGHT | {"regrow": "random"},
    WEIGHTS | STRAIGHT | {"rewind": "0it"},
    WEIGHTS | SOFT,
    UNITS | SOFT | {"schedule": {"rounds": 2}},
    UNITS | SOFT | {"rewind": "0it"},
    UNITS | SOFT | {"selection": "eagle_eye"},
]  # fmt: skip


@pytest.mark.parametrize(("section", "rule"), [*zip(BROKEN, RULES, strict=True)])
def test_a_section_that_breaks_a_rule_is_refused_in_its_sentence(section, rule):
    with pytest.raises(ValidationError) as refused:
        PruningConfig.model_validate(section)
    said = refused.value.errors()[0]["msg"].removeprefix("Value error, ")
    fixed = map(re.escape, re.split(r"\{.*?\}", rule.sentence))
    assert re.fullmatch(r"[\w,: ]+".join(fixed), said)


def test_what_a_rule_says_names_what_the_section_has():
    for section, said in {
        0: "taylor scores channels, not single weights; set granularity: channel, or choose another"
        " criterion",
        2: "macs counts channels; set granularity: channel, or write sparsity",
        13: "accumulate is for scores of channels by snip, taylor, bn_taylor",
    }.items():
        with pytest.raises(ValidationError, match=re.escape(said)):
            PruningConfig.model_validate(BROKEN[section])
