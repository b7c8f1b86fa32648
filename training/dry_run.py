"""Description of what a recipe would do, without data or GPU."""

from collections import Counter
from collections.abc import Mapping

from prunezoo.models import trees
from prunezoo.schema.recipe import Recipe
from prunezoo.schema.source import Source
from prunezoo.schema.training import DENSE
from prunezoo.training.build import normalised
from prunezoo.training.data.data import DataInfo, absent, info
from prunezoo.training.data.expected import colour
from prunezoo.training.distillation import rehearse_teacher
from prunezoo.training.limits import check_settings, check_stated
from prunezoo.training.memory import estimate, machine_memory
from prunezoo.training.rehearsal import empty_model, rehearse, sized, steps_per_epoch, trained_sizes
from prunezoo.training.start import resolved


def plan(recipe: Recipe, source: Source, *, processes: int = 1, defaults: bool = False) -> str:
    """The recipe's values with their origins, then sizes, steps, memory, prunings, missing data.

    `defaults`: values that neither files nor settings state, too.

    Raises:
        RecipeError: a name that does not exist, a batch that does not divide over `processes`, a
            network that could not be trained or pruned.
    """
    recipe.check_processes(processes)
    check_stated(recipe, source)
    check_settings(recipe)
    recipe = normalised(recipe)
    about = info(recipe.data)
    sizes = rehearse(recipe, about, processes)
    batch, example = recipe.training.batch_size, about.word
    per_epoch = steps_per_epoch(recipe, about)
    total = recipe.training.duration.steps(per_epoch)
    trained = trained_sizes(recipe, about, empty_model(recipe, about))
    steps = _steps(recipe, per_epoch, total)
    macs = {side: count * batch * trained[side].macs for side, count in steps.items()}
    most = trained[recipe.data.train_sizes[-1]]
    at_most = "at most" if recipe.training.gradient_checkpointing else "about"
    rows = {
        "data": _data(about),
        "model": f"{recipe.model.name}: {sizes.params:,} parameters,"
        f" {sizes.macs:,} MACs per {example}",
        "steps": f"{total:,} = {total / per_epoch:g} epochs × {per_epoch:,} of {batch} {example}s"
        + _again(recipe, per_epoch, total),
        "training FLOPs": f"{6 * sum(macs.values()):.3g} dense (2 per MAC × 3 passes)"
        + _teacher(recipe, about, sum(macs.values()), steps)
        + _acting(about, sum(macs.values())),
        "memory": f"{at_most} {_memory(estimate(recipe, most, processes))}",
        "pruning": ("\n" + 16 * " ").join(_events(recipe, per_epoch, total)),
    }
    if colours := _of_weights(recipe, about):
        rows["normalised"] = colours
    if missing := absent(recipe.data):
        rows["missing"] = missing
    text = resolved(recipe, source, defaults=defaults) + "\n"
    return text + "\n".join(f"{name + ':':16}{value}" for name, value in rows.items())


def _data(about: DataInfo) -> str:
    """Counts and shape of examples; an actor makes those that it trains on, and plays episodes."""
    train, validation, test = about.train_images, about.validation_images, about.test_images
    shape = trees.described(about.example)
    if about.environments:
        return (
            f"{about.name}: {train:,} transitions of {shape} an epoch,"
            f" {validation:,} validation and {test:,} test episodes"
        )
    counts = f"{train:,} train, {validation:,} validation, {test:,} test {about.word}s"
    shape += " words" if about.word == "row" else ""
    return f"{about.name}: {counts} of {shape}{about.warning and f' ({about.warning})'}"


def _of_weights(recipe: Recipe, about: DataInfo) -> str:
    """Mean and std of images that are normalised as those of the weights; "" where none are."""
    usual = recipe.data.usual
    if usual is None or not about.height or colour(recipe.data, about.channels) != usual:
        return ""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in usual)
    return f"by the mean ({mean}) and std ({std}) of the weights"


def _memory(needed: float) -> str:
    """Bytes that a process needs, and whether this machine has them."""
    room = machine_memory()
    size = f"{needed / 2**30:,.1f} GiB" if needed >= 2**30 else f"{needed / 2**20:,.1f} MiB"
    more = f", more than the {room / 2**30:,.1f} GiB here" if needed > room else ""
    return f"{size} per process{more}"


def _steps(recipe: Recipe, per_epoch: int, total: int) -> Counter[int | None]:
    """Optimizer steps on images of each `data.train_size`."""
    steps: Counter[int | None] = Counter()
    for start in range(0, total, per_epoch):
        side = recipe.data.train_size_in(start // per_epoch)
        steps[side] += min(per_epoch, total - start)
    return steps


def _again(recipe: Recipe, per_epoch: int, total: int) -> str:
    """The steps that rewinds repeat, which neither the schedule nor the dense FLOPs hold."""
    if recipe.pruning is None:
        return ""
    from prunezoo.pruning.events import steps_repeated

    repeated = steps_repeated(recipe.pruning, per_epoch, total)
    if repeated is None:
        return ", and again those from the rewind on"
    return f", and {repeated:,} again after rewinds" if repeated else ""


def _teacher(
    recipe: Recipe, about: DataInfo, dense_macs: int, steps: Mapping[int | None, int]
) -> str:
    """The cost of the teacher's forward passes, if there is one."""
    config, batch = recipe.training.distillation, recipe.training.batch_size
    if config is None:
        return ""
    if config.teacher == DENSE:
        return f", and at most {2 * dense_macs:.3g} of the teacher (1 pass)"
    macs = sum(
        count * batch * rehearse_teacher(recipe, sized(about, side))
        for side, count in steps.items()
    )
    return f", and {2 * macs:.3g} of the teacher (1 pass)"


def _acting(about: DataInfo, macs: int) -> str:
    """The cost of the passes in which the network acts, if it does."""
    return f", and {2 * macs:.3g} of acting (1 pass)" if about.environments else ""


def _events(recipe: Recipe, per_epoch: int, total: int) -> list[str]:
    if recipe.pruning is None:
        return ["none"]
    from prunezoo.pruning.events import plan_events

    return plan_events(recipe.pruning, per_epoch, total)
