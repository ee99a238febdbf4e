"""EWC: the Fisher information and the distance it weighs. SI: the path integral of a task's own gradient."""

import pytest
import torch
from small_methods import accuracy, answers, batches, clashing, conditions, learned
from torch.nn import functional as F

from eidetic_training.methods import EWC, Sequential, SynapticIntelligence
from eidetic_training.methods.networks import count


def shared(method):
    return {name: p.detach().clone() for name, p in method.network.body_parameters()}


def moved(method, by, seed=0):
    """Moves every shared weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in method.network.body_parameters():
            p += by * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("samples", [48, 20])
def test_fisher_is_a_loop_over_samples(samples):
    method = learned(EWC(conditions(), samples=samples))
    torch.manual_seed(5)
    fisher = method.fisher(0, batches(0))

    torch.manual_seed(5)
    network, body = method.network.eval(), method.network.body_parameters()
    expected = {name: torch.zeros_like(p) for name, p in body}
    left = samples
    for x, _ in batches(0):
        x = x[:left]
        if not len(x):
            break
        labels = torch.multinomial(network(x, 0).softmax(1), 1)[:, 0]
        for row, label in zip(x, labels):
            gradients = torch.autograd.grad(F.cross_entropy(network(row[None], 0), label[None]), [p for _, p in body])
            for (name, _), g in zip(body, gradients):
                expected[name] += g.square() / samples
        left -= len(x)

    for name, value in expected.items():
        torch.testing.assert_close(fisher[name], value, rtol=1e-4, atol=1e-9, msg=name)
    assert max(value.max() for value in fisher.values()) > 1e-6


def test_ewc_s_penalty_is_the_distance_weighted_by_fisher():
    method = EWC(conditions(), strength=7.0)
    fishers, solutions = [], []
    original = method.fisher
    method.fisher = lambda task, loader: fishers.append(original(task, loader)) or fishers[-1]
    penalty = lambda: method.hooks(0).penalty()  # noqa: E731

    def by_hand():
        now = shared(method)
        terms = [(f[n] * (now[n] - s[n]).square()).sum() for f, s in zip(fishers, solutions) for n in now]
        return 7.0 / 2 * sum(terms)

    assert penalty() == 0
    learned(method, 1)
    solutions.append(shared(method))
    assert penalty() == 0
    moved(method, 0.1)
    torch.testing.assert_close(penalty().detach(), by_hand(), rtol=1e-4, atol=1e-7)
    learned(method, 2)
    solutions.append(shared(method))
    found, expected = [], []
    for seed in range(2):  # two quadratics are one, but for a constant
        moved(method, 0.5, seed)
        found.append(penalty().detach())
        expected.append(by_hand())
    torch.testing.assert_close(found[1] - found[0], expected[1] - expected[0], rtol=1e-3, atol=1e-6)
    assert abs(expected[1] - expected[0]) > 1e-3


@pytest.mark.parametrize("kind, strong", [(EWC, 1e4), (SynapticIntelligence, 100.0)])
def test_a_strong_penalty_keeps_what_plain_training_loses(kind, strong):
    forgotten = {}
    for name, method in (("plain", Sequential(conditions(epochs=40))), ("held", kind(conditions(epochs=40), strong))):
        before = answers(learned(method, 1, clashing), 0, clashing)
        learned(method, 2, clashing)
        forgotten[name] = float((answers(method, 0, clashing) - before).abs().mean())
    assert forgotten["held"] < 0.3 * forgotten["plain"]


@pytest.mark.parametrize("kind", [EWC, SynapticIntelligence])
def test_strength_0_is_plain_training(kind):
    method, plain = learned(kind(conditions(), strength=0.0), 2), learned(Sequential(conditions()), 2)
    for name, value in shared(plain).items():
        torch.testing.assert_close(shared(method)[name], value, rtol=1e-4, atol=1e-5)
    assert accuracy(method, 1) > 0.8
    numbers = count(p for _, p in method.network.body_parameters())
    statistics = 2 * 2 * (16 + 12)
    assert method.stored_numbers() == count(method.network.parameters()) + statistics + 2 * numbers


def bowl(method):
    """The task's own loss: a quadratic of the shared weights."""
    return sum((0.5 * (p - 0.3).square()).sum() for _, p in method.network.body_parameters())


@pytest.mark.parametrize("penalised", [False, True], ids=["first task", "under a penalty"])
def test_si_s_path_integral_is_the_fall_of_the_task_s_own_loss(penalised):
    method = SynapticIntelligence(conditions(), strength=0.5)
    if penalised:
        method.anchor = shared(method)
        method.importance = {name: torch.full_like(p, 0.7) for name, p in method.anchor.items()}
    path = method.hooks(0)
    optimizer = torch.optim.SGD([p for _, p in method.network.body_parameters()], 0.002)
    start = bowl(method).item()
    for _ in range(60):
        optimizer.zero_grad()
        (bowl(method) + path.penalty()).backward()
        path.after_backward()
        optimizer.step()
        path.after_step()
    fall = start - bowl(method).item()
    assert fall > 1
    assert sum(c.sum().item() for c in path.contribution.values()) == pytest.approx(fall, rel=5e-3)


def test_si_s_importance_is_the_contribution_over_the_square_of_the_way():
    method = SynapticIntelligence(conditions(), damping=0.01)
    total = {name: torch.zeros_like(p) for name, p in method.network.body_parameters()}
    for task in range(2):
        start = shared(method)
        learned(method, task + 1)
        end = shared(method)
        for name in total:
            contribution = method._path.contribution[name].clamp_min(0)
            total[name] += contribution / ((end[name] - start[name]).square() + 0.01)
            torch.testing.assert_close(method.importance[name], total[name])
            assert torch.equal(method.anchor[name], end[name])
    assert all((value >= 0).all() and value.max() > 0 for value in total.values())
