"""Language: the next word at every place of a row of words, by its log-probability."""

import math
from typing import Any

import torch
from torch import Tensor

from prunezoo.schema.headline import Headline
from prunezoo.tasks.task import Sums, Task, TaskError, shown

UNASKED = -1  # a target of a place where no word is asked for


class Language(Task):
    """Outputs are (n, T, words), targets words (n, T); the headline is the log perplexity.

    Outputs are logits or log-probabilities: they are normalised here, which leaves the latter as
    they are. An example's loss is the mean over its places of −log p(word) in nats; the metrics are
    over all places of all examples, so that rows of a text count by their words.
    """

    name = "language"
    summed = ("loss", "nats", "tokens", "examples")
    headline = Headline("log_perplexity_nats", "lower", 0.0, "log perplexity [nats]")

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean of each row's −log p, (n,); 0 where no word is asked for."""
        asked = targets != UNASKED
        return _nats(outputs, targets).sum(1) / asked.sum(1).clamp(min=1)

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Loss, −log p of all places, places and examples."""
        zero = torch.zeros((), dtype=torch.float64, device=outputs.device)
        return {
            "loss": self.loss_sum(outputs, targets).double(),
            "nats": _nats(outputs, targets).double().sum(),
            "tokens": zero + (targets != UNASKED).sum(),
            "examples": zero + len(targets),
        }

    def metrics(self, sums: Sums) -> dict[str, float]:
        """The mean loss of rows; the mean −log p of places, and e to that power."""
        loss, nats, tokens, count = torch.stack([sums[name] for name in self.summed]).tolist()
        mean = nats / max(tokens, 1.0)
        most = math.log(torch.finfo(torch.float64).max)
        perplexity = math.inf if mean > most else math.exp(mean)
        return {"loss": loss / count, self.headline.key: mean, "perplexity": perplexity}

    def check_targets(self, data: str) -> None:
        """Refuse targets that are no rows of words."""
        shape = self.targets.shape
        if len(getattr(shape, "sizes", ())) != 1 or shape.dtype.is_floating_point:
            raise TaskError(
                f"task: language needs rows of words, and the targets of {data} are"
                f" {self.targets.meant}"
            )

    def misfit(self, outputs: Any, count: int) -> str:
        """What is wrong with a model's outputs for `count` examples."""
        wanted = (count, *self.targets.shape.sizes, self.targets.outputs)
        if isinstance(outputs, Tensor) and outputs.shape == wanted:
            return ""
        return f"gives {shown(outputs)} in training where {wanted} logits of words are expected"


def _nats(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log p of the word at each place, (n, T); 0 where none is asked for."""
    words = targets.clamp(min=0)[..., None]
    nats = outputs.logsumexp(2) - outputs.gather(2, words)[..., 0]
    return torch.where(targets != UNASKED, nats, 0.0)
