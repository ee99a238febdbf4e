"""Training the router: the last head, on the meta task (paper, section 3.4)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import InputError, NonFiniteLossError, TaskError
from eidetic_kernels.modes import evaluating
from eidetic_kernels.tasks.base import device_of
from eidetic_kernels.tasks.routing import Router, of_tasks

from ..data import MetaLoader, TensorLoader
from .annealing import annealed
from .events import Callback, Event, units_of
from .muon import Muon
from .trained_convolutions import TrainedConvolutions


def train_router(
    network: EideticNetwork,
    loaders: Iterable[Iterable],
    *,
    max_epochs: int = 30,
    patience: int = 3,
    polish_epochs: int = 0,
    lr: float = 1e-3,
    batch_size: int = 256,
    hidden: int = 0,
    dropout: float = 0.2,
    label_smoothing: float = 0.0,
    weight_decay: float = 0.0,
    layers: bool = False,
    inputs: bool = False,
    convolutions: Sequence[int] | None = None,
    augment: bool = False,
    alone: bool = False,
    mirrored: bool = False,
    classes: bool = False,
    examples: int | None = None,
    seed: int = 0,
    max_cached_bytes: int = 2**31,
    callbacks: Sequence[Callback] = (),
) -> float:
    """Train the task classifier on all tasks' data, relabelled by task. Returns its training accuracy in [0, 1],
    that of the epoch whose weights are kept.

    The body is frozen, so its features are computed once and kept, as long as they need no more than
    ``max_cached_bytes`` and no loader augments; else they are computed anew every epoch. The network changes only
    when training is done.

    Args:
        loaders: one for each finished task, in order, of batches (x, y); only ``classes`` looks at the labels y.
        max_epochs, patience: training stops when accuracy has not improved for ``patience`` epochs, or is 1.
        polish_epochs: in so many epochs after that the learning rate falls to zero.
        lr: of AdamW, which trains the map and its biases; weights of convolutions have Muon's own rate.
        hidden: ReLU units between features and tasks; 0 is the paper's linear map. They help where tasks lie in one
            domain. ``dropout`` is on them, while they are trained.
        label_smoothing, weight_decay: of the loss and of AdamW; where there are many columns to learn by heart.
        layers: whether the router reads what every layer computes, and not the features alone. It helps where tasks lie
            in one domain: what distinguishes two tasks' classes need not matter to either.
        inputs: whether it reads the input itself, flattened, too: what no task needed is in no unit.
        convolutions: channels of each stage of a convolutional network of the router's own over the input, trained with
            it (see :class:`eidetic_kernels.router_convolutions.RouterConvolutions`); None is none. The body may be one
            that cannot name the task of an image.
        augment: whether these see every image cropped and mirrored at random. What the router reads of the body is that
            of the image as it is, and still computed once.
        alone: whether convolutions alone name the task, and nothing of the body is read: of images that it was trained
            on, its features say more than of others.
        mirrored: whether scores are the mean over the image and its mirror image, as convolutions see them: twice their
            cost in inference.
        classes: whether it learns to tell the classes of all tasks apart, and not tasks; a task's score is then the log
            of the sum of its classes' exponentials. A class's label says more of an image than that of a task whose
            classes are not alike. Not the paper's, which relabels all data by task.
        examples: use so many samples of each task, drawn from its loader's first epoch; None uses all. What one would
            keep of a task whose data goes away.

    Raises RouterError where ``layers`` cannot be read (windows, parameters), TaskError while a task is in training or
    when loaders and finished tasks differ in number, InputError where convolutions cannot read the input,
    NonFiniteLossError when the loss is not finite.
    """
    loaders = list(loaders)
    counts = {"max_epochs": max_epochs, "patience": patience, "batch_size": batch_size}
    if examples is not None:
        counts["examples"] = examples
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number, 1 or more; got {value!r}.")
    if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 0:
        raise InputError(f"hidden must be a whole number of units, 0 or more; got {hidden!r}.")
    if isinstance(polish_epochs, bool) or not isinstance(polish_epochs, int) or polish_epochs < 0:
        raise InputError(f"polish_epochs must be a whole number, 0 or more; got {polish_epochs!r}.")
    for name, value in {"dropout": dropout, "label_smoothing": label_smoothing}.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} must lie in [0, 1); got {value!r}.")
    if not weight_decay >= 0:
        raise InputError(f"weight_decay must be 0 or more; got {weight_decay!r}.")
    # A single number is refused with the others.
    stages = (0,) if isinstance(convolutions, int) else tuple(convolutions or ())
    if any(isinstance(each, bool) or not isinstance(each, int) or each < 1 for each in stages):
        raise InputError(f"convolutions must be numbers of channels, 1 or more, a stage; got {convolutions!r}.")
    for name, given in {"augment": augment, "mirrored": mirrored}.items():
        if given and not stages:
            raise InputError(f"{name} is of what convolutions see: give convolutions=(64, 128, 256), or {name}=False.")
    if alone and (not stages or layers or inputs):
        raise InputError(
            "alone=True has convolutions alone name the task: give convolutions=(64, 128, 256), and neither layers nor "
            "inputs; or alone=False."
        )
    if network.current_task is not None:
        raise TaskError(f"task {network.current_task} is in training: finish it before training the router.")
    if len(loaders) != network.finished_tasks:
        raise TaskError(
            f"{len(loaders)} loaders were given for {network.finished_tasks} finished tasks: the router needs data of "
            "each."
        )
    started = time.perf_counter()
    if examples is not None:
        loaders = [_kept(loader, examples, batch_size, classes) for loader in loaders]
    # Images come as the last columns, whether or not the map reads them.
    reads = (layers, inputs or bool(stages))
    told_apart = tuple(head.out_features for head in network.heads) if classes else None
    meta = MetaLoader(loaders, batch_size, seed=seed, classes=told_apart)
    data = _features(network, meta, reads, max_cached_bytes)
    mean, deviation = _moments(data)
    images, pixels, ahead = None, 0, 0
    if stages:
        images = TrainedConvolutions(network.input_shape, stages, augment).to(mean.device)
        pixels, ahead = math.prod(images.shape), stages[-1]
        read = 0 if alone else len(mean) if inputs else len(mean) - pixels
        mean, deviation = mean[:read], deviation[:read]
    tasks = len(loaders)
    owners = torch.arange(tasks, device=mean.device)  # of what is scored
    if told_apart is not None:
        owners = owners.repeat_interleave(torch.tensor(told_apart, device=mean.device))
    parameters = _parameters(len(owners), ahead + len(mean), hidden, mean.device)
    optimizers = [_optimizer(parameters, lr, weight_decay)]
    if images is not None:
        optimizers += [_optimizer(images.shifts(), lr, 0.0), Muon(images.weights)]

    def epoch(number: int) -> float:
        samples, correct, losses = 0, torch.zeros((), device=mean.device), torch.zeros((), device=mean.device)
        for rows, target in data:
            columns = (rows[:, : len(mean)] - mean) / deviation
            if images is not None:
                columns = torch.cat([images(rows[:, -pixels:]), columns], 1)
            scores = _scores(columns, parameters, dropout)
            loss = F.cross_entropy(scores, target, label_smoothing=label_smoothing)
            for each in optimizers:
                each.zero_grad()
            loss.backward()
            for each in optimizers:
                each.step()
            samples += len(target)
            with torch.no_grad():
                correct += (of_tasks(scores, told_apart).argmax(1) == owners[target]).sum()
                losses += loss * len(target)
        if not math.isfinite(losses.item()):
            raise NonFiniteLossError(
                f"the router's loss became NaN or infinite in epoch {number} at learning rate {lr}; the network is as "
                "it was. Check the loaders' inputs, or lower the learning rate."
            )
        accuracy, seconds = correct.item() / samples, time.perf_counter() - started
        event = Event(seconds, tasks, "router", number, 0, losses.item() / samples, accuracy, **units_of(network))
        for callback in callbacks:
            callback(event)
        return accuracy

    best, since, kept, kept_images = -1.0, 0, parameters, images
    for number in range(1, max_epochs + 1):
        accuracy = epoch(number)
        if accuracy > best:
            best, since, kept = accuracy, 0, [p.detach().clone() for p in parameters]
            kept_images = copy.deepcopy(images)
        else:
            since += 1
        if accuracy == 1 or since >= patience:
            break
    for done, *_ in zip(*(annealed(each, polish_epochs) for each in optimizers)):
        best, kept, kept_images = epoch(number + 1 + done), parameters, images
    # The standardisation becomes part of the first map, so that inference needs no other step.
    kept = [p.detach() for p in kept]
    scaled = kept[-2][:, ahead:] / deviation
    folded = [*kept[:-2], torch.cat([kept[-2][:, :ahead], scaled], 1), kept[-1] - scaled @ mean]
    own = None if images is None else kept_images.folded()
    router = Router(*folded, layers=layers, inputs=inputs, convolutions=own, mirrored=mirrored, classes=told_apart)
    network.router = router.to(network.heads[0].frozen_weight.dtype)
    return best


def _optimizer(parameters: list[Tensor], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)


def _parameters(tasks: int, columns: int, hidden: int, device: torch.device) -> list[Tensor]:
    """Weight and bias, then those of the hidden layer where there is one: the order of :class:`Router`'s arguments."""
    weight = torch.zeros(tasks, hidden or columns, device=device)
    layers = [weight, torch.zeros(tasks, device=device)]
    if hidden:
        first = torch.randn(hidden, columns, device=device) * math.sqrt(2 / columns)
        layers += [first, torch.zeros(hidden, device=device)]
    return [tensor.requires_grad_() for tensor in layers]


def _scores(features: Tensor, parameters: list[Tensor], dropout: float) -> Tensor:
    if len(parameters) == 4:
        features = F.dropout(F.linear(features, *parameters[2:]).relu(), dropout)
    return F.linear(features, *parameters[:2])


def _kept(loader: Iterable, examples: int, batch_size: int, with_labels: bool) -> TensorLoader:
    """``examples`` inputs of a task, as its loader gives them first."""
    parts, labels, rows = [], [], 0
    for x, y in loader:
        parts.append(x[: examples - rows])
        none = torch.zeros(len(parts[-1]), dtype=torch.long)
        labels.append((y[: examples - rows] if with_labels else none).to(x.device))
        rows += len(parts[-1])
        if rows == examples:
            break
    if not parts:
        raise InputError("a loader gave no batch, expected at least one.")
    return TensorLoader(torch.cat(parts), torch.cat(labels), batch_size)


class _Computed:
    """Batches (features, task index), computed anew every epoch."""

    def __init__(self, network: EideticNetwork, meta: MetaLoader, reads: tuple[bool, bool]):
        self.network, self.meta, self.reads = network, meta, reads

    def __iter__(self):
        device = device_of(self.network)
        for x, task in self.meta:
            with torch.no_grad(), evaluating(self.network):
                _, features = self.network.routing_features(x.to(device), *self.reads)
            yield features.float(), task.to(device)


def _features(
    network: EideticNetwork, meta: MetaLoader, reads: tuple[bool, bool], max_bytes: int
) -> Iterable[tuple[Tensor, Tensor]]:
    computed = _Computed(network, meta, reads)
    if meta.has_augmentation:
        return computed
    features, tasks, used = [], [], 0
    for each, task in computed:
        used += each.numel() * each.element_size()
        if used > max_bytes:
            return computed
        features.append(each)
        tasks.append(task)
    if not features:
        raise InputError("the loaders gave no batch.")
    return TensorLoader(torch.cat(features), torch.cat(tasks), meta.batch_size, seed=meta.seed)


def _moments(data: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [columns] of the features, in float64 and back."""
    count, total, squares = 0, 0, 0
    for features, _ in data:
        values = features.double()
        count, total, squares = count + len(values), total + values.sum(0), squares + values.square().sum(0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    # A unit that never fires carries nothing; dividing by its deviation would only blow up rounding.
    deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    return mean.float(), deviation.float()
