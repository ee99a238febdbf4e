"""The router's convolutions: what they compute and refuse, and that a network with them comes back from a file."""

import pytest
import torch
from life import learn
from small_networks import ConvNet
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError
from eidetic_kernels.records import checkpoint
from eidetic_kernels.tasks.router_convolutions import RouterConvolutions
from eidetic_kernels.tasks.routing import Router, RouterInput


def filled(channels, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    made = RouterConvolutions(channels)
    for buffer in made.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return made.to(dtype)


def by_hand(convolutions, x):
    """The maximum of each window taken after the ReLU, one window at a time."""
    for number in range(2 * (len(convolutions.channels) - 1)):
        weight, bias = getattr(convolutions, f"weight{number}"), getattr(convolutions, f"bias{number}")
        x = F.conv2d(x, weight, bias, padding=1).relu()
        if number % 2 == 0:
            windows = x.unfold(2, 2, 2).unfold(3, 2, 2)
            x = windows.flatten(4).amax(4)
    return x.flatten(2).amax(2)


def routed(convolutions=None, dtype=torch.float32):
    """A network of two finished tasks whose router reads its convolutions' columns, then the features."""
    torch.manual_seed(0)
    net = ConvNet(dropout=0.0)
    for task in range(2):
        learn(net, task, max_units=3)
    net.eval()
    columns = sum(source.columns(1) for source in net.wiring.features)
    columns += 0 if convolutions is None else convolutions.channels[-1]
    net.router = Router(torch.randn(2, columns), torch.randn(2), reads=RouterInput(convolutions=convolutions))
    return net.to(dtype)


@pytest.mark.parametrize("channels, side", [((3, 5), 2), ((3, 5, 7), 6), ((1, 4, 4, 6), 9)])
def test_each_stage_is_two_convolutions_around_a_maximum(channels, side):
    made = filled(channels, torch.float64)
    x = torch.randn(4, channels[0], side, side + 1, dtype=torch.float64)
    assert made(x).shape == (4, channels[-1])
    torch.testing.assert_close(made(x), by_hand(made, x))


def test_memory_layout_of_the_images_is_of_no_matter():
    made, x = filled((3, 5, 7)), torch.randn(4, 3, 8, 8)
    assert torch.equal(made(x), made(x.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("shape", [(4, 12), (4, 3, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(InputError, match=r"images \[N, C, H, W\], got \[4, .*give images"):
        filled((3, 5, 7))(torch.randn(shape))


@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (4, 3, 3, 8), (4, 3, 8, 3)])
def test_what_is_no_image_that_they_can_read_is_refused(shape):
    with pytest.raises(InputError, match=r"images \[N, 3, H, W\] of 4 x 4 pixels or more.*got \[4, .*fewer stages"):
        filled((3, 5, 7))(torch.randn(shape))


def test_predict_passes_the_body_once_and_reads_columns_before_features(monkeypatch):
    made = filled((2, 4, 5))
    net, x = routed(made), torch.randn(6, 2, 4, 4)
    calls = []
    compute = net.compute_features
    features = compute(x, 1)
    monkeypatch.setattr(net, "compute_features", lambda x, task=None: calls.append(len(x)) or compute(x, task))
    answers = net.predictions(x, ("learned", "joint", "entropy"))
    assert calls == [6]
    expected = F.linear(torch.cat([by_hand(made, x), features], 1), net.router.weight, net.router.bias)
    torch.testing.assert_close(answers["learned"].router_logits, expected.detach(), rtol=1e-4, atol=1e-3)


def test_mirrored_scores_are_the_mean_of_both_images(tmp_path):
    made = filled((2, 4, 5))
    net, x = routed(made), torch.randn(6, 2, 4, 4)
    net.router.mirrored = True
    features = net.compute_features(x, 1)
    both = [
        F.linear(torch.cat([by_hand(made, image), features], 1), net.router.weight, net.router.bias)
        for image in (x, x.flip(-1))
    ]
    expected = (both[0] + both[1]).detach() / 2
    assert not torch.allclose(both[0], both[1])
    torch.testing.assert_close(net.predict(x).router_logits, expected, rtol=1e-4, atol=1e-3)
    net.save(tmp_path / "net.safetensors")
    again = ek.EideticNetwork.load(tmp_path / "net.safetensors")
    assert torch.equal(again.predict(x).router_logits, net.predict(x).router_logits)


def test_a_task_s_score_is_that_of_all_its_classes(tmp_path):
    net, x = routed(), torch.randn(6, 2, 4, 4)
    columns = net.router.weight.shape[1]
    net.router = Router(torch.randn(5, columns), torch.randn(5), classes=(3, 2))
    classes = F.linear(net.compute_features(x, 1), net.router.weight, net.router.bias).softmax(1).detach()
    expected = torch.stack([classes[:, :3].sum(1), classes[:, 3:].sum(1)], 1)
    guess = net.predict(x)
    torch.testing.assert_close(guess.router_logits.softmax(1), expected)
    assert net.router.tasks == 2 and guess.task.max() <= 1
    net.save(tmp_path / "net.safetensors")
    again = ek.EideticNetwork.load(tmp_path / "net.safetensors")
    assert again.router.classes == (3, 2)
    assert torch.equal(again.predict(x).router_logits, guess.router_logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_network_with_them_comes_back_bit_for_bit(tmp_path, dtype):
    net, x = routed(filled((2, 4, 5)), dtype), torch.randn(6, 2, 4, 4, dtype=dtype)
    net.save(tmp_path / "net.safetensors")
    again = ek.EideticNetwork.load(tmp_path / "net.safetensors")
    assert again.router.convolutions.channels == (2, 4, 5)
    assert {name: tensor.dtype for name, tensor in again.state_dict().items()} == {
        name: tensor.dtype for name, tensor in net.state_dict().items()
    }
    assert not list(again.router.parameters())
    assert torch.equal(again.predict(x).router_logits, net.predict(x).router_logits)


def test_files_from_before_they_were_there_still_load(tmp_path, monkeypatch):
    net, x = routed(), torch.randn(6, 2, 4, 4)
    structure = checkpoint._structure

    def older(network):
        header = structure(network)
        for name in ("convolutions", "mirrored", "classes"):
            del header[f"router_{name}"]
        return header

    monkeypatch.setattr(checkpoint, "_structure", older)
    net.save(tmp_path / "net.safetensors")
    again = ek.EideticNetwork.load(tmp_path / "net.safetensors")
    assert again.router.convolutions is None
    assert torch.equal(again.predict(x).router_logits, net.predict(x).router_logits)
