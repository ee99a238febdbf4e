"""Bad input gets a clear error and changes nothing: the whole state is compared before and after."""

import numpy as np
import pytest
import torch
from life import batch, digest, learn, train
from small_networks import KINDS, MLP, NETWORKS, ConvNet

import eidetic_kernels as ek
from eidetic_kernels.tasks.routing import Router


@pytest.fixture(params=KINDS)
def net(request):
    """One task finished, the next in training."""
    net = NETWORKS[request.param]()
    learn(net, 0)
    net.prepare_for_task(1, 3)
    train(net, torch.optim.SGD(net.parameters(), 0.1), 1)
    net.zero_grad()
    return net


@pytest.fixture
def mlp():
    net = MLP()
    learn(net, 0)
    net.prepare_for_task(1, 3)
    return net


def refused(net, error, match, call):
    """``call`` raises ``error`` and the network's whole state is what it was."""
    before = digest(net)
    with pytest.raises(error, match=match):
        call()
    assert digest(net) == before
    assert issubclass(error, ek.EideticError)


@pytest.mark.parametrize("mode", [True, False])
class TestInputs:
    def test_what_is_not_a_tensor(self, net, mode):
        x = batch(net)[0].tolist()
        refused(net.train(mode), ek.InputError, r"must be a tensor \[N, \.\.\.\]; got \[\[", lambda: net(x))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
    def test_integers(self, net, mode, dtype):
        x = batch(net)[0].abs().to(dtype)
        refused(net.train(mode), ek.InputError, rf"must be floating point, got {dtype}.*x\.float\(\)", lambda: net(x))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_another_floating_type_than_the_weights(self, net, mode, dtype):
        x = batch(net)[0].to(dtype)
        refused(net.train(mode), ek.InputError, rf"holds torch\.float32 and was given {dtype}", lambda: net(x))

    def test_too_many_features_or_channels(self, net, mode):
        x = batch(net)[0]
        wide = torch.cat([x, x], 1)
        refused(net.train(mode), ek.InputError, rf"expects an input of shape \[N, {x.shape[1]}", lambda: net(wide))

    def test_no_batch_dimension(self, net, mode):
        x = batch(net)[0][0]
        refused(net.train(mode), ek.InputError, "expects", lambda: net(x))

    def test_wrong_shapes_of_a_finished_task_and_of_predict(self, net, mode):
        x = batch(net)[0][:, 1:]
        net.eval()
        refused(net, ek.InputError, "expects an input of shape", lambda: net(x, task=0))
        refused(net.train(mode), ek.InputError, "expects an input of shape", lambda: net.predict(x))

    def test_an_image_for_a_linear_layer(self, mlp, mode):
        x = torch.randn(4, 2, 6)
        refused(mlp.train(mode), ek.InputError, r"x\.flatten\(1\)", lambda: mlp(x))


class TestTasks:
    def test_unknown_ones(self, net):
        net.eval()
        for task in (2, -1, "zero"):
            refused(net, ek.TaskError, "unknown", lambda task=task: net(batch(net)[0], task=task))

    def test_recall_in_training_mode(self, net):
        net.train()
        refused(net, ek.TaskError, r"call net\.eval\(\) first", lambda: net(batch(net)[0], task=0))

    def test_out_of_order(self, net):
        for task in (0, 1, 3, -1):
            refused(net, ek.TaskError, "out of order", lambda task=task: net.prepare_for_task(task, 3))

    def test_bad_class_counts(self, net):
        for classes in (0, -3, 2.5, "10"):
            refused(net, ek.InputError, "num_classes", lambda classes=classes: net.prepare_for_task(2, classes))

    def test_layers_without_capacity(self, net):
        name, free = net.groups[0].name, net.groups[0].segments.free
        asked = {name: free + 1}
        refused(net, ek.CapacityError, "new units were asked for", lambda: net.prepare_for_task(2, 3, True, asked))
        none = dict.fromkeys((group.name for group in net.groups), 0)
        refused(net, ek.CapacityError, "own units only", lambda: net.prepare_for_task(2, 3, False, none))

    def test_unknown_names(self, net):
        refused(
            net,
            ek.InputError,
            "the network has no layer 'nope'; it has: ",
            lambda: net.prepare_for_task(2, 3, {"nope": True}),
        )
        refused(net, ek.InputError, "has no unit group 'nope'; it has: ", lambda: net.widen({"nope": 100}))

    def test_nothing_can_shrink(self, net):
        refused(net, ek.CapacityError, "cannot shrink", lambda: net.widen(1))

    def test_a_head_twice(self, net):
        refused(net, ek.TaskError, "once", lambda: net.add_head(3))


class TestRouter:
    def test_missing(self):
        net = ConvNet()
        learn(net, 0), learn(net, 1)
        refused(net, ek.RouterError, "train_router", lambda: net.predict(batch(net)[0]))

    def test_outdated(self):
        net = MLP()
        learn(net, 0), learn(net, 1)
        net.router = Router(torch.zeros(2, 6), torch.zeros(2))
        learn(net, 2)
        refused(net, ek.RouterError, "2 of 3", lambda: net.predict(batch(net)[0]))


class TestPruning:
    @pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), "half", None])
    def test_fractions(self, mlp, fraction):
        refused(mlp, ek.InputError, r"fraction must be a number in \[0, 1\]", lambda: mlp.prune(fraction))

    @pytest.mark.parametrize("importance", ["L2", "magnitude", None, 2.5])
    def test_importance(self, mlp, importance):
        refused(mlp, ek.InputError, "importance must be one of l1, l2", lambda: mlp.prune(0.5, importance))

    def test_of(self, mlp):
        refused(mlp, ek.InputError, "of must be one of live, present, width", lambda: mlp.prune(0.5, of="all"))

    @pytest.mark.parametrize("importance", ["taylor", "hybrid"])
    def test_missing_or_empty_data(self, mlp, importance):
        refused(mlp, ek.InputError, "needs data", lambda: mlp.prune(0.5, importance))
        refused(mlp, ek.InputError, "needs data", lambda: mlp.prune(0.5, importance, data=[]))

    def test_data_of_the_wrong_shape(self, mlp):
        data = [(torch.randn(4, 9), torch.zeros(4, dtype=torch.long))]
        refused(mlp, ek.InputError, "expects an input of shape", lambda: mlp.prune(0.5, "taylor", data=data))

    def test_given_scores(self, mlp):
        first, second = torch.ones(5), torch.ones(4)
        for scores in ({"body.0": first}, {"body.0": first[1:], "body.4": second}):
            refused(mlp, ek.InputError, "one for each of its", lambda scores=scores: mlp.prune(0.5, scores))
        scores = {"body.0": first, "body.4": second, "body.9": second}
        refused(mlp, ek.InputError, "has no unit group 'body.9'", lambda: mlp.prune(0.5, scores))

    def test_no_task_in_training(self):
        net = MLP()
        learn(net, 0)
        refused(net, ek.TaskError, "prepare_for_task", lambda: net.prune(0.5))


class TestLayersOfANetwork:
    """A unit is shared with other layers, so no layer may be pruned, frozen or recycled behind the network's back."""

    @pytest.mark.parametrize(
        "call, instead",
        [("prune", r"net\.prune"), ("freeze", r"net\.finish_task"), ("recycle", r"net\.prepare_for_task")],
    )
    def test_they_point_to_the_networks_calls(self, net, call, instead):
        for group in net.groups:
            for layer in group.layers:
                arguments = ([0],) if call == "prune" else ()
                refused(net, ek.TaskError, instead, lambda layer=layer, a=arguments: getattr(layer, call)(*a))


class TestNothingFinite:
    def test_a_task_with_nan_cannot_be_finished(self, net):
        with torch.no_grad():
            next(p for p in net.parameters() if p.numel()).view(-1)[0] = float("nan")
        refused(net, ek.TaskError, "NaN or infinity", net.finish_task)
        net.prune(0.5)  # so that the next task has units
        with torch.no_grad():
            next(p for p in net.parameters() if p.numel()).view(-1)[0] = float("nan")
        refused(net, ek.TaskError, "NaN or infinity", lambda: net.prepare_for_task(2, 3))


def test_an_image_of_the_wrong_size_changes_nothing():
    net = ConvNet()
    net.prepare_for_task(0, 3)
    before = digest(net.train())
    with pytest.raises(ek.InputError):
        net(torch.randn(4, 2, 9, 9))  # bn1 and bn2 normalise before fc refuses
    assert digest(net) == before


def test_a_batch_of_one_sample_changes_nothing():
    net = ConvNet()
    net.prepare_for_task(0, 3)
    before = digest(net.train())
    with pytest.raises(ek.InputError, match="more than one value"):
        net(torch.randn(1, 2, 4, 4))  # bn1, bn2 have 16 and 4 pixels, bn3 has one value
    assert digest(net) == before


def test_an_empty_batch_is_an_input_error_and_changes_nothing():
    net = MLP()
    net.prepare_for_task(0, 3)
    before = digest(net.train())
    with pytest.raises(ek.InputError):
        net(torch.zeros(0, 6))
    assert digest(net) == before


@pytest.mark.parametrize("call", ["prune", "restore", "prepare"])
def test_a_foreign_optimizer_is_refused_before_anything_changes(call):
    net = MLP()
    net.prepare_for_task(0, 3)
    snapshot = net.snapshot()
    net.prune(0.3)
    foreign = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), 0.1)
    before = digest(net)
    calls = {
        "prune": lambda: net.prune(0.5, optimizer=foreign),
        "restore": lambda: net.restore(snapshot, foreign),
        "prepare": lambda: net.prepare_for_task(1, 3, optimizer=foreign),
    }
    with pytest.raises(ek.StaleOptimizerError):
        calls[call]()
    assert digest(net) == before


def test_bad_arguments_are_input_errors():
    net = MLP()
    net.prepare_for_task(0, 3)
    refused(net, ek.InputError, "width", lambda: net.widen(12.5))
    refused(net, ek.InputError, "width", lambda: net.widen("20"))


def test_max_units_of_unknown_groups_are_refused():
    net = MLP()
    refused(net, ek.InputError, "has no unit group 'nope'", lambda: net.prepare_for_task(0, 3, max_units={"nope": 3}))


@pytest.mark.parametrize("given", [True, -1, 1.5, -0.5, "3", float("nan"), 2**60, [3]])
def test_counts_and_shares_of_units_are_told_from_all_else(given):
    net = MLP()
    expected = r"must be a count of units \(an int, 0 or more\) or a share of the width \(a float in \[0, 1\]\); got "
    for asked in (given, {"body.0": given}):
        refused(
            net, ek.InputError, f"max_units {expected}", lambda asked=asked: net.prepare_for_task(0, 3, max_units=asked)
        )
    net.prepare_for_task(0, 3)
    refused(net, ek.InputError, f"keep_at_least {expected}", lambda: net.plan_pruning(0.5, keep_at_least=given))


@pytest.mark.parametrize("given, same", [(np.int64(3), 3), (np.float32(0.5), 0.5), (np.float64(1.0), 1.0)])
def test_counts_and_shares_may_be_numbers_of_numpy_s(given, same):
    kept, live = [], []
    for units in (given, same):
        net = MLP()
        net.prepare_for_task(0, 3, max_units=units)
        live.append([group.segments.live for group in net.groups])
        kept.append([len(part.keep) for part in net.plan_pruning(0.9, "l1", keep_at_least=units).groups])
    assert live[0] == live[1] and kept[0] == kept[1]


def test_a_head_without_classes_is_refused():
    net = MLP()
    net.prepare_for_task(0)
    refused(net, ek.InputError, "num_classes", lambda: net.add_head(0))


def test_boolean_class_counts_are_refused_whole():
    net = MLP()
    refused(net, ek.InputError, "num_classes", lambda: net.prepare_for_task(0, True))


@pytest.mark.parametrize("scores", ["list", "2d", "nan"])
def test_scores_must_be_finite_vectors(scores):
    net = MLP()
    net.prepare_for_task(0, 3)
    given = {"list": [1.0] * 10, "2d": torch.ones(10, 2), "nan": torch.full((10,), float("nan"))}[scores]
    refused(net, ek.InputError, "body.0 must be", lambda: net.prune(0.5, {"body.0": given, "body.4": torch.ones(8)}))


def test_features_of_unknown_tasks_are_task_errors():
    net = MLP()
    learn(net, 0)
    net.eval()
    for task in (7, -1):
        call = lambda task=task: net.compute_features(batch(net)[0], task)  # noqa: E731
        refused(net, ek.TaskError, "is not one of the 1 finished tasks", call)


@pytest.mark.parametrize("task", [1, -1, True, "0"])
def test_structures_of_unknown_tasks_are_task_errors(task):
    net = MLP()
    learn(net, 0)
    layer = net.body[0]
    for call in (layer.staircase, layer.mask, layer.dense_weight, layer.frozen_rows_of):
        refused(net, ek.TaskError, "is not one of the 1 finished tasks", lambda call=call: call(task))
