"""Modules that take several inputs, by place or by name, masks among them."""

import pytest
import torch
from conversions import lived_in
from life import live_tensors
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek

# torch's encoder layer has a kernel of its own while no gradient is wanted.
pytestmark = pytest.mark.filterwarnings("ignore:the converted network's outputs are the module's but for rounding")


class Texts(nn.Module):
    """Token ids, a table of numbers, and a mask of padding."""

    def __init__(self):
        super().__init__()
        self.embed, self.numbers, self.head = nn.Embedding(20, 16), nn.Linear(5, 16), nn.Linear(16, 3)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, ids, extra, scale=1.0, mask=None, unused=None):
        x = self.layer(self.embed(ids), src_key_padding_mask=mask)
        return self.head(x.mean(1) + self.numbers(extra) * scale)


@pytest.fixture
def inputs():
    mask = torch.zeros(4, 7, dtype=torch.bool)
    mask[:, 5:] = True
    return {"ids": torch.randint(0, 20, (4, 7)), "extra": torch.randn(4, 5), "mask": mask}


def learn(net, optimizer, x):
    net.train()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(x), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()


@pytest.mark.parametrize("how", ["by place", "by name", "both", "unused"])
def test_every_promise(how, inputs, tmp_path):
    """The module's bits; recall after another task, NaN in all that is live, saving and loading; extraction."""
    module, ids, extra = lived_in(Texts()), inputs["ids"], inputs["extra"]
    args, kwargs, x = {
        "by place": ((ids, extra), {}, (ids, extra)),
        "by name": ((), {"extra": extra, "ids": ids}, [ids, extra]),
        "both": ((ids, extra, 2.0), {"mask": inputs["mask"]}, inputs),
        "unused": ((ids,), {"extra": extra, "unused": torch.randn(4, 2)}, None),
    }[how]
    x = {"unused": kwargs.get("unused"), "ids": ids, "extra": extra} if x is None else x  # in any order
    net = ek.convert(module, *args, **kwargs)
    assert list(net.inputs)[:2] == ["ids", "extra"]
    assert torch.equal(net.eval()(x), module.eval()(*args, **kwargs))

    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    learn(net, optimizer, x)
    net.prune(0.3, optimizer=optimizer)
    net.finish_task()
    answer = net.eval()(x, task=0)
    net.prepare_for_task(1, 3, optimizer=optimizer)
    learn(net, optimizer, x)
    net.prune(0.3, "taylor", data=[(x, torch.tensor([0, 1, 2, 0]))], optimizer=optimizer)
    net.finish_task()
    net.prepare_for_task(2, 3, optimizer=optimizer)
    learn(net, optimizer, x)
    with torch.no_grad():
        for tensor in live_tensors(net).values():
            tensor.fill_(float("nan"))
    assert torch.equal(net.eval()(x, task=0), answer)
    assert net.certify().ok, str(net.certify())
    assert net.predict(x, rule="entropy").task.shape == (4,)
    plain = net.extract(0)
    torch.testing.assert_close(plain(**x) if isinstance(x, dict) else plain(*x), answer)

    net.save(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net", network=ek.convert(module, *args, **kwargs))
    assert torch.equal(again.eval()(x, task=0), answer) and again.certify().ok


def test_a_mask_goes_with_its_heads(inputs):
    """Written out for every head, it must fit those that are left."""
    net = ek.convert(Texts(), *list(inputs.values())[:2], mask=inputs["mask"])
    (heads,) = (group for group in net.groups if group.segments.grain == 8)
    net.prune(0.5)
    assert heads.segments.live == 8 and net(inputs).isfinite().all()


def test_a_mask_is_read(inputs):
    net = ek.convert(Texts(), *list(inputs.values())[:2], mask=inputs["mask"]).eval()
    assert not torch.equal(net({**inputs, "mask": torch.zeros_like(inputs["mask"])}), net(inputs))


def test_a_mask_with_numbers_of_its_own_for_each_head_is_refused():
    class Sloped(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(6, 24), nn.Linear(8, 3)
            self.register_buffer("slopes", torch.randn(1, 2, 5, 5))

        def forward(self, x):
            q, k, v = self.qkv(x).view(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
            x = F.scaled_dot_product_attention(q, k, v, self.slopes)
            return self.head(x.transpose(1, 2).flatten(2).mean(1))

    with pytest.raises(ek.ConversionError, match="its mask has numbers for each head"):
        ek.convert(Sloped(), torch.randn(2, 5, 6))


WRONG = {
    "too few": (lambda i: (i["ids"],), "the network takes 'ids', 'extra'; got 1 without names"),
    "one alone": (lambda i: i["ids"], "got 1 without names"),
    "another name": (lambda i: {"ids": i["ids"], "numbers": i["extra"]}, "got 'ids', 'numbers'"),
    "another dtype": (lambda i: (i["ids"].float(), i["extra"]), "the input 'ids' must be whole numbers"),
    "integers": (lambda i: (i["ids"], i["extra"].long()), "the input 'extra' must be floating point"),
    "other samples": (lambda i: (i["ids"], i["extra"][:2]), "as many samples each"),
    "no tensor": (lambda i: (i["ids"], 3), "must be a tensor.*Several are given in a tuple"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_inputs_are_refused(name, inputs):
    make, message = WRONG[name]
    net = ek.convert(Texts(), inputs["ids"], inputs["extra"]).eval()
    with pytest.raises(ek.InputError, match=message):
        net(make(inputs))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "got nothing"),
        ((3,), "got 3"),
        ((torch.zeros(4, 7, dtype=torch.long), torch.zeros(2, 5)), "extra must be a batch.*All inputs hold 4 samples"),
        (([torch.zeros(4, 7)], torch.zeros(4, 5)), "ids must be a tensor"),
    ],
)
def test_examples_that_are_none(args, message):
    with pytest.raises(ek.InputError, match=message):
        ek.convert(Texts(), *args)
