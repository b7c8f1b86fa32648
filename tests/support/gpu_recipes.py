"""Small trainings of every kind, for a pretended GPU: settings over the digits' base recipe."""

from collections import Counter

from tests.support.pretend_gpu import PretendGPU

SMALL = (
    "training.duration=2ep",
    "training.batch_size=192",
    "model.options.width=0.5",
    "log.every=1000it",  # a log line reads the loss, which waits for the device
    "data.validation=10%",
    "evaluation.every=1ep",
)
CHANNELS = "granularity: channel, channels: 50%"
LAST = "training.channels_last=true"
SURGERY = "application: surgery, schedule: {start: 1ep}"
BEP = (
    f"pruning={{criterion: activation_taylor, {CHANNELS}, scope: layer, floor: 0.001,"
    " application: surgery, calibration: {batch_size: 64},"
    " schedule: {start: 1ep, every: 1ep, end: 100%, curve: constant},"
    " selection: {name: bep, latents: 2, dense_latents: 2, draws: 100, protocol: "
)
RECIPES = {
    "dense": (LAST,),
    "adam": (
        "training.optimizer={name: adam, lr: 1e-3}",
        "training.ema={decay: 0.9}",
        "training.clip_norm=1",
        "training.accumulation=2",
    ),
    "average": (LAST, "training.ema={decay: 0.9, warmup: true}"),
    "mixed": ("training.mixup=0.2", "training.cutmix=1", "training.label_smoothing=0.1"),
    "fp16, sgd": ("training.precision=fp16",),
    "fp16, adam": ("training.precision=fp16", "training.optimizer={name: adam, lr: 1e-3}"),
    "weights": ("pruning={criterion: magnitude, sparsity: 80%, schedule: {start: 1ep}}",),
    "masks": (
        LAST,
        f"pruning={{criterion: taylor, {CHANNELS}, application: mask, schedule: {{start: 1ep}}}}",
    ),
    "surgery": (
        LAST,
        "training.precision=bf16",
        "training.ema={decay: 0.9}",
        f"pruning={{criterion: snip, {CHANNELS}, {SURGERY}}}",
    ),
    "latency": (
        LAST,
        "training.precision=bf16",
        "pruning={criterion: magnitude, granularity: channel, latency: 30%, tolerance: 20%,"
        f" {SURGERY}}}",
    ),
    "accumulated": (f"pruning={{criterion: bn_taylor, accumulate: true, {CHANNELS}, {SURGERY}}}",),
    "epi": (
        "training.duration=9ep",
        f"pruning={{criterion: bn_taylor, accumulate: true, {CHANNELS},"
        " application: mask_then_surgery,"
        " schedule: {trigger: {name: epi}, latest: 8ep, rounds: 2, every: 2it}}",
    ),
    "drift": (
        f"pruning={{criterion: crop, {CHANNELS}, application: surgery,"
        " schedule: {trigger: {name: drift}, latest: 1ep}}",
    ),
    "mask distance": (
        f"pruning={{criterion: bn_scale, {CHANNELS}, penalty: l1_bn, application: surgery,"
        " schedule: {trigger: {name: mask_distance, previous: 1, distance: 0.0}, latest: 1ep}}",
    ),
    "n_of_m": (
        "training.ema={decay: 0.9}",
        "pruning={criterion: magnitude, scope: '2:4', refine: 2e-4, application: straight_through}",
    ),
    "distillation": (
        "training.distillation={teacher: dense}",
        f"pruning={{criterion: snip, {CHANNELS}, {SURGERY}}}",
    ),
    "penalty": (
        f"pruning={{criterion: group_norm, {CHANNELS}, penalty: growing_group_norm, {SURGERY}}}",
    ),
    "lasso": (f"pruning={{criterion: group_norm, {CHANNELS}, penalty: group_lasso, {SURGERY}}}",),
    "rigl": (
        "pruning={criterion: magnitude, sparsity: 80%, regrow: gradient,"
        " schedule: {rounds: 2, every: 3it, curve: constant}}",
    ),
    "bep, pauses": (f"{BEP}pauses, pauses: 2}}}}",),
    "bep, buckets": (f"{BEP}buckets, every: 2, bucket: 4}}}}",),
    "laboratory": ("laboratory={every: 1ep, scores: [rs], images: 128, batch_size: 64}",),
}
# Steps of these wait for the device, and why.
WAITING = {
    "fp16, sgd": "GradScaler reads whether a gradient overflowed, as SGD is not fused with it",
    "bep, buckets": "a full bucket's saliencies go to the history, which is on the CPU",
}
# What waits between steps, from the outermost function inwards, and why.
BETWEEN = {
    "open_data": "once: images are checked as they are loaded",
    "_build": "once: the network is counted and the recipe rehearsed",
    "_go_on": "once: a checkpoint is read",
    "prune": "an event: who goes is decided on the host, the same on every rank",
    "measure_penalties": "a stop of the laboratory, whose rows are numbers of the host",
    "measure_saliency": "a pause of BEP, whose history is on the host",
    "_validate": "a validation: its figures are read",
    "evaluate": "a test: its figures are read",
    "save": "a checkpoint is copied to the host",
    "save_model": "the network's file is written",
    "_log": "a log line reads the loss, and whether it was finite",
    "end_segment": "a segment ends: was the loss finite?",
    "begin_segment": "a segment begins: the network is counted and wrapped",
    "due": "an epoch ends: a trigger measures",
    "evaluate_best": "the end: the best weights are read for the test",
    "event": "a line of an event: how large is the network now?",
    "finish": "the end: the summary's figures are read",
}


def between(gpu: PretendGPU) -> Counter[str]:
    """Waits outside of steps, by the function of `BETWEEN` that they are in, else by where."""
    found: Counter[str] = Counter()
    for (kind, _, where), times in gpu.notes.items():
        if kind == "wait" and " train_step" not in where:
            names = {frame.rpartition(" ")[2] for frame in where.split(" < ")}
            found[next((name for name in BETWEEN if name in names), where)] += times
    return found
