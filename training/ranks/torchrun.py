r"""torchrun that ends with the training's exit status, where its own is 1 for each but 0.

python -m prunezoo.training.ranks.torchrun --nproc_per_node=8 --max_restarts=3 \
    train.py --recipe R.yaml
"""

import sys
from collections.abc import Iterable
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.agent.server import WorkerGroup
from torch.distributed.elastic.agent.server.api import RunResult
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api

from prunezoo.training.ending import AGAIN, ASKED, DISK, NOT_FINITE

OWN = (ASKED, NOT_FINITE, DISK, AGAIN)  # exit statuses of train.py


# pyright: reportIncompatibleVariableOverride=false, reportCallIssue=false
# of torch's decorator of these methods, which has no types


class Agent(LocalElasticAgent):
    """Starts processes again as torchrun does, unless that would give the same once more."""

    starts = 0

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.starts += 1
        return super()._start_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """The state of this machine's processes, as often as torchrun asks for it.

        Raises:
            SystemExit: the loss became NaN or infinite, or what was asked for is wrong; later on,
                that may also be a lost machine's lock, which goes away.
        """
        result = super()._monitor_workers(worker_group)
        status = _status(result.failures.values())
        if status == NOT_FINITE or (status == ASKED and self.starts == 1):
            sys.exit(status)
        return result


def main() -> None:
    """Run torchrun's command line; a signal ends it with 75, as it does the training."""
    api.LocalElasticAgent = Agent
    try:
        run.main()
    except ChildFailedError as error:
        sys.exit(_status(error.failures.values()))
    except SignalException:
        sys.exit(AGAIN)


def _status(failures: Iterable[ProcessFailure]) -> int:
    """The status that says most: a rank whose peer has ended has 1."""
    statuses = {failure.exitcode for failure in failures}
    return next((status for status in OWN if status in statuses), 1)


if __name__ == "__main__":
    main()
