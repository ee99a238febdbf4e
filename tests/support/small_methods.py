"""Methods under small conditions: a few blobs for each task, a small network, a few epochs."""

import torch
from blobs import CLASSES, blobs
from life import bits
from small_networks import MLP

from eidetic_training.methods import Conditions


def conditions(network=None, epochs=4, optimizer="adam", lr=0.02, seed=0, polish=0):
    return Conditions(network or (lambda: MLP((16, 12), dropout=0.0)), epochs, optimizer, lr, seed, polish)


def batches(task, samples=48, size=16):
    """The task's blobs, always in the same order."""
    x, y = blobs(task, samples=samples)
    return list(zip(x.split(size), y.split(size)))


def clashing(task):
    """Inputs that all tasks share, and labels drawn for each task: features for one task are useless for another."""
    generator = torch.Generator().manual_seed(task)
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(77))
    y = torch.randint(0, 3, (32,), generator=generator)
    return list(zip(x.split(16), y.split(16)))


def images(task, samples=24, size=12):
    """Random images [2, 4, 4], separable by a class's own pattern."""
    generator = torch.Generator().manual_seed(900 + task)
    y = torch.arange(samples) % CLASSES
    patterns = 2 * torch.randn(CLASSES, 2, 4, 4, generator=generator)
    x = patterns[y] + 0.3 * torch.randn(samples, 2, 4, 4, generator=generator)
    return list(zip(x.split(size), y.split(size)))


def learned(method, tasks=1, data=batches):
    for task in range(method.tasks, tasks):
        method.learn(data(task), CLASSES)
    return method


def answers(method, task, data=batches):
    """Logits of a task's own inputs."""
    return method.logits(torch.cat([x for x, _ in data(task)]), task)


def accuracy(method, task, data=batches):
    y = torch.cat([y for _, y in data(task)])
    return float((answers(method, task, data).argmax(1) == y).float().mean())


def body_bits(network):
    """SHA-256 of each parameter of a plain network's body."""
    return {name: bits(p) for name, p in network.body_parameters()}
