"""Every Triton kernel compiles for the GPUs it is meant for, to the instructions it is meant to have. No GPU needed."""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from slow import slow

pytest.importorskip("triton", reason="Triton is not installed")
from ahead_of_time import COPIES, PRODUCTS, TARGETS, Compiler, matching  # noqa: E402
from launches import (  # noqa: E402
    LAUNCHES,
    SPILLS,
    conv2d,
    growing_convolutions,
    growing_norms,
    growing_tasks,
    linear,
)

import eidetic_kernels  # noqa: E402

CONVOLUTIONS = ["conv2d bf16 channels_last", "conv2d tf32"]
PRODUCT_OF = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


@pytest.fixture(scope="module")
def compiler():
    with Compiler() as compiler:
        yield compiler


@pytest.mark.parametrize("target", [TARGETS[0], *slow(*TARGETS[1:])])
@pytest.mark.parametrize("name", LAUNCHES)
def test_compiles_and_keeps_to_its_registers(name, target, compiler):
    kernels = compiler.compile(LAUNCHES[name], target)
    assert kernels
    for kernel in kernels:
        assert kernel.target == target and kernel.registers <= 255
        assert kernel.spilled <= SPILLS.get(name, 0), kernel


def test_every_kernel_is_launched_here(compiler):
    folder = Path(eidetic_kernels.__file__).parent / "backends/triton"
    sources = [path.read_text() for path in folder.glob("*.py")]
    written = {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)}
    launched = {name for launch in LAUNCHES.values() for name in compiler.names(launch)}
    assert launched == written and "staircase_linear_kernel" in written


@pytest.mark.parametrize("target", [TARGETS[0], *slow(*TARGETS[1:])])
@pytest.mark.parametrize("name", ["linear bf16 aligned", "linear fp16 few samples", "linear tf32", *CONVOLUTIONS])
def test_the_aligned_product_uses_tensor_cores_and_loads_ahead(name, target, compiler):
    product = compiler.compile(LAUNCHES[name], target)[0]
    assert product.constants["ALIGNED"] and product.product_loops
    for loop in product.product_loops:
        assert matching(loop, re.compile(re.escape(PRODUCT_OF[target])))
        assert matching(loop, COPIES), "the next step's data is not loaded while this one is computed"
        assert name in CONVOLUTIONS or not matching(loop, re.compile("ld.global")), "loaded past the pipeline"


@pytest.mark.parametrize("target", [TARGETS[0], *slow(*TARGETS[1:])])
def test_the_exact_product_uses_no_tensor_core(target, compiler):
    """A GPU's tensor cores cut float32 to TF32, which was not allowed here."""
    product = compiler.compile(LAUNCHES["linear fp32"], target)[0]
    assert product.constants["PRECISION"] == "ieee" and not matching(product.opcodes, PRODUCTS)
    (loop,) = product.product_loops
    assert matching(loop, re.compile("fma.rn.f32")) and matching(loop, COPIES)


# dtype, samples (few and many have tiles of their own) and precision, and the instructions that multiply.
PRECISIONS = {
    "bf16": ((torch.bfloat16, 4096), PRODUCTS),
    "fp16 few": ((torch.float16, 256), PRODUCTS),
    "tf32": ((torch.float32, 4096, "tf32"), PRODUCTS),
    "ieee": ((torch.float32, 256, "ieee"), re.compile(r"fma\.rn\.f32(x2)?$")),
}


@pytest.mark.parametrize("target", [TARGETS[0], *slow(*TARGETS[1:])])
@pytest.mark.parametrize("name", PRECISIONS)
def test_aligned_and_ragged_products_multiply_alike(name, target, compiler):
    """P1: the same instructions, as often a step, whatever is loaded together."""
    (dtype, samples, *precision), instructions = PRECISIONS[name]
    loops = []
    for aligned in (True, False):
        launch = partial(linear, dtype, samples, aligned, activation="none", precision=(*precision, "ieee")[0])
        product = compiler.compile(launch, target)[0]
        assert product.constants["ALIGNED"] is aligned
        (loop,) = product.product_loops
        loops.append(Counter(opcode for opcode in loop.elements() if instructions.match(opcode)))
    for loop in loops:  # sm_100 takes two of these at a time, each rounded as one, where its compiler finds pairs
        loop["fma.rn.f32"] += 2 * loop.pop("fma.rn.f32x2", 0)
    assert loops[0].total() and loops[0] == loops[1]


@pytest.mark.parametrize("precision, dtype", [("ieee", torch.bfloat16), ("tf32", torch.float32)])
def test_aligned_and_ragged_convolutions_multiply_alike(precision, dtype, compiler):
    loops = []
    for aligned in (True, False):
        product = compiler.compile(partial(conv2d, dtype, aligned=aligned, precision=precision), 90)[0]
        assert product.constants["ALIGNED"] is aligned
        loops.append(
            [
                {opcode: count for opcode, count in loop.items() if PRODUCTS.match(opcode)}
                for loop in product.product_loops
            ]
        )
    assert loops[0] and all(loops[0]) and loops[0] == loops[1]


def test_no_size_starts_a_compilation(compiler):
    """Pruning changes sizes at every step; one compilation serves them all."""
    kernels = compiler.compile(partial(growing_tasks, torch.float32), 90)
    assert len(kernels) == 12 and len({kernel.key for kernel in kernels}) == 1
    kernels = compiler.compile(partial(growing_norms, torch.float32), 90)
    assert len(kernels) == 5 * 6 and len({kernel.key for kernel in kernels}) == 6
    kernels = compiler.compile(partial(growing_convolutions, torch.bfloat16), 90)
    assert len(kernels) == 3 and len({kernel.key for kernel in kernels}) == 1


def test_a_mistake_only_the_compiler_sees_is_raised(compiler):
    with pytest.raises(Exception, match="ACTIVATION"):
        compiler.compile(partial(linear, torch.float32, 256, True, "evaluation", "swish"), 90)
