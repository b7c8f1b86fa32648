"""Words for readers who do not know the code: networks, data sets, methods, settings."""

import re
from pathlib import Path

DATA = {
    "digits": "handwritten digits (8 × 8)",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny ImageNet",
    "imagenet": "ImageNet",
    "imagenette": "Imagenette",
    "penn_treebank": "Penn Treebank",
    "data/python_text": "Python's documentation",
}
NETWORKS = {
    "digits_cnn": "Digits CNN",
    "mnist_cnn": "MNIST CNN of the foresight thesis",
    "lenet_300": "LeNet-300-100",
    "bep_small_cnn": "Small CNN of the BEP paper",
    "bep_vgg16": "VGG-16 of the BEP paper",
    "small_conv": "Small CNN of Mean Replacement",
    "medium_conv": "Medium CNN of Mean Replacement",
    "vgg_11": "VGG-11",
    "alexnet": "AlexNet",
    "vgg_bn_drop": "VGG-16 with dropout",
    "resnet18_cifar": "ResNet-18 for CIFAR",
    "resnet50": "ResNet-50",
    "resnet56": "ResNet-56",
    "earlycrop_resnet18": "ResNet-18 of EarlyCroP",
    "earlycrop_vgg16": "VGG-16 of EarlyCroP",
    "pointer_sentinel_lstm": "Pointer sentinel LSTM",
    "small_lstm": "Small LSTM",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
}
METHODS = {  # by the stem of a recipe
    "bep": "BEP",
    "bep_lite": "BEP-LITE",
    "chase": "Chase",
    "depgraph": "DepGraph",
    "eagle_eye": "EagleEye",
    "epi": "EPI",
    "gmp": "GMP",
    "granet": "GraNet",
    "grasp": "GraSP",
    "halp": "HALP",
    "iter_snip": "IterSNIP",
    "lamp": "LAMP",
    "obc": "OBC",
    "obd": "OBD",
    "rigl": "RigL",
    "snip": "SNIP",
    "synflow": "SynFlow",
}
PAPERS = {
    "bep": "BEP",
    "pat": "PaT",
    "mean_replacement": "Mean Replacement",
    "earlycrop": "EarlyCroP",
    "foresight": "Foresight pruning",
}
UNITS = {"ep": "epoch", "it": "step"}
NO_PAPER = "none of the papers"
SETTINGS = {  # of the settings that tell experiments apart; {} is the value
    "pruning.channels": "{percent} of channels",
    "pruning.macs": "{percent} of MACs",
    "pruning.params": "{percent} of parameters",
    "pruning.sparsity": "{percent} of weights",
    "pruning.compression_ratio": "{value}× compression",
    "pruning.schedule.start": "from {moment}",
    "pruning.schedule.every": "every {duration}",
    "pruning.schedule.rounds": "{value} rounds",
    "pruning.scope=layer": "layer by layer",
    "model.options.init=null": "first weights as torch draws them",
    "training.duration": "{duration} of training",
}


def network(name: str) -> str:
    """A network's name for readers."""
    return NETWORKS.get(name) or name.removeprefix("timm/").replace("_", " ")


def data_set(name: str) -> str:
    """A data set's name for readers."""
    return DATA.get(name) or name


def method(recipe: str) -> str:
    """The method of a recipe's file."""
    stem = Path(recipe).stem
    return METHODS.get(stem) or stem.replace("_", " ").capitalize()


def paper(recipe: str) -> str:
    """The paper to whose recipes a recipe belongs, by its folder."""
    return PAPERS.get(Path(recipe).parent.name, NO_PAPER)


def setting(stated: str) -> str:
    """`pruning.scope=layer` as `layer by layer`; of an unknown key its last word and the value."""
    key, _, value = stated.partition("=")
    form = SETTINGS.get(stated) or SETTINGS.get(key)
    if form is None:
        return f"{key.rpartition('.')[2].replace('_', ' ')} {value}"
    named = {"percent": _percent(value), "duration": _duration(value), "moment": _moment(value)}
    return form.format(value=value, **named)


def _percent(value: str) -> str:
    """0.5 as 50 %, and 50% too."""
    number = re.fullmatch(r"(0?\.\d+|0|1)|(\d+(?:\.\d+)?)%", value)
    if number is None:
        return value
    return f"{100 * float(number[1]):g} %" if number[1] else f"{number[2]} %"


def _duration(value: str) -> str:
    """8ep as 8 epochs, and 1ep as 1 epoch."""
    number = re.fullmatch(r"(\d+)(ep|it)", value)
    if number is None:
        return _percent(value)
    return f"{number[1]} {UNITS[number[2]]}{'' if number[1] == '1' else 's'}"


def _moment(value: str) -> str:
    """8ep as epoch 8, and 20% as 20 % of training."""
    number = re.fullmatch(r"(\d+)(ep|it)", value)
    if number is None:
        return f"{_percent(value)} of training"
    return f"{UNITS[number[2]]} {number[1]}"
