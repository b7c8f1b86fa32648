"""Description of what a recipe would do, without data or GPU."""

from prunezoo.models import trees
from prunezoo.schema.recipe import Recipe
from prunezoo.schema.source import Source
from prunezoo.schema.training import DENSE
from prunezoo.training.data.data import DataInfo, info
from prunezoo.training.distillation import rehearse_teacher
from prunezoo.training.limits import check_settings
from prunezoo.training.memory import estimate
from prunezoo.training.rehearsal import rehearse, steps_per_epoch
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
    rows = {
        "data": f"{about.name}: {about.train_images:,} train,"
        f" {about.validation_images:,} validation,"
        f" {about.test_images:,} test images of {trees.described(about.example)}",
        "model": f"{recipe.model.name}: {sizes.params:,} parameters, {sizes.macs:,} MACs an image",
        "steps": f"{total:,} = {total / per_epoch:g} epochs × {per_epoch:,} of {batch} images",
        "training FLOPs": f"{6 * sizes.macs * batch * total:.3g} dense (2 a MAC × 3 passes)"
        + _teacher(recipe, about, sizes.macs, batch * total),
        "memory": f"about {estimate(recipe, sizes, processes) / 2**30:.2f} GiB a process",
        "pruning": ("\n" + 16 * " ").join(_events(recipe, per_epoch, total)),
    }
    text = resolved(recipe, source) + "\n"
    return text + "\n".join(f"{name + ':':16}{value}" for name, value in rows.items())


def _teacher(recipe: Recipe, about: DataInfo, dense_macs: int, images: int) -> str:
    """The cost of the teacher's forward passes, if there is one."""
    config = recipe.training.distillation
    if config is None:
        return ""
    macs, most = rehearse_teacher(recipe, about), ""
    if config.teacher == DENSE:
        macs, most = dense_macs, "at most "
    return f", and {most}{2 * macs * images:.3g} of the teacher (1 pass)"


def _events(recipe: Recipe, per_epoch: int, total: int) -> list[str]:
    if recipe.pruning is None:
        return ["none"]
    from prunezoo.pruning.events import plan_events

    return plan_events(recipe.pruning, per_epoch, total)
