"""Any torch optimizer keeps in step: its state is cut with its parameters, successors take their parents' places."""

import copy
import pickle
import warnings

import pytest
import torch
from life import CLASSES, batch, digest, learn, loss_of, train
from small_networks import KINDS, MLP, NETWORKS, ConvNet
from torch.nn import functional as F

import eidetic_kernels as ek

CUTTABLE = {
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adam-foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "sgd-fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "sgd-without-momentum": lambda p: torch.optim.SGD(p, 0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
}


@pytest.fixture(params=CUTTABLE)
def make(request):
    return CUTTABLE[request.param]


def copy_state(entry):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in entry.items()}


def held(optimizer):
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def by_name(net, optimizer):
    return {name: copy_state(optimizer.state[p]) for name, p in net.named_parameters() if p in optimizer.state}


def kept_by_hand(net, plan, tasks):
    """For each parameter of MLP() with ``tasks`` finished: the rows and columns that the plan keeps of it."""
    (first, second) = net.groups
    keep = {part.name: part.keep for part in plan.groups}
    columns = {}
    for group in net.groups:
        frozen = group.segments.frozen_total
        columns[group.name] = torch.cat([torch.arange(frozen), frozen + keep[group.name]])
    return {
        "body.0.weight": (keep[first.name], None),
        "body.1.weight": (keep[first.name], None),
        "body.1.bias": (keep[first.name], None),
        "body.4.weight": (keep[second.name], columns[first.name]),
        "body.5.weight": (keep[second.name], None),
        "body.5.bias": (keep[second.name], None),
        f"heads.{tasks}.weight": (None, columns[second.name]),
        f"heads.{tasks}.bias": (None, None),
    }


def take(value, rows, columns):
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    value = value if rows is None else value[rows]
    return value if columns is None else value[:, columns]


@pytest.mark.parametrize("tasks", [0, 2])
def test_state_is_cut_along_with_its_parameter(make, tasks):
    net = MLP()
    for task in range(tasks):
        learn(net, task)
    net.prepare_for_task(tasks, 3)
    optimizer = make(net.parameters())
    train(net, optimizer, 3)

    before = by_name(net, optimizer)
    values = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    plan = net.prune(0.5, "random", optimizer=optimizer)
    kept, after = kept_by_hand(net, plan, tasks), by_name(net, optimizer)
    assert list(after) == list(before)

    for name, parameter in net.named_parameters():
        rows, columns = kept[name]
        assert torch.equal(parameter, take(values[name], rows, columns)), name
        for key, value in before.get(name, {}).items():
            cut = take(value, rows, columns)
            now = after[name][key]
            same = torch.equal(now, cut) if isinstance(cut, torch.Tensor) else now == cut
            assert same, f"{name}: {key}"
    assert held(optimizer) == [id(parameter) for parameter in net.parameters()]


def test_the_next_step_is_that_of_an_optimizer_cut_by_hand(make):
    net = MLP(dropout=0.0)
    net.prepare_for_task(0, 3)
    optimizer = make(net.parameters())
    train(net, optimizer, 3)
    net.prune(0.5, optimizer=optimizer)
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in net.parameters()]
    by_hand = make(copies)
    for mine, theirs in zip(copies, net.parameters()):
        by_hand.state[mine] = copy_state(optimizer.state[theirs])
    optimizer.zero_grad()
    loss_of(net, *batch(net)).backward()
    for mine, theirs in zip(copies, net.parameters()):
        mine.grad = theirs.grad.clone()
    optimizer.step(), by_hand.step()
    for mine, theirs in zip(copies, net.parameters()):
        assert torch.equal(mine, theirs)


def test_pruned_several_times_before_the_optimizer_is_told(make):
    """adopt() follows the whole chain of successors."""
    net = MLP()
    net.prepare_for_task(0, 3)
    optimizer = make(net.parameters())
    train(net, optimizer, 2)
    before = by_name(net, optimizer)
    first = kept_by_hand(net, net.prune(0.3), 0)
    second = kept_by_hand(net, net.prune(0.3), 0)
    net.adopt(optimizer)
    for name, entry in by_name(net, optimizer).items():
        for key, value in entry.items():
            expected = take(take(before[name][key], *first[name]), *second[name])
            assert torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected
    train(net, optimizer, 1)


@pytest.mark.parametrize("empty", ["pruned away", "never there"])
def test_empty_segments_take_part_in_every_step(make, empty):
    net = MLP()
    learn(net, 0)
    net.prepare_for_task(1, 3, max_units={"body.0": 0} if empty == "never there" else None)
    optimizer = make(net.parameters())
    train(net, optimizer, 1)
    net.prune(1.0, keep_at_least=0, optimizer=optimizer)
    assert [group.segments.live for group in net.groups] == [0, 0]
    before = net.live_head.bias.detach().clone()
    train(net, optimizer, 2)
    assert not torch.equal(net.live_head.bias, before)
    net.prepare_for_task(2, 3, optimizer=optimizer)  # units come back where there were none
    assert all(group.segments.live for group in net.groups)
    weights = [parameter.detach().clone() for parameter in net.parameters()]
    train(net, optimizer, 2)
    assert all(not torch.equal(old, new) for old, new in zip(weights, net.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_one_optimizer_through_the_life_of_a_network(kind):
    net = NETWORKS[kind]()
    net.prepare_for_task(0, 3, max_units=0.5)
    optimizer = torch.optim.Adam(net.parameters(), 0.01, fused=True)
    train(net, optimizer, 2)
    learn(net, 1, optimizer=optimizer, max_units=0.5)
    net.prepare_for_task(2, 3, optimizer=optimizer)
    assert set(held(optimizer)) == {id(parameter) for parameter in net.parameters()}
    assert not any(optimizer.state.get(parameter) for parameter in net.parameters()), "new units have no past"
    before = [parameter.detach().clone() for parameter in net.parameters()]
    train(net, optimizer, 2)
    assert all(optimizer.state.get(parameter) for parameter in net.parameters())
    for old, new in zip(before, net.parameters()):  # a unit whose ReLU never fires has no gradient to follow
        assert torch.equal(old, new) == (not new.grad.any())


class TestStateThatCannotBeCut:
    def test_adafactors_factored_moments_start_afresh_with_a_warning(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        optimizer = torch.optim.Adafactor(net.parameters(), 0.01)
        train(net, optimizer, 2)
        with pytest.warns(UserWarning, match=r"optimizer state 'row_var' \(shape .*cannot be cut.*starts afresh"):
            net.prune(0.5, optimizer=optimizer)
        assert not optimizer.state.get(net.body[0].weight)
        before = net.body[0].weight.detach().clone()
        train(net, optimizer, 2)
        assert not torch.equal(net.body[0].weight, before)

    def test_state_of_a_shape_of_its_own_is_reset_alone(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        train(net, optimizer, 1)
        optimizer.state[net.body[0].weight]["history"] = [1, 2, 3]
        with pytest.warns(UserWarning, match=r"'history' \(list\)") as caught:
            net.prune(0.5, optimizer=optimizer)
        assert len(caught) == 1
        assert not optimizer.state.get(net.body[0].weight)
        assert "momentum_buffer" in optimizer.state[net.body[4].weight]


class TestStale:
    @pytest.mark.parametrize("event", ["prune", "restore", "next task", "finish"])
    def test_an_optimizer_left_behind_is_refused_at_its_next_step(self, make, event):
        net = MLP()
        net.prepare_for_task(0, 3)
        optimizer = make(net.parameters())
        train(net, optimizer, 1)
        snapshot = net.snapshot()
        if event in ("prune", "restore"):
            net.prune(0.5)
        if event == "restore":
            net.adopt(optimizer)
            net.restore(snapshot)
        if event == "next task":
            net.prune(0.5, optimizer=optimizer)
            net.prepare_for_task(1, 3)
        if event == "finish":
            net.finish_task()
        before = digest(net)
        with pytest.raises(ek.StaleOptimizerError, match=r"would train nothing.*net\.prepare_for_task"):
            optimizer.step()
        assert digest(net) == before

    def test_after_adopting_it_steps_again(self, make):
        net = MLP()
        net.prepare_for_task(0, 3)
        optimizer = make(net.parameters())
        net.prune(0.5)
        net.adopt(optimizer)
        train(net, optimizer, 1)

    def test_one_that_was_always_current_steps(self, make):
        net = MLP()
        net.prepare_for_task(0, 3)
        net.prune(0.5)
        train(net, make(net.parameters()), 2)

    def test_an_optimizer_of_another_network_is_not_adopted(self):
        net, other = MLP(), MLP()
        net.prepare_for_task(0, 3), other.prepare_for_task(0, 3)
        optimizer = torch.optim.Adam(other.parameters())
        before = held(optimizer)
        with pytest.raises(ek.StaleOptimizerError, match="holds none of this network's current parameters"):
            net.adopt(optimizer)
        assert held(optimizer) == before

    def test_optimizers_of_other_networks_are_left_alone(self):
        net, other, plain = MLP(), MLP(), torch.nn.Linear(3, 3)
        net.prepare_for_task(0, 3), other.prepare_for_task(0, 3)
        optimizers = [torch.optim.Adam(other.parameters()), torch.optim.Adam(plain.parameters())]
        before = [held(optimizer) for optimizer in optimizers]
        net.prune(0.5)
        net.finish_task()
        net.prepare_for_task(1, 3)
        assert [held(optimizer) for optimizer in optimizers] == before
        train(other, optimizers[0], 1)
        plain(torch.ones(1, 3)).sum().backward()
        optimizers[1].step()


class TestParameterGroups:
    def groups_of(self, net, **second):
        body = [p for name, p in net.named_parameters() if name.startswith("body")]
        head = [p for name, p in net.named_parameters() if name.startswith("heads")]
        return [{"params": body, "lr": 0.1}, {"params": head, "lr": 0.7, **second}]

    def test_successors_stay_in_the_group_of_their_parents(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        optimizer = torch.optim.SGD(self.groups_of(net, momentum=0.5), 0.1, momentum=0.9)

        def check():
            body, head = optimizer.param_groups
            assert (body["lr"], body["momentum"], head["lr"], head["momentum"]) == (0.1, 0.9, 0.7, 0.5)
            assert {id(p) for p in head["params"]} == {id(p) for p in net.live_head.parameters()}
            others = {id(p) for p in net.parameters()} - {id(p) for p in net.live_head.parameters()}
            assert {id(p) for p in body["params"]} == others

        train(net, optimizer, 1)
        net.prune(0.5, optimizer=optimizer)
        check()
        train(net, optimizer, 1)
        net.prepare_for_task(1, 4, optimizer=optimizer)  # the head's successor, with another number of classes
        check()
        train(net, optimizer, 1)
        net.prune(1.0, optimizer=optimizer)
        net.prepare_for_task(2, 2, optimizer=optimizer)
        check()
        train(net, optimizer, 1)

    def test_a_head_that_comes_late_joins_when_adopted(self):
        net = MLP()
        net.prepare_for_task(0)
        optimizer = torch.optim.SGD([{"params": list(net.parameters()), "lr": 0.3}], 0.1)
        net.add_head(3)
        assert id(net.live_head.weight) not in held(optimizer)
        net.adopt(optimizer)
        assert {id(p) for p in net.parameters()} == set(held(optimizer))
        before = net.live_head.weight.detach().clone()
        train(net, optimizer, 1)
        assert not torch.equal(net.live_head.weight, before)

    def test_parameters_the_user_left_out_stay_out(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        chosen = [p for name, p in net.named_parameters() if not name.startswith("body.0")]
        optimizer = torch.optim.SGD(chosen, 0.1)
        net.prune(0.5, optimizer=optimizer)
        assert id(net.body[0].weight) not in held(optimizer) and len(held(optimizer)) == len(chosen)

    def test_parameters_of_other_modules_are_trained_along(self):
        net, extra = MLP(), torch.nn.Parameter(torch.ones(3))
        net.prepare_for_task(0, 3)
        optimizer = torch.optim.Adam([*net.parameters(), extra], 0.1)
        net.prune(0.5, optimizer=optimizer)
        net.prepare_for_task(1, 3, optimizer=optimizer)
        assert id(extra) in held(optimizer)
        extra.sum().backward()
        optimizer.step()
        assert not torch.equal(extra, torch.ones(3))

    def test_no_parameter_is_held_twice(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        optimizer = torch.optim.Adam(net.parameters())
        for task in (1, 2):
            net.prune(0.3, optimizer=optimizer)
            net.adopt(optimizer)
            net.prepare_for_task(task, 3, max_units=3, optimizer=optimizer)
            net.adopt(optimizer)
            assert len(held(optimizer)) == len(set(held(optimizer)))


def test_no_memory_of_retired_parameters_remains():
    """State of parameters that are gone would grow with every pruning step."""
    net = ConvNet()
    net.prepare_for_task(0, 3)
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(4):
        train(net, optimizer, 1)
        net.prune(0.2, optimizer=optimizer)
    assert {id(p) for p in optimizer.state} <= {id(p) for p in net.parameters()}
    net.prepare_for_task(1, 3, optimizer=optimizer)
    assert not optimizer.state


def test_retired_parameters_lose_their_gradient():
    net = MLP()
    net.prepare_for_task(0, 3)
    loss_of(net, *batch(net)).backward()
    old = net.body[0].weight
    net.prune(0.5)
    assert old.grad is None


def test_pruning_between_forward_and_backward_does_not_break_the_graph():
    """Parameters are replaced, not resized, so a graph that is still alive can be used."""
    net = MLP()
    net.prepare_for_task(0, 3)
    old = net.body[0].weight
    loss = loss_of(net, *batch(net))
    net.prune(0.5)
    loss.backward()
    assert old.grad.shape == old.shape


def test_the_default_optimizer_is_fused_adam():
    net = MLP()
    net.prepare_for_task(0, 3)
    optimizer = ek.default_optimizer(net.parameters(), lr=0.02)
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["fused"] and optimizer.param_groups[0]["lr"] == 0.02
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer, 1)


def lbfgs(net):
    """LBFGS after a step, and the function that makes one more."""
    optimizer = torch.optim.LBFGS(net.parameters(), 0.1, max_iter=4)
    x, y = batch(net)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(net, x, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return optimizer, lambda: optimizer.step(closure)


@pytest.mark.parametrize("event", ["prune", "next task"])
def test_lbfgs_goes_on_training_after_units_went(event):
    net = MLP(norm=False, dropout=0.0)
    net.prepare_for_task(0, 3)
    optimizer, step = lbfgs(net)
    with pytest.warns(UserWarning, match="starts afresh"):
        net.prune(0.3, optimizer=optimizer)
    if event == "next task":
        net.prepare_for_task(1, 3, optimizer=optimizer)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    step()
    assert all(not torch.equal(old, new) for old, new in zip(before, net.parameters()))


def test_lbfgs_starts_afresh_where_its_first_parameter_stays_and_another_is_cut():
    """It keeps one vector of all parameters, as the state of the first one."""
    net = MLP((7, 6), norm=False, dropout=0.0)
    net.prepare_for_task(0, 3)
    optimizer, step = lbfgs(net)
    first, second = net.groups
    scores = {first.name: torch.zeros(7), second.name: torch.ones(6)}
    with pytest.warns(UserWarning, match="starts afresh"):
        net.prune(0.3, scores, across_layers=True, optimizer=optimizer)
    assert first.segments.live < 7 and second.segments.live == 6
    assert optimizer.param_groups[0]["params"][0] is net.live_head.weight
    step()


def test_a_snapshot_of_lbfgs_holds_copies_of_its_lists():
    net = MLP((7, 6), norm=False, dropout=0.0)
    net.prepare_for_task(0, 3)
    optimizer, step = lbfgs(net)
    snapshot = net.snapshot(optimizer)
    step()
    expected = [parameter.detach().clone() for parameter in net.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.prune(0.5, optimizer=optimizer)
    step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.restore(snapshot, optimizer)
    step()
    assert all(torch.equal(parameter, value) for parameter, value in zip(net.parameters(), expected))


class TestTheHeadIsLeftOut:
    """An optimizer made before ``prepare_for_task`` does not hold the head that it makes."""

    def loop(self, net, *optimizers, steps=3):
        x, y = batch(net)
        for _ in range(steps):
            for optimizer in optimizers:
                optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()

    def test_it_is_told_at_the_second_step(self):
        net = MLP((7, 6))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        net.prepare_for_task(0, CLASSES, max_units=7)
        self.loop(net, optimizer, steps=1)
        with pytest.raises(ek.StaleOptimizerError, match="head .* would stay untrained.*net.adopt"):
            self.loop(net, optimizer, steps=1)

    def test_after_a_single_step_the_task_is_not_finished(self):
        net = MLP((7, 6))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        net.prepare_for_task(0, CLASSES)
        self.loop(net, optimizer, steps=1)
        with pytest.raises(ek.StaleOptimizerError, match="would stay untrained"):
            net.finish_task()
        assert net.current_task == 0

    def test_adopt_mends_it(self):
        net = MLP((7, 6))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        net.prepare_for_task(0, CLASSES)
        net.adopt(optimizer)
        before = net.live_head.weight.detach().clone()
        self.loop(net, optimizer)
        assert not torch.equal(before, net.live_head.weight)
        net.finish_task()

    def test_one_of_several_optimizers_may_hold_it(self):
        net = MLP((7, 6))
        net.prepare_for_task(0, CLASSES)
        head = set(net.live_head.parameters())
        body = torch.optim.SGD([p for p in net.parameters() if p not in head], 0.1)
        self.loop(net, body, torch.optim.AdamW(head, 0.01))
        net.prune(0.5, optimizer=body)  # columns of the head go: its parameter is another from now on
        net.finish_task()

    def test_a_head_that_is_held_fixed_is_no_mistake(self):
        net = MLP((7, 6))
        net.prepare_for_task(0, CLASSES)
        net.live_head.requires_grad_(False)
        self.loop(net, torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1))
        net.finish_task()

    def test_copies_and_pickles_are_as_they_were(self):
        net = MLP((7, 6))
        net.prepare_for_task(0, CLASSES)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            self.loop(other, torch.optim.SGD(other.parameters(), 0.1))
            other.finish_task()

    def mid_task(self):
        net = MLP((7, 6))
        net.prepare_for_task(0, CLASSES, max_units=0.5)
        return net

    def loaded(self, net, folder):
        net.save(folder / "net")
        return MLP.load(folder / "net")

    @pytest.mark.parametrize("again", ["deepcopy", "pickle", "load", "copy of a copy"])
    def test_copies_pickles_and_loaded_networks_tell_it_too(self, again, tmp_path):
        net = self.mid_task()
        if again == "load":
            net = self.loaded(net, tmp_path)
        elif again == "pickle":
            net = pickle.loads(pickle.dumps(net))
        else:
            net = copy.deepcopy(net if again == "deepcopy" else copy.deepcopy(net))
        optimizer = torch.optim.SGD(net.body.parameters(), 0.1)
        self.loop(net, optimizer, steps=1)
        with pytest.raises(ek.StaleOptimizerError, match=r"would stay untrained.*live_head\.requires_grad_\(False\)"):
            self.loop(net, optimizer, steps=1)
        with pytest.raises(ek.StaleOptimizerError, match="would stay untrained"):
            net.finish_task()
        net.adopt(optimizer)
        self.loop(net, optimizer)
        net.finish_task()

    def test_a_copy_and_its_original_are_watched_apart(self):
        net = self.mid_task()
        other = copy.deepcopy(net)
        self.loop(net, torch.optim.SGD(net.parameters(), 0.1))
        with pytest.raises(ek.StaleOptimizerError):
            self.loop(other, torch.optim.SGD(other.body.parameters(), 0.1))
        net.finish_task()
        copy.deepcopy(net).prepare_for_task(1, CLASSES)  # a head that is finished needs no watch
