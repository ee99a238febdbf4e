"""Random lives of random networks: any order of all that can be done to one, and what must hold after each event."""

import copy
import pickle
import random
import tempfile
from collections import Counter
from pathlib import Path

import torch
from any_optimizer import OPTIMIZERS
from dense_reference import DenseReference, assert_masks_are_the_papers, assert_only_these_went, dense_weights
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from life import Memory, batch, bits, digest, loss_of, poison, recall
from living import Living, copied, digest_of_live, without_dropout
from random_networks import ROUNDS_BY_CHANNELS, recipes
from threads import in_threads, switching_often
from tolerances import assert_close, assert_same_bits
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.layers import EideticBatchNorm
from eidetic_kernels.tasks.pruning import COUNTED
from eidetic_kernels.tasks.transfer import transferring

MOST_TASKS = 5
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
ROUNDING = {"condition": 100, "least": 1.0}  # of what is computed in another way
RULES = {}  # by name: what may happen, and how often


def may_happen(often):
    """A rule, which happens as often as ``often(life)`` says, 0 where it cannot.

    Hypothesis' own rules are all as frequent. In each life it leaves out half of them, and throws lives away in which
    no rule is left.
    """

    def register(rule):
        RULES[rule.__name__] = rule, often
        return rule

    return register


def question(may_be_asked):
    """A rule that changes nothing, or takes back what it changed; of a network that has finished a task."""

    def register(rule):
        def ask(self, draw):
            self.event = f"{rule.__name__}()"
            with self.changing_nothing():
                rule(self, draw)

        RULES[rule.__name__] = ask, lambda life: life.net.finished_tasks > 0 and may_be_asked(life)
        return ask

    return register


def always(life):
    return True


def while_training(weight):
    return may_happen(lambda life: weight * life.in_training)


# Where a call is cut off first, as a share of its lines; one call in eight is.
cut_offs = st.integers(0, 79).map(lambda n: (n - 30) / 9 if 30 <= n < 40 else None)


class Life(Living, RuleBasedStateMachine):
    """Any order of events. After each: finished tasks give the same bits and are certified beside poison (P1, P3, P6),
    masks are the paper's, and the task in training equals the dense masked network, forward and backward (P4)."""

    events = Counter()  # how many there were of each kind, over all lives
    # After how many events certificates are asked for, and the dense masked network.
    certificate_every, oracle_every = 2, 3
    structure = compared = None

    @initialize(
        recipe=recipes,
        double=st.sampled_from([True, False, False]),
        optimizer=st.sampled_from(sorted(OPTIMIZERS)),
        seed=st.integers(0, 99),
        samples=st.sampled_from([3, 3, 33]),
        fractions=st.lists(st.sampled_from([0.0, 0.4, 0.7, 1.0]), max_size=3),
        compiles=st.integers(0, 19).map(lambda n: n == 7),
    )
    def begin(self, recipe, double, optimizer, seed, samples, fractions, compiles):
        """A network that may have learned tasks already, each pruned by a fraction of its units."""
        torch.manual_seed(seed)
        self.recipe, self.double, self.compiles, self.make = recipe, double, compiles, OPTIMIZERS[optimizer]
        self.net = self.fresh()
        self.memory, self.transfers = Memory(self.net, sizes=(samples,)), [True] * self.in_training
        for fraction in fractions:
            if not self.in_training:
                self.net.prepare_for_task(self.net.finished_tasks, 3, max_units=0.6)
                self.transfers.append(True)
            self.steps(1, optimizer=torch.optim.SGD(self.net.parameters(), 0.1))
            self.net.prune(fraction) if fraction else None
            self.net.finish_task()
            self.memory.note(self.net)
        self.optimizer = self.make(self.net.parameters()) if self.in_training else None
        self.event = "construction()"

    @rule(data=st.data())
    def something_happens(self, data):
        able = [name for name, (_, often) in RULES.items() for _ in range(often(self))]
        drawn = data.draw(st.integers(0, 2**32))  # Hypothesis likes 0 best, which must not mean one rule
        name = random.Random(f"{self.recipe} {self.number} {drawn}").choice(able)
        note(f"# {name}:")
        RULES[name][0](self, data.draw)

    # ---- the life of a task

    @may_happen(lambda life: 0 if life.tasks == MOST_TASKS else 2 if life.in_training else 8)
    def prepare(self, draw):
        net, paths = self.net, [*transferring(self.net.segmented_layers()), "head"]
        transfer = draw(st.one_of(st.booleans(), st.fixed_dictionaries(dict.fromkeys(paths, st.booleans()))))
        taken = [group.segments.frozen_total + group.segments.live * self.in_training for group in net.groups]
        free = [group.segments.width - units for group, units in zip(net.groups, taken)]
        if not self.tasks and not self.in_training:  # the first task begins with the units that are there
            free = [group.segments.live for group in net.groups]
        each = st.fixed_dictionaries({group.name: st.integers(0, most) for group, most in zip(net.groups, free)})
        units = draw(st.one_of(each, each, st.sampled_from([None, 1, 0.3])))
        task, classes, keep = self.tasks, draw(st.integers(1, 3)), self.optimizer is not None and draw(st.booleans())

        # A copy of an optimizer knows nothing of what follows the parameters of a finished task.
        cut_off = draw(cut_offs) if self.in_training or not keep else None

        self.rescue()
        done = self.change(
            f"prepare({transfer}, {units})",
            lambda net, held, _: net.prepare_for_task(task, classes, transfer, units, held if keep else None),
            cut_off,
            ek.CapacityError,  # a disjoint layer whose input got no unit
        )
        if not done:
            return
        self.optimizer, self.saved = self.optimizer if keep else self.make(net.parameters()), None
        self.transfers.append(transfer)
        self.memory.note(net)
        if isinstance(units, dict):
            assert [group.segments.live for group in net.groups] == [
                group.segments.fitting(units[group.name], most) for group, most in zip(net.groups, free)
            ]

    @while_training(8)
    def train(self, draw):
        how = draw(st.sampled_from(["", "", "autocast", "frozen features", "muon"]))
        self.event = f"train({how})"
        self.check_frozen_features()
        self.steps(draw(st.integers(1, 2)), draw(st.integers(0, 9)), draw(st.sampled_from([5, 36])), how)

    @may_happen(lambda life: 8 * (life.in_training and life.compiles and life.finite()))
    def train_compiled(self, draw):
        """Finished tasks are recalled as Python, and certificates are of what Python computes."""
        self.event, self.compiles = "train_compiled()", False
        self.net.compile(backend="eager")
        try:
            self.steps(1)
            self.check_finished_tasks()
        finally:
            self.net._compiled_call_impl = None
            torch._dynamo.reset()

    @while_training(2)
    def train_absurdly(self, draw):
        """At an absurd learning rate, or over poison; then back to what was, or not."""
        value = draw(st.sampled_from([float("nan"), float("inf"), 1e2, 1e5, 1e30]))
        self.event, snapshot, live = (
            f"train_absurdly({value})",
            self.net.snapshot(self.optimizer),
            digest_of_live(self.net),
        )
        rate = value if 1 < value < float("inf") else 0.1
        if rate != value:
            poison(self.net, value)
        self.steps(2, optimizer=torch.optim.SGD(self.net.parameters(), rate, momentum=0.9, weight_decay=0.5))
        if draw(st.booleans()):
            self.memory.check(self.net, self.event)
            self.net.restore(snapshot, self.optimizer)
            assert digest_of_live(self.net) == live

    @while_training(4)
    def prune(self, draw):
        fraction = draw(st.sampled_from([0.0, 0.2, 0.2, 0.5, 0.5, 1.0]))
        importance = draw(st.sampled_from(["l1", "l2", "random", "taylor", "hybrid"]))
        before = [group.segments.live for group in self.net.groups]
        across = None if importance == "hybrid" else draw(st.sampled_from([None, True, False]))
        of, data = draw(st.sampled_from(COUNTED)), [batch(self.net, classes=self.net.num_classes[-1])]
        plan = self.net.plan_pruning(fraction, importance, of=of, data=data, across_layers=across)
        weights = dense_weights(self.net)
        self.change(f"prune({fraction})", lambda net, held, _: net.apply_plan(plan, held), draw(cut_offs))
        if self.finite():
            assert_only_these_went(self.net, weights, plan)
        live = [group.segments.live for group in self.net.groups]
        assert sum(before) - sum(live) == plan.removed
        if fraction in (0.0, 1.0):
            assert live == (before if fraction == 0.0 else [0] * len(live))

    @while_training(2)
    def snapshot(self, draw):
        self.event, self.saved = "snapshot()", (self.net.snapshot(self.optimizer), digest_of_live(self.net))

    @may_happen(lambda life: 4 * (life.saved is not None and life.event != "snapshot()"))
    def restore(self, draw):
        self.change("restore()", lambda net, held, snapshot: net.restore(snapshot, held), draw(cut_offs))
        assert digest_of_live(self.net) == self.saved[1]

    @while_training(4)
    def finish(self, draw):
        self.rescue()
        self.change("finish()", lambda net, *_: net.finish_task(), draw(cut_offs))
        self.saved = None
        self.memory.note(self.net)

    @may_happen(lambda life: 2)
    def widen_or_align(self, draw):
        more = draw(st.integers(0, 2))
        if more:
            width = {group.name: group.segments.width + more for group in self.net.groups}
            self.change(f"widen({more})", lambda net, *_: net.widen(width), draw(cut_offs))
        else:
            multiple = draw(st.integers(1, 4))
            self.change(f"align({multiple})", lambda net, *_: net.align(multiple), draw(cut_offs))

    # ---- copies

    @may_happen(lambda life: 2)
    def copy(self, draw):
        how, example = draw(st.sampled_from(["deepcopy", "pickle", "save", "save"])), self.net.example
        self.event = f"{how}()"
        if how != "deepcopy":
            self.net.zero_grad()
            self.saved = None
        if how != "deepcopy" or not self.in_training:
            self.optimizer = None

        before = digest(self.net.train(), self.optimizer)
        if how == "deepcopy":
            self.net, self.optimizer, self.saved = copied(self.net, self.optimizer, self.saved)
        elif how == "pickle":
            self.net = pickle.loads(pickle.dumps(self.net))
        else:
            with tempfile.TemporaryDirectory() as folder:
                self.net.save(Path(folder, "net"))
                self.net = ek.EideticNetwork.load(Path(folder, "net"), self.recipe.architecture)

        self.net.example = example
        assert digest(self.net, self.optimizer) == before
        if self.in_training and self.optimizer is None:
            self.optimizer = self.make(self.net.parameters())

    # ---- questions

    @question(always)
    def channels_last(self, draw):
        self.net.to(memory_format=torch.channels_last)
        self.check_finished_tasks()
        self.net.to(memory_format=torch.contiguous_format)

    @question(lambda life: not life.double and life.moderate())
    def double_and_back(self, draw):
        """The same numbers in float64, and no false alarm; back in float32 the same bits."""
        x = self.memory.batches[0]
        answers = [recall(self.net, x, task) for task in range(self.net.finished_tasks)]
        self.net.double()
        for task, expected in enumerate(answers):
            assert_close(f"task {task} in float64", recall(self.net, x.double(), task).float(), expected, **ROUNDING)
        self.net.certify().check()
        self.net.float()

    @question(always)
    def predict(self, draw):
        """Each sample is answered by the task that it was routed to, as that task answers."""
        rule = draw(st.sampled_from(["learned", "joint", "entropy", "energy", "max_logit"]))
        x = batch(self.net, draw(st.integers(1, 4)), seed=5)[0]
        try:
            prediction = self.net.predict(x, rule)
        except ek.RouterError:
            known = self.routed and self.routed[0]
            assert rule in ("learned", "joint") and 1 < self.net.finished_tasks != known
            return
        answers = [recall(self.net, x, task) for task in range(self.net.finished_tasks)]
        for row, task in enumerate(prediction.task.tolist()):
            answer, name = answers[task][row], f"sample {row}, task {task}"
            if self.recipe.kind not in ROUNDS_BY_CHANNELS:
                assert_same_bits(name, prediction.logits[row][: len(answer)], answer)
            elif self.moderate():
                assert_close(name, prediction.logits[row][: len(answer)], answer, **ROUNDING)

    @question(always)
    @torch.no_grad()
    def extract(self, draw):
        task, x = draw(st.integers(0, self.net.finished_tasks - 1)), self.memory.batches[0]
        plain = self.net.extract(task)
        if self.moderate():
            assert_close(f"task {task} extracted", plain(x), recall(self.net, x, task), **ROUNDING)

    @question(always)
    def answers_in_threads(self, draw):
        """Threads recall all tasks, and predict, while nothing trains."""
        net, training, x, wrong = self.net, self.net.training, self.memory.batches[0], []
        expected = net.eval().predict(x, "entropy").logits

        def predict():
            for _ in range(3):
                wrong.extend([1] * (bits(net.predict(x, "entropy").logits) != bits(expected)))

        recalls = lambda: self.memory.check(net, "recalls in other threads")  # noqa: E731
        with switching_often():
            assert in_threads(recalls, predict, recalls) == [None] * 3 and not wrong
        net.train(training)

    @may_happen(lambda life: life.net.finished_tasks > 0 and not life.in_training)
    def train_router(self, draw):
        hidden, reads = draw(st.sampled_from([0, 3])), draw(st.sampled_from(["", "layers", "inputs"]))
        options = {"hidden": hidden, "max_epochs": 1, **({reads: True} if reads else {})}
        loaders = [[batch(self.net, 9, seed=task)] for task in range(self.net.finished_tasks)]
        done = self.change(
            f"router({options})",
            lambda net, *_: net.train_router(loaders, **options),
            draw(cut_offs),
            (ek.RouterError, ek.NonFiniteLossError),  # layers that cannot be read; tasks of infinite features
        )
        if done:
            self.routed = self.net.finished_tasks, bits(self.net.predict(self.memory.batches[0]).logits)

    # ---- what must hold

    @invariant()
    def nothing_is_forgotten(self):
        if self.net is None:
            return
        self.number += 1
        self.events[self.event.split("(")[0]] += 1
        self.check_finished_tasks(self.number % self.certificate_every == 0)
        structure = [repr(group.segments) for group in self.net.groups]
        if self.transfers and self.structure != structure:
            self.structure = structure
            assert_masks_are_the_papers(self.net, self.transfers)
        if self.in_training and self.number % self.oracle_every == 0 and self.moderate():
            live = digest_of_live(self.net)
            if live != self.compared:
                self.compared = live
                twin = without_dropout(copy.deepcopy(self.net).double())
                assert_equal_to_the_dense_network(twin.train(self.number % (2 * self.oracle_every) > 0))


def assert_equal_to_the_dense_network(net):
    """The task in training equals the dense masked network, forward and backward, in the mode that it is in."""
    x, y = batch(net, 5, seed=77, classes=net.num_classes[-1])
    reference = DenseReference(net)
    ours, theirs = loss_of(net, x, y), F.cross_entropy(reference(x), y)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    if normalises_a_constant(net, x):  # to 0 but for rounding, whose sign decides ReLU's gradient
        return
    net.zero_grad(), ours.backward(), theirs.backward()
    for path, parameter, dense, cut in reference.pairs(net):
        # Units that no live unit and no head reads have no gradient here, and zeros in the dense network.
        given = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(given, cut(dense.grad), **CLOSE, msg=lambda m, p=path: f"{p}: {m}")
    for path, statistic, dense in reference.statistics(net):
        torch.testing.assert_close(statistic, dense, **CLOSE, msg=lambda m, p=path: f"{p}: {m}")


def normalises_a_constant(net, x):
    """Whether a BatchNorm is given a unit that is the same for all samples: that of a layer which reads no unit."""
    twin, constant = copy.deepcopy(net), []

    def look(norm, given, _):
        (x,) = given[:1]
        if x.numel():
            samples = x.movedim(1, -1).flatten(0, -2)
            constant.append(bool((samples.var(0, correction=0) < 1e-20).any()))

    for module in twin.modules():
        if isinstance(module, EideticBatchNorm):
            module.register_forward_hook(look)
    with torch.no_grad():
        twin(x)
    return any(constant)
