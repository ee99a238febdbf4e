"""Compile what the launchers launch, for GPUs that are not there, and read what came out.

A launch is a function that calls one of the package's launchers with CPU tensors. It runs in a process of its own,
where Triton is not interpreting and its driver is a stand-in: each kernel is specialised and compiled for the target,
with the very arguments and options it would be launched with, and is then not launched. So nothing here repeats a
signature, and what is compiled cannot drift from what is run. Works with Triton 3.5 to 3.9.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TARGETS = (80, 90, 100)  # compute capabilities, times ten

PRODUCTS = re.compile(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync")
COPIES = re.compile(r"cp\.async\.c[ag]\.|cp\.async\.bulk")  # from global to shared memory, while something else runs


@dataclass(frozen=True)
class Compiled:
    """One kernel as compiled for one target."""

    kernel: str
    target: int
    key: str  # the same for the same machine code
    constants: dict[str, Any]
    num_warps: int
    registers: int  # of one thread
    spilled: int  # bytes of one thread
    shared: int  # bytes of a block
    opcodes: Counter[str]  # PTX instructions, by opcode
    loops: tuple[Counter[str], ...]  # the same for each innermost loop

    @property
    def product_loops(self) -> list[Counter[str]]:
        """The innermost loops that multiply matrices: with matrix instructions, or else those of scalars."""
        with_matrices = [loop for loop in self.loops if matching(loop, PRODUCTS)]
        return with_matrices or [loop for loop in self.loops if matching(loop, re.compile("fma")) >= 32]


def matching(opcodes: Counter[str], pattern: re.Pattern[str]) -> int:
    return sum(count for opcode, count in opcodes.items() if pattern.match(opcode))


class Compiler:
    """A process that compiles; use as a context manager."""

    def __enter__(self) -> Compiler:
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_stop_interpreting)
        return self

    def __exit__(self, *_) -> None:
        self.pool.shutdown()

    def compile(self, launch: Callable[[], object], target: int) -> list[Compiled]:
        """What ``launch`` (a function of an importable module) launches, in order, compiled for ``target``.

        An error of the compiler is raised here.
        """
        return self.pool.submit(_compile, launch, target).result()

    def names(self, launch: Callable[[], object]) -> list[str]:
        """The kernels that ``launch`` launches, in order; nothing is compiled."""
        return self.pool.submit(_names, launch).result()


def _stop_interpreting() -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    assert "triton" not in sys.modules, "Triton was imported before this process could say that it compiles"


def _compile(launch: Callable[[], object], target: int) -> list[Compiled]:
    import triton
    from triton.backends.compiler import GPUTarget

    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", target, 32),
            get_current_device=lambda: target,  # Triton keeps what it compiled by device
            get_current_stream=lambda device: 0,
        )
    )
    kernels = _instead_of_running(lambda run, *args, **options: run(*args, **options | {"warmup": True}), launch)
    return [_read(kernel, target) for kernel in kernels]


def _names(launch: Callable[[], object]) -> list[str]:
    return _instead_of_running(lambda run, kernel, *args, **options: kernel.fn.__name__, launch)


def _instead_of_running(act: Callable, launch: Callable[[], object]) -> list:
    """What ``act(run, kernel, *arguments, grid=, warmup=, **options)`` returns for each of the launches."""
    from triton.runtime.jit import JITFunction

    run, results = JITFunction.run, []
    JITFunction.run = lambda *args, **options: results.append(act(run, *args, **options))
    try:
        launch()
    finally:
        JITFunction.run = run
    return results


def _read(kernel, target: int) -> Compiled:
    names = kernel.src.fn.arg_names
    constants = {names[path[0]]: value for path, value in kernel.src.constants.items() if len(path) == 1}
    usage = _resources(kernel.asm["cubin"])
    return Compiled(
        kernel=kernel.metadata.name,
        target=target,
        key=kernel.hash,
        constants=constants,
        num_warps=kernel.metadata.num_warps,
        registers=usage["REG"],
        spilled=usage["STACK"] + usage["LOCAL"],
        shared=kernel.metadata.shared,
        opcodes=_opcodes(kernel.asm["ptx"].splitlines()),
        loops=tuple(_opcodes(lines) for lines in _innermost_loops(kernel.asm["ptx"].splitlines())),
    )


def _resources(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told.stdout)}


def _opcodes(lines: list[str]) -> Counter[str]:
    instructions = (re.match(r"\s*(?:@!?%\w+ )?([a-z][\w.:]*)\s[^:]*;", line) for line in lines)
    return Counter(found[1] for found in instructions if found)


def _innermost_loops(lines: list[str]) -> list[list[str]]:
    """From a label to the last branch back to it, where no other loop lies within."""
    labels, loops = {}, {}
    for number, line in enumerate(lines):
        if label := re.match(r"(\$L\w+):", line):
            labels[label[1]] = number
        elif (branch := re.search(r"\bbra(?:\.uni)?\s+(\$L\w+);", line)) and branch[1] in labels:
            loops[labels[branch[1]]] = number
    spans = loops.items()
    inner = [(a, b) for a, b in spans if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)]
    return [lines[a : b + 1] for a, b in inner]
