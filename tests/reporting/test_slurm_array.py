"""A task of a Slurm array: its status is that of its last start, not of one that was cut short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.helpers import DelayedSubmission
from submitit.local.local import LocalJob

import tables
from prunezoo.reporting.jobs.launch import Places, run_jobs
from prunezoo.reporting.jobs.slurm_array import Task
from prunezoo.reporting.records import Job

TRAIN = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
folder.mkdir(exist_ok=True)
if "--resume" not in sys.argv:
    sys.exit(75)  # as after a signal
(folder / "summary.json").write_text(json.dumps({"run/seed": 0}))
"""
LOCAL = {"JOB_ID": "1", "NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0"}
LOCAL |= {"GLOBALID": "0", "LOCALID": "0"}


@pytest.fixture
def places(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    return Places(tmp_path, tmp_path / "runs", tmp_path / "results")


def start(folder: Path) -> int:
    """Start the task as the array does; its exit status."""
    env = {f"SUBMITIT_LOCAL_{name}": value for name, value in LOCAL.items()}
    env |= {"SUBMITIT_EXECUTOR": "local", "PYTHONPATH": str(tables.ROOT)}
    command = [sys.executable, "-m", "submitit.core._submit", str(folder)]
    return subprocess.run(command, env=os.environ | env, capture_output=True).returncode


@pytest.mark.slow
def test_a_task_that_is_queued_again_and_ends_well_has_the_status_0(places, tmp_path):
    folder, job = tmp_path / "array", Job(None, "recipes/a.yaml")
    folder.mkdir()
    DelayedSubmission(Task(places), job).dump(folder / "1_submitted.pkl")
    results = tmp_path / "array" / "1_0_result.pkl"
    assert start(folder) == 75
    assert not results.exists(), "the one who submitted it would take this for its end"
    assert start(folder) == 0
    assert results.exists()
    assert LocalJob(folder, "1").result() == 0
    assert places.record(job).exists()


def commands(folder: Path, **scripts: str) -> None:
    """Commands in a folder, each a line of shell."""
    folder.mkdir()
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Submit a run where these commands are all there is; returns its exit status."""

    def run(**scripts: str) -> int:
        commands(tmp_path / "bin", **scripts)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        words = ["run", "recipes/quickstart.yaml", "--submit", "slurm", "--results", str(tmp_path)]
        return tables.main([*words, "--runs", str(tmp_path / "runs")])

    return run


def test_a_machine_of_no_cluster_is_one_line(submit, capsys):
    assert submit() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--submit slurm: there is no srun here; submit from a machine of a Sl")


def test_a_refusal_of_sbatch_is_passed_on(submit, capsys):
    fault = "sbatch: error: invalid partition specified: x"
    assert submit(srun="", sbatch=f"echo {fault} >&2; exit 1") == 2
    *_, line = capsys.readouterr().err.splitlines()  # submitit shows what sbatch writes, too
    assert line == f"--submit slurm: {fault}; see --slurm OPTION=VALUE"


def test_a_task_whose_job_another_process_does_ends_with_75_as_its_result(places):
    job = Job(None, "recipes/a.yaml")

    def submit(inner: Job, _: Places) -> int:
        assert Task(places)(inner) == 75
        return 1

    assert [status for _, status in run_jobs([job], places, submit)] == [1]
