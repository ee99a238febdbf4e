"""Muon: what a step is, and that weights keep their scale."""

import pytest
import torch

from eidetic_training.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (7, 7), (1, 3)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_orthogonal_keeps_singular_vectors_and_brings_values_near_one(shape, scale):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(0.3, 1.0, min(shape), dtype=torch.float64)
    found = left.T @ orthogonal(scale * left @ torch.diag(values) @ right) @ right.T
    assert (found.diagonal() > 0.65).all() and (found.diagonal() < 1.25).all()
    torch.testing.assert_close(found, torch.diag(found.diagonal()), rtol=0, atol=1e-8)


def test_nothing_to_learn_stays_nothing():
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_a_step_is_nesterov_s_made_orthogonal_on_weights_of_unit_rows():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    optimizer = Muon([weight], lr=0.1, momentum=0.9)
    expected, mean = weight.detach().clone(), torch.zeros(4, 27)
    for _ in range(3):
        gradient = torch.randn(4, 3, 3, 3)
        weight.grad = gradient.clone()
        mean = 0.9 * mean + gradient.flatten(1)
        expected = expected * 2 / expected.norm()
        expected = expected - 0.1 * orthogonal(gradient.flatten(1) + 0.9 * mean).view_as(expected)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected)


def test_one_rate_fits_gradients_of_any_scale():
    torch.manual_seed(0)
    start, gradient = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)
    ends = []
    for scale in (1.0, 1e3):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = scale * gradient
        Muon([weight]).step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)
