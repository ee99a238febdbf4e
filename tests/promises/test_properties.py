"""P1, P3 and equality with the dense masked network, over random small networks and random lives of tasks."""

import copy
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from dense_reference import DenseReference, assert_masks_are_the_papers
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from life import Memory, batch, digest, learn, loss_of, poison, train
from small_networks import MLP, ConvNet, FlatResidual, Grouped, Residual
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.tasks import snapshots

MOST_TASKS = 5
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
}
width = st.integers(1, 6)
networks = st.one_of(
    st.builds(MLP, st.lists(width, min_size=1, max_size=3).map(tuple), st.booleans(), st.just(0.0)),
    st.builds(ConvNet, st.tuples(width, width, width), st.booleans(), st.just(0.0)),
    st.builds(Residual, width, width, st.booleans(), st.just(0.0)),
    st.builds(FlatResidual, width, width, st.booleans(), st.just(0.0)),
    st.builds(Grouped, st.sampled_from([3, 6, 9]), st.sampled_from([2, 4, 6]), st.booleans(), st.just(0.0)),
)


class Life(RuleBasedStateMachine):
    """Any order of events. After each: finished tasks give the same bits, also with everything live poisoned, and
    the task in training equals the dense masked network, forward and backward."""

    @initialize(
        net=networks,
        optimizer=st.sampled_from(sorted(OPTIMIZERS)),
        seed=st.integers(0, 99),
        fractions=st.lists(st.sampled_from([0.0, 0.4, 0.7, 1.0]), max_size=3),
    )
    def begin(self, net, optimizer, seed, fractions):
        """A network that may have learned tasks already, each pruned by a fraction of its units."""
        torch.manual_seed(seed)
        self.net, self.make, self.optimizer, self.saved = net.double(), OPTIMIZERS[optimizer], None, None
        self.memory = Memory(self.net, sizes=(3,))
        self.event = f"construction, then tasks pruned by {fractions}"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no layer has a free unit")
            for task, fraction in enumerate(fractions):
                learn(self.net, task, fraction=fraction, steps=1, max_units=0.6)
                self.memory.note(self.net)
        self.transfers = [True] * len(fractions)

    def in_training(self):
        return self.net.current_task is not None

    @precondition(lambda self: self.net.finished_tasks + self.in_training() < MOST_TASKS)
    @rule(data=st.data(), classes=st.integers(1, 3), keep=st.booleans())
    def prepare(self, data, classes, keep):
        net, paths = self.net, [*self.net.wiring.sources, "head"]
        transfer = data.draw(st.one_of(st.booleans(), st.fixed_dictionaries(dict.fromkeys(paths, st.booleans()))))
        taken = [group.segments.frozen_total + group.segments.live * self.in_training() for group in net.groups]
        free = [group.segments.width - units for group, units in zip(net.groups, taken)]
        units = {g.name: data.draw(st.integers(0, f)) for g, f in zip(net.groups, free)}
        before = digest(net, self.optimizer)
        optimizer = self.optimizer if keep else None
        self.event = f"prepare({transfer}, {units})"
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "no layer has a free unit")
                net.prepare_for_task(net.finished_tasks + self.in_training(), classes, transfer, units, optimizer)
        except ek.CapacityError:  # a disjoint layer whose input got no unit: nothing may have changed
            assert digest(net, self.optimizer) == before
            return
        self.optimizer, self.saved = optimizer or self.make(net.parameters()), None
        self.transfers.append(transfer)
        assert [group.segments.live for group in net.groups] == [
            group.segments.fitting(units[group.name], most) for group, most in zip(net.groups, free)
        ]
        self.memory.note(net)

    @precondition(in_training)
    @rule(steps=st.integers(1, 2), seed=st.integers(0, 9))
    def train(self, steps, seed):
        self.event = "train"
        train(self.net, self.optimizer, steps, seed)

    @precondition(in_training)
    @rule(
        fraction=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
        of=st.sampled_from(["live", "width"]),
        importance=st.sampled_from(["l1", "l2", "random", "taylor", "hybrid"]),
    )
    def prune(self, fraction, of, importance):
        self.event = f"prune({fraction}, {importance}, {of})"
        live = [group.segments.live for group in self.net.groups]
        data = [batch(self.net, classes=self.net.num_classes[-1])]
        plan = self.net.prune(fraction, importance, of=of, data=data, optimizer=self.optimizer)
        assert sum(live) - sum(group.segments.live for group in self.net.groups) == plan.removed
        if fraction in (0.0, 1.0):
            kept = [group.segments.live for group in self.net.groups]
            assert kept == (live if fraction == 0.0 else [0] * len(live))

    @rule(multiple=st.integers(1, 4))
    def align(self, multiple):
        self.event = f"align({multiple})"
        self.net.align(multiple)

    @precondition(in_training)
    @rule()
    def snapshot(self):
        self.saved = self.net.snapshot(self.optimizer), digest_of_live(self.net)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def restore(self):
        self.event = "restore"
        snapshot, live = self.saved
        self.net.restore(snapshot, self.optimizer)
        assert digest_of_live(self.net) == live

    @precondition(in_training)
    @rule()
    def finish(self):
        self.event, self.saved = "finish", None
        self.net.finish_task()
        self.memory.note(self.net)

    @rule(more=st.integers(0, 2))
    def widen(self, more):
        self.event = "widen"
        self.net.widen({group.name: group.segments.width + more for group in self.net.groups})

    @rule(copying=st.booleans())
    def copy_or_save_and_load(self, copying):
        """In float64, which the saved class does not know of, so that the architecture is handed to load."""
        self.event = "deepcopy" if copying else "save and load"
        self.net.zero_grad()
        before = digest(self.net.train())
        if copying:
            self.net = copy.deepcopy(self.net)
        else:
            args, kwargs = self.net.constructor_arguments
            with tempfile.TemporaryDirectory() as folder:
                self.net.save(Path(folder, "net"))
                self.net = ek.EideticNetwork.load(Path(folder, "net"), type(self.net)(*args, **kwargs).double())
        assert digest(self.net) == before or self.event == "deepcopy"
        self.saved = None
        self.optimizer = self.make(self.net.parameters()) if self.in_training() else None

    @invariant()
    def finished_tasks_give_the_same_bits(self):
        if hasattr(self, "net"):
            self.memory.check(self.net, self.event)
            poisoned = copy.deepcopy(self.net)
            poison(poisoned)
            self.memory.check(poisoned, f"{self.event}, everything live poisoned")
            assert self.net.certify().ok, str(self.net.certify())
            if self.transfers:
                assert_masks_are_the_papers(self.net, self.transfers)

    @invariant()
    def the_task_in_training_equals_the_dense_masked_network(self):
        if not hasattr(self, "net") or not self.in_training():
            return
        net = copy.deepcopy(self.net)
        x, y = batch(net, 5, seed=77, classes=net.num_classes[-1])
        for mode in (True, False):
            net.train(mode)
            reference = DenseReference(net)
            ours = loss_of(net, x, y)
            theirs = F.cross_entropy(reference(x), y)
            torch.testing.assert_close(ours, theirs, **CLOSE)
            net.zero_grad(), ours.backward(), theirs.backward()
            for path, parameter, dense, cut in reference.pairs(net):
                # Units that no live unit and no head reads have no gradient here, and zeros in the dense network.
                given = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.testing.assert_close(given, cut(dense.grad), **CLOSE, msg=lambda m, p=path: f"{p}: {m}")
            for path, statistic, dense in reference.statistics(net):
                torch.testing.assert_close(statistic, dense, **CLOSE, msg=lambda m, p=path: f"{p}: {m}")


def digest_of_live(net):
    return [(path, name, tensor.tolist()) for path, name, _, tensor in snapshots.all_live(net)]


Life.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=14,
    derandomize=True,
    deadline=None,
    database=None,
    # A failing life is printed as found: shrinking one can take longer than the whole suite.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_any_life_of_tasks = pytest.mark.usefixtures("reproducible")(Life.TestCase)
