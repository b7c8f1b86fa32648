"""Networks as ONNX or torch.export files, whose outputs are compared with PyTorch's.

Works on any `nn.Module` that maps a batch of images to a tensor, pruned or not, on the CPU and in
float32, which is what runtimes elsewhere expect.
"""

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunezoo.models.errors import ModelError
from prunezoo.models.files.disk import whole_file
from prunezoo.models.options import first_line
from prunezoo.models.timm_networks import FAULTS

# Of the largest output. Other kernels add the same float32 terms in another order, which shows as
# 1e-6 to 1e-5 in the last layer of a deep network; a wrong operator shows as 1e-2 or more.
TOLERANCE = 1e-4
BATCHES = (1, 3)  # that a file for any batch is compared on: one image is a special case of export
NEEDED = ("onnx", "onnxscript", "onnxruntime")
NOTES = "prunezoo"  # the key of the file's own metadata


@dataclass(frozen=True)
class Exported:
    """A file, the network in it as a function, and the largest difference from PyTorch's outputs.

    `difference` is in units of the largest output.
    """

    path: Path
    run: Callable[[Tensor], Tensor]
    difference: float

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return self.path.stat().st_size


def export_onnx(
    model: nn.Module,
    path: str | Path,
    image: Tensor,
    *,
    dynamic_batch: bool = False,
    notes: dict[str, Any] | None = None,
) -> Exported:
    """Write the network for batches like `image` as ONNX, and run it once in ONNX Runtime.

    `dynamic_batch`: for a batch of any size. `notes` go into the file's metadata.

    Raises:
        ModelError: a package is missing, torch cannot export the network, or the file computes
            something else.
    """
    _check_installed()
    import onnx

    path = Path(path)
    network, example = _ready(model, image, dynamic_batch=dynamic_batch)
    with whole_file(path) as partial:
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["outputs"],
                dynamic_shapes=_shapes(dynamic_batch=dynamic_batch),
            )
        except Exception as error:  # of torch's many kinds, which all say what is not supported
            raise _refusal("ONNX", error) from error
        assert program is not None
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {NOTES: json.dumps(notes or {})})
        onnx.save(proto, str(partial))
        # before it takes the place of an earlier file
        run = onnx_session(partial)
        return _compared(network, image, path, run, dynamic_batch=dynamic_batch)


def export_program(
    model: nn.Module,
    path: str | Path,
    image: Tensor,
    *,
    dynamic_batch: bool = False,
    notes: dict[str, Any] | None = None,
) -> Exported:
    """Write the network for batches like `image` as a torch.export program, and run it once.

    `torch.export.load(path).module()` runs it without this project. Options as of `export_onnx`;
    the notes are the extra file `prunezoo`.

    Raises:
        ModelError: torch cannot export the network, or the file computes something else.
    """
    path = Path(path)
    network, example = _ready(model, image, dynamic_batch=dynamic_batch)
    with whole_file(path) as partial:
        try:
            program = torch.export.export(
                network, (example,), dynamic_shapes=_shapes(dynamic_batch=dynamic_batch)
            )
        except Exception as error:  # see above
            raise _refusal("torch.export", error) from error
        with partial.open("wb") as file:  # torch asks paths to end in .pt2
            torch.export.save(program, file, extra_files={NOTES: json.dumps(notes or {})})
        with partial.open("rb") as file:
            run = torch.export.load(file).module()
        return _compared(network, image, path, run, dynamic_batch=dynamic_batch)


def onnx_session(path: Path) -> Callable[[Tensor], Tensor]:
    """The network of an ONNX file in ONNX Runtime, on as many CPU threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _noise(
    shape: tuple[int, ...], image: Tensor, network: nn.Module, source: torch.Generator
) -> Tensor:
    """Random numbers, or the words of the example in another order."""
    if image.is_floating_point():
        return torch.randn(shape, generator=source)
    image = image.cpu()
    if bool((image == image.flatten()[0]).all()):  # such as zeros, which tell little
        words = _words(network, image, shape, source)
        if words is not None:
            return words
    rows = image.flatten(1)[torch.arange(shape[0]) % len(image)]
    order = torch.rand(rows.shape, generator=source).argsort(1)
    return rows.gather(1, order).view(shape)


def _words(
    network: nn.Module, image: Tensor, shape: tuple[int, ...], source: torch.Generator
) -> Tensor | None:
    """Words of those that the network gives scores of, if it takes them."""
    with torch.no_grad():
        words = torch.randint(network(image).shape[-1], shape, generator=source)
        try:
            network(words)
        except FAULTS:  # it gives scores of something else
            return None
    return words.to(image.dtype)


def _ready(model: nn.Module, image: Tensor, *, dynamic_batch: bool) -> tuple[nn.Module, Tensor]:
    """A copy in float32 and evaluation mode on the CPU, and images to export it with."""
    if not isinstance(image, Tensor):
        raise ModelError(
            f"{type(model).__name__}: an example is a {type(image).__name__}, and one tensor is"
            " what can be exported; export a module whose forward takes one"
        )
    network = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    image = image.detach().to("cpu")
    image = image.float() if image.is_floating_point() else image
    try:
        outputs = network(image)
    except FAULTS as error:
        raise ModelError(
            f"{type(model).__name__} cannot take {'×'.join(map(str, image.shape[1:]))}"
            f" ({first_line(error)}); give another image size"
        ) from error
    if not isinstance(outputs, Tensor):
        raise ModelError(f"{type(model).__name__} gives no single tensor; export a part that does")
    # two of them: from one alone torch concludes that there is always one
    return network, torch.cat([image, image]) if dynamic_batch else image


def _check_installed() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ModelError(f"ONNX needs {', '.join(missing)}; pip install 'prunezoo[export]'")


def _shapes(*, dynamic_batch: bool) -> tuple[dict[int, Any]] | None:
    return ({0: torch.export.Dim("batch")},) if dynamic_batch else None


def _compared(
    network: nn.Module,
    image: Tensor,
    path: Path,
    run: Callable[[Tensor], Tensor],
    *,
    dynamic_batch: bool,
) -> Exported:
    """The file, after a comparison on noise."""
    sizes: Iterable[int] = BATCHES if dynamic_batch else (len(image),)
    source, differences = torch.Generator().manual_seed(0), []
    for size in sizes:
        noise = _noise((size, *image.shape[1:]), image, network, source)
        with torch.no_grad():
            right, actual = network(noise), run(noise)
        scale = right.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        differences.append((actual - right).abs().max() / scale)
    difference = float(torch.stack(differences).max())
    if not difference <= TOLERANCE:  # not >, which is False of nan
        raise ModelError(
            f"{path}: its outputs differ from PyTorch's by {difference:.1e} of the largest, where"
            f" {TOLERANCE:.0e} is rounding; it is not kept; try the other format"
        )
    return Exported(path, run, difference)


def _refusal(kind: str, error: Exception) -> ModelError:
    return ModelError(
        f"{kind} cannot express the network ({first_line(error)}); try the other format, or"
        " without dynamic_batch"
    )
