"""What the published package does, asked of this one: counts of every step of pruning, scores, and training.

The right values are worked out by hand.
"""

import pytest
import torch
from blobs import CLASSES, blobs
from by_hand import One, keep, live_units
from life import batch, recall
from small_networks import MLP
from tolerances import assert_same_bits
from torch import nn
from torch.nn.utils import prune as torch_prune

import eidetic_kernels as ek
from eidetic_training import train_task

# ---- how many units a step of pruning removes


# A tenth, ten times, of 100 units, rounded to the nearest and halves to even: 8.1, 7.3, 6.6, 5.9, 5.3, 4.8, 4.3, 3.9.
FIRST = [90, 81, 73, 66, 59, 53, 48, 43, 39]
# The second task has 72 of 100 units. What is counted is 72, then 65, ...; 100, then 90, ...; or 100 every time.
SECOND = {
    "live": [65, 59, 53, 48, 43, 39, 35, 31, 28],
    "present": [62, 53, 45, 38, 31, 25, 20, 15, 11],
    "width": [62, 52, 42, 32, 22, 12, 2, 1, 1],
}


@pytest.mark.parametrize("importance", [1, 2, "random"])
@pytest.mark.parametrize("of", SECOND)
def test_counts_of_every_step(importance, of):
    net = One(100)
    net.prepare_for_task(0, 2)
    assert [net.prune(0.1, importance) and live_units(net)[0] for _ in FIRST] == FIRST
    net.prune(11 / 39)
    assert live_units(net) == [28]
    net.prepare_for_task(1, 2)
    assert [net.prune(0.1, importance, of=of) and live_units(net)[0] for _ in SECOND[of]] == SECOND[of]


def test_what_is_present_is_counted_as_torchs_own_pruning_counts_it():
    """The published code calls torch.nn.utils.prune, with an importance that is infinite for frozen units."""
    layer = nn.Linear(2, 100)
    scores = layer.weight.detach().clone()
    scores[:28] = torch.inf
    torch_prune.identity(layer, "weight")
    counts = []
    for _ in SECOND["present"]:
        scores[layer.weight_mask == 0] = torch.inf
        torch_prune.ln_structured(layer, "weight", 0.1, n=2, dim=0, importance_scores=scores)
        counts.append(int(layer.weight_mask[28:, 0].sum()))
    assert layer.weight_mask[:28].all()
    assert counts == SECOND["present"]


def test_random_pruning_leaves_frozen_units_alone():
    net = One(100)
    net.prepare_for_task(0, 2)
    keep(net, list(range(28)))
    net.prepare_for_task(1, 2)
    x, _ = batch(net, 5, classes=2)
    before = recall(net, x, 0)
    for _ in range(8):
        net.prune(0.1, "random", of="present")
    assert net.groups[0].segments.frozen == (28,)
    assert_same_bits("task 0", recall(net, x, 0), before)


# ---- which units: weights, activations and gradients, scores of one's own


@pytest.mark.parametrize("number, kept", [(1, [1, 2]), ("1", [1, 2]), (2, [0, 2]), ("2", [0, 2])])
def test_importance_is_the_first_or_the_second_norm_of_a_row(number, kept):
    """Norms of (0, 5), (4, 2), (6, 6), (1, 1): 5, 6, 12, 2 by the first, and 5, 4.47, 8.5, 1.4 by the second."""
    net = One(bias=False)
    net.prepare_for_task(0, 2)
    with torch.no_grad():
        net.hidden.weight.copy_(torch.tensor([[0.0, -5.0], [-4.0, 2.0], [6.0, 6.0], [1.0, 1.0]]))
    assert net.plan_pruning(0.5, number).groups[0].keep.tolist() == kept


def test_taylor_is_activation_times_gradient():
    """Units answer 2 and 1, and the loss, 3 times the first and 5 times the second, has these as its gradients."""
    net = One(2, bias=False)
    net.prepare_for_task(0, 2)
    with torch.no_grad():
        net.hidden.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        net.live_head.weight.copy_(torch.tensor([[3.0, 5.0], [0.0, 0.0]]))
    data = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))]
    plan = net.plan_pruning(0.5, "taylor", data=data, loss=lambda logits, y: logits[:, 0].mean(), across_layers=False)
    assert plan.groups[0].keep.tolist() == [0], "6 is more than 5"
    assert net.plan_pruning(0.5, 2).groups[0].keep.tolist() == [0]
    with torch.no_grad():
        net.live_head.weight[0, 1] = 7.0
    plan = net.plan_pruning(0.5, "taylor", data=data, loss=lambda logits, y: logits[:, 0].mean(), across_layers=False)
    assert plan.groups[0].keep.tolist() == [1], "7 is more than 6, whatever the weights are"


class Three(ek.EideticNetwork):
    """Three layers of five units, linear or convolutional."""

    def __init__(self, convolutional):
        super().__init__()
        self.example = (5, 3, 3) if convolutional else (5,)
        layers = [ek.EideticConv2d(5, 5, 3, padding=1) if convolutional else ek.EideticLinear(5, 5) for _ in range(3)]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1) if convolutional else nn.Identity(), nn.Flatten())

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("convolutional", [False, True])
def test_scores_of_one_s_own_are_ranked_over_all_layers(convolutional):
    """The three lowest of all are 6, 7 and 8, and the next three 9, 10 and 11. The last layer loses nothing."""
    net = Three(convolutional)
    net.prepare_for_task(0, 2)
    scores = [torch.tensor([15.0, 13, 11, 9, 7]), torch.tensor([14.0, 12, 10, 8, 6]), torch.full((5,), 50.0)]

    def named():
        return {group.name: score for group, score in zip(net.groups, scores)}

    plan = net.prune(0.2, named(), of="width", across_layers=True)
    assert [part.keep.tolist() for part in plan.groups] == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3, 4]]
    scores = [score[part.keep] for score, part in zip(scores, plan.groups)]
    plan = net.prune(0.2, named(), of="width", across_layers=True)
    assert [part.keep.tolist() for part in plan.groups] == [[0, 1], [0, 1], [0, 1, 2, 3, 4]]


# ---- training


def test_criteria_and_steps_cycle_within_a_task(monkeypatch):
    """Each task begins its cycles anew."""
    net, seen = MLP(widths=(40, 40), dropout=0.0), []
    plan = net.plan_pruning

    def noting(fraction, importance, **options):
        seen.append((net.current_task, importance, fraction))
        return plan(fraction, importance, **options)

    monkeypatch.setattr(net, "plan_pruning", noting)
    for task in range(2):
        net.prepare_for_task(task, CLASSES)
        settings = {"search": "linear", "importance": [1, "taylor"], "step": [0.1, 0.2], "tolerance": 0.99}
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        floor = 25 if task == 0 else 8
        train_task(net, [blobs(task)], optimizer, max_epochs=20, polish_epochs=0, keep_at_least=floor, **settings)
    pairs = [("l1", 0.1), ("taylor", 0.2)] * 9
    for task in range(2):
        steps = [step for number, *step in seen if number == task]
        assert len(steps) > 2 and [tuple(step) for step in steps] == pairs[: len(steps)]


def test_pruning_ends_before_too_many_weights_are_masked():
    """With 100 units of one layer the share of weights is that of units: ten steps of a tenth would leave none."""
    net = One(100)
    net.prepare_for_task(0, 2)
    x, _ = batch(net, 20)
    settings = {"search": "linear", "of": "width", "step": 0.1, "tolerance": 0.99, "keep_at_least": 0}
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    data = [(x, (x[:, 0] > 0).long())]
    train_task(net, data, optimizer, max_epochs=20, polish_epochs=0, max_pruned=0.95, finish=False, **settings)
    assert live_units(net) == [10]


def test_a_head_may_decay_by_itself():
    net = MLP(dropout=0.0)
    net.prepare_for_task(0, CLASSES)
    head = [*net.live_head.parameters()]
    body = [parameter for parameter in net.parameters() if all(parameter is not each for each in head)]
    optimizer = torch.optim.AdamW([{"params": body}, {"params": head, "weight_decay": 0.5}], 0.01, weight_decay=0.0)
    train_task(net, [blobs()], optimizer, max_epochs=3, polish_epochs=0, finish=False)
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(body), 2]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]
    assert all(a is b for a, b in zip(optimizer.param_groups[1]["params"], net.live_head.parameters()))
    net.finish_task()


# ---- a problem that comes back


def test_a_finished_task_is_learned_on_as_another_task():
    """Cyclical learning. The task of the first visit keeps its answers; the second reads its units and does better."""
    torch.manual_seed(0)
    net = MLP(widths=(40, 40), dropout=0.0)
    (few_x, few_y), (x, y), (new_x, new_y) = (blobs(samples=size, noise=2.0) for size in (9, 300, 600))
    new_x, new_y = new_x[300:], new_y[300:]
    answers = []
    for task, data in enumerate([(few_x, few_y), blobs(1), (x, y)]):
        net.prepare_for_task(task, CLASSES)
        train_task(net, [data], max_epochs=60, patience=60)
        answers.append(recall(net, new_x, task))
    with pytest.raises(ek.TaskError, match=r"prepare_for_task\(0\) is out of order"):
        net.prepare_for_task(0, CLASSES)
    for task, answer in enumerate(answers):
        assert_same_bits(f"task {task}", recall(net, new_x, task), answer)
    first, again = ((answers[task].argmax(1) == new_y).float().mean() for task in (0, 2))
    assert again > first + 0.02
    assert net.heads[2].mask(2).all() and net.heads[2].mask(2).shape[1] == sum(net.groups[-1].segments.frozen)
