"""Sequences: of numbers, of words, and in time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .registry import classifier, topology


@topology("waves, dilated and gated", (2, 48), (2, 64))
class Waves(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 12, 3, padding=1), classifier(12)
        self.gates = nn.ModuleList(nn.Conv1d(12, 24, 3, padding=rate, dilation=rate) for rate in (1, 2, 4))
        self.outs = nn.ModuleList(nn.Conv1d(12, 12, 1) for _ in range(3))

    def forward(self, x):
        x, skips = self.stem(x), 0
        for gate, out in zip(self.gates, self.outs):
            a, b = gate(x).chunk(2, 1)
            y = out(torch.tanh(a) * torch.sigmoid(b))
            x, skips = x + y, skips + y
        return self.head(F.relu(skips).mean(-1))


@topology("mean and deviation over time", (8, 40), (8, 56))
class Statistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.a_norm, self.b = nn.Conv1d(8, 16, 5, padding=2), nn.BatchNorm1d(16), nn.Conv1d(16, 20, 1)
        self.last, self.head = nn.Linear(40, 16), classifier(16)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a_norm(self.a(x)))))
        return self.head(F.relu(self.last(torch.cat([x.mean(2), x.std(2)], 1))))


@topology("words convolved", (14,), (18,), vocabulary=40)
class WordsConvolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(40, 12, padding_idx=0), classifier(18)
        self.convolutions = nn.ModuleList(nn.Conv1d(12, 6, kernel) for kernel in (2, 3, 4))

    def forward(self, x):
        x = self.embedding(x).transpose(1, 2)
        return self.head(torch.cat([F.relu(each(x)).amax(2) for each in self.convolutions], 1))


@topology("words up to here", (10,), (13,), vocabulary=40)
class WordsUpToHere(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(40, 16), nn.Embedding(16, 16)
        self.first, self.qkv, self.project = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.second, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = classifier(16)

    def forward(self, x):
        x = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
        q, k, v = (each.unflatten(-1, (4, 4)).transpose(1, 2) for each in self.qkv(self.first(x)).split(16, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(y.transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(self.second(x)))))[:, -1])


@topology("words up to here, masked by hand", (10,), None, vocabulary=40)
class WordsMasked(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(40, 16), classifier(16)
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16) for _ in range(4))
        self.register_buffer("hidden", torch.ones(10, 10).triu(1).bool())

    def forward(self, x):
        x = self.words(x)
        q, k, v = (layer(x).view(-1, 10, 4, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.mT / 2).masked_fill(self.hidden, float("-inf")).softmax(-1)
        return self.head((x + self.project((weights @ v).transpose(1, 2).flatten(2))).mean(1))


@topology("a cell unrolled over time", (5, 8), None)
class Unrolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.state, self.gate = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.head = classifier(12)

    def forward(self, x):
        state, kept = 0, []
        for given in self.input(x).unbind(1):
            new = torch.tanh(given if len(kept) == 0 else given + self.state(state))
            gate = torch.sigmoid(self.gate(new))
            state = gate * new if len(kept) == 0 else gate * new + (1 - gate) * state
            kept.append(state)
        return self.head(torch.stack(kept, 1).mean(1))


@topology("sums up to here", (20, 6), (24, 6))
class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.keep, self.out = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 16)
        self.norm, self.head = nn.LayerNorm(16), classifier(16)

    def forward(self, x):
        weights = torch.exp(-F.softplus(self.keep(x)))
        state = torch.cumsum(weights * self.input(x), 1) / torch.cumsum(weights, 1)
        return self.head(self.norm(F.silu(self.out(state)) + state).mean(1))
