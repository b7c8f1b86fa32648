"""Tensors to and from a safetensors file: readable by anyone, copied out of the mapped file."""

import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunezoo.models.files.disk import whole_file


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a whole file or none, with the permissions that any new file gets, not 0600.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    with whole_file(path) as partial:
        # safetensors makes files that only their owner may read; this one gets the default
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(_separate(tensors), partial, metadata)
        except SafetensorError as error:  # which hides the system's own error in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        partial.chmod(mode)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors asks (tied weights do)."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        pointer = tensor.data_ptr()
        shared = pointer in seen and tensor.numel() > 0
        separate[name] = (tensor.clone() if shared else tensor).contiguous()
        seen.add(pointer)
    return separate


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


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a file, without its tensors.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is not a safetensors file.
    """
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
