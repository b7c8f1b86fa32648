"""How a run begins: a folder of its own, or the newest one of the same recipe to go on with."""

from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from training import checkpoint, state
from training.build import make_accelerator, on_cpu
from training.environment import environment, write_json
from training.recipe import Recipe, RecipeError
from training.run import Run
from training.source import Source


def start(recipe: Recipe, source: Source, *, output: Path | None, resume: bool, stem: str) -> Run:
    """A run in its folder, at its beginning or where its last good checkpoint stands.

    Raises:
        RecipeError: `output` exists and `resume` is not asked for, or the batch does not fit.
        DataError: the data set is missing or broken.
    """
    name = f"{stem}-{recipe.hash()}-seed{recipe.seed}"
    ranks = PartialState(cpu=on_cpu())
    chosen = [_folder(output, resume, name) if ranks.is_main_process else None]
    folder = broadcast_object_list(chosen)[0]
    if isinstance(folder, RecipeError):
        raise folder
    assert isinstance(folder, Path)
    _set_numerics(recipe)
    accelerator = make_accelerator(recipe, folder)
    run = Run(recipe, folder, accelerator)
    if accelerator.is_main_process:
        (folder / "recipe.resolved.yaml").write_text(resolved(recipe, source), encoding="utf-8")
        write_json(folder / "environment.json", environment())
    path = checkpoint.latest(folder / "checkpoints") if resume else None
    if path is not None:
        state.load(run, path)
    elif run.is_main:
        run.log.cut(0)  # a session that died before its first checkpoint left lines to do again
    accelerator.wait_for_everyone()
    return run


def resolved(recipe: Recipe, source: Source) -> str:
    """The recipe with every value and the file and line, --set or default that it is from."""
    lines: list[str] = []

    def write(value: object, key: tuple[str | int, ...], indent: int) -> None:
        assert isinstance(value, dict)
        for name, item in value.items():
            here, pad = (*key, name), "  " * indent
            if isinstance(item, dict) and item:
                lines.append(f"{pad}{name}:")
                write(item, here, indent + 1)
                continue
            text = yaml.safe_dump(item, default_flow_style=True, width=10_000).removesuffix(
                "\n...\n"
            )
            origin = source.locate(here) if source.states(here) else "default"
            lines.append(f"{pad}{name}: {text.strip()}  # {origin}")

    write(recipe.model_dump(mode="json", by_alias=True, exclude_none=True), (), 0)
    return "\n".join(lines) + "\n"


def _folder(output: Path | None, resume: bool, name: str) -> Path | RecipeError:
    """Made where it is new; errors travel to the other ranks as values."""
    if output is None:
        if resume:
            found = [p for p in Path("runs").glob(f"{name}*") if not (p / "summary.json").exists()]
            if not found:
                return RecipeError(
                    f"--resume: no unfinished run runs/{name}*; start it without --resume,"
                    " or give its folder as --output"
                )
            return max(found, key=lambda p: p.stat().st_mtime)
        taken = len(list(Path("runs").glob(f"{name}*")))
        output = Path("runs") / (f"{name}-{taken + 1}" if taken else name)
    if output.exists() and any(output.iterdir()) and not resume:
        return RecipeError(f"--output {output} holds a run; add --resume, or choose another folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return RecipeError(
            f"--output {output}: {error.strerror}; choose a folder that can be written"
        )
    return output


def _set_numerics(recipe: Recipe) -> None:
    training = recipe.training
    torch.backends.cuda.matmul.allow_tf32 = training.tf32
    torch.backends.cudnn.allow_tf32 = training.tf32
    if training.deterministic:  # the call imports the compiler, some seconds nobody else should pay
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not training.deterministic
