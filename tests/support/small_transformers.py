"""Small plain transformers, one for each family, to convert. Those of torchvision are skipped without it."""

import pytest
import torch
from conversions import lived_in, load_torchvision
from life import learn
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek

DROPOUT = 0.2


class Block(nn.Module):
    """The textbook block, normalised before (or after) attention and MLP."""

    def __init__(self, dim, heads, inner, batch_first=True, norm_first=True, dropout=0.0):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=batch_first)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, dim))
        self.drop = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x):
        if self.norm_first:
            y = self.norm1(x)
            x = x + self.drop(self.attention(y, y, y)[0])
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.drop(self.attention(x, x, x)[0]))
        return self.norm2(x + self.mlp(x))


class Encoder(nn.Module):
    """Embeds tokens [N, T, F], adds a class token and positions, runs its blocks, and classifies the class token."""

    def __init__(self, dim=12, heads=3, inner=14, features=5, tokens=6, classes=4, depth=2, **options):
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.5)
        self.places = nn.Parameter(torch.randn(1, tokens + 1, dim) * 0.5)
        self.blocks = nn.Sequential(*[Block(dim, heads, inner, **options) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        self.batch_first = options.get("batch_first", True)

    def forward(self, x):
        x = self.embed(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0] if self.batch_first else x[0])


class ConvNeXtLike(nn.Module):
    """A stage of ConvNeXt without torchvision: LayerNorm after the stem, a layer scale, tokens averaged."""

    def __init__(self, dim=6, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 2, stride=2)
        self.norm0 = nn.LayerNorm(dim)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.up, self.down = nn.Linear(dim, 3 * dim), nn.Linear(3 * dim, dim)
        self.scale = nn.Parameter(torch.rand(dim))
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.norm0(self.stem(x).permute(0, 2, 3, 1))
        y = self.norm(self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        x = x + self.scale * self.down(F.gelu(self.up(y)))
        return self.head(x.mean((1, 2)))


def encoder(**options):
    return lambda: (Encoder(**options), (6, 5))


class ByHand(nn.Module):
    """Attention written with F.scaled_dot_product_attention, heads split and joined as people do."""

    def __init__(self, dim=8, heads=2, size=3, dropout=0.0, packed=False):
        super().__init__()
        self.heads, self.size, self.dropout, self.packed = heads, size, dropout, packed
        self.embed, self.norm = nn.Linear(5, dim), nn.LayerNorm(dim)
        if packed:
            self.qkv = nn.Linear(dim, 3 * heads * size)
        else:
            self.q, self.k, self.v = (nn.Linear(dim, heads * size) for _ in range(3))
        self.out, self.head = nn.Linear(heads * size, dim), nn.Linear(dim, 4)

    def forward(self, x):
        x = self.embed(x)
        n, t, _ = x.shape
        y = self.norm(x)
        q, k, v = self.qkv(y).chunk(3, dim=-1) if self.packed else (self.q(y), self.k(y), self.v(y))
        q = q.view(n, t, self.heads, self.size).transpose(1, 2)
        k = k.reshape(n, t, self.heads, -1).permute(0, 2, 1, 3)
        v = v.view(n, -1, self.heads, self.size).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(n, t, self.heads * self.size)
        return self.head((x + self.out(y)).mean(1))


class OneLayer(nn.Module):
    """Queries, keys and values as views of one layer's units, as in many vision transformers."""

    def __init__(self, unbound, dim=8, heads=2):
        super().__init__()
        self.heads, self.unbound = heads, unbound
        self.embed, self.norm, self.head = nn.Linear(5, dim), nn.LayerNorm(dim), nn.Linear(dim, 4)
        self.qkv, self.out, self.unchanged = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Identity()

    def forward(self, x):
        x = self.embed(x)
        n, t, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0) if self.unbound else (qkv[0], qkv[1], qkv[2])
        y = F.scaled_dot_product_attention(self.unchanged(q), self.unchanged(k), v)
        return self.head((x + self.out(y.transpose(1, 2).reshape(n, t, c))).mean(1))


class TorchEncoder(nn.Module):
    """torch's own encoder, whose fused kernel for inference rounds differently."""

    def __init__(self, norm_first=True, classes=4):
        super().__init__()
        self.embed = nn.Linear(5, 12)
        layer = nn.TransformerEncoderLayer(12, 3, 14, DROPOUT, F.gelu, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12), enable_nested_tensor=False)
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


def convnext_like():
    return ConvNeXtLike(), (3, 8, 8)


def convnext():
    models = _torchvision()
    stages = [models.convnext.CNBlockConfig(6, 8, 1), models.convnext.CNBlockConfig(8, None, 1)]
    return models.ConvNeXt(stages, stochastic_depth_prob=DROPOUT, layer_scale=0.3, num_classes=4), (3, 16, 16)


def vit():
    model = _torchvision().VisionTransformer(12, 4, 2, 3, 12, 14, DROPOUT, DROPOUT, num_classes=4)
    return model, (3, 12, 12)


def swin():
    model = _torchvision().SwinTransformer(
        [2, 2], 8, [2, 1], [2, 4], [3, 3], 2.0, DROPOUT, DROPOUT, stochastic_depth_prob=DROPOUT, num_classes=4
    )  # 7 x 7 patches: windows of 3 x 3 are padded, shifted, and merged with a row and a column of zeros
    return model, (3, 14, 14)


def swin_v2():
    models = _torchvision()
    block, merging = models.swin_transformer.SwinTransformerBlockV2, models.swin_transformer.PatchMergingV2
    model = models.SwinTransformer(
        [2, 2], 8, [1, 2], [2, 4], [3, 3], 2.0, DROPOUT, DROPOUT, DROPOUT, 4, block=block, downsample_layer=merging
    )
    return model, (3, 14, 14)


def maxvit():
    model = _torchvision().maxvit.MaxVit((8, 8), 4, 2, [8], [1], 4, DROPOUT, num_classes=4)
    return model, (3, 8, 8)


TRANSFORMERS = {
    "encoder": encoder(dropout=DROPOUT),
    "encoder-norm-last": encoder(norm_first=False),
    "encoder-tokens-first": encoder(batch_first=False),
    "by-hand": lambda: (ByHand(dropout=DROPOUT), (6, 5)),
    "by-hand-packed": lambda: (ByHand(packed=True), (6, 5)),
    "convnext-like": convnext_like,
    "convnext": convnext,
    "vit": vit,
    "swin": swin,
    "swin-v2": swin_v2,
    "maxvit": maxvit,
}


def make(name, seed=0):
    """(module, input shape of a sample) with every parameter moved from its initial value, so that each shows."""
    torch.manual_seed(seed)
    module, shape = TRANSFORMERS[name]()
    return lived_in(module), shape


def without_dropout(module):
    for each in module.modules():
        if isinstance(each, nn.MultiheadAttention):
            each.dropout = 0.0
        elif isinstance(getattr(each, "p", None), float):
            each.p = 0.0
        elif isinstance(each, ByHand):
            each.dropout = 0.0
        elif hasattr(each, "attention_dropout"):
            each.attention_dropout = each.dropout = 0.0
    return module


def converted(name, **options):
    """A network with task 0 in training, without dropout; ``net.example`` is a sample's shape."""
    module, shape = make(name)
    net = ek.convert(without_dropout(module).double(), torch.randn(1, *shape).double(), **options)
    net.example = shape
    return net


def samples(net, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *net.example, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 3


def scatter(net):
    """Move scales, shifts and tensors of the network from the values that fresh units have."""
    with torch.no_grad():
        for group in net.groups:
            for layer in group.norms.values():
                for parameter in layer.parameters(recurse=False):
                    parameter.add_(torch.randn_like(parameter) * 0.3)


def learned(name, how="nested", tasks=3, dtype=torch.float32):
    """A network after ``tasks`` tasks, its norms and layer scales moved from their initial values."""
    net = converted(name).to(dtype)
    for task in range(tasks):
        if task:
            learn(net, task, how, 0, max_units=6, steps=1)
        else:
            net.prune(0.5)
            scatter(net)
            for name, tensor in net.named_parameters():
                if "logit_scale" in name:  # past where it is clamped
                    tensor.detach()[:1].fill_(6.0)
            net.finish_task()
            net.widen(64)
    return net


def _torchvision():
    models = load_torchvision()
    if models is None:
        pytest.skip("torchvision is not installed")
    return models
