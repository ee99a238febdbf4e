"""The paper's network, in plain torch: full-size dense weights times a mask, frozen BatchNorm channels as an affine.

It shares no code with the package but the network's own ``forward``; weights and masks come from the layers' views
``dense_weight()`` and ``mask()``. Gradients of frozen rows are the caller's to zero, as the paper's hooks do.
"""

import copy
import math

import torch
from torch import fx, nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.layers import (
    EideticPositionNetwork,
    EideticScaledDotProduct,
    EideticWindowAttentionV2,
    LayerNormParts,
    Parts,
    Shared,
)

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}


class MaskedLinear(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.frozen = layer.segments.frozen_total
        self.norm = None if layer.norm is None else FrozenAndLiveBatchNorm(layer.norm)
        self.weight = nn.Parameter(layer.dense_weight().clone())
        mask = layer.mask()
        self.mask = mask.view(*mask.shape, *[1] * (self.weight.dim() - 2)).to(self.weight.dtype)
        self.bias = None
        if layer.bias is not None:
            self.bias = nn.Parameter(torch.cat([layer.frozen_bias, layer.bias.detach()]).clone())

    def forward(self, x):
        return self.normalised(F.linear(x, self.weight * self.mask, self.bias))

    def normalised(self, y, residual=None):
        """By the layer's own norm, where it has one."""
        return y if self.norm is None else self.norm(y, residual)

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

    def forward(self, x, residual=None):
        weight = self.weight * self.mask
        # torch refuses convolutions without rows or columns: give them one of zeros, and take the row away again.
        if not x.shape[1]:
            x, weight = F.pad(x, (0, 0, 0, 0, 0, 1)), F.pad(weight, (0, 0, 0, 0, 0, 1))
        if not len(weight):
            return F.conv2d(x, x.new_zeros(1, *weight.shape[1:]), None, *self.options)[:, :0]
        return self.normalised(F.conv2d(x, weight, self.bias, *self.options), residual)


class MaskedGroupedConv2d(MaskedConv2d):
    """A grouped convolution as a dense one whose mask leaves each channel its own group: [channels, channels, ...]."""

    def __init__(self, layer):
        nn.Module.__init__(self)
        self.norm = None
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
        self.activation = ACTIVATIONS[layer.activation]
        self.inner = None
        if layer.segments.live:
            kind = nn.BatchNorm2d if isinstance(layer, ek.EideticBatchNorm2d) else nn.BatchNorm1d
            self.inner = kind(layer.segments.live, layer.eps, layer.momentum, dtype=layer.weight.dtype)
            with torch.no_grad():
                for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                    getattr(self.inner, name).copy_(getattr(layer, name))

    def forward(self, x, residual=None):
        frozen, shape = len(self.scale), (-1, *[1] * (x.dim() - 2))
        y = x[:, :frozen] * self.scale.view(shape) + self.shift.view(shape)
        y = y if self.inner is None else torch.cat([y, self.inner(x[:, frozen:])], 1)
        return self.activation(y if residual is None else y + residual)

    def live(self):
        for name in ("weight", "bias") if self.inner is not None else ():
            yield f"inner.{name}", lambda values: values


class MaskedLayerNorm(nn.Module):
    """Unit by unit: mean and variance over the columns that the unit's task may see, by masked sums."""

    def __init__(self, parts):
        super().__init__()
        self.eps, self.channels_first = parts[0].eps, parts[0].unit_dim == 1
        tasks = torch.cat([owners(part.segments) for part in parts])
        nested = [all(choices) for choices in zip(*(part.forward_transfer for part in parts), strict=True)]
        disjoint = ~torch.tensor(nested)[tasks].view(-1, 1)
        seen = torch.where(disjoint, tasks.view(1, -1) == tasks.view(-1, 1), tasks.view(1, -1) <= tasks.view(-1, 1))
        self.share = seen.double() / seen.sum(1, keepdim=True)
        for number, part in enumerate(parts):
            self.add_module(str(number), Affine(part))
        self.parts = len(parts)

    def forward(self, x):
        x = x.movedim(1, -1) if self.channels_first else x
        share = self.share.to(x.dtype)
        mean = x @ share.t()
        variance = (x * x) @ share.t() - mean * mean
        y = (x - mean) / torch.sqrt(variance + self.eps)
        affine = [getattr(self, str(number)).both() for number in range(self.parts)]
        y = y * torch.cat([scale for scale, _ in affine]) + torch.cat([shift for _, shift in affine])
        return y.movedim(-1, 1) if self.channels_first else y


class Affine(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.frozen = layer.segments.frozen_total
        self.units = layer.segments.total
        for name, parameter in layer.named_parameters():
            values = torch.cat([getattr(layer, f"frozen_{name}"), parameter.detach()])
            setattr(self, name, nn.Parameter(values))

    def both(self):
        """Scale and shift of all units."""
        scale = getattr(self, "weight", torch.ones(self.units))
        return scale, getattr(self, "bias", torch.zeros(self.units))

    def live(self):
        for name, _ in self.named_parameters():
            yield name, lambda values: values[self.frozen :]


class FrozenAndLivePReLU(nn.Module):
    """A slope for each frozen unit; for live ones theirs, or the one that they share."""

    def __init__(self, layer):
        super().__init__()
        self.slopes, self.units, self.dim = layer.frozen_weight.clone(), layer.segments.live, layer.unit_dim
        self.weight = nn.Parameter(layer.weight.detach().clone())

    def forward(self, x):
        slopes = torch.cat([self.slopes, self.weight.expand(self.units)])
        shape = [1] * x.dim()
        shape[self.dim] = -1
        return torch.where(x > 0, x, x * slopes.view(shape))

    def live(self):
        yield "weight", lambda values: values


class WholeParameter(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.frozen, self.dim = len(layer.frozen_weight), layer.dim
        self.weight = nn.Parameter(torch.cat([layer.frozen_weight, layer.weight.detach()]))

    def forward(self):
        return self.weight.movedim(0, self.dim)

    def live(self):
        yield "weight", lambda values: values[self.frozen :]


class DenseAttention(nn.Module):
    """All heads at once, softmax written out."""

    def __init__(self, layer):
        super().__init__()
        self.head_dim, self.batch_first = layer.head_dim, getattr(layer, "batch_first", True)
        for name in ("query", "key", "value", "out_proj"):
            self.add_module(name, MaskedLinear(getattr(layer, name)))

    def forward(self, query, key, value, **options):
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim))
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        weights = (torch.einsum("nthd,nshd->nhts", q, k) / self.head_dim**0.5).softmax(-1)
        y = self.out_proj(torch.einsum("nhts,nshd->nthd", weights, v).flatten(-2))
        return (y if self.batch_first else y.transpose(0, 1)), None


class DenseRelativeAttention(DenseAttention):
    """All heads at once, as torchvision writes it."""

    def __init__(self, layer):
        super().__init__(layer)
        self.scale, self.positions = layer.feat_dim**-0.5, layer.positions
        self.position_bias = WholeParameter(layer.position_bias)

    def forward(self, x):
        made = (self.query(x), self.key(x), self.value(x))
        q, k, v = (each.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2) for each in made)
        bias = self.position_bias()[self.positions].permute(2, 0, 1)
        weights = (q @ k.transpose(-2, -1) * self.scale + bias).softmax(-1)
        return self.out_proj((weights @ v).transpose(-3, -2).flatten(-2))


class MaskedShares(nn.ModuleList):
    def __init__(self, shares):
        super().__init__(_reference(share) for share in shares)
        self.unit_dim = shares.unit_dim

    def forward(self, x):
        return torch.cat([share(x) for share in self], self.unit_dim)


class MaskedParts(nn.ModuleList):
    def __init__(self, parts):
        super().__init__(_reference(part) for part in parts)
        self.sizes = [part.segments.total for part in parts]

    def forward(self, x):
        return torch.cat([part(piece) for part, piece in zip(self, x.split(self.sizes, 1))], 1)


class DenseScaledDotProduct(nn.Module):
    def __init__(self, layer):
        super().__init__()

    def forward(self, q, k, v, is_causal=False, scale=None):
        assert scale is None
        weights = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if is_causal:
            later = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)
            weights = weights.masked_fill(later, -torch.inf)
        return weights.softmax(-1) @ v


class DenseWindowAttention(DenseAttention):
    """Window after window; tokens that the shift brought together from two sides of the image keep apart."""

    def __init__(self, layer):
        super().__init__(layer)
        self.window, self.shift, self.positions = layer.window_size, layer.shift_size, layer.positions
        self.position_bias = _reference(layer.position_bias)

    def forward(self, x):
        (height, width), (rows, columns) = self.window, x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -columns % width, 0, -rows % height))
        whole = x.shape[1:3]
        down, right = (0 if side >= size else by for side, size, by in zip(self.window, whole, self.shift))
        x = x.roll((-down, -right), (1, 2))
        below, beyond = torch.arange(whole[0]) >= whole[0] - down, torch.arange(whole[1]) >= whole[1] - right
        sides = 2 * below.view(-1, 1) + 1 * beyond

        bands = []
        for top in range(0, whole[0], height):
            windows = []
            for left in range(0, whole[1], width):
                place = slice(top, top + height), slice(left, left + width)
                y = self.attended(x[:, place[0], place[1]].flatten(1, 2), sides[place].flatten())
                windows.append(y.unflatten(1, self.window))
            bands.append(torch.cat(windows, 2))
        return torch.cat(bands, 1).roll((down, right), (1, 2))[:, :rows, :columns]

    def attended(self, x, sides):
        """Attention among the tokens [N, T, C] of a window; ``sides`` [T] are their sides of the image."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        bias = self.position_bias()[self.positions].permute(2, 0, 1)
        apart = -100.0 * (sides.view(-1, 1) != sides)
        weights = (self.similarity(q, k) + bias + apart).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(-2))

    def similarity(self, q, k):
        return q @ k.transpose(-2, -1) / self.head_dim**0.5


class DenseWindowAttentionV2(DenseWindowAttention):
    """Similarity is the cosine, times a scale for each head."""

    def __init__(self, layer):
        super().__init__(layer)
        self.logit_scale = WholeParameter(layer.logit_scale)

    def similarity(self, q, k):
        scale = torch.clamp(self.logit_scale(), max=math.log(100)).exp()
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale


class WholePositionNetwork(nn.Module):
    """What finished tasks' heads were told, and the network of the live ones."""

    def __init__(self, layer):
        super().__init__()
        self.said, self.coordinates = layer.frozen_weight.clone(), layer.coordinates
        for name, parameter in layer.named_parameters():
            setattr(self, name, nn.Parameter(parameter.detach().clone()))

    def forward(self):
        hidden = torch.relu(self.coordinates @ self.hidden_weight.t() + self.hidden_bias)
        return torch.cat([self.said.t(), 16 * torch.sigmoid(hidden @ self.weight.t())], 1)

    def live(self):
        for name, _ in self.named_parameters():
            yield name, lambda values: values


REFERENCES = {
    ek.EideticLayerNorm: lambda layer: MaskedLayerNorm([layer]),
    LayerNormParts: lambda parts: MaskedLayerNorm(list(parts)),
    ek.EideticParameter: WholeParameter,
    ek.EideticPReLU: FrozenAndLivePReLU,
    ek.EideticMultiheadAttention: DenseAttention,
    ek.EideticWindowAttention: DenseWindowAttention,
    EideticWindowAttentionV2: DenseWindowAttentionV2,
    EideticPositionNetwork: WholePositionNetwork,
    EideticScaledDotProduct: DenseScaledDotProduct,
    ek.EideticRelativeAttention: DenseRelativeAttention,
    Parts: MaskedParts,
    Shared: MaskedShares,
    ek.EideticLinear: MaskedLinear,
    ek.EideticConv2d: MaskedConv2d,
    ek.EideticGroupedConv2d: MaskedGroupedConv2d,
    ek.EideticDepthwiseConv2d: MaskedGroupedConv2d,
    ek.EideticBatchNorm1d: FrozenAndLiveBatchNorm,
    ek.EideticBatchNorm2d: FrozenAndLiveBatchNorm,
}


class DenseReference(nn.Module):
    """What ``net`` is now, for the task in training: ``reference(x)`` are its logits. Dropout must be off (p=0)."""

    def __init__(self, net):
        super().__init__()
        self.kind = type(net)
        for name, child in net.named_children():
            if name not in ("heads", "router"):
                self.add_module(name, _reference(child))
        for name, buffer in net.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.head = MaskedLinear(net.live_head)
        self.train(net.training)
        for module in self.modules():
            if getattr(module, "of_no_task", False):
                module.eval()

    def forward(self, x):
        return self.head(self.kind.forward(self, x))

    def zero_frozen_gradients(self):
        for module in self.modules():
            if isinstance(module, MaskedLinear):
                for parameter in module.parameters():
                    parameter.grad[: module.frozen] = 0

    def pairs(self, net):
        """(path, the network's live parameter, the reference's parameter, how to cut the live part out of it)."""
        layers = dict(net.named_modules())
        for path, module in self.named_modules():
            if hasattr(module, "live"):
                alone = isinstance(module, Affine) and path not in layers  # a norm over one group is a layer itself
                layer = net.live_head if path == "head" else layers[path.rpartition(".")[0] if alone else path]
                for name, cut in module.live():
                    ours = getattr(layer, name.removeprefix("inner."))
                    if ours.numel():
                        yield f"{path}.{name}", ours, module.get_parameter(name), cut

    def statistics(self, net):
        """(path, the network's live statistic, the reference's)."""
        for path, module in self.named_modules():
            if isinstance(module, FrozenAndLiveBatchNorm) and module.inner is not None:
                for name in ("running_mean", "running_var"):
                    yield f"{path}.{name}", getattr(net.get_submodule(path), name), getattr(module.inner, name)


def _graph_reference(module):
    reference = copy.deepcopy(module)
    for node in module.graph.nodes:
        if node.op == "call_module":
            layer = module.get_submodule(node.target)
            if getattr(layer, "p", 0) != 0:
                raise AssertionError("the reference has no dropout")
            if type(layer) in REFERENCES:
                reference.set_submodule(node.target, REFERENCES[type(layer)](layer))
    return reference


def _reference(module):
    if type(module) in REFERENCES:
        return REFERENCES[type(module)](module)
    if isinstance(module, fx.GraphModule):
        return _graph_reference(module)
    if isinstance(module, nn.Sequential) and any(hasattr(each, "segments") for each in module.modules()):
        return nn.Sequential(*[_reference(child) for child in module])
    if isinstance(module, (ek.EideticDropout, nn.Dropout)):
        assert module.p == 0, "the reference has no dropout"
        return nn.Identity()
    if any(True for _ in module.parameters()):  # a plain module in a network wired by hand, frozen as it is
        assert not any(each.requires_grad for each in module.parameters())
        module = copy.deepcopy(module)
        module.of_no_task = True
    else:
        assert not any(True for _ in module.children())
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
            mask = layer.mask()
            read = torch.cat([_owners_of_columns(source) for source in layer.sources])
            for row, reader in enumerate(owners(layer.segments).tolist()):
                nested = choices[reader].get(path, True) if isinstance(choices[reader], dict) else choices[reader]
                expected = (read <= reader if nested else read == reader) | (read == INPUT)
                assert torch.equal(mask[row], expected), (path, row)


INPUT = -1  # the owner of the network's input, which every unit reads


def _owners_of_columns(source):
    if hasattr(source.group, "frozen"):
        return owners(source.group).repeat_interleave(source.block)
    return torch.full((source.columns(None),), INPUT)


def dense_weights(net):
    """The whole weight of each layer that makes units, by path, and of the head in training."""
    layers = {path: layer for group in net.groups for path, layer in group.producers.items()}
    return {path: layer.dense_weight() for path, layer in {**layers, "head": net.live_head}.items()}


def assert_only_these_went(net, before, plan):
    """The network has the weights that it had (``before``, see :func:`dense_weights`), less the rows and columns of
    the units that ``plan`` removed."""
    stayed, had = {}, {}
    for group in net.groups:
        (part,) = (part for part in plan.groups if part.name == group.name)
        frozen = group.segments.frozen_total
        stayed[group.segments] = torch.cat([torch.arange(frozen), frozen + part.keep])
        had[group.segments] = frozen + part.live

    layers = {path: layer for group in net.groups for path, layer in group.producers.items()}
    for path, weight in dense_weights(net).items():
        layer, columns, start = layers.get(path, net.live_head), [], 0
        for source in layer.sources:
            units = stayed.get(source.group, torch.arange(source.group.present(None)))
            columns.append(start + (units.view(-1, 1) * source.block + torch.arange(source.block)).flatten())
            start += had.get(source.group, len(units)) * source.block
        rows = stayed.get(layer.segments, torch.arange(len(weight)))
        assert torch.equal(weight, before[path][rows][:, torch.cat(columns)]), f"{path} has other weights than before"
