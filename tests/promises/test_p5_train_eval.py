"""P5: what a frozen unit puts out is the same in training and evaluation, bit for bit, dropout or not."""

import pytest
import torch
from life import READINGS, batch, learn, reading, train
from small_networks import KINDS, MLP, NETWORKS
from torch import nn

import eidetic_kernels as ek


@pytest.fixture(params=KINDS)
def net(request):
    return NETWORKS[request.param]()


def outputs_of(net, x):
    """What each producer, normalisation and dropout puts out, in one pass: {path: (its segments, output)}."""
    found, handles = {}, []
    segments = {path: layer.segments for g in net.groups for path, layer in [*g.producers.items(), *g.norms.items()]}
    for path in segments:
        layer = net.get_submodule(path)
        handles.append(layer.register_forward_hook(lambda _m, _i, y, path=path: found.__setitem__(path, y.detach())))
    with torch.no_grad():
        features = net.compute_features(x)
    for handle in handles:
        handle.remove()
    return {path: output[:, : segments[path].frozen_total] for path, output in found.items()}, features


@pytest.mark.parametrize("how", READINGS)
def test_frozen_units_put_out_the_same_bits_in_training_and_evaluation(net, how):
    for task in range(2):
        learn(net, task, how)
    net.prepare_for_task(2, 3, reading(net, how, 2))
    train(net, torch.optim.SGD(net.parameters(), 0.1), 2)
    with torch.no_grad():  # no live unit may be dead, or dropping it shows nowhere
        for group in net.groups:
            for layer in group.producers.values():
                layer.bias.add_(3.0) if layer.bias is not None else None
    x = batch(net, 16)[0]
    in_evaluation, features = outputs_of(net.eval(), x)
    changed = 0
    for _ in range(5):
        in_training, dropped = outputs_of(net.train(), x)
        for path, output in in_evaluation.items():
            assert output.numel() and torch.equal(output, in_training[path]), path
        changed += not torch.equal(features, dropped)
    assert changed, "dropout or batch statistics must be at work on live units"


def test_dropout_drops_live_units_at_its_rate_and_scales_the_rest():
    net = MLP(widths=(400,), norm=False, dropout=0.5)
    learn(net, 0, fraction=0.5)
    net.prepare_for_task(1, 3)
    x = batch(net, 64)[0]
    with torch.no_grad():
        before, after = net.eval().compute_features(x), net.train().compute_features(x)
    live = slice(net.groups[0].segments.frozen_total, None)
    alive = before[:, live] > 0
    kept = after[:, live] > 0
    assert torch.equal(after[:, live][kept], 2 * before[:, live][kept])
    assert abs(kept[alive].float().mean() - 0.5) < 0.03


def test_dropout_is_plain_dropout_as_long_as_nothing_is_frozen():
    net = MLP(widths=(50,), norm=False, dropout=0.3)
    net.prepare_for_task(0, 3)
    x = batch(net, 32)[0]
    with torch.no_grad():
        before = net.eval().compute_features(x)
        torch.manual_seed(5)
        after = net.train().compute_features(x)
        torch.manual_seed(5)
        assert torch.equal(after, torch.nn.functional.dropout(before, 0.3))


@pytest.mark.parametrize("how", READINGS)
def test_frozen_features_while_training_are_those_of_recall(net, how):
    """What a later task reads of a finished one is what the finished task itself computed."""
    for task in range(3):
        learn(net, task, how)
    net.prepare_for_task(3, 3)
    x = batch(net, 16)[0]
    with torch.no_grad():
        everything = net.train().compute_features(x)
        net.eval()
        for task in range(3):
            prefix = net.compute_features(x, task)
            assert torch.equal(everything[:, : prefix.shape[1]], prefix)


def frozen_outputs_in_both_modes(net, layer, x):
    seen = []
    handle = layer.register_forward_hook(lambda m, a, y: seen.append(y[:, : layer.segments.frozen_total].detach()))
    net.eval().compute_features(x), net.train().compute_features(x)
    handle.remove()
    return seen


def test_dropout_on_the_networks_input_leaves_frozen_units_alone_or_is_refused():
    class Net(ek.EideticNetwork):
        example = (6,)

        def __init__(self):
            super().__init__()
            self.drop, self.fc = nn.Dropout(0.5), ek.EideticLinear(6, 8)

        def forward(self, x):
            return self.fc(self.drop(x))

    net = Net()
    try:
        learn(net, 0)
    except ek.ConversionError:
        return
    net.prepare_for_task(1, 3)
    assert torch.equal(*frozen_outputs_in_both_modes(net, net.fc, batch(net)[0]))


def test_a_dropout_module_used_twice_is_understood_or_refused():
    """The second place overwrites the first one's boundary between frozen and live."""

    class Net(ek.EideticNetwork):
        example = (6,)

        def __init__(self):
            super().__init__()
            self.a, self.b, self.drop = ek.EideticLinear(6, 8), ek.EideticLinear(8, 8), nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(torch.relu(self.b(self.drop(torch.relu(self.a(x))))))

    net = Net()
    try:
        net.prepare_for_task(0, 3, max_units={"a": 6, "b": 2})
    except ek.ConversionError:
        return
    net.finish_task()
    net.prepare_for_task(1, 3)
    assert torch.equal(*frozen_outputs_in_both_modes(net, net.b, batch(net)[0]))


def test_dropout2d_drops_whole_channels():
    class Net(ek.EideticNetwork):
        example = (2, 4, 4)

        def __init__(self):
            super().__init__()
            self.conv, self.drop, self.pool = ek.EideticConv2d(2, 40, 1), nn.Dropout2d(0.5), nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            return self.pool(self.drop(self.conv(x))).flatten(1)

    net = Net()
    net.prepare_for_task(0, 3)
    x = batch(net)[0]
    share = (net.train().compute_features(x) == 0).float().mean()
    assert 0.4 < share < 0.6
