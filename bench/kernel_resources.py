"""Registers, shared memory and spills of every GPU kernel, as compiled here; no GPU is needed.

    python bench/kernel_resources.py [--out bench/results/kernel_resources.md]

Triton kernels are compiled as their launchers launch them (tests/support/launches.py), for sm_80, sm_90 and sm_100; the
CUDA C++ kernels by nvcc for sm_90, where there is one. Registers and spilled bytes are a thread's, shared memory a
block's. Times are not here: bench/gpu.sh measures them on a GPU. Nothing runs, so that there are no seeds and no data.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]


def triton_rows() -> list[str]:
    """A row for each launch and kernel: warps, then registers / spilled bytes / shared KiB for each target."""
    # Imported here: the process that compiles imports this file, and must set Triton up before it imports it.
    from ahead_of_time import PRODUCTS, TARGETS, Compiler
    from launches import LAUNCHES

    rows = []
    with Compiler() as compiler:
        for name, launch in LAUNCHES.items():
            by_target = [compiler.compile(launch, target) for target in TARGETS]
            seen = set()
            for kernels in zip(*by_target):
                if kernels[0].key in seen:
                    continue
                seen.add(kernels[0].key)
                cells = [f"{k.registers} / {k.spilled} / {k.shared / 1024:.0f}" for k in kernels]
                found = {opcode.split(".")[0] for k in kernels for opcode in k.opcodes if PRODUCTS.match(opcode)}
                cells.append(", ".join(sorted(found)))
                head = [name, f"`{kernels[0].kernel}`", str(kernels[0].num_warps)]
                rows.append("| " + " | ".join([*head, *cells]) + " |")
    return rows


def cuda_rows() -> list[str]:
    """A row for each CUDA C++ kernel, from ptxas; instances that differ only in types share a row."""
    if shutil.which("nvcc") is None:
        return []

    found: dict[str, list[tuple[int, int, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            command = ["nvcc", "-O3", "-std=c++17", "-arch=sm_90", "-Xptxas", "-v", "-c", str(source)]
            out = ["-o", f"{folder}/{source.stem}.o"]
            said = subprocess.run([*command, *out], capture_output=True, text=True, check=True).stderr
            entry, spilled = None, 0
            names = subprocess.run(["c++filt"], input=said, capture_output=True, text=True, check=True).stdout
            for line in names.replace("(anonymous namespace)::", "").splitlines():
                if named := re.search(r"Compiling entry function '(?:void )?(.*?)[(<']", line):
                    entry, spilled = named.group(1).split("::")[-1], 0
                elif entry and (spills := re.search(r"(\d+) bytes spill stores", line)):
                    spilled = int(spills.group(1))
                elif entry and (used := re.search(r"Used (\d+) registers", line)):
                    shared = re.search(r"(\d+) bytes smem", line)
                    sizes = int(used.group(1)), spilled, int(shared.group(1)) if shared else 0
                    found.setdefault(entry, []).append(sizes)

    rows = []
    for entry, kernels in found.items():
        registers, spilled, shared = zip(*kernels)
        span = f"{min(registers)} to {max(registers)}"
        rows.append(f"| `{entry}` | {len(kernels)} | {span} | {max(spilled)} | {max(shared)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernel_resources.md")
    given = parser.parse_args()
    import triton
    from machine import described

    about = described()
    lines = ["# What the GPU kernels take", ""]
    lines += [f"`python bench/kernel_resources.py`; Triton {triton.__version__}, {about}"]
    lines += ["", *__doc__.split("\n\n")[2].splitlines(), "", "## Triton", ""]
    lines += ["Registers of a thread / bytes spilled / KiB of shared memory of a block.", ""]
    lines += ["| launch | kernel | warps | sm_80 | sm_90 | sm_100 | matrix instructions |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += triton_rows()
    if cuda := cuda_rows():
        lines += ["", "## CUDA C++, sm_90", "", "| kernel | instances | registers | spilled | shared bytes |"]
        lines += ["|---|---|---|---|---|", *cuda]
    given.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
