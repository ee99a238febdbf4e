"""Every public call of ``eidetic_kernels``, with good arguments and the kind of each; see :mod:`odd_arguments`."""

import copy
import functools

import numpy as np
import torch
from life import batch, digest, learn
from odd_arguments import (
    Door,
    anything,
    by_name,
    count_or_share,
    device,
    dtype,
    either,
    flag,
    iterable,
    kind,
    named,
    optional,
    pair_of,
    path,
    real,
    sequence_of,
    share,
    tensor,
    text,
    whole,
)
from published_states import PublishedState
from small_networks import MLP, ConvNet, Joined
from torch import nn
from torch.optim import Optimizer

import eidetic_kernels as ek
from eidetic_kernels.tasks.importance import IMPORTANCES, NORMS
from eidetic_kernels.tasks.pruning import COUNTED, GroupPlan
from eidetic_kernels.tasks.routing import RULES
from eidetic_kernels.wiring.rules import registry

RATE = {"lr": 0.1}
GROUPS = ("body.0", "body.4")
PADDINGS = either(pair_of(0), named("same", "valid"))
MODES = ("zeros", "reflect", "replicate", "circular")


@functools.cache
def _made(state):
    torch.manual_seed(0)
    net = MLP((7, 6))
    if state == "new":
        net(batch(net)[0]) if net.current_task is not None else net.wiring
    elif state == "live":  # a task is finished, and another in training
        learn(net, 0, max_units=0.4)
        net.prepare_for_task(1, 3, max_units=0.4)
        net(batch(net)[0])
    elif state == "headless":
        net.prepare_for_task(0)
    else:  # two tasks finished, and a router
        for task in range(2):
            learn(net, task, max_units=0.4)
        net.train_router([[batch(net, seed=task)] for task in range(2)], max_epochs=1)
        net.eval()
    return net


def network(state):
    """A copy of a small network: "new", "live", "headless" or "finished"."""
    return copy.deepcopy(_made(state))


def of_network(state, name, good=None, kinds=None, optimizer=False, **more):
    """The door of a network's method. ``good``: arguments by name, or a function of the network that gives them."""

    def ready():
        net = network(state)
        arguments = good(net) if callable(good) else dict(good or {})
        watched = torch.optim.SGD(net.parameters(), **RATE) if optimizer else None
        if optimizer:
            arguments["optimizer"] = watched
        return getattr(net, name), arguments, lambda: digest(net, watched)

    return Door(ready, kinds or {}, **more)


def made(call, kinds, /, left_out=(), **good):
    """The door of a constructor."""
    names = {"padding_mode": MODES, "activation": ("none", "relu", "hardswish"), "mode": ("row", "batch")}
    return Door(lambda: (call, dict(good), None), kinds, {k: v for k, v in names.items() if k in kinds}, left_out)


def ran(make, *inputs, **kinds):
    """The door of a layer's forward, or of another method of it (``inputs`` are the good arguments by name)."""
    name, good = inputs

    def ready():
        torch.manual_seed(0)
        layer = make()
        return getattr(layer, name), dict(good), lambda: _bits(layer)

    return Door(ready, kinds, left_out={"computed", "residual"} - set(kinds))


def _bits(layer):
    state = {name: each.detach().clone().numpy().tobytes() for name, each in layer.state_dict().items()}
    return state, [repr(each.segments) for each in layer.modules() if hasattr(each, "segments")]


def _optimizers(v):
    return isinstance(v, Optimizer)


_OPTIMIZER = optional(_optimizers)
_TASK = whole(-1, 5)
_PLACE = {"device": device, "dtype": dtype}
_PRUNING = {
    "fraction": share,
    "importance": either(named(*IMPORTANCES, *NORMS), lambda v: isinstance(v, dict)),
    "of": named(*COUNTED),
    "data": optional(iterable),
    "loss": callable,
    "keep_at_least": count_or_share,
    "across_layers": named(None, True, False),
    "generator": optional(kind(torch.Generator)),
}
_PRUNING_NAMES = {"importance": IMPORTANCES, "of": COUNTED}


def _batches(net):
    return [batch(net, 12, seed) for seed in range(2)]


def _network_doors():
    transfer = {"forward_transfer": by_name(flag), "max_units": optional(by_name(count_or_share))}
    prepare = {"t": _TASK, "num_classes": optional(whole(1)), **transfer, "optimizer": _OPTIMIZER}
    by_group = by_name(whole(1))
    training = {"loader": iterable, "optimizer": _OPTIMIZER}
    plan = {"plan": kind(ek.PruningPlan), "optimizer": _OPTIMIZER}
    snap = {"snapshot": kind(ek.Snapshot), "optimizer": _OPTIMIZER}
    x = {"x": batch(_made("new"))[0]}

    return {
        "net(x, task)": of_network("finished", "__call__", {**x, "task": 0}, {"x": tensor, "task": whole()}),
        "net(x)": of_network("live", "__call__", x, {"x": tensor, "task": optional(_TASK)}),
        "net.compute_features": of_network(
            "finished",
            "compute_features",
            {**x, "task": 1},
            {"x": tensor, "task": optional(whole(0, 1))},
            left_out=["compiled"],
        ),
        "net.prepare_for_task": of_network("new", "prepare_for_task", {"t": 0, "num_classes": 3}, prepare),
        "net.prepare_for_task again": of_network(
            "live", "prepare_for_task", {"t": 2, "num_classes": 3, "max_units": {"body.0": 1}}, prepare, optimizer=True
        ),
        "net.add_head": of_network("headless", "add_head", {"num_classes": 3}, {"num_classes": whole(1)}),
        "net.align": of_network("live", "align", {"multiple": 2}, {"multiple": by_group}),
        "net.widen": of_network("live", "widen", {"width": 20}, {"width": by_name(whole())}),
        "net.predict": of_network(
            "finished", "predict", {**x, "rule": "learned"}, {"x": tensor, "rule": named(*RULES)}, names={"rule": RULES}
        ),
        "net.predictions": of_network(
            "finished", "predictions", {**x, "rules": ["joint"]}, {"x": tensor, "rules": sequence_of(named(*RULES))}
        ),
        "net.routing_features": of_network(
            "finished", "routing_features", x, {"x": tensor, "layers": flag, "inputs": flag}
        ),
        "net.plan_pruning": of_network("live", "plan_pruning", {"fraction": 0.5}, _PRUNING, names=_PRUNING_NAMES),
        "net.plan_pruning by taylor": of_network(
            "live",
            "plan_pruning",
            lambda net: {"fraction": 0.5, "importance": "taylor", "data": _batches(net)},
            {**_PRUNING, "data": iterable},
            names=_PRUNING_NAMES,
            user=(TypeError,),
        ),
        "net.prune": of_network(
            "live", "prune", {"fraction": 0.5}, {**_PRUNING, "optimizer": _OPTIMIZER}, optimizer=True
        ),
        "net.apply_plan": of_network(
            "live", "apply_plan", lambda net: {"plan": net.plan_pruning(0.5)}, plan, optimizer=True
        ),
        "net.apply_plan of odd indices": of_network(
            "live", "apply_plan", _odd_plan, {"optimizer": _OPTIMIZER}, left_out=["plan"]
        ),
        "net.snapshot": of_network("live", "snapshot", {}, {"optimizer": _OPTIMIZER}, optimizer=True),
        "net.restore": of_network("live", "restore", lambda net: {"snapshot": net.snapshot()}, snap, optimizer=True),
        "net.restore of another": of_network(
            "live", "restore", _others, {"optimizer": _OPTIMIZER}, left_out=["snapshot"]
        ),
        "net.adopt": of_network("live", "adopt", {}, {"optimizer": _optimizers}, optimizer=True),
        "net.extract": of_network("finished", "extract", {"task": 0}, {"task": whole(0, 1)}),
        "net.train_task": of_network(
            "live", "train_task", lambda net: {"loader": _batches(net), "max_epochs": 1, "search": "none"}, training
        ),
        "net.train_router": of_network(
            "finished",
            "train_router",
            lambda net: {"loaders": [_batches(net)] * 2, "max_epochs": 1},
            {"loaders": iterable},
        ),
    }


def _odd_plan(net):
    """Plans whose indices are no live units."""
    odd = [[9], [-1], [1, 0], [0, 0], [[0]], [0.5], [True], [], None, "0", [10**6]]
    keep = odd[int(torch.randint(len(odd), ()))]
    keep = torch.tensor(keep) if isinstance(keep, list) else keep
    plan = net.plan_pruning(0.5)
    return {"plan": ek.PruningPlan("l2", (GroupPlan("body.0", plan.groups[0].live, keep), *plan.groups[1:]))}


def _others(net):
    """Snapshots of other networks, or with a part missing."""
    other = [MLP((7, 5)), MLP((7, 6), norm=False), MLP((5, 6)), ConvNet(), Joined()][int(torch.randint(5, ()))]
    learn(other, 0, max_units=0.4)
    other.prepare_for_task(1, 3)
    return {"snapshot": other.snapshot()}


def _layer_doors():
    biased = {"bias": flag, **_PLACE}
    window = {"kernel_size": pair_of(1), "stride": pair_of(1), "padding": PADDINGS, "dilation": pair_of(1)}
    window |= {"padding_mode": named(*MODES)}

    norm1, norm2 = optional(kind(ek.EideticBatchNorm1d)), optional(kind(ek.EideticBatchNorm2d))
    norm = {"num_features": whole(), "eps": real(0), "momentum": optional(share), "affine": flag, **_PLACE}
    norm |= {
        "track_running_stats": either(named(True), kind(np.bool_)),
        "activation": named("none", "relu", "relu6", "silu", "gelu"),
    }

    sizes = either(whole(), sequence_of(whole()))
    heads = {"embed_dim": whole(1), "num_heads": whole(1), "dropout": share, "batch_first": flag, **biased}
    swin = {"dim": whole(1), "window_size": pair_of(1), "shift_size": pair_of(0), "num_heads": whole(1)}
    swin |= {"qkv_bias": flag, "proj_bias": flag, "key_bias": flag, "attention_dropout": share, "dropout": share}

    return {
        "EideticLinear": made(
            ek.EideticLinear,
            {"in_features": whole(), "out_features": whole(), **biased, "norm": norm1},
            in_features=6,
            out_features=4,
        ),
        "EideticConv2d": made(
            ek.EideticConv2d,
            {"in_channels": whole(), "out_channels": whole(), "groups": named(1), **window, **biased, "norm": norm2},
            in_channels=2,
            out_channels=4,
            kernel_size=3,
        ),
        "EideticGroupedConv2d": made(
            ek.EideticGroupedConv2d,
            {"channels": whole(), "groups": whole(1), **window, **biased, "out_channels": optional(whole())},
            channels=6,
            groups=3,
            kernel_size=3,
        ),
        "EideticDepthwiseConv2d": made(
            ek.EideticDepthwiseConv2d, {"channels": whole(1), **window, **biased}, channels=6, kernel_size=3
        ),
        "EideticBatchNorm1d": made(ek.EideticBatchNorm1d, norm, num_features=6),
        "EideticBatchNorm2d": made(ek.EideticBatchNorm2d, norm, num_features=6),
        "EideticLayerNorm": made(
            ek.EideticLayerNorm,
            {"normalized_shape": sizes, "eps": real(0), "elementwise_affine": flag, "channels_first": flag, **biased},
            normalized_shape=6,
        ),
        "EideticPReLU": made(
            ek.EideticPReLU,
            {"num_parameters": whole(1), "init": real(-3.4e38, 3.4e38), "num_features": optional(whole(1)), **_PLACE},
        ),
        "EideticParameter": made(
            ek.EideticParameter,
            {"values": tensor, "dim": optional(whole(-2, 1)), "shared": whole(1)},
            values=torch.randn(3, 4),
        ),
        "EideticDropout": made(ek.EideticDropout, {"p": share, "channels": flag}),
        "EideticStochasticDepth": made(
            ek.EideticStochasticDepth, {"p": share, "mode": named("row", "batch"), "scaled": flag}, p=0.5
        ),
        "EideticMultiheadAttention": made(ek.EideticMultiheadAttention, heads, embed_dim=6, num_heads=2),
        "EideticRelativeAttention": made(
            ek.EideticRelativeAttention,
            {"feat_dim": whole(1), "head_dim": whole(1), "max_seq_len": named(1, 4, 9), **_PLACE},
            feat_dim=6,
            head_dim=2,
            max_seq_len=4,
        ),
        "EideticWindowAttention": made(
            ek.EideticWindowAttention, {**swin, **_PLACE}, dim=6, window_size=(2, 2), shift_size=(1, 1), num_heads=2
        ),
    }


def _used(make, tasks=1):
    """A layer that has learned a task, with fresh units."""
    layer = make()
    for _ in range(tasks):
        layer.prune([0, 1])
        layer.freeze()
    layer.recycle()
    return layer


def _forward_doors():
    rows, images = torch.randn(4, 6), torch.randn(2, 6, 4, 4)
    x, image = {"x": rows}, {"x": images}

    def linear():
        return _used(lambda: ek.EideticLinear(6, 5))

    def normed():
        return ek.EideticLinear(6, 5, norm=ek.EideticBatchNorm1d(5))

    def conv():
        return _used(lambda: ek.EideticConv2d(6, 4, 3, norm=ek.EideticBatchNorm2d(4)))

    def heads():
        return ek.EideticMultiheadAttention(6, 2)

    tokens = torch.randn(4, 3, 6)
    several = dict.fromkeys(("query", "key", "value"), tokens)
    makes = {
        "EideticLinear": (linear, x),
        "EideticLinear with a norm": (normed, x),
        "EideticConv2d": (conv, image),
        "EideticGroupedConv2d": (lambda: ek.EideticGroupedConv2d(6, 3, 3, padding=1), image),
        "EideticBatchNorm1d": (lambda: ek.EideticBatchNorm1d(6), x),
        "EideticBatchNorm2d": (lambda: ek.EideticBatchNorm2d(6, activation="silu"), image),
        "EideticLayerNorm": (lambda: ek.EideticLayerNorm(6), x),
        "EideticLayerNorm without scale": (lambda: ek.EideticLayerNorm(6, elementwise_affine=False), x),
        "EideticPReLU": (lambda: ek.EideticPReLU(6), x),
        "EideticDropout": (lambda: ek.EideticDropout(0.5), x),
        "EideticDropout of channels": (lambda: ek.EideticDropout(0.5, channels=True), image),
        "EideticStochasticDepth": (lambda: ek.EideticStochasticDepth(0.5), x),
        "EideticRelativeAttention": (lambda: ek.EideticRelativeAttention(6, 2, 4), {"x": torch.randn(2, 3, 4, 6)}),
        "EideticWindowAttention": (
            lambda: ek.EideticWindowAttention(6, (2, 2), (1, 1), 2),
            {"x": torch.randn(2, 4, 4, 6)},
        ),
    }
    doors = {f"{name}.forward": ran(make, "forward", good, x=tensor) for name, (make, good) in makes.items()}
    residual = {"residual": optional(tensor)}
    masks = {"key_padding_mask": named(None), "attn_mask": named(None), "is_causal": named(False)}
    masks |= {"need_weights": flag, "average_attn_weights": anything}  # weights are not given
    doors |= {
        "EideticConv2d.forward with a residual": ran(
            conv, "forward", {**image, "residual": torch.randn(2, 4, 2, 2)}, x=tensor, **residual
        ),
        "EideticBatchNorm1d.forward with a residual": ran(
            lambda: ek.EideticBatchNorm1d(6), "forward", {**x, "residual": rows}, x=tensor, **residual
        ),
        "EideticMultiheadAttention.forward": ran(
            heads, "forward", several, query=tensor, key=tensor, value=tensor, **masks
        ),
        "EideticLinear.prune": ran(linear, "prune", {"keep": [0, 1]}, keep=either(iterable, tensor)),
        "EideticLinear.recycle": ran(
            lambda: _frozen(ek.EideticLinear(6, 5)), "recycle", {"live": 2}, live=optional(whole(0, 5))
        ),
        "EideticLinear.mask": ran(linear, "mask", {"task": 0}, task=optional(whole(0, 0))),
        "EideticLinear.dense_weight": ran(linear, "dense_weight", {"task": None}, task=optional(whole(0, 0))),
        "EideticLinear.staircase": ran(linear, "staircase", {"task": 0}, task=optional(whole(0, 0))),
        "EideticLinear.frozen_rows_of": ran(linear, "frozen_rows_of", {"task": 0}, task=whole(0, 0)),
        "EideticParameter.orient": ran(
            lambda: ek.EideticParameter(torch.randn(3, 4), None), "orient", {"dim": 1}, dim=whole(-2, 1)
        ),
    }
    return doors


def _frozen(layer):
    layer.prune([0])
    layer.freeze()
    return layer


def _function_doors(folder):
    file = folder / "network.safetensors"
    _made("finished").save(file)
    certificate = folder / "certificate.json"
    _made("finished").certify().write(certificate)

    def saved():
        net = network("finished")
        return net.save, {"path": folder / "copy.safetensors"}, lambda: digest(net)

    def certified():
        net = network("finished")
        return net.certify, {"against": certificate}, lambda: digest(net)

    def loaded():
        net = network("new")
        return ek.EideticNetwork.load, {"path": file, "network": net}, lambda: digest(net)

    def features():
        net = network("live")
        return ek.FrozenFeatures, {"network": net, "samples": 8}, lambda: digest(net)

    def of_batch():
        net = network("live")
        kept, (x, _) = ek.FrozenFeatures(net, 12), batch(net, 4)

        def call(rows):
            for _ in range(2):
                with kept.batch(rows):
                    net(x)

        return call, {"rows": torch.arange(4)}, lambda: digest(net)

    def registered():
        tables = registry.MODULES, registry.FUNCTIONS, registry.METHODS
        before = [dict(table) for table in tables]

        def call(target, rule):
            try:
                ek.register_rule(target, rule)
            finally:
                for table, entries in zip(tables, before):
                    table.clear()
                    table.update(entries)

        return call, {"target": nn.ReLU, "rule": ek.rules.passes}, None

    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    state = PublishedState("mlp").learn().finish().learn().finish().state
    default = {"lr": 0.1}
    return {
        "net.save": Door(saved, {"path": path}),
        "net.certify": Door(certified, {"against": optional(path), "key": optional(path)}),
        "Certificate.write": Door(
            lambda: (network("finished").certify().write, {"path": folder / "another.json"}, None),
            {"path": path, "key": optional(path)},
        ),
        "EideticNetwork.load": Door(loaded, {"path": path, "network": optional(kind(ek.EideticNetwork))}),
        "FrozenFeatures": Door(
            features, {"network": kind(ek.EideticNetwork), "samples": whole(1), "limit": optional(whole())}
        ),
        "FrozenFeatures.batch": Door(of_batch, {"rows": tensor}),
        "default_optimizer": Door(
            lambda: (ek.default_optimizer, {**default, "parameters": network("live").parameters()}, None),
            {"parameters": iterable, "lr": real(0)},
        ),
        "convert": Door(
            lambda: (ek.convert, {"module": plain, "example_input": torch.randn(4, 6), "head": None}, None),
            {"module": kind(nn.Module), "example_input": tensor, "head": either(named(None, False), text)},
            {"head": ("2", "0")},
        ),
        "from_eideticnet": Door(
            lambda: (ek.from_eideticnet, {"state_dict": state, "tasks": 2}, None),
            {
                "state_dict": kind(dict),
                "tasks": optional(whole(1)),
                "dropout": share,
                "input_shape": optional(sequence_of(whole(1))),
            },
        ),
        "frozen": Door(lambda: (ek.frozen, {"module": nn.Linear(6, 4)}, None), {"module": kind(nn.Module)}),
        "register_rule": Door(registered, {"target": either(callable, text), "rule": callable}),
        "rules.refuses": Door(lambda: (ek.rules.refuses, {"reason": "why"}, None), {"reason": text}),
        "EideticNetwork.connections": Door(_declared, {"returned": anything}),
    }


def _declared():
    """Wiring that is declared by hand, of any kind."""
    ways = {"a": "input", "output": "a"}

    def call(returned):
        class Declared(ek.EideticNetwork):
            def __init__(self):
                super().__init__()
                self.a = ek.EideticLinear(6, 4)

            def connections(self):
                return returned

            def forward(self, x):
                return self.a(x)

        net = Declared()
        net.prepare_for_task(0, 3)
        net(torch.randn(4, 6))

    return call, {"returned": ways}, None


def doors(folder):
    """By name. ``folder``: for files."""
    return {**_network_doors(), **_layer_doors(), **_forward_doors(), **_function_doors(folder)}
