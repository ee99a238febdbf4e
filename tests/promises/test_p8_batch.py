"""P8: what is predicted for a sample does not depend on the samples that are tested with it."""

import pytest
import torch
from life import READINGS, batch, learn, recall
from small_networks import KINDS, NETWORKS

from eidetic_kernels.tasks.routing import Router

SAMPLES = 60


@pytest.fixture(params=KINDS)
def net(request):
    return NETWORKS[request.param]()


@pytest.mark.parametrize("how", READINGS)
def test_predictions_do_not_depend_on_the_test_batch(net, how):
    for task in range(3):
        learn(net, task, how)
    columns = sum(source.columns(None) for source in net.wiring.features)
    net.router = Router(torch.randn(3, columns), torch.zeros(3))
    x = batch(net, SAMPLES)[0]
    routed, whole = net.predict(x), [recall(net, x, task) for task in range(3)]
    order = torch.randperm(SAMPLES)
    for size in (1, 7, 32):
        for task in range(3):
            logits = torch.empty_like(whole[task])
            for rows in order.split(size):
                logits[rows] = recall(net, x[rows], task)
            torch.testing.assert_close(logits, whole[task], rtol=1e-4, atol=1e-5)
            assert torch.equal(logits.argmax(1), whole[task].argmax(1))
        parts = [net.predict(x[rows]) for rows in order.split(size)]
        assert torch.equal(torch.cat([part.task for part in parts]), routed.task[order])
        assert torch.equal(torch.cat([part.label for part in parts]), routed.label[order])


@pytest.mark.parametrize("how", READINGS)
def test_other_samples_of_the_batch_have_no_influence_at_all(net, how):
    """Same shape, other neighbours: the very same bits."""
    learn(net, 0, how)
    learn(net, 1, how)
    x = batch(net, 16)[0]
    others = x.clone()
    others[1:] = 1e3 * torch.randn_like(others[1:])
    for task in range(2):
        assert torch.equal(recall(net, x, task)[0], recall(net, others, task)[0])


def test_recall_leaves_the_live_statistics_alone(net):
    learn(net, 0)
    net.prepare_for_task(1, 3)
    net.eval()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net(batch(net, 9)[0], task=0)
    net(batch(net, 9)[0])
    net.predict(batch(net, 9)[0])
    after = dict(net.named_buffers())  # and the first inputs of the task, for its certificate
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())
