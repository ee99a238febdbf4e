"""Steps of a small network's tasks, and what must stay the same in all of them."""

import hashlib
import json
from contextlib import contextmanager
from dataclasses import asdict

import torch
from slow import slow
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.memory import bytes_of

CLASSES = 3
# What the layers of a new task read of earlier ones: all of it, nothing, or some layers this and some that.
READINGS = ("mixed", *slow("nested", "disjoint"))


def batch(net, samples=36, seed=0, classes=CLASSES):
    """Made-up inputs [samples, *net.example] and labels, the same for the same seed.

    There are enough samples for linear layers to lay their units one after the other (UNIT_MAJOR_FROM).
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    dtype = next(tensor for tensor in net.state_dict().values() if tensor.is_floating_point()).dtype
    x = torch.randn(samples, *net.example, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, classes, (samples,), generator=generator)


def loss_of(net, x, y):
    return F.cross_entropy(net(x), y)


def train(net, optimizer, steps=3, seed=0):
    """A few steps on the task in training."""
    net.train()
    x, y = batch(net, seed=seed, classes=net.num_classes[-1])
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()


def reading(net, how, task):
    """``forward_transfer`` for prepare_for_task: all nested, all disjoint, or alternating by layer and task."""
    if how == "mixed":
        norms = [path for path, layer in net.segmented_layers() if isinstance(layer, ek.EideticLayerNorm)]
        return {path: (index + task) % 2 == 0 for index, path in enumerate([*net.wiring.sources, *norms, "head"])}
    return how == "nested"


def learn(net, task, how="nested", fraction=0.5, steps=2, optimizer=None, **prepare):
    """Prepare, train, prune, train and finish ``task`` with SGD (or a given optimizer, carried over)."""
    net.prepare_for_task(task, CLASSES, reading(net, how, task), optimizer=optimizer, **prepare)
    optimizer = optimizer or torch.optim.SGD(net.parameters(), 0.1)
    train(net, optimizer, steps, seed=task)
    if fraction:
        net.prune(fraction, optimizer=optimizer)
        train(net, optimizer, 1, seed=task)
    net.finish_task()
    return optimizer


def bits(tensor):
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(bytes_of(tensor)).hexdigest()


@torch.no_grad()
def recall(net, x, task):
    """Logits of a finished task in evaluation mode; the mode is put back."""
    with in_evaluation(net):
        return net(x, task=task)


@contextmanager
def in_evaluation(net):
    """A network is in evaluation mode inside, and in the mode that it was in afterwards."""
    if not net.training:
        yield
        return
    net.eval()
    try:
        yield
    finally:
        net.train()


class Memory:
    """What every finished task answered when it was finished, bit for bit, on batches of several sizes."""

    def __init__(self, net, sizes=(1, 7, 36)):
        self.batches = [batch(net, size, seed=900 + size)[0] for size in sizes]
        self.answers = []

    def note(self, net):
        """Write down the answers of tasks finished since the last call."""
        for task in range(len(self.answers), net.finished_tasks):
            self.answers.append([bits(recall(net, x, task)) for x in self.batches])

    def check(self, net, event):
        """Nothing finished may have changed."""
        assert len(self.answers) <= net.finished_tasks
        with in_evaluation(net):
            for task, answers in enumerate(self.answers):
                now = [bits(recall(net, x, task)) for x in self.batches]
                assert now == answers, f"task {task} changed after: {event}"


LIVE = ("weight", "bias", "running_mean", "running_var", "hidden_weight", "hidden_bias")


def live_tensors(net):
    """Every live parameter and live statistic of the network, heads in training included, by path."""
    found = {}
    for path, module in net.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name in LIVE and hasattr(module, "segments"):  # the router and modules of no task have none
                found[f"{path}.{name}"] = tensor
    return found


def poison(net, value=float("nan")):
    """Set everything live to ``value``; frozen tensors have other names (frozen_*)."""
    with torch.no_grad():
        for tensor in live_tensors(net).values():
            tensor.fill_(value)


@contextmanager
def poisoned(net, value=float("nan")):
    """Everything live is ``value`` inside, and what it was afterwards."""
    before = [(tensor, tensor.detach().clone()) for tensor in live_tensors(net).values()]
    poison(net, value)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in before:
                tensor.copy_(values)


def digest(net, optimizer=None):
    """SHA-256 of the network's whole state: tensors, structure, modes, records; and the optimizer's.

    It is the same for a copy of both.
    """
    sha = hashlib.sha256()
    net.wiring  # noqa: B018  found when first needed, and not part of what is compared

    def add(name, tensor):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {bits(tensor)}".encode())

    for name, tensor in net.state_dict().items():
        add(name, tensor)
    layers = [module for module in net.modules() if hasattr(module, "segments")]
    structure = {
        "segments": [repr(layer.segments) for layer in layers],
        "transfer": [getattr(layer, "forward_transfer", None) for layer in layers],
        "training": [module.training for module in net.modules()],
        "current": net.current_task,
        "shape": net.input_shape,
        "classes": net.num_classes,
        "records": [asdict(record) for record in net.records],
        "grads": [name for name, parameter in net.named_parameters() if parameter.grad is not None],
    }
    sha.update(json.dumps(structure, sort_keys=True).encode())
    if optimizer is not None:
        numbers = {id(parameter): number for number, parameter in enumerate(net.parameters())}
        for number, group in enumerate(optimizer.param_groups):
            sha.update(f"{[numbers.get(id(parameter), 'retired') for parameter in group['params']]}".encode())
            for parameter in group["params"]:
                for name, value in sorted(optimizer.state.get(parameter, {}).items()):
                    if isinstance(value, torch.Tensor):
                        add(f"{number} {name}", value)
                    else:
                        sha.update(f"{number} {name} {value!r}".encode())
    return sha.hexdigest()
