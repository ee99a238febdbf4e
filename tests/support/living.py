"""A network in the middle of a life of tasks, as random tests need it: what it is trained by, changed by, and asked."""

import copy
from contextlib import contextmanager

import torch
from any_optimizer import muon, step
from interruptions import interrupted_at, points_of
from life import batch, bits, digest, live_tensors, loss_of, poison, poisoned
from tolerances import assert_same_bits

import eidetic_kernels as ek
from eidetic_kernels.layout import prefix
from eidetic_kernels.ops.staircase import read
from eidetic_kernels.tasks import snapshots

LARGEST = 100.0  # beyond it numbers magnify rounding, and nothing is compared within tolerances


class Living:
    """Abstract. Holds ``net`` and its ``optimizer``, a ``recipe`` of such networks, a ``memory`` of finished tasks, a
    ``saved`` snapshot and what the router predicted (``routed``); subclasses say what happens to them."""

    net = optimizer = recipe = memory = saved = routed = None
    double = False
    event, number = "nothing", 0
    seen = frozenset()  # the tasks that were trained, so that there are inputs to certify them by

    @property
    def tasks(self):
        return self.net.finished_tasks + self.in_training

    @property
    def in_training(self):
        return self.net is not None and self.net.current_task is not None

    def fresh(self):
        net = self.recipe.build()
        return net.double() if self.double else net

    def finite(self):
        """Whether the task in training, if there is one, can be finished."""
        return not self.in_training or all(tensor.isfinite().all() for tensor in live_tensors(self.net).values())

    def moderate(self):
        """Whether no number of the network magnifies rounding."""
        tensors = [each for each in self.net.state_dict().values() if each.is_floating_point()]
        return all(not each.numel() or (each.isfinite() & (each.abs() < LARGEST)).all() for each in tensors)

    def steps(self, count, seed=0, samples=36, how="", optimizer=None):
        """Steps of training on the same samples."""
        net, optimizer = self.net.train(), optimizer or self.optimizer
        self.seen |= {net.current_task}
        x, y = batch(net, samples, seed=seed, classes=net.num_classes[-1])
        features = ek.FrozenFeatures(net, samples) if how == "frozen features" else None

        def loss():
            with torch.autocast("cpu", torch.bfloat16, how == "autocast"):
                if features is None:
                    return loss_of(net, x, y)
                with features.batch(torch.arange(samples)):
                    return loss_of(net, x, y)

        for _ in range(count):
            step(optimizer, loss)
            if how == "muon":
                beside = muon(net.parameters())
                for parameter in beside.param_groups[0]["params"]:
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                beside.step()

    @torch.no_grad()
    def check_frozen_features(self):
        """Frozen units compute the same in training and in evaluation (P5)."""
        net, x = self.net, self.memory.batches[0]
        if net.finished_tasks:
            spans = prefix(net.wiring.features, net.finished_tasks - 1, None)
            in_training = net.train().compute_features(x, compiled=False)
            in_evaluation = net.eval().compute_features(x, compiled=False)
            assert_same_bits("frozen features in training", read(in_training, spans), read(in_evaluation, spans))

    def change(self, event, call, cut_off, refusals=()):
        """``call(net, optimizer, snapshot)``, which changes structure; whether it did so, and was not refused.

        With ``cut_off`` it is interrupted first, at this share of its lines.
        """
        self.event = event
        held = self.net, self.optimizer, self.saved and self.saved[0]
        before = digest(*held[:2]) if refusals or cut_off is not None else None
        torch.manual_seed(self.number)
        try:
            if cut_off is None:
                call(*held)
            else:
                self._interrupt(call, held, before, cut_off)
        except refusals:
            assert digest(*held[:2]) == before, f"a refused {event} left something behind"
            return False
        return True

    def _interrupt(self, call, held, before, share):
        """Cut ``call(*held)`` off, and make it again: in between the state before or after holds."""
        whole = copied(*held)
        points = points_of(lambda: call(*whole))
        after = digest(*whole[:2])
        torch.manual_seed(self.number)
        place = interrupted_at(lambda: call(*held), points[int(share * (len(points) - 1))])
        now = digest(*held[:2])
        assert now in (before, after), f"{self.event}, cut off at {place}: neither before nor after"
        self.memory.check(self.net, f"{self.event}, cut off at {place}")
        if now == before:
            torch.manual_seed(self.number)
            call(*held)
            assert digest(*held[:2]) == after, f"{self.event}, cut off at {place} and made again: another state"

    def rescue(self):
        """A task with NaN or infinity cannot be finished; it starts over from other numbers."""
        if self.finite():
            return
        before = digest(self.net, self.optimizer)
        try:
            self.net.finish_task()
        except ek.TaskError:
            assert digest(self.net, self.optimizer) == before
            poison(self.net, 0.1)
        else:
            raise AssertionError("a task with NaN or infinity was finished")

    @contextmanager
    def changing_nothing(self):
        before = digest(self.net, self.optimizer)
        yield
        assert digest(self.net, self.optimizer) == before, f"something changed in {self.event}"

    def check_finished_tasks(self, certified=True):
        """They answer what they answered, everything live being poison; so does the router, if it knows them."""
        with poisoned(self.net):
            self.memory.check(self.net, self.event)
            if certified:
                certificate = self.net.certify()
                assert certificate.ok, f"after {self.event}: {certificate}"
                unseen = [f"- task {task}: " for task in range(self.net.finished_tasks) if task not in self.seen]
                assert all(note.startswith(tuple(unseen)) for note in certificate.notes), f"{self.event}: {certificate}"
            if self.routed is not None and self.routed[0] == self.net.finished_tasks:
                answer = bits(self.net.predict(self.memory.batches[0]).logits)
                assert answer == self.routed[1], f"the router predicts otherwise after {self.event}"


def copied(net, *others):
    """A deep copy of all, with what torch leaves out: gradients, and LBFGS' list of parameters."""
    again = copy.deepcopy((net, *others))
    for each in again:
        if isinstance(each, torch.optim.LBFGS):
            each._params, each._numel_cache = each.param_groups[0]["params"], None
    for given, parameter in zip(net.parameters(), again[0].parameters()):
        parameter.grad = None if given.grad is None else given.grad.clone()
    return again


def digest_of_live(net):
    return [(path, name, bits(tensor)) for path, name, _, tensor in snapshots.all_live(net)]


def without_dropout(net):
    for module in net.modules():
        for each in (module, getattr(module, "_plain", None)):
            for name in ("p", "dropout"):
                if isinstance(getattr(each, name, None), float):
                    setattr(each, name, 0.0)
    return net
