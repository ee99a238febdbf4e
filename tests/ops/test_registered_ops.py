"""The ops as torch sees them: opcheck, torch.compile of ops and of whole networks, and how often that compiles."""

import copy
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from fused_networks import Small
from slow import slow
from small_networks import MLP, FlatResidual
from staircases import CASES, Layer
from tolerances import assert_close, assert_same_bits
from torch._dynamo.backends.registry import lookup_backend

from eidetic_kernels import backends
from eidetic_kernels.layout import Segments, Source, Staircase, staircase
from eidetic_kernels.ops import Geometry, batch_norm, conv2d, conv2d_norm, linear, linear_norm
from eidetic_kernels.ops.registration import decoded, encoded

pytestmark = pytest.mark.filterwarnings("ignore:.*(deprecated|Deprecat|non-tuple).*", "ignore::UserWarning:torch")
GEOMETRY = Geometry((2, 1), (1, 0), (1, 1))
# What torch.compile needs to know that a network's sizes change: see docs/backends.md.
SIZES_CHANGE = {
    "force_parameter_static_shapes": False,
    "allow_unspec_int_on_nn_module": True,
}


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    with backends.using("torch"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_a_staircase_survives_its_encoding(name):
    stairs = CASES[name].staircase()
    assert Staircase.decode(stairs.encode()) == stairs
    numbers = encoded(stairs)
    assert numbers.dtype == torch.int64 and numbers.device.type == "cpu" and encoded(stairs) is numbers
    assert decoded(numbers) == stairs and decoded(numbers.clone()).rows == stairs.rows


# ---- opcheck: schema, fake tensors, autograd registration, AOT dispatch


def leaf(*shape):
    return torch.randn(*shape).requires_grad_()


def linear_arguments(name="mixed by segment", full_input_grad=False, bias=True, unit_major=False):
    layer = Layer(CASES[name], dtype=torch.float32, bias=bias)
    stairs = layer.case.staircase()
    weight, bias = layer.weight.requires_grad_(), None if layer.bias is None else layer.bias.requires_grad_()
    x = leaf(stairs.columns, 4).detach().t().requires_grad_() if unit_major else leaf(4, stairs.columns)
    return [
        x,
        weight,
        bias,
        layer.frozen_weight,
        layer.frozen_bias,
        encoded(stairs),
        stairs.rows,
        full_input_grad,
        unit_major,
    ]


def conv_arguments(layout, name="mixed by segment"):
    layer = Layer(CASES[name], kernel=(3, 2), dtype=torch.float32)
    stairs = layer.case.staircase()
    x = torch.randn(2, stairs.columns, 5, 6).contiguous(memory_format=layout).requires_grad_()
    weight, bias = layer.weight.requires_grad_(), layer.bias.requires_grad_()
    return [x, weight, bias, layer.frozen_weight, layer.frozen_bias, encoded(stairs), stairs.rows, False, *GEOMETRY]


def norm_arguments(channels, shape, activation, training, residual, affine=True, layout=torch.contiguous_format):
    frozen, live = channels
    x = torch.randn(shape[0], frozen + live, *shape[1:])
    x = x.contiguous(memory_format=layout) if x.dim() == 4 else x
    other = torch.randn_like(x).requires_grad_() if residual else None
    weight, bias = (leaf(live), leaf(live)) if affine else (None, None)

    return [
        x.requires_grad_(),
        other,
        weight,
        bias,
        torch.randn(live),
        torch.rand(live),
        torch.randn(frozen),
        torch.randn(frozen),
        training,
        0.1,
        1e-5,
        activation,
        False,
    ]


def linear_norm_arguments(name="nested", activation="relu", training=True, full_input_grad=False, unit_major=False):
    x, weight, bias, frozen_weight, frozen_bias, numbers, rows, *_ = linear_arguments(name, unit_major=unit_major)
    frozen = decoded(numbers).frozen_rows
    live = rows - frozen

    return [
        x,
        weight,
        bias,
        frozen_weight,
        frozen_bias,
        numbers,
        rows,
        leaf(len(weight)),
        leaf(len(weight)),
        torch.randn(live),
        torch.rand(live),
        torch.randn(frozen),
        torch.randn(frozen),
        training,
        0.1,
        1e-5,
        activation,
        full_input_grad,
        0,
        None,
        unit_major,
    ]


def conv_norm_arguments(
    layout=torch.contiguous_format, name="nested", activation="relu", full_input_grad=False, residual=True
):
    x, weight, bias, frozen_weight, frozen_bias, numbers, rows, *_ = conv_arguments(layout, name)
    frozen = decoded(numbers).frozen_rows
    live = rows - frozen
    added = torch.randn(conv2d.output_shape(x, weight.shape[2:], rows, GEOMETRY)).requires_grad_() if residual else None

    return [
        x,
        weight,
        bias,
        frozen_weight,
        frozen_bias,
        numbers,
        rows,
        leaf(len(weight)),
        leaf(len(weight)),
        torch.randn(live),
        torch.rand(live),
        torch.randn(frozen),
        torch.randn(frozen),
        True,
        0.1,
        1e-5,
        activation,
        full_input_grad,
        0,
        added,
        *GEOMETRY,
    ]


def detached(arguments):
    return [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]


def check(op, arguments):
    assert set(torch.library.opcheck(op.registered, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("unit_major", [*slow(False), True])
@pytest.mark.parametrize("name", ["nothing frozen", "mixed by segment", "empty segments", "all frozen"])
def test_opcheck_linear(name, unit_major):
    for full_input_grad, bias in ((False, True), (True, False)):
        arguments = linear_arguments(name, full_input_grad, bias, unit_major)
        check(linear.OP, arguments)
        x, weight, _, frozen_weight, _, numbers, *_ = detached(arguments)
        dy = torch.randn_like(linear.OP(*detached(arguments)))
        assert dy.stride() == ((1, len(x)) if unit_major else (dy.shape[1], 1))
        check(
            linear.BACKWARD_OP,
            [dy, x, weight, frozen_weight, numbers, full_input_grad, True, not full_input_grad, bias, unit_major],
        )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck_conv2d(layout):
    arguments = conv_arguments(layout)
    check(conv2d.OP, arguments)
    x, weight, _, frozen_weight, _, numbers, _, _, *geometry = detached(arguments)
    dy = conv2d.OP(*detached(arguments))
    assert dy.is_contiguous(memory_format=layout)
    check(conv2d.BACKWARD_OP, [dy, x, weight, frozen_weight, numbers, False, True, True, False, *geometry])


@pytest.mark.parametrize(
    "options",
    [
        {"channels": (3, 4), "shape": (5,), "activation": "relu", "training": True, "residual": True},
        {"channels": (0, 4), "shape": (3, 4), "activation": "gelu", "training": True, "residual": False},
        {"channels": (3, 0), "shape": (3, 2, 2), "activation": "none", "training": False, "residual": True},
        {
            "channels": (3, 4),
            "shape": (2, 3, 2),
            "activation": "silu",
            "training": True,
            "residual": True,
            "affine": False,
            "layout": torch.channels_last,
        },
    ],
    ids=lambda options: options["activation"],
)
def test_opcheck_batch_norm(options):
    arguments = norm_arguments(**options)
    check(batch_norm.OP, arguments)

    x, residual, weight, bias, *_, scale, shift, training, _, _, activation, _ = detached(arguments)
    y, mean, rstd = batch_norm.OP(*detached(arguments))
    assert y.stride() == x.stride()

    for full_input_grad, need_dx in ((False, True), (True, residual is None)):
        check(
            batch_norm.BACKWARD_OP,
            [
                torch.randn_like(y),
                y,
                x,
                residual,
                weight,
                bias,
                mean,
                rstd,
                scale,
                shift,
                training,
                activation,
                full_input_grad,
                need_dx,
                residual is not None,
            ],
        )


@pytest.mark.parametrize("unit_major", [*slow(False), True])
@pytest.mark.parametrize("name", ["nothing frozen", "nested", "all frozen"])
def test_opcheck_linear_norm(name, unit_major):
    for activation, full_input_grad in (("relu", False), ("silu", True)):
        arguments = linear_norm_arguments(name, activation, full_input_grad=full_input_grad, unit_major=unit_major)
        check(linear_norm.OP, arguments)

        x, weight, bias, fw, fb, numbers, _, nw, nb, _, _, scale, shift, training, *_ = detached(arguments)
        y, pre, mean, rstd = linear_norm.OP(*detached(arguments))
        check(
            linear_norm.BACKWARD_OP,
            [
                torch.randn_like(y),
                y,
                x,
                weight,
                bias,
                fw,
                fb,
                numbers,
                pre,
                nw,
                nb,
                mean,
                rstd,
                scale,
                shift,
                training,
                activation,
                full_input_grad,
                0,
                True,
                True,
                False,
                None,
                False,
                unit_major,
            ],
        )


@pytest.mark.parametrize(
    ("name", "layout", "activation", "full_input_grad", "residual"),
    [
        ("nothing frozen", torch.contiguous_format, "none", True, True),
        ("nested", torch.channels_last, "relu", False, True),
        ("mixed by segment", torch.contiguous_format, "silu", True, False),
        ("all frozen", torch.channels_last, "silu", True, True),
    ],
)
def test_opcheck_conv2d_norm(name, layout, activation, full_input_grad, residual):
    arguments = conv_norm_arguments(layout, name, activation, full_input_grad, residual)
    check(conv2d_norm.OP, arguments)

    x, weight, bias, fw, fb, numbers, _, nw, nb, _, _, scale, shift, *_, added, _, _, _ = detached(arguments)
    y, pre, mean, rstd = conv2d_norm.OP(*detached(arguments))
    assert y.is_contiguous(memory_format=layout)
    check(
        conv2d_norm.BACKWARD_OP,
        [
            torch.randn_like(y),
            y,
            x,
            weight,
            bias,
            fw,
            fb,
            numbers,
            pre,
            nw,
            nb,
            mean,
            rstd,
            scale,
            shift,
            True,
            activation,
            full_input_grad,
            0,
            full_input_grad,
            True,
            False,
            added,
            residual,
            *GEOMETRY,
        ],
    )


def test_running_statistics_are_the_only_arguments_that_change():
    for op in (batch_norm.OP, linear_norm.OP, conv2d_norm.OP):
        arguments = op.registered._schema.arguments
        written = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
        assert written == ["running_mean", "running_var"]


def test_eager_calls_and_dispatched_calls_have_the_same_bits():
    """An eager call passes the dispatcher by; both ways are one implementation and one gradient."""
    makers = {linear: linear_arguments, linear_norm: linear_norm_arguments, conv2d_norm: conv_norm_arguments}
    for op, make in ((module.OP, make) for module, make in makers.items()):
        results = []
        for call in (op, op.registered):
            torch.manual_seed(0)
            arguments = make()
            y = call(*arguments)
            y = y if isinstance(y, torch.Tensor) else y[0]
            y.square().sum().backward()
            tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
            results.append([y, *[a.grad if a.requires_grad else a for a in tensors]])
        for number, (ours, theirs) in enumerate(zip(*results)):
            assert torch.equal(ours, theirs), (op.name, number)


# ---- torch.compile


class Counting:
    """A backend of torch.compile that counts what it is given."""

    def __init__(self, name):
        self.inner, self.count, self.given = lookup_backend(name), 0, set()

    def __call__(self, graph, inputs):
        self.count += 1
        self.given.update(node.name for node in graph.graph.find_nodes(op="placeholder"))
        return self.inner(graph, inputs)


def block(x, weight, bias, frozen_weight, numbers, rows, norm_weight, norm_bias, mean, var, scale, shift):
    """All ops on [N, K]: a product, its normalisation, and the two in one."""
    frozen_bias = torch.zeros_like(scale)
    z = torch.ops.eidetic.staircase_linear(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, False, False)
    norm = norm_weight, norm_bias, mean, var, scale, shift
    y, *_ = torch.ops.eidetic.segmented_batch_norm(z, None, *norm, True, 0.1, 1e-5, "relu", False)

    both, *_ = torch.ops.eidetic.staircase_linear_norm(
        x,
        weight,
        bias,
        frozen_weight,
        frozen_bias,
        numbers,
        rows,
        *norm,
        True,
        0.1,
        1e-5,
        "gelu",
        False,
        0,
        None,
        False,
    )
    return y * 2 + both


def block_arguments(output, source, seed):
    torch.manual_seed(seed)
    stairs = staircase(output, (Source(source),), (True,) * (output.tasks + 1), None)
    frozen, live = stairs.frozen_rows, output.live
    return [
        leaf(16, stairs.columns),
        leaf(live, stairs.columns),
        leaf(live),
        torch.randn(sum(stair.rows * stair.columns for stair in stairs.frozen)),
        encoded(stairs),
        stairs.rows,
        leaf(live),
        leaf(live),
        torch.randn(live),
        torch.rand(live),
        torch.randn(frozen),
        torch.randn(frozen),
    ]


@pytest.mark.parametrize(("name", "tasks"), [("aot_eager", 14), pytest.param("inductor", 2, marks=pytest.mark.slow)])
def test_ops_compile_a_few_times_for_any_number_of_tasks(name, tasks):
    if name == "inductor" and not shutil.which("g++"):
        pytest.skip("inductor needs a C++ compiler")
    backend = Counting(name)
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    output, source = Segments(400, 10), Segments(400, 9)
    for task in range(tasks):
        results = []
        for call in (block, compiled):
            arguments = block_arguments(output, source, task)
            y = call(*arguments)
            y.square().sum().backward()
            leaves = [a for a in arguments if isinstance(a, torch.Tensor) and a.is_floating_point()]
            results.append([y, *leaves, *[a.grad for a in leaves if a.requires_grad]])
        for number, (eager, other) in enumerate(zip(*results)):
            assert_close(f"{number} of task {task}", other, eager)
        output.freeze(), source.freeze()
        output.recycle(10 + task), source.recycle(9)
    assert backend.count <= 4


@pytest.mark.slow
def test_convolutions_and_images_compile():
    def images(arguments, norm):
        z = torch.ops.eidetic.staircase_conv2d(*arguments)
        return torch.ops.eidetic.segmented_batch_norm(z, z, *norm, True, 0.1, 1e-5, "silu", False)[0]

    compiled = torch.compile(images, fullgraph=True, backend="aot_eager")
    for layout in (torch.contiguous_format, torch.channels_last):
        for name in ("mixed by segment", "nothing frozen"):
            results = []
            for call in (images, compiled):
                torch.manual_seed(0)
                arguments = conv_arguments(layout, name)
                rows, frozen = arguments[6], decoded(arguments[5]).frozen_rows
                live = rows - frozen
                y = call(
                    arguments,
                    [
                        leaf(live),
                        leaf(live),
                        torch.randn(live),
                        torch.rand(live),
                        torch.randn(frozen),
                        torch.randn(frozen),
                    ],
                )
                y.square().sum().backward()
                results.append([y, *(a.grad for a in arguments[:3])])
            for eager, other in zip(*results):
                assert other.stride() == eager.stride()
                assert_close(name, other, eager)


def image_block(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, *rest):
    """A convolution with its norm, which adds a residual that needs a gradient."""
    *norm, _, stride, padding, dilation = rest
    z = torch.ops.eidetic.staircase_conv2d(
        x, weight, bias, frozen_weight, frozen_bias, numbers, rows, False, stride, padding, dilation
    )
    return torch.ops.eidetic.staircase_conv2d_norm(
        x, weight, bias, frozen_weight, frozen_bias, numbers, rows, *norm, z, stride, padding, dilation
    )[0]


@pytest.mark.slow
def test_convolutions_with_norms_compile_a_few_times_for_any_number_of_tasks():
    backend = Counting("aot_eager")
    compiled = torch.compile(image_block, fullgraph=True, backend=backend)
    for tasks in range(1, 13):
        output = Segments(400, 10 + tasks, tuple(range(2, 2 + tasks)))
        stairs = staircase(output, (Source(output),), (True,) * (tasks + 1), None)
        frozen, live = stairs.frozen_rows, output.live

        results = []
        for call in (image_block, compiled):
            torch.manual_seed(tasks)
            arguments = [
                leaf(3, stairs.columns, 5, 4),
                leaf(live, stairs.columns, 3, 3),
                leaf(live),
                torch.randn(sum(stair.rows * stair.columns for stair in stairs.frozen) * 9),
                torch.randn(frozen),
                encoded(stairs),
                stairs.rows,
                leaf(live),
                leaf(live),
                torch.randn(live),
                torch.rand(live),
                torch.randn(frozen),
                torch.randn(frozen),
                True,
                0.1,
                1e-5,
                "relu",
                False,
                0,
                None,
                (1, 1),
                (1, 1),
                (1, 1),
            ]

            y = call(*arguments)
            y.square().sum().backward()
            leaves = [a for a in arguments if isinstance(a, torch.Tensor) and a.is_floating_point()]
            results.append([y, *leaves, *[a.grad for a in leaves if a.requires_grad]])

        for number, (eager_result, other) in enumerate(zip(*results)):
            assert_close(f"{number} with {tasks} tasks", other, eager_result, least=1.0)
    assert backend.count <= 4


def eager(net):
    twin = copy.deepcopy(net)
    twin._compiled_call_impl = None
    return twin


def live_one_life(net, tasks, count):
    """Train and recall task after task, beside an eager twin; the numbers of compilations after each task."""
    counts = []
    for task in range(tasks):
        net.prepare_for_task(task, 3, max_units=10 + task)
        for step in range(2):
            net.train()
            x, twin = torch.randn(6 + step, *net.example), eager(net)
            y, expected = net(x), twin(x)
            assert_close(f"training {task}", y, expected)
            y.square().sum().backward(), expected.square().sum().backward()
            for (name, ours), (_, theirs) in zip(net.named_parameters(), twin.named_parameters()):
                assert_close(name, ours.grad, theirs.grad)
            for (name, ours), (_, theirs) in zip(net.named_buffers(), twin.named_buffers()):
                assert torch.equal(ours, theirs) or ours.is_floating_point(), name
            net.zero_grad()
            net.prune(0.2)

        net.finish_task()
        net.eval()
        with torch.no_grad():
            for known in range(task + 1):
                assert_same_bits(f"recall of {known}", net(x, task=known), eager(net)(x, task=known))
        counts.append(count())
    return counts


@pytest.mark.slow
def test_a_compiled_network_survives_its_tasks():
    """With torch told that sizes change, neither pruning nor new tasks nor recall compile again."""
    backend = Counting("aot_eager")
    net = MLP(widths=(80, 70), dropout=0.0)
    with torch._dynamo.config.patch(SIZES_CHANGE):
        net.compile(fullgraph=True, backend=backend)
        counts = live_one_life(net, 4, lambda: backend.count)
    assert counts[-1] <= 5 and counts[-1] == counts[2], counts
    # A number that changes is no input of the graph: inductor may use it by a name that it does not define.
    assert backend.given and not [name for name in backend.given if name.endswith("rows")]


@pytest.mark.skipif(not os.environ.get("EIDETIC_SOAK"), reason="takes a minute: EIDETIC_SOAK=1")
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("make", [lambda: MLP((80, 70), dropout=0.0), lambda: FlatResidual(80, 70, dropout=0.0), Small])
def test_a_network_compiled_by_inductor_survives_its_tasks(make):
    backend, net = Counting("inductor"), make()
    net.widen(80)
    with torch._dynamo.config.patch(SIZES_CHANGE):
        net.compile(fullgraph=True, backend=backend)
        counts = live_one_life(net, 3, lambda: backend.count)
    assert counts[-1] <= 6, counts


def test_the_page_on_backends_names_the_settings_that_were_tested():
    page = (Path(__file__).parents[2] / "docs" / "backends.md").read_text(encoding="utf-8")
    named = set(re.findall(r"torch\._dynamo\.config\.(\w+ = \w+)", page))
    assert named == {f"{name} = {value}" for name, value in SIZES_CHANGE.items()}


@pytest.mark.slow
def test_without_those_settings_a_network_compiles_again_at_each_change_and_stays_right():
    backend = Counting("aot_eager")
    net = MLP(widths=(40, 30), dropout=0.0)
    with torch._dynamo.config.patch(recompile_limit=64):
        net.compile(fullgraph=True, backend=backend)
        counts = live_one_life(net, 2, lambda: backend.count)
    assert counts[1] > counts[0] >= 2


def test_torch_compile_of_the_network_itself():
    """The wrapper works too: what surrounds forward stays Python."""
    net = MLP(widths=(12, 10), dropout=0.0)
    net.prepare_for_task(0, 3)
    x = torch.randn(6, 6)
    expected = eager(net)(x)
    assert_close("training", torch.compile(net, backend="aot_eager")(x), expected)
