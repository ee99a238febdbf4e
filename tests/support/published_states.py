"""State dicts in the published implementation's format, written by hand, and the forward pass that they stand for.

Per layer: ``*_orig`` are dense parameters, ``*_mask`` is 0 where the task in training pruned, ``*_excess_capacity``
names the task that owns each element (-1: none). Finishing a task sets what it pruned to 0, gives it the rest of its
rows, and fills the masks with 1 again.
"""

import torch
from torch.nn import functional as F


class PublishedState:
    """A network in the published format whose tasks have random weights.

    reads: a layer and the layer whose units are its columns (None: the input). ties: a layer and the layer whose rows
    it shares. norms: a layer and the BatchNorm that follows it.
    """

    def __init__(self, kind, classes=(3, 2, 4), bn=True, disjoint=False, dtype=torch.float32, seed=0, **sizes):
        self.kind, self.bn, self.disjoint, self.dtype = kind, bn, disjoint, dtype
        self.random = torch.Generator().manual_seed(seed)
        self.state, self.reads, self.ties, self.norms, self.task = {}, {}, {}, {}, 0
        getattr(self, f"_{kind}")(**sizes)
        for number, count in enumerate(classes):
            self._layer(f"classifiers.{number}", (count, self.features), self.last, bias=True)

    # ---- architectures

    def _mlp(self, columns=6, width=8, depth=3):
        self.last, self.features = None, columns
        for number in range(depth):
            self._block(f"blocks.{number}.0", (width + number, self.features), self.last, f"blocks.{number}.1")
            self.last, self.features = f"blocks.{number}.0", width + number

    def _convnet(self, columns=2, widths=(4, 6, 7, 8)):
        self.last, self.features = None, columns
        for number, width in enumerate(widths):
            self._block(f"blocks.{number}.0", (width, self.features, 3, 3), self.last, f"blocks.{number}.1")
            self.last, self.features = f"blocks.{number}.0", width

    def _resnet(self, columns=2, inner=5, outer=(4, 4, 6, 7, 8, 8, 12), stem=3):
        self.last, self.features, self.outer = None, columns, outer
        for number, width in enumerate(outer):
            kernel = 3 if number else stem
            first, second, around = f"blocks.{number}.0", f"blocks.{number}.3", f"res.{number}"
            self._block(first, (inner, self.features, kernel, kernel), self.last, f"blocks.{number}.1")
            self._block(second, (width, inner, 3, 3), first, f"blocks.{number}.4")
            self._layer(around, (width, self.features, 1, 1), self.last, bias=False)
            self.ties[around] = second
            self.last, self.features = second, width

    # ---- the life of a task

    def learn(self, keep=0.4, prune=True):
        """Random weights where no task owns them; then all but ``keep`` of the free units are pruned."""
        for name, tensor in self.state.items():
            stem, _, part = name.rpartition("_")
            body = not name.startswith("classifiers") or name.startswith(f"classifiers.{self.task}.")
            if part == "orig" and body:
                free = self.state[f"{stem}_excess_capacity"] == -1
                tensor[free] = self._normal(tensor.shape)[free] + (0.5 if tensor.dim() == 1 else 0)
        for norm in self.norms.values():
            free = self.state[f"{norm}.weight_excess_capacity"] == -1
            self.state[f"{norm}.running_mean"][free] = self._normal(free.shape)[free]
            self.state[f"{norm}.running_var"][free] = self._normal(free.shape)[free].abs() + 0.5
        for layer in [name for name in self.reads if name not in self.ties and not name.startswith("classifiers")]:
            free = (self._owners(layer) == -1).nonzero().flatten()
            order = free[torch.randperm(len(free), generator=self.random)]
            if prune:
                self._prune(layer, order[round(keep * len(order)) :])
        return self

    def finish(self):
        """What the published prepare_for_task does before the next task begins."""
        for name, tensor in list(self.state.items()):
            if name.endswith("_orig"):
                stem = name.removesuffix("_orig")
                mask, owner = self.state[f"{stem}_mask"], self.state[f"{stem}_excess_capacity"]
                tensor[mask == 0] = 0
                untouched = bool((owner == -1).all() and (mask != 0).all())
                if not (name.startswith("classifiers") and (untouched or ".bias" in name)):
                    owner[(owner == -1) & self._assigned(stem, mask != 0)] = self.task
                mask.fill_(1)
        self.task += 1
        return self

    def _prune(self, layer, units):
        for name in (layer, *[tied for tied, to in self.ties.items() if to == layer]):
            self.state[f"{name}.weight_mask"][units] = 0
            if f"{name}.bias_mask" in self.state:
                self.state[f"{name}.bias_mask"][units] = 0
        if layer in self.norms:
            self.state[f"{self.norms[layer]}.weight_mask"][units] = 0
            self.state[f"{self.norms[layer]}.bias_mask"][units] = 0
        for reader, read in self.reads.items():
            if read == layer and (not reader.startswith("classifiers") or reader == f"classifiers.{self.task}"):
                self.state[f"{reader}.weight_mask"][:, units] = 0

    def _assigned(self, stem, kept):
        """The elements of a parameter that a task takes, from those that it did not prune."""
        if kept.dim() == 1:
            return kept
        flat = kept.flatten(2) if kept.dim() > 2 else kept
        rows, columns = kept, kept
        while rows.dim() > 1:
            rows = rows.any(-1)
        columns = (flat.any(-1) if flat.dim() > 2 else flat).any(0)
        shape = (-1, *[1] * (kept.dim() - 1)), (1, -1, *[1] * (kept.dim() - 2))
        if stem.startswith("classifiers"):
            return columns.view(shape[1]).expand_as(kept)
        if self.disjoint and self.reads[stem.removesuffix(".weight")] is not None:
            return (rows.view(shape[0]) | columns.view(shape[1])).expand_as(kept)
        return rows.view(shape[0]).expand_as(kept)

    # ---- what it computes

    def logits(self, x, task):
        """The published forward pass in evaluation mode: all units, dense weights multiplied by masks."""
        self.values = {
            name.removesuffix("_orig"): tensor * self.state[f"{name.removesuffix('_orig')}_mask"]
            for name, tensor in self.state.items()
            if name.endswith("_orig")
        }

        if self.kind == "mlp":
            x = x.flatten(1)
            for layer in self.norms or [name for name in self.reads if name.startswith("blocks")]:
                x = F.relu(self._normed(layer, F.linear(x, self.values[f"{layer}.weight"], self._bias(layer))))
        elif self.kind == "convnet":
            for number in range(4):
                layer = f"blocks.{number}.0"
                x = F.relu(self._normed(layer, self._convolved(layer, x)))
                x = F.max_pool2d(x, 2) if number != 1 else x
            x = F.adaptive_max_pool2d(x, 1).flatten(1)
        else:
            for number in range(len(self.outer)):
                pool = number in (2, 3, 4)
                y = F.relu(self._normed(f"blocks.{number}.0", self._convolved(f"blocks.{number}.0", x)))
                y = self._normed(f"blocks.{number}.3", self._convolved(f"blocks.{number}.3", y))
                around = F.conv2d(x, self.values[f"res.{number}.weight"], stride=2 if pool else 1)
                x = (F.max_pool2d(y, 2) if pool else y) + around
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)

        return F.linear(x, self.values[f"classifiers.{task}.weight"], self.values[f"classifiers.{task}.bias"])

    def _convolved(self, layer, x):
        weight = self.values[f"{layer}.weight"]
        return F.conv2d(x, weight, self._bias(layer), padding=weight.shape[2] // 2)

    def _bias(self, layer):
        return self.values.get(f"{layer}.bias")

    def _normed(self, layer, x):
        norm = self.norms.get(layer)
        if norm is None:
            return x
        statistics = self.state[f"{norm}.running_mean"], self.state[f"{norm}.running_var"]
        return F.batch_norm(x, *statistics, self.values[f"{norm}.weight"], self.values[f"{norm}.bias"])

    # ---- tensors

    def _block(self, layer, shape, reads, norm):
        self._layer(layer, shape, reads, bias=not self.bn)
        if self.bn:
            self.norms[layer] = norm
            for name in ("weight", "bias"):
                self._parameter(f"{norm}.{name}", shape[:1])
            self.state[f"{norm}.running_mean"] = torch.zeros(shape[0], dtype=self.dtype)
            self.state[f"{norm}.running_var"] = torch.ones(shape[0], dtype=self.dtype)
            self.state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    def _layer(self, layer, shape, reads, bias):
        self.reads[layer] = reads
        self._parameter(f"{layer}.weight", shape)
        if bias:
            self._parameter(f"{layer}.bias", shape[:1])

    def _parameter(self, name, shape):
        self.state[f"{name}_orig"] = self._normal(shape)
        self.state[f"{name}_mask"] = torch.ones(shape, dtype=self.dtype)
        self.state[f"{name}_excess_capacity"] = torch.full(shape, -1, dtype=self.dtype)

    def _owners(self, layer):
        stem = f"{self.norms[layer]}.weight" if layer in self.norms else f"{layer}.bias"
        return self.state[f"{stem}_excess_capacity"]

    def _normal(self, shape):
        return torch.randn(shape, generator=self.random, dtype=torch.float64).to(self.dtype)
