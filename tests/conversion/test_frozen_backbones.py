"""A backbone that was frozen for good belongs to no task, stays in evaluation mode, and is kept as it is."""

import copy

import pytest
import torch
from conversions import lived_in, take_through
from plain_modules import Plain, conv
from torch import nn

import eidetic_kernels as ek


def backbone():
    return lived_in(nn.Sequential(conv(3, 6), nn.ReLU(), nn.Dropout(0.5), conv(6, 5, groups=1), nn.Flatten()))


def made(body):
    return Plain(
        lambda s, x: s.head(torch.relu(s.hidden(s.body(x)))), body=body, hidden=nn.Linear(80, 12), head=nn.Linear(12, 4)
    )


def test_a_frozen_backbone_is_kept_and_nothing_is_forgotten():
    x = torch.randn(8, 3, 4, 4)
    body = ek.frozen(backbone())
    before = copy.deepcopy(body.state_dict())
    net = take_through(made(body), x, double=False)
    assert [group.name for group in net.groups] == ["body.hidden"]
    after = {path: tensor for path, tensor in net.state_dict().items() if path.startswith("body.body.")}
    assert len(after) >= 8
    for path, tensor in after.items():
        assert torch.equal(tensor, before[path.removeprefix("body.body.")]), path
    assert not [path for path, parameter in net.named_parameters() if "body.body" in path and parameter.requires_grad]


def test_in_training_it_is_in_evaluation_mode():
    x = torch.randn(8, 3, 4, 4)
    net = ek.convert(made(ek.frozen(backbone())), x)
    assert torch.equal(net.train()(x), net.eval()(x))


def test_a_backbone_that_was_not_frozen_learns():
    net = ek.convert(made(backbone()), torch.randn(8, 3, 4, 4))
    assert [group.name for group in net.groups] == ["body.body.0.0", "body.body.3.0", "body.hidden"]


def test_in_a_network_of_ones_own_it_needs_no_warning():
    class Mine(ek.EideticNetwork):
        def __init__(self):
            super().__init__()
            self.front, self.hidden = (
                ek.frozen(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))),
                ek.EideticLinear(5, 7),
            )

        def forward(self, x):
            return torch.relu(self.hidden(self.front(x)))

    net, x = Mine(), torch.randn(8, 6)
    net.prepare_for_task(0, 3)
    net.train()(x)
    assert torch.equal(net.front[1].running_mean, torch.zeros(5)) and not net.front.training


def test_a_normalised_input_is_refused_unless_it_is_frozen():
    module = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ek.ConversionError, match=r"ek\.frozen\(layer\)"):
        ek.convert(module, torch.randn(8, 6))
    ek.frozen(module[0])
    take_through(module, torch.randn(8, 6), double=False)


@pytest.mark.parametrize("given", [3, ek.EideticLinear(3, 4), nn.Sequential(ek.EideticLinear(3, 4))])
def test_what_cannot_be_frozen(given):
    with pytest.raises(ek.InputError, match="frozen takes a plain torch.nn.Module"):
        ek.frozen(given)
