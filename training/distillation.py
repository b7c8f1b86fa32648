"""Distillation: the loss follows the labels and the outputs of a teacher, which does not learn."""

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunezoo import models
from prunezoo.models import trees
from prunezoo.models.count import count
from prunezoo.models.errors import ModelError
from prunezoo.models.files.disk import sha256
from prunezoo.models.files.places import located
from prunezoo.models.options import first_line
from prunezoo.models.timm_networks import FAULTS
from prunezoo.models.trees import Tree
from prunezoo.schema.recipe import Recipe, RecipeError
from prunezoo.schema.training import DENSE
from prunezoo.training.build import placed
from prunezoo.training.data.data import DataInfo

if TYPE_CHECKING:
    from prunezoo.training.run import Run


class Teacher:
    """A network whose outputs training follows: one of a file, or the run's own dense network.

    The dense network is the averaged one (else the one trained) just before the first round of
    pruning; until then the loss is the task's own. In checkpoints: the dense network's tensors, or
    the checksum of the file.

    Raises:
        RecipeError: the file is missing, damaged, or not a model's.
    """

    def __init__(self, recipe: Recipe, example_input: Tree) -> None:
        self.config = recipe.training.distillation
        self.network: nn.Module | None = None
        self._macs: dict[int | None, int] = {}
        self.checksum: str | None = None
        self._example_input, self._sizes = example_input, recipe.data.train_sizes
        if self.config is not None and self.config.teacher != DENSE:
            self._take(
                placed(load_teacher(self.config.teacher), recipe, trees.device(example_input))
            )
            self.checksum = sha256(located(self.config.teacher))

    @property
    def awaited(self) -> bool:
        """True until the run's own dense network is its teacher."""
        return self.config is not None and self.network is None

    def take(self, network: nn.Module) -> None:
        """Let a copy of this network be the teacher."""
        self._take(copy.deepcopy(network))

    def _take(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)
        self._macs = {
            side: count(network, trees.resized(self._example_input, side)).macs
            for side in self._sizes
        }

    def macs(self, side: int | None) -> int:
        """Multiply-accumulates of an image of that `data.train_size`; 0 without a network."""
        return self._macs.get(side, 0)

    def loss(self, run: "Run", task: Tensor, logits: Tensor, inputs: Tree) -> Tensor:
        """(1 − w) · task + w · distance of a share of the batch, summed over its images."""
        if self.config is None or self.network is None:
            return task
        with torch.no_grad(), run.accelerator.autocast():
            targets = self.network(inputs)
        weight = self.config.weight
        return (1 - weight) * task + weight * distance(logits, targets, self.config.temperature)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of the run's own dense network; none of a file's."""
        own = self.network if self.checksum is None else None
        return {} if own is None else own.state_dict()

    def load(self, dense: nn.Module, tensors: dict[str, Tensor], checksum: str | None) -> None:
        """Take over a checkpoint's; `dense` is a network of the shape before pruning.

        Raises:
            RecipeError: the teacher's file is another one since.
        """
        if self.config is not None and checksum != self.checksum:
            raise RecipeError(
                f"training.distillation: {self.config.teacher} has changed since the checkpoint was"
                " written; put the old file back, or choose another --output"
            )
        if tensors:
            self.take(dense)
            assert self.network is not None, "taken above"
            self.network.load_state_dict(tensors)


def distance(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T² Σ KL(softmax(targets / T) ‖ softmax(logits / T)), summed over images; both (N, classes).

    Hinton et al. 2015, arXiv:1503.02531, section 2; T² keeps the size of the gradients. Deviation:
    theirs is the cross-entropy with the soft targets, which is larger by the teacher's entropy, a
    constant.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(targets.to(logits.dtype) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


def load_teacher(path: str) -> nn.Module:
    """The network of a model file.

    Raises:
        RecipeError: the file is missing, damaged, or not a model's.
    """
    try:
        return models.load(path)
    except ModelError as error:
        raise RecipeError(
            f"training.distillation: {error}; name a model.safetensors of an earlier run, or write"
            f" teacher: {DENSE}"
        ) from None


def rehearse_teacher(recipe: Recipe, about: DataInfo) -> int:
    """Multiply-accumulates an image of the file's network; 0 if there is none.

    Raises:
        RecipeError: it cannot be read, or its outputs on such images are not of these classes.
    """
    config = recipe.training.distillation
    if config is None or config.teacher == DENSE:
        return 0
    network = load_teacher(config.teacher).to("meta")
    image, size = trees.zeros(about.example, 1), trees.described(about.example)
    where = f"training.distillation: {config.teacher}"
    remedy = "name a network that was trained on these data"
    try:
        with torch.no_grad():
            logits = network(image)
    except FAULTS as error:
        raise RecipeError(
            f"{where} cannot take images of {size} ({first_line(error)}); {remedy}"
        ) from None
    classes = about.targets.outputs
    if logits.shape[1:] != (classes,):
        raise RecipeError(
            f"{where} tells {logits.shape[-1]} classes apart and the data have {classes}; {remedy}"
        )
    return count(network, image).macs


def check_distillation(recipe: Recipe) -> None:
    """Refuse a teacher that never comes, and criteria that would score its loss.

    Raises:
        RecipeError: one sentence.
    """
    config, pruning = recipe.training.distillation, recipe.pruning
    if config is None:
        return
    if config.teacher == DENSE:
        _check_dense(recipe)
    if pruning is None:
        return
    buckets = pruning.selection.options.get("protocol") == "buckets"
    if pruning.accumulate or buckets:
        option = "selection.protocol: buckets" if buckets else "accumulate: true"
        raise RecipeError(
            f"training.distillation: pruning.{option} scores by the gradients of training, which"
            " would be the teacher's too; remove one of the two"
        )


def _check_dense(recipe: Recipe) -> None:
    where = f"training.distillation: teacher: {DENSE} is the network before the first round of"
    if recipe.pruning is None:
        raise RecipeError(
            f"{where} pruning, and there is none; name a model file, or add a pruning section"
        )
    schedule, model = recipe.pruning.schedule, recipe.model
    begins = schedule.start.amount or schedule.wait.amount or schedule.trigger
    early = schedule.initial or not begins
    if early and not (model.weights or model.pretrained):
        raise RecipeError(
            f"{where} pruning, at step 0 untrained; set pruning.schedule.start, or name a file"
        )
