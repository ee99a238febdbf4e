"""CLNP: units are measured by their activity, penalised for it, and as few are kept as accuracy allows."""

import pytest
import torch
from small_methods import batches, conditions, images, learned
from small_networks import ConvNet
from torch.nn import functional as F

from eidetic_training import models
from eidetic_training.methods import CLNP
from eidetic_training.methods.clnp import _Activity


def in_training(method):
    """The method's network with a task in training, as in ``learn``, not yet pruned."""
    torch.manual_seed(0)
    method.network.prepare_for_task(method.tasks, 3)
    return method.network


def test_activity_is_the_mean_of_what_follows_each_live_unit():
    method = learned(CLNP(conditions(epochs=2)))
    net = in_training(method)
    means = method.mean_activity(batches(1))
    net.eval()
    x = torch.cat([x for x, _ in batches(1)])
    with torch.no_grad():
        first = F.relu(net.body[1](net.body[0](x)))
        second = F.relu(net.body[5](net.body[4](first)))
    for mean, activation, group in zip(means, (first, second), net.groups):
        frozen = group.segments.frozen_total
        assert 0 < frozen < activation.shape[1]
        torch.testing.assert_close(mean, activation[:, frozen:].mean(0))


def test_the_penalty_is_the_l1_norm_of_live_activations():
    net = in_training(CLNP(conditions(lambda: ConvNet(dropout=0.0))))
    x = images(0)[0][0]
    with _Activity(net) as activity:
        net(x)
        total = activity.total()
    net.zero_grad()
    total.backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if "heads" not in name)
    first = F.relu(net.bn1(net.conv1(x)))
    torch.testing.assert_close(activity.live[0], first)
    expected = sum(a.sum() / (len(x) * a[0, 0].numel()) for a in activity.live.values())
    torch.testing.assert_close(total, expected)
    assert not any(layer._forward_hooks for group in net.groups for layer in group.layers)


@pytest.mark.parametrize("skip_convolution", [False, True])
def test_norms_that_are_part_of_a_layer_and_residuals_are_heard(skip_convolution):
    """It measures a residual stage's units at the last block's output, those of skip convolutions at their block's."""
    options = {"width": 3, "skip_convolution": skip_convolution}
    net = in_training(CLNP(conditions(lambda: models.build("resnet18", (1, 8, 8), **options)))).eval()
    x, outputs = torch.randn(5, 1, 8, 8), {}
    with torch.no_grad(), _Activity(net) as activity:
        y = net.stem(x)
        outputs["stem.0"] = y
        for number, block in enumerate(net.blocks):
            outputs[f"blocks.{number}.body.0"] = block.body(y)
            y = outputs[f"blocks.{number}.last"] = block(y)
        means = activity.means()
    assert len(means) == len(net.groups)
    for group, mean in zip(net.groups, means):
        last = [path for path in outputs if path in group.producers][-1]
        torch.testing.assert_close(mean, outputs[last].mean((0, 2, 3)))


def test_the_most_active_units_are_kept_as_many_as_accuracy_asks(monkeypatch):
    method = CLNP(conditions(epochs=6), tolerance=0.05)
    cuts, levels = [], []
    original = CLNP._keep_the_active

    def keep(self, loader):
        means, before = self.mean_activity(loader), self.accuracy(loader)
        cut = self._cut
        self._cut = lambda number, kept: (cuts.append((number, set(kept.tolist()))), cut(number, kept))
        original(self, loader)
        levels.extend((means, before, self.accuracy(loader)))

    monkeypatch.setattr(CLNP, "_keep_the_active", keep)
    learned(method)
    means, before, after = levels
    assert before > 0.9 and after >= before * 0.95
    final = dict(cuts)  # the last cut of each group stays
    for number, kept in final.items():
        assert 0 < len(kept) < len(means[number])
        rest = set(range(len(means[number]))) - kept
        assert means[number][list(kept)].min() >= means[number][list(rest)].max()
        assert method.network.groups[number].segments.frozen_total == len(kept)


def test_more_penalty_or_tolerance_keeps_fewer_units():
    def used(**arguments):
        return learned(CLNP(conditions(epochs=10), **arguments)).units_used()

    assert used(sparsity=0.3) < used(sparsity=0.0) <= 1
    assert used(tolerance=0.5) < used(tolerance=0.0)


def test_no_activity_is_measured_twice_or_in_training_mode():
    method = CLNP(conditions())
    net = in_training(method)
    net.train()

    def statistics():
        return [buffer.clone() for name, buffer in net.named_buffers() if not name.startswith("probes.")]

    before = statistics()
    method.mean_activity(batches(0))
    assert net.training
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(), strict=True))
    assert method.accuracy(batches(0)) == pytest.approx(method.accuracy(batches(0)))
