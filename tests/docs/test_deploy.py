import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser

import train
from schema.recipe import load
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
    launcher = get_args_parser().parse_args([*container["command"][1:], *container["args"]])
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
    launch = text[text.index("torch.distributed.run") :].split("train.py")[0]
    options = {word for action in get_args_parser()._actions for word in action.option_strings}
    given = set(re.findall(r"--\w+(?==)", launch))
    assert "--max_restarts" in given
    assert given <= options
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in text


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
        for n in ("schema", "training", "pruning", "reporting", "models")
        for p in ROOT.glob(f"{n}/**/*.py")
    ]
    text = "\n".join(path.read_text() for path in code)
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.M))
    assert imported & {p.name for p in ROOT.iterdir() if p.is_dir()} <= kept
    assert {"recipes", "papers"} <= kept


def test_the_images_command_is_one_that_accelerate_and_train_understand():
    lines = dict(re.findall(r"^(ENTRYPOINT|CMD) (\[.*\])", DOCKERFILE, re.M))
    entry, words = json.loads(lines["ENTRYPOINT"]), json.loads(lines["CMD"])
    assert entry[:2] == ["accelerate", "launch"]
    launcher = launch_command_parser().parse_args([*entry[2:], *words])
    assert launcher.training_script == "train.py"
    assert launcher.num_processes is None  # all visible GPUs
    load(ROOT / train.parse(launcher.training_script_args).recipe)


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
