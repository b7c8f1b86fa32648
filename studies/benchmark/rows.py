"""The rows of the benchmark: each a method's own recipe, on the benchmark's network and schedule.

What a row adds to its recipe is what equal terms ask for: the base recipe, the amount, the same
images to score on, everything prunable that can be, one learning-rate schedule for all, and
moments as shares of it. A method's own numbers stay unless they cannot fit 20 epochs; then they are
scaled as the row says.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["channels", "weights"]
Moment = Literal["control", "start", "early", "during", "after", "check", "compensation"]

ONE_SCHEDULE = ("training.lr_schedule.after_pruning=off", "pruning.rewind=null")
COSINE = ("training.lr_schedule=null", "training.lr_schedule={curve: cosine, warmup: 5%}")
ALGORITHM_1 = (  # PaT's, within an epoch: 8 rounds instead of 30, as there are 78 steps
    "pruning.schedule.wait=2it",
    "pruning.schedule.every=2it",
    "pruning.schedule.rounds=8",
)
EPI = "pruning.schedule.trigger={{name: epi, tau: {tau}, r: 2, ratios: []}}"
LATEST = "pruning.schedule.latest=75%"
DRIFT = "pruning.schedule.trigger={name: drift, mode: code, threshold: 0.1}"
BEP = ("pruning.schedule={start: 15%, every: 10%, end: 100%, curve: constant}",)
AFTER_15 = (
    "pruning.criterion=activation_taylor",
    "pruning.scope=layer",
    "pruning.schedule.start=15%",
)
AT_A_QUARTER = "pruning.schedule.start=25%"
COARSE = (
    "pruning.tolerance=10%"  # of many sizes on the way, or where layers of one channel are left
)
CHOSEN = "pruning.sanity=none"


@dataclass(frozen=True)
class Row:
    """One method: its recipe below recipes/, and what it needs on these terms.

    `amount`: the recipe's own amount, which the operating point's replaces. `passes`: trainings of
    the row's duration that it makes, so that its duration is a share of the budget. `first`: the
    share of training before it is smaller; of steps and of triggers, which fire at a smaller share
    of longer training, one that is rather too low, so that the dense cost lies between two lengths.
    `batchnorm`: it needs BatchNorm. `gradients`: its scores are the setting's gradient scores.
    `strengths`: settings in place of the three operating points, where no size can be asked for.
    """

    name: str
    kind: Kind
    moment: Moment
    recipe: str
    settings: tuple[str, ...] = ()
    amount: str | None = None
    passes: float = 1.0
    first: float = 0.0
    batchnorm: bool = False
    gradients: bool = False
    bep: bool = False
    strengths: tuple[str, ...] = ()


def _channels(name: str, moment: Moment, recipe: str, *settings: str, **more) -> Row:
    return Row(name, "channels", moment, recipe, settings, **more)


def _weights(name: str, recipe: str, *settings: str, **more) -> Row:
    """A row at the start of training."""
    return Row(name, "weights", "start", recipe, settings, **more)


def _foresight(name: str, recipe: str, *settings: str) -> Row:
    return _weights(name, f"foresight/{recipe}", *settings, amount="compression_ratio")


def fixed_name(share: int) -> str:
    """The row that prunes after this share of training."""
    return f"PaT at {share} %"


def _fixed(share: int) -> Row:
    return _channels(
        fixed_name(share),
        "start" if share == 0 else "early",
        "pat/fixed_epoch",
        f"pruning.schedule.start={share}%",
        *ALGORITHM_1,
        amount="channels",
        first=share / 100,
        gradients=True,
    )


def at_share(method: str, share: int) -> str:
    """The row of a method of EarlyCroP's that prunes after this share instead of by its trigger."""
    return f"{method} at {share} %"


def _without_drift(share: int) -> tuple[str, ...]:
    start = f"pruning.schedule.start={share}%"
    return ("pruning.schedule.trigger=null", "pruning.schedule.latest=null", start, *ONE_SCHEDULE)


def _one_cut(name: str, moment: Moment, *settings: str, **more) -> Row:
    own = (AT_A_QUARTER, *settings)
    amount = {"amount": "channels", "first": 0.25, "gradients": True}
    return _channels(name, moment, "pat/same_structure", *own, **amount, **more)


FIXED = (0, 10, 25, 50, 75)
LATER = FIXED[1:]
DENSE, SMALL, RANDOM_ERK = "dense", "small from the start", "random, ERK"
OWN = {  # the methods of the five papers, and chance
    "random channels", "SNIP channels", "GraSP channels", "EPI, gradients", "EarlyCroP-S", "BEP",
    "random, one cut at 15 %", "train, prune, train again", "SNIP", "GraSP", "EarlyCroP-U",
}  # fmt: skip
PAIRS = (  # a method and its controls
    ("BEP", "BEP by the latest measurement"), ("BEP", "BEP's saliency, one cut"),
    ("BEP", "random, one cut at 15 %"), ("BEP", "SNIP channels"), ("BEP", "GraSP channels"),
    ("BEP", "random channels"), ("EPI, gradients", fixed_name(50)),
    ("EarlyCroP-S", fixed_name(50)), ("EarlyCroP-S", "SNIP channels"),
)  # fmt: skip
ONE_CUT, EARLYCROP = "one cut at 25 %", ("EarlyCroP-S", "EarlyCroP-U")
CHECKS = (  # what differs in one respect, run in the first setting alone
    ("one cut, mean replacement", ONE_CUT), ("one cut, least squares", ONE_CUT),
    ("one cut, BatchNorm recalibrated", ONE_CUT), ("one cut, new weights", ONE_CUT),
    ("as many others of each layer", ONE_CUT), ("SNIP, shuffled in layers", "SNIP"),
    ("SNIP, least important", "SNIP"), ("SNIP, new weights", "SNIP"),
    *((method, at_share(method, share)) for method in EARLYCROP for share in LATER),
)  # fmt: skip
# run in all settings and at all points: the papers' own, their controls, and chance
EVERYWHERE = {DENSE, SMALL, RANDOM_ERK, *OWN, *(name for pair in PAIRS for name in pair)}
# of these, on the first network, what three seeds put more than five points from the reference
FAR = {*EARLYCROP, "train, prune, train again"}
ORACLE, PRUNE_TRAIN = "oracle: PaT's best epoch", "PruneTrain"

CHANNELS = (
    _channels("random channels", "start", "earlycrop/random_s", amount="nodes"),
    _channels(
        "L1 norm",
        "start",
        "earlycrop/efficient_conv_nets",
        "pruning.schedule.start=0it",
        *COSINE,
        amount="nodes",
    ),
    _channels("SNIP channels", "start", "bep/snip", amount="channels"),
    _channels("GraSP channels", "start", "bep/grasp", amount="channels"),
    _channels("SNAP", "start", "earlycrop/snap", amount="nodes"),
    _channels("CroP-S", "start", "earlycrop/crop_s", amount="nodes"),
    _channels("CroPit-S", "start", "earlycrop/cropit_s", COARSE, amount="nodes"),
    _channels("IterSNIP channels", "start", "bep/iter_snip", COARSE),
    _channels("SynFlow channels", "start", "bep/synflow", COARSE),
    _channels(
        "EagleEye",
        "start",
        "bep/eagle_eye",
        "pruning.selection={name: eagle_eye, candidates: 20, adapt: 5, judge: 5, batch_size: 128}",
        amount="params",
    ),
    _channels(
        "Pruning from Scratch",
        "start",
        "bep/prune_from_scratch",
        # ten epochs, as in the paper
        "pruning.selection={name: prune_from_scratch, steps: 780, batch_size: 64}",
        amount="params",
    ),
    *map(_fixed, FIXED),
    _channels(
        "EPI, gradients",
        "early",
        "pat/epi",
        EPI.format(tau=0.944),
        LATEST,
        *ALGORITHM_1,
        amount="channels",
        first=0.12,  # from epoch 8 on, however long training is
        gradients=True,
    ),
    _channels(
        "EPI, magnitude",
        "early",
        "pat/epi",
        COARSE,
        "pruning.criterion=pat_magnitude",
        "pruning.accumulate=off",
        EPI.format(tau=0.983),
        LATEST,
        *ALGORITHM_1,
        amount="channels",
        first=0.12,
    ),
    _channels(
        "EarlyCroP-S", "early", "earlycrop/earlycrop_s", DRIFT, LATEST, *ONE_SCHEDULE,
        amount="nodes", first=0.35,  # epoch 11 or 12 of 20, 17 of 42
    ),
    *(
        _channels(
            at_share("EarlyCroP-S", share), "early", "earlycrop/earlycrop_s",
            *_without_drift(share), amount="nodes", first=share / 100,
        )
        for share in LATER
    ),
    _channels(
        "EarlyBird", "early", "earlycrop/early_bird", LATEST, *ONE_SCHEDULE,
        amount="nodes", first=0.4, batchnorm=True,
    ),
    _channels("BEP", "early", "bep/bep", *BEP, amount="channels", first=0.45, bep=True),
    _channels(
        "BEP by the latest measurement", "early", "bep/bep",
        *BEP, "pruning.selection.forecast=latest", amount="channels", first=0.65, bep=True,
    ),
    _channels(
        "BEP-LITE", "early", "bep/bep_lite",
        "pruning.schedule={initial: on, start: 15%, every: 10%, end: 100%, curve: constant}",
        "pruning.selection={name: bep, lite: grasp, protocol: pauses, latents: 12}",
        bep=True,
    ),
    _channels(
        "BEP's saliency, one cut", "early", "bep/snip", *AFTER_15,
        amount="channels", first=0.15,
    ),
    _channels(
        "random, one cut at 15 %", "early", "bep/random", "pruning.schedule.start=15%",
        amount="channels", first=0.15,
    ),
    _channels(
        "GateDecorators", "during", "earlycrop/gate_decorators",
        *COSINE, "pruning.tick=1.25%",
        "pruning.schedule={start: 5%, rounds: 16, every: 5%, curve: linear}",
        amount="nodes", first=0.05, batchnorm=True,
    ),
    _channels(
        PRUNE_TRAIN, "during", "pat/prune_train",
        "pruning.schedule={start: 10%, every: 10%, rounds: 9}", "pruning.selection.value=1e-2",
        strengths=tuple(f"pruning.penalty.ratio={ratio:g}" for ratio in (0.4, 0.6, 0.8)),
    ),
    _channels(
        "Slimming", "during", "methods/slimming", amount="channels", passes=2, first=0.5,
        batchnorm=True,
    ),
    _channels(
        "train, prune, train again", "after", "pat/train_prune_finetune",
        amount="channels", passes=2, first=0.5, gradients=True,
    ),
    _one_cut(ONE_CUT, "early", CHOSEN),
    _one_cut("as many others of each layer", "check"),
    _one_cut("one cut, new weights", "check", CHOSEN, "pruning.compensation=reinitialise"),
    _one_cut(
        "one cut, BatchNorm recalibrated", "compensation", CHOSEN,
        "pruning.compensation=bn_recalibrate", batchnorm=True,
    ),
    _one_cut(
        "one cut, mean replacement", "compensation", CHOSEN,
        "pruning.compensation=mean_replacement",
    ),
    _one_cut(
        "one cut, least squares", "compensation", CHOSEN,
        "pruning.compensation=least_squares",
    ),
)  # fmt: skip

WEIGHTS = (
    _weights("random, uniform", "earlycrop/random_u"),
    _weights(RANDOM_ERK, "methods/random_erk"),
    _weights("random, smart ratios", "methods/random_smart_ratios"),
    _foresight("magnitude at the start", "magnitude"),
    _foresight("LAMP", "lamp"),
    _foresight("lookahead", "lookahead"),
    _foresight("activation", "activation"),
    _weights("SNIP", "earlycrop/snip"),
    _foresight("IterSNIP", "iter_snip"),
    _foresight("FORCE", "force"),
    _foresight("GraSP", "grasp", "pruning.criterion={name: grasp, train: true}"),
    _foresight("OBD", "obd"),
    _foresight("SynFlow", "synflow"),
    _weights("CroP-U", "earlycrop/crop_u"),
    _weights("CroPit-U", "earlycrop/cropit_u"),
    _weights("ProsPr", "methods/prospr", "pruning.calibration={batches: 4, batch_size: 125}"),
    _weights("NTK-SAP", "methods/ntk_sap"),
    _weights("PHEW", "methods/phew"),
    Row(
        "EarlyCroP-U", "weights", "early", "earlycrop/earlycrop_u", (LATEST, *ONE_SCHEDULE),
        first=0.35,
    ),
    *(
        Row(
            at_share("EarlyCroP-U", share), "weights", "early", "earlycrop/earlycrop_u",
            _without_drift(share), first=share / 100,
        )
        for share in LATER
    ),
    Row("GMP", "weights", "during", "methods/gmp", ("pruning.schedule.rounds=14",), first=0.1),
    Row(
        "RigL", "weights", "during", "methods/rigl",
        ("pruning.schedule={every: 5%, end: 75%, curve: constant}",),
    ),
    Row(
        "GraNet", "weights", "during", "methods/granet",
        ("pruning.schedule={start: 5%, every: 5%, end: 69%, curve: cubic}",),
    ),
    Row(
        "magnitude after training", "weights", "after", "methods/magnitude_after_training",
        passes=2,
    ),
    Row(
        "lottery ticket, rewound", "weights", "after", "methods/lottery_ticket",
        ("pruning.schedule.rounds=3", "pruning.rewind=20it"),
        passes=3.85,
    ),
    Row("SNIP, shuffled in layers", "weights", "check", "methods/sanity_checks"),
    Row(
        "SNIP, least important", "weights", "check", "methods/sanity_checks",
        ("pruning.sanity=invert",),
    ),
    Row(
        "SNIP, new weights", "weights", "check", "methods/sanity_checks",
        (CHOSEN, "pruning.compensation=reinitialise"),
    ),
)  # fmt: skip
