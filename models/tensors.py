"""Tensors to and from a safetensors file: readable by anyone, never left lying in the file."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a file with the permissions that any new file gets: safetensors gives it 0600."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata)
    path.chmod(mode)


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file in memory of their own, and the file's metadata.

    A safetensors file is mapped into memory, and its tensors lie there at any multiple of four
    bytes. Kernels choose their instructions by alignment: a misaligned tensor is slower, and on
    some CPUs its results differ in the last digit from those of the tensor that was saved.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is not a safetensors file.
    """
    with safe_open(path, framework="pt", device=device) as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name).clone() for name in names}
        return tensors, file.metadata() or {}
