"""One task of a network as a file that needs neither this package nor, in ONNX, torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import InputError
from eidetic_kernels.modes import evaluating

from ..data._extras import need

EXAMPLES, SEED = 8, 20250213


class Exported(NamedTuple):
    """What was written: the file, how far its logits lie from the network's, and the largest of those."""

    path: Path
    difference: float
    largest: float
    parameters: int


def export_task(
    network: EideticNetwork, task: int, path: str | Path, shape: tuple[int, ...], format: str = "torch"
) -> Exported:
    """Write finished task ``task`` to ``path``: inputs [N, *shape], any N, to logits [N, classes].

    format: "torch" (a program of ``torch.export``, to be read by ``torch.export.load``) or "onnx" (needs the extra
    ``export``). The file is read again and its logits compared with the network's, for eight made-up inputs and for one
    of them. A file that is there is replaced once the new one is whole.

    Raises TaskError for a task that is not finished, InputError for an unknown format or a missing package.
    """
    if format not in WRITERS:
        raise InputError(f"format is {format!r}; there are: {', '.join(WRITERS)}.")
    write, read = WRITERS[format]
    plain, path = network.extract(task), Path(path)
    like = next(plain.parameters())
    x = torch.randn(EXAMPLES, *shape, generator=torch.Generator().manual_seed(SEED)).to(like.device, like.dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters' own code
            write(plain, x, temporary)
            run = read(temporary)
        with torch.no_grad(), evaluating(network):
            pairs = [(run(batch), network(batch, task=task)) for batch in (x, x[:1])]
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    difference = max((given - expected).abs().max().item() for given, expected in pairs)
    largest = max(expected.abs().max().item() for _, expected in pairs)
    return Exported(path, difference, largest, sum(each.numel() for each in plain.parameters()))


def _write_torch(plain: nn.Module, x: Tensor, path: Path) -> None:
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("samples")},))
    with open(path, "wb") as file:  # by name it insists on the suffix .pt2
        torch.export.save(program, file)


def _read_torch(path: Path) -> Callable[[Tensor], Tensor]:
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _write_onnx(plain: nn.Module, x: Tensor, path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        need(package, "ONNX export", extra="export")
    program = torch.onnx.export(
        plain, (x,), dynamo=True, dynamic_shapes=({0: "samples"},), input_names=["input"], output_names=["logits"],
        verbose=False,
    )
    program.save(path)


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """With onnxruntime where it is installed; else by the definitions of ONNX's operators, slowly."""
    try:
        from onnxruntime import InferenceSession

        session = InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input": x.cpu().numpy()})[0]).to(x.device)

    return run


WRITERS = {"torch": (_write_torch, _read_torch), "onnx": (_write_onnx, _read_onnx)}
