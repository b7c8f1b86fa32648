"""A table's missing runs as one Slurm array, through submitit."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from submitit import AutoExecutor
from submitit.core.utils import FailedJobError, UncompletedJobError
from submitit.helpers import DelayedSubmission

from prunezoo.reporting.errors import ReportingError
from prunezoo.reporting.jobs.launch import Places, run, start_here
from prunezoo.reporting.records import Job

REQUEUES = 1000  # how often a training that reaches its time limit is queued again
WARNING_SECONDS = 120  # before the limit: enough to write a checkpoint


class Task:
    """One job of the array; it saves before its time limit and is queued again."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.training: subprocess.Popen[bytes] | None = None

    def __call__(self, job: Job) -> int:
        """Run the job and collect its record; return its exit status."""
        return run(job, self.places, self._start)

    def _start(self, job: Job, places: Places) -> int:
        # the warning reaches every process of the task, and would kill the training
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
        """Stop the training after a checkpoint and queue it again; submitit calls this in time."""
        if self.training is not None:
            self.training.send_signal(signal.SIGTERM)
            _wait(self.training)
        # a new Task: this one holds a process, which cannot be pickled
        return DelayedSubmission(Task(self.places), job)


def _wait(process: subprocess.Popen[bytes]) -> None:
    # Popen.wait holds a lock, on which a second wait inside a signal handler would hang
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def run_array(
    jobs: Sequence[Job],
    places: Places,
    parallel: int,
    options: Mapping[str, str],
) -> Iterator[tuple[Job, int]]:
    """Submit all jobs as one array, `parallel` at a time; yield each with its exit status.

    `options` are those of sbatch, without dashes; `time` is in minutes. An array outlives the
    process that submitted it; submitted again, a job that still runs ends with status 75.

    Raises:
        ReportingError: this machine belongs to no cluster, or sbatch refuses the options.
    """
    if not jobs:
        return
    if shutil.which("srun") is None:  # submitit's own way to tell
        raise ReportingError(
            "--submit slurm: there is no srun here; submit from a machine of a Slurm cluster, or"
            " write --submit here"
        )
    path = [str(places.root), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)  # a task imports this module
    folder = places.runs / "array" / "%j"
    executor = AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=REQUEUES)
    rest = {key: value for key, value in options.items() if key != "time"}
    executor.update_parameters(
        name="tables",
        timeout_min=int(options.get("time", 24 * 60)),
        slurm_array_parallelism=parallel,
        slurm_signal_delay_s=WARNING_SECONDS,
        slurm_additional_parameters=rest,
    )
    try:
        submitted = executor.map_array(Task(places), jobs)
    except FailedJobError as error:
        said = str(error).strip().splitlines()[-1]
        raise ReportingError(f"--submit slurm: {said}; see --slurm OPTION=VALUE") from None
    print(f"array {submitted[0].job_id.partition('_')[0]}: {len(jobs)} runs", flush=True)
    for job, task in zip(jobs, submitted, strict=True):
        try:
            yield job, task.result()
        except (FailedJobError, UncompletedJobError) as error:
            print(str(error).strip().splitlines()[-1], flush=True)
            yield job, 1
