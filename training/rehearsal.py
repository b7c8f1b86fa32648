"""A recipe tried out without data and without values: what would fail later, found at once."""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from prunezoo import models
from prunezoo.models import trees
from prunezoo.models.count import Count, count
from prunezoo.models.errors import ModelError
from prunezoo.models.options import first_line
from prunezoo.models.timm_networks import FAULTS
from prunezoo.pruning.errors import PruningError
from prunezoo.schema.recipe import Recipe, RecipeError
from prunezoo.tasks import Task
from prunezoo.training.build import build_optimizer, build_task, check_head, load_start
from prunezoo.training.data.data import DataInfo, known
from prunezoo.training.data.facts import facts_of
from prunezoo.training.distillation import rehearse_teacher
from prunezoo.training.limits import check_episodes, check_settings, check_sizes
from prunezoo.training.memory import LARGEST, check_memory, machine_memory
from prunezoo.training.recomputing import check_recomputing

SIDES = (16, 32, 64, 96, 128, 192, 224, 256, 299, 384)  # pixels of usual images
TRIED = 2**37  # multiply-accumulates an image of networks that are tried with values too


def rehearse_early(recipe: Recipe, processes: int) -> bool:
    """Rehearse before images are read and return True, if counts and sizes are known by name."""
    check_settings(recipe)
    about = known(recipe.data)
    if about is None:
        return False
    rehearse(recipe, about, processes, room=machine_memory())
    return True


def rehearse(recipe: Recipe, about: DataInfo, processes: int = 1, room: int = LARGEST) -> Count:
    """Refuse what recipe, network and numbers of images alone show to be impossible.

    Everything runs on PyTorch's meta device: a training step on the smallest share of a batch, the
    last round of pruning, the laboratory. `room`: bytes that a process has.

    Returns:
        the dense network's size.

    Raises:
        RecipeError: one sentence.
    """
    per_epoch = steps_per_epoch(recipe, about, processes)
    task = build_task(recipe, about)
    check_episodes(recipe, about, task, processes)
    check_sizes(recipe, about, per_epoch)
    model = empty_model(recipe, about)
    check_recomputing(recipe, model)
    if recipe.training.optimizer.layer_decay is not None:
        build_optimizer(recipe.training, model)  # of its layers
    total = recipe.training.duration.steps(per_epoch)
    whole = {"steps_per_epoch": per_epoch, "total_steps": total, "processes": processes}
    whole |= {"environments": about.environments or 1}
    try:
        for side in recipe.data.train_sizes:
            _rehearse_step(recipe, sized(about, side), task, model, processes)
        sizes = _tested(recipe, about, model)
        largest = trained_sizes(recipe, about, model)[recipe.data.train_sizes[-1]]
        check_memory(recipe, about, sizes, processes, room, trained=largest)
        for side in recipe.data.train_sizes:
            rehearse_teacher(recipe, sized(about, side))
        _rehearse_pruning(recipe, about, task, model, whole, tried=sizes.macs < TRIED)
    except ModelError as error:
        raise RecipeError(f"model: {error}") from None
    except PruningError as error:
        text = str(error)
        raise RecipeError(text if text.startswith("laboratory") else f"pruning: {text}") from None
    return sizes


def sized(about: DataInfo, side: int | None) -> DataInfo:
    """The same data with square images of that side; None: of their own."""
    if side is None:
        return about
    return replace(about, example=replace(about.example, sizes=(about.channels, side, side)))


def trained_sizes(recipe: Recipe, about: DataInfo, model: nn.Module) -> dict[int | None, Count]:
    """The network's size for a training image of each `data.train_size`, the largest last."""
    return {
        side: count(model, trees.zeros(sized(about, side).example, 1))
        for side in recipe.data.train_sizes
    }


def _tested(recipe: Recipe, about: DataInfo, model: nn.Module) -> Count:
    """The network's size for a test image, which it may have been rehearsed on in another size."""
    try:
        return count(model, trees.zeros(about.example, 1))
    except FAULTS as error:
        if recipe.data.train_size is None:
            raise
        raise ModelError(
            f"{recipe.model.name} takes images of data.train_size, and not {about.height} pixels to"
            f" be tested on ({first_line(error)}); remove train_size, or choose another model"
        ) from None


def empty_model(recipe: Recipe, about: DataInfo, device: str = "meta") -> nn.Module:
    """The recipe's network without values, or with values that mean nothing on another device.

    Raises:
        RecipeError: no such model, or options it does not take.
    """
    try:
        check_head(recipe.model, about)
        if recipe.model.weights:
            return load_start(recipe.model, about).to(device)
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return models.build(
                recipe.model.name,
                num_classes=about.targets.outputs,
                in_channels=about.channels,
                **recipe.model.options,
            )
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(f"model: {error}") from None


def steps_per_epoch(recipe: Recipe, about: DataInfo, processes: int = 1) -> int:
    """Optimizer steps of one pass over the training images.

    Raises:
        RecipeError: there are fewer images than a batch has, or in the last one than processes.
    """
    batch, images = recipe.training.batch_size, about.train_images
    steps, rest = divmod(images, batch)
    if not recipe.data.drop_last and rest:
        least = _smallest_part(rest, recipe.training.accumulation)
        if least < processes:
            raise RecipeError(
                f"data.drop_last: false leaves {rest} of {images} images for the last batch, and a"
                f" part of it would have {least} for {processes} processes; write true, or another"
                " training.batch_size"
            )
        steps += 1
    if not steps:
        acts = bool(about.environments)
        remedy = "raise data.play.transitions" if acts else "write data.drop_last: false"
        raise RecipeError(
            f"training.batch_size {batch} exceeds {images} {'' if acts else 'training '}"
            f"{about.word}s{' an epoch' if acts else ''}; lower it, or {remedy}"
        )
    return steps


def _smallest_part(images: int, parts: int) -> int:
    """Images in the smallest of the parts that torch.chunk divides a batch into."""
    part = -(-images // parts)
    return (images - 1) % part + 1


def _rehearse_step(
    recipe: Recipe, about: DataInfo, task: Task, model: nn.Module, processes: int
) -> None:
    """A forward pass in training mode on the fewest images that a process ever gets."""
    least = _smallest_share(recipe, about, processes)
    name = f"{recipe.model.name} on {trees.described(about.example)}"
    try:
        outputs = model.train()(trees.zeros(about.example, least))
    except FAULTS as error:
        why = first_line(error)
        few = "more than 1 value per channel" in why
        remedy = "write data.drop_last: true, a larger training.batch_size, or " if few else ""
        remedy += _larger(recipe, about, model, least)
        raise ModelError(f"{name} cannot train on {least} at a time ({why}); {remedy}") from None
    finally:
        model.eval()
    if fault := task.misfit(outputs, least):
        raise ModelError(
            f"{name} {fault}; switch off auxiliary outputs (model.options), or choose another model"
        )


def _larger(recipe: Recipe, about: DataInfo, model: nn.Module, least: int) -> str:
    """The smallest usual size of images that the network can train on, as a recipe's words."""
    dataset = facts_of(recipe.data)
    held = dataset is not None and not (dataset.streamed or recipe.data.stream)
    resized = held and recipe.data.name != "synthetic"
    for side in (side for side in SIDES if 0 < about.height < side):
        larger = replace(about.example, sizes=(about.channels, side, side))
        try:
            model(trees.zeros(larger, least))
        except FAULTS:
            continue
        key = "data.augment.resize" if resized else "data.image_size"
        return f"write {key}: {side}, or choose another model"
    return "write other model.options, or choose another model"


def _smallest_share(recipe: Recipe, about: DataInfo, processes: int) -> int:
    """The fewest images that are normalised together in any training step."""
    config = recipe.training
    ends = [config.batch_size]
    if not recipe.data.drop_last and about.train_images % config.batch_size:
        ends.append(about.train_images % config.batch_size)
    together = 1 if config.sync_batchnorm else processes
    least = min(_smallest_part(count, config.accumulation) for count in ends)
    return max(1, least // together)


def _rehearse_pruning(
    recipe: Recipe,
    about: DataInfo,
    task: Task,
    model: nn.Module,
    whole: dict[str, int],
    *,
    tried: bool,
) -> None:
    """The last round of pruning and a measurement of the laboratory; `tried`: with values too."""
    from prunezoo.pruning.rehearsal import Untested, check, check_laboratory

    make = partial(build_optimizer, recipe.training)

    def look(network: nn.Module, device: str) -> None:
        image = trees.zeros(about.example, 1, device)
        if recipe.pruning is not None:
            check(recipe.pruning, network, image, optimizer=make, task=task, **whole)
        if recipe.laboratory is not None:
            check_laboratory(recipe.laboratory, network, image, task=task, **whole)

    try:
        look(model, "meta")
    except (PruningError, ModelError, NotImplementedError) as error:
        pruning = recipe.pruning
        channels = pruning is not None and (
            pruning.granularity == "channel" or pruning.amenable_channels is not None
        )
        if isinstance(error, NotImplementedError | Untested) and not tried:
            return  # the trace asks for a value, or for a test, and set-up will have them
        if not tried or (recipe.laboratory is None and not channels):
            raise
        # a trace without values may find axes that tests leave alone, or need a value for itself
        look(empty_model(recipe, about, "cpu"), "cpu")
