"""Description of what a recipe would do, without data or GPU."""

from collections import Counter
from collections.abc import Mapping

from prunezoo.models import trees
from prunezoo.schema.recipe import Recipe
from prunezoo.schema.source import Source
from prunezoo.schema.training import DENSE
from prunezoo.training.data.data import DataInfo, info
from prunezoo.training.distillation import rehearse_teacher
from prunezoo.training.limits import check_settings
from prunezoo.training.memory import estimate
from prunezoo.training.rehearsal import empty_model, rehearse, sized, steps_per_epoch, trained_sizes
from prunezoo.training.start import resolved


def plan(recipe: Recipe, source: Source, *, processes: int = 1) -> str:
    """The resolved recipe with origins, then sizes, steps, memory and pruning events, as text.

    Raises:
        RecipeError: a name that does not exist, a batch that does not divide over `processes`, a
            network that could not be trained or pruned.
    """
    recipe.check_processes(processes)
    check_settings(recipe)
    about = info(recipe.data)
    sizes = rehearse(recipe, about, processes)
    batch = recipe.training.batch_size
    per_epoch = steps_per_epoch(recipe, about)
    total = recipe.training.duration.steps(per_epoch)
    trained = trained_sizes(recipe, about, empty_model(recipe, about))
    steps = _steps(recipe, per_epoch, total)
    macs = {side: count * batch * trained[side].macs for side, count in steps.items()}
    most = trained[recipe.data.train_sizes[-1]]
    at_most = "at most" if recipe.training.gradient_checkpointing else "about"
    rows = {
        "data": f"{about.name}: {about.train_images:,} train,"
        f" {about.validation_images:,} validation,"
        f" {about.test_images:,} test images of {trees.described(about.example)}",
        "model": f"{recipe.model.name}: {sizes.params:,} parameters, {sizes.macs:,} MACs an image",
        "steps": f"{total:,} = {total / per_epoch:g} epochs × {per_epoch:,} of {batch} images",
        "training FLOPs": f"{6 * sum(macs.values()):.3g} dense (2 a MAC × 3 passes)"
        + _teacher(recipe, about, sum(macs.values()), steps)
        + _acting(about, sum(macs.values())),
        "memory": f"{at_most} {estimate(recipe, most, processes) / 2**30:.2f} GiB a process",
        "pruning": ("\n" + 16 * " ").join(_events(recipe, per_epoch, total)),
    }
    text = resolved(recipe, source) + "\n"
    return text + "\n".join(f"{name + ':':16}{value}" for name, value in rows.items())


def _steps(recipe: Recipe, per_epoch: int, total: int) -> Counter[int | None]:
    """Optimizer steps on images of each `data.train_size`."""
    steps: Counter[int | None] = Counter()
    for start in range(0, total, per_epoch):
        side = recipe.data.train_size_in(start // per_epoch)
        steps[side] += min(per_epoch, total - start)
    return steps


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
