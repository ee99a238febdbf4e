"""ek.convert: the same outputs, the same training, tasks kept apart; what each rule takes, and every refusal."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conversions import assert_teaches, lived_in, load_torchvision, recall, take_through, train
from plain_modules import Plain, conv, pooled
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.wiring import rules
from eidetic_kernels.wiring.rules import registry


def mlp():
    return nn.Sequential(
        nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(9, 8, bias=False),
        nn.GELU(), nn.Linear(8, 4),
    )  # fmt: skip


def image():
    """Like VGG: pooling, flattening, hidden linear layers and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, stride=2),
        nn.BatchNorm2d(5, momentum=None), nn.LeakyReLU(0.1, inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(20, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 4),
    )  # fmt: skip


def residual():
    def run(net, x):
        x = F.relu(net.stem(x))
        y = net.b(F.relu(net.a(x)))
        y += x
        x = F.relu(y, inplace=True)
        return net.fc(torch.flatten(net.pool(F.relu(net.d(F.relu(net.c(x))) + net.down(x))), 1))

    return Plain(
        run, stem=conv(3, 5), a=conv(5, 6), b=conv(6, 5, bias=False), c=conv(5, 6), d=conv(6, 7), down=conv(5, 7, 1),
        pool=nn.AdaptiveAvgPool2d((1, 1)), fc=nn.Linear(7, 4),
    )  # fmt: skip


def shared_dropout():
    return Plain(
        lambda s, x: s.c(s.drop(F.relu(s.b(s.drop(F.relu(s.a(x))))))),
        a=nn.Linear(6, 8), b=nn.Linear(8, 7), c=nn.Linear(7, 4), drop=nn.Dropout(0.5),
    )  # fmt: skip


def flattened_by_size():
    """The number of pixels is known from the example alone, and the head reads the flattened image."""
    return Plain(lambda s, x: s.fc(s.a(x).view(x.size(0), -1)), a=conv(3, 5), fc=nn.Linear(5 * 64, 4))


def inception():
    """Branches side by side, read by a convolution and by dropout and the head."""

    def run(net, x):
        x = F.relu(net.stem(x))
        x = torch.cat([F.relu(net.a(x)), F.relu(net.b(x)), F.max_pool2d(x, 3, stride=1, padding=1)], 1)
        x = net.drop(torch.cat((F.relu(net.c(x)), net.d(x)), dim=1))
        return net.fc(net.drop(pooled(x)))

    return Plain(
        run, stem=conv(3, 4), a=conv(4, 5, 1), b=conv(4, 3), c=conv(12, 6), d=conv(12, 2, 1), drop=nn.Dropout(0.3),
        fc=nn.Linear(8, 4),
    )  # fmt: skip


def dense():
    """Like DenseNet: every layer normalises and reads all before it."""

    def run(net, x):
        features = [net.stem(x)]
        for norm, layer in ((net.n1, net.c1), (net.n2, net.c2)):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        x = F.avg_pool2d(net.transition(F.relu(net.n3(torch.cat(features, 1)))), 2)
        return net.fc(pooled(F.relu(net.n4(torch.cat([x, net.last(x)], 1)))))

    return Plain(
        run, stem=nn.Conv2d(3, 4, 3, padding=1, bias=False), n1=nn.BatchNorm2d(4), c1=nn.Conv2d(4, 3, 3, padding=1),
        n2=nn.BatchNorm2d(7), c2=nn.Conv2d(7, 3, 3, padding=1), n3=nn.BatchNorm2d(10, affine=False),
        transition=nn.Conv2d(10, 5, 1), last=nn.Conv2d(5, 4, 1), n4=nn.BatchNorm2d(9), fc=nn.Linear(9, 4),
    )  # fmt: skip


def flat_concatenation():
    """Flat units side by side, tied with others that are, and flattened images of one size side by side."""

    def run(net, x):
        both = torch.cat([net.a(x), net.b(x)], -1) + torch.cat([net.c(x), net.d(x)], 1)
        return net.fc(net.norm(F.relu(both)))

    return Plain(
        run, a=nn.Linear(6, 4), b=nn.Linear(6, 3), c=nn.Linear(6, 4), d=nn.Linear(6, 3), norm=nn.BatchNorm1d(7),
        fc=nn.Linear(7, 4),
    )  # fmt: skip


def flattened_concatenation():
    def run(net, x):
        x = torch.cat([net.a(x).flatten(1), net.b(x).flatten(1)], 1)
        return net.fc(F.relu(net.hidden(net.drop(x))))

    return Plain(
        run, a=conv(3, 4), b=conv(3, 2), drop=nn.Dropout(0.3), hidden=nn.Linear(6 * 64, 7), fc=nn.Linear(7, 4)
    )  # fmt: skip


def gate():
    """Squeeze-and-excitation: units multiplied by a gate of one pixel."""

    def run(net, x):
        x = F.hardswish(net.a(x))
        x = x * torch.sigmoid(net.up(F.silu(net.down(x.mean((2, 3), keepdim=True)))))
        return net.fc(net.b(x).mean([2, 3]))

    return Plain(
        run, a=conv(3, 6), down=nn.Conv2d(6, 3, 1), up=nn.Conv2d(3, 6, 1), b=conv(6, 5), fc=nn.Linear(5, 4, bias=False)
    )  # fmt: skip


def mobile():
    """Like MobileNet: an expansion, a depthwise convolution, a gate, a linear projection and a skip."""

    def run(net, x):
        x = F.relu6(net.stem(x))
        y = F.hardswish(net.depthwise(F.hardswish(net.expand(x))))
        y = y * F.hardsigmoid(net.up(F.relu(net.down(F.adaptive_avg_pool2d(y, 1)))))
        x = x + net.project(y)
        return net.fc(net.drop(pooled(net.strided(x))))

    return Plain(
        run, stem=conv(3, 4, stride=2), expand=conv(4, 9, 1), depthwise=conv(9, 9, groups=9, bias=False),
        down=nn.Conv2d(9, 3, 1), up=nn.Conv2d(3, 9, 1), project=conv(9, 4, 1),
        strided=nn.Conv2d(4, 4, 3, stride=2, groups=4, padding="valid"), drop=nn.Dropout(0.2), fc=nn.Linear(4, 4),
    )  # fmt: skip


def depthwise_over_a_concatenation():
    def run(net, x):
        x = torch.cat([net.a(x), net.b(x)], 1)
        return net.fc(pooled(F.relu(net.depthwise(x))))

    return Plain(
        run, a=conv(3, 4), b=conv(3, 3), fc=nn.Linear(7, 4),
        depthwise=conv(7, 7, groups=7, dilation=2, padding_mode="reflect"),
    )  # fmt: skip


def resnext():
    """Like ResNeXt: a skip around a grouped convolution; and the sum of both is convolved in groups of another size."""

    def run(net, x):
        x = F.relu(net.stem(x))
        x = F.relu(x + net.expand(F.relu(net.grouped(F.relu(net.reduce(x))))))
        return net.fc(pooled(F.relu(net.last(x))))

    return Plain(
        run, stem=conv(3, 12), reduce=conv(12, 8, 1), grouped=conv(8, 8, groups=4, bias=False), expand=conv(8, 12, 1),
        last=conv(12, 12, stride=2, groups=4), fc=nn.Linear(12, 4),
    )  # fmt: skip


def grouped_over_a_concatenation():
    def run(net, x):
        x = torch.cat([net.a(x), net.b(x)], 1)
        return net.fc(pooled(F.relu(net.grouped(x))))

    return Plain(
        run, a=conv(3, 6), b=conv(3, 4), fc=nn.Linear(10, 4),
        grouped=conv(10, 10, groups=5, dilation=2, padding_mode="reflect"),
    )  # fmt: skip


def ends_with_a_convolution():
    """Like SqueezeNet: the logits are pooled channels."""
    return nn.Sequential(conv(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


FLAT, IMAGE = (6,), (3, 8, 8)
TABLE = {
    mlp: FLAT, image: IMAGE, residual: IMAGE, shared_dropout: FLAT, flattened_by_size: IMAGE, inception: IMAGE,
    dense: IMAGE, flat_concatenation: FLAT, flattened_concatenation: IMAGE, gate: IMAGE,
    mobile: IMAGE, depthwise_over_a_concatenation: IMAGE, resnext: IMAGE, grouped_over_a_concatenation: IMAGE,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the converted network's outputs are the module's but for rounding")
def test_a_module_without_a_last_layer_trains_as_it_did():
    """Task 0's head is the identity, and stays so."""
    net = take_through(
        Plain(
            lambda s, x: (s.b(x := F.relu(s.a(x))) + s.c(x)) / 2,
            a=nn.Linear(6, 8),
            b=nn.Linear(8, 4),
            c=nn.Linear(8, 4),
        ),
        torch.randn(8, 6),
    )
    assert torch.equal(net.heads[0].dense_weight(0), torch.eye(4))


@pytest.mark.filterwarnings("ignore:the converted network's outputs are the module's but for rounding")
def test_a_last_convolution_becomes_the_head():
    """Averages are taken before it, so sums are rounded in another order, which a warning says."""
    module, x = lived_in(ends_with_a_convolution()), torch.randn(8, *IMAGE)
    with pytest.warns(UserWarning, match="but for rounding"):
        net = ek.convert(module, x)
    assert [group.built_width for group in net.groups] == [6], "classes are no units"
    take_through(module, x, rounded=True)


def test_classes_are_no_units_whatever_makes_them():
    """Two heads that are averaged are no linear layer: their outputs are features that pruning spares."""
    module = Plain(
        lambda s, x: (s.b(s.a(x)) + s.c(s.a(x))) / 2, a=nn.Linear(6, 8), b=nn.Linear(8, 4), c=nn.Linear(8, 4)
    )
    net = ek.convert(module, torch.randn(8, 6))
    net.prune(0.5)
    assert {group.name: group.segments.live for group in net.groups} == {"body.a": 4, "body.b (+1 tied)": 4}


def test_learned_queries_are_shared_by_all_tasks():
    """They are no unit's: no task may train them, which the network says."""

    def pooled(s, x):
        x = s.a(x)
        scores = s.q(s.latent) @ s.k(x).transpose(1, 2)
        return s.b((scores.softmax(-1) @ s.v(x)).squeeze(1))

    layers = {name: nn.Linear(8, 8) for name in "qkv"}
    module = Plain(pooled, a=nn.Linear(6, 8), b=nn.Linear(8, 4), **layers)
    module.latent = nn.Parameter(torch.randn(1, 1, 8), requires_grad=False)
    net = take_through(module, torch.randn(8, 5, 6))
    assert net.shared == ("latent",) and not net.body.latent.requires_grad


@pytest.mark.parametrize(("layer", "shape", "dim"), [
    (nn.Linear(6, 1), (6,), 1), (nn.Linear(6, 1), (7, 6), -1), (nn.Conv2d(3, 1, 3), (3, 5, 5), 1)
])  # fmt: skip
def test_dropout_of_a_single_unit(layer, shape, dim):
    """Nothing varies with units there; more may come."""
    module = Plain(lambda s, x: s.b(s.d(s.a(x)).flatten(1)), a=layer, d=nn.Dropout(), b=nn.LazyLinear(4))
    x = torch.randn(4, *shape)
    module(x)
    net = ek.convert(module, x)
    assert net.body.d.unit_dim == dim and torch.equal(net.eval()(x), module.eval()(x))


def test_a_bias_of_which_a_part_is_set_to_zero_in_place():
    """Swin V2's keys have none; those of queries and values are trained and cut."""

    def attend(s, x):
        bias = s.qkv.bias.clone()
        bias[8:16].zero_()
        q, k, v = F.linear(x, s.qkv.weight, bias).view(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return s.b(s.proj(x).mean(1))

    module = lived_in(Plain(attend, qkv=nn.Linear(6, 24), proj=nn.Linear(8, 6), b=nn.Linear(6, 4)))
    x, y = torch.randn(8, 5, 6), torch.arange(8) % 4
    net = ek.convert(module, x[:1])
    assert torch.equal(net.eval()(x), module.eval()(x))
    assert sum(isinstance(part, ek.EideticLinear) and part.bias is None for part in net.body.modules()) == 1
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    train(net, optimizer, x, y)
    net.prune(0.5, optimizer=optimizer)
    net.finish_task()
    answer = recall(net, x, 0)
    net.prepare_for_task(1, 4, optimizer=optimizer)
    train(net, optimizer, x, y)
    assert recall(net, x, 0) == answer
    torch.testing.assert_close(net.extract(0)(x), net(x, task=0))


def test_positions_of_images_and_a_class_token_before_channels_that_multiply():
    """A number for each unit and place, and a token of parameters in the place of units (PiT)."""

    def run(s, x):
        x = s.stem(x) + s.positions
        x = torch.cat([s.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = s.multiplied(s.norm(x).transpose(1, 2))
        return s.b(x.mean(2))

    multiplied = nn.Conv1d(8, 16, 1, groups=8)
    module = Plain(run, stem=nn.Conv2d(3, 8, 3), norm=nn.LayerNorm(8), multiplied=multiplied, b=nn.Linear(16, 4))
    module.positions = nn.Parameter(torch.randn(1, 8, 2, 3))
    module.token = nn.Parameter(torch.randn(1, 1, 8))
    net = take_through(module, torch.randn(8, 3, 4, 5))
    assert net.shared == ()


@pytest.mark.parametrize("groups", [1, 4])
def test_a_norm_of_groups_without_a_shift_stays_without(groups):
    norm = nn.GroupNorm(groups, 8)
    norm.bias = None
    module = Plain(
        lambda s, x: s.b(F.relu(s.norm(s.a(x))).mean((2, 3))), a=nn.Conv2d(3, 8, 3), norm=norm, b=nn.Linear(8, 4)
    )
    take_through(lived_in(module), torch.randn(8, 3, 5, 5))


def test_a_parameter_that_the_module_has_not_is_refused():
    norm = nn.BatchNorm2d(8)
    norm.bias = None
    module = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(72, 4))
    with pytest.raises(ek.ConversionError, match="'1' has no bias, which its layer would train"):
        ek.convert(module, torch.randn(2, 3, 5, 5))


CONCATENATIONS = [
    dense, flat_concatenation, inception, depthwise_over_a_concatenation, grouped_over_a_concatenation
]  # fmt: skip


@pytest.mark.parametrize("make", TABLE, ids=lambda make: make.__name__)
def test_every_promise(make):
    """Same bits, same training step, original untouched, P1 and P3 after AdamW and pruning."""
    take_through(lived_in(make()), torch.randn(8, *TABLE[make]))


@pytest.mark.parametrize("make", CONCATENATIONS, ids=lambda make: make.__name__)
def test_concatenated_units_are_saved_restored_and_routed(make, tmp_path):
    plain, x = make(), torch.randn(8, *TABLE[make])
    net = ek.convert(plain, x)
    before = net.snapshot()
    net.prune(0.5)
    net.restore(before)
    assert torch.equal(net.eval()(x), plain.eval()(x)), "a pruning that was undone"

    net.prune(0.5)
    net.prepare_for_task(1, 3)
    net.prune(0.5)
    net.finish_task()

    net.train_router([[(x, torch.zeros(8).long())], [(x + 1, torch.zeros(8).long())]])
    net.eval()
    predicted = net.predict(x)
    for task in range(2):
        mine = predicted.task == task
        wanted = net(x, task=task)[mine]
        for given, answer in zip([predicted.logits[i] for i in mine.nonzero().flatten().tolist()], wanted):
            torch.testing.assert_close(given[: len(answer)], answer)

    net.save(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net", ek.convert(make(), x)).eval()
    for task in range(2):
        assert torch.equal(again(x, task=task), net(x, task=task))
    assert again.certify().ok


def test_every_task_is_routed_to_a_head_that_reads_its_own_concatenated_units():
    """The units a task may read do not lie side by side in concatenated features."""
    x = torch.randn(8, *IMAGE)
    net = ek.convert(dense(), x)
    net.prune(0.5)
    net.prepare_for_task(1, 4)
    net.finish_task()
    net.train_router([[(x, torch.zeros(8).long())], [(x + 1, torch.zeros(8).long())]])
    for task in range(2):
        with torch.no_grad():
            net.router.weight.zero_()
            net.router.bias.copy_(torch.tensor([1.0 - task, task]))
        predicted = net.eval().predict(x)
        assert (predicted.task == task).all()
        torch.testing.assert_close(torch.stack(list(predicted.logits)), net(x, task=task), rtol=1e-4, atol=1e-5)


def test_groups_of_a_concatenation():
    net = ek.convert(dense(), torch.randn(1, *IMAGE))
    names = [group.name.removeprefix("body.") for group in net.groups]
    assert names == ["stem", "c1", "c2", "transition", "last"]
    assert [source.group.width for source in net.wiring.sources["body.c2"]] == [4, 3]
    assert list(net.groups[0].norms) == ["body.n1", "body.n2.0", "body.n3.0"]
    assert [source.group for source in net.wiring.features] == [group.segments for group in net.groups[-2:]]


def test_one_pixel_flattened_is_a_unit():
    """Squeeze and excitation of linear layers: what was pooled to one pixel is as flat as what a layer makes of it."""

    def gated(s, x):
        x = pooled(F.relu(s.a(x)))
        left, right = x.chunk(2, 1)
        return s.h(torch.cat([torch.cat([left, right.tanh()], 1) * s.b(x).sigmoid(), s.c(x)], 1))

    module = Plain(gated, a=nn.Conv2d(3, 8, 3), b=nn.Linear(8, 8), c=nn.Linear(8, 5), h=nn.Linear(13, 4))
    take_through(module, torch.randn(8, *IMAGE))
    net = ek.convert(module, torch.randn(2, *IMAGE))
    assert [group.name for group in net.groups] == ["body.a.0 (+1 tied)", "body.a.1 (+1 tied)", "body.c"]


def test_grains_of_groups():
    """Whatever is tied to what a grouped convolution reads moves with it, a whole group of channels at a time."""
    net = ek.convert(resnext(), torch.randn(1, *IMAGE))
    assert [(g.name.removeprefix("body."), g.segments.grain) for g in net.groups] == [
        ("stem.0 (+1 tied)", 3), ("reduce.0", 2)
    ]  # fmt: skip
    assert isinstance(net.body.get_submodule("last.0"), ek.EideticGroupedConv2d)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_memory_format_modes_and_requires_grad_are_kept(dtype, memory):
    plain = lived_in(residual()).to(dtype=dtype, memory_format=memory)
    plain.stem.eval()
    plain.stem[0].weight.requires_grad_(False)
    x = torch.randn(2, *IMAGE, dtype=dtype).contiguous(memory_format=memory)
    net = ek.convert(plain, x)
    for (path, old), (_, new) in zip(plain.stem.named_parameters(), net.body.stem.named_parameters(), strict=True):
        assert new.dtype == dtype and new.stride() == old.stride() and new.requires_grad == old.requires_grad, path
    assert net.training and not net.body.get_submodule("stem.1").training
    assert net.body.get_submodule("a.1").training
    assert torch.equal(net.eval()(x), plain.eval()(x))


def test_a_pretrained_module_is_task_0_without_training():
    plain, x = lived_in(residual()).eval(), torch.randn(4, *IMAGE)
    net = ek.convert(plain, x[:1])
    assert (net.current_task, net.num_classes, net.finished_tasks) == (0, [4], 0)
    net.finish_task()
    torch.testing.assert_close(net(x, task=0), plain(x), rtol=1e-5, atol=1e-5)


def test_a_named_head_and_no_head():
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Softmax(1))
    x = torch.randn(5, 6)
    net = ek.convert(plain, x, head="2")
    assert torch.equal(net.eval()(x), plain[:3](x)), "what follows the head is left out"
    net = ek.convert(plain[:2], x, head=False)
    assert net.current_task is None
    net.prepare_for_task(0, 3)
    assert torch.equal(net.eval().compute_features(x), plain[:2](x)), "task 0 begins with the module's weights"


def test_defaults_of_forward_are_taken():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x, scale=2.0, detailed=False, names=None):
            x = F.relu(self.a(x)) * scale
            return (self.b(x), x) if detailed else self.b(x)

    plain, x = Optional(), torch.randn(3, 6)
    assert torch.equal(ek.convert(plain, x).eval()(x), plain(x))


def test_a_converted_network_is_loaded_into_a_converted_network(tmp_path):
    x = torch.randn(8, *IMAGE)
    net = ek.convert(residual(), x)
    net.prune(0.3)
    net.prepare_for_task(1, 3)
    net.save(tmp_path / "net")
    with pytest.raises(ek.CheckpointError, match=r"convert the same module again.*load\(path, network=ek.convert\("):
        ek.EideticNetwork.load(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net", network=ek.convert(residual(), x[:1]))
    assert torch.equal(again.eval()(x, task=0), net.eval()(x, task=0)) and again.current_task == 1
    used = ek.convert(residual(), x[:1])
    used.finish_task()
    with pytest.raises(ek.CheckpointError, match="fresh network"):
        ek.EideticNetwork.load(tmp_path / "net", network=used)


# ---- rules of one's own


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x) if x.sum() > 0 else x * torch.sigmoid(x)


@pytest.fixture
def rulebook():
    """Rules registered in a test are forgotten after it."""
    books = [rules.MODULES, rules.FUNCTIONS, rules.METHODS, registry.REGISTERED, registry.OPERATIONS]
    before = [dict(book) for book in books]
    yield
    for book, entries in zip(books, before):
        book.clear()
        book.update(entries)


@pytest.mark.parametrize("target", [Swish, f"{Swish.__module__}.Swish"], ids=["class", "name"])
def test_a_rule_of_ones_own(target, rulebook):
    plain = Plain(lambda s, x: s.b(s.act(s.a(x))), a=nn.Linear(6, 7), b=nn.Linear(7, 4), act=Swish())
    with pytest.raises(ek.ConversionError, match="cannot be captured(.|\n)*a rule"):
        ek.convert(plain, torch.randn(1, 6))
    ek.register_rule(target, ek.rules.passes)
    take_through(plain, torch.randn(8, 6), double=False)


def test_a_rule_for_an_operation_and_one_that_refuses(rulebook):
    plain = Plain(lambda s, x: s.b(torch.special.bessel_j0(s.a(x))), a=nn.Linear(6, 7), b=nn.Linear(7, 4))
    x = torch.randn(4, 6)
    with pytest.raises(
        ek.ConversionError, match=r"call_function special_bessel_j0.*not known to keep units apart(.|\n)*register"
    ):
        ek.convert(plain, x)
    ek.register_rule("special_bessel_j0", ek.rules.passes)
    assert torch.equal(ek.convert(plain, x).eval()(x), plain(x))
    ek.register_rule("special_bessel_j0", ek.rules.refuses("no error functions here"))
    with pytest.raises(ek.ConversionError, match="no error functions here"):
        ek.convert(plain, x)


class Rolled(nn.Module):
    """Mixes samples."""

    def forward(self, x):
        return x.roll(1, 0)


def test_samples_that_a_rule_hides_are_found_mixed(rulebook):
    """What a rule of the user's lets pass is not looked into."""
    ek.register_rule(Rolled, ek.rules.passes)
    with pytest.raises(ek.ConversionError, match="is another when it is asked alone"):
        ek.convert(nn.Sequential(nn.Linear(6, 8), Rolled(), nn.Linear(8, 4)), torch.randn(2, 6))


def test_a_rule_does_not_excuse_parameters(rulebook):
    ek.register_rule(nn.GroupNorm, ek.rules.passes)
    with pytest.raises(ek.ConversionError, match="GroupNorm has parameters that every task would train"):
        ek.convert(nn.Sequential(nn.Linear(6, 7), nn.GroupNorm(1, 7), nn.Linear(7, 4)), torch.randn(1, 6))


@pytest.mark.parametrize(("target", "rule"), [(3, rules.passes), ("relu", "passes"), (int, rules.passes)])
def test_what_is_no_rule(target, rule, rulebook):
    with pytest.raises(ek.InputError, match=r"(target|rule) must be a .*; got"):
        ek.register_rule(target, rule)


class SkipBranch(nn.Module):
    """What torchvision's StochasticDepth does."""

    def __init__(self, p, mode):
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x):
        if not self.training:
            return x
        shape = [len(x) if self.mode == "row" else 1, *[1] * (x.dim() - 1)]
        return x * torch.empty(shape, dtype=x.dtype).bernoulli_(1 - self.p).div_(1 - self.p)


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_stochastic_depth_leaves_frozen_units_alone(mode, rulebook):
    ek.register_rule(SkipBranch, ek.rules.drops)
    plain = Plain(
        lambda s, x: s.c(F.relu(s.stem(x)) + s.skip(s.b(F.relu(s.a(x))))), stem=nn.Linear(6, 8), a=nn.Linear(6, 5),
        b=nn.Linear(5, 8), c=nn.Linear(8, 4), skip=SkipBranch(0.4, mode),
    )  # fmt: skip
    x = torch.randn(8, 6)
    net = take_through(plain, x)
    assert isinstance(net.body.skip, ek.EideticStochasticDepth)
    frozen = net.groups[0].segments.frozen_total
    given = [getattr(net, how)().compute_features(x)[:, :frozen] for how in ("eval", "train")]
    assert frozen and torch.equal(*given), "P5"


# ---- what is refused


def between(operation, **layers):
    return Plain(lambda s, x: s.b(operation(s, s.a(x)).mean((2, 3))), a=conv(3, 4), b=nn.Linear(4, 4), **layers)


CONVERTED = {
    "grouped convolution that makes more channels than it reads": (
        lambda: Plain(
            lambda s, x: s.b(pooled(s.g(s.a(x)))), a=conv(3, 8), g=nn.Conv2d(8, 16, 1, groups=4), b=nn.Linear(16, 4)
        ), IMAGE,
    ),
    "grouped convolution over units of two layers": (
        lambda: Plain(
            lambda s, x: s.fc(pooled(s.g(torch.cat([s.a(x), s.b(x)], 1)))), a=nn.Conv2d(3, 9, 1), b=nn.Conv2d(3, 9, 1),
            g=nn.Conv2d(18, 18, 1, groups=6), fc=nn.Linear(18, 4),
        ), IMAGE,
    ),
    "concatenated pixels": (lambda: between(lambda s, x: torch.cat([x, x], -1)), IMAGE),
    "flattened images of two sizes": (
        lambda: Plain(
            lambda s, x: s.c(torch.cat([s.a(x).flatten(1), s.b(x).flatten(1)], 1)), a=nn.Conv2d(3, 4, 3),
            b=nn.Conv2d(3, 4, 5), c=nn.Linear(4 * 36 + 4 * 16, 4),
        ), IMAGE,
    ),
    "a sequence folded into units": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Flatten(), nn.Linear(15, 4)), (3, 6)),
    "another order before the head": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Plain(lambda s, x: x.flip(1)), nn.Linear(8, 4)), FLAT
    ),
    "a shuffle before the head": (
        lambda: Plain(lambda s, x: s.h(pooled(F.channel_shuffle(s.a(x), 2))), a=conv(3, 8), h=nn.Linear(8, 4)), IMAGE
    ),
    "gated halves": (lambda: Plain(lambda s, x: s.h(F.glu(s.a(x))), a=nn.Linear(6, 16), h=nn.Linear(8, 4)), FLAT),
    "InstanceNorm": (
        lambda: Plain(
            lambda s, x: s.h(pooled(F.relu(s.n(s.a(x))))), a=nn.Conv2d(3, 8, 3), n=nn.InstanceNorm2d(8, affine=True),
            h=nn.Linear(8, 4),
        ), IMAGE,
    ),
    "a transposed convolution": (
        lambda: Plain(
            lambda s, x: s.h(pooled(F.relu(s.b(F.relu(s.a(x)))))), a=nn.Conv2d(3, 8, 3),
            b=nn.ConvTranspose2d(8, 6, 2, 2), h=nn.Linear(6, 4),
        ), IMAGE,
    ),
    "videos": (
        lambda: Plain(
            lambda s, x: s.h(F.max_pool3d(F.relu(s.a(x)), 2).mean((2, 3, 4))), a=nn.Conv3d(3, 8, 3), h=nn.Linear(8, 4)
        ), (3, 6, 6, 6),
    ),
    "signals": (
        lambda: Plain(
            lambda s, x: s.h(F.max_pool1d(F.relu(s.a(x)), 2).mean(2)), a=nn.Conv1d(3, 8, 3), h=nn.Linear(8, 4)
        ), (3, 12),
    ),
    "GroupNorm without scale": (
        lambda: Plain(
            lambda s, x: s.h(pooled(F.relu(s.n(s.a(x))))), a=nn.Conv2d(3, 8, 3), n=nn.GroupNorm(4, 8, affine=False),
            h=nn.Linear(8, 4),
        ), IMAGE,
    ),
    "weight normalisation": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 7)), nn.Linear(7, 4)), FLAT
    ),
    "a layer called twice": (
        lambda: Plain(
            lambda s, x: s.b(s.a(F.relu(s.a(s.stem(x))))), stem=nn.Linear(6, 6), a=nn.Linear(6, 6), b=nn.Linear(6, 4)
        ),
        FLAT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_what_only_the_capture_can_follow(name):
    make, shape = CONVERTED[name]
    take_through(make(), torch.randn(8, *shape))


def partly_zeroed(s, x):
    scale = s.scale.clone()
    scale[2:4].zero_()
    return s.b(s.a(x) * scale)


class Scaled(Plain):
    def __init__(self):
        super().__init__(partly_zeroed, a=nn.Linear(6, 8), b=nn.Linear(8, 4))
        self.scale = nn.Parameter(torch.randn(8))


REFUSED = {
    "a scale of which a part is set to zero": (Scaled, FLAT, "it changes some units in place"),
    "gates made of neighbouring channels": (
        lambda: between(
            lambda s, x: x * s.c(x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1),
            c=nn.Conv1d(1, 1, 3, padding=1),
        ), IMAGE, "convolves along the units of a layer",
    ),
    "softmax over channels": (lambda: between(lambda s, x: x.softmax(1)), IMAGE, "mixes all units of a layer"),
    "depthwise convolution of the input": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Flatten(), nn.Linear(108, 4)), IMAGE,
        "of '0'.*Begin with an ordinary convolution",
    ),
    "no running statistics": (
        lambda: between(lambda s, x: s.n(x), n=nn.BatchNorm2d(4, track_running_stats=False)), IMAGE, "mixes samples"
    ),
    "concatenated samples": (
        lambda: between(lambda s, x: torch.cat([x, x])), IMAGE, "no row for each sample: forward mixes samples"
    ),
    "concatenated with the input": (
        lambda: Plain(lambda s, x: s.b(torch.cat([s.a(x), x], 1)), a=nn.Linear(6, 4), b=nn.Linear(10, 4)), FLAT,
        "reads units and what belongs to no task side by side",
    ),
    "a dictionary of two": (
        lambda: Plain(lambda s, x: {"out": s.a(x), "b": s.b(x)}, a=nn.Linear(6, 4), b=nn.Linear(6, 4)), FLAT,
        "must return one tensor",
    ),
    "an image": (lambda: conv(3, 4), IMAGE, r"returned a tensor of shape \[3, 4, 8, 8\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, shape, text = REFUSED[name]
    plain = make()
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(ek.ConversionError, match=f"(?s){text}") as raised:
        ek.convert(plain, torch.randn(1, *shape))
    if str(raised.value).startswith("node"):
        assert_teaches(str(raised.value))
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", [torch.jit.script, lambda module: torch.jit.trace(module, torch.randn(2, 6))])
def test_a_module_in_another_form_is_refused(form):
    with pytest.raises(ek.ConversionError):
        ek.convert(form(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))), torch.randn(2, 6))


def test_an_unknown_head_is_named_with_the_ones_there_are():
    with pytest.raises(ek.ConversionError, match="Linear layers: 0, 4, 6"):
        ek.convert(mlp(), torch.randn(2, 6), head="7")


def test_arguments():
    with pytest.raises(ek.InputError, match="plain torch.nn.Module"):
        ek.convert(torch.relu, torch.randn(2, 6))
    with pytest.raises(ek.InputError, match=r"a tensor \[N, ...\]"):
        ek.convert(mlp(), [1, 2])
    with pytest.raises(ek.InputError, match=r"cannot take example_input of shape \[2, 7\]"):
        ek.convert(mlp(), torch.randn(2, 7))
    with pytest.raises(ek.InputError, match="head must be"):
        ek.convert(mlp(), torch.randn(2, 6), head=3)


# ---- torchvision, where it is installed; bench/sweep_models.py takes all of its models


TORCHVISION = {"resnet18": 32, "squeezenet1_1": 48, "densenet121": 32, "mnasnet0_5": 64}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    size = TORCHVISION[name]
    models = load_torchvision()
    if models is None:
        pytest.skip("torchvision is not installed")
    take_through(lived_in(models.get_model(name, weights=None, num_classes=5)), torch.randn(4, 3, size, size))
