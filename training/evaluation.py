"""Loss and metrics on the validation or the test split."""

from typing import TYPE_CHECKING, Literal

import torch

from prunezoo.models import trees
from prunezoo.tasks.task import added, over_ranks
from prunezoo.training.ranks.collectives import sum_over_ranks
from prunezoo.training.run import Run

if TYPE_CHECKING:
    from prunezoo.training.trained import Trained

Split = Literal["validation", "test"]


def evaluate(run: Run, split: Split) -> dict[str, float]:
    """Loss and metrics of the averaged weights (else the weights), every example once."""
    with run.cost.phase("evaluate"):
        # ranks must test the same network: collective, so before anything a rank may leave out
        run.sync_buffers()
        model = run.evaluated_model
        was_training = model.training
        model.eval()
        figures, batches = measure(run, split)
        model.train(was_training)
    run.cost.totals.evaluation_batches += batches
    return figures


@torch.no_grad()
def measure(subject: "Run | Trained", split: Split) -> tuple[dict[str, float], int]:
    """Loss and metrics over every example of a split once, and this rank's number of batches."""
    # on the device: one wait for it at the end
    sums, batches = subject.task.no_sums(subject.device), 0
    size = subject.recipe.evaluation.batch_size or subject.recipe.training.batch_size
    data = subject.data.played_by(subject.evaluated_model)
    for inputs, targets, _ in data.evaluation_batches(split, size):
        with subject.accelerator.autocast():
            outputs = subject.evaluated_model(subject.formatted(inputs))
        sums = added(sums, subject.task.sums(trees.cast(outputs, torch.float32), targets))
        batches += 1
    sums = over_ranks(sums, sum_over_ranks)
    count = sums["examples"].item()
    expected = getattr(subject.data.info, f"{split}_images")
    # a share counted twice or left out would be a wrong accuracy, and look like a right one
    if count != expected:
        raise RuntimeError(f"evaluation saw {count:.0f} of {expected} {split} images")
    figures = {f"eval/{key}": value for key, value in subject.task.metrics(sums).items()}
    return figures | {"eval/images": count}, batches
