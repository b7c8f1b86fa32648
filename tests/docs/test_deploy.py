import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser

import train
from deploy.proof import until
from prunezoo.schema.recipe import load
from studies import scaling

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
(JOB,) = yaml.safe_load_all((ROOT / "deploy/kubernetes/train.yaml").read_text())
VOLUMES = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/volumes.yaml").read_text()))
WORKER = JOB["spec"]["pytorchReplicaSpecs"]["Worker"]
POD = WORKER["template"]["spec"]
CONSTRAINTS = dict(
    line.split("==")
    for line in (ROOT / "deploy/docker/constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


# ── Kubernetes ───────────────────────────────────────────────────────────────────────────────────
def test_the_job_names_a_recipe_that_divides_over_its_processes():
    (container,) = POD["containers"]
    launcher = get_args_parser().parse_args([*container["command"][3:], *container["args"]])
    assert container["command"][:3] == ["python", "-m", "prunezoo.training.ranks.torchrun"]
    arguments = train.parse(launcher.training_script_args)
    recipe, _ = load(ROOT / arguments.recipe)
    policy, each = JOB["spec"]["elasticPolicy"], int(JOB["spec"]["nprocPerNode"])
    assert launcher.nproc_per_node == str(each)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == each
    assert policy["minReplicas"] == policy["maxReplicas"] == WORKER["replicas"]
    recipe.check_processes(each * WORKER["replicas"])
    assert arguments.resume
    assert arguments.output.parts[0] == "runs"


def test_the_job_mounts_volumes_that_exist_and_writes_only_there():
    (container,) = POD["containers"]
    assert container["name"] == "pytorch"  # the operator gives its variables to no other
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in POD["volumes"]}
    assert {"/app/runs", "/tmp"} <= set(mounted.values())
    claimed = {
        v["persistentVolumeClaim"]["claimName"]
        for v in POD["volumes"]
        if "persistentVolumeClaim" in v
    }
    assert claimed == {volume["metadata"]["name"] for volume in VOLUMES}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert POD["securityContext"]["runAsUser"] == int(
        re.findall(r"^USER (\d+)", DOCKERFILE, re.M)[0]
    )


# ── Slurm and torchrun ───────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["train.sbatch", "one_node.sh"])
def test_shell_scripts_are_whole(name):
    subprocess.run(["bash", "-n", ROOT / "deploy/slurm" / name], check=True)


@pytest.mark.parametrize("name", ["slurm/train.sbatch", "two_machines.py"])
def test_launchers_are_given_options_that_they_have(name):
    text = (ROOT / "deploy" / name).read_text()
    launch = text[text.index("prunezoo.training.ranks.torchrun") :].split("train.py")[0]
    options = {word for action in get_args_parser()._actions for word in action.option_strings}
    given = set(re.findall(r"--\w+(?==)", launch))
    assert "--max_restarts" in given
    assert given <= options
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in text


TRAINING = """
import os, pathlib, signal, sys, time
with open("starts", "a") as file:
    print(*sys.argv[1:], file=file)
def stop(*_):
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
status = int(os.environ["STATUS"])
pathlib.Path("ready").touch()
time.sleep(100 if status == 75 else 0)
sys.exit(status)
"""
SLURM = {  # what train.sbatch asks of it, on one machine
    "srun": 'echo $$ > step; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": 'case "$1" in requeue) echo "$2" > requeued;; show) echo NodeAddr=127.0.0.1;; esac',
    "scancel": "kill -TERM $(cat step)",
}


@pytest.fixture
def sbatch(tmp_path):
    """Start train.sbatch under commands that stand for Slurm's, with a training of that status."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, line in SLURM.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "train.py").write_text(TRAINING)

    def start(status: int) -> subprocess.Popen:
        job = {"JOB_ID": "7", "JOB_NODELIST": "n", "JOB_NUM_NODES": "1"}
        env = os.environ | {f"SLURM_{name}": value for name, value in job.items()}
        env |= {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        env |= {"PYTHON": sys.executable, "PROCESSES": "1", "STATUS": str(status)}
        command = ["bash", ROOT / "deploy/slurm/train.sbatch", "--recipe", "r.yaml"]
        return subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)

    return start


@pytest.mark.slow
@pytest.mark.parametrize(("status", "starts"), [(2, 1), (3, 1), (4, 4)])
def test_a_slurm_job_has_the_training_s_status(status, starts, sbatch, tmp_path):
    """A full disk is tried again, as any fault that may pass; what stays wrong is not."""
    assert sbatch(status).wait(timeout=300) == status
    assert (tmp_path / "starts").read_text() == "--recipe r.yaml --resume\n" * starts
    assert not (tmp_path / "requeued").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, "7\n"), (None, "")])
def test_a_job_is_queued_again_by_slurm_s_warning_alone(sent, requeued, sbatch, tmp_path):
    job = sbatch(75)
    until((tmp_path / "ready").exists, 200, "the training")
    if sent:  # before its time limit, to the script
        job.send_signal(sent)
    else:  # scancel, or a machine that is taken back: to all
        os.kill(int((tmp_path / "step").read_text()), signal.SIGTERM)
    assert job.wait(timeout=300) == (0 if sent else 75)  # 0: scontrol's
    assert "".join(p.read_text() for p in tmp_path.glob("requeued")) == requeued


def test_every_command_in_the_headers_names_recipes_and_options_that_exist():
    files = [p for p in (ROOT / "deploy").rglob("*") if p.suffix in {".md", ".sbatch", ".yaml"}]
    files += [ROOT / "README.md", ROOT / "Dockerfile"]
    commands = []
    for path in files:
        commands += re.findall(r"(?:train\.sbatch|prunezoo) (--recipe [^`\n]+)", path.read_text())
    assert len(commands) >= 5
    for words in commands:
        arguments = train.parse(shlex.split(words, comments=True))
        load(ROOT / arguments.recipe, arguments.set)


# ── Docker ───────────────────────────────────────────────────────────────────────────────────────
def needed() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    (left_out,) = re.findall(r"grep -vE '([^']+)'", DOCKERFILE)
    kept = [line for line in lines if not re.search(left_out, line) and line[0] != "#"]
    assert len(kept) < len(lines) - 1
    return [Requirement(line) for line in kept]


def test_the_image_pins_what_training_needs():
    pinned = {name.lower(): number for name, number in CONSTRAINTS.items()}
    for requirement in needed():
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement
    assert re.search(r"^FROM nvidia/cuda:[\d.]+-\w+-ubuntu[\d.]+$", DOCKERFILE, re.M)


def test_the_image_holds_every_folder_that_is_imported():
    kept = set(re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), re.M))
    code = [
        p
        for n in ("prunezoo", "schema", "tasks", "training", "pruning", "reporting", "models")
        for p in ROOT.glob(f"{n}/**/*.py")
    ]
    text = "\n".join(path.read_text() for path in code)
    imported = set(re.findall(r"^\s*(?:from|import) prunezoo(?:\.| import )(\w+)", text, re.M))
    assert "tasks" in imported
    assert {"prunezoo", *imported} & {p.name for p in ROOT.iterdir() if p.is_dir()} <= kept
    assert {"recipes", "papers"} <= kept


def test_the_images_command_is_the_training_itself():
    """Nothing stands between `docker stop` and the training, or its status and the caller."""
    lines = dict(re.findall(r"^(ENTRYPOINT|CMD) (\[.*\])", DOCKERFILE, re.M))
    entry, words = json.loads(lines["ENTRYPOINT"]), json.loads(lines["CMD"])
    assert entry == ["python", "train.py"]
    load(ROOT / train.parse(words).recipe)


# ── docs/scaling.md ──────────────────────────────────────────────────────────────────────────────
def test_the_scaling_page_holds_what_its_pieces_give():
    text = (ROOT / "docs/scaling.md").read_text()
    for table in scaling.markdown().split("\n\n"):
        assert table.strip() in text, "run studies/scaling.py"


def test_an_all_reduce_sends_each_byte_almost_twice():
    assert scaling.reduce_seconds(1, 1e9) == 0
    inside = scaling.reduce_seconds(8, 1e9)
    assert inside == pytest.approx(1.75 * scaling.GRADIENT_BYTES / scaling.NVLINK)
    many = scaling.reduce_seconds(8 * 1000, 1e9) - inside
    assert many == pytest.approx(2 * scaling.GRADIENT_BYTES / 1e9, rel=2e-3)
