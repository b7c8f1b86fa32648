"""The page of methods is current and complete."""

import inspect
from pathlib import Path

from docs import methods
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.schema.recipe import load

ROOT = Path(__file__).parents[2]


def test_the_page_of_methods_is_current():
    assert methods.PAGE.read_text(encoding="utf-8") == methods.page(), (
        "write it again with python -m docs.methods"
    )


def test_every_recipe_that_prunes_and_every_word_has_a_card():
    cards = {
        line.removeprefix("### ").strip("[").partition("]")[0]
        for line in methods.page().splitlines()
        if line.startswith("### ")
    }
    folders = {path.name for path in (ROOT / "recipes").iterdir() if path.is_dir()}
    folders -= {"base", "zoo"}
    assert folders == set(methods.FOLDERS)
    recipes = {
        f"{p.parent.name}/{p.stem}" for f in folders for p in (ROOT / "recipes" / f).glob("*.yaml")
    }
    words = {name for registry in methods.REGISTRIES for name in registry.entries}
    assert cards == recipes | words
    assert set(CRITERIA) <= words


def test_no_two_recipes_of_a_folder_have_the_same_point():
    """What a card leaves out would be what tells two methods apart."""
    points: dict[tuple[object, ...], str] = {}
    for path in methods._recipes():
        pruning = load(path)[0].pruning
        if pruning is not None:
            point = (path.parent.name, *methods._point(pruning))
            assert point not in points, f"{path.stem} and {points[point]}"
            points[point] = path.stem


def test_a_card_tells_rewound_weights_from_a_second_training():
    pages = methods.page().replace("\n", " ")
    card = pages.partition("[methods/magnitude_after_training]")[2].partition("### ")[0]
    assert "rewind `schedule to 0it after the last round`" in card
    card = pages.partition("[pat/lottery_ticket]")[2].partition("### ")[0]
    assert "rewind `weights and schedule to 0it after the last round`" in card


def test_every_word_says_what_it_is():
    """A first line, and for a criterion the paper or the reason that it has none."""
    for registry in methods.REGISTRIES:
        for name, entry in registry.entries.items():
            text = getattr(entry, "function", entry).__doc__ or ""
            assert len(text.split()) >= 5, f"{registry.word} {name} needs a docstring"


def test_the_table_of_modes_has_the_defaults_of_the_criteria():
    known = methods.modes()
    assert set(known) - {""} <= set(CRITERIA)
    for name, criterion in CRITERIA.items():
        options = inspect.signature(criterion.function).parameters
        mode = known.get(name, known[""])[0]
        row = f"write a row for {name} in pruning/README.md, The mode that a criterion scores in"
        if "train" in options:
            assert mode == str(options["train"].default).lower(), row
        else:
            assert mode in ("evaluation", "–"), row
        if mode == "–":
            assert not {"task", "reduce"} & set(options), f"{name} looks at images: {row}"
