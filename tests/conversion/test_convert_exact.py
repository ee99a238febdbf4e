"""ek.convert gives the network that was meant, or refuses: changes in place, code of training, ties, state, hooks."""

import operator
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from conversions import assert_teaches, take_through
from plain_modules import Plain, conv, pooled
from torch import nn
from torch.nn.utils import prune

import eidetic_kernels as ek
from eidetic_kernels.conversion.example import given_to
from eidetic_kernels.conversion.verify import answers_of, verify

FLAT = (6,)


def between(change, **layers):
    """``change(module, x)`` to the units of a; b reads the units of a, whatever ``change`` returns."""

    def run(s, x):
        x = s.a(x)
        change(s, x)
        return s.b(x)

    return Plain(run, a=nn.Linear(6, 8), b=nn.Linear(8, 4), **layers)


def refused(module, *shape, like, batch=2, head=None):
    with pytest.raises(ek.ConversionError) as raised:
        ek.convert(module, torch.randn(batch, *(shape or FLAT)), head=head)
    message = str(raised.value)
    assert like in message, message
    if message.startswith("node"):
        assert_teaches(message)
    return message


# ---- changes in place

FOLLOWED = {
    "a module": lambda: between(lambda s, x: s.act(x), act=nn.ReLU(inplace=True)),
    "a function's flag": lambda: between(lambda s, x: F.relu(x, True)),
    "a method": lambda: between(lambda s, x: x.relu_()),
    "an operator": lambda: between(lambda s, x: operator.imul(x, 1.5)),
    "a sum": lambda: between(lambda s, x: x.add_(s.c(torch.relu(x))), c=nn.Linear(8, 8)),
    "one after another": lambda: between(lambda s, x: (x.mul_(2.0), x.add_(x), F.relu(x, inplace=True))),
    "what others read first": lambda: between(lambda s, x: (s.act(x), s.c(x)), act=nn.ReLU(inplace=True), c=nn.Tanh()),
    "dropout": lambda: between(lambda s, x: s.drop(x), drop=nn.Dropout(0.4, inplace=True)),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_a_change_in_place_is_followed_by_whoever_reads_it_later(case):
    take_through(FOLLOWED[case](), torch.randn(8, 6))


def test_a_change_in_place_ties_units():
    net = ek.convert(FOLLOWED["a sum"](), torch.randn(2, 6))
    assert [group.name for group in net.groups] == ["body.a (+1 tied)"]


def test_a_change_of_what_only_evaluation_leaves_alone_is_refused():
    """Dropout returns its input itself in evaluation, and another tensor in training."""
    module = Plain(lambda s, x: _dropped(s, s.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 4), drop=nn.Dropout(0.5))
    refused(module, like="under another name")


def _dropped(s, x):
    y = s.drop(x)
    y.relu_()
    return s.b(x + y)


@pytest.mark.parametrize("change", ["detach_", "requires_grad_"])
def test_a_change_of_anything_but_numbers_is_not_dropped(change):
    take_through(between(lambda s, x: getattr(x, change)()), torch.randn(8, 6))


TOLD = {"data": lambda x: x.detach() * 2, "requires_grad": lambda x: False}


@pytest.mark.parametrize("name", TOLD)
def test_a_tensor_that_is_told_something_is_refused(name):
    refused(between(lambda s, x: setattr(x, name, TOLD[name](x))), like=f"forward sets {name!r} of a tensor")


def test_a_hook_on_a_tensor_is_refused():
    refused(in_training(hooked), like="forward calls register_hook of a tensor")


def test_augmented_assignments_of_sizes_are_numbers():
    def run(s, x):
        n = old = x.size(0)
        n *= 2
        return s.b(s.a(x).view(old, -1)) * (n // old)

    net = ek.convert(Plain(run, a=nn.Linear(6, 8), b=nn.Linear(8, 4)), x := torch.randn(3, 6), head=False)
    assert torch.equal(net.body.eval()(x), run(net.body, x))


def test_the_example_and_the_dice_are_not_changed():
    """But for what fresh heads are drawn with, whatever the example."""
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(4, 6)
    before, after = x.clone(), []
    for rows in (1, 2, 4):
        torch.manual_seed(3)
        ek.convert(module, x[:rows])
        after.append(torch.rand(4))
        torch.manual_seed(4)
        ek.convert(module, x[:rows])
        assert not torch.equal(torch.rand(4), after[-1])
    assert torch.equal(x, before) and all(torch.equal(each, after[0]) for each in after)


def _augment(x):
    x += 1.0


def _assign(x):
    x[:, 0] = 0.0


LOST = {
    "a view and +=": lambda s, x: _augment(x.view(x.size(0), -1)),
    "a view's method": lambda s, x: x.view(x.size(0), -1).relu_(),
    "a transposed view": lambda s, x: _augment(x.t()),
    "an attribute": lambda s, x: _augment(x.mT),
    "zeros added": lambda s, x: x.view(x.size(0), -1).add_(s.zero),
    "dropout of a view": lambda s, x: s.drop(x.view(x.size(0), -1)),
}


@pytest.mark.parametrize("case", LOST)
def test_a_change_under_another_name_is_refused(case):
    module = between(LOST[case], drop=nn.Dropout(0.4, inplace=True))
    module.register_buffer("zero", torch.zeros(8))
    message = refused(module, like="under another name")
    assert "plain_modules.py" in message


PARTS = {"an index": lambda s, x: _assign(x), "a slice": lambda s, x: x[:, :4].mul_(2.0)}


@pytest.mark.parametrize("case", PARTS)
def test_a_change_of_some_units_is_refused(case):
    refused(between(PARTS[case]), like="it changes some units in place, and leaves others")


def test_out_that_has_no_gradient_is_refused():
    module = between(lambda s, x: torch.mul(x, 2.0, out=x.view(x.size(0), -1)))
    refused(module, like="cannot be captured by torch.export")


def test_a_view_that_nobody_else_reads_may_be_changed():
    def run(s, x):
        x = s.a(x).view(x.size(0), -1)
        x += 1.0
        x *= 2.0
        return s.b(x)

    take_through(Plain(run, a=nn.Linear(6, 8), b=nn.Linear(8, 4)), torch.randn(8, 6))


# ---- what forward keeps, and what is random


class Keeps(nn.Module):
    """``keep(self, units)`` between two layers."""

    def __init__(self, keep):
        super().__init__()
        self.a, self.b, self.count, self.last, self.keep = nn.Linear(6, 8), nn.Linear(8, 4), 0, None, keep
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        return self.b(self.keep(self, self.a(x)))


def counts(s, x):
    s.count += 1
    return x * 2 if s.count > 3 else x


def counts_in_a_buffer(s, x):
    s.seen.add_(1)
    return x


def averages(s, x):
    s.mean.lerp_(x.detach().mean(0), 0.0)
    return x


def replaces_a_buffer(s, x):
    s.mean = s.mean.clone()
    return x


def remembers(s, x):
    x, s.last = (x if s.last is None else x + s.last.mean()), x
    return x


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def only_in_training(change):
    return lambda s, x: change(s, x) if s.training else x


STATE = {
    "a counter": (counts, "changes 'count' of the module"),
    "a counter in a buffer": (counts_in_a_buffer, "changes 'seen' of the module"),
    "a running mean": (averages, "changes 'mean' of the module"),
    "another buffer": (replaces_a_buffer, "changes 'mean' of the module"),
    "the last batch": (remembers, "are not the module's"),
    "random numbers": (lambda s, x: x * torch.rand(()), "draws random numbers in evaluation"),
    "noise in evaluation": (lambda s, x: x, "draws random numbers in evaluation"),
    "a counter in training": (only_in_training(counts_in_a_buffer), "in training mode"),
    "a running mean in training": (only_in_training(averages), "changes 'mean' of the module"),
}


@pytest.mark.parametrize("case", STATE)
def test_state_is_refused(case):
    keep, text = STATE[case]
    module = Keeps(keep)
    if case == "noise in evaluation":
        module = nn.Sequential(Noise(), module)
    refused(module, like=text)


def test_outputs_are_compared_on_a_batch_of_another_size_too():
    """On the example alone they are the same."""

    class Sized(nn.Module):
        def forward(self, x):
            return x if len(x) == 2 else x + 1e-3

    class Never(nn.Module):
        def forward(self, x):
            if len(x) != 2:
                raise RuntimeError("two samples")
            return x

    plain, x = nn.Identity(), torch.randn(2, 6)
    answers = answers_of(plain, given_to(plain, (x,), {}), None)
    assert torch.equal(answers[0].tensors[:2], x) and len(answers[0].tensors) == 3
    verify(plain, answers)
    with pytest.raises(ek.ConversionError, match=r"shape \[3, 6\] and torch.float32 are not the module's"):
        verify(Sized(), answers)
    with pytest.raises(ek.ConversionError, match=r"cannot take a batch of shape \[3, 6\].*two samples"):
        verify(Never(), answers)
    with pytest.raises(ek.ConversionError, match="not a batch of one sample more.*two samples"):
        answers_of(Never(), given_to(plain, (x,), {}), None)


def test_not_a_number_hides_no_difference():
    class Shifted(nn.Module):
        def forward(self, x):
            return torch.cat([x.log()[:, :1], x[:, 1:] + self.shift], 1)

    plain, other = Shifted(), Shifted()
    plain.shift, other.shift = 0.0, 0.1
    answers = answers_of(plain, given_to(plain, (-torch.ones(1, 6),), {}), None)
    assert answers[1].isnan().any()
    verify(plain, answers)
    with pytest.raises(ek.ConversionError, match="are not the module's"):
        verify(other, answers)


def test_what_forward_keeps_to_be_looked_at_does_no_harm():
    def keeps(s, x):
        s.features = x if getattr(s, "features", None) is None else s.features.detach()
        return x

    module, x = Keeps(keeps), torch.randn(3, 6)
    net = ek.convert(module, x)
    assert torch.equal(net.eval()(x), module.eval()(x)) and not hasattr(net.body, "features")


# ---- training does what evaluation does, or is refused


class Drop(nn.Module):
    """What timm's DropPath does."""

    def __init__(self, drop_prob, scale_by_keep=True):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x):
        if not self.training or not self.drop_prob:
            return x
        keep = 1 - self.drop_prob
        kept = x.new_empty((x.shape[0], 1)).bernoulli_(keep)
        if self.scale_by_keep:
            kept.div_(keep)
        return x * kept


Drop.__module__, Drop.__qualname__ = "timm.layers.drop", "DropPath"


class MyDrop(Drop):
    """The same with a forward that nobody knows."""

    def forward(self, x):
        return super().forward(x)


def in_training(change, **layers):
    return Plain(
        lambda s, x: s.b(change(s, s.a(x)) if s.training else s.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 4), **layers
    )


def twice_without_name(s, x):
    x.mul_(2.0)
    return x


def twice_a_view(s, x):
    x.view(x.size(0), -1).mul_(2.0)
    return x


def without_gradient(s, x):
    with torch.set_grad_enabled(not s.training):
        return x * 2


def _frozen(layer, x):
    with torch.no_grad():
        return layer(x)


def test_constants_made_on_the_way_are_compared_by_value():
    module, x = in_training_times(2.0)(), torch.randn(3, 6)
    assert torch.equal(ek.convert(module, x).eval()(x), module.eval()(x))


def test_the_input_needs_no_gradient():
    take_through(
        Plain(lambda s, x: s.b(F.relu(s.a(_frozen(lambda x: x * 2 + 1, x)))), a=nn.Linear(6, 8), b=nn.Linear(8, 4)),
        torch.randn(8, 6),
    )


def hooked(s, x):
    x.register_hook(lambda gradient: gradient * 0.1)
    return x


def test_code_of_training_that_cannot_be_traced_is_refused():
    refused(in_training(lambda s, x: x if x.sum() > 0 else -x), like="in training mode")


class Classified(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.b(self.a(x))
        return x if self.training else x.softmax(1)


def in_training_times(number):
    def run(s, x):
        return s.b(s.a(x) * torch.tensor(number if s.training else 2.0))

    return lambda: Plain(run, a=nn.Linear(6, 8), b=nn.Linear(8, 4))


def two_dropouts(in_evaluation):
    def run(s, x):
        x = s.a(x)
        y = s.drop(x)
        return s.b(y + (y if s.training == in_evaluation else s.drop(x)))

    return lambda: Plain(run, a=nn.Linear(6, 8), b=nn.Linear(8, 4), drop=nn.Dropout(0.5))


IN_TRAINING = {
    "dropped paths": (lambda: nn.Sequential(nn.Linear(6, 8), MyDrop(0.5), nn.Linear(8, 4)), "'mul'"),
    "noise": (lambda: in_training(lambda s, x: x + torch.randn_like(x)), "'add'"),
    "a layer more": (lambda: in_training(lambda s, x: s.c(x), c=nn.Linear(8, 8)), "'linear_"),
    "a scaled gradient": (lambda: in_training(lambda s, x: 2 * x - x.detach()), "'sub'"),
    "another number": (
        lambda: Plain(lambda s, x: s.b(s.a(x) * (1.0 if s.training else 0.5)), a=nn.Linear(6, 8), b=nn.Linear(8, 4)),
        "'mul'",
    ),
    "a change without a name": (lambda: in_training(twice_without_name), "'mul_'"),
    "a change of a view": (lambda: in_training(twice_a_view), "'mul_'"),
    "no gradient": (
        lambda: Plain(lambda s, x: s.b(without_gradient(s, s.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 4)),
        "'detach_",
    ),
    "another constant": (in_training_times(1.0), "'lift_fresh_copy'"),
    "one dropout for two": (two_dropouts(True), "module 'drop'"),
    "two dropouts for one": (two_dropouts(False), "module 'drop'"),
}


@pytest.mark.parametrize("case", IN_TRAINING)
def test_code_of_training_is_refused(case):
    make, node = IN_TRAINING[case]
    message = refused(make(), like=node)
    assert "in training" in message
    assert ".py" in message


def test_a_layer_that_no_task_would_train_is_refused():
    module = Plain(lambda s, x: s.b(_frozen(s.a, x)), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    refused(module, like="under torch.no_grad, so it would never be trained")


Outputs = namedtuple("Outputs", ["logits", "extra"])


class Auxiliary(nn.Module):
    """An auxiliary classifier in training; its own convolution needs an image of 16 pixels or more."""

    def __init__(self, returns):
        super().__init__()
        self.a, self.aux, self.fc, self.extra = conv(3, 5), nn.Conv2d(5, 4, 9), nn.Linear(5, 4), nn.Linear(4, 4)
        self.returns = returns

    def forward(self, x):
        x = F.relu(self.a(x), inplace=True)
        extra = self.extra(pooled(F.relu(self.aux(x), inplace=True))) if self.training else None
        x = self.fc(pooled(x))
        return self.returns(x, extra) if self.training else x


@pytest.mark.parametrize("returns", [Outputs, lambda x, y: (x, y), lambda x, y: {"y": y, "x": x}], ids=["a", "b", "c"])
def test_other_outputs_of_training_are_left_out(returns):
    module, x = Auxiliary(returns), torch.randn(2, 3, 16, 16)
    net = ek.convert(module, x)
    assert torch.equal(net.eval()(x), module.eval()(x))
    assert not [path for path, _ in net.named_modules() if "aux" in path]


def test_an_example_that_is_too_small_for_training_is_refused():
    refused(Auxiliary(Outputs), 3, 8, 8, like="in training mode")


def test_a_training_without_the_output_is_refused():
    refused(Auxiliary(lambda x, extra: extra), 3, 16, 16, like="in training forward")
    refused(Auxiliary(lambda x, extra: None), 3, 16, 16, like="no tensor in training")


@pytest.mark.parametrize("scale", [True, False])
def test_drop_path_by_name(scale):
    """Known by its name, like torchvision's StochasticDepth; take_through compares a training step."""
    module = Plain(
        lambda s, x: s.c(F.relu(s.stem(x)) + s.drop(s.b(F.relu(s.a(x))))),
        stem=nn.Linear(6, 8),
        a=nn.Linear(6, 5),
        b=nn.Linear(5, 8),
        c=nn.Linear(8, 4),
        drop=Drop(0.4, scale),
    )
    net = take_through(module, torch.randn(8, 6))
    assert isinstance(net.body.drop, ek.EideticStochasticDepth) and net.body.drop.scaled == scale


def test_a_functional_dropout_keeps_what_it_does_in_training():
    module = Plain(lambda s, x: s.b(F.dropout(s.a(x), 0.5, s.training)), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    net = take_through(module, torch.randn(8, 6))
    assert net.body.functional_dropout.p == 0.5


# ---- parameters in two places


def tied(how):
    module = Plain(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 6)
    )
    how(module)
    return module


def _same_memory(s):
    s.b.weight.data = s.a.weight.data


TIED = {
    "weights": (lambda s: setattr(s.b, "weight", s.a.weight), "is tied: 'a' and 'b' both read it"),
    "the head": (lambda s: setattr(s.c, "weight", s.a.weight), "is tied: 'a' and 'c' both read it"),
    "a bias": (lambda s: setattr(s.c, "bias", s.b.bias), "is tied: 'b' and 'c' both read it"),
    "an inner bias": (lambda s: setattr(s.b, "bias", s.a.bias), "is tied: 'a' and 'b' both read it"),
    "memory": (_same_memory, "'b.weight' is tied to 'a.weight'"),
}


@pytest.mark.parametrize("case", TIED)
def test_tied_parameters_are_refused(case):
    how, text = TIED[case]
    refused(tied(how), like=text)


def test_a_parameter_read_beside_its_layer_is_refused():
    module = Plain(
        lambda s, x: s.b(s.n(s.a(x)) * s.n.weight), a=nn.Linear(6, 8), n=nn.BatchNorm1d(8), b=nn.Linear(8, 4)
    )
    refused(module, like="'n.weight' is used both by its layer and beside it")


def test_ties_that_nobody_uses_do_not_matter():
    module = tied(lambda s: setattr(s, "unused", nn.Linear(6, 6)))
    module.unused.weight = module.a.weight
    module.other_name = module.b
    x = torch.randn(3, 6)
    assert torch.equal(ek.convert(module, x).eval()(x), module.eval()(x))


# ---- hooks


def test_hooks_that_would_be_lost_are_refused():
    def fresh():
        return nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5)), nn.Linear(8, 4))

    hooks = {
        "'0.0.weight'": lambda s: s[0][0].weight.register_hook(lambda gradient: gradient * 0),
        "'0.0.bias'": lambda s: s[0][0].bias.register_post_accumulate_grad_hook(lambda parameter: None),
        "'0'": lambda s: s[0].register_full_backward_hook(lambda module, gradients, outputs: None),
        "the module itself": lambda s: s.register_forward_hook(lambda module, inputs, output: output * 2),
        "'0.1' has hooks": lambda s: s[0][1].register_forward_pre_hook(lambda module, inputs: None),
    }
    for text, hook in hooks.items():
        module = fresh()
        hook(module)
        refused(module, like=text)


def _own_forward(layer):
    layer.forward = lambda x: x.flip(1)


def _weight_norm(layer):
    nn.utils.parametrizations.weight_norm(layer)


HOOKED = {
    "a layer's": lambda s: s[0].register_forward_hook(lambda module, inputs, output: output * 2),
    "an activation's": lambda s: s[1].register_forward_hook(lambda module, inputs, output: output * 2),
    "before an activation": lambda s: s[1].register_forward_pre_hook(lambda module, inputs: inputs[0] - 1),
    "before a layer": lambda s: s[2].register_forward_pre_hook(lambda module, inputs: inputs[0].flip(1)),
    "a forward of an activation's own": lambda s: _own_forward(s[1]),
}


@pytest.mark.parametrize("case", HOOKED)
def test_what_is_done_around_a_layer_is_followed(case):
    """Units reversed, say: the module is right until some of them go."""
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 4))
    HOOKED[case](module)
    take_through(module, torch.randn(8, 6))


def test_features_in_another_order_are_refused():
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    module[1].register_forward_hook(lambda module, inputs, output: output.flip(1))
    refused(module, like="features are returned in another order", head=False)


@pytest.mark.parametrize("head", [None, "2"])
def test_what_is_done_around_the_head_in_training_is_refused(head):
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    module[2].register_forward_hook(lambda m, _, output: output * 2 if m.training else None)
    refused(module, like="in training") if head is None else refused(module, like="has hooks", head=head)


@pytest.mark.parametrize("head", [None, "2"])
def test_a_head_whose_weight_is_computed_is_refused(head):
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    _weight_norm(module[2])
    refused(module, like="weight of the last layer, '2', is computed", head=head)


@pytest.mark.filterwarnings("ignore:the converted network's outputs are the module's but for rounding")
def test_a_part_of_an_attention_may_have_a_norm_of_its_own():
    module = Attends("self", True, 2)
    _weight_norm(module.attention.out_proj)
    take_through(module, torch.randn(8, 3, 5), rounded=True)


def _made_of_another(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize("change", [_made_of_another, lambda layer: nn.utils.weight_norm(layer)])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_module_that_cannot_be_copied_is_refused(change):
    """A weight made of others in a hook is no leaf of autograd's graph."""
    module = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    change(module[0])
    assert "prune.remove" in refused(module, like="Sequential cannot be copied")


def test_a_hook_of_a_container_is_traced():
    module = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 4))
    module[0].register_forward_hook(lambda module, inputs, output: output * 2)
    take_through(module, torch.randn(8, 6))


# ---- attention


class Attends(nn.Module):
    def __init__(self, kind, batch_first, heads):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 12) for _ in range(3))
        self.attention, self.head = nn.MultiheadAttention(12, heads, batch_first=batch_first), nn.Linear(12, 4)
        self.kind = kind

    def forward(self, x):
        q = self.q(x)
        k = q if self.kind == "self" else self.k(x)
        v = self.v(x) if self.kind == "three" else k
        if self.attention.batch_first:
            return self.head((q + self.attention(q, k, v, need_weights=False)[0]).mean(1))
        first = [each.transpose(0, 1) for each in (q, k, v)]
        return self.head((first[0] + self.attention(*first, need_weights=False)[0]).mean(0))


@pytest.mark.filterwarnings("ignore:the converted network's outputs are the module's but for rounding")
@pytest.mark.parametrize("heads", [2, 3])  # torch has another way to attend with an odd number of them
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross", "three"])
def test_attention_has_torchs_bits_whatever_it_reads(kind, batch_first, heads):
    torch.manual_seed(0)
    module = Attends(kind, batch_first, heads).eval()
    x = torch.randn(3, 17, 5)
    net = ek.convert(module, x[:1]).eval()
    fused = kind == "self" and batch_first and heads == 2  # torch has a kernel of its own for this, without gradients
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            if fused and mode is not torch.enable_grad:
                torch.testing.assert_close(net(x), module(x), rtol=0, atol=1e-6)
            else:
                assert torch.equal(net(x), module(x)), mode.__name__


def test_one_layer_read_apart_has_torchs_bits_for_tokens_that_were_moved():
    def run(s, x):
        a, b, c = s.qkv(s.embed(x).transpose(0, 1)).chunk(3, -1)
        return s.head(torch.cat([a * b, c], -1).transpose(0, 1).mean(1))

    torch.manual_seed(0)
    module = Plain(run, embed=nn.Linear(5, 12), qkv=nn.Linear(12, 36), head=nn.Linear(24, 4)).eval()
    x = torch.randn(3, 17, 5)
    net = ek.convert(module, x[:1]).eval()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(net(x), module(x)), mode.__name__


# ---- samples, layers that are built in another way, softmax at the end

MIXING = {
    "mean": lambda x: x - x.mean(0),
    "largest": lambda x: x / x.abs().max(),
    "order": lambda x: x.flip(0),
    "softmax": lambda x: x.softmax(0),
    "product": lambda x: x @ x.t() @ x,
    "sum": lambda x: x.cumsum(0),
}

COUNTING = {
    "quotient": lambda x: x / x.size(0),
    "root": lambda x: x * x.shape[0] ** -0.5,
    "all numbers": lambda x: x / x.numel(),
    "limit": lambda x: x.clamp(max=x.size(0)),
    "power": lambda x: x.abs() ** x.size(0),
}


@pytest.mark.parametrize("name", COUNTING)
def test_what_computes_with_the_number_of_samples_is_refused(name):
    module = Plain(lambda s, x: s.b(COUNTING[name](F.relu(s.a(x)))), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    refused(module, like="the number of samples is computed with")


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_samples_of_the_input_is_refused(name):
    module = Plain(lambda s, x: s.b(F.relu(s.a(MIXING[name](x)))), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    refused(module, like="mixes samples")


def test_layers_that_are_only_built_in_another_way_are_those_layers():
    class Narrow(nn.Conv2d):
        def __init__(self, channels, out):
            super().__init__(channels, out, 1, bias=False)

    class Wide(nn.Linear):
        def __init__(self, features):
            super().__init__(features, 2 * features)

        def extra_repr(self):
            return "wide"

    module = Plain(lambda s, x: s.c(F.relu(s.b(s.a(x).mean((2, 3))))), a=Narrow(3, 8), b=Wide(8), c=nn.Linear(16, 4))
    net = take_through(module, torch.randn(8, 3, 5, 5))
    assert isinstance(net.body.a, ek.EideticConv2d) and isinstance(net.body.b, ek.EideticLinear)


def test_a_layer_that_computes_in_another_way_is_not_taken_for_its_parent():
    class Standardised(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)

    module = Plain(lambda s, x: s.b(s.a(x).mean((2, 3))), a=Standardised(3, 8, 3), b=nn.Linear(8, 4))
    net = take_through(module, torch.randn(8, 3, 5, 5))
    assert net.body.a.rule is not None


def test_softmax_in_evaluation_alone_is_left_out_where_the_head_is_named():
    assert "head='b'" in refused(Classified(), like="logits of 'b' into probabilities")
    module, x = Classified(), torch.randn(5, 6)
    net = ek.convert(module, x, head="b")
    assert torch.equal(net.eval()(x), module.train()(x))


@pytest.mark.parametrize("end", [lambda x: F.log_softmax(x, 1), lambda x: x.softmax(-1), lambda x: torch.softmax(x, 1)])
def test_probabilities_at_the_end_name_the_layer_before_them(end):
    module = Plain(lambda s, x: end(s.b(F.relu(s.a(x)))), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    assert "head='b'" in refused(module, like="logits of 'b' into probabilities")
    net, x = ek.convert(module, torch.randn(3, 6), head="b"), torch.randn(5, 6)
    net.eval(), module.eval()
    assert torch.equal(end(net(x)), module(x))
