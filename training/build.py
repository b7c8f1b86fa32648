"""Network, moving average, optimizer and accelerator of a recipe."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    parse_flag_from_env,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from prunezoo import models
from prunezoo.models import trees
from prunezoo.models.eager import step_eagerly
from prunezoo.models.errors import ModelError
from prunezoo.models.head import renew_head
from prunezoo.models.options import first_line
from prunezoo.models.pointwise import subsample_first
from prunezoo.models.pretrained import pretrained_for
from prunezoo.models.timm_networks import FAULTS
from prunezoo.models.trees import Tree
from prunezoo.schema.model import ModelConfig
from prunezoo.schema.recipe import Recipe, RecipeError
from prunezoo.schema.task import TaskConfig
from prunezoo.schema.training import EmaConfig, OptimizerConfig, TrainingConfig
from prunezoo.tasks import TASKS, Task, TaskError
from prunezoo.training.average import Average
from prunezoo.training.data.data import DataInfo
from prunezoo.training.data.expected import noted
from prunezoo.training.data.facts import facts_of
from prunezoo.training.random import generator
from prunezoo.training.ranks.launcher import check_launcher, launched_processes

DEVICES = Path("/dev")  # where the driver lists its GPUs


def build_model(recipe: Recipe, info: DataInfo, device: torch.device) -> nn.Module:
    """The recipe's network, initialised from its seed, or read from the weights it names.

    Raises:
        RecipeError: no such model, or options it does not take.
    """
    try:
        # the global state, which layers draw their first weights from, is left as it was
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(recipe.seed, "init").initial_seed())
            if recipe.model.weights:
                model = load_start(recipe.model, info)
            elif recipe.model.pretrained:
                model = build_pretrained(recipe.model, info)
            else:
                model = models.build(
                    recipe.model.name,
                    num_classes=info.targets.outputs,
                    in_channels=info.channels,
                    **recipe.model.options,
                )
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(f"model: {error}") from None
    return placed(model.train(), recipe, device)


def build_pretrained(config: ModelConfig, about: DataInfo) -> nn.Module:
    """The network with weights from elsewhere, for the recipe's images and classes.

    Raises:
        ModelError: no such weights, or see `check_head`.
        OSError: they cannot be reached.
    """
    check_head(config, about)
    classes = pretrained_for(config.name, config.pretrained).classes
    model = models.build(
        config.name,
        num_classes=about.targets.outputs if classes is None else classes,
        in_channels=about.channels,
        pretrained=config.pretrained,
        **config.options,
    )
    return renew_head(model, about.targets.outputs) if config.head else model


def check_head(config: ModelConfig, about: DataInfo) -> None:
    """Refuse weights from elsewhere that are for other classes than the data have.

    Raises:
        ModelError: no such weights, or they are, and the recipe does not ask for a new head.
    """
    if config.pretrained and config.head is None:
        classes = pretrained_for(config.name, config.pretrained).classes
        if classes is not None:
            _check_outputs(f"{config.name} as pretrained", classes, about)


def _check_outputs(start: str, outputs: int, about: DataInfo) -> None:
    if outputs != about.targets.outputs:
        raise ModelError(
            f"{start} has {outputs} outputs and these data need {about.targets.outputs}; write"
            " model.head: new, which replaces its last layer by one that starts anew"
        )


def normalised(recipe: Recipe) -> Recipe:
    """The recipe; its images are normalised as those of the weights that it starts from.

    Where the recipe or the data set's name says how, they are not.

    Raises:
        RecipeError: no such weights.
    """
    start, data = recipe.model, recipe.data
    if facts_of(data) or not (start.weights or start.pretrained):
        return recipe
    try:
        if start.weights:
            images = noted(models.header(start.weights)["notes"])
            colours = (images["mean"], images["std"]) if images else None
        else:
            about = pretrained_for(start.name, start.pretrained)
            colours = (about.mean, about.std)
    except (ValueError, OSError) as error:
        raise RecipeError(f"model: {error}") from None
    return recipe.model_copy(update={"data": data.usually(*colours)}) if colours else recipe


def build_task(recipe: Recipe, info: DataInfo) -> Task:
    """The recipe's task, else the data set's own.

    Raises:
        RecipeError: the targets of these data or the recipe's training are not of this task.
    """
    wanted = recipe.task or TaskConfig(name=info.task)
    try:
        task = TASKS[wanted.name](info.targets, recipe.training, **wanted.options)
        task.check_targets(info.name)
    except TaskError as error:
        raise RecipeError(str(error)) from None
    return task


def load_start(config: ModelConfig, about: DataInfo) -> nn.Module:
    """The network of the file that a recipe starts from, for the recipe's data.

    Raises:
        ModelError: the file is missing or damaged, or is of other images or outputs.
    """
    path = config.weights or ""
    model = models.load(path)
    channels, outputs = (vars(model)["structure"][key] for key in ("in_channels", "num_classes"))
    if channels != about.channels:
        raise ModelError(
            f"{path} takes images of {channels} channels and these have {about.channels}; choose"
            " other data, or start without model.weights"
        )
    if config.head == "new":
        return renew_head(model, about.targets.outputs)
    _check_outputs(path, outputs, about)
    return model


def placed(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """The model on the device, in the precision and memory format of training."""
    layout = torch.channels_last if recipe.training.channels_last else torch.preserve_format
    dtype = torch.float64 if recipe.training.precision == "fp64" else torch.float32
    if recipe.training.channels_last and device.type == "cpu":
        subsample_first(model)
    # initialised on the CPU, then moved: one seed gives the same weights on every device
    return model.to(device, dtype).to(memory_format=layout)  # pyright: ignore[reportCallIssue]


def formatted(inputs: Tree, recipe: Recipe, dtype: torch.dtype) -> Any:
    """Inputs in the precision and memory format of training."""
    last = recipe.training.channels_last

    def laid_out(leaf: Tensor) -> Tensor:
        images = last and leaf.dim() == 4
        layout = torch.channels_last if images else torch.contiguous_format
        return leaf.contiguous(memory_format=layout)

    return trees.mapped(laid_out, trees.cast(inputs, dtype))


def build_averager(
    config: EmaConfig | None, model: nn.Module, steps_per_epoch: int, total_steps: int
) -> Average | None:
    """The moving average of the model, or None where the recipe has no `ema`."""
    if config is None:
        return None
    return Average(model, config, start=config.start.steps(steps_per_epoch, total_steps))


def make_accelerator(recipe: Recipe, folder: Path) -> Accelerator:
    """One per process; checks that as many processes run as were asked for.

    Raises:
        RecipeError: fewer processes than the launcher's or the recipe's number; a launcher's wish
            that is not the recipe's; a batch that does not divide; half precision on a CPU without
            it (7 to 30 times slower); a GPU that PyTorch cannot use.
    """
    check_launcher(recipe)
    _check_gpu()
    precision = {"fp32": "no", "fp64": "no"}.get(
        recipe.training.precision, recipe.training.precision
    )
    accelerator = Accelerator(
        cpu=on_cpu(),
        mixed_precision=precision,
        log_with=None if recipe.log.tracker == "none" else recipe.log.tracker,
        project_dir=str(folder),
        # `placed` did that; accelerate would first import PyTorch's distributed tensors to ask
        device_placement=False,
        kwargs_handlers=[_ddp_options(recipe.training)],
    )
    launched = launched_processes()
    if launched and accelerator.num_processes < launched:
        raise RecipeError(
            f"{launched} processes were asked for and {accelerator.num_processes} runs; on CPU use"
            f" ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched} train.py …"
        )
    recipe.check_processes(accelerator.num_processes)
    if on_cpu() and (precision == "fp16" or (precision == "bf16" and not _cpu_has_bf16())):
        raise RecipeError(
            f"training.precision: {precision} is many times slower on this CPU;"
            " use --set training.precision=fp32"
        )
    return accelerator


def _ddp_options(training: TrainingConfig) -> DistributedDataParallelKwargs:
    hooks = DDPCommunicationHookType
    return DistributedDataParallelKwargs(
        # gradients lie in the buckets: no second copy of them, and none is copied each step
        gradient_as_bucket_view=True,
        # rank 0's statistics reach the others when something looks at them: Run.sync_buffers
        broadcast_buffers=False,
        comm_hook=hooks.BF16 if training.compress_gradients else hooks.NO,
    )


def on_cpu() -> bool:
    """Return True if training runs on the CPU: by ACCELERATE_USE_CPU, or without a GPU."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()


def _check_gpu() -> None:
    """Refuse to train on the CPU where there is a GPU, and nobody asked for the CPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "unset") in ("", "-1")
    if parse_flag_from_env("ACCELERATE_USE_CPU") or torch.cuda.is_available() or hidden:
        return
    if any(DEVICES.glob("nvidia[0-9]*")):
        version = torch.version.cuda
        built = f"is built for CUDA {version}" if version else "is built without CUDA"
        raise RecipeError(
            f"this PyTorch {built} and cannot use this machine's NVIDIA GPU (nvidia-smi shows what"
            " its driver supports); update the driver, install a PyTorch that fits it, or train on"
            " the CPU with ACCELERATE_USE_CPU=true"
        )


def _cpu_has_bf16() -> bool:
    # private: PyTorch has no public way to ask it of a CPU
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def build_optimizer(training: TrainingConfig, model: nn.Module) -> Optimizer:
    """The recipe's optimizer over the model's parameters, each exactly once.

    With `decay_norm_and_bias: false`, one-dimensional parameters form a group without weight decay.
    On a GPU the fused implementation is used where torch has one; it computes the same update.

    Raises:
        RecipeError: no such optimizer, or options it does not take.
    """
    config = training.optimizer
    shared = {"lr": config.lr, "weight_decay": config.weight_decay}
    if next(model.parameters()).is_cuda and config.name in _fused(training):
        shared["fused"] = True
    try:
        optimizer = _constructor(config, shared | config.options)(_groups(config, model))
    except FAULTS as error:
        raise RecipeError(
            f"training.optimizer: {config.name} does not take these options"
            f" ({first_line(error)}); write others"
        ) from None
    return step_eagerly(optimizer)


def _fused(training: TrainingConfig) -> tuple[str, ...]:
    adams = ("adam", "adamw")
    # torch's fused SGD leaves its momentum unwritten where the scaler skips the very first step
    return adams if training.precision == "fp16" else ("sgd", *adams)


def _constructor(config: OptimizerConfig, shared: dict[str, Any]) -> Callable[..., Optimizer]:
    match config.name:
        case "sgd":
            own = {"momentum": config.momentum, "nesterov": config.nesterov}
            return partial(torch.optim.SGD, **own, **shared)
        case "adam":
            return partial(torch.optim.Adam, betas=config.betas, eps=config.eps, **shared)
        case "adamw":
            return partial(torch.optim.AdamW, betas=config.betas, eps=config.eps, **shared)
        case "rmsprop":
            own = {"alpha": config.alpha, "eps": config.eps, "momentum": config.momentum}
            return partial(torch.optim.RMSprop, **own, **shared)
    from timm.optim import create_optimizer_v2

    return partial(create_optimizer_v2, opt=config.name.removeprefix("timm/"), **shared)


def _groups(config: OptimizerConfig, model: nn.Module) -> list[dict[str, Any]]:
    if config.layer_decay is None:
        return _by_decay(config, [p for p in model.parameters() if p.requires_grad])
    groups: list[dict[str, Any]] = []
    layers = _layers(model)
    for depth, parameters in enumerate(layers):
        scale = config.layer_decay ** (len(layers) - 1 - depth)
        groups += [{**group, "lr_scale": scale} for group in _by_decay(config, parameters)]
    return groups


def _by_decay(config: OptimizerConfig, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    if config.decay_norm_and_bias:
        return [{"params": parameters}]
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each of timm's layers of a network, from the input on.

    Raises:
        RecipeError: it is not timm's.
    """
    if not hasattr(model, "group_matcher"):
        raise RecipeError(
            "training.optimizer.layer_decay: the network does not say in which order its layers"
            " come; choose one of timm's (model: timm/<name>), or remove it"
        )
    from timm.models import group_parameters

    network: Any = model
    layers = group_parameters(model, network.group_matcher(coarse=False), return_values=True)
    return [[p for p in layers[depth] if p.requires_grad] for depth in sorted(layers)]
