"""A table's missing runs as one Slurm array, through submitit."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from submitit import AutoExecutor
from submitit.core.utils import FailedJobError, UncompletedJobError
from submitit.helpers import DelayedSubmission

from reporting.jobs.launch import Places, run, start_here
from reporting.records import Job

REQUEUES = 1000  # a training that outlives its time limit is queued again so often
WARNING_SECONDS = 120  # before the limit: enough to write a checkpoint


class Task:
    """One job of the array. Before its time is over it saves, and is queued again to go on."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.training: subprocess.Popen[bytes] | None = None

    def __call__(self, job: Job) -> int:
        """Run the job and collect its record; its exit status."""
        return run(job, self.places, self._start)

    def _start(self, job: Job, places: Places) -> int:
        # the warning goes to every process of the task; the training would die of it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        self.training = start_here(job, places)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        _wait(self.training)
        status = self.training.wait()
        if status == os.EX_TEMPFAIL:  # stopped by a signal that was not sent from here
            # Slurm queues the task again; a result would tell the submitter that it has ended
            sys.exit(status)
        return status

    def checkpoint(self, job: Job) -> DelayedSubmission:
        """What submitit calls on the warning: let the training save and stop, then queue it."""
        if self.training is not None:
            self.training.send_signal(signal.SIGTERM)
            _wait(self.training)
        return DelayedSubmission(Task(self.places), job)


def _wait(process: subprocess.Popen[bytes]) -> None:
    # Popen.wait holds a lock, on which a second wait inside a signal handler would hang
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def run_array(
    jobs: Sequence[Job],
    places: Places,
    parallel: int,
    options: Mapping[str, str],
    *,
    cluster: str = "slurm",
) -> Iterator[tuple[Job, int]]:
    """Submit all jobs as one array, `parallel` at a time; yields each with its exit status.

    `options` are those of sbatch, without dashes; `time` is in minutes. An array goes on when the
    process that submitted it is gone; asked again, jobs that still run are left alone (75).
    """
    if not jobs:
        return
    path = [str(places.root), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)  # a task imports this module
    folder = places.runs / "array" / "%j"
    executor = AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=REQUEUES)
    rest = {key: value for key, value in options.items() if key != "time"}
    executor.update_parameters(
        name="tables",
        timeout_min=int(options.get("time", 24 * 60)),
        slurm_array_parallelism=parallel,
        slurm_signal_delay_s=WARNING_SECONDS,
        slurm_additional_parameters=rest,
    )
    submitted = executor.map_array(Task(places), jobs)
    print(f"array {submitted[0].job_id.partition('_')[0]}: {len(jobs)} runs", flush=True)
    for job, task in zip(jobs, submitted, strict=True):
        try:
            yield job, task.result()
        except (FailedJobError, UncompletedJobError) as error:
            print(str(error).strip().splitlines()[-1], flush=True)
            yield job, 1
