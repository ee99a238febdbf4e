"""What rules do with unusual arguments (further tensors, counts of units, samples), and common ways to write things."""

import pytest
import torch
import torch.nn.functional as F
from conversions import lived_in, take_through
from plain_modules import Plain, pooled
from pruned_alike import pruned_alike, refused_or_right
from rule_cases import Case, timm_layers
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.wiring import rules
from eidetic_kernels.wiring.rules import registry

FLAT, IMAGE, TOKENS = (6,), (3, 6, 6), (6, 5)


def with_tensor(module, name, tensor, trained=False):
    if trained:
        module.register_parameter(name, nn.Parameter(tensor))
    else:
        module.register_buffer(name, tensor)
    return module


# ---- further tensors: tied unit by unit, or refused


TIED = {
    "clamp between layers": lambda s, x, y: torch.clamp(x, min=y),
    "clamp by method": lambda s, x, y: x.clamp(max=y),
    "where": lambda s, x, y: torch.where(x > y, x, 0.1 * y),
    "lerp": lambda s, x, y: torch.lerp(x, y, torch.sigmoid(y)),
    "addcmul": lambda s, x, y: torch.addcmul(x, y, x, value=0.3),
    "masked_fill": lambda s, x, y: x.masked_fill(y > 0, 0.0),
    "power": lambda s, x, y: torch.exp(x) ** torch.tanh(y),
}


@pytest.mark.parametrize("name", TIED)
def test_further_tensors_of_units_are_tied(name):
    net = pruned_alike(Case(TIED[name], FLAT).module(), torch.randn(4, *FLAT))
    assert net.groups[0].name == "body.a (+1 tied)"


@pytest.mark.parametrize("form", [FLAT, TOKENS])
@pytest.mark.parametrize("name", ["clamp between layers", "clamp by method", "addcmul", "masked_fill", "power"])
def test_parameters_belong_to_the_units_they_are_combined_with(name, form):
    """The slices of ``self.low`` are pruned with their units, and finished tasks keep theirs."""
    run = TIED[name]
    module = Case(lambda s, x, y: run(s, x, s.low), form).module()
    del module.c
    module.run = lambda s, x: (lambda z: s.h(z if form == FLAT else z.mean(1)))(s.b(run(s, s.a(x), s.low)))
    with_tensor(module, "low", torch.randn(8), trained=True)
    net = pruned_alike(module, torch.randn(4, *form))
    assert isinstance(net.body.low, ek.EideticParameter) and "body.low" in net.groups[0].norms


BUFFERS = {
    "clamp": lambda s, x: torch.clamp(x, min=s.t), "maximum": lambda s, x: torch.maximum(x, s.t),
    "addcmul": lambda s, x: torch.addcmul(x, x, s.t), "where": lambda s, x: torch.where(s.t > 0, x, -x),
    "product": lambda s, x: x * s.t, "made on the way": lambda s, x: x * torch.ones(8, device=x.device),
    "prelu": lambda s, x: F.prelu(x, s.t), "matmul": lambda s, x: x @ s.t.diag(),
}  # fmt: skip


def between(run, **layers):
    return Plain(
        lambda s, x: s.h(s.b(run(s, s.a(x)))), a=nn.Linear(6, 8), b=nn.Linear(8, 7), h=nn.Linear(7, 4), **layers
    )  # fmt: skip


def images(run, **layers):
    return Plain(
        lambda s, x: s.h(pooled(s.b(run(s, s.a(x))))), a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 5, 1),
        h=nn.Linear(5, 4), **layers,
    )  # fmt: skip


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_and_tensors_made_on_the_way_never_part_from_units(name):
    module = with_tensor(between(BUFFERS[name]), "t", torch.rand(8))
    refusal = refused_or_right(module, torch.randn(3, 6))
    assert not refusal or "node '" in refusal


def test_a_buffer_of_one_number_is_a_number():
    module = with_tensor(with_tensor(between(lambda s, x: x * s.t + s.u), "t", torch.tensor(3.0)), "u", torch.ones(1))
    pruned_alike(module, torch.randn(3, 6))


class Two(nn.Module):
    def forward(self, x, y, scale=1.0):
        return x * torch.sigmoid(y) * scale


def test_a_rule_for_one_tensor_refuses_a_second(monkeypatch):
    """Registered as ``passes``, the module's second tensor of units would not follow the first."""
    module = Case(lambda s, x, y: s.two(x, y), FLAT, {"two": Two}).module()
    pruned_alike(module, torch.randn(3, 6))
    monkeypatch.setitem(registry.REGISTERED, Two, rules.passes)
    with pytest.raises(ek.ConversionError, match=r"cannot be captured"):
        ek.convert(module, torch.randn(3, 6))


UNEXPECTED = {
    "pooled indices": lambda s, x: F.max_pool2d(x, 2, return_indices=True)[0],
    "a tensor of indices": lambda s, x: x[:, :, torch.tensor([0, 1])],
    "another result": lambda s, x: torch.exp(x, out=s.c(x)),
    "a buffer to compare with": lambda s, x: torch.where(x > s.seen, x, 0.0),
    "a matrix": lambda s, x: torch.matmul(x, s.c(x)),
}


@pytest.mark.parametrize("name", UNEXPECTED)
def test_unexpected_arguments_are_refused_or_right(name):
    layer = {"c": nn.Conv2d(8, 8, 1)} if name in ("another result", "a matrix") else {}
    module = with_tensor(images(UNEXPECTED[name], **layer), "seen", torch.rand(8, 1, 1)).requires_grad_(False)
    refused_or_right(module, torch.randn(2, *IMAGE))


def test_a_parameter_whose_units_nobody_holds_is_refused():
    module = with_tensor(between(lambda s, x: x + s.p.exp().sum()), "p", torch.randn(8), trained=True)
    refused_or_right(module, torch.randn(3, 6))

    class Own(ek.EideticNetwork):
        def __init__(self, body):
            super().__init__()
            self.a, self.p, self.body = ek.EideticLinear(6, 8), ek.EideticParameter(torch.randn(8)), body

        def forward(self, x):
            return self.body(self, self.a(x))

    for body, text in {
        lambda s, x: torch.relu(x) if s.p() is not None else x: "'p' is not on the way from the input",
        lambda s, x: x + torch.ones(()) * (s.p() * s.p()): "",
        lambda s, x: torch.clamp(x, s.p().mean()): "as it is",
    }.items():
        if text:
            with pytest.raises(ek.ConversionError, match=text):
                Own(body).wiring  # noqa: B018
    assert "p" in Own(lambda s, x: torch.clamp(x, s.p())).wiring.groups[0].norms


def test_buffers_may_not_change_under_finished_tasks():
    class Own(ek.EideticNetwork):
        def __init__(self):
            super().__init__()
            self.a = ek.EideticLinear(6, 8)
            self.register_buffer("seen", torch.tensor(1.0))

        def forward(self, x):
            return self.a(x) / self.seen.add_(x.size(0))

    with pytest.raises(ek.ConversionError, match="'seen', a tensor of the network, is changed in place, and finished"):
        Own().wiring  # noqa: B018


# ---- samples


SAMPLES = {
    "one image": (lambda s, x: x[:1], IMAGE), "every second image": (lambda s, x: x[::2], IMAGE),
    "an image and its pixels": (lambda s, x: x[1:, :, :2], IMAGE), "rows": (lambda s, x: x[:1], FLAT),
    "the first row's units": (lambda s, x: x[:1, :], FLAT), "tokens of one": (lambda s, x: x[:1], TOKENS),
    "rolled": (lambda s, x: torch.roll(x, 1, 0), TOKENS), "a mean": (lambda s, x: x - x.mean(0, keepdim=True), TOKENS),
    "side by side": (lambda s, x: torch.cat([x, x], 0), TOKENS), "padded": (
        lambda s, x: F.pad(x, (0, 0, 0, 0, 0, 1)), TOKENS),
    "moved": (lambda s, x: x.transpose(0, 1)[:, :1].transpose(0, 1), TOKENS),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_not_picked_or_mixed(name):
    run, form = SAMPLES[name]
    module = Case(lambda s, x, y: run(s, x), form).module()
    with pytest.raises(ek.ConversionError, match=r"node .*(samples|move units)"):
        ek.convert(module, torch.randn(3, *form))


def test_samples_of_the_input_are_not_picked():
    for pick in (slice(0, 1), (slice(0, 2), slice(None)), (None, 0)):
        module = Plain(lambda s, x: s.h(s.a(x[pick])), a=nn.Linear(6, 8), h=nn.Linear(8, 4))  # noqa: B023
        if pick == (None, 0):
            continue
        with pytest.raises(ek.ConversionError, match="no row for each sample|one batch size|of one size only"):
            ek.convert(module, torch.randn(3, 6))
    module = Plain(lambda s, x: s.h(s.a(x[:, 1:])), a=nn.Linear(5, 8), h=nn.Linear(8, 4))
    x = torch.randn(3, 6)
    assert torch.equal(ek.convert(module, x).eval()(x), module(x)), "its columns may be"


def test_a_token_may_be_picked_where_samples_come_second():
    """[T, N, C], as attention without batch_first has it."""
    module = Plain(lambda s, x: s.h(s.a(x).transpose(0, 1)[0]), a=nn.Linear(5, 8), h=nn.Linear(8, 4))
    pruned_alike(module, torch.randn(3, *TOKENS))
    mean = Plain(lambda s, x: s.h(s.a(x).permute(1, 0, 2).mean(0)), a=nn.Linear(5, 8), h=nn.Linear(8, 4))
    pruned_alike(mean, torch.randn(3, *TOKENS))


# ---- numbers of units


def channels(x):
    n, c, h, w = x.shape
    return c


def gate(x):
    n, c = x.shape[:2]
    return x * x.mean((2, 3)).view(n, c, 1, 1)


COUNTED = {
    "a quotient": lambda s, x: x / x.size(1), "a root": lambda s, x: x * x.shape[1] ** -0.5,
    "from the end": lambda s, x: x * x.shape[-3], "a shape unpacked": lambda s, x: x * channels(x),
    "part of a shape": lambda s, x: x / x.shape[1:3][0], "all numbers": lambda s, x: x / x.shape.numel(),
    "computed": lambda s, x: x * (2 * x.size(1) + 1), "an argument": lambda s, x: torch.clamp(x, max=x.size(1)),
    "a keyword": lambda s, x: torch.add(x, x, alpha=x.size(1)),
    "a tensor": lambda s, x: x * torch.arange(x.size(1), device=x.device)[:, None, None],
    "a shift": lambda s, x: torch.roll(x, x.size(1), 2), "a slice": lambda s, x: x[:, :, : x.size(1) // 4],
    "a size of pixels": lambda s, x: F.interpolate(x, size=x.shape[1:3]),
    "of the network's own": lambda s, x: x * s.p + s.p.size(0),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_numbers_of_units_that_are_computed_with_stay_as_they_were(name):
    module = with_tensor(images(COUNTED[name]), "p", torch.randn(8, 1, 1), trained=True)
    refused_or_right(module, torch.randn(2, *IMAGE))


def test_numbers_of_units_of_heads():
    """A head's size never changes; their number does."""

    def attention(s, x, scale):
        q, k, v = (layer(x).view(x.size(0), x.size(1), 4, 2).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return x + s.o(F.scaled_dot_product_attention(q * scale(q), k, v).transpose(1, 2).flatten(2))

    def module(scale):
        return Case(
            lambda s, x, y: attention(s, x, scale), TOKENS, dict.fromkeys("qkvo", lambda: nn.Linear(8, 8))
        ).module()  # fmt: skip

    for scale in (lambda q: q.size(-1) ** -0.5, lambda q: 0.3):
        pruned_alike(module(scale), torch.randn(3, *TOKENS))
    pruned_alike(module(lambda q: 1 / q.size(1)), torch.randn(3, *TOKENS))


def test_an_attribute_of_heads_is_not_a_number():
    """``q.mT`` is a tensor of heads, too: as a number it would escape their pruning."""

    def attention(s, x, y):
        q, k, v = (layer(x).view(x.size(0), 6, 4, 2).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return x + s.o(F.scaled_dot_product_attention(q * q.mT.mean(), k, v).transpose(1, 2).flatten(2))

    module = Case(attention, TOKENS, dict.fromkeys("qkvo", lambda: nn.Linear(8, 8))).module()
    with pytest.raises(ek.ConversionError, match="mixes samples"):
        ek.convert(module, torch.randn(2, *TOKENS))


@pytest.mark.filterwarnings("ignore:the converted network's outputs are the module's but for rounding")
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_over_the_networks_input(batch_first):
    def attention(s, x):
        x = x if batch_first else x.transpose(0, 1)
        return s.h(s.a(x, x, x)[0].mean(1 if batch_first else 0))

    module = Plain(attention, a=nn.MultiheadAttention(6, 2, batch_first=batch_first), h=nn.Linear(6, 4))
    x = torch.randn(3, 5, 6)
    pruned_alike(module, x, exact=False)


COUNTED_IN_SHAPES = {
    "a gate": lambda s, x: x * x.mean((2, 3)).view(x.size(0), x.size(1), 1, 1),
    "a gate, unpacked": lambda s, x: gate(x),
    "by literal numbers": lambda s, x: x.view(-1, 8, 36).mean(2).view(-1, 8, 1, 1) + x,
    "expanded": lambda s, x: x + x.mean((2, 3), keepdim=True).expand(-1, x.size(1), 6, 6),
    "expanded as another": lambda s, x: x + x.mean((2, 3), keepdim=True).expand_as(x),
    "all units named": lambda s, x: x[:, :8, 1:5] + x[:, 0:, 1:5],
    "of pixels": lambda s, x: x / (x.size(2) * x.shape[-1]) ** 0.5,
    "pixels of another": lambda s, x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:]) + x,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED_IN_SHAPES)
def test_numbers_of_units_in_shapes_are_looked_up(name):
    pruned_alike(images(COUNTED_IN_SHAPES[name]), torch.randn(2, *IMAGE))


def test_a_slice_that_named_all_units_names_those_that_come_later():
    net = ek.convert(images(COUNTED_IN_SHAPES["all units named"]), torch.randn(2, *IMAGE))
    net.finish_task()
    net.widen(12)
    net.prepare_for_task(1, 3)
    assert net.groups[0].segments.live == 4 and net(torch.randn(2, *IMAGE)).shape == (2, 3)


FLATTENED = {
    "by numbers": lambda x: x.view(-1, 8 * 36), "by a product": lambda x: x.reshape(x.size(0), x.size(1) * 36),
    "by sizes": lambda x: x.view(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]),
    "the rest": lambda x: x.view(x.size(0), -1),
    "backwards": lambda x: torch.flatten(x, -3), "a tuple": lambda x: x.reshape((-1, 288)),
}  # fmt: skip


@pytest.mark.parametrize("name", FLATTENED)
def test_flattening_by_numbers(name):
    """Also where no unit is left, so that a -1 would have no meaning."""
    module = Plain(
        lambda s, x: s.h(s.b(FLATTENED[name](s.a(x)))), a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Linear(288, 7),
        h=nn.Linear(7, 4),
    )  # fmt: skip
    net = pruned_alike(module, torch.randn(2, *IMAGE))
    net.prune(1.0)
    assert net(torch.randn(3, *IMAGE).double()).isfinite().all()
    with pytest.raises(ek.ConversionError, match="not a batch of one sample more"):
        ek.convert(Plain(lambda s, x: s.h(s.a(x).view(2, -1)), a=module.a, h=nn.Linear(288, 4)), torch.randn(2, *IMAGE))


# ---- forms that people write


FORMS = {
    "square": lambda s, x: x**2 + 2.0**x, "detached": lambda s, x: x + x.detach(), "cloned": lambda s, x: x.clone(),
    "same dtype": lambda s, x: x.to(x.dtype).type_as(x).contiguous(), "dropout off": lambda s, x: F.dropout(x, p=0.0),
    "dropout off in training": lambda s, x: F.dropout2d(x, 0, training=s.training),
    "padded": lambda s, x: F.pad(x, (1, 1, 1, 1)), "padded on one side": lambda s, x: F.pad(x, (2, 0), value=1.0),
    "reflected": lambda s, x: F.pad(x, pad=[1, 0, 0, 2], mode="reflect"),
    "padded by nothing": lambda s, x: F.pad(x, (0, 1, 0, 0, 0, 0, 0, 0)),
    "a part": lambda s, x: x[:, :, 1:3], "another part": lambda s, x: x[..., 1:, ::2],
    "upsampled": lambda s, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "a norm of pixels": lambda s, x: x / (x * x).sum((2, 3), keepdim=True).clamp(min=1e-6).sqrt(),
    "a swish": lambda s, x: x * torch.sigmoid(1.5 * x), "a leaky ReLU": lambda s, x: torch.where(x >= 0, x, 0.1 * x),
    "one side, then the other": lambda s, x: x * x.mean(-1).mean(-1)[:, :, None, None],
    "largest": lambda s, x: x - x.amax((2, 3), keepdim=True),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_people_write(name):
    pruned_alike(images(FORMS[name]), torch.randn(2, *IMAGE))


NOT_PADDED = {
    "units": (0, 0, 0, 0, 0, 2), "both": (1, 1, 1, 1, 1, 1), "samples": (0, 0, 0, 0, 0, 0, 0, 1)
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_PADDED)
def test_units_and_samples_are_not_padded(name):
    sides = NOT_PADDED[name]
    module = images(lambda s, x: F.pad(x, sides))
    module.b = nn.Conv2d(8 + sum(sides[4:6]), 5, 1)
    with pytest.raises(ek.ConversionError, match="node '.*(no task side by side|no row for each sample)"):
        ek.convert(module, torch.randn(2, *IMAGE))


FUNCTIONAL_DROPOUTS = {
    "as it is meant": (lambda s, x: F.dropout(x, 0.3, s.training), 0.3),
    "of channels": (lambda s, x: F.dropout2d(x, p=0.3, training=s.training), 0.3),
    "in place": (lambda s, x: F.dropout(x, training=s.training, inplace=True), 0.5),
    "switched off": (lambda s, x: F.dropout(x, 0.3, False), 0.0),
    "switched off by its rate": (lambda s, x: F.dropout(x, 0.0), 0.0),
}


@pytest.mark.parametrize("name", FUNCTIONAL_DROPOUTS)
def test_dropout_by_function_becomes_a_module(name):
    run, p = FUNCTIONAL_DROPOUTS[name]
    module, x = images(run), torch.randn(3, *IMAGE)
    pruned_alike(module, x)
    net = ek.convert(module.train(), x)
    found = [each.p for path, each in net.body.named_children() if path.startswith("functional_")]
    assert found == ([p] if p else [])
    for each in (module, net):
        torch.manual_seed(7)
        each.train()
    torch.manual_seed(7)
    expected = module(x)
    torch.manual_seed(7)
    assert torch.equal(net(x), expected), "the same numbers are drawn, and what they zero is zero"
    assert (p > 0) == (not torch.equal(net(x), net(x)))


@pytest.mark.parametrize("run", [
    lambda s, x: F.dropout(x, 0.3), lambda s, x: F.dropout(x, 0.3, True), lambda s, x: F.dropout(x, x.size(2) / 99),
])  # fmt: skip
def test_dropout_that_is_not_of_training_alone_is_refused(run):
    with pytest.raises(ek.ConversionError, match=r"drops out in evaluation too.*training=self.training"):
        ek.convert(images(run), torch.randn(2, *IMAGE))


def normalised(run, *names, shape=(3, 1, 1)):
    module = Plain(
        lambda s, x: s.h(pooled(F.relu(s.a(run(s, x))))), a=nn.Conv2d(3, 8, 3), h=nn.Linear(8, 4)
    )  # fmt: skip
    for name in names:
        with_tensor(module, name, torch.rand(shape) + 0.5)
    return module


NORMALISED = {
    "mean and deviation": lambda s, x: (x - s.mean) / s.std,
    "reshaped": lambda s, x: x.sub(s.mean.view(1, -1, 1, 1)).div(s.std[None]),
    "before": lambda s, x: x * (1 / s.std) - s.mean * s.std,
    "a power": lambda s, x: torch.addcmul(s.mean, x, s.std) ** 2,
    "a filter": lambda s, x: F.conv2d(x, s.std.view(3, 1, 1, 1), groups=3) + s.mean.mean(),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMALISED)
def test_the_input_may_be_normalised_by_buffers(name):
    take_through(normalised(NORMALISED[name], "mean", "std"), torch.randn(8, *IMAGE))


def test_what_normalises_the_input_is_not_trained():
    module = normalised(lambda s, x: x - s.p)
    with pytest.raises(ek.ConversionError, match="units are combined with what belongs to no task"):
        ek.convert(with_tensor(module, "p", torch.rand(3, 1, 1), trained=True), torch.randn(2, *IMAGE))


SPACED = {
    "view": lambda p: p.view(1, -1, 1, 1), "reshape": lambda p: p.reshape(1, 8, 1, 1),
    "indices": lambda p: p[:, None, None], "unsqueezed": lambda p: p.unsqueeze(-1).unsqueeze(-1),
    "and back": lambda p: p[None, :, None, None].squeeze(0), "exponential": lambda p: p.exp()[:, None, None],
}  # fmt: skip


@pytest.mark.parametrize("name", SPACED)
def test_a_layer_scale_may_be_given_dimensions(name):
    module = with_tensor(images(lambda s, x: x * SPACED[name](s.p)), "p", torch.rand(8), trained=True)
    net = take_through(module, torch.randn(6, *IMAGE))
    assert net.body.p.dim == -1
    pruned_alike(module, torch.randn(2, *IMAGE))


def test_a_layer_scale_may_lose_dimensions():
    module = between(lambda s, x: x * s.p.view(-1) + s.q.squeeze(0))
    with_tensor(module, "p", torch.rand(8, 1, 1), trained=True)
    with_tensor(module, "q", torch.rand(1, 8), trained=True)
    net = pruned_alike(module, torch.randn(2, *FLAT))
    assert (net.body.p.dim, net.body.q.dim) == (-3, -1)


# ---- PReLU


def sloped(parameters):
    return Plain(
        lambda s, x: s.h(pooled(s.q(s.b(s.p(s.a(x)))))), a=nn.Conv2d(3, 8, 3, padding=1), p=nn.PReLU(parameters),
        b=nn.Conv2d(8, 5, 1), q=nn.PReLU(init=0.1), h=nn.Linear(5, 4),
    )  # fmt: skip


@pytest.mark.parametrize("parameters", [1, 8])
def test_prelu_keeps_each_tasks_slopes(parameters):
    net = take_through(lived_in(sloped(parameters)), torch.randn(8, *IMAGE))
    layer, segments = net.body.p, net.groups[0].segments
    assert len(layer.frozen_weight) == segments.frozen_total
    assert layer.weight.numel() == (segments.live if parameters > 1 else 1)
    slopes = layer.frozen_weight.split(list(segments.frozen))
    assert all(len(each.unique()) == (1 if parameters == 1 else len(each)) for each in slopes)
    assert parameters > 1 or slopes[0][0] != slopes[1][0], "each task its own"
    pruned_alike(lived_in(sloped(parameters)), torch.randn(2, *IMAGE))


def test_prelu_over_tokens_and_several_groups():
    take_through(Case(lambda s, x, y: s.p(x), TOKENS, {"p": nn.PReLU}).module(), torch.randn(6, *TOKENS))

    def joined(parameters):
        return Plain(
            lambda s, x: s.h(s.p(torch.cat([s.a(x), s.c(x)], 1))), a=nn.Linear(6, 5), c=nn.Linear(6, 3),
            p=nn.PReLU(parameters), h=nn.Linear(8, 4),
        )  # fmt: skip

    take_through(lived_in(joined(8)), torch.randn(6, *FLAT))
    with pytest.raises(ek.ConversionError, match="a PReLU with one slope for units that are concatenated"):
        ek.convert(joined(1), torch.randn(6, *FLAT))


def test_prelu_alone_and_its_errors():
    layer = ek.EideticPReLU(num_features=6)
    x = torch.randn(4, 6)
    assert torch.equal(layer(x), F.prelu(x, torch.tensor([0.25])))

    layer.prune([0, 2, 3])
    with torch.no_grad():
        layer.weight.fill_(0.5)
    layer.freeze()
    layer.recycle(2)
    x = x[:, :5]
    assert torch.equal(layer(x), torch.where(x > 0, x, x * torch.tensor([0.5] * 3 + [0.25] * 2)))
    layer(x).sum().backward()
    assert layer.weight.grad is not None and not layer.frozen_weight.requires_grad

    layer.prune([])
    assert layer.weight.shape == (0,) and layer(x[:, :3]).shape == (4, 3)

    with pytest.raises(ek.InputError, match="expects 3 units in dimension 1, got"):
        layer(x)
    with pytest.raises(ek.InputError, match="num_features=."):
        ek.EideticPReLU()(x)
    with pytest.raises(ek.InputError, match="num_parameters must be 1 or the number of units, 6"):
        ek.EideticPReLU(5, num_features=6)
    torch.nn.PReLU().load_state_dict(ek.EideticPReLU().state_dict())


def test_prelu_in_a_network_saved_wired_by_hand_and_out_of_place(tmp_path):
    class Net(ek.EideticNetwork):
        def __init__(self, by_hand=False):
            super().__init__()
            self.by_hand = by_hand
            self.a, self.p = ek.EideticConv2d(3, 8, 3), ek.EideticPReLU()
            self.b, self.q = ek.EideticLinear(8 * 16, 7), ek.EideticPReLU(7)

        def forward(self, x):
            return self.q(self.b(self.p(self.a(x)).flatten(1)))

        def connections(self):
            return {"a": "input", "p": "a", "b": "p", "q": "b", "output": "q"} if self.by_hand else None

    x = torch.randn(5, *IMAGE)
    for by_hand in (False, True):
        net = Net(by_hand)
        for task in range(2):
            net.prepare_for_task(task, 3)
            with torch.no_grad():
                net.p.weight.fill_(0.3 + task)
            net.prune(0.5)
            net.finish_task()
        net.save(tmp_path / "net")
        again = ek.EideticNetwork.load(tmp_path / "net", Net(by_hand))
        for task in range(2):
            assert torch.equal(again.eval()(x, task=task), net.eval()(x, task=task))
            torch.testing.assert_close(net.extract(task)(x), net(x, task=task))
        assert again.certify().ok
        assert net.p.frozen_weight.tolist() == pytest.approx([0.3] * 4 + [1.3] * 2)
    flat = Plain(lambda s, x: s.h(s.p(s.a(x).flatten(1))), a=nn.Conv2d(3, 8, 3), p=nn.PReLU(), h=nn.Linear(128, 4))
    take_through(flat, torch.randn(8, *IMAGE))


# ---- timm, where it is installed


@pytest.mark.parametrize("name", ["LayerNorm2d", "BatchNormAct2d", "Linear", "LayerNorm"])
def test_timms_layers(name):
    if name in ("LayerNorm2d", "BatchNormAct2d"):
        module, shape = timm_layers(name, 6)
    else:
        module, shape = timm_layers("LayerNorm2d", 6)
        from timm import layers

        layer = getattr(layers, name)
        if name == "Linear":
            module[-1] = layer(6, 4)
        else:
            module = Plain(lambda s, x: s.h(s.n(s.a(x)).mean(1)), a=nn.Linear(5, 8), n=layer(8), h=nn.Linear(8, 4))
            shape = TOKENS
    take_through(lived_in(module).train(), torch.randn(6, *shape))


def test_timms_norm_and_activation_are_the_modules_own():
    module, shape = timm_layers("BatchNormAct2d", 6)
    module[1].act = nn.LeakyReLU(0.2)
    net = ek.convert(module, torch.randn(2, *shape))
    assert isinstance(net.body.get_submodule("1.norm"), ek.EideticBatchNorm2d)
    assert isinstance(net.body.get_submodule("1.act"), nn.LeakyReLU)


def test_a_network_of_functions_is_wired_without_an_example():
    """A user's own network is wired without sizes. A rule that needs them says so."""

    class Own(ek.EideticNetwork):
        def __init__(self, body):
            super().__init__()
            self.a, self.b, self.body = ek.EideticConv2d(3, 8, 3), ek.EideticConv2d(8, 5, 1), body

        def forward(self, x):
            return self.b(self.body(self, self.a(x))).mean((2, 3))

    for body in (
        lambda s, x: F.pad(x, (1, 1)), lambda s, x: x[:, :, 1:], lambda s, x: x * x.mean((2, 3))[..., None, None],
    ):  # fmt: skip
        net = Own(body)
        expected = net.eval().forward(torch.ones(2, *IMAGE))
        net.prepare_for_task(0, 2)
        assert torch.equal(net.compute_features(torch.ones(2, *IMAGE)), expected)
    for body, text in {
        lambda s, x: x[:1]: "picks some samples", lambda s, x: x * x.size(1): "the number of units of 'a'",
        lambda s, x: x * x.shape[-3]: "the number of units of 'a'", lambda s, x: x[:, :4]: "picks some units",
        lambda s, x: F.pad(x, (0, 0, 0, 0, 1, 1)): "pads units",
        lambda s, x: x * torch.rand((2, 1, 1, 1), device=x.device): "used directly",
        lambda s, x: x.mean(0): "mixes samples", lambda s, x: x.squeeze(2): "go where there is only one",
    }.items():  # fmt: skip
        with pytest.raises(ek.ConversionError, match=text):
            Own(body).wiring  # noqa: B018
