"""Half precision in Triton's interpreter, as repaired for the tests, against torch."""

import pytest
import torch

pytest.importorskip("triton")

import interpreter
import triton
import triton.language as tl
from tolerances import assert_close, assert_same_bits

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels run on the GPU here")

SPECIAL = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.4e38, -3.4e38, 1e-40, 6e-8, 65519.9, 65520.0]
BEYOND = [float("inf"), -float("inf"), float("nan")]


@triton.jit
def cast_kernel(x, y, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y + i, tl.load(x + i).to(y.dtype.element_ty))


@triton.jit
def product_kernel(a, b, c, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    acc = tl.zeros((SIZE, SIZE), tl.float32)
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), acc, input_precision="ieee"))


@triton.jit
def sum_kernel(x, y, SIZE: tl.constexpr):
    tl.store(y, tl.sum(tl.load(x + tl.arange(0, SIZE))))


@triton.jit
def difference_kernel(x, y, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y + i, tl.load(x + i) - tl.load(y + i))


@triton.jit
def number_kernel(y):
    tl.store(y + tl.program_id(0), tl.load(y + 4))
    tl.store(y + 4, tl.program_id(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_casts_round_as_torch_does(dtype):
    x = torch.cat([torch.tensor(SPECIAL + BEYOND), torch.randn(1010) * 10 ** torch.linspace(-8, 8, 1010)])
    y = torch.empty(1024, dtype=dtype)
    cast_kernel[(1,)](x, y, SIZE=1024)
    there = x.isfinite()
    assert_same_bits("narrower", y[there], x.to(dtype)[there])
    assert y.float()[11:14].tolist()[:2] == BEYOND[:2] and y[13].isnan()
    back = torch.empty(1024)
    cast_kernel[(1,)](y, back, SIZE=1024)
    assert_same_bits("wider", back[there], y.float()[there])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_are_of_values(dtype):
    a, b = torch.randn(2, 16, 16).to(dtype)
    c = torch.empty(16, 16)
    product_kernel[(1,)](a, b, c, SIZE=16)
    assert_close("product", c, a.double() @ b.double())


@pytest.mark.parametrize("kernel", [sum_kernel, difference_kernel])
def test_other_arithmetic_on_bfloat16_is_refused(kernel):
    x = torch.ones(16)
    kernel[(1,)](x, torch.zeros(16), SIZE=16)
    with pytest.raises(Exception, match="bfloat16 in the interpreter; convert to float32 first"):
        kernel[(1,)](x.bfloat16(), torch.zeros(16).bfloat16(), SIZE=16)


def test_programs_run_in_reverse_when_asked_to():
    y = torch.full((5,), -1)
    number_kernel[(4,)](y)
    assert y.tolist() == [-1, 0, 1, 2, 3], "each program leaves its number to the next"
    y.fill_(-1)
    with interpreter.programs_reversed():
        number_kernel[(4,)](y)
    assert y.tolist() == [1, 2, 3, -1, 0]


def test_an_unknown_interpreter_is_not_repaired_blindly(monkeypatch):
    monkeypatch.setattr(triton, "__version__", "4.0.0")
    with pytest.raises(RuntimeError, match=r"Triton 4.0: tests/support/interpreter.py knows .*3.5, .*then add it"):
        interpreter.repair()
