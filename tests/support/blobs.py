"""Tiny separable tasks, and everything that training can change in a network, by name, for exact comparison."""

import torch
from life import bits
from small_networks import MLP
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 3


def blobs(task=0, samples=48, classes=CLASSES, noise=0.4):
    """Inputs [samples, 6] around a centre for each class, and labels [samples]; each task has its own centres."""
    generator = torch.Generator().manual_seed(500 + task)
    y = torch.arange(samples) % classes
    centres = 3 * torch.randn(classes, 6, generator=generator)
    return centres[y] + noise * torch.randn(samples, 6, generator=generator), y


def loader(task=0, batch_size=16, **options):
    """The task's blobs as torch's own DataLoader, shuffled the same way in every test."""
    order = torch.Generator().manual_seed(task)
    return DataLoader(TensorDataset(*blobs(task, **options)), batch_size, shuffle=True, generator=order)


def network(widths=(20, 12), classes=CLASSES, dropout=0.0):
    """A small MLP with task 0 in training."""
    torch.manual_seed(0)
    net = MLP(widths, dropout=dropout)
    net.prepare_for_task(0, classes)
    return net


def state_of(net, optimizer=None):
    """Every tensor's bits, all segments, and the optimizer's state and rates."""
    state = {name: (tuple(tensor.shape), bits(tensor)) for name, tensor in net.state_dict().items()}
    state["segments"] = [repr(group.segments) for group in net.groups]
    state["tasks"] = (net.current_task, net.num_classes, len(net.records))
    if optimizer is not None:
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state["held"] = sorted(names[id(parameter)] for parameter in held)
        state["rates"] = [group["lr"] for group in optimizer.param_groups]
        for parameter in held:
            for key, value in optimizer.state.get(parameter, {}).items():
                shown = (tuple(value.shape), bits(value)) if isinstance(value, torch.Tensor) else value
                state[f"{names[id(parameter)]}: {key}"] = shown
    return state


def live_units(net):
    return [group.segments.live for group in net.groups]
