"""Checks of a recipe's settings and sizes that need no image."""

import difflib
import importlib.util
import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from prunezoo import models
from prunezoo.models.errors import ModelError
from prunezoo.models.options import first_line, shown
from prunezoo.models.pretrained import pretrained_for
from prunezoo.models.timm_networks import FAULTS
from prunezoo.schema.data import DataConfig
from prunezoo.schema.recipe import ModelConfig, Recipe, RecipeError
from prunezoo.schema.source import Source
from prunezoo.tasks import Task
from prunezoo.training.build import build_optimizer, on_cpu
from prunezoo.training.data.crops import streamed_alone
from prunezoo.training.data.data import DataInfo
from prunezoo.training.data.facts import facts_of
from prunezoo.training.data.rollouts import uneven
from prunezoo.training.distillation import check_distillation
from prunezoo.training.folder.run_folder import RESOLVED
from prunezoo.training.optimizer_state import split

# numbers of the optimizer's in a recipe; timm's optimizers have theirs in `options`
READ_BY: dict[str, tuple[str, ...]] = {
    "momentum": ("sgd", "rmsprop"),
    "nesterov": ("sgd",),
    "betas": ("adam", "adamw"),
    "alpha": ("rmsprop",),
    "eps": ("adam", "adamw", "rmsprop"),
}


def check_settings(recipe: Recipe) -> None:
    """Refuse names of things that do not exist, and an optimizer that cannot step or be kept.

    Raises:
        RecipeError: one sentence.
    """
    check_tracker(recipe.log.tracker)
    if recipe.cost.tracker != "none":
        _check_country(recipe.cost.country)
    _check_start(recipe.model)
    _check_optimizer(recipe)
    check_distillation(recipe)


def check_stated(recipe: Recipe, source: Source) -> None:
    """Refuse a number of the optimizer's that a recipe states and the optimizer does not read.

    One of a baseline whose optimizer is replaced by name is left aside, and so is one of a run
    folder's recipe, which writes out every default.

    Raises:
        RecipeError: names the number and where it is stated.
    """
    config, section = recipe.training.optimizer, ("training", "optimizer")
    named, _ = source.where.get((*section, "name")) or source.where.get(section) or ("", 0)
    over = () if named.startswith("--set") else (named, source.file)
    for key in (key for key, names in READ_BY.items() if config.name not in names):
        file, _ = source.where.get((*section, key), ("", 0))
        if not (file in over or file.startswith("--set")) or Path(file).name == RESOLVED:
            continue
        options = json.dumps({key: config.model_dump(mode="json")[key]}).replace('"', "")
        other = f", or write options: {options}" if config.name.startswith("timm/") else ""
        raise RecipeError(
            f"{source.locate((*section, key))}: training.optimizer: {config.name} does not read"
            f" {key}; remove it{other}"
        )


def check_tracker(name: str) -> None:
    """Refuse a tracker that accelerate does not know, or that is not installed.

    Raises:
        RecipeError: names those that could be written.
    """
    if name == "none":
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = [str(tracker) for tracker in get_available_trackers()]
    if name in there:
        return
    others = f"write {', '.join(there)} or none" if there else "write none"
    if name in LOGGER_TYPE_TO_CLASS:
        raise RecipeError(f"log.tracker: {name} is not installed; pip install {name}, or {others}")
    near = difflib.get_close_matches(name, LOGGER_TYPE_TO_CLASS, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise RecipeError(
        f"log.tracker: {shown(name)} is not a tracker{hint}; {others}, or install one of"
        f" {', '.join(sorted(set(LOGGER_TYPE_TO_CLASS) - set(there)))}"
    )


def _check_country(country: str) -> None:
    countries = _countries()
    if countries and country not in countries:
        near = difflib.get_close_matches(country, countries, 3)
        raise RecipeError(
            f"cost.country: {country}: codecarbon knows no grid of that ISO code; write another,"
            f" such as {', '.join(near or ['FRA', 'USA'])}"
        )


@cache
def _countries() -> frozenset[str]:
    """Return the ISO codes of codecarbon's grids; none if this version keeps them elsewhere.

    Read from its file, as importing it takes seconds.
    """
    package = importlib.util.find_spec("codecarbon")
    if package is None or package.origin is None:
        return frozenset()
    path = Path(package.origin).parent / "data" / "private_infra" / "global_energy_mix.json"
    return frozenset(json.loads(path.read_text())) if path.exists() else frozenset()


def _check_start(config: ModelConfig) -> None:
    """Refuse weights to start from that are missing or of another network."""
    if config.weights:
        try:
            header = models.header(config.weights)
        except ModelError as error:
            raise RecipeError(f"model.weights: {error}") from None
        if "structure" not in header:
            raise RecipeError(
                f"model.weights: {config.weights} holds a {header['module']['kind']} that was not"
                " made by models.build; name a file of a network of `model`"
            )
        structure = header["structure"]
        other = config.options and config.options != structure["options"]
        if structure["name"] != config.name or other:
            raise RecipeError(
                f"model: {config.weights} holds {structure['name']} with options"
                f" {structure['options']}; write that name, and no options"
            )
    if config.pretrained:
        try:
            pretrained_for(config.name, config.pretrained)
        except ModelError as error:
            raise RecipeError(f"model: {error}") from None


def _check_optimizer(recipe: Recipe) -> None:
    """Refuse an optimizer that cannot step, tried on a few ones, or that no checkpoint can hold."""
    training, config = recipe.training, recipe.training.optimizer
    if config.name.startswith("timm/"):
        _check_timm(config.name.removeprefix("timm/"), config.options)
    device = "cpu" if on_cpu() else "cuda"
    weights = nn.ParameterList(torch.ones(shape, device=device) for shape in [(2, 2, 3, 3), (2,)])
    for weight in weights.parameters():
        weight.grad = torch.ones_like(weight)
    try:
        # of a few weights, which have no order of layers
        whole = training.model_copy(
            update={"optimizer": config.model_copy(update={"layer_decay": None})}
        )
        optimizer = build_optimizer(whole, weights)
        optimizer.step()
    except (RecipeError, *FAULTS) as error:
        if "CUDA required" in str(error):  # planned here, to be run elsewhere
            return
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"training.optimizer: {config.name} cannot make a step ({first_line(error)});"
            " write other options, or choose another optimizer"
        ) from None
    _check_caution(recipe, optimizer)
    try:
        json.dumps(split(optimizer.state_dict())["values"])
    except TypeError:  # it would end the run at its first checkpoint
        raise RecipeError(
            f"training.optimizer: {config.name} keeps what a checkpoint cannot hold; choose another"
        ) from None


def _check_caution(recipe: Recipe, optimizer: Optimizer) -> None:
    """Refuse timm's cautious optimizers behind masks, whose zeros count as entries held back.

    With straight-through masks all entries have gradients, and all move.
    """
    masked = recipe.pruning and recipe.pruning.application in ("mask", "mask_then_surgery")
    if masked and any(group.get("caution") for group in optimizer.param_groups):
        raise RecipeError(
            f"training.optimizer: {recipe.training.optimizer.name} is cautious: it divides a step"
            " by the fraction of entries that it moves, which is small behind masks, and the step"
            " becomes as much too large; write options: {caution: false}"
        )


def _check_timm(name: str, options: dict[str, Any]) -> None:
    """Refuse an optimizer that timm has not or that needs more than gradients, and its options.

    timm drops some that an optimizer does not take, and says nothing.
    """
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

    names = list_optimizers()
    if name not in names:
        near = difflib.get_close_matches(name, map(str, names), 3)
        hint = f"timm/{', timm/'.join(near)}" if near else "timm/lamb, timm/lion or another"
        raise RecipeError(f"training.optimizer: timm has no {shown(name)}; write {hint}")
    if get_optimizer_info(name).second_order:
        raise RecipeError(
            f"training.optimizer: timm/{name} needs second derivatives, which training does"
            " not compute; choose another"
        )
    try:
        takes = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    except FAULTS:  # of packages that are not here; building it says which
        return
    unknown = [key for key in options if key not in takes]
    if unknown:
        known = ", ".join(key for key in takes if key not in ("params", "lr", "weight_decay"))
        raise RecipeError(
            f"training.optimizer: options: timm/{name} takes no {shown(unknown[0])}; it takes"
            f" {known}"
        )


def check_sizes(recipe: Recipe, about: DataInfo, per_epoch: int) -> None:
    """Refuse durations shorter than a step, borders larger than the images, and the like.

    Raises:
        RecipeError: one sentence.
    """
    _check_durations(recipe, per_epoch)
    if (recipe.training.mixup or recipe.training.cutmix) and not about.height:
        raise RecipeError(
            f"training: mixup and cutmix mix images, and {about.name} has none; remove them"
        )
    if about.height:
        _check_augment(recipe.data, about)
    _check_store(recipe.data)
    if recipe.laboratory and recipe.laboratory.held_out and not about.validation_images:
        raise RecipeError(
            "laboratory.held_out: validation: no images are held out; set data.validation, such as"
            " 1000 or 10%, or remove laboratory.held_out"
        )
    for name in ("mean", "std"):
        values = getattr(recipe.data, name)
        if values is not None and len(values) != about.channels:
            raise RecipeError(
                f"data.{name}: {len(values)} values for images of {about.channels} channels; write"
                " one a channel"
            )


def check_episodes(recipe: Recipe, about: DataInfo, task: Task, processes: int) -> None:
    """Refuse what environments do not divide over, and judges of single examples.

    Raises:
        RecipeError: one sentence.
    """
    count, batch = about.environments, recipe.training.batch_size
    if count and batch % count:
        raise RecipeError(f"training.batch_size: {uneven(batch, count)}")
    if count % processes:
        raise RecipeError(
            f"data.play.environments: {count} do not divide over {processes} processes; write"
            f" {-(-count // processes) * processes}, or launch another number of processes"
        )
    if not task.needs_episodes:
        return
    search = recipe.pruning is not None and recipe.pruning.selection.name == "eagle_eye"
    if recipe.laboratory is not None or search:
        what = "pruning.selection: eagle_eye" if search else "laboratory"
        raise RecipeError(
            f"{what} measures single examples, and the {task.headline.name} is of whole episodes;"
            " remove it"
        )


def _check_durations(recipe: Recipe, per_epoch: int) -> None:
    total = recipe.training.duration.steps(per_epoch)
    if not total:
        raise RecipeError(
            f"training.duration: {recipe.training.duration} is less than a step; write 1it or more"
        )
    for name in ("log", "evaluation", "checkpoint"):
        every = getattr(recipe, name).every
        if every.amount and not every.steps(per_epoch, total):
            raise RecipeError(f"{name}.every: {every} is less than a step; write 1it or more")


def _check_augment(data: DataConfig, about: DataInfo) -> None:
    augment, dataset, height = data.augment, facts_of(data), about.height
    if (augment.policy or augment.colour) and about.channels not in (1, 3):
        raise RecipeError(
            f"data.augment: policy and colour change pictures in grey or in colour, and these have"
            f" {about.channels} channels; remove them"
        )
    side = data.image_size or (dataset.size if dataset else height)
    if augment.crop_padding > side:
        raise RecipeError(
            f"data.augment.crop_padding: {augment.crop_padding} pixels around images of {side}"
            f" make some crops wholly black; write {side // 8}, or at most {side}"
        )
    if augment.cutout >= 2 * height:
        raise RecipeError(
            f"data.augment.cutout: a square of {augment.cutout} pixels covers images of"
            f" {height} wholly; write {height // 2}, or less than {2 * height}"
        )


def _check_store(data: DataConfig) -> None:
    """Refuse options of streamed images for a data set that is known to be held in memory."""
    dataset = facts_of(data)
    if dataset is None or dataset.streamed or data.stream:
        if data.stream and data.name in ("digits", "synthetic"):
            raise RecipeError(f"data.stream: {data.name} is held in memory; write false")
        return
    resized = data.image_size not in (None, dataset.size)
    stated = streamed_alone(data) + [f"image_size: {data.image_size}"] * resized
    if stated:
        raise RecipeError(
            f"data.{stated[0]} is for streamed images, and those of {data.name} are held in memory"
            f" as they are, {dataset.size} pixels a side; omit it, or see augment.resize"
        )
