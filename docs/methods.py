"""Write docs/methods.md: a card for every method and for every word it is made of.

`python -m docs.methods`. A method is a recipe, and its card is the recipe's header and point; a
word is a line of a registry, and its card is the docstring, signature and traits behind the line.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prunezoo.pruning.application.penalty import PENALTIES
from prunezoo.pruning.compensation.compensations import COMPENSATIONS
from prunezoo.pruning.criteria import CRITERIA, Criterion
from prunezoo.pruning.schedule.triggers import TRIGGERS
from prunezoo.pruning.selection.regrow import REGROWTHS
from prunezoo.pruning.selection.sanity import SANITY_CHECKS
from prunezoo.pruning.selection.selections import SELECTIONS
from prunezoo.reporting.claims import find_claims
from prunezoo.schema import options
from prunezoo.schema.pruning import (
    Choice,
    CompensationConfig,
    CriterionConfig,
    PenaltyConfig,
    PruningConfig,
    RegrowConfig,
    RewindConfig,
    SanityConfig,
    SelectionConfig,
    TriggerConfig,
)
from prunezoo.schema.recipe import load

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/methods.md"
FOLDERS = {
    "bep": "BEP and its baselines (Rajpal et al. 2023)",
    "pat": "PaT and its baselines (Shen et al. 2022)",
    "mean_replacement": "Mean replacement (ICLR 2019 submission)",
    "earlycrop": "EarlyCroP and its baselines (Rachwan et al. 2022)",
    "foresight": "Foresight weight pruning (James 2022)",
    "methods": "Methods besides the papers'",
}


class Registry(NamedTuple):
    """A dictionary of choices, and the word of a recipe that chooses."""

    word: str
    title: str
    duty: str
    choice: type[Choice]
    entries: Mapping[str, Any]


REGISTRIES = (
    Registry("criterion", "Criteria", "score; the highest stay", CriterionConfig, CRITERIA),
    Registry("trigger", "Triggers", "decide when rounds begin", TriggerConfig, TRIGGERS),
    Registry("selection", "Selections", "decide who stays", SelectionConfig, SELECTIONS),
    Registry("sanity", "Sanity checks", "say if it matters who stays", SanityConfig, SANITY_CHECKS),
    Registry("regrow", "Regrowths", "let removed weights return", RegrowConfig, REGROWTHS),
    Registry("penalty", "Penalties", "prepare channels to go", PenaltyConfig, PENALTIES),
    Registry(
        "compensation", "Compensations", "adjust what is left", CompensationConfig, COMPENSATIONS
    ),
)
MODES = {  # second column of the table of modes
    "true": "batch statistics (`train: true`)",
    "false": "running statistics (`train: false`)",
    "evaluation": "evaluation",
    "–": "none",
}
INTRODUCTION = """# Methods

The names that a recipe can write under `pruning:` with their options, and what each method is made
of (recipes of mean replacement have a `laboratory:` instead). Floors, tolerances, `except` and
calibration are in the recipes themselves. Made by `python -m docs.methods` from recipes, registries
and docstrings; a test keeps it true. What holds for all methods: [pruning](../pruning/README.md).

"""


def page() -> str:
    """Return the text of the page."""
    methods = {path: load(path)[0].pruning for path in _recipes()}
    parts = [INTRODUCTION, "## Contents\n\n"]
    parts += [f"- [{title}](#{_anchor(title)})\n" for title in FOLDERS.values()]
    parts += [f"- [{r.title}](#{_anchor(r.title)})\n" for r in REGISTRIES]
    tables = _tables()
    for folder, title in FOLDERS.items():
        parts.append(f"\n## {title}\n")
        inside = [path for path in methods if path.parent.name == folder]
        parts += [_method(path, methods[path], tables.get(path, [])) for path in inside]
    for registry in REGISTRIES:
        parts.append(f"\n## {registry.title}\n\n{registry.title} {registry.duty}.")
        parts.append(f" In a recipe: `{registry.word}`.\n")
        names, users = options.registry(*registry.choice.registry), _users(registry.word, methods)
        for name, entry in registry.entries.items():
            parts.append(_word(name, entry, list(names[name]), users.get(name, [])))
    return "".join(parts)


def _recipes() -> list[Path]:
    inside = [(ROOT / "recipes" / folder).glob("*.yaml") for folder in FOLDERS]
    return [path for recipes in inside for path in sorted(recipes)]


def _tables() -> dict[Path, list[str]]:
    """Tables of the papers that have rows of a recipe."""
    tables: dict[Path, list[str]] = {}
    for claim in find_claims(ROOT / "papers/claims"):
        listed = tables.setdefault(ROOT / claim.recipe, [])
        table = "/".join(claim.row.split("/")[:2])
        if table not in listed:
            listed.append(table)
    return tables


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


# ── methods ──────────────────────────────────────────────────────────────────────────────────────
def _method(path: Path, pruning: PruningConfig | None, tables: list[str]) -> str:
    place = path.relative_to(ROOT)
    lines = [f"\n### [{path.parent.name}/{path.stem}](../{place})\n\n{_wrapped(_header(path))}\n"]
    facts = []
    if pruning is not None:
        facts += ["*Point:* " + ", ".join(f"{key} `{value}`" for key, value in _point(pruning))]
    if tables:
        facts += ["*Tables:* " + ", ".join(tables)]
    if facts:
        lines.append("\n" + _wrapped(". ".join(facts) + ".") + "\n")
    return "".join(lines)


def _header(path: Path) -> str:
    """The recipe's first comment, without the commands at its end."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("# accelerate launch"):
            break
        comment.append(line.removeprefix("#").strip())
    return _plain(" ".join(comment))


def _plain(text: str) -> str:
    """Text as Markdown that shows it as it is: a tag is no tag, a star no emphasis."""
    parts = text.split("`")  # every second one is code
    parts[::2] = [re.sub(r"([<*])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _point(pruning: PruningConfig) -> Iterator[tuple[str, str]]:
    """What the method is in each dimension; what is left at its default goes without saying."""
    yield "criterion", _choice(pruning.criterion)
    yield "granularity", pruning.granularity
    yield "scope", pruning.scope
    if pruning.amount is not None:
        yield "amount", f"{pruning.amount[0]}: {pruning.amount[1]:.4g}"
    if pruning.amenable_channels is not None:
        yield "amenable channels", f"{pruning.amenable_channels:.4g}"
    schedule = pruning.schedule
    stated = schedule.model_dump(exclude_defaults=True)
    words = [f"{key}: {getattr(schedule, key)}" for key in stated if key != "trigger"]
    if schedule.trigger is not None:
        words.insert(0, f"trigger: {_choice(schedule.trigger)}")
    yield "schedule", ", ".join(words) or "once, before training"
    for key in ("selection", "sanity", "regrow", "penalty", "compensation"):
        value: Choice | None = getattr(pruning, key)
        if value is not None and value.name not in ("none", "top_k"):
            yield key, _choice(value)
    if pruning.rewind is not None:
        yield "rewind", _rewind(pruning.rewind)
    if pruning.cut != "exact":
        yield "cut", pruning.cut
    if importance := pruning.importance.model_dump(exclude_defaults=True):
        yield "importance", ", ".join(f"{key}: {value}" for key, value in importance.items())
    if pruning.tick is not None:
        yield "tick", str(pruning.tick)
    if pruning.round_to > 1:
        yield "round to", str(pruning.round_to)
    if pruning.accumulate:
        yield "scores", "accumulated over training's own steps"
    refined = f" (refine: {pruning.refine:g})" if pruning.refine else ""
    yield "application", pruning.application + refined


def _rewind(rewind: RewindConfig) -> str:
    parts = {"weights": rewind.weights, "schedule": rewind.schedule}
    what = " and ".join(name for name, taken in parts.items() if taken)
    return f"{what} to {rewind.to} after {'each' if rewind.after == 'round' else 'the last'} round"


def _choice(choice: Choice) -> str:
    options = ", ".join(f"{key}: {value}" for key, value in choice.options.items())
    return f"{choice.name} ({options})" if options else choice.name


# ── words ────────────────────────────────────────────────────────────────────────────────────────
def _users(word: str, methods: dict[Path, PruningConfig | None]) -> dict[str, list[str]]:
    """Recipes by the name that they choose for a word."""
    users: dict[str, list[str]] = {}
    for path, pruning in methods.items():
        if pruning is None:
            continue
        chosen = pruning.schedule.trigger if word == "trigger" else getattr(pruning, word)
        if chosen is not None:
            users.setdefault(chosen.name, []).append(f"{path.parent.name}/{path.stem}")
    return users


def _word(name: str, entry: Any, optional: list[str], users: list[str]) -> str:
    function = getattr(entry, "function", entry)
    source = Path(inspect.getsourcefile(function) or "").relative_to(ROOT)
    facts = [f"*Options:* {', '.join(_option(function, o) for o in optional) or 'none'}."]
    if isinstance(entry, Criterion):
        facts.append(f"*Scores:* {_traits(entry)}.")
        facts.append(f"*Mode:* {_mode(name)}.")
    shown = ", ".join(users[:6]) + (f" and {len(users) - 6} more" if len(users) > 6 else "")
    facts += [f"*Code:* [{source}](../{source}).", f"*Recipes:* {shown or 'none'}."]
    text = _plain(inspect.getdoc(function) or "")
    return f"\n### {name}\n\n{text}\n\n{_wrapped(' '.join(facts))}\n"


def _option(function: Any, name: str) -> str:
    """An option with its default, as a recipe writes it."""
    default = inspect.signature(function).parameters[name].default
    return f"`{name}`" if default is inspect.Parameter.empty else f"`{name}: {_value(default)}`"


def _value(default: Any) -> str:
    words = {True: "true", False: "false", None: "null"}
    return words[default] if default is None or isinstance(default, bool) else str(default)


def modes() -> dict[str, tuple[str, str]]:
    """Criterion → the mode that it scores in and why; "" is all that the table does not name."""
    text = (ROOT / "pruning/README.md").read_text(encoding="utf-8")
    table = text.partition("| criterion | `train` | why |")[2].partition("\n\n")[0]
    found = {}
    for line in table.splitlines()[2:]:
        names, mode, why = (cell.strip() for cell in line.strip("|").split("|"))
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names) or [""], (mode, why))
    return found


def _mode(name: str) -> str:
    known = modes()
    mode, why = known.get(name, known[""])
    return f"{MODES[mode]}; {why}"


def _traits(criterion: Criterion) -> str:
    unit = "one for each output channel" if criterion.per == "channel" else "one for each weight"
    way = f"a channel's is their {criterion.reduce}"
    words = [unit if criterion.per == "channel" else f"{unit}; {way}"]
    words.append(f"layers that add up: {criterion.members}")
    if criterion.signed:
        words.append("signed" if criterion.signed is True else "signed with some options")
    if criterion.absolute != "none":
        words.append(f"absolute value {criterion.absolute} the sum")
    if criterion.accumulates:
        words.append(f"can be gathered from training's own gradients ({criterion.accumulates})")
    return "; ".join(words)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
