"""EideticNetwork's interface: what each call takes, gives, changes and refuses."""

import warnings

import pytest
import torch
from life import Memory, batch, digest, learn, recall, train
from small_networks import KINDS, MLP, NETWORKS, ConvNet, Residual

import eidetic_kernels as ek
from eidetic_kernels.tasks.routing import Router


def names(net):
    return {name for name, _ in net.named_parameters()}


def live(net):
    return [group.segments.live for group in net.groups]


def frozen(net):
    return [group.segments.frozen for group in net.groups]


def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.1)


class TestPaperListing:
    def test_the_loop_of_listing_1_runs_on_a_plain_forward(self):
        net = MLP(widths=(20, 20))
        for task in range(3):
            net.prepare_for_task(task, num_classes=3)
            optimizer = torch.optim.AdamW(net.parameters(), 0.01)
            train(net, optimizer, 3, seed=task)
            net.prune(0.7, optimizer=optimizer)
            net.finish_task()
        assert net.finished_tasks == 3 and net.num_classes == [3, 3, 3]
        net.eval()
        assert net(batch(net)[0], task=1).shape == (36, 3)

    def test_with_one_task_it_computes_what_torch_computes(self):
        net = MLP(dropout=0.0)
        net.prepare_for_task(0, 3)
        dense = torch.nn.Sequential(
            torch.nn.Linear(6, 10, bias=False),
            torch.nn.BatchNorm1d(10),
            torch.nn.ReLU(),
            torch.nn.Identity(),
            torch.nn.Linear(10, 8, bias=False),
            torch.nn.BatchNorm1d(8),
            torch.nn.ReLU(),
        )
        dense.load_state_dict(net.body.state_dict())
        x = batch(net)[0]
        torch.testing.assert_close(net.compute_features(x), dense(x))
        torch.testing.assert_close(net.body[1].running_mean, dense[1].running_mean)


class TestParameters:
    @pytest.mark.parametrize("kind", KINDS)
    def test_they_are_the_live_ones_and_the_head_in_training_only(self, kind):
        net = NETWORKS[kind]()
        for task in range(3):
            learn(net, task, max_units=0.5)
            if task == 1:
                assert not any(p.numel() for p in net.parameters()), "between tasks nothing can be trained"
        net.prepare_for_task(3, 4)
        x, y = batch(net)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        assert all(parameter.grad is not None for parameter in net.parameters())
        heads = {name for name in names(net) if name.startswith("heads")}
        assert heads == {"heads.3.weight", "heads.3.bias"}
        expected = sum(
            p.numel() for group in net.groups for layer in group.layers for p in layer.parameters(recurse=False)
        )
        expected += net.live_head.weight.numel() + net.live_head.bias.numel()
        assert sum(p.numel() for p in net.parameters()) == expected

    def test_a_pruned_unit_costs_nothing(self):
        net = MLP(widths=(10, 8), norm=False)
        net.prepare_for_task(0, 3)
        net.prune(0.5)
        assert sum(p.numel() for p in net.parameters()) == (6 + 1) * 5 + (5 + 1) * 4 + (4 + 1) * 3

    def test_frozen_tensors_are_no_parameters_and_ask_for_no_gradient(self):
        net = MLP()
        learn(net, 0)
        net.prepare_for_task(1, 3)
        held = {id(parameter) for parameter in net.parameters()}
        tensors = [b for name, b in net.named_buffers() if "frozen" in name and b.numel()]
        assert tensors and all(not b.requires_grad and id(b) not in held for b in tensors)

    def test_zero_grad_reaches_all_of_them(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        net(batch(net)[0]).sum().backward()
        net.zero_grad()
        assert all(parameter.grad is None for parameter in net.parameters())


class TestOrder:
    def test_tasks_come_in_order_from_zero(self):
        net = MLP()
        for wrong in (1, -1):
            with pytest.raises(ek.TaskError, match=r"out of order.*next task is 0"):
                net.prepare_for_task(wrong, 3)
        learn(net, 0)
        for wrong in (0, 2):
            with pytest.raises(ek.TaskError, match=r"out of order.*next task is 1"):
                net.prepare_for_task(wrong, 3)
        net.prepare_for_task(1, 3)
        with pytest.raises(ek.TaskError, match=r"task 1 is in training and the next task is 2"):
            net.prepare_for_task(1, 3)

    def test_preparing_finishes_the_task_before(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        train(net, sgd(net))
        net.prune(0.5)
        assert (net.current_task, net.finished_tasks) == (0, 0)
        net.prepare_for_task(1, 3)
        assert (net.current_task, net.finished_tasks) == (1, 1)
        assert frozen(net) == [(5,), (4,)] and live(net) == [5, 4]
        assert net.certify().ok and len(net.records) == 1

    @pytest.mark.parametrize("call", ["finish_task", "prune", "snapshot", "head", "add_head"])
    def test_calls_that_need_a_task_in_training_say_so(self, call):
        net = MLP()
        learn(net, 0)
        calls = {
            "finish_task": net.finish_task,
            "prune": lambda: net.prune(0.5),
            "snapshot": net.snapshot,
            "head": lambda: net.live_head,
            "add_head": lambda: net.add_head(3),
        }
        with pytest.raises(ek.TaskError, match=r"prepare_for_task|in training"):
            calls[call]()

    def test_finishing_refuses_nan_and_names_the_tensor(self):
        net = ConvNet()
        net.prepare_for_task(0, 3, max_units=0.5)
        with torch.no_grad():
            net.conv2.weight[0, 0, 0, 0] = float("nan")
        before = digest(net)
        with pytest.raises(ek.TaskError, match=r"conv2\.weight holds NaN"):
            net.finish_task()
        with pytest.raises(ek.TaskError, match=r"conv2\.weight holds NaN"):
            net.prepare_for_task(1, 3)
        assert digest(net) == before

    def test_finishing_refuses_nan_statistics_and_heads(self):
        for path in ("bn1.running_var", "heads.0.bias"):
            net = ConvNet()
            net.prepare_for_task(0, 3)
            with torch.no_grad():
                tensor = net.get_buffer(path) if "running" in path else net.get_parameter(path)
                tensor.fill_(float("inf"))
            with pytest.raises(ek.TaskError, match="holds NaN or infinity"):
                net.finish_task()


class TestHead:
    def test_it_may_come_later(self):
        net = MLP()
        net.prepare_for_task(0)
        with pytest.raises(ek.TaskError, match="no head"):
            net(batch(net)[0])
        with pytest.raises(ek.TaskError, match="no head"):
            net.finish_task()
        net.add_head(4)
        assert net.num_classes == [4] and net(batch(net)[0]).shape == (36, 4)
        with pytest.raises(ek.TaskError, match="once"):
            net.add_head(4)

    def test_it_may_come_after_pruning(self):
        net = MLP()
        learn(net, 0)
        net.prepare_for_task(1, forward_transfer=False)
        net.prune(0.5)
        net.add_head(3)
        assert net.live_head.weight.shape == (3, 2)
        train(net, sgd(net))
        net.finish_task()
        assert net.certify().ok

    def test_tasks_may_have_different_numbers_of_classes(self):
        net = MLP()
        for task, classes in enumerate((2, 5, 1)):
            net.prepare_for_task(task, classes, max_units=2)
        net.finish_task()
        assert net.num_classes == [2, 5, 1]
        assert [recall(net, batch(net)[0], task).shape[1] for task in range(3)] == [2, 5, 1]

    @pytest.mark.parametrize("nested, columns", [(True, 8), (False, 4)])
    def test_a_disjoint_head_reads_its_own_tasks_units_only(self, nested, columns):
        net = MLP()
        learn(net, 0)
        net.prepare_for_task(1, 3, forward_transfer={"head": nested})
        assert net.live_head.weight.shape == (3, columns)

    @pytest.mark.parametrize("classes", [0, -1, 2.0, "3"])
    def test_num_classes_must_be_a_positive_count(self, classes):
        net = MLP()
        before = digest(net)
        with pytest.raises(ek.InputError, match="num_classes"):
            net.prepare_for_task(0, classes)
        assert digest(net) == before


class TestForwardTransfer:
    def shapes(self, net):
        return {path: tuple(net.get_submodule(path).weight.shape) for path in net.wiring.sources}

    def test_true_reads_everything_earlier(self):
        net = MLP()
        learn(net, 0)
        net.prepare_for_task(1, 3, forward_transfer=True)
        assert self.shapes(net) == {"body.0": (5, 6), "body.4": (4, 10)}

    def test_false_reads_the_own_task_only(self):
        net = MLP()
        learn(net, 0)
        net.prepare_for_task(1, 3, forward_transfer=False)
        assert self.shapes(net) == {"body.0": (5, 6), "body.4": (4, 5)}

    def test_by_layer_and_layers_not_named_may(self):
        net = ConvNet()
        learn(net, 0)
        net.prepare_for_task(1, 3, forward_transfer={"conv2": False})
        first, second = net.conv1.segments, net.conv2.segments
        assert net.conv2.weight.shape[1] == first.live
        assert net.fc.weight.shape[1] == 4 * second.total
        assert net.live_head.weight.shape[1] == net.fc.segments.total

    def test_unknown_layers_are_named_with_those_there_are(self):
        net = ConvNet()
        before = digest(net)
        with pytest.raises(ek.InputError, match=r"the network has no layer 'conv9' .*; it has: conv1, conv2, fc, head"):
            net.prepare_for_task(0, 3, forward_transfer={"conv9": False})
        assert digest(net) == before

    def test_a_disjoint_layer_without_input_units_is_refused_before_anything_changes(self):
        net = MLP()
        learn(net, 0)
        before = digest(net)
        with pytest.raises(ek.CapacityError, match=r"body\.4 is to read this task's own units only"):
            net.prepare_for_task(1, 3, forward_transfer=False, max_units={"body.0": 0})
        with pytest.raises(ek.CapacityError, match=r"head is to read"):
            net.prepare_for_task(1, 3, forward_transfer={"head": False}, max_units={"body.4": 0})
        assert digest(net) == before
        net.prepare_for_task(1, 3, forward_transfer={"body.0": False}, max_units={"body.0": 0})

    def test_nested_tasks_do_use_frozen_features_and_disjoint_do_not(self):
        for nested in (True, False):
            net = MLP(norm=False, dropout=0.0)
            learn(net, 0)
            net.prepare_for_task(1, 3, forward_transfer=nested)
            x = batch(net)[0]
            before = net(x)
            net.body[0].frozen_weight.add_(1.0)
            assert torch.equal(net(x), before) != nested


class TestMaxUnits:
    @pytest.mark.parametrize(
        "limit, expected",
        [
            (None, [10, 8]),
            (3, [3, 3]),
            (100, [10, 8]),
            (0.5, [5, 4]),
            (1.0, [10, 8]),
            (0.0, [0, 0]),
            ({"body.0": 2}, [2, 8]),
            ({"body.0": 0.3, "body.4": 1}, [3, 1]),
        ],
    )
    def test_a_count_a_share_or_either_by_group(self, limit, expected):
        net = MLP()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no layer has a free unit")
            net.prepare_for_task(0, 3, max_units=limit)
        assert live(net) == expected

    def test_shares_are_of_the_width_and_never_more_than_free(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        net.prune(0.2)
        net.finish_task()
        assert frozen(net) == [(8,), (6,)]
        net.prepare_for_task(1, 3, max_units=0.5)
        assert live(net) == [2, 2]

    @pytest.mark.parametrize("limit", [-1, 1.5, "3", True, {"body.0": -2}])
    def test_nonsense_is_refused_before_anything_changes(self, limit):
        net = MLP()
        learn(net, 0)
        before = digest(net)
        with pytest.raises(ek.InputError, match="max_units"):
            net.prepare_for_task(1, 3, max_units=limit)
        assert digest(net) == before

    def test_more_than_is_free_in_a_named_group_is_refused(self):
        net = MLP()
        learn(net, 0)
        before = digest(net)
        with pytest.raises(ek.CapacityError, match=r"body\.0: 6 new units were asked for, but only 5 of 10 are free"):
            net.prepare_for_task(1, 3, max_units={"body.0": 6})
        assert digest(net) == before


class TestTasksWithoutNewUnits:
    def test_a_full_network_still_learns_a_head_and_warns(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        net.finish_task()
        with pytest.warns(UserWarning, match=r"no layer has a free unit for task 1.*max_units"):
            net.prepare_for_task(1, 3)
        before = net.live_head.weight.detach().clone()
        train(net, sgd(net))
        assert not torch.equal(net.live_head.weight, before)
        net.finish_task()
        assert frozen(net) == [(10, 0), (8, 0)] and net.certify().ok

    def test_a_layer_that_is_full_does_not_stop_the_others(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        net.prune(1.0, {"body.0": torch.arange(10.0), "body.4": torch.arange(8.0)}, keep_at_least=8)
        net.finish_task()
        assert frozen(net) == [(8,), (8,)]
        net.prepare_for_task(1, 3)  # body.4 is full
        assert live(net) == [2, 0]
        train(net, sgd(net))
        net.finish_task()
        assert net.certify().ok


class TestForward:
    def test_training_answers_for_the_task_in_training_and_recall_needs_eval(self):
        net = MLP()
        learn(net, 0)
        net.prepare_for_task(1, 4)
        x = batch(net)[0]
        net.train()
        assert net(x).shape == net(x, task=1).shape == (36, 4)
        with pytest.raises(ek.TaskError, match=r"net\.eval\(\)"):
            net(x, task=0)
        net.eval()
        assert net(x, task=0).shape == (36, 3) and net(x, task=1).shape == (36, 4)

    def test_without_a_task_in_training_one_must_be_named(self):
        net = MLP()
        with pytest.raises(ek.TaskError, match="prepare_for_task"):
            net(batch(net)[0])
        learn(net, 0)
        net.eval()
        with pytest.raises(ek.TaskError, match=r"net\(x, task=k\).*net\.predict"):
            net(batch(net)[0])

    @pytest.mark.parametrize("task", [1, -1, 7, "0", 0.5])
    def test_unknown_tasks_are_refused(self, task):
        net = MLP()
        learn(net, 0)
        net.eval()
        with pytest.raises(ek.TaskError, match="unknown"):
            net(batch(net)[0], task=task)

    def test_features_are_the_prefix_of_the_task(self):
        net = MLP()
        learn(net, 0)
        learn(net, 1)
        net.prepare_for_task(2, 3)
        net.eval()
        x = batch(net)[0]
        assert [net.compute_features(x, task).shape[1] for task in (0, 1, None)] == [4, 6, 8]
        with net._scope.running(1, False):
            torch.testing.assert_close(net.heads[1](net.compute_features(x, 1)), net(x, task=1))

    def test_recall_runs_only_the_prefix_of_its_task(self):
        net = MLP(norm=False)
        learn(net, 0)
        learn(net, 1)
        net.eval()
        widths = []
        net.body[0].register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
        net(batch(net)[0], task=0), net(batch(net)[0], task=1)
        assert widths == [net.body[0].segments.stop(0), net.body[0].segments.stop(1)] and widths[0] < widths[1]

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_input_can_be_asked_for_its_gradient(self, kind):
        """Saliency of a finished task: frozen paths included, against finite differences."""
        net = NETWORKS[kind]().double()
        learn(net, 0)
        net.prepare_for_task(1, 3)
        net.eval()
        x = batch(net, 2)[0]
        for task in (0, 1):
            leaf = x.clone().requires_grad_()
            torch.autograd.gradcheck(lambda value, task=task: net(value, task=task), leaf)


class TestPredict:
    def test_with_one_finished_task_no_router_is_needed(self):
        net = MLP()
        with pytest.raises(ek.RouterError, match="no task is finished"):
            net.predict(batch(net)[0])
        learn(net, 0)
        x = batch(net)[0]
        prediction = net.predict(x)
        assert torch.equal(prediction.task, torch.zeros(36, dtype=torch.long))
        assert torch.equal(prediction.logits, recall(net, x, 0))
        assert torch.equal(prediction.label, recall(net, x, 0).argmax(1))

    def test_a_missing_or_outdated_router_is_refused(self):
        net = MLP()
        learn(net, 0)
        learn(net, 1)
        with pytest.raises(ek.RouterError, match=r"knows 0 of 2 finished tasks.*train_router"):
            net.predict(batch(net)[0])
        net.router = Router(torch.zeros(2, 6), torch.zeros(2))
        net.predict(batch(net)[0])
        learn(net, 2)
        with pytest.raises(ek.RouterError, match="knows 2 of 3"):
            net.predict(batch(net)[0])

    def test_tasks_with_fewer_classes_are_padded_with_minus_infinity(self):
        net = MLP()
        for task, classes in enumerate((2, 4)):
            net.prepare_for_task(task, classes, max_units=3)
        net.finish_task()
        columns = sum(source.columns(None) for source in net.wiring.features)
        net.router = Router(torch.zeros(2, columns), torch.tensor([1.0, 0.0]))
        prediction = net.predict(batch(net)[0])
        assert prediction.task.unique().tolist() == [0] and prediction.logits.shape == (36, 4)
        assert (prediction.logits[:, 2:] == -torch.inf).all() and prediction.label.max() < 2
        net.router.bias = torch.tensor([0.0, 1.0])
        assert net.predict(batch(net)[0]).logits.isfinite().all()

    @pytest.mark.parametrize("mode", [True, False])
    def test_it_runs_in_evaluation_keeps_the_mode_and_makes_no_graph(self, mode):
        net = MLP()
        learn(net, 0)
        net.prepare_for_task(1, 3)
        net.train(mode)
        prediction = net.predict(batch(net)[0])
        assert net.training == mode and not prediction.logits.requires_grad
        assert all(module.training == mode for module in net.modules())
        assert torch.equal(prediction.logits, recall(net, batch(net)[0], 0))


class TestCapacity:
    def test_a_row_a_group(self):
        net = Residual()
        learn(net, 0)
        net.prepare_for_task(1, 3, max_units={"conv1": 1})
        rows = net.capacity().rows
        assert [(row.name, row.width, row.frozen, row.live, row.free) for row in rows] == [
            ("stem (+1 tied)", 6, (3,), 3, 3),
            ("conv1", 5, (3,), 1, 2),
        ]

    def test_the_table(self):
        net = MLP()
        learn(net, 0)
        learn(net, 1)
        assert str(net.capacity()).splitlines() == [
            "layer   width  task 0  task 1  live  free",
            "body.0     10       5       3     0     2",
            "body.4      8       4       2     0     2",
            "77.8 % of the units are frozen; about 0 more tasks of this size fit.",
        ]

    def test_forecast(self):
        net = MLP()
        assert net.capacity().forecast() is None
        learn(net, 0, fraction=0, max_units=2)
        assert net.capacity().forecast() == 3  # 8 // 2 = 4 and 6 // 2 = 3
        learn(net, 1, fraction=0, max_units=4)
        assert net.capacity().forecast() == 0  # 4 // 3 = 1 and 2 // 3 = 0
        assert net.capacity().frozen_share == pytest.approx(12 / 18)

    def test_forecast_ignores_layers_that_tasks_never_used(self):
        net = MLP()
        learn(net, 0, fraction=0, max_units={"body.0": 0, "body.4": 2})
        assert net.capacity().forecast() == 3


class TestWiden:
    def test_all_groups_or_by_name_for_the_next_task(self):
        net = MLP()
        learn(net, 0)
        net.widen(12)
        assert [row.width for row in net.capacity().rows] == [12, 12]
        net.widen({"body.4": 20})
        assert [row.width for row in net.capacity().rows] == [12, 20]
        net.prepare_for_task(1, 3)
        assert live(net) == [7, 16]

    def test_it_never_shrinks_and_names_are_checked(self):
        net = MLP()
        before = digest(net)
        with pytest.raises(ek.CapacityError, match=r"body\.4 cannot shrink from 8 to 7"):
            net.widen({"body.0": 20, "body.4": 7})
        with pytest.raises(ek.InputError, match=r"the network has no unit group 'nope'; it has: body\.0, body\.4"):
            net.widen({"nope": 20})
        assert digest(net) == before

    def test_in_the_middle_of_a_task_its_live_units_stay(self):
        net = MLP()
        net.prepare_for_task(0, 3)
        snapshot = net.snapshot()
        net.widen(30)
        assert live(net) == [10, 8]
        net.restore(snapshot)
        net.finish_task()
        net.prepare_for_task(1, 3)
        assert live(net) == [20, 22]


def test_new_units_start_as_torch_starts_them():
    net = MLP(widths=(400, 300), norm=False)
    learn(net, 0)
    net.prepare_for_task(1, 3)
    for layer in (net.body[0], net.body[3], net.live_head):
        bound = 1 / layer.weight.shape[1] ** 0.5
        for tensor in (layer.weight, layer.bias):
            assert tensor.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_live_normalisation_starts_afresh_for_each_task():
    net = MLP()
    learn(net, 0)
    net.prepare_for_task(1, 3)
    norm = net.body[1]
    assert (norm.weight == 1).all() and (norm.bias == 0).all() and norm.num_batches_tracked == 0
    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()


def test_recycled_units_read_nothing_stale():
    """A unit pruned in task 0 is another one in task 1: its old weights are not kept."""
    net = MLP(norm=False)
    net.prepare_for_task(0, 3)
    old = net.body[0].weight.detach().clone()
    net.prune(0.5)
    net.finish_task()
    net.prepare_for_task(1, 3)
    assert not any(torch.equal(row, other) for row in net.body[0].weight for other in old)


def test_the_whole_network_can_be_moved_to_another_dtype():
    net = MLP()
    learn(net, 0)
    net.prepare_for_task(1, 3)
    net.double()
    assert all(t.dtype in (torch.float64, torch.int64) for t in net.state_dict().values())
    train(net, sgd(net))
    net.finish_task()
    assert recall(net, batch(net)[0], 0).dtype == torch.float64


def test_a_warning_turned_into_an_error_stops_before_anything_changes():
    net = MLP()
    net.prepare_for_task(0, 3)
    before = digest(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="no layer has a free unit"):
            net.prepare_for_task(1, 3)
    assert net.current_task == 0 and digest(net) == before


@pytest.mark.parametrize("call", ["predict", "taylor", "certify"])
def test_a_module_the_user_put_in_evaluation_mode_stays_there(call):
    net = MLP()
    learn(net, 0)
    net.prepare_for_task(1, 3)
    net.train()
    net.body[1].eval()
    before = [module.training for module in net.modules()]
    if call == "predict":
        net.predict(batch(net)[0])
    elif call == "taylor":
        net.plan_pruning(0.5, "taylor", data=[batch(net)])
    else:
        net.certify()
    assert [module.training for module in net.modules()] == before


def test_a_plain_batch_norm_on_the_input_is_refused():
    class Net(ek.EideticNetwork):
        example = (6,)

        def __init__(self):
            super().__init__()
            self.norm, self.fc = torch.nn.BatchNorm1d(6, affine=False), ek.EideticLinear(6, 8)

        def forward(self, x):
            return self.fc(self.norm(x))

    net = Net()
    try:
        learn(net, 0)
    except ek.ConversionError:
        return
    memory = Memory(net)
    memory.note(net)
    learn(net, 1)
    memory.check(net, "training the next task moved the plain BatchNorm's statistics")
