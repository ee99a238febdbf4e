"""The router's convolutions: what they can tell apart, that BatchNorm is folded in, what they see, what is refused."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from blobs import state_of
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError, NonFiniteLossError
from eidetic_training import train_router, train_task
from eidetic_training.data import TensorLoader
from eidetic_training.models import MLP
from eidetic_training.runs.routing_report import routing_report
from eidetic_training.training.trained_convolutions import TrainedConvolutions
from eidetic_training.training.trained_router import TrainedRouter

SIDE, SAMPLES = 8, 160
QUICK = {"max_epochs": 2, "polish_epochs": 6, "batch_size": 32, "lr": 1e-2}


def anywhere(shape, task, samples, seed):
    """Images [samples, 1, 8, 8] of noise and of a shape, a list of (row, column), at a random place.

    On average every pixel is as bright as any other."""
    generator = torch.Generator().manual_seed(10 * seed + task)
    images = torch.randn(samples, 1, SIDE, SIDE, generator=generator) * 0.2
    for image in images:
        for row, column in torch.randint(0, SIDE, (2,), generator=generator) + torch.tensor(shape):
            image[0, row % SIDE, column % SIDE] += 2
    return images


def bars(task, samples=SAMPLES, seed=0):
    """A bar of four pixels: horizontal in task 0, vertical in task 1."""
    along = [(0, step) for step in range(4)]
    return anywhere(along if task == 0 else [(y, x) for x, y in along], task, samples, seed)


def hooks(task, samples=SAMPLES, seed=0):
    """A bar with a foot at its left end; in task 1 its mirror image."""
    left = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0)]
    return anywhere(left if task == 0 else [(y, -x) for y, x in left], task, samples, seed)


def loader(images):
    return TensorLoader(images, torch.arange(len(images)) % 2, 32)


def learned(make=bars):
    """A small MLP that has finished two tasks, and their loaders."""
    torch.manual_seed(0)
    net = MLP(SIDE * SIDE, 8, 1)
    loaders = [loader(make(task)) for task in range(2)]
    for task, data in enumerate(loaders):
        net.prepare_for_task(task, 2)
        train_task(net, data, torch.optim.Adam(net.parameters(), 0.01), max_epochs=1, keep_at_least=3)
    return net, loaders


def named(net, make=bars):
    """The fraction of fresh images whose task the router names."""
    return sum((net.predict(make(t, seed=7)).task == t).double().mean().item() for t in range(2)) / 2


@pytest.fixture(scope="module")
def finished():
    return learned()


@pytest.fixture
def fresh(finished):
    return copy.deepcopy(finished)


@pytest.mark.parametrize("alone", [False, True])
def test_they_learn_what_no_map_of_pixels_or_features_tells_apart(fresh, tmp_path, alone):
    net, loaders = fresh
    train_router(net, loaders, layers=True, inputs=True, **QUICK)
    assert named(net) < 0.75
    train_router(net, loaders, convolutions=(8, 16), alone=alone, **QUICK)
    assert named(net) > 0.95
    assert net.router.weight.shape[1] == 16 + 6 * (not alone)
    answer = net.predict(bars(0, seed=7))
    net.save(tmp_path / "net.safetensors")
    again = ek.EideticNetwork.load(tmp_path / "net.safetensors")
    assert torch.equal(again.predict(bars(0, seed=7)).router_logits, answer.router_logits)
    tasks = [SimpleNamespace(test_loader=lambda *_, t=t: loader(bars(t, seed=7))) for t in range(2)]
    rules = {result.rule: result.named for result in routing_report(net, tasks).rules}
    assert rules["learned"] > 0.95 and "entropy" in rules


@pytest.mark.parametrize("augment", [False, True])
def test_mirrored_images_are_one_task_s_where_augmented(augment):
    """A hook and its mirror image are told apart, but not by a router that saw each as the other."""
    net, loaders = learned(hooks)
    train_router(net, loaders, convolutions=(8, 16), alone=True, augment=augment, **QUICK)
    assert named(net, hooks) < 0.65 if augment else named(net, hooks) > 0.95


def test_scores_of_an_image_and_its_mirror_image_are_the_same_where_both_are_seen():
    net, loaders = learned(hooks)
    x = hooks(0, seed=7)
    for mirrored in (False, True):
        train_router(net, loaders, convolutions=(8, 16), alone=True, mirrored=mirrored, **QUICK)
        there, back = (net.predict(images).router_logits for images in (x, x.flip(-1)))
        assert torch.allclose(there, back, atol=1e-5) == mirrored


def test_images_are_moved_where_augmented():
    torch.manual_seed(0)
    convolutions = TrainedConvolutions((1, SIDE, SIDE), (4,), augment=True)
    assert convolutions.augmentation.flip and convolutions.augmentation.crop_padding == 1
    assert TrainedConvolutions((3, 32, 32), (4,), augment=True).augmentation.crop_padding == 2
    assert TrainedConvolutions((3, 32, 32), (4,), augment=False).augmentation is None


@pytest.mark.parametrize("stages", [(5,), (4, 7), (2, 3, 4)])
def test_batch_norm_is_folded_in(stages):
    torch.manual_seed(1)
    trained = TrainedConvolutions((3, 9, 8), stages, augment=False).double().eval()
    for norm in trained.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3.0)
        norm.bias.data.normal_()
    x = torch.randn(6, 3, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(trained.folded()(x), trained(x.flatten(1)))


def routers_of(monkeypatch):
    """A list that fills with the routers as they are trained."""
    trained, original = [], TrainedRouter.optimizers
    monkeypatch.setattr(TrainedRouter, "optimizers", lambda router: trained.append(router) or original(router))
    return trained


def by_hand(router, rows, options):
    """Scores of ``rows`` [N, features and pixels] in separate steps."""
    pixels = rows[:, -SIDE * SIDE :]
    read = rows if options.get("inputs") else rows[:, : -SIDE * SIDE]
    read = read[:, :0] if options.get("alone") else read
    mean, deviation = router.moments
    columns = torch.cat([router.images(pixels), (read - mean) / deviation], 1)
    if "hidden" in options:
        columns = F.linear(columns, router.hidden_weight, router.hidden_bias).relu()
    return F.linear(columns, router.weight, router.bias)


@pytest.mark.parametrize("options", [{}, {"inputs": True}, {"layers": True, "hidden": 5}, {"alone": True}])
def test_the_router_s_scores_are_those_of_what_was_trained(fresh, monkeypatch, options):
    net, loaders = fresh
    trained = routers_of(monkeypatch)
    train_router(net, loaders, convolutions=(4, 6), max_epochs=1, polish_epochs=2, batch_size=32, **options)
    x = bars(0, seed=3)
    with torch.no_grad(), ek.modes.evaluating(net):
        # Convolutions read the input where the map does not, as the last columns.
        _, columns = net.routing_features(x, options.get("layers", False), True)
        expected = by_hand(trained[0].eval(), columns, options)
    torch.testing.assert_close(net.predict(x).router_logits, expected, rtol=1e-4, atol=1e-4)


def test_without_polish_the_best_epoch_s_convolutions_are_kept(fresh, monkeypatch):
    """At learning rate 0 the map stays zero and no epoch is better than the first; Muon has its own rate."""
    net, loaders = fresh
    trained, after = routers_of(monkeypatch), []
    remember = lambda event: after.append(copy.deepcopy(trained[0].images))  # noqa: E731
    train_router(net, loaders, convolutions=(4,), max_epochs=3, lr=0.0, callbacks=[remember])
    kept = [each.folded().state_dict() for each in after]
    same = [all(torch.equal(net.router.convolutions.state_dict()[n], each[n]) for n in each) for each in kept]
    assert same == [True, False, False]


@pytest.mark.parametrize("augment", [False, True])
def test_the_body_is_passed_once(fresh, monkeypatch, augment):
    net, loaders = fresh
    calls = []
    compute = net.compute_features
    monkeypatch.setattr(net, "compute_features", lambda x, task=None: calls.append(len(x)) or compute(x, task))
    train_router(net, loaders, convolutions=(4,), augment=augment, max_epochs=2, patience=2)
    assert sum(calls) == 2 * SAMPLES
    net.predict(bars(0))
    assert sum(calls) == 3 * SAMPLES


def test_the_network_s_dtype_is_the_convolutions_too(fresh):
    net, loaders = fresh
    train_router(net, loaders, convolutions=(4,), max_epochs=1)
    before = net.predict(bars(0)).router_logits
    assert net.router.convolutions.weight0.dtype == torch.float32
    net.double()
    torch.testing.assert_close(net.predict(bars(0).double()).router_logits, before.double(), rtol=1e-4, atol=1e-4)
    train_router(net, [[(bars(t).double(), torch.zeros(SAMPLES))] for t in range(2)], convolutions=(4,), max_epochs=1)
    assert net.router.convolutions.weight0.dtype == net.router.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "options, message",
    [
        ({"convolutions": (4, 4, 4, 4)}, r"images \[N, 1, H, W\] of 16 x 16 pixels or more.*got \[1, 1, 8, 8\]"),
        ({"convolutions": (4, 0)}, r"convolutions must be numbers of channels.*got \(4, 0\)"),
        ({"convolutions": (4, True)}, "convolutions must be numbers of channels"),
        ({"convolutions": (4.0,)}, "convolutions must be numbers of channels"),
        ({"augment": True}, "augment=True is about convolutions, and there are none: give convolutions="),
        ({"alone": True}, "alone=True is about convolutions, and there are none: give convolutions="),
        ({"alone": True, "convolutions": (4,), "layers": True}, "alone=True reads nothing but convolutions"),
        ({"alone": True, "convolutions": (4,), "inputs": True}, "alone=True reads nothing but convolutions"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(fresh, options, message):
    net, loaders = fresh
    train_router(net, loaders, max_epochs=1)
    before, events = state_of(net), []
    with pytest.raises(InputError, match=message):
        train_router(net, loaders, callbacks=[events.append], **options)
    assert state_of(net) == before and not events


@pytest.mark.parametrize("stages", [8, True, (4, 0)])
def test_stages_that_are_none_are_refused(fresh, stages):
    net, loaders = fresh
    with pytest.raises(
        InputError, match="convolutions must be numbers of channels, 1 or more, one for each stage; got"
    ):
        train_router(net, loaders, convolutions=stages)


def test_inputs_that_are_no_images_are_refused():
    net = MLP(6, 8, 1)
    x = torch.randn(40, 6)
    net.prepare_for_task(0, 2)
    train_task(net, loader(x), max_epochs=1, keep_at_least=2)
    with pytest.raises(InputError, match=r"the router's convolutions read images .*got \[1, 6\]"):
        train_router(net, [loader(x)], convolutions=(4,))
    assert net.router is None


def test_nan_in_the_images_leaves_the_old_router(fresh):
    net, loaders = fresh
    train_router(net, loaders, max_epochs=1)
    before = state_of(net)
    images = bars(0)
    images[3, 0, 2, 2] = math.nan
    with pytest.raises(NonFiniteLossError, match="the router's loss became NaN"):
        train_router(net, [loader(images), loaders[1]], convolutions=(4,), alone=True)
    assert state_of(net) == before


def test_what_they_compute_is_as_small_as_it_is_said():
    """The multiply-adds of an image by table 7's router, counted by hand."""
    convolutions = TrainedConvolutions((3, 32, 32), (32, 128, 128), augment=True).folded()
    counted = 0
    sides = (32, 16, 16, 8, 8, 4)
    for number, side in enumerate(sides):
        counted += getattr(convolutions, f"weight{number}").numel() * side * side
    assert round(counted / 1e6, 1) == 33.9
    assert F.relu(convolutions(torch.randn(2, 3, 32, 32))).shape == (2, 128)
