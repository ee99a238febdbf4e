"""One task of a network as a file that needs neither this package nor, in ONNX, torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eidetic_kernels import EideticNetwork, checking
from eidetic_kernels.checking import a_list, instance, one_of, whole_number
from eidetic_kernels.files import replacing
from eidetic_kernels.modes import evaluating

from ..data._extras import need

EXAMPLES, SEED = 8, 20250213


class Exported(NamedTuple):
    """What was written.

    Args:
        path: the file.
        difference: the largest distance between its logits and the network's.
        largest: the network's largest logit, by magnitude.
        parameters: how many numbers the exported network has.
    """

    path: Path
    difference: float
    largest: float
    parameters: int


def export_task(
    network: EideticNetwork, task: int, path: str | Path, shape: tuple[int, ...], format: str = "torch"
) -> Exported:
    """Write finished task ``task`` to ``path``: inputs [N, *shape], any N, to logits [N, classes].

    The file is read again and its logits are compared with the network's, for a batch of eight random inputs and for
    one of them. An existing file is replaced once the new one is complete.

    Args:
        shape: of one input, without the batch dimension.
        format: "torch" (for ``torch.export.load``) or "onnx" (needs the extra ``export``).

    Raises TaskError for a task that is not finished, InputError for an unknown format, a missing package or a ``path``
    that is no file's, OSError where the file cannot be written.
    """
    instance("network", network, EideticNetwork, "an EideticNetwork")
    write, read = WRITERS[one_of("format", format, list(WRITERS))]
    path = Path(checking.path("path", path))
    shape = tuple(whole_number("a size in shape", s, 1) for s in a_list("shape", shape, "the shape of one input"))
    plain = network.extract(task)
    like = next(plain.parameters())
    x = torch.randn(EXAMPLES, *shape, generator=torch.Generator().manual_seed(SEED)).to(like.device, like.dtype)

    with replacing(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters warn about their own code
            write(plain, x, temporary)
            run = read(temporary)
        with torch.no_grad(), evaluating(network):
            pairs = [(run(batch), network(batch, task=task)) for batch in (x, x[:1])]

    difference = max((given - expected).abs().max().item() for given, expected in pairs)
    largest = max(expected.abs().max().item() for _, expected in pairs)
    return Exported(path, difference, largest, sum(each.numel() for each in plain.parameters()))


def _write_torch(plain: nn.Module, x: Tensor, path: Path) -> None:
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("samples")},))
    content = io.BytesIO()  # writing to a file that cannot grow, torch ends the process
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def _read_torch(path: Path) -> Callable[[Tensor], Tensor]:
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _write_onnx(plain: nn.Module, x: Tensor, path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        need(package, "ONNX export", extra="export")
    program = torch.onnx.export(
        plain,
        (x,),
        dynamo=True,
        dynamic_shapes=({0: "samples"},),
        input_names=["input"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None  # it is None with dynamo=False alone
    program.save(path)


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Run it with onnxruntime if that is installed, otherwise with ONNX's reference evaluator, which is slow."""
    try:
        from onnxruntime import InferenceSession  # pyright: ignore[reportMissingImports]  it is optional

        session = InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except ImportError:
        from onnx.reference import ReferenceEvaluator  # pyright: ignore[reportMissingImports]  the extra "export"

        session = ReferenceEvaluator(str(path))

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input": x.cpu().numpy()})[0]).to(x.device)

    return run


WRITERS = {"torch": (_write_torch, _read_torch), "onnx": (_write_onnx, _read_onnx)}
