"""Optimizers of every kind of state: what a network is trained with must not matter to what it remembers."""

import torch
from torch import nn

import eidetic_kernels as ek
from eidetic_training.training.muon import Muon

optim = torch.optim
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: optim.AdamW(p, 0.05, weight_decay=0.1),
    "fused adam": lambda p: ek.default_optimizer(p, 0.02),
    "adam with amsgrad": lambda p: optim.Adam(p, 0.02, amsgrad=True, weight_decay=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, 0.05, weight_decay=0.1),
    "adadelta": lambda p: optim.Adadelta(p, 1.0, weight_decay=0.1),
    "adamax": lambda p: optim.Adamax(p, 0.02, weight_decay=0.1),
    "nadam": lambda p: optim.NAdam(p, 0.02, weight_decay=0.1),
    "radam": lambda p: optim.RAdam(p, 0.02, weight_decay=0.1),
    "asgd": lambda p: optim.ASGD(p, 0.05, weight_decay=0.1),
    "rprop": lambda p: optim.Rprop(p, 0.01),
    "adafactor": lambda p: optim.Adafactor(p, 0.05, weight_decay=0.1),
    "lbfgs": lambda p: optim.LBFGS(p, 0.1, max_iter=2, history_size=3),
}


def step(optimizer, loss_of_batch):
    """One step on ``loss_of_batch()``; an optimizer that evaluates the loss again may do so."""

    def closure():
        optimizer.zero_grad()
        loss = loss_of_batch()
        loss.backward()
        return loss

    if isinstance(optimizer, optim.LBFGS):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def muon(parameters):
    """Muon for the matrices among ``parameters``, which must have gradients; the others keep still."""
    matrices = [p for p in parameters if p.dim() > 1 and p.numel() and p.requires_grad]
    return Muon(matrices or [nn.Parameter(torch.ones(1, 1))], 0.05)
