"""Importance scores against straightforward recomputation, and the plan: which units go, and what stays untouched."""

import pytest
import torch
from life import batch, digest, learn, train
from small_networks import MLP, ConvNet, FlatResidual, Residual
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.tasks.importance import scores_of


def prepared(net, tasks=0, **prepare):
    """``net`` with ``tasks`` finished and another one in training, a few steps in."""
    for task in range(tasks):
        learn(net, task)
    net.prepare_for_task(tasks, 3, **prepare)
    train(net, torch.optim.SGD(net.parameters(), 0.1), 2)
    return net


def kept(plan):
    return {group.name: group.keep.tolist() for group in plan.groups}


def lowest_removed(scores, count):
    """The indices that stay when the ``count`` lowest scores go; ascending."""
    order = sorted(range(len(scores)), key=lambda unit: (float(scores[unit]), unit))
    return sorted(order[count:])


def taylor_by_loop(net, data):
    """Mean over samples and pixels of |activation x gradient| of each live unit, one sample at a time."""
    totals = {group.name: torch.zeros(group.segments.live, dtype=torch.float64) for group in net.groups}
    samples = 0
    training = net.training
    net.eval()
    for x, y in data:
        for index in range(len(x)):
            outputs = {}

            def keep(module, args, output, outputs=outputs):
                output.retain_grad()
                outputs[module] = output

            layers = [layer for group in net.groups for layer in group.producers.values()]
            handles = [layer.register_forward_hook(keep) for layer in layers]
            sample = x[index : index + 1].clone().requires_grad_()  # asks for exact gradients everywhere
            F.cross_entropy(net(sample), y[index : index + 1]).backward()
            for handle in handles:
                handle.remove()
            for group in net.groups:
                for layer in group.producers.values():
                    product = (outputs[layer] * outputs[layer].grad).abs().detach().double()[0]
                    per_unit = product.flatten(1).mean(1) if product.dim() > 1 else product
                    totals[group.name] += per_unit[group.segments.frozen_total :]
            samples += 1
    net.zero_grad()
    net.train(training)
    return {name: total / samples for name, total in totals.items()}


class TestScores:
    @pytest.mark.parametrize("norm", [1, 2])
    @pytest.mark.parametrize("make", [MLP, ConvNet, Residual, FlatResidual], ids=lambda kind: kind.__name__)
    def test_weight_norms_of_rows_tied_producers_together(self, norm, make):
        net = prepared(make(), tasks=1)
        plan = net.plan_pruning(0.5, f"l{norm}")
        for group, part in zip(net.groups, plan.groups):
            scores = [
                torch.cat([layer.weight[unit].detach().flatten() for layer in group.producers.values()]).norm(norm)
                for unit in range(group.segments.live)
            ]
            assert part.keep.tolist() == lowest_removed(scores, max(1, round(0.5 * group.segments.live)))

    def test_a_tied_unit_is_saved_by_either_of_its_producers(self):
        net = FlatResidual(norm=False)
        net.prepare_for_task(0, 3)
        with torch.no_grad():
            net.stem.weight.fill_(0.1), net.outer.weight.fill_(0.1)
            net.stem.weight[2] = net.outer.weight[5] = 9.0
        plan = net.plan_pruning(0.75, "l2")
        assert kept(plan)["stem (+1 tied)"] == [2, 5]

    @pytest.mark.parametrize("make", [MLP, ConvNet, Residual, FlatResidual], ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("tasks", [0, 2])
    def test_taylor_is_the_mean_of_activation_times_gradient_sample_by_sample(self, make, tasks):
        net = prepared(make().double(), tasks)
        x, y = batch(net, 11)
        data = [(x[:8], y[:8]), (x[8:], y[8:])]  # ragged batches count sample by sample
        _, scores = scores_of(net, "taylor", data, F.cross_entropy, None)
        for name, expected in taylor_by_loop(net, data).items():
            assert len(expected) and expected.sum() > 0
            torch.testing.assert_close(scores[name].double(), expected, rtol=1e-5, atol=1e-9)

    def test_taylor_compares_all_units_of_the_network(self):
        net = prepared(MLP(widths=(10, 8)))
        with torch.no_grad():  # units whose activations hardly matter
            net.body[0].weight[:7].mul_(1e-4)
        data = [batch(net, 20)]
        scores = taylor_by_loop(net, data)
        threshold = torch.cat(list(scores.values())).sort().values[9]  # 5 + 4 units go, wherever they are
        plan = net.plan_pruning(0.5, "taylor", data=data)
        assert plan.removed == 9 and plan.groups[0].removed >= 7
        for name, keep in kept(plan).items():
            assert keep == (scores[name] >= threshold).nonzero().flatten().tolist()

    def test_hybrid_bounds_what_a_layer_may_lose(self):
        """Taylor alone would take everything from the layer whose gradients are small."""
        net = prepared(MLP(widths=(40, 40), norm=False, dropout=0.0))
        data = [batch(net, 20)]
        with torch.no_grad():
            net.body[0].weight[:35].mul_(1e-4), net.body[0].bias[:35].mul_(1e-4)

        taylor = {part.name: part.removed for part in net.plan_pruning(0.25, "taylor", data=data).groups}
        hybrid = net.plan_pruning(0.25, "hybrid", data=data)
        removed = {part.name: part.removed for part in hybrid.groups}
        assert sum(taylor.values()) == sum(removed.values()) == 20
        assert all(5 <= count <= 20 for count in removed.values())

        scores = taylor_by_loop(net, data)
        for part in hybrid.groups:  # within a layer the order is Taylor's
            assert part.keep.tolist() == lowest_removed(scores[part.name], part.removed)

        normalised = {name: score / score.mean() for name, score in scores.items()}
        floor = dict.fromkeys(scores, 5)
        free = sorted(
            (value, name)
            for name, score in normalised.items()
            for value in score.sort().values[floor[name] : 20].tolist()
        )[: 20 - sum(floor.values())]
        assert removed == {name: floor[name] + sum(n == name for _, n in free) for name in scores}

    def test_random_follows_its_generator(self):
        net = prepared(MLP(widths=(50, 50)))

        def plan(seed):
            return kept(net.plan_pruning(0.5, "random", generator=torch.Generator().manual_seed(seed)))

        assert plan(1) == plan(1) != plan(2)
        keep = plan(1)["body.0"]
        assert len(keep) == 25 and keep != list(range(25)) and keep != list(range(25, 50))

    def test_given_scores_decide(self):
        net = prepared(MLP(widths=(4, 3)))
        scores = {"body.0": torch.tensor([3.0, 1.0, 4.0, 2.0]), "body.4": torch.tensor([0.0, 0.0, 1.0])}
        plan = net.plan_pruning(0.5, scores)
        assert plan.importance == "given"
        assert kept(plan) == {"body.0": [0, 2], "body.4": [2]}

    @pytest.mark.parametrize("across, expected", [(None, [5, 5]), (False, [5, 5]), (True, [2, 8])])
    def test_given_scores_are_compared_over_all_layers_on_request(self, across, expected):
        net = prepared(MLP(widths=(10, 10)))
        low, high = torch.arange(10.0), torch.arange(10.0) + 6  # the ten lowest are 0..7 of one and 6, 7 of the other
        plan = net.plan_pruning(0.5, {"body.0": high, "body.4": low}, across_layers=across)
        assert [part.removed for part in plan.groups] == expected
        assert kept(plan)["body.0"] == list(range(expected[0], 10))

    def test_taylor_takes_the_same_from_each_layer_on_request(self):
        net = prepared(MLP(widths=(10, 8)))
        with torch.no_grad():
            net.body[0].weight[:7].mul_(1e-4)
        data = [batch(net, 20)]
        plan = net.plan_pruning(0.5, "taylor", data=data, across_layers=False)
        scores = taylor_by_loop(net, data)
        assert kept(plan) == {name: lowest_removed(scores[name], count) for name, count in zip(scores, (5, 4))}

    def test_hybrid_has_bounds_of_its_own(self):
        net = prepared(MLP())
        with pytest.raises(ek.InputError, match="hybrid.* compares layers within bounds of its own"):
            net.plan_pruning(0.5, "hybrid", data=[batch(net)], across_layers=True)

    @pytest.mark.parametrize("number, name", [(1, "l1"), ("1", "l1"), (2, "l2"), ("2", "l2")])
    def test_norms_may_be_given_by_number(self, number, name):
        net = prepared(MLP(widths=(10, 8)))
        plan = net.plan_pruning(0.5, number)
        assert plan.importance == name and kept(plan) == kept(net.plan_pruning(0.5, name))

    @pytest.mark.parametrize("wrong", [0, 3, "3", True, 1.0, None, ["l2"]])
    def test_what_is_no_importance_is_refused(self, wrong):
        with pytest.raises(ek.InputError, match="importance must be one of l1, l2, taylor, random, hybrid; got"):
            prepared(MLP()).plan_pruning(0.5, wrong)

    def test_equal_scores_take_the_first_units(self):
        net = prepared(MLP(widths=(4, 4)))
        plan = net.plan_pruning(0.5, {"body.0": torch.ones(4), "body.4": torch.ones(4)})
        assert kept(plan) == {"body.0": [2, 3], "body.4": [2, 3]}


class TestHowMany:
    @pytest.mark.parametrize(
        "fraction, of, live, expected",
        [
            (0.0, "live", 10, 0),
            (0.5, "live", 10, 5),
            (0.5, "live", 4, 2),
            (0.01, "live", 10, 1),  # at least one unit, or a schedule of small steps would never end
            (1.0, "live", 10, 10),
            (0.25, "width", 12, 4),
            (0.25, "width", 5, 4),
            (0.25, "width", 3, 2),  # never more than there are, and one stays
            (0.25, "present", 10, 2),  # nothing is frozen here: as live, 2.5 rounded to even
            (0.9, "live", 1, 0),
            (1.0, "live", 1, 1),  # unless all are to go
            (0.5, "live", 0, 0),
        ],
    )
    def test_a_fraction_of_the_live_units_or_of_the_width(self, fraction, of, live, expected):
        net = MLP(widths=(16,))
        net.prepare_for_task(0, 3, max_units=live) if live else None
        if not live:
            with pytest.warns(UserWarning, match="no layer has a free unit"):
                net.prepare_for_task(0, 3, max_units=0)
        assert net.plan_pruning(fraction, "l2", of=of).removed == expected

    @pytest.mark.parametrize("of, expected", [("live", 2), ("present", 4), ("width", 5)])
    def test_frozen_units_are_counted_on_request(self, of, expected):
        net = MLP(widths=(16,))
        net.prepare_for_task(0, 3, max_units=8)
        net.finish_task()
        net.prepare_for_task(1, 3, max_units=6)  # 8 frozen and 6 live of 16
        assert net.plan_pruning(0.3, of=of).removed == expected  # 1.8, 4.2, 4.8

    @pytest.mark.parametrize("importance", ["l1", "l2", "random", "taylor", "hybrid"])
    def test_keep_at_least(self, importance):
        net = prepared(MLP(widths=(10, 8)))
        plan = net.prune(1.0, importance, keep_at_least=3, data=[batch(net)])
        assert [len(part.keep) for part in plan.groups] == [3, 3]
        assert [group.segments.live for group in net.groups] == [3, 3]
        assert net.prune(1.0, importance, keep_at_least=5, data=[batch(net)]).removed == 0


class TestPlan:
    def test_it_prints_and_changes_nothing(self):
        net = prepared(MLP(widths=(10, 8)))
        before = digest(net)
        plan = net.plan_pruning(0.5, "l1")
        assert digest(net) == before
        assert str(plan).splitlines() == [
            "group   live  remove  keep   (importance l1)",
            "body.0    10       5     5",
            "body.4     8       4     4",
        ]
        net.apply_plan(plan)
        assert [group.segments.live for group in net.groups] == [5, 4]

    def test_the_kept_units_keep_rows_columns_and_statistics(self):
        net = prepared(MLP(widths=(6, 4)), tasks=1)
        first, norm, second = net.body[0], net.body[1], net.body[4]
        frozen = net.groups[0].segments.frozen_total
        old = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
        plan = net.prune(0.5)
        keep, keep_second = plan.groups[0].keep, plan.groups[1].keep
        columns = torch.cat([torch.arange(frozen), frozen + keep])
        assert torch.equal(first.weight, old["body.0.weight"][keep])
        for name in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(norm, name), old[f"body.1.{name}"][keep])
        assert torch.equal(second.weight, old["body.4.weight"][keep_second][:, columns])
        frozen_second = net.groups[1].segments.frozen_total
        columns = torch.cat([torch.arange(frozen_second), frozen_second + keep_second])
        assert torch.equal(net.live_head.weight, old["heads.1.weight"][:, columns])
        assert torch.equal(net.live_head.bias, old["heads.1.bias"])
        for name, tensor in net.state_dict().items():
            if "frozen" in name:
                assert torch.equal(tensor, old[name]), name

    def test_a_flattened_channel_goes_with_its_block_of_columns(self):
        net = prepared(ConvNet())
        before = net.fc.weight.detach().clone()
        plan = net.prune(0.4)
        keep = {part.name: part.keep for part in plan.groups}
        columns = (4 * keep["conv2"].view(-1, 1) + torch.arange(4)).flatten()
        assert torch.equal(net.fc.weight, before[keep["fc"]][:, columns])

    @pytest.mark.parametrize("make", [MLP, ConvNet, Residual, FlatResidual], ids=lambda kind: kind.__name__)
    def test_removing_units_equals_silencing_what_they_put_out(self, make):
        """The logits after pruning are those with the removed units' outputs set to zero before."""
        net = prepared(make(norm=False, dropout=0.0).double(), tasks=1)
        x = batch(net)[0]
        plan = net.plan_pruning(0.5, "random")
        handles = []
        for group, part in zip(net.groups, plan.groups):
            alive = torch.zeros(group.segments.total, dtype=torch.float64)
            alive[: group.segments.frozen_total] = 1
            alive[group.segments.frozen_total + part.keep] = 1
            for layer in group.producers.values():

                def silence(module, args, y, alive=alive):
                    return y * alive.view(-1, *[1] * (y.dim() - 2))

                handles.append(layer.register_forward_hook(silence))
        silenced = net(x)
        for handle in handles:
            handle.remove()
        net.apply_plan(plan)
        torch.testing.assert_close(net(x), silenced, rtol=1e-10, atol=1e-10)

    def test_a_stale_plan_is_refused_and_nothing_changes(self):
        net = prepared(MLP())
        plan = net.plan_pruning(0.5)
        net.prune(0.2)
        before = digest(net)
        with pytest.raises(ek.TaskError, match=r"out of date: body\.0 no longer has 10 live units"):
            net.apply_plan(plan)
        assert digest(net) == before

    def test_a_plan_of_another_network_is_refused(self):
        plan = prepared(ConvNet()).plan_pruning(0.5)
        net = prepared(MLP())
        with pytest.raises(ek.TaskError, match="out of date"):
            net.apply_plan(plan)

    @pytest.mark.parametrize("importance", ["taylor", "hybrid"])
    @pytest.mark.parametrize("mode", [True, False])
    def test_scoring_leaves_statistics_gradients_and_mode_alone(self, importance, mode):
        net = prepared(ConvNet(), tasks=1)
        net.zero_grad()
        net.train(mode)
        before = digest(net)
        net.plan_pruning(0.5, importance, data=[batch(net)])
        assert digest(net) == before
        assert all(parameter.grad is None for parameter in net.parameters())
        assert not any(module._forward_hooks for module in net.modules())

    def test_scoring_cleans_up_after_data_that_fails(self):
        net = prepared(MLP())
        before = digest(net)

        def broken():
            yield batch(net)
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="gone"):
            net.plan_pruning(0.5, "taylor", data=broken())
        assert digest(net) == before and not any(module._forward_hooks for module in net.modules())

    def test_scoring_works_where_gradients_are_off(self):
        net = prepared(MLP())
        with torch.no_grad():
            assert net.plan_pruning(0.5, "taylor", data=[batch(net)]).removed == 9

    @pytest.mark.parametrize("importance", ["taylor", "hybrid"])
    def test_layers_without_live_units_are_scored(self, importance):
        net = prepared(MLP(), tasks=1, max_units={"body.0": 0})
        plan = net.plan_pruning(0.5, importance, data=[batch(net)])
        assert [len(part.keep) for part in plan.groups] == [0, 2]


def test_a_share_to_keep_is_rounded_up():
    net = prepared(MLP(widths=(30, 20)))
    for share, kept in ((0.1, [3, 2]), (0.11, [4, 3]), (0.025, [1, 1])):
        assert [len(part.keep) for part in net.plan_pruning(1.0, keep_at_least=share).groups] == kept


@pytest.mark.parametrize("importance", ["l2", "taylor", "hybrid"])
def test_small_steps_for_ever_leave_a_unit_in_each_group(importance):
    net = prepared(MLP(widths=(5, 4)))
    for _ in range(12):
        net.prune(0.4, importance, data=[batch(net)])
    assert [group.segments.live for group in net.groups] == [1, 1]
