"""Loss and accuracy on the validation or the test split."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.ranks.collectives import sum_over_ranks
from training.run import Run


def evaluate(run: Run, split: Literal["validation", "test"]) -> dict[str, float]:
    """Loss and accuracy of the averaged weights (else the weights), every image once."""
    with run.cost.phase("evaluate"), torch.no_grad():
        # ranks must test the same network: collective, so before anything a rank may leave out
        run.sync_buffers()
        model = run.evaluated_model
        was_training = model.training
        model.eval()
        # float64 on the device: exact counts, and one wait for it at the end
        totals = torch.zeros(4, dtype=torch.float64, device=run.device)
        size = run.recipe.evaluation.batch_size or run.recipe.training.batch_size
        for images, labels, _ in run.data.evaluation_batches(split, size):
            with run.accelerator.autocast():
                logits = model(run.formatted(images)).float()
            totals += _scores(logits, labels)
            run.cost.totals.evaluation_batches += 1
        model.train(was_training)
        loss, top1, top5, count = sum_over_ranks(totals).tolist()
    expected = getattr(run.data.info, f"{split}_images")
    # a share counted twice or left out would be a wrong accuracy, and look like a right one
    if count != expected:
        raise RuntimeError(f"evaluation saw {count:.0f} of {expected} {split} images")
    return {
        "eval/loss": loss / count,
        "eval/top1_percent": 100 * top1 / count,
        "eval/top5_percent": 100 * top5 / count,
        "eval/images": count,
    }


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed loss, hits among the first 1 and 5 classes, and count."""
    loss = F.cross_entropy(logits, labels, reduction="sum").double()
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    hits = torch.stack([ranked[:, 0].sum(), ranked.sum(), torch.full_like(labels[0], len(labels))])
    return torch.cat([loss[None], hits.double()])
