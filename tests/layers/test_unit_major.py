"""Unit-major: on a CPU, hidden linear units that lie one after the other in memory, each with all its samples.

The ops in that layout against their oracles and against themselves in the ordinary one; which layers ask for it, and
what people's own code between layers makes of it.
"""

import copy
import random
from functools import partial

import pytest
import torch
from life import CLASSES, READINGS, Memory, batch, learn, loss_of, poison, reading, recall, train
from staircases import CASES, Layer, assert_close, assert_same_bits, assert_same_results, random_case
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import eidetic_kernels as ek
from eidetic_kernels import backends, ops
from eidetic_kernels.layers import EideticDropout
from eidetic_kernels.layers.linear import UNIT_MAJOR_FROM
from eidetic_kernels.layout import Segments, Source
from eidetic_kernels.memory import is_unit_major
from eidetic_kernels.ops import linear, linear_norm
from eidetic_kernels.ops.registration import encoded

SAMPLES = (32, 33, 100)  # of which two are no multiple of a vector
HERE = [name for name in ("torch", "cpu") if backends.why_missing(name) is None]
LINEAR = partial(ops.staircase_linear, unit_major=True)


@pytest.fixture(params=HERE)
def backend(request):
    with backends.using(request.param):
        yield request.param


def arranged(x):
    """``x`` [N, C] with its units one after the other."""
    return x.t().contiguous().t()


LAYOUTS = {"unit-major": arranged, "row-major": torch.Tensor.contiguous}


# ---- the products


@pytest.mark.parametrize("full_input_grad", [False, True], ids=["live", "full"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CASES)
def test_a_product_equals_the_dense_masked_layer(name, bias, full_input_grad):
    layer = Layer(CASES[name], bias=bias)
    for samples in (1, *SAMPLES):
        x = torch.randn(samples, len(layer.case.column_owners()), dtype=torch.float64)
        dy = torch.randn(samples, len(layer.case.row_owners()), dtype=torch.float64)
        expected = layer.by_hand(F.linear, x, full_input_grad=full_input_grad, dy=dy)
        for of_x in LAYOUTS.values():
            for of_dy in LAYOUTS.values():
                for op in (LINEAR, ops.staircase_linear):
                    results = layer.run(op, of_x(x), full_input_grad=full_input_grad, dy=of_dy(dy))
                    assert_same_results(results, expected, f"{samples} samples ")
                    rows = results["y"].shape[1]
                    assert results["y"].stride() == ((1, samples) if op is LINEAR else (max(rows, 1), 1))


def wide_case(generator):
    """As :func:`random_case`, of segments that are empty or of sixteen units and more."""
    tasks = generator.randint(1, 4)

    def sizes():
        return tuple(0 if generator.random() < 0.1 else generator.randint(16, 70) for _ in range(tasks + 1))

    case = random_case(generator, 2)
    (*into, live_in), (*out, live_out) = sizes(), sizes()
    nested = tuple(generator.random() < 0.7 for _ in range(tasks + 1))
    reads = generator.randint(16, 70) if generator.random() < 0.2 else (tuple(into), live_in, 1)
    return type(case)((reads,), tuple(out), live_out, nested)


def test_products_of_sixteen_units_and_more_have_the_bits_of_the_ordinary_layout():
    generator = random.Random(0)
    for _ in range(80):
        case = wide_case(generator)
        layer = Layer(case, bias=generator.random() < 0.5, dtype=torch.float32)
        x = torch.randn(generator.choice(SAMPLES), len(case.column_owners()))
        expected = ops.staircase_linear(x, layer.weights(), case.staircase())
        for name, of_x in LAYOUTS.items():
            given = LINEAR(of_x(x), layer.weights(), case.staircase())
            assert_same_bits(f"{case}, {name}, {len(x)} samples", given, expected)


def test_a_finished_segments_rows_are_the_same_bits_whatever_comes_after_them():
    """P1 and P3: in recall there is a prefix of the units, and of the input, in memory of their own."""
    generator = random.Random(1)
    compared = 0
    for _ in range(80):
        case = random_case(generator, 40)
        layer = Layer(case, dtype=torch.float32)
        x = torch.randn(generator.choice(SAMPLES), len(case.column_owners()))
        x[:, case.column_owners() == case.live_task] = float("nan")
        layer.weight.fill_(float("nan")), layer.bias.fill_(float("nan"))
        whole = LINEAR(arranged(x), layer.weights(), case.staircase())
        for task in range(case.live_task):
            prefix = x[:, : len(case.column_owners(task))]
            alone = LINEAR(arranged(prefix), layer.weights(), case.staircase(task))
            compared += alone.shape[1]
            assert alone.isfinite().all()
            assert_same_bits(f"{case}, task {task}", alone, whole[:, : alone.shape[1]])
    assert compared


# ---- product and normalisation in one, and the normalisation alone


def normalisation(case, dtype, affine=True):
    """Arguments of a normalisation of the case's rows: parameters, statistics, frozen numbers."""
    frozen, live = sum(case.frozen), case.live

    def random(size):
        return torch.randn(size, dtype=torch.float64).to(dtype)

    parameters = [random(live) + 2, random(live)] if affine else [None, None]
    if case.task is not None:
        frozen = len(case.row_owners())
    return [*parameters, random(live), random(live).abs() + 0.1, random(frozen), random(frozen)]


def run_norm(op, layer, x, norm, training, activation, full_input_grad, dy):
    """Output, gradients and statistics."""
    leaves = {"x": x.detach().requires_grad_(), "weight": layer.weight.clone().requires_grad_()}
    leaves["bias"] = None if layer.bias is None else layer.bias.clone().requires_grad_()
    leaves |= {f"norm_{n}": None if t is None else t.clone().requires_grad_() for n, t in zip(("w", "b"), norm)}
    statistics = [tensor.clone() for tensor in norm[2:4]]
    weights = ops.Weights(leaves["weight"], leaves["bias"], layer.frozen_weight, layer.frozen_bias)
    given = ops.Norm(leaves["norm_w"], leaves["norm_b"], *statistics, *norm[4:], training, 0.3, 1e-3, activation)
    y = op(leaves["x"], weights, layer.case.staircase(), given, full_input_grad)
    if y.requires_grad and y.numel():
        y.backward(dy)
    gradients = {f"d{name}": None if leaf is None else leaf.grad for name, leaf in leaves.items()}
    return {"y": y.detach(), "mean": statistics[0], "var": statistics[1], **gradients}


NORMED = partial(ops.staircase_linear_norm, unit_major=True)
STRUCTURES = (
    "nested",
    "disjoint",
    "mixed by segment",
    "empty segments",
    "no live row",
    "no live column",
    "nothing frozen",
    "all frozen",
    "single rows",
    "recall of the last",
)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_products_normalised_where_they_lie_equal_the_oracle(name, activation, backend):
    """float64 on the torch backend; the compiled one has float32 alone, and writes on what it reads."""
    dtype = torch.float64 if backend == "torch" else torch.float32
    generator = random.Random(name + activation)
    for samples in SAMPLES:
        layer = Layer(CASES[name], bias=generator.random() < 0.5, dtype=dtype)
        training, full_input_grad = generator.random() < 0.6, generator.random() < 0.5
        norm = normalisation(layer.case, dtype, affine=generator.random() < 0.7)
        x = torch.randn(samples, len(layer.case.column_owners()), dtype=dtype)
        dy = torch.randn(samples, len(layer.case.row_owners()), dtype=dtype)
        training = training and layer.case.task is None and layer.case.live > 0
        options = norm, training, activation, full_input_grad

        expected = run_norm(ops.staircase_linear_norm_oracle, layer, x, *options, dy)
        for (of_x, x_lies), of_dy in zip([*LAYOUTS.items()] * 2, [arranged, arranged, *[torch.clone] * 2]):
            given = run_norm(NORMED, layer, x_lies(x), *options, of_dy(dy))
            assert is_unit_major(given["y"])
            for key, value in expected.items():
                label = f"{samples} samples, {of_x}, training {training}, full_input_grad {full_input_grad}: {key}"
                if value is None or given[key] is None:
                    assert all(t is None or not t.any() for t in (value, given[key])), label
                else:
                    assert_close(label, given[key], value, condition=20 if dtype == torch.float32 else 1, least=1.0)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_one_op_has_the_bits_of_the_two_in_sequence_and_frozen_rows_of_their_prefix(activation, backend):
    """In place or not: N of 33 and 100 end within a vector, whose first values were already written."""
    generator = random.Random(2)
    for _ in range(6):
        case = random_case(generator, 40)
        layer, norm = Layer(case, dtype=torch.float32), normalisation(case, torch.float32)
        x = arranged(torch.randn(generator.choice(SAMPLES), len(case.column_owners())))
        training = case.live > 0 and generator.random() < 0.7
        rest = training, 0.3, 1e-3, activation

        z = LINEAR(x, layer.weights(), case.staircase())
        before = z.clone()
        expected = ops.segmented_batch_norm(z, ops.Norm(*(n.clone() for n in norm), *rest))
        assert is_unit_major(expected) or not expected.numel()
        assert_same_bits("what the norm was given", z, before)
        given = NORMED(x, layer.weights(), case.staircase(), ops.Norm(*(n.clone() for n in norm), *rest))
        assert_same_bits(f"{case}, {len(x)} samples", given, expected)

        for task in range(case.live_task):
            stairs, prefix = case.staircase(task), x[:, : len(case.column_owners(task))]
            affine = [n[: stairs.rows] for n in norm[4:]]
            cut = ops.Norm(*norm[:4], *affine, False, 0.0, 1e-3, activation)
            alone = NORMED(arranged(prefix), layer.weights(), stairs, cut)
            assert_same_bits(f"{case}, task {task}", alone, given[:, : stairs.rows])


@pytest.mark.parametrize("of_residual", LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_a_normalisation_and_its_residual_may_lie_differently(activation, of_x, of_residual, backend):
    dtype = torch.float64 if backend == "torch" else torch.float32
    frozen, live = 7, 5
    for samples in SAMPLES:
        for full_input_grad in (False, True):
            data = [torch.randn(samples, frozen + live, dtype=dtype) for _ in range(3)]
            norm = normalisation(type(CASES["nested"])((6,), (frozen,), live, (True, True)), dtype)
            results = []
            for op in (ops.segmented_batch_norm_oracle, ops.segmented_batch_norm):
                ours = op is ops.segmented_batch_norm
                x = (LAYOUTS[of_x](data[0]) if ours else data[0]).detach().requires_grad_()
                residual = (LAYOUTS[of_residual](data[1]) if ours else data[1]).detach().requires_grad_()
                leaves = [n.clone().requires_grad_() for n in norm[:2]]
                given = ops.Norm(*leaves, *(n.clone() for n in norm[2:]), True, 0.3, 1e-3, activation)
                y = op(x, given, residual, full_input_grad)
                y.backward(data[2])
                results.append([y.detach(), x.grad, residual.grad, *(leaf.grad for leaf in leaves)])
            assert is_unit_major(results[1][0]) == (of_x == "unit-major")
            for name, given, expected in zip(("y", "dx", "dresidual", "dweight", "dbias"), *reversed(results)):
                assert_close(f"{name} of {samples}", given, expected, condition=20 if dtype == torch.float32 else 1)


def test_a_single_sample_is_normalised_where_it_lies(backend):
    """Its units are one after the other in either layout."""
    layer = Layer(CASES["all frozen"], dtype=torch.float32)
    norm, x = normalisation(layer.case, torch.float32), torch.randn(1, 5)
    norm[4:] = [torch.randn(6), torch.randn(6)]
    rest = layer.case.staircase(), ops.Norm(*norm, False, 0.0, 1e-3, "silu")
    given = ops.staircase_linear_norm(x, layer.weights(), *rest, unit_major=True)
    assert_same_bits("one sample", given, ops.staircase_linear_norm(x, layer.weights(), *rest))


# ---- nothing is copied


class Copies(TorchDispatchMode):
    """Which copies torch makes, and what is allocated: how many numbers each."""

    def __init__(self):
        super().__init__()
        self.made, self.allocated = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        result = function(*args, **(kwargs or {}))
        if name in ("cat", "clone", "copy_", "_to_copy", "contiguous", "index_select"):
            self.made.append((name, result.numel()))
        elif name in ("empty", "new_empty", "empty_like"):
            self.allocated.append(result.numel())
        return result


def test_products_write_their_part_of_one_output_and_read_prefixes_as_they_lie(backend):
    samples, frozen = 64, (16, 32)  # every part begins on a cache line
    layer = Layer(type(CASES["nested"])(((frozen, 16, 1),), frozen, 16, (True, True, True)), dtype=torch.float32)
    norm = normalisation(layer.case, torch.float32)
    stairs = encoded(layer.case.staircase())
    x, held = arranged(torch.randn(samples, 64)), (*layer.weights(), stairs, 64)
    with torch.no_grad(), Copies() as copies:
        y = linear.OP.run(x, *held, False, True)
    assert copies.made == [] and copies.allocated == [y.numel()] and is_unit_major(y)
    with torch.no_grad(), Copies() as copies:
        y, pre, *_ = linear_norm.OP.run(x, *held, *norm, True, 0.1, 1e-3, "relu", False, 0, None, True)
    assert is_unit_major(y) and is_unit_major(pre)
    assert copies.allocated.count(y.numel()) == 1, "the products, and in their place what they are normalised to"
    # The live product, which the backward pass reads again; torch's own normalisation is written beside it.
    assert [name for name, _ in copies.made].count("clone") == 1
    assert [name for name, _ in copies.made if name != "clone"] == ([] if backend == "cpu" else ["copy_"])
    assert all(size == 16 * samples for _, size in copies.made), copies.made


# ---- which layers ask for it


class Deep(ek.EideticNetwork):
    """A layer with its own norm, a layer and its norm apart, and a bare one."""

    example = (6,)

    def __init__(self, widths=(40, 36, 34), dropout=0.5):
        super().__init__()
        first, second, third = widths
        self.first = ek.EideticLinear(6, first, norm=ek.EideticBatchNorm1d(first, activation="silu"))
        self.second, self.norm = ek.EideticLinear(first, second, bias=False), ek.EideticBatchNorm1d(second)
        self.drop, self.third = nn.Dropout(dropout), ek.EideticLinear(second, third)

    def forward(self, x):
        return F.gelu(self.third(self.drop(F.relu(self.norm(self.second(self.first(x)))))))


def outputs(net, x, task=None):
    """{path: output} of every layer in a forward pass."""
    found = {}
    handles = [
        layer.register_forward_hook(lambda _m, _i, y, path=path: found.__setitem__(path, y))
        for path, layer in net.named_modules()
        if isinstance(layer, (ek.EideticLinear, ek.EideticBatchNorm1d, nn.Linear))
    ]
    net(x) if task is None else net(x, task=task)
    for handle in handles:
        handle.remove()
    return found


HIDDEN = ("first", "second", "norm", "third")


def test_hidden_units_lie_so_once_a_task_is_finished_and_answers_never_do():
    net = Deep()
    net.prepare_for_task(0, CLASSES)
    train(net, torch.optim.SGD(net.parameters(), 0.1))
    for samples in (UNIT_MAJOR_FROM, 100):
        assert all(y.is_contiguous() for y in outputs(net, batch(net, samples)[0]).values())
    net.prune(0.5)
    net.finish_task()
    learn(net, 1, max_units=0.3)
    net.prepare_for_task(2, CLASSES)
    for mode, task in (("train", None), ("eval", None), ("eval", 0), ("eval", 1)):
        net.train(mode == "train")
        for samples in (2, UNIT_MAJOR_FROM - 1, UNIT_MAJOR_FROM, 33, 100):
            made = outputs(net, batch(net, samples)[0], task)
            for name in HIDDEN:
                large = samples >= UNIT_MAJOR_FROM
                assert made[name].stride() == ((1, samples) if large else (made[name].shape[1], 1)), (name, samples)
                assert made[name].view(samples, -1).shape == made[name].shape
            (head,) = (y for path, y in made.items() if path.startswith("heads"))
            assert head.is_contiguous() and head.shape == (samples, CLASSES)


@pytest.mark.parametrize("way", ["loading", "deepcopy", "widening", "snapshot", "converting"])
def test_answers_are_contiguous_however_the_network_came_to_be(way, tmp_path):
    if way == "converting":
        plain = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, CLASSES))
        net = ek.convert(plain, torch.randn(2, 6))
        net.example = (6,)
        net.prune(0.5)
        net.finish_task()
    else:
        net = Deep()
        learn(net, 0)
    learn(net, 1)

    memory = Memory(net)
    memory.note(net)
    net.prepare_for_task(2, CLASSES)
    if way == "loading":
        net.save(tmp_path / "net")
        net = ek.EideticNetwork.load(tmp_path / "net")
    elif way == "deepcopy":
        net = copy.deepcopy(net)
    elif way == "widening":
        net.widen({group.name: group.segments.width + 4 for group in net.groups})
    elif way == "snapshot":
        snapshot = net.snapshot()
        net.prune(0.5)
        net.restore(snapshot)

    memory.check(net, way)
    x = batch(net, 50)[0]
    assert net.eval()(x).is_contiguous()
    for task in range(2):
        assert recall(net, x, task).is_contiguous()
        found = outputs(net.eval(), x, task)
        assert any(is_unit_major(y) for path, y in found.items() if not path.startswith("heads"))


def test_layers_outside_a_network_and_compiled_ones_have_torchs_layout():
    layer = ek.EideticLinear(6, 20)
    assert layer(torch.randn(50, 6)).is_contiguous()
    net = Deep(dropout=0.0)
    learn(net, 0, max_units=0.5)
    net.prepare_for_task(1, 3)  # finished tasks are recalled as Python
    x, seen = batch(net, 50)[0], []
    with torch.no_grad():
        ordinary = net.eval()(x)

    def strides(graph, _):
        for node in graph.graph.nodes:
            made = node.meta.get("example_value")
            seen.append(made.stride() if isinstance(made, torch.Tensor) and made.dim() == 2 else None)
        return graph.forward

    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(net, backend=strides)(x)
    torch.compiler.reset()
    assert any(seen) and (1, 50) not in seen
    assert_close("compiled", compiled, ordinary)


# ---- a network's life with it


def steps_of(net, x, y, how_many=2):
    """Losses, and gradients after the last step."""
    optimizer, losses = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9), []
    for _ in range(how_many):
        optimizer.zero_grad()
        torch.manual_seed(5)
        loss = loss_of(net.train(), x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), {name: p.grad for name, p in net.named_parameters() if p.numel()}


class Joined(ek.EideticNetwork):
    """What people do between layers: residual additions, concatenation, halves, shapes, softmax."""

    example = (6,)

    def __init__(self, width=24):
        super().__init__()
        self.stem = ek.EideticLinear(6, width)
        self.inner, self.outer = ek.EideticLinear(width, 20), ek.EideticLinear(20, width)
        self.norm = ek.EideticBatchNorm1d(width, activation="hardswish")
        self.left, self.right = ek.EideticLinear(width, 18), ek.EideticLinear(width, 18)
        self.both = ek.EideticBatchNorm1d(36)
        self.drop = nn.Dropout(0.3)
        self.last = ek.EideticLinear(36, 20, norm=ek.EideticBatchNorm1d(20))

    def forward(self, x):
        x = F.silu(self.stem(x).contiguous())  # of the other layout than what is added to it
        x = self.norm(self.outer(F.relu(self.inner(x).reshape(x.shape[0], -1))), x)
        x = torch.cat([self.left(x) * 2.0, torch.sigmoid(self.right(x))], 1)
        return F.relu(self.last(self.drop(F.elu(self.both(x)))))


class Flattened(ek.EideticNetwork):
    """Linear units after a convolution's, flattened by a view."""

    example = (2, 4, 4)

    def __init__(self):
        super().__init__()
        self.conv = ek.EideticConv2d(2, 6, 3, padding=1)
        self.first, self.second = ek.EideticLinear(96, 20), ek.EideticLinear(20, 18)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = F.relu(self.first(x.view(x.size(0), -1)))
        return F.relu(self.second(x.view(x.size(0), -1)).flatten(1))


NETWORKS = {"deep": lambda: Deep(dropout=0.0), "joined": Joined, "flattened": Flattened}


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_training_equals_the_ordinary_layouts(name, how, monkeypatch):
    """Losses and gradients in float64, and the promises on the way; dropout, whose random numbers follow memory, only
    where units are side by side again."""
    results = []
    for ordinary in (False, True):
        torch.manual_seed(0)
        net = NETWORKS[name]().double()
        if ordinary:
            monkeypatch.setattr(ek.EideticLinear, "_unit_major", lambda self, x: False)
        memory = Memory(net)
        for task in range(2):
            learn(net, task, how)
            memory.note(net)
        net.prepare_for_task(2, CLASSES, reading(net, how, 2))
        losses, gradients = steps_of(net, *batch(net, 37))
        memory.check(net, "training")
        poison(net)
        memory.check(net, "poison")
        results.append({"losses": losses, **gradients})
    for key, expected in results[1].items():
        assert_close(key, results[0][key], expected, condition=1000, least=1e-3)


@pytest.mark.parametrize("live", [0, 1, 3])
@pytest.mark.parametrize("frozen", [1, 3])
@pytest.mark.parametrize("way", ["unit-major", "row-major", "channels_last"])
def test_what_is_dropped_out_lies_as_it_did(way, frozen, live):
    """Also a part of a single unit, which lies both ways: what reads it would have other bits in training (P5)."""
    drop = EideticDropout(0.5)
    drop.wire((Source(Segments(frozen + live, live, (frozen,))), Source(Segments(1 + live, live, (1,)))), drop.scope)
    x = torch.randn(40, frozen + 1 + 2 * live)
    if way == "channels_last":
        x = torch.randn(3, x.shape[1], 4, 4).contiguous(memory_format=torch.channels_last)
    else:
        x = LAYOUTS[way](x)
    y = drop.train()(x)
    assert y.stride() == x.stride() and y.shape == x.shape
    for kept in (slice(0, frozen), slice(frozen + live, frozen + live + 1)):
        assert_same_bits("frozen", y[:, kept], x[:, kept])
    assert not live or (y != x).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_an_inputs_gradient_is_the_ordinary_layouts(name, monkeypatch):
    net = NETWORKS[name]().double()
    for task in range(2):
        learn(net, task)
    net.prepare_for_task(2, CLASSES)
    x, grads = batch(net, 40)[0], []
    for _ in range(2):
        for task in (None, 0, 1):
            leaf = x.clone().requires_grad_()
            (net.eval()(leaf) if task is None else net(leaf, task=task)).square().sum().backward()
            grads.append(leaf.grad)
        monkeypatch.setattr(ek.EideticLinear, "_unit_major", lambda self, x: False)
    for given, expected in zip(grads[:3], grads[3:]):
        assert given.any()
        assert_close("gradient", given, expected, condition=10)


def test_ones_own_parameters_and_half_precision_pass_through():
    net = Deep(dropout=0.0)
    for task in range(2):
        learn(net, task)
    net.prepare_for_task(2, CLASSES)
    x, y = batch(net, 40)
    expected, gradients = steps_of(copy.deepcopy(net), x, y, 1)

    with torch.autocast("cpu", torch.bfloat16):
        made = outputs(copy.deepcopy(net).train(), x)
        half = loss_of(net, x, y)
    assert made["first"].dtype == torch.bfloat16 and is_unit_major(made["first"])
    half.backward()
    assert_close("loss under autocast", half.detach().float(), expected[0], condition=1e4)
    for name, p in net.named_parameters():
        assert p.numel() == 0 or p.grad.isfinite().all(), name

    memory = [recall(net, x, task) for task in range(2)]
    with torch.inference_mode():
        for task in range(2):
            assert_same_bits("inference mode", net.eval()(x, task=task).clone(), memory[task])
    called = torch.func.functional_call(net.eval(), dict(net.named_parameters()), (x,), {"task": 1})
    assert_same_bits("functional_call", called, memory[1])


def test_a_second_derivative_is_refused_as_ever():
    net = Deep(dropout=0.0)
    learn(net, 0)
    net.prepare_for_task(1, CLASSES)
    for samples in (8, 40):
        x, y = batch(net, samples)
        grads = torch.autograd.grad(loss_of(net.train(), x, y), [net.third.weight], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable|does not require grad|twice"):
            grads[0].square().sum().backward()
