"""The phases of a run's wall-clock time; reports name them without importing torch."""

PHASES = (
    "train",
    "data_wait",
    "saliency",  # what BEP's pauses measure
    "prune",
    "evaluate",
    "laboratory",
    "compile",  # a segment's first steps, where kernels are compiled or tuned; not throughput
    "checkpoint",
    "setup",
)
PRUNING_PHASES = ("prune", "saliency")  # whose operations are counted as they run
BUSY_PHASES = ("train", "saliency", "prune", "evaluate", "laboratory")  # in which devices compute
# what a method makes of training; the rest does not depend on it
TRAINING_PHASES = ("train", "data_wait", "saliency", "prune", "compile")
