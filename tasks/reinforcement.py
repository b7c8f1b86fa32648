"""Reinforcement learning: actions chosen by a network, and the value of where they were chosen."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunezoo.models.trees import Shape
from prunezoo.schema.headline import Headline
from prunezoo.schema.training import TrainingConfig
from prunezoo.tasks.task import Sums, Targets, Task, TaskError, shown

TRANSITION = {  # the targets of one step of an environment
    "action": Shape((), torch.int64),
    "return": Shape(()),  # discounted and scaled rewards from here on, the rest by the value
    "score": Shape(()),  # all rewards of an episode as they are, where it ended; else 0
    "ended": Shape(()),  # 1 where an episode ended, else 0
}


def logits(outputs: Tensor) -> Tensor:
    """The logits of the actions, (n, actions): all of a network's outputs but the last."""
    return outputs[:, :-1]


def values(outputs: Tensor) -> Tensor:
    """The return that the network expects, (n,): its last output."""
    return outputs[:, -1]


class Reinforcement(Task):
    """Advantage actor-critic: outputs are logits of actions and a value, (n, actions + 1).

    With the return R, the value V and the policy π of a transition (s, a) its loss is

        −log π(a|s) · (R − V) + value · (R − V)² − entropy · H(π(·|s)),

    where the first R − V is a constant: Mnih et al. 2016, arXiv:1602.01783, section 4 and
    algorithm S3, whose workers here take steps together. The headline is the mean return of
    episodes, undiscounted.
    """

    name = "reinforcement"
    summed = ("loss", "transitions", "score", "examples")
    needs_episodes = True
    headline = Headline("return", "higher", float("inf"), "return [reward]")

    def __init__(
        self,
        targets: Targets,
        training: TrainingConfig | None = None,
        *,
        entropy: float = 0.01,
        value: float = 0.5,
    ) -> None:
        super().__init__(targets, training)
        for key, factor in (("entropy", entropy), ("value", value)):
            if not 0 <= factor <= 1000:
                raise TaskError(f"task.{key} is {factor:g}; write a number from 0 to 1000")
        self.entropy, self.value = entropy, value

    def losses(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Of each transition, (n,)."""
        log_policy = F.log_softmax(logits(outputs), dim=1)
        ahead = targets["return"] - values(outputs)
        chosen = log_policy.gather(1, targets["action"][:, None])[:, 0]
        entropy = -(log_policy.exp() * log_policy).sum(1)
        return -chosen * ahead.detach() + self.value * ahead.square() - self.entropy * entropy

    def sums(self, outputs: Tensor, targets: dict[str, Tensor]) -> Sums:
        """Loss and transitions, and of episodes that ended their rewards; those are examples."""
        count = torch.full((), len(outputs), dtype=torch.float64, device=outputs.device)
        return {
            "loss": self.loss_sum(outputs, targets).double(),
            "transitions": count,
            "score": targets["score"].double().sum(),
            "examples": targets["ended"].double().sum(),
        }

    def metrics(self, sums: Sums) -> dict[str, float]:
        """The mean loss of transitions, and the mean return of episodes: NaN if none ended."""
        loss, transitions, score, episodes = torch.stack([sums[n] for n in self.summed]).tolist()
        return {
            "loss": loss / transitions,
            "return": score / episodes if episodes else float("nan"),
        }

    def check_targets(self, data: str) -> None:
        """Refuse what is no environment."""
        if self.targets.shape != TRANSITION:
            raise TaskError(
                f"task: reinforcement needs an environment to act in, and {data} is none; remove"
                " task, or write data.name: gymnasium/CartPole-v1"
            )

    def misfit(self, outputs: Any, count: int) -> str:
        """What is wrong with a model's outputs for `count` transitions."""
        wanted = (count, self.targets.outputs)
        if isinstance(outputs, Tensor) and outputs.shape == wanted:
            return ""
        return (
            f"gives {shown(outputs)} in training where {wanted} logits of actions and a value are"
            " expected"
        )
