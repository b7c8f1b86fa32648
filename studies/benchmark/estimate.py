"""CPU seconds that a training of the benchmark will take, for the plan."""

import statistics

from studies.benchmark.rows import DENSE
from studies.benchmark.runs import Runs
from studies.benchmark.trainings import Training

START = 25.0  # imports, reading the data, evaluation on validation and test images
# measured on one core of an Intel Xeon at 2.5 GHz: CPU seconds of a dense epoch
EPOCH = {"resnet8": 8.0, "small_conv": 5.0, "imagenette": 5.0}
FIXED_SHARE = 0.45  # of a step's time that does not shrink with the MACs
EXTRA = {  # on top of training, as a share of dense training: scoring, forecasts, searches
    "BEP": 1.2,
    "BEP by the latest measurement": 1.2,
    "BEP-LITE": 0.6,
    "EagleEye": 0.3,
    "Pruning from Scratch": 0.5,
    "SynFlow channels": 0.3,
}


def seconds(training: Training, runs: Runs) -> float:
    """The mean of the same row's records at any seed; else by epochs and the share left."""
    setting, row, point, length, _ = training
    known = runs.group(setting, row, point, length).values("cost/cpu_seconds")
    if known:
        return statistics.fmean(known)
    left = 1.0 if row.kind == "weights" or row.name == DENSE else 1 - training.removed / 100
    smaller = FIXED_SHARE + (1 - FIXED_SHARE) * left
    share = row.first + (1 - row.first) * smaller + EXTRA.get(row.name, 0.0)
    return START + training.budget * EPOCH[setting.name] * share
