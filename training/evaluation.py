"""Loss and metrics on the validation or the test split."""

from typing import Literal

import torch

from models import trees
from tasks.task import added, over_ranks
from training.ranks.collectives import sum_over_ranks
from training.run import Run


def evaluate(run: Run, split: Literal["validation", "test"]) -> dict[str, float]:
    """Loss and metrics of the averaged weights (else the weights), every example once."""
    with run.cost.phase("evaluate"), torch.no_grad():
        # ranks must test the same network: collective, so before anything a rank may leave out
        run.sync_buffers()
        model = run.evaluated_model
        was_training = model.training
        model.eval()
        # on the device: one wait for it at the end
        sums = run.task.no_sums(run.device)
        size = run.recipe.evaluation.batch_size or run.recipe.training.batch_size
        for inputs, targets, _ in run.data.evaluation_batches(split, size):
            with run.accelerator.autocast():
                outputs = trees.cast(model(run.formatted(inputs)), torch.float32)
            sums = added(sums, run.task.sums(outputs, targets))
            run.cost.totals.evaluation_batches += 1
        model.train(was_training)
        sums = over_ranks(sums, sum_over_ranks)
    count = sums["examples"].item()
    expected = getattr(run.data.info, f"{split}_images")
    # a share counted twice or left out would be a wrong accuracy, and look like a right one
    if count != expected:
        raise RuntimeError(f"evaluation saw {count:.0f} of {expected} {split} images")
    figures = {f"eval/{key}": value for key, value in run.task.metrics(sums).items()}
    return figures | {"eval/images": count}
