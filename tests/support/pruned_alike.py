"""Checks what pruning a converted module means: the rest computes what the module computes without the pruned units."""

import copy

import torch

import eidetic_kernels as ek


def pruned_alike(module, x, head="h", fraction=0.5, close=1e-9, exact=True):
    """Convert ``module`` in float64, prune, and compare with ``module`` whose readers have zeros for the pruned units.

    A rule that lets units part (those of two tensors, or of a tensor and a buffer) or that lets a number count them
    fails here. ``head``: the path of the layer whose output are the logits. Returns the network.
    """
    module, x = copy.deepcopy(module).double().eval(), x.double()
    net = ek.convert(module, x).eval()
    with torch.no_grad():
        if exact:
            assert torch.equal(net(x).nan_to_num(), module(x).nan_to_num()), "evaluation"
        plan = net.prune(fraction, "random", generator=torch.Generator().manual_seed(2))
        keep = {group.segments: (group.built_width, each.keep) for group, each in zip(net.groups, plan.groups)}
        assert [group.name for group in net.groups] == [each.name for each in plan.groups]
        reads = {path.removeprefix("body."): sources for path, sources in net.wiring.sources.items()}
        for path, sources in {**reads, head: net.wiring.features}.items():
            columns = torch.cat([_kept(source, keep) for source in sources])
            if f"body.{path}" in net.wiring.orders:
                columns = columns[list(net.wiring.orders[f"body.{path}"])]
            if not columns.all():
                _weight(module, path)[:, ~columns] = 0
        torch.testing.assert_close(net(x), module(x), rtol=close, atol=close)
    return net


def refused_or_right(module, x, **options):
    """Hold ``module`` to never be converted wrongly: it is refused, or ``pruned_alike``. Returns the refusal, or ""."""
    try:
        ek.convert(copy.deepcopy(module).double().eval(), x.double())
    except ek.ConversionError as error:
        return str(error)
    pruned_alike(module, x, **options)
    return ""


def _weight(module, path):
    owner, found, _ = path.partition(".in_proj")
    if found:  # of query, key and value, which read the same here
        return module.get_submodule(owner).in_proj_weight
    while path.rpartition(".")[2].isdigit() and not _has(module, path):  # a part of a layer, which reads the same
        path = path.rpartition(".")[0]
    return module.get_submodule(path).weight


def _has(module, path):
    return path in dict(module.named_modules())


def _kept(source, keep):
    """Which of a source's columns are left."""
    if source.group not in keep:
        return torch.ones(source.columns(None), dtype=torch.bool)
    width, units = keep[source.group]
    kept = torch.zeros(width, dtype=torch.bool)
    kept[units] = True
    return kept.repeat_interleave(source.block)
