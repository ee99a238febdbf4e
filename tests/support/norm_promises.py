"""What every compiled segmented BatchNorm promises beyond agreeing with the oracle; see kernel_cases.py for that.

``kernels`` is a module with the functions of :mod:`eidetic_kernels.backends.cpu`, ``device`` where its tensors live.
"""

from __future__ import annotations

import itertools
import random

import torch
import torch.nn.functional as F
from kernel_cases import CHANNELS, EPS, SHAPES, NormCase, applied, norm_of
from tolerances import assert_close, assert_same_bits

from eidetic_kernels.backends.activations import FUNCTIONS
from eidetic_kernels.backends.arguments import Norm, NormGradients
from eidetic_kernels.ops import ACTIVATIONS

# What torch gives the kernels besides whole tensors: a function of the tensor, and what it is fit for.
LAYOUTS = {
    "columns of something wider": (2, lambda t: _inside(t, (0, 3), (0, 5))),
    "columns that start off a vector": (2, lambda t: _inside(t, (0, 0), (1, 3))),
    "columns at a multiple of four": (2, lambda t: _inside(t, (0, 0), (4, 8))),
    "transposed": (2, lambda t: t.t().contiguous().t()),
    "every second channel": (4, lambda t: _inside_every_second(t)),
    "width before height": (4, lambda t: t.transpose(2, 3).contiguous().transpose(2, 3)),
    "channels of something wider": (4, lambda t: _inside(t, (0, 0), (2, 1))),
    "off an address that vectors need": (3, lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)),
}


def cases(dtypes, each: int, seed: int = 0):
    """``each`` random choices of everything else for every shape and number of channels."""
    choice = random.Random(seed)
    for shape in SHAPES.values():
        for channels in CHANNELS.values():
            for _ in range(each):
                case = NormCase(
                    channels,
                    shape,
                    choice.choice(dtypes),
                    choice.choice(ACTIVATIONS),
                    training=choice.random() < 0.7,
                    affine=choice.random() < 0.7,
                    residual=choice.random() < 0.5,
                    full_input_grad=choice.random() < 0.5,
                    channels_last=len(shape) == 3 and choice.random() < 0.5,
                )
                if not case.ill_posed:
                    yield case


def check_layouts(kernels, device):
    """Strided inputs give what whole ones give, in a whole output; channels_last stays."""
    for (name, (dims, change)), channels in itertools.product(LAYOUTS.items(), ((7, 4), (16, 32))):
        case = NormCase(channels, {2: (37,), 3: (4, 5), 4: (3, 6, 8)}[dims], activation="silu", residual=True)
        tensors, whole = case.tensors(device), case.run(kernels, case.tensors(device))
        for key in ("x", "dy", "residual"):
            tensors[key] = change(tensors[key])
        assert tensors["x"].stride() != whole["y"].stride() or tensors["x"].data_ptr() % 16, name
        strided = case.run(kernels, tensors)
        for key in ("y", "dx", "dresidual"):
            assert strided[key].is_contiguous(), f"{name}: {key}"
        for key, expected in whole.items():
            assert_close(f"{name}, {channels}: {key}", strided[key], expected, condition=2)
        assert_same_bits(f"{name}: frozen", strided["y"][:, : channels[0]], whole["y"][:, : channels[0]])

    case = NormCase((7, 4), (3, 6, 8), channels_last=True, residual=True)
    for change in (lambda t: t, lambda t: torch.cat([t, t], 1)[:, : t.shape[1]]):  # and the first channels of more
        tensors = case.tensors(device)
        tensors |= {key: change(tensors[key]) for key in ("x", "dy", "residual")}
        results = case.run(kernels, tensors)
        for key in ("y", "dx", "dresidual"):
            assert results[key].is_contiguous(memory_format=torch.channels_last), key

    # Gradients and residuals that lie otherwise than x; a gradient of one number everywhere, as sum() gives it.
    for flip in (False, True):
        case = NormCase((7, 4), (3, 6, 8), channels_last=flip, residual=True, activation="relu")
        tensors = case.tensors(device)
        expected = case.run(kernels, case.tensors(device))
        for key in ("dy", "residual"):
            other = torch.contiguous_format if flip else torch.channels_last
            tensors[key] = tensors[key].contiguous(memory_format=other)
        for key, value in case.run(kernels, tensors).items():
            assert_same_bits(f"mixed formats: {key}", value, expected[key])

        one = case.tensors(device) | {"dy": torch.full((), 0.7, device=device).expand(tensors["x"].shape)}
        filled = case.tensors(device) | {"dy": torch.full_like(tensors["x"], 0.7)}
        whole = case.run(kernels, filled)
        for key, value in case.run(kernels, one).items():
            assert_same_bits(f"expanded dy: {key}", value, whole[key])


def check_frozen_bits(kernels, device, dtypes, count: int):
    """P1, P3: a frozen channel's output depends on nothing that lies beside it, in training and in recall."""
    choice = random.Random(1)
    for _ in range(count):
        frozen, live = choice.randint(1, 40), choice.randint(0, 40)
        case = NormCase(
            (frozen, live),
            choice.choice([(5,), (37,), (3, 7), (2, 4, 8), (3, 7, 5)]),
            choice.choice(dtypes),
            choice.choice(ACTIVATIONS),
            training=choice.random() < 0.5,
            residual=choice.random() < 0.5,
            full_input_grad=True,
        )
        tensors = case.tensors(device)
        whole = case.run(kernels, tensors)

        few = choice.randint(1, frozen)
        prefix = NormCase(
            (few, 0), case.shape, case.dtype, case.activation, False, residual=case.residual, full_input_grad=True
        )
        for strided in (True, False):
            cut = {
                name: t if t is None else (t[:, :few] if t.dim() > 1 else t[: few if "frozen" in name else 0])
                for name, t in tensors.items()
            }
            if not strided:
                cut = {name: t if t is None else t.contiguous() for name, t in cut.items()}
            alone = prefix.run(kernels, cut)
            for key in ("y", "dx") + (("dresidual",) if case.residual else ()):
                assert_same_bits(f"{case}, first {few}: {key}", alone[key], whole[key][:, :few])

        poisoned = case.tensors(device)
        for name in ("weight", "bias", "running_mean", "running_var"):
            poisoned[name].fill_(float("nan"))
        for name in ("x", "dy", "residual"):
            if poisoned[name] is not None:
                poisoned[name][:, frozen:] = float("nan")
        after = case.run(kernels, poisoned)
        for key in ("y", "dx") + (("dresidual",) if case.residual else ()):
            assert_same_bits(f"{case}, poisoned: {key}", after[key][:, :frozen], whole[key][:, :frozen])


def check_frozen_gradients_are_zero(kernels, device):
    """Whatever x, the residual and dy hold there: 0 times infinity would not do."""
    for shape, channels_last in (((9,), False), ((3, 4, 5), False), ((3, 4, 5), True)):
        case = NormCase((18, 3), shape, activation="gelu", residual=True, channels_last=channels_last)
        tensors = case.tensors(device)
        tensors["x"][:, :18] = float("inf")
        tensors["dy"][:, :18] = float("nan")
        results = case.run(kernels, tensors)
        assert not results["dx"][:, :18].any() and not results["dresidual"][:, :18].any()
        assert results["dx"][:, 18:].isfinite().all() and results["dx"][:, 18:].any()


def check_large_means(kernels, device):
    """A plain sum of squares would be several per cent off in the variance."""
    for mean, std in ((1000.0, 1.0), (-50.0, 0.05), (0.0, 1e-4)):
        for shape, channels_last in (((500,), False), ((9, 7, 5), False), ((9, 8, 8), False), ((9, 8, 8), True)):
            case = NormCase((2, 21), shape, mean=mean, std=std, channels_last=channels_last)
            case.check(kernels, device)
            expected = case.expected()["running_var"]
            variance = case.run(kernels, case.tensors(device))["running_var"]
            assert_close(f"{case}: variance", variance, expected, condition=20)


def check_special_values(kernels, device):
    """NaN, infinities and kinks come out as torch has them, and so do their gradients."""
    special = [-3.0, 3.0, 0.0, -0.0, 6.0, -1e30, 1e30, 90.0, -90.0, float("nan"), float("inf"), float("-inf")]
    values = torch.tensor(special + [0.5, -0.5, 2.9999998, -3.0000002])
    for activation in ACTIVATIONS:
        reference = values.double().requires_grad_()
        y = FUNCTIONS[activation](reference)
        y.sum().backward()

        for shape in ((16, 1), (1, 16), (1, 1, 16), (16, 1, 1), (4, 2, 2)):
            x = values.view(shape).to(device)
            if len(shape) == 3 and shape == (4, 2, 2):
                x = values.view(4, 1, 2, 2).to(device)
            frozen = x.shape[1]
            none = torch.empty(0, device=device)
            scale, shift = torch.ones(frozen, device=device), torch.zeros(frozen, device=device)
            norm = Norm(none, none, none, none, scale, shift, False, 0.0, EPS, activation)
            given, mean, rstd = kernels.segmented_batch_norm_forward(x, None, norm)
            wanted = NormGradients(full_input_grad=True, x=True, residual=False)
            dx = kernels.segmented_batch_norm_backward(torch.ones_like(x), x, None, applied(norm, mean, rstd), wanted)[
                0
            ]
            _same_kind(f"{activation}, {shape}", given, y, values)
            _same_kind(f"gradient of {activation}, {shape}", dx, reference.grad, values)


def check_what_is_not_needed(kernels, device):
    for training in (True, False):
        case = NormCase((7, 9), (3, 4, 5), residual=True, training=training)
        t = case.tensors(device)
        norm = norm_of(t, training, "relu")
        _, mean, rstd = kernels.segmented_batch_norm_forward(t["x"], t["residual"], norm)
        backward = kernels.segmented_batch_norm_backward
        ahead = t["dy"], t["x"], t["residual"], applied(norm, mean, rstd)
        dx, dresidual, dweight, dbias = backward(*ahead, NormGradients(False, True, True))
        for need in ((True, False), (False, True), (False, False)):
            results = backward(*ahead, NormGradients(False, *need))
            assert [r is not None for r in results] == [*need, True, True]
            for name, given, expected in zip(("dx", "dr", "dw", "db"), results, (dx, dresidual, dweight, dbias)):
                if given is not None:
                    assert_same_bits(f"needing {need}: {name}", given, expected)
        no_affine = applied(norm, mean, rstd)._replace(weight=None, bias=None, activation="none")
        wanted = NormGradients(False, x=True, residual=False)
        assert backward(t["dy"], t["x"], None, no_affine, wanted)[1:] == (None, None, None)


def check_no_samples(kernels, device):
    """A training step on an empty batch is empty: statistics stay, gradients are zero."""
    for shape, channels_last in (((0,), False), ((0, 4, 5), False), ((0, 4, 5), True), ((3, 0, 5), False)):
        case = NormCase((7, 4), shape, channels_last=channels_last, residual=True)
        t = case.tensors(device)
        results = case.run(kernels, dict(t))
        before = case.tensors(device)
        for name in ("running_mean", "running_var"):
            assert_same_bits(f"{shape}: {name}", results[name], before[name])
        assert results["y"].shape == results["dx"].shape == t["x"].shape
        assert not results["dweight"].any() and not results["dbias"].any()


def check_far_rows(kernels, dtype):
    """Row strides beyond 32 bits; the memory between the rows is never touched, so it costs nothing."""
    stride = 2**31 + 8
    try:
        memory = torch.empty(stride + 8, dtype=dtype)
    except RuntimeError as error:  # no lazily committed memory here
        return str(error)
    x = memory.as_strided((2, 8), (stride, 1))
    case = NormCase((3, 5), (2,), dtype, "relu")
    tensors = case.tensors()
    x.copy_(tensors["x"])
    expected = case.run(kernels, case.tensors())
    for name, value in case.run(kernels, tensors | {"x": x}).items():
        if value is not None:
            assert_same_bits(f"far rows: {name}", value, expected[name])
    return None


def _same_kind(name, given, expected, at):
    """Equal to float32, NaN where NaN is, with the sign of infinity."""
    given, expected = given.flatten().cpu(), expected.detach().flatten().float()
    keep = torch.ones_like(at, dtype=torch.bool)
    if "gelu" in name:  # torch gives NaN at infinity on some processors
        keep = ~at.isposinf()
    elif name.startswith(("gradient of relu6", "gradient of hardswish")):  # and on vectors another answer at NaN
        keep = ~at.isnan()
        assert (given[at.isnan()] == 1).all(), f"{name}: the gradient passes at NaN"
    torch.testing.assert_close(
        given[keep], expected[keep], rtol=2e-6, atol=1e-6, equal_nan=True, msg=lambda m: f"{name}: {m}"
    )


def _inside(t, samples, channels):
    """``t`` as a part of something NaN with this many more samples and channels before and after."""
    pads = [0, 0] * (t.dim() - 2) + [*channels, *samples]
    return F.pad(t, pads, value=float("nan"))[samples[0] :, channels[0] :][: t.shape[0], : t.shape[1]]


def _inside_every_second(t):
    return t.repeat_interleave(2, 1)[:, ::2]
