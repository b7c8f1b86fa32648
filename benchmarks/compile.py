"""Compiled training against uncompiled: graphs a segment, breaks, losses, scores, what stays.

python -m benchmarks.compile [--processes 1 2] [--backend aot_eager] [--only NAME …]

Small trainings on the digits, pruned twice, on the CPU: each uncompiled and compiled, on one
process and on two (DDP over gloo). One graph a segment: nothing is compiled again inside of it.
aot_eager traces as any backend does and computes with torch's own kernels, so that losses must be
equal to the bit; inductor, which makes code, rounds in another order. fp16 has a gradient scaler of
the CPU and half precision by autocast, which training refuses here for being slow.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

ROOT = Path(__file__).parent.parent
DIGITS = "recipes/base/digits/digits_cnn.yaml"
QUIET = ("log.tracker=none", "cost.tracker=none", "log.every=1it", "data.validation=10%")
SMALL = ("training.batch_size=192", "model.options.width=0.5", "evaluation.every=1ep")
TWICE = "schedule: {start: 3it, every: 6it, rounds: 2}"
CHANNELS = "granularity: channel, channels: 50%, application: surgery"
SURGERY = f"pruning={{criterion: taylor, {CHANNELS}, {TWICE}}}"
CASES = {
    "two events": ("training.duration=2ep", SURGERY),
    "average, clipping, two parts": (
        *("training.duration=2ep", "training.ema={decay: 0.9}", "training.clip_norm=1"),
        *("training.accumulation=2", SURGERY),
    ),
    "EPI, accumulated": (
        "training.duration=7ep",
        f"pruning={{criterion: bn_taylor, accumulate: true, {CHANNELS},"
        " schedule: {trigger: {name: epi}, latest: 5ep, rounds: 2, every: 2it}}",
    ),
    "BEP's buckets": (
        "training.duration=3ep",
        f"pruning={{criterion: activation_taylor, {CHANNELS}, scope: layer, floor: 0.001,"
        " calibration: {batch_size: 64},"
        " schedule: {start: 1ep, every: 1ep, end: 100%, curve: constant},"
        " selection: {name: bep, protocol: buckets, every: 2, bucket: 4, latents: 2,"
        " dense_latents: 2, draws: 100}}",
    ),
    "bf16": ("training.duration=2ep", "training.precision=bf16", SURGERY),
    "fp16": ("training.duration=2ep", "training.precision=bf16", SURGERY),  # made fp16 in `half`
}


def half(make: Any, name: str) -> Any:
    """A maker of accelerators that are in half precision on any CPU."""

    def made(*words: Any) -> Any:
        accelerator = make(*words)
        if name == "fp16":
            accelerator.state._mixed_precision = "fp16"
            accelerator.scaler = torch.amp.GradScaler("cpu")
        return accelerator

    return made


def trained(name: str, backend: str | None, folder: Path) -> dict[str, Any]:
    """What a training left: losses, widths, scores, and the compiler's counts."""
    from accelerate.state import AcceleratorState, GradientState
    from torch._dynamo.utils import counters

    import train
    from prunezoo.training import build, start
    from prunezoo.training.folder.log import read
    from prunezoo.pruning import channel_pruning  # isort: skip  after what imports it in its own order

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.compiler.reset()
    counters.clear()
    scores: list[list[float]] = []
    unit_scores, compile_module = channel_pruning.unit_scores, nn.Module.compile

    def noted(*words: Any, **options: Any) -> Any:
        result = unit_scores(*words, **options)
        scores.append(torch.cat([result[axis].double() for axis in sorted(result)]).tolist())
        return result

    settings = (*QUIET, *SMALL, *CASES[name], f"training.compile={'on' if backend else 'off'}")
    words = ["--recipe", DIGITS, "--output", str(folder), *(f"--set={s}" for s in settings)]
    with (
        mock.patch.object(channel_pruning, "unit_scores", noted),
        mock.patch.object(build, "_cpu_has_bf16", return_value=True),
        mock.patch.object(start, "make_accelerator", half(start.make_accelerator, name)),
        mock.patch.object(
            nn.Module, "compile", lambda self, mode=None: compile_module(self, backend=backend)
        ),
    ):
        status = train.main(words)
    if status:
        raise SystemExit(f"{name}: status {status}")
    losses = [line["train/loss"] for line in read(folder / "log.jsonl") if "train/loss" in line]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "losses": losses,
        "scores": scores,
        "params": summary["model/params"],
        "segments": len(summary["cost/segments"]),
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
    }


def work(names: list[str], backend: str, folder: Path) -> None:
    """Both trainings of each case, in one process of a launch."""
    results = {}
    for place, name in enumerate(names):
        sides = ((None, "plain"), (backend, "compiled"))
        results[name] = [trained(name, b, folder / f"{place} {what}") for b, what in sides]
    if os.environ.get("RANK", "0") == "0":
        (folder / "results.json").write_text(json.dumps(results))


def row(name: str, plain: dict[str, Any], compiled: dict[str, Any]) -> str:
    changes = [abs(a - b) for a, b in zip(plain["losses"], compiled["losses"], strict=True)]
    rows = zip(plain["scores"], compiled["scores"], strict=True)
    pairs = [(torch.tensor(a), torch.tensor(b)) for a, b in rows]
    apart = [
        float((a - b).abs().max() / a.abs().max()) if a.shape == b.shape else 1 for a, b in pairs
    ]
    same = plain["params"] == compiled["params"]
    line = f"{name:29} segments {compiled['segments']}  graphs {compiled['graphs']}"
    line += f"  breaks {compiled['breaks']}  loss apart {max(changes):.2g}"
    line += f"  scores apart {max(apart):.2g} ({len(apart)})" if apart else "  no scores of its own"
    return line + f"  {'same' if same else 'other'} size of {len(changes)} steps"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backend", default="aot_eager")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # in a launched process
    arguments = parser.parse_args()
    names = arguments.only or list(CASES)
    if arguments.work:
        work(names, arguments.backend, arguments.work)
        return
    for processes in arguments.processes:
        print(f"torch {torch.__version__}, {arguments.backend}, processes: {processes}", flush=True)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        with tempfile.TemporaryDirectory() as folder:
            words = ["-m", "benchmarks.compile", "--work", folder, "--only", *names]
            words += ["--backend", arguments.backend]
            ranks = launcher if processes > 1 else []
            environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            said = subprocess.run(
                [sys.executable, *ranks, *words],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
            )
            if said.returncode:
                sys.exit(said.stderr[-3000:])
            results = json.loads((Path(folder) / "results.json").read_text())
        for name, sides in results.items():
            print(f"  {row(name, *sides)}", flush=True)


if __name__ == "__main__":
    main()
