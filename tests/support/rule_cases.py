"""A case for every operation that has a rule: a small module that uses it, or what its refusal says.

``case_of(key)`` gives a function of two tensors of units, (module, x, y), with the layers it needs and the form of the
units; or the text of the refusal. What is found in whole models only is in ``WHOLE``. What has no entry here has no
case, and tests/wiring/rules/test_rules.py fails.
"""

import operator
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from conversions import load_torchvision
from plain_modules import Plain, pooled
from small_transformers import make
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels import layers
from eidetic_kernels.wiring.rules import known

IMAGE, FLAT, TOKENS = (3, 6, 6), (6,), (6, 5)


@dataclass
class Case:
    """``run(module, x, y)`` between two layers that make the units x and y of ``form``, and one that reads the result.

    ``refused``: what the refusal says; ``makes``: the class that converting puts there.
    """

    run: object
    form: tuple = IMAGE
    layers: dict = field(default_factory=dict)
    refused: str | None = None
    makes: type | None = None

    def module(self):
        torch.manual_seed(0)
        made = {name: make() for name, make in self.layers.items()}
        if self.form == IMAGE:
            return Plain(
                lambda s, x: s.h(pooled(s.b(self.run(s, s.a(x), s.c(x))))), a=nn.Conv2d(3, 8, 3, padding=1),
                c=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 5, 1), h=nn.Linear(5, 4), **made,
            )  # fmt: skip
        if self.form == TOKENS:
            return Plain(
                lambda s, x: s.h(s.b(self.run(s, s.a(x), s.c(x))).mean(1)), a=nn.Linear(5, 8), c=nn.Linear(5, 8),
                b=nn.Linear(8, 7), h=nn.Linear(7, 4), **made,
            )  # fmt: skip
        return Plain(
            lambda s, x: s.h(s.b(self.run(s, s.a(x), s.c(x)))), a=nn.Linear(6, 8), c=nn.Linear(6, 8),
            b=nn.Linear(8, 7), h=nn.Linear(7, 4), **made,
        )  # fmt: skip


def one(x):
    """``x`` where every function of one number is defined."""
    return torch.sigmoid(x) * 0.8 + 0.1


_TRUTHS = ("eq", "ge", "gt", "le", "lt", "ne", "logical_and", "logical_or", "logical_not")
_ARGUMENTS = {
    "addcdiv": lambda x, y: (x, y, one(y)), "addcmul": lambda x, y: (x, y, one(y)),
    "clamp": lambda x, y: (x, y - 0.2, y + 0.2), "clip": lambda x, y: (x, y - 0.2, y + 0.2),
    "lerp": lambda x, y: (x, y, 0.3), "masked_fill": lambda x, y: (x, y > 0, 0.5), "where": lambda x, y: (y > 0, x, y),
    "logical_not": lambda x, y: (x > 0,), "pow": lambda x, y: (one(x), y),
}  # fmt: skip


def _given(name, x, y):
    return _ARGUMENTS.get(name, lambda x, y: (x, y))(x, y)


def _combining(name, call):
    """``call`` of several tensors. A result of truth values picks between two."""
    if name in _TRUTHS:
        return Case(lambda s, x, y: torch.where(call(*_given(name, x, y)), x, y), FLAT)
    return Case(lambda s, x, y: call(*_given(name, x, y)), FLAT)


def _method(name):
    plain = name.removesuffix("_")
    if plain in known.UNARY:
        return Case(lambda s, x, y: getattr(one(x), name)(), FLAT)
    if plain == "where":
        return Case(lambda s, x, y: x.where(y > 0, y), FLAT)
    if plain == name:
        return _combining(name, lambda first, *rest: getattr(first, name)(*rest))

    def in_place(s, x, y):
        first, *rest = (x,) if plain == "logical_not" else _given(plain, x, y)
        return getattr(first.clone(), name)(*rest)

    return Case(in_place, FLAT)


def _operator(each):
    name = each.__name__
    if name in ("and_", "or_"):
        return Case(lambda s, x, y: torch.where(each(x > 0, y > 0), x, y), FLAT)
    if name in ("gt", "ge", "lt", "le", "eq", "ne"):
        return Case(lambda s, x, y: torch.where(each(x, y), x, y), FLAT)
    if name in ("pow", "ipow"):
        return Case(lambda s, x, y: each(one(x), y), FLAT)
    return Case(lambda s, x, y: each(x.clone(), y), FLAT)


def _module(*arguments, form=IMAGE, **options):
    """A case for a module class with these arguments."""
    return lambda cls: Case(lambda s, x, y: s.between(x), form, {"between": lambda: cls(*arguments, **options)})


def _refused(run, text, **made):
    return Case(run, FLAT, made, refused=text)


def _heads(x):
    return x.reshape(x.size(0), x.size(1), 4, 2).transpose(1, 2)


def _attention(s, x, y):
    return F.scaled_dot_product_attention(_heads(x), _heads(y), _heads(x)).transpose(1, 2).flatten(2)


def _split(s, x, y):
    a, b = x.chunk(2, 1)
    return torch.cat([torch.relu(a), b], 1)


RANDOM = "in training forward does something else|not known to keep units apart|in evaluation too"
FOUR = (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.ZeroPad2d)

MODULES = {
    layers.StaircaseLayer: Case(lambda s, x, y: x, makes=layers.EideticConv2d),
    layers.EideticBatchNorm: Case(
        lambda s, x, y: s.n(x), layers={"n": lambda: nn.BatchNorm2d(8)}, makes=ek.EideticBatchNorm2d
    ),
    layers.EideticLayerNorm: Case(  # its statistics change with pruning
        lambda s, x, y: s.n(x), TOKENS, {"n": lambda: nn.LayerNorm(8)}, makes=ek.EideticLayerNorm
    ),
    layers.EideticParameter: Case(
        lambda s, x, y: x + s.p.p, TOKENS, {"p": lambda: _holder(1, 6, 8)}, makes=ek.EideticParameter
    ),
    layers.EideticPReLU: Case(lambda s, x, y: s.p(x), layers={"p": lambda: nn.PReLU(8)}, makes=ek.EideticPReLU),
    layers.EideticGroupedConv2d: Case(
        lambda s, x, y: s.g(x), layers={"g": lambda: nn.Conv2d(8, 8, 3, groups=4)}, makes=ek.EideticGroupedConv2d
    ),
    layers.EideticMultiheadAttention: Case(
        lambda s, x, y: s.m(x, x, x)[0], TOKENS, {"m": lambda: nn.MultiheadAttention(8, 2, batch_first=True)},
        makes=ek.EideticLinear,
    ),
    layers.EideticScaledDotProduct: Case(_attention, TOKENS, makes=layers.EideticScaledDotProduct),
    layers.EideticDropout: Case(
        lambda s, x, y: s.d(x), layers={"d": lambda: nn.Dropout(0.5)}, makes=layers.EideticDropout
    ),
    layers.Split: Case(_split, makes=layers.Split),
    nn.Flatten: Case(lambda s, x, y: s.f(x).unsqueeze(3), layers={"f": lambda: nn.Flatten(2)}),
    nn.Dropout1d: _module(form=TOKENS)(nn.Dropout1d),
    nn.AlphaDropout: _refused(lambda s, x, y: s.d(x), RANDOM, d=nn.AlphaDropout),
    nn.FeatureAlphaDropout: _refused(lambda s, x, y: s.d(x), RANDOM, d=nn.FeatureAlphaDropout),
    nn.RReLU: _refused(lambda s, x, y: s.d(x), RANDOM, d=nn.RReLU),
    nn.LPPool2d: _module(2, 2)(nn.LPPool2d), nn.ConstantPad2d: _module(1, 0.5)(nn.ConstantPad2d),
    nn.Threshold: _module(0.1, 2.0)(nn.Threshold),
    **{each: _module(2)(each) for each in (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)},
    **{each: _module(scale_factor=2)(each)
       for each in (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)},
    **{each: _module(1)(each) for each in FOUR},
    **{each: _module()(each) for each in (
        nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU,
        nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Sigmoid, nn.Softplus,
        nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.LogSigmoid,
    )},
}  # fmt: skip

FUNCTIONS = {
    getattr: Case(lambda s, x, y: x / x.shape[2]), operator.getitem: Case(lambda s, x, y: x[:, :, 1:4, ::2]),
    torch.flatten: Case(lambda s, x, y: torch.flatten(x, 2).unsqueeze(3)),
    torch.reshape: Case(lambda s, x, y: torch.reshape(x, (x.size(0), 8, 6, 6))),
    torch.roll: Case(lambda s, x, y: torch.roll(x, (1, 2), (2, 3))),
    F.pad: Case(lambda s, x, y: F.pad(x, (1, 0, 2, 1), mode="replicate")),
    torch.squeeze: Case(lambda s, x, y: x * torch.squeeze(x.mean((2, 3), keepdim=True)[..., None], 4)),
    torch.unsqueeze: Case(lambda s, x, y: x * torch.unsqueeze(x.mean((2, 3)), 2).unsqueeze(-1)),
    torch.clone: Case(lambda s, x, y: torch.clone(x)), torch.detach: Case(lambda s, x, y: torch.detach(x)),
    torch.permute: Case(lambda s, x, y: torch.permute(torch.permute(x, (0, 2, 3, 1)), (0, 3, 1, 2))),
    torch.transpose: Case(lambda s, x, y: torch.transpose(x, 2, 3)),
    torch.swapaxes: Case(lambda s, x, y: torch.swapaxes(x, 2, 3)),
    operator.neg: Case(lambda s, x, y: -x), operator.invert: Case(lambda s, x, y: torch.where(~(x > 0), x, y)),
    F.logsigmoid: Case(lambda s, x, y: F.logsigmoid(x)), F.threshold: Case(lambda s, x, y: F.threshold(x, 0.1, 2.0)),
    F.max_pool2d: Case(lambda s, x, y: F.max_pool2d(x, 2)), F.avg_pool2d: Case(lambda s, x, y: F.avg_pool2d(x, 2)),
    F.lp_pool2d: Case(lambda s, x, y: F.lp_pool2d(x, 2.0, 2)),
    F.adaptive_avg_pool2d: Case(lambda s, x, y: F.adaptive_avg_pool2d(x, (2, None))),
    F.adaptive_max_pool2d: Case(lambda s, x, y: F.adaptive_max_pool2d(x, 2)),
    F.interpolate: Case(lambda s, x, y: F.interpolate(x, size=(4, 5), mode="bilinear")),
    **{each: Case(lambda s, x, y, each=each: x * each(x, (2, 3), keepdim=True))
       for each in (torch.mean, torch.sum, torch.amax, torch.amin)},
    **{each: Case(lambda s, x, y, each=each: each(x, p=0.0)) for each in
       (F.dropout, F.dropout2d, F.dropout3d)},
    F.dropout1d: Case(lambda s, x, y: F.dropout1d(x, p=0.0), TOKENS),
    **{each: _refused(lambda s, x, y, each=each: each(x, training=True), RANDOM) for each in
       (F.alpha_dropout, F.feature_alpha_dropout, F.rrelu)},
    **{each: Case(lambda s, x, y, each=each: s.r(each([x, y], 1)), layers={"r": lambda: nn.Conv2d(16, 8, 1)})
       for each in (torch.cat, torch.concat, torch.concatenate)},
    torch.chunk: Case(lambda s, x, y: _halves(torch.chunk(x, 2, 1))),
    torch.split: Case(lambda s, x, y: _halves(torch.split(x, 4, 1))),
    torch.tensor_split: Case(lambda s, x, y: _halves(torch.tensor_split(x, 2, 1))),
}  # fmt: skip

METHODS = {
    "flatten": Case(lambda s, x, y: x.flatten(2)[..., None]), "view": Case(lambda s, x, y: _gate(x)),
    "reshape": Case(lambda s, x, y: x.reshape(x.size(0), x.size(1), 4, 9)),
    "expand": Case(lambda s, x, y: x * x.mean((2, 3), keepdim=True).expand(x.size(0), 8, 6, -1)),
    "expand_as": Case(lambda s, x, y: x * x.mean((2, 3), keepdim=True).expand_as(y)),
    "roll": Case(lambda s, x, y: x.roll(1, 2)), "squeeze": Case(lambda s, x, y: x[..., None].squeeze(-1)),
    "unsqueeze": Case(lambda s, x, y: x * x.mean((2, 3)).unsqueeze(-1).unsqueeze(-1)),
    "permute": Case(lambda s, x, y: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
    "transpose": Case(lambda s, x, y: x.transpose(2, 3)), "swapaxes": Case(lambda s, x, y: x.swapaxes(2, 3)),
    "mean": Case(lambda s, x, y: x * x.mean((2, 3), keepdim=True)),
    "sum": Case(lambda s, x, y: x * x.sum(2).sum(2)[:, :, None, None]),
    "amax": Case(lambda s, x, y: x - x.amax(-1, keepdim=True)),
    "amin": Case(lambda s, x, y: x - x.amin((-1, -2), True)),
    "size": Case(lambda s, x, y: x / x.size(2)), "dim": Case(lambda s, x, y: x / x.dim()),
    "numel": Case(lambda s, x, y: x / x.numel(), refused="the number of samples is computed with"),
    "nelement": Case(lambda s, x, y: x / x.nelement(), refused="the number of samples is computed with"),
    "chunk": Case(lambda s, x, y: _halves(x.chunk(2, 1))), "split": Case(lambda s, x, y: _halves(x.split([3, 5], 1))),
    "tensor_split": Case(lambda s, x, y: _halves(x.tensor_split((3,), 1))),
    "clone": Case(lambda s, x, y: x.clone()), "contiguous": Case(lambda s, x, y: x.transpose(2, 3).contiguous()),
    "detach": Case(lambda s, x, y: x.detach()), "double": Case(lambda s, x, y: x.double()),
    "to": Case(lambda s, x, y: x.to(y)), "type_as": Case(lambda s, x, y: x.type_as(y)),
    **{each: Case(lambda s, x, y, each=each: getattr(x, each)().to(x.dtype)) for each in ("bfloat16", "float", "half")},
}  # fmt: skip


def _holder(*shape):
    """A module without a forward that holds a parameter ``p``."""
    module = nn.Module()
    module.p = nn.Parameter(torch.randn(*shape))
    return module


def _halves(pieces):
    return torch.cat([pieces[0].relu(), pieces[1]], 1)


def _gate(x):
    """Squeeze and excitation as it is often written."""
    n, c, _, _ = x.size()
    return x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1).expand_as(x)


# What is found in whole models, of packages that may be missing: (module, shape of a sample).
WHOLE = {
    layers.EideticWindowAttention: lambda: make("swin"), known.WINDOW_ATTENTION: lambda: make("swin"),
    "torchvision.models.swin_transformer._patch_merging_pad": lambda: make("swin"),
    f"{known.WINDOW_ATTENTION}V2": lambda: make("swin-v2"),
    layers.EideticRelativeAttention: lambda: make("maxvit"), known.RELATIVE_ATTENTION: lambda: make("maxvit"),
    layers.EideticStochasticDepth: lambda: make("convnext"), known.STOCHASTIC_DEPTH: lambda: make("convnext"),
    "torchvision.models.convnext.LayerNorm2d": lambda: make("convnext"),
    "timm.layers.norm.LayerNorm2d": lambda: timm_layers("LayerNorm2d", 6),
    known.DROP_PATH: lambda: timm_layers("DropPath", 0.3),
}  # fmt: skip


def timm_layers(name, *arguments):
    """A small module with one of timm's layers in it."""
    load_torchvision()
    timm = pytest.importorskip("timm.layers", reason="timm is not installed")
    layer = getattr(timm, name)(*arguments)
    return nn.Sequential(nn.Conv2d(3, 6, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)), IMAGE


def case_of(key):
    """The case for a key of one of the three tables of rules; None where there is none."""
    for table in (MODULES, FUNCTIONS, METHODS):
        if key in table:
            return table[key]
    if isinstance(key, (type, str)):
        known_method = isinstance(key, str) and key.removesuffix("_") in (*known.UNARY, *known.COMBINING)
        return _method(key) if known_method else None
    if key in known.OPERATORS:
        return _operator(key)
    name = key.__name__
    if key is getattr(torch, name, None) and name in known.UNARY:
        return Case(lambda s, x, y: key(one(x)), FLAT)
    if key is getattr(torch, name, None) and name in known.COMBINING:
        return _combining(name, key)
    if key is getattr(F, name, None):
        return Case(lambda s, x, y: key(x), FLAT)
    return None
