"""Each rule across the parts of a pruning section is broken by some section, and says so."""

import re

import pytest
from pydantic import ValidationError

from schema.pruning import PruningConfig
from schema.pruning_rules import RULES

WEIGHTS = {"criterion": "magnitude", "sparsity": 0.5}
UNITS = {"criterion": "magnitude", "granularity": "channel", "channels": 0.5}
BEP = UNITS | {"selection": "bep", "scope": "layer", "schedule": {"curve": "constant"}}

BROKEN = [  # by rule: a section that breaks it and none before it
    WEIGHTS | {"criterion": "taylor"},
    WEIGHTS | {"application": "surgery"},
    {"criterion": "magnitude", "macs": 0.5},
    WEIGHTS | {"granularity": "channel"},
    UNITS | {"scope": "erk"},
    WEIGHTS | {"round_to": 8},
    WEIGHTS | {"importance": {"reduce": "max"}},
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
    WEIGHTS | {"compensation": "mean_replacement"},
    WEIGHTS | {"selection": "eagle_eye"},
    BEP | {"scope": "global"},
    BEP | {"schedule": {}},
    BEP | {"importance": {"per": "macs"}},
    UNITS | {"schedule": {"initial": True}},
    UNITS | {"selection": "eagle_eye", "scope": "layer"},
    UNITS | {"selection": "knapsack", "scope": "layer"},
    UNITS | {"selection": "knapsack", "importance": {"per": "macs"}},
    UNITS | {"selection": "eagle_eye", "schedule": {"trigger": "epi"}},
    WEIGHTS | {"regrow": "gradient", "schedule": {"trigger": "mask_distance"}},
    {"criterion": "magnitude", "granularity": "channel", "selection": "threshold",
     "schedule": {"trigger": {"name": "epi", "ratio": 0.5}}},
]  # fmt: skip


@pytest.mark.parametrize(("section", "rule"), [*zip(BROKEN, RULES, strict=True)])
def test_a_section_that_breaks_a_rule_is_refused_in_its_sentence(section, rule):
    with pytest.raises(ValidationError) as refused:
        PruningConfig.model_validate(section)
    said = refused.value.errors()[0]["msg"].removeprefix("Value error, ")
    fixed = map(re.escape, re.split(r"\{.*?\}", rule.sentence))
    assert re.fullmatch(r"[\w, ]+".join(fixed), said)


def test_what_a_rule_says_names_what_the_section_has():
    for section, said in {
        0: "taylor scores channels, not single weights; set granularity: channel, or choose another"
        " criterion",
        2: "macs counts channels; set granularity: channel, or write sparsity",
        11: "accumulate is for scores of channels by snip, taylor, bn_taylor",
    }.items():
        with pytest.raises(ValidationError, match=re.escape(said)):
            PruningConfig.model_validate(BROKEN[section])
