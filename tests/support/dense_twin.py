"""The paper's network, in plain torch: full-size dense weights times a mask, frozen BatchNorm channels as an affine.

It shares no code with the package but the network's own ``forward``; weights and masks come from the layers' views
``dense_weight()`` and ``mask()``. Gradients of frozen rows are the caller's to zero, as the paper's hooks do.
"""

import torch
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek


class MaskedLinear(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.frozen = layer.segments.frozen_total
        self.weight = nn.Parameter(layer.dense_weight().clone())
        mask = layer.mask()
        self.mask = mask.view(*mask.shape, *[1] * (self.weight.dim() - 2)).to(self.weight.dtype)
        self.bias = None
        if layer.bias is not None:
            self.bias = nn.Parameter(torch.cat([layer.frozen_bias, layer.bias.detach()]).clone())

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)

    def live(self):
        """(name, live part, mask of what it reads or None) of each parameter, to compare with the layer's own."""
        rows = slice(self.frozen, None)
        reads = self.mask.flatten(1)[rows][:1].bool().flatten()
        yield "weight", lambda values: values[rows][:, reads]
        if self.bias is not None:
            yield "bias", lambda values: values[rows]


class MaskedConv2d(MaskedLinear):
    def __init__(self, layer):
        super().__init__(layer)
        self.options = layer.stride, layer.padding, layer.dilation

    def forward(self, x):
        weight = self.weight * self.mask
        # torch refuses convolutions without rows or columns: give them one of zeros, and take the row away again.
        if not x.shape[1]:
            x, weight = F.pad(x, (0, 0, 0, 0, 0, 1)), F.pad(weight, (0, 0, 0, 0, 0, 1))
        if not len(weight):
            return F.conv2d(x, x.new_zeros(1, *weight.shape[1:]), None, *self.options)[:, :0]
        return F.conv2d(x, weight, self.bias, *self.options)


class MaskedGroupedConv2d(MaskedConv2d):
    """A grouped convolution as a dense one whose mask leaves each channel its own group: [channels, channels, ...]."""

    def __init__(self, layer):
        nn.Module.__init__(self)
        self.frozen, self.grain = layer.segments.frozen_total, layer.segments.grain
        own = torch.cat([layer.frozen_weight, layer.weight.detach()])
        self.own = torch.arange(len(own)).view(-1, 1) // self.grain * self.grain + torch.arange(self.grain)
        dense = own.new_zeros(len(own), len(own), *own.shape[2:])
        dense[torch.arange(len(own)).view(-1, 1), self.own] = own
        self.weight = nn.Parameter(dense)
        group = torch.arange(len(own)) // self.grain
        self.mask = (group.view(-1, 1) == group).to(own.dtype).view(len(own), len(own), 1, 1)
        bias = None if layer.bias is None else torch.cat([layer.frozen_bias, layer.bias.detach()])
        self.bias = None if bias is None else nn.Parameter(bias)
        self.options = layer.geometry

    def live(self):
        rows = slice(self.frozen, None)
        yield "weight", lambda values: values[torch.arange(len(values)).view(-1, 1), self.own][rows]
        if self.bias is not None:
            yield "bias", lambda values: values[rows]


class FrozenAndLiveBatchNorm(nn.Module):
    """Frozen channels: scale and shift. Live channels: torch's own BatchNorm module."""

    def __init__(self, layer):
        super().__init__()
        self.scale, self.shift = layer.frozen_scale.clone(), layer.frozen_shift.clone()
        self.inner = None
        if layer.segments.live:
            kind = nn.BatchNorm2d if isinstance(layer, ek.EideticBatchNorm2d) else nn.BatchNorm1d
            self.inner = kind(layer.segments.live, layer.eps, layer.momentum, dtype=layer.weight.dtype)
            with torch.no_grad():
                for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                    getattr(self.inner, name).copy_(getattr(layer, name))

    def forward(self, x):
        frozen, shape = len(self.scale), (-1, *[1] * (x.dim() - 2))
        y = x[:, :frozen] * self.scale.view(shape) + self.shift.view(shape)
        return y if self.inner is None else torch.cat([y, self.inner(x[:, frozen:])], 1)

    def live(self):
        for name in ("weight", "bias") if self.inner is not None else ():
            yield f"inner.{name}", lambda values: values


TWINS = {
    ek.EideticLinear: MaskedLinear,
    ek.EideticConv2d: MaskedConv2d,
    ek.EideticGroupedConv2d: MaskedGroupedConv2d,
    ek.EideticBatchNorm1d: FrozenAndLiveBatchNorm,
    ek.EideticBatchNorm2d: FrozenAndLiveBatchNorm,
}


class DenseTwin(nn.Module):
    """What ``net`` is now, for the task in training: ``twin(x)`` are its logits. Dropout must be off (p=0)."""

    def __init__(self, net):
        super().__init__()
        self.kind = type(net)
        for name, child in net.named_children():
            if name not in ("heads", "router"):
                self.add_module(name, _twin(child))
        self.head = MaskedLinear(net.live_head)
        self.train(net.training)

    def forward(self, x):
        return self.head(self.kind.forward(self, x))

    def zero_frozen_gradients(self):
        for module in self.modules():
            if isinstance(module, MaskedLinear):
                for parameter in module.parameters():
                    parameter.grad[: module.frozen] = 0

    def pairs(self, net):
        """(path, the network's live parameter, the twin's parameter, how to cut the live part out of it)."""
        for path, module in self.named_modules():
            if hasattr(module, "live"):
                layer = net.live_head if path == "head" else net.get_submodule(path)
                for name, cut in module.live():
                    ours = getattr(layer, name.removeprefix("inner."))
                    if ours.numel():
                        yield f"{path}.{name}", ours, module.get_parameter(name), cut

    def statistics(self, net):
        """(path, the network's live statistic, the twin's)."""
        for path, module in self.named_modules():
            if isinstance(module, FrozenAndLiveBatchNorm) and module.inner is not None:
                for name in ("running_mean", "running_var"):
                    yield f"{path}.{name}", getattr(net.get_submodule(path), name), getattr(module.inner, name)


def _twin(module):
    if type(module) in TWINS:
        return TWINS[type(module)](module)
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*[_twin(child) for child in module])
    if isinstance(module, (ek.EideticDropout, nn.Dropout)):
        assert module.p == 0, "the twin has no dropout"
        return nn.Identity()
    assert not any(True for _ in module.parameters()) and not any(True for _ in module.children())
    return module


def owners(segments):
    """The paper's owner tensor [units]: which task each unit belongs to."""
    sizes = torch.tensor([*segments.frozen, segments.live])
    return torch.arange(len(sizes)).repeat_interleave(sizes)


def assert_masks_are_the_papers(net, choices):
    """Every mask entry, from owners alone: a nested unit reads units of its own and earlier tasks, a disjoint one
    those of its own. ``choices``: for each task, ``forward_transfer`` as it was given to prepare_for_task."""
    for group in net.groups:
        for path, layer in group.producers.items():
            (source,) = layer.sources
            mask = layer.mask()
            read = owners(source.group).repeat_interleave(source.block) if hasattr(source.group, "frozen") else None
            for row, reader in enumerate(owners(layer.segments).tolist()):
                nested = choices[reader][path] if isinstance(choices[reader], dict) else choices[reader]
                if read is None:
                    expected = torch.ones(mask.shape[1], dtype=torch.bool)
                else:
                    expected = read <= reader if nested else read == reader
                assert torch.equal(mask[row], expected), (path, row)
