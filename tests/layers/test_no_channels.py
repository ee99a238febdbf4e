"""A task may take no unit of a convolution: what follows it works on images without channels."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.layers.no_channels import image

FUNCTIONS = {
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 2),
    "lp_pool2d": lambda x: F.lp_pool2d(x, 2.0, 2),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad, reflected": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "pad, circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, size=(3, 5)),
    "mean": lambda x: x.mean((2, 3)),
    "flatten": lambda x: x.flatten(1),
    "relu, in place": lambda x: F.relu(x, inplace=True),
    "cat": lambda x: torch.cat([x, torch.ones(2, 3, 8, 8)], 1),
    "batch_norm": lambda x: F.batch_norm(x, torch.zeros(x.shape[1]), torch.ones(x.shape[1])),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_makes_the_shape_that_it_makes_of_channels(name):
    made = FUNCTIONS[name](image(torch.zeros(2, 0, 8, 8)))
    like = FUNCTIONS[name](torch.ones(2, 1, 8, 8))
    expected = list(like.shape)
    expected[1] = 3 if name == "cat" else 0
    assert list(made.shape) == expected
    assert type(made) is torch.Tensor or made.dim() == 4 and made.shape[1] == 0


def test_what_is_wrong_with_channels_too_says_what_it_says_of_them():
    with pytest.raises(RuntimeError, match="max_pool2d|pad should be at most half"):
        F.max_pool2d(image(torch.zeros(2, 0, 8, 8)), 2, padding=5)


POOLS = {
    "max": lambda: nn.MaxPool2d(2),
    "average": lambda: nn.AvgPool2d(2),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(3),
    "reflection and pool": lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.MaxPool2d(2), nn.ZeroPad2d((0, -1, 0, -1))),
}


class Pooled(ek.EideticNetwork):
    def __init__(self, pool, norm):
        super().__init__()
        self.conv = ek.EideticConv2d(2, 4, 3, padding=1, padding_mode="reflect")
        self.norm = ek.EideticBatchNorm2d(4) if norm else nn.Identity()
        self.pool, self.linear = POOLS[pool](), ek.EideticLinear(36, 5)

    def connections(self):
        chain = {"conv": "input", "norm": "conv", "linear": "norm", "output": "linear"}
        return chain if isinstance(self.norm, ek.EideticBatchNorm2d) else {**chain, "linear": "conv"} | {"norm": "conv"}

    def forward(self, x):
        return self.linear(self.pool(F.relu(self.norm(self.conv(x)))).flatten(1))


@pytest.mark.parametrize("norm", [False, True], ids=["bias", "norm"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_task_without_units_before_a_pool_is_trained_finished_and_recalled(pool, norm, tmp_path):
    net, x, y = Pooled(pool, norm), torch.randn(6, 2, 6, 6), torch.arange(6) % 3
    for task in range(2):
        net.prepare_for_task(task, 3, max_units={"linear": 2})
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        if task == 0:
            net.prune(1.0, optimizer=optimizer, keep_at_least=0)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        net.finish_task()
    assert [group.segments.frozen[0] for group in net.groups] == [0, 0]
    assert net.certify().ok and not net.certify().notes
    answers = [net.eval()(x, task=task) for task in range(2)]
    net.save(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net").eval()
    assert all(torch.equal(again(x, task=task), answers[task]) for task in range(2))
