"""A trained model, found by what a command names, with the data that a recipe tests it on."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunezoo import models
from prunezoo.models import trees
from prunezoo.models.count import count
from prunezoo.models.errors import ModelError
from prunezoo.models.files.places import from_hub, is_hub, located
from prunezoo.models.modes import evaluating
from prunezoo.models.options import first_line, shown
from prunezoo.models.pretrained import pretrained_for
from prunezoo.models.timm_networks import FAULTS
from prunezoo.models.trees import Tree
from prunezoo.models.zoo import build_again
from prunezoo.schema.data import DataConfig
from prunezoo.schema.recipe import Recipe, RecipeError, checked, load
from prunezoo.schema.source import Source, override, resolve
from prunezoo.training.build import build_task, formatted, make_accelerator, placed
from prunezoo.training.data.data import open_data
from prunezoo.training.data.expected import Expected, colour, noted, row_of
from prunezoo.training.data.facts import DATASETS, facts_of
from prunezoo.training.history import Summary
from prunezoo.training.start import RESOLVED, set_numerics
from prunezoo.training.summary import device_name

ALONE = {"duration": "1ep", "batch_size": 100}  # of a model without a recipe: fp32, in hundreds
MOST = 8  # folders that a fault names
QUIET = ["processes=null", "log.tracker=none"]  # a test may run on other machines than training


class Found(NamedTuple):
    """A model in evaluation mode on the CPU, and the images that it expects, if they are known.

    `words`: the length of the rows that it was trained on; 0 if it reads no words.
    """

    model: nn.Module
    images: Expected | None
    is_file: bool
    words: int = 0

    @property
    def structure(self) -> dict[str, Any]:
        """The name, classes, channels and options that build the dense network again."""
        return vars(self.model)["structure"]

    def dense(self) -> nn.Module:
        """The network as it was before any pruning, with random weights."""
        return build_again(self.structure).eval()

    def image(self, size: int | None = None) -> Tensor:
        """A black image as the model expects it, or of `size` pixels a side; or its other input.

        Raises:
            RecipeError: neither is known.
        """
        entry = models.MODELS.get(self.structure["name"])
        if entry is not None and (entry.words or not entry.size):
            return entry.example(self.structure["in_channels"], self.words)
        if size is not None:
            sides = (size, size)
        elif self.images is not None:
            sides = (self.images["height"], self.images["width"])
        else:
            raise RecipeError("the model has no image size with it; give --image-size")
        return torch.zeros(1, self.structure["in_channels"], *sides)


def find(where: str) -> Found:
    """The model of a run's folder, a file, `hf://owner/name`, or of a name with its weights.

    A name is one of `models.build`, whose weights' own name may follow after a point:
    timm/resnet18.a1_in1k, torchvision/resnet18.IMAGENET1K_V1.

    Raises:
        ModelError: there is none.
    """
    if is_hub(where) or Path(where).exists() or where.endswith(".safetensors"):
        notes = models.header(where)["notes"]
        return Found(models.load(where), noted(notes), is_file=True, words=row_of(notes))
    folder, slash, last = where.rpartition("/")
    if slash and where.partition("/")[0] not in ("timm", "torchvision"):
        raise ModelError(f"{shown(where)}: no such file or folder{_there(Path(folder), last)}")
    name, _, tag = where.partition(".")
    try:
        about = pretrained_for(name, tag or True)
        if about.classes is None:
            raise ModelError("its trunk alone is trained; train it first")
        model = models.build(
            name, num_classes=about.classes, in_channels=about.channels, pretrained=tag or True
        )
    except ModelError as error:
        raise ModelError(f"{shown(where)}: no such file or folder; as a name: {error}") from None
    except OSError as error:
        raise ModelError(str(error)) from None
    side = {"height": about.size, "width": about.size}
    images = Expected(channels=about.channels, mean=about.mean, std=about.std, **side)
    return Found(model.eval(), images, is_file=False)


def _there(folder: Path, name: str) -> str:
    """What is in the folder instead."""
    if not folder.is_dir():
        return ""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    listed = f"{', '.join(names[:MOST])}{', …' if len(names) > MOST else ''}"
    return f" ({hint}in {folder}: {listed})" if names else ""


def recipe_of(
    where: str, found: Found, recipe: Path | None, data: str | None, settings: Sequence[str]
) -> Recipe:
    """The recipe to test a model by: the one given, else the one in its folder.

    `data` takes the place of the recipe's data, with images of the size and scale of those that the
    model expects; `settings` are as train.py's --set. Images of which neither recipe nor name says
    how they are normalised are normalised as the model expects.

    Raises:
        RecipeError: there is no recipe and no data, or they are faulty.
    """
    path = recipe or (_beside(where) if found.is_file else None)
    if data is None:
        if path is None:
            raise RecipeError(
                f"{where}: no {RESOLVED} in its folder; give --recipe, or --data with the name or"
                " the folder of a data set"
            )
        source = resolve(path, list(settings))
    else:
        source = Source(_with_data(where, found, path, data), {}, str(path or where))
        override(source, list(settings))
    override(source, QUIET)
    tested, images = checked(source), found.images
    if images is None:
        return tested
    return tested.model_copy(update={"data": tested.data.usually(images["mean"], images["std"])})


def held_out_otherwise(where: str, found: Found, recipe: Recipe) -> bool:
    """True if the model's own recipe held out other images of these data: it saw some of them."""
    path = _beside(where) if found.is_file else None
    if path is None:
        return False
    own = load(path)[0].data
    return own.name == recipe.data.name and own.validation != recipe.data.validation


def _beside(where: str) -> Path | None:
    if is_hub(where):
        return from_hub(where, RESOLVED)
    path = located(where).parent / RESOLVED
    return path if path.exists() else None


def _with_data(where: str, found: Found, path: Path | None, data: str) -> dict[str, Any]:
    """The values of a recipe whose data is another."""
    recipe, images = load(path)[0] if path else None, found.images
    channels = found.structure["in_channels"]
    if images is not None:
        scale, size = (images["mean"], images["std"]), images["height"]
    elif recipe is not None:
        scale, size = colour(recipe.data, channels), _size(recipe.data)
    else:
        raise RecipeError(f"{where}: does not say on what images it was trained; give --recipe")
    values: dict[str, Any] = {"model": found.structure["name"], "training": dict(ALONE)}
    if recipe is not None:
        values = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    scaled = {"name": data, "mean": list(scale[0]), "std": list(scale[1])}
    return values | {"data": scaled | _sized(data, channels, size)}


def _size(config: DataConfig) -> int | None:
    """The side of the images that a network sees; None where only the data tell."""
    facts = facts_of(config)
    return config.augment.resize or config.image_size or (facts.size if facts else None)


def _sized(data: str, channels: int, size: int | None) -> dict[str, Any]:
    """The keys that make images of a data set that large.

    Raises:
        RecipeError: they have other channels.
    """
    facts = DATASETS.get(data)
    if facts is not None and facts.channels != channels:
        raise RecipeError(
            f"--data {data}: its images have {facts.channels} channels and the model takes"
            f" {channels}; name other data"
        )
    if facts is None or facts.streamed:
        return {"image_size": size}
    return {"augment": {"resize": size}} if size not in (None, facts.size) else {}


class Trained:
    """A model on a device, with a recipe's data: as much of a run as a test needs."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        set_numerics(recipe)
        self.recipe, self.accelerator = recipe, make_accelerator(recipe, Path())
        self.device = self.accelerator.device
        self.data = open_data(
            recipe.data,
            seed=recipe.seed,
            device=self.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        self.evaluated_model = placed(model.eval(), recipe, self.device)
        self.dtype = next(model.parameters()).dtype
        self.task = build_task(recipe, self.data.info)
        self._check(vars(model)["structure"])

    def check_split(self, split: str) -> None:
        """Refuse a split without examples.

        Raises:
            RecipeError: the recipe holds none out.
        """
        if getattr(self.data.info, f"{split}_images") == 0:
            raise RecipeError(
                "the recipe holds no images out; write --set data.validation=10%, or --split test"
            )

    def formatted(self, inputs: Tree) -> Any:
        """Inputs in the precision and memory format of training."""
        return formatted(inputs, self.recipe, self.dtype)

    def about(self) -> Summary:
        """The model's size, the data set and the device, as a summary names them."""
        training, sizes = self.recipe.training, count(self.evaluated_model, self.example)
        return {
            "model/params": sizes.params,
            "model/macs": sizes.macs,
            "data/name": self.data.info.name,
            "run/device": device_name(self.device),
            "run/processes": self.accelerator.num_processes,
            "run/precision": training.precision,
            "run/batch_size": self.recipe.evaluation.batch_size or training.batch_size,
        }

    @property
    def example(self) -> Any:
        """One example's inputs, without values."""
        return self.formatted(trees.zeros(self.data.info.example, 1, self.device))

    def _check(self, structure: dict[str, Any]) -> None:
        """Refuse data of other channels, classes or sizes than the model's."""
        info = self.data.info
        has = structure["in_channels"], structure["num_classes"]
        if has != (info.channels, info.targets.outputs):
            raise RecipeError(
                f"the model has {has[0]} channels and {has[1]} outputs, and {info.name} has"
                f" {info.channels} and {info.targets.outputs}; give --data or --recipe that fit"
            )
        try:
            with evaluating(self.evaluated_model):
                self.evaluated_model(self.example)
        except FAULTS as error:
            raise RecipeError(
                f"the model cannot take {trees.described(info.example)} of {info.name}"
                f" ({first_line(error)}); write --set data.image_size"
            ) from None
