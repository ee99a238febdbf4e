"""ek.convert of transformers and ConvNeXt: exact, learned, pruned, saved; what positions may do, and every refusal."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conversions import assert_teaches, lived_in, take_through, train
from conversions import recall as answers
from life import live_tensors, reading
from small_transformers import TRANSFORMERS, OneLayer, TorchEncoder, converted, make, samples, without_dropout
from torch import nn

import eidetic_kernels as ek

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
IMPORTANCES = ("l1", "l2", "taylor", "hybrid", "random")
# Of each kind of layer one, where a promise does not hang on how the model is written.
KINDS = ("encoder", "by-hand", "convnext", "swin-v2", "maxvit")


@pytest.fixture(params=TRANSFORMERS)
def name(request):
    return request.param


def test_exact_and_nothing_forgotten(name):
    """The same bits in evaluation, the same training step in float64, two tasks recalled under NaN."""
    module, shape = make(name)
    take_through(module.train(), torch.randn(6, *shape))


@pytest.mark.parametrize("batch", [1, 5])
def test_evaluation_has_the_modules_bits_with_and_without_gradients(name, batch):
    """torch's attention computes other bits without gradients (its fast path); so does what replaces it."""
    module, shape = make(name, seed=3)
    x = torch.randn(batch, *shape)
    net = ek.convert(module, x[:1]).eval()
    module.eval()
    assert torch.equal(net(x), module(x))
    with torch.no_grad():
        assert torch.equal(net(x), module(x))
    with torch.inference_mode():
        assert torch.equal(net(x), module(x))


def test_every_gradient_is_the_modules(name):
    module, shape = make(name, seed=1)
    module = without_dropout(module).double()
    x, y = torch.randn(5, *shape).double(), torch.arange(5) % 4
    net = ek.convert(module, x[:1]).train()
    module.train()
    F.cross_entropy(module(x), y).backward()
    F.cross_entropy(net(x), y).backward()
    theirs = {path: parameter.grad for path, parameter in module.named_parameters()}
    ours = {path: parameter.grad for path, parameter in net.named_parameters() if parameter.requires_grad}
    found = sorted(gradient.abs().sum().item() for gradient in ours.values())
    # Names differ where attention was taken apart; every number must be there all the same, but for the zeros of biases
    # that torchvision does not use.
    numbers = [torch.cat([each.flatten() for each in side.values()]).sort().values for side in (ours, theirs)]
    torch.testing.assert_close(*(each[each != 0] for each in numbers), **CLOSE)
    assert found[0] >= 0 and found[-1] > 0


@pytest.mark.parametrize("unbound", [True, False])
def test_queries_keys_and_values_of_one_layer(unbound):
    torch.manual_seed(0)
    net = take_through(lived_in(OneLayer(unbound)), torch.randn(6, 6, 5))
    assert [group.name for group in net.groups] == ["body.embed (+1 tied)", "body.qkv.0 (+2 tied)"]


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_own_encoder(norm_first):
    """Its fused kernel for inference is switched off for the comparison: the same computation, rounded otherwise."""
    plain = TorchEncoder(norm_first)
    x = torch.randn(6, 6, 5)
    fused = plain.eval()(x).detach()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        take_through(plain.train(), x)
        assert "encoder.layers.0.self_attn.in_proj_weight" in plain.state_dict()
        net = ek.convert(plain.eval(), x)
        assert torch.equal(net(x), plain(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(x), fused, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*KINDS, "swin"])
def test_saved_loaded_and_certified(name, tmp_path):
    net = converted(name)
    x, y = samples(net)
    net.prune(0.6)
    train(net, torch.optim.AdamW(net.parameters(), 1e-3), x, y)
    net.finish_task()
    net.prepare_for_task(1, 3, reading(net, "mixed", 1))
    train(net, torch.optim.AdamW(net.parameters(), 1e-3), x, y)

    net.save(tmp_path / "net")
    module, shape = make(name, seed=9)
    fresh = ek.convert(without_dropout(module), torch.randn(1, *shape))
    again = ek.EideticNetwork.load(tmp_path / "net", network=fresh)
    assert answers(again, x, 0) == answers(net, x, 0) and again.certify().ok
    assert torch.equal(again.eval()(x), net.eval()(x))
    assert again.state_dict().keys() == net.state_dict().keys()

    for each in (net, again):
        torch.manual_seed(4)
        train(each, torch.optim.SGD(each.parameters(), 0.01), x, y)
        each.finish_task()
        each.widen(64)
        each.prepare_for_task(2, 3)  # fresh units are drawn alike
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "importance"),
    [("encoder", each) for each in IMPORTANCES]
    + [(each, IMPORTANCES[number % 5]) for number, each in enumerate(TRANSFORMERS) if each != "encoder"],
)
def test_pruning_by_every_importance_keeps_whole_heads(name, importance):
    net = converted(name)
    x, y = samples(net)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    train(net, optimizer, x, y)
    net.prune(0.4, importance, data=[(x, y)], optimizer=optimizer)
    for path, layer in net.segmented_layers():
        if path.endswith(".query"):
            attention = net.get_submodule(path.rpartition(".")[0])
            assert layer.segments.grain == attention.head_dim and layer.segments.live % attention.head_dim == 0
    train(net, optimizer, x, y)
    assert net(x).isfinite().all()


def test_taylor_scores_are_mean_absolute_products(name):
    """By definition, |activation x gradient| summed here from hooks on the converted layers, heads by grains."""
    net = converted(name)
    x, y = samples(net)
    net.eval()
    products = {}

    def watch(group, layer):
        def hook(module, inputs, output):
            output.retain_grad()
            products.setdefault(group.name, []).append((module, output))

        return layer.register_forward_hook(hook)

    handles = [watch(group, layer) for group in net.groups for layer in group.producers.values()]
    F.cross_entropy(net(x), y).backward()
    for handle in handles:
        handle.remove()
    from eidetic_kernels.tasks.importance import taylor_scores

    scores = taylor_scores(net, net.groups, [(x, y)], F.cross_entropy)
    for group in net.groups:
        expected = 0
        for module, output in products[group.name]:
            each = (output * output.grad).abs().movedim(module.unit_dim, 0).flatten(1)
            expected = expected + each.sum(1) * len(x) / each.shape[1]  # a mean over each sample's positions
        torch.testing.assert_close(scores[group.name].double(), expected.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", KINDS)
def test_a_snapshot_undoes_pruning_and_training(name):
    net = converted(name)
    x, y = samples(net)
    net.prune(0.5)
    net.finish_task()
    net.prepare_for_task(1, 3)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    train(net, optimizer, x, y)
    before, said = {path: t.clone() for path, t in live_tensors(net).items()}, net.eval()(x)
    snapshot = net.snapshot(optimizer)
    net.prune(0.5, optimizer=optimizer)
    train(net, optimizer, x, y)
    net.restore(snapshot, optimizer)
    assert all(torch.equal(tensor, before[path]) for path, tensor in live_tensors(net).items())
    assert torch.equal(net.eval()(x), said)
    train(net, optimizer, x, y)


@pytest.mark.parametrize("name", KINDS)
def test_all_units_of_a_task_may_go(name):
    net = converted(name)
    x, y = samples(net)
    net.prune(0.5)
    net.finish_task()
    net.prepare_for_task(1, 3)
    net.prune(1.0)
    train(net, torch.optim.Adam(net.parameters()), x, y)
    net.finish_task()
    assert net.eval()(x, task=1).isfinite().all() and net.certify().ok


# ---- what is refused


class Tokens(nn.Module):
    """``run(module, x)`` between an embedding of tokens [N, 6, 5] and a head on their mean."""

    def __init__(self, run, **layers):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x):
        return self.head(self.run(self, self.embed(x)).mean(1))


def _mha(**options):
    return nn.MultiheadAttention(8, 2, batch_first=True, **options)


FOLLOWED = {
    "units rolled": (lambda s, x: torch.roll(x, 1, -1), {}),
    "BatchNorm over tokens": (lambda s, x: s.n(x), {"n": nn.BatchNorm1d(6)}),
    "LayerNorm over positions": (lambda s, x: s.n(x.transpose(1, 2)).transpose(1, 2), {"n": nn.LayerNorm(6)}),
    "a part of the units": (lambda s, x: torch.cat([x[..., :4], x[..., 4:]], -1), {}),
    "one unit": (lambda s, x: x[:, :, 0:1] * x, {}),
    "units in the middle": (lambda s, x: x.view(-1, 2, 3, 8).permute(0, 1, 3, 2).mean(3), {}),
    "units folded with tokens": (lambda s, x: x.reshape(x.size(0), 3, 16), {"head": nn.Linear(16, 3)}),
    "tokens folded into units": (lambda s, x: s.b(x.flatten(1)).unsqueeze(1), {"b": nn.Linear(48, 8)}),
    "a mean of units": (lambda s, x: x - x.mean(-1, keepdim=True), {}),
    "one number": (lambda s, x: x * s.p, {"p": nn.Parameter(torch.ones(1))}),
    "a tensor averaged": (lambda s, x: x + s.p.mean(0), {"p": nn.Parameter(torch.ones(2, 8))}),
    "a scale of sizes": (
        lambda s, x: (
            F.scaled_dot_product_attention(*[x.view(x.size(0), 6, 4, 2).transpose(1, 2)] * 3, scale=1.0 / x.size(-1))
            .transpose(1, 2)
            .flatten(2)
        ),
        {},
    ),
    "positions in another order": (lambda s, x: x + s.p[[5, 4, 3, 2, 1, 0]], {"p": nn.Parameter(torch.zeros(6, 8))}),
    "a tensor used twice": (lambda s, x: s.b(x + s.p) + s.p, {"p": nn.Parameter(torch.ones(8)), "b": nn.Linear(8, 8)}),
    "a mask": (lambda s, x: s.a(x, x, x, attn_mask=torch.zeros(6, 6))[0], {"a": _mha()}),
    "biases for keys": (lambda s, x: s.a(x, x, x)[0], {"a": _mha(add_bias_kv=True)}),
    "heads over positions": (
        lambda s, x: F.scaled_dot_product_attention(*[x.view(x.size(0), 6, 4, 2)] * 3).flatten(2),
        {},
    ),
    "attention without heads": (lambda s, x: F.scaled_dot_product_attention(x, x, x), {}),
    "a mask for heads": (
        lambda s, x: F.scaled_dot_product_attention(*[x.view(x.size(0), 4, 6, 2)] * 3, torch.zeros(6, 6)).view(
            x.size(0), 6, 8
        ),
        {},
    ),
}


@pytest.mark.filterwarnings("ignore:no layer has a free unit")
@pytest.mark.parametrize("case", FOLLOWED)
def test_what_only_the_capture_can_follow(case):
    """What all units share (a number, a norm over positions) is frozen, so a training step is not the module's."""
    run, layers = FOLLOWED[case]
    module = Tokens(run, **layers)
    shares = case in ("LayerNorm over positions", "one number", "a mask")
    take_through(module, torch.randn(8, 6, 5), double=not shares)


REFUSED = {
    "LayerNorm over positions and units": (
        lambda s, x: s.n(x),
        {"n": nn.LayerNorm((6, 8))},
        "a LayerNorm over several dimensions",
    ),
    "LayerNorm of the input": (
        lambda s, x: s.n(x),
        {"n": nn.LayerNorm(8), "embed": nn.Identity()},
        "no layer before the head makes units",
    ),
    "softmax over units": (lambda s, x: x.softmax(-1), {}, "mixes all units"),
    "pooling over units": (lambda s, x: F.max_pool2d(x, 2), {"head": nn.Linear(4, 3)}, "pools units"),
    "a tensor without units": (
        lambda s, x: x * s.p,
        {"p": nn.Parameter(torch.ones(6, 1))},
        "after pruning it would combine",
    ),
    "units and tokens combined": (
        lambda s, x: (lambda y: y + y.transpose(1, 2))(torch.cat([x, x[:, :2]], 1)),
        {},
        "mixes all units",
    ),
    "units averaged as pixels": (
        lambda s, x: x.transpose(1, 2).mean((-1, -2)).unsqueeze(1).unsqueeze(1),
        {"head": nn.Linear(1, 3)},
        "mixes all units",
    ),
    "units pooled as pixels": (
        lambda s, x: F.max_pool2d(x.transpose(1, 2), 2).transpose(1, 2),
        {"head": nn.Linear(4, 3)},
        "pools units",
    ),
    "samples side by side as units": (
        lambda s, x: torch.cat([x.transpose(1, 2)] * 2, -3).transpose(1, 2),
        {},
        "no row for each sample",
    ),
    "a tensor reshaped": (
        lambda s, x: x + s.p.view(8),
        {"p": nn.Parameter(torch.ones(2, 4))},
        "units cannot go one by one",
    ),
    "one position for all": (
        lambda s, x: x + s.p[[0] * 6],
        {"p": nn.Parameter(torch.zeros(6, 8))},
        "has no slice for each unit",
    ),
    "true positions": (
        lambda s, x: x + s.p[[True] * 6],
        {"p": nn.Parameter(torch.zeros(6, 8))},
        "a size depends on values",
    ),
    "a tensor picks": (lambda s, x: x[:, s.p.long()], {"p": nn.Parameter(torch.ones(2))}, "an index that is computed"),
    "attention weights": (lambda s, x: s.a(x, x, x)[1] @ x, {"a": _mha()}, "mixes all units"),
    "heads mixed": (
        lambda s, x: F.scaled_dot_product_attention(*[x.view(x.size(0), 6, 4, 2).transpose(1, 2).softmax(1)] * 3)[:, 0],
        {"head": nn.Linear(2, 3)},
        "mixes all units",
    ),
    "one head": (
        lambda s, x: F.scaled_dot_product_attention(*[x.view(x.size(0), 6, 4, 2).transpose(1, 2)] * 3)[:, 0].repeat(
            1, 1, 4
        ),
        {},
        "picks a unit",
    ),
    "heads folded with tokens": (
        lambda s, x: F.scaled_dot_product_attention(*[x.view(x.size(0), 6, 4, 2).transpose(1, 2)] * 3).reshape(
            x.size(0), 6, 8
        ),
        {},
        "mixes all units",
    ),
    "values of another size": (lambda s, x: s.a(x, x, F.pad(x, (0, 1)))[0], {"a": _mha(vdim=9)}, "side by side"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    run, layers, text = REFUSED[case]
    module = Tokens(run, **layers)
    before = copy.deepcopy(module.state_dict())
    example = torch.randn(2, 6, 8 if isinstance(module.embed, nn.Identity) else 5)
    with pytest.raises(ek.ConversionError) as raised:
        ek.convert(module, example)
    message = str(raised.value)
    if message.startswith("node"):
        assert_teaches(message)
    for line in Path(__file__).read_text().splitlines():  # it quotes the case's own line, which may hold ``text``
        if "lambda" in line:
            message = message.replace(" ".join(line.split()), "")
    assert re.search(f"(?s){text}", message), message
    assert all(torch.equal(tensor, before[path]) for path, tensor in module.state_dict().items())


@pytest.mark.parametrize("dims", [2, 3])
@torch.no_grad()
def test_positions_that_follow_the_input(dims):
    """``pos[:, :x.size(1)]`` is taken of inputs of any length, also where the example's has all."""
    given = nn.Parameter(torch.randn(6, 8) if dims == 2 else torch.randn(1, 6, 8))
    pick = {
        2: lambda s, x: x + s.p[: x.size(1)] + s.q[None, 0:6, :][:, : x.shape[1], : x.shape[2]],
        3: lambda s, x: x + s.p[:, : x.size(1)] + s.q[..., :8][: x.shape[1]],
    }
    module = Tokens(pick[dims], p=given, q=nn.Parameter(torch.randn(6, 8))).double().eval()
    net = ek.convert(module, torch.randn(2, 6, 5).double()).eval()
    inputs = [torch.randn(3, length, 5).double() for length in (6, 4, 1)]
    for x in inputs:
        assert torch.equal(net(x), module(x))
    net.prune(0.5)
    pruned = [net(x) for x in inputs]
    net.finish_task()
    net.prepare_for_task(1, 2)
    for x, expected in zip(inputs, pruned):
        assert torch.equal(net(x, task=0), expected)
        assert torch.equal(net.extract(0)(x), expected)
        assert net(x).isfinite().all()


TAKEN = {
    "tokens rolled": lambda s, x: x + torch.roll(x, 2, 1),
    "positions folded": lambda s, x: x.reshape(x.size(0), 2, 3, 8).mean(1),
    "a reshape that names the units": lambda s, x: x.view(x.size(0), 3, 2, 8).transpose(1, 2).reshape(x.size(0), 6, 8),
    "tokens picked": lambda s, x: x[:, 1:4] + x[..., 3:, :],
    "images of tokens": lambda s, x: x.transpose(1, 2).reshape(x.size(0), 8, 2, 3).flatten(2).permute(0, 2, 1),
    "pooled as an image": (
        lambda s, x: F.avg_pool2d(x.transpose(1, 2).reshape(x.size(0), 8, 2, 3), 2).flatten(2).transpose(1, 2)
    ),
    "tokens side by side": lambda s, x: torch.cat([x, F.relu(x)], 1),
}


@pytest.mark.parametrize("case", TAKEN)
def test_positions_may_be_moved(case):
    """Units stay whole, and what a number in the code said about their count is looked up after pruning."""
    module = Tokens(TAKEN[case]).double().eval()
    x = torch.randn(2, 6, 5).double()
    net = ek.convert(module, x).eval()
    assert torch.equal(net(x), module(x))
    plan = net.prune(0.5)
    keep = plan.groups[0].keep
    gone = torch.ones(8, dtype=torch.bool)
    gone[keep] = False
    with torch.no_grad():  # the plain module without these units: their rows are zero
        module.embed.weight[gone], module.embed.bias[gone] = 0, 0
    torch.testing.assert_close(net(x), module(x), **CLOSE)
