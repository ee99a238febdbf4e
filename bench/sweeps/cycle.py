"""The life of a converted model, in steps that are reported one by one.

- convert: :func:`eidetic_kernels.convert` takes it, and leaves it as it was;
- bits: the outputs in evaluation are the original's, bit for bit, in batches of 1, 2 and 5;
- size: and those for inputs of another size, where the original takes them;
- prune: task 0 is trained by AdamW with decay, 30 % is pruned, and the task finished;
- tasks: a second task is learned likewise and a third begun; both finished tasks are recalled bit for bit, and
  certified;
- load: the network is saved, and loaded into another conversion of the same module: recalled alike;
- poison: with NaN in everything live, both tasks are recalled alike;
- extract: both tasks leave as plain modules that give the same logits;
- step: a training step in float64 without dropout gives the original's loss, and its outputs after it. Parameters
  that all units share, which a conversion holds fixed, are held fixed in the original too.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from conversions import lived_in, train
from life import bits, live_tensors
from torch import Tensor, nn

import eidetic_kernels as ek
from eidetic_kernels import backends

from .comparing import difference, judged, worst
from .report import Found, Report, Wrong
from .subject import CLASSES, Subject, logits_of

SAMPLES = (1, 2, 5)
PRUNED = 0.3
# Relative to the largest output. Bits are asked for; what differs by less is rounding.
SINGLE, DOUBLE, DOUBLE_ROUNDED, EXTRACTED = 1e-5, 1e-9, 1e-6, 1e-4


def examine(subject: Subject, report: Report) -> None:
    """Take a model through all steps."""
    life = Life(subject)
    if report.step("convert", life.convert):
        report.line["groups"] = len(life.net.groups)
    report.step("bits", life.bits, "convert")
    report.step("size", life.size, "convert")
    report.step("prune", life.prune, "convert")
    report.step("tasks", life.tasks, "prune")
    report.step("load", life.load, "tasks")
    report.step("poison", life.poison, "tasks")
    report.step("extract", life.extract, "tasks")
    life.net = None
    report.step("step", life.step, "convert")


class Life:
    """A model and the network made of it."""

    def __init__(self, subject: Subject):
        self.subject, self.module = subject, lived_in(subject.module).train()
        self.x = subject.batch(max(SAMPLES))
        self.y = torch.arange(len(self.x)) % CLASSES
        self.net: ek.EideticNetwork | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.answers: list[list[str]] = []

    def convert(self) -> None:
        before = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        self.net = ek.convert(self.module, self.x[:1])
        changed = [name for name, tensor in self.module.state_dict().items() if not torch.equal(tensor, before[name])]
        if changed:
            raise Wrong(f"the conversion changed {changed[0]} of the original")

    @torch.no_grad()
    def bits(self) -> Found:
        found = []
        for samples in SAMPLES:
            error = difference(self.net.eval()(self.x[:samples]), evaluated(self.module, self.x[:samples]))
            found.append(judged(f"a batch of {samples}", error, SINGLE))
        return worst(found)

    @torch.no_grad()
    def size(self) -> Found:
        if self.subject.other is None:
            return Found("not taken")
        x = self.subject.batch(2, self.subject.other)
        try:
            expected = evaluated(self.module, x)
        except Exception:  # each library says it in its own way
            return Found("not taken")
        try:
            given = self.net.eval()(x)
        except Exception as error:
            return Found("refused", f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200])
        return judged(f"a batch of {list(x.shape)}", difference(given, expected), SINGLE)

    def learn(self) -> None:
        """Train, prune and finish the task in training."""
        train(self.net, self.optimizer, self.x, self.y)
        self.net.prune(PRUNED, optimizer=self.optimizer)
        train(self.net, self.optimizer, self.x, self.y, steps=1)
        self.net.finish_task()
        self.answers.append(self.recalled(self.net, len(self.answers)))

    def prune(self) -> None:
        self.optimizer = torch.optim.AdamW(self.net.parameters(), 1e-3, weight_decay=0.1)
        self.learn()

    def tasks(self) -> None:
        with warnings.catch_warnings():  # a group keeps a grain when it is pruned, so tiny models may be full by now
            warnings.filterwarnings("ignore", "no layer has a free unit")
            self.net.prepare_for_task(1, CLASSES, optimizer=self.optimizer)
            self.learn()
            self.net.prepare_for_task(2, CLASSES, optimizer=self.optimizer)
            train(self.net, self.optimizer, self.x, self.y)
        self.compare_recall(self.net, "after two more tasks")
        certificate = self.net.certify()
        if not certificate.ok:
            raise Wrong(f"certify: {certificate}".replace("\n", "; "))

    def load(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.safetensors"
            self.net.save(path)
            loaded = ek.EideticNetwork.load(path, network=ek.convert(self.module, self.x[:1]))
        self.compare_recall(loaded, "after loading")
        with torch.no_grad():
            given, expected = (net.eval()(self.x) for net in (loaded, self.net))
        if not torch.equal(given, expected):
            raise Wrong("the task in training has other outputs after loading")

    @torch.no_grad()
    def poison(self) -> None:
        for tensor in live_tensors(self.net).values():
            tensor.fill_(float("nan"))
        if not self.net.eval()(self.x).isnan().all():
            raise RuntimeError("the poison did not reach the task in training")
        self.compare_recall(self.net, "with NaN in everything live")

    @torch.no_grad()
    def extract(self) -> Found:
        found = []
        for task in range(2):
            plain = self.net.extract(task)
            for samples in SAMPLES:
                with backends.using("torch"):  # what the plain module is made of
                    given, expected = plain(self.x[:samples]), self.net.eval()(self.x[:samples], task=task)
                rounded = judged(f"task {task} extracted", difference(given, expected), EXTRACTED)
                if task == 0:  # later tasks are promised up to rounding
                    found.append(rounded)
        return worst(found)

    def step(self) -> Found:
        plain = without_dropout(copy.deepcopy(self.module)).double()
        x = self.x.double() if self.x.is_floating_point() else self.x
        net = ek.convert(plain, x[:1])
        held = held_fixed(plain, net)
        for path in held:
            plain.get_parameter(path).requires_grad_(False)
        (loss, outputs), (our_loss, our_outputs) = (stepped(each, x, self.y) for each in (plain, net))
        error = difference(our_loss, loss)
        if error <= DOUBLE:
            error = difference(our_outputs, outputs)
        found = judged("a training step in float64", 0 if error <= DOUBLE else error, DOUBLE_ROUNDED)
        if held and found.result == "ok":
            share = sum(plain.get_parameter(path).numel() for path in held) / sum(p.numel() for p in plain.parameters())
            return Found("ok", f"held fixed: {len(held)} parameters, {share:.1%} of the numbers ({held[0]})")
        return found

    def compare_recall(self, net: ek.EideticNetwork, when: str) -> None:
        for task, answers in enumerate(self.answers):
            if self.recalled(net, task) != answers:
                raise Wrong(f"task {task} is recalled with other bits {when}")

    @torch.no_grad()
    def recalled(self, net: ek.EideticNetwork, task: int) -> list[str]:
        """SHA-256 of a finished task's logits, for each batch."""
        net.eval()
        return [bits(net(self.x[:samples], task=task)) for samples in SAMPLES]


def evaluated(module: nn.Module, x: Tensor) -> Tensor:
    """The original's logits in evaluation; it is put back into training."""
    try:
        with torch.no_grad():
            return logits_of(module.eval()(x))
    finally:
        module.train()


def held_fixed(module: nn.Module, net: ek.EideticNetwork) -> list[str]:
    """The parameters of ``module`` that no task of ``net`` trains, since all units share them."""
    fixed = {path for path, each in net.body.named_parameters() if not each.requires_grad}
    return [path for path, each in module.named_parameters() if path in fixed and each.requires_grad]


def without_dropout(module: nn.Module) -> nn.Module:
    """``module`` with every rate at 0 by which something is dropped."""
    for each in module.modules():
        if isinstance(each, nn.modules.dropout._DropoutNd) or type(each).__name__ == "StochasticDepth":
            each.p = 0.0
        for name, value in vars(each).items():
            if "drop" in name and isinstance(value, float):
                setattr(each, name, 0.0)
    return module


def stepped(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a step of SGD, and the outputs in evaluation after it."""
    optimizer = torch.optim.SGD(model.train().parameters(), 0.01)
    torch.manual_seed(5)
    loss = F.cross_entropy(logits_of(model(x)), y)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        return loss.detach(), logits_of(model.eval()(x))
