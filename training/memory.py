"""Memory that training takes in each process: a lower bound, and an estimate."""

import psutil
import torch

from prunezoo.models.count import Count
from prunezoo.schema.recipe import Recipe, RecipeError
from prunezoo.schema.training import DENSE
from prunezoo.training.build import on_cpu
from prunezoo.training.data.data import DataInfo
from prunezoo.training.data.facts import facts_of

LARGEST = 2**40  # bytes, more than any process has
KEPT = {"adam": 2, "adamw": 2, "rmsprop": 1}  # least tensors a weight that an optimizer keeps
MAPS = "feature maps: lower training.batch_size, or raise training.accumulation"
USUAL = {"sgd": 1, "adam": 2, "adamw": 2, "rmsprop": 2}


def check_memory(
    recipe: Recipe,
    about: DataInfo,
    sizes: Count,
    processes: int,
    room: int = LARGEST,
    *,
    trained: Count | None = None,
) -> None:
    """Refuse a training whose least memory does not fit into one process.

    `trained`: the network's size for a training image, where those have another side.

    Raises:
        RecipeError: names the largest part, and what to lower.
    """
    parts = _parts(recipe, about, sizes, trained or sizes, processes)
    needed = sum(parts.values())
    if needed > room:
        worst = max(parts, key=lambda name: parts[name])
        share = recipe.training.batch_size // processes // recipe.training.accumulation
        images = int(share * (1 - (needed - room) / parts[MAPS]))  # maps grow with them
        fits = f" ({images} images at a time, at most)" if worst == MAPS and images > 0 else ""
        raise RecipeError(
            f"memory: at least {needed / 2**30:,.1f} GiB a process, where"
            f" {'none has more than' if room == LARGEST else 'there are'} {room / 2**30:,.1f};"
            f" {parts[worst] / 2**30:,.1f} of them for {worst}{fits}"
        )


def machine_memory() -> int:
    """Bytes of the GPU that this process trains on, else of this machine."""
    if on_cpu():
        return psutil.virtual_memory().total + psutil.swap_memory().total
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def estimate(recipe: Recipe, sizes: Count, processes: int) -> float:
    """Bytes of weights, gradients, optimizer, average, and three maps a layer."""
    share = recipe.training.batch_size / processes / recipe.training.accumulation
    maps = 3 * sizes.activation_bytes / 4 * _width(recipe)
    return _weights(recipe, sizes, USUAL.get(recipe.training.optimizer.name, 2)) + maps * share


def _weights(recipe: Recipe, sizes: Count, kept: int) -> int:
    """Bytes of weights, gradients, average, teacher, and of what the optimizer keeps a weight.

    A teacher of a file counts nothing, as the network in it may be of any size.
    """
    training = recipe.training
    dense = training.distillation is not None and training.distillation.teacher == DENSE
    copies = 2 + kept + (training.ema is not None) + dense
    return sizes.params * copies * (8 if recipe.training.precision == "fp64" else 4)


def _width(recipe: Recipe) -> int:
    """Bytes of a value in a feature map."""
    return {"fp64": 8, "fp32": 4}.get(recipe.training.precision, 2)


def _parts(
    recipe: Recipe, about: DataInfo, sizes: Count, trained: Count, processes: int
) -> dict[str, float]:
    """Least bytes of each part, by what to lower."""
    training = recipe.training
    momentum = training.optimizer.name == "sgd" and training.optimizer.momentum > 0
    kept = KEPT.get(training.optimizer.name, int(momentum))
    share = training.batch_size / processes / training.accumulation
    largest = max((layer.outputs for layer in sizes.layers.values()), default=0)
    batch = recipe.evaluation.batch_size or training.batch_size
    looked = min(batch, max(about.validation_images, about.test_images)) / processes
    width = _width(recipe)
    kept_maps = largest if training.gradient_checkpointing else trained.activation_bytes / 4
    return {
        "weights: lower the network's width or depth (model.options)": _weights(
            recipe, sizes, kept
        ),
        MAPS: kept_maps * width * share,
        "feature maps of a test: lower evaluation.batch_size": largest * looked * width,
        "images: lower data.image_size or their number": _image_bytes(recipe),
    }


def _image_bytes(recipe: Recipe) -> float:
    """Images held in memory, as far as their number is known beforehand."""
    dataset, data = facts_of(recipe.data), recipe.data
    if (
        dataset is None
        or dataset.train is None
        or dataset.test is None
        or data.stream
        or dataset.streamed
    ):
        return 0
    side = data.image_size or dataset.size
    bordered = side + 2 * data.augment.crop_padding
    return dataset.channels * (dataset.train * bordered**2 + dataset.test * side**2)
