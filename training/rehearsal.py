"""A recipe tried out without data and without values: what would fail later, found at once."""

from functools import partial

import torch
from torch import Tensor, nn

import models
from models.errors import ModelError
from pruning.errors import PruningError
from training.build import build_optimizer
from training.data import DataInfo, info, known
from training.recipe import Recipe, RecipeError
from training.shares import portions


def rehearse_early(recipe: Recipe, processes: int) -> bool:
    """Rehearse before any image is read, where counts and sizes are known without; whether so."""
    it = known(recipe.data)
    if it is None or it.train is None or it.test is None:
        return False
    rehearse(recipe, info(recipe.data), processes)
    return True


def rehearse(recipe: Recipe, about: DataInfo, processes: int = 1) -> None:
    """Refuse what recipe, network and numbers of images alone show to be impossible.

    Everything runs on PyTorch's meta device: a training step on the smallest share of a batch, the
    last round of pruning, the laboratory.

    Raises:
        RecipeError: one sentence.
    """
    model = empty_model(recipe, about)
    per_epoch = steps_per_epoch(recipe, about)
    total = recipe.training.duration.steps(per_epoch)
    whole = {"steps_per_epoch": per_epoch, "total_steps": total, "processes": processes}
    try:
        _rehearse_step(recipe, about, model, processes)
        _rehearse_pruning(recipe, about, model, whole)
    except ModelError as error:
        raise RecipeError(f"model: {error}") from None
    except PruningError as error:
        text = str(error)
        raise RecipeError(text if text.startswith("laboratory") else f"pruning: {text}") from None


def empty_model(recipe: Recipe, about: DataInfo, device: str = "meta") -> nn.Module:
    """The recipe's network without values, or with values that mean nothing on another device.

    Raises:
        RecipeError: no such model, or options it does not take.
    """
    try:
        if recipe.model.weights:
            return models.load(recipe.model.weights).to(device)
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return models.build(
                recipe.model.name,
                num_classes=about.num_classes,
                in_channels=about.channels,
                **recipe.model.options,
            )
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(f"model: {error}") from None


def steps_per_epoch(recipe: Recipe, about: DataInfo) -> int:
    """Optimizer steps of one pass over the training images.

    Raises:
        RecipeError: there are fewer images than a batch has.
    """
    batch, images = recipe.training.batch_size, about.train_images
    steps = images // batch if recipe.data.drop_last else -(-images // batch)
    if not steps:
        raise RecipeError(f"training.batch_size {batch} exceeds {images} training images; lower it")
    return steps


def _images(about: DataInfo, count: int, device: str = "meta") -> Tensor:
    return torch.zeros(count, about.channels, about.height, about.width, device=device)


def _rehearse_step(recipe: Recipe, about: DataInfo, model: nn.Module, processes: int) -> None:
    """A forward pass in training mode on the fewest images that a process ever gets."""
    least = _smallest_share(recipe, about, processes)
    name = f"{recipe.model.name} on {about.channels}×{about.height}×{about.width}"
    try:
        logits = model.train()(_images(about, least))
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        if "meta" in why:
            return  # the network looks at values, which are not there
        remedy = (
            "write data.drop_last: true, or a larger training.batch_size or data.image_size"
            if "more than 1 value per channel" in why
            else "write a larger data.image_size, or choose another model"
        )
        raise ModelError(f"{name} cannot train on {least} at a time ({why}); {remedy}") from None
    finally:
        model.eval()
    if not isinstance(logits, Tensor) or logits.shape != (least, about.num_classes):
        gives = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{name} gives {gives} in training where ({least}, {about.num_classes}) logits are"
            " expected; switch off auxiliary outputs (model.options), or choose another model"
        )


def _smallest_share(recipe: Recipe, about: DataInfo, processes: int) -> int:
    """The fewest images that are normalised together in any training step."""
    config = recipe.training
    ends = [config.batch_size]
    if not recipe.data.drop_last and about.train_images % config.batch_size:
        ends.append(about.train_images % config.batch_size)
    together = 1 if config.sync_batchnorm else processes
    shares = [
        len(rows)
        for count in ends
        for rank in range(together)
        for rows in portions(count, rank, together, config.accumulation)
    ]
    return max(1, min(shares))  # a share of nothing is refused where batches are counted


def _rehearse_pruning(
    recipe: Recipe, about: DataInfo, model: nn.Module, whole: dict[str, int]
) -> None:
    """The last round of pruning and a measurement of the laboratory."""
    from pruning.rehearsal import check, check_laboratory

    make = partial(build_optimizer, recipe.training.optimizer)

    def look(network: nn.Module, device: str) -> None:
        image = _images(about, 1, device)
        if recipe.pruning is not None:
            check(recipe.pruning, network, image, optimizer=make, **whole)
        if recipe.laboratory is not None:
            check_laboratory(recipe.laboratory, network, image, **whole)

    try:
        look(model, "meta")
    except (PruningError, ModelError, NotImplementedError):
        channels = recipe.pruning is not None and recipe.pruning.granularity == "channel"
        if recipe.laboratory is None and not channels:
            raise
        # a trace without values may find axes that tests leave alone, or need a value for itself
        look(empty_model(recipe, about, "cpu"), "cpu")
