"""Routing rules: the scores each one gives, and predictions that follow from them in one pass of the body."""

import pytest
import torch
from life import learn
from small_networks import MLP

from eidetic_kernels.errors import InputError, RouterError
from eidetic_kernels.tasks.router_convolutions import RouterConvolutions
from eidetic_kernels.tasks.routing import NEED_ROUTER, RULES, Router, RouterInput, route, task_scores

DATA_FREE = [rule for rule in RULES if rule not in NEED_ROUTER]


def finished(tasks=3):
    """A network of finished tasks with 3 classes each, in evaluation mode, no router."""
    torch.manual_seed(0)
    net = MLP((12, 10), dropout=0.0)
    for task in range(tasks):
        learn(net, task, max_units=3)
    return net.eval()


def routed(net):
    torch.manual_seed(5)
    columns = sum(source.columns(net.finished_tasks - 1) for source in net.wiring.features)
    net.router = Router(torch.randn(net.finished_tasks, columns), torch.randn(net.finished_tasks))
    return net


def by_hand(rule, logits, router):
    """Scores of one sample, in plain numbers."""
    p = [each.double().exp() / each.double().exp().sum() for each in logits]
    if rule == "learned":
        return router.double()
    if rule == "joint":
        shares = router.double().exp() / router.double().exp().sum()
        return torch.stack([(s * each.max()).log() for s, each in zip(shares, p)])
    if rule == "entropy":
        return torch.stack([(each * each.log()).sum() for each in p])
    if rule == "energy":
        return torch.stack([each.double().exp().sum().log() for each in logits])
    return torch.stack([each.double().max() for each in logits])


@pytest.mark.parametrize("rule", RULES)
def test_scores_are_what_the_rule_says(rule):
    torch.manual_seed(1)
    logits = [2 * torch.randn(7, classes) for classes in (3, 2, 5)]
    router = torch.randn(7, 3)
    scores = task_scores(rule, logits, router)
    assert scores.shape == (7, 3)
    for row in range(7):
        expected = by_hand(rule, [each[row] for each in logits], router[row])
        torch.testing.assert_close(scores[row].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(InputError, match="rule must be one of learned, joint, entropy, .*; got 'x'"):
        finished(2).predict(torch.randn(2, 6), rule="x")
    with pytest.raises(InputError, match=r"got 'entropi' \(did you mean 'entropy'\?\)"):
        finished(2).predictions(torch.randn(2, 6), ["energy", "entropi"])


def test_the_chosen_task_s_head_answers_and_shorter_heads_are_padded():
    scores = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    logits = [torch.tensor([[1.0, 2.0]] * 3), torch.tensor([[5.0, 4.0, 9.0], [0.0, 0.0, 0.0], [7.0, 3.0, 1.0]])]
    answer = route(scores, logits)
    assert answer.task.tolist() == [1, 0, 1]
    assert answer.label.tolist() == [2, 1, 0]
    assert answer.logits.tolist() == [[5, 4, 9], [1, 2, -torch.inf], [7, 3, 1]]
    expected = [torch.tensor(row).softmax(0).max() for row in scores.tolist()]
    torch.testing.assert_close(answer.confidence, torch.stack(expected))


@pytest.mark.parametrize("rule", RULES)
def test_predictions_follow_from_each_task_s_recall(rule):
    net = routed(finished())
    x = torch.randn(40, 6)
    with torch.no_grad():
        logits = [net(x, task=task) for task in range(3)]
        scores = task_scores(rule, logits, net.router(net.compute_features(x, 2)))
    answer = net.predict(x, rule)
    torch.testing.assert_close(answer.router_logits, scores)
    assert torch.equal(answer.task, scores.argmax(1))
    for row, task in enumerate(answer.task.tolist()):
        torch.testing.assert_close(answer.logits[row], logits[task][row])
    assert torch.equal(answer.label, answer.logits.argmax(1))


def test_rules_disagree_somewhere():
    net = routed(finished())
    x = torch.randn(2000, 6)
    chosen = {rule: answer.task.tolist() for rule, answer in net.predictions(x, RULES).items()}
    assert list(chosen) == list(RULES)
    assert len({tuple(tasks) for tasks in chosen.values()}) == len(RULES)


def test_all_rules_take_one_pass_of_the_body_and_agree_with_each_alone(monkeypatch):
    net = routed(finished())
    x = torch.randn(9, 6)
    alone = {rule: net.predict(x, rule) for rule in RULES}
    calls = []
    original = net.compute_features
    monkeypatch.setattr(net, "compute_features", lambda x, task=None: calls.append(task) or original(x, task))
    for rule, answer in net.predictions(x, RULES).items():
        assert torch.equal(answer.router_logits, alone[rule].router_logits)
        assert torch.equal(answer.logits, alone[rule].logits)
    assert calls == [2]


@pytest.mark.parametrize("training", [True, False])
def test_the_default_is_the_learned_router_and_the_mode_stays(training):
    net = routed(finished())
    net.train(training)
    x = torch.randn(5, 6)
    assert torch.equal(net.predict(x).router_logits, net.predict(x, "learned").router_logits)
    assert net.training is training


@pytest.mark.parametrize("rule", RULES)
def test_only_some_rules_need_a_router(rule):
    net = finished()
    if rule in NEED_ROUTER:
        with pytest.raises(RouterError, match=r"the router knows 0 of 3 finished tasks.*route without one"):
            net.predict(torch.randn(2, 6), rule)
        with pytest.raises(RouterError):
            net.predictions(torch.randn(2, 6), (*DATA_FREE, rule))
    else:
        assert net.predict(torch.randn(2, 6), rule).task.shape == (2,)


@pytest.mark.parametrize("rule", RULES)
def test_one_task_needs_no_router_and_no_task_is_an_error(rule):
    net = finished(1)
    x = torch.randn(4, 6)
    answer = net.predict(x, rule)
    with torch.no_grad():
        torch.testing.assert_close(answer.logits, net(x, task=0))
    assert answer.task.tolist() == [0] * 4
    with pytest.raises(RouterError, match="no task is finished"):
        MLP().predict(x, rule)


def test_a_router_with_hidden_units_reads_the_prefix_it_was_trained_on():
    torch.manual_seed(0)
    weight, bias, hidden, hidden_bias = torch.randn(3, 4), torch.randn(3), torch.randn(4, 6), torch.randn(4)
    router = Router(weight, bias, hidden, hidden_bias)
    features = torch.randn(5, 9)  # three columns came later
    expected = (features[:, :6] @ hidden.T + hidden_bias).relu() @ weight.T + bias
    torch.testing.assert_close(router(features), expected)
    plain = Router(weight, bias)
    torch.testing.assert_close(plain(features), features[:, :4] @ weight.T + bias)
    assert router.tasks == plain.tasks == 3
    assert not list(router.parameters())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"classes": (1, 2)}, r"classes are \[1, 2\], and its weight scores 4"),
        ({"classes": (5, -1)}, r"classes are \[5, -1\]"),
        ({"classes": ()}, r"classes are \[\], and its weight scores 4"),
        ({"bias": torch.zeros(3)}, r"weight has shape \[4, 6\], and its bias \[3\]"),
        ({"hidden_weight": torch.zeros(5, 9), "hidden_bias": torch.zeros(5)}, "reads 6 hidden units.*makes 5"),
        ({"hidden_weight": torch.zeros(6, 9)}, "needs hidden_weight and hidden_bias"),
    ],
)
def test_maps_and_classes_that_do_not_fit_each_other_make_no_router(given, named):
    with pytest.raises(InputError, match=named):
        Router(**{"weight": torch.zeros(4, 6), "bias": torch.zeros(4), **given})


def test_a_fingerprint_has_the_tensors_and_every_setting():
    def fingerprint(*reads, classes=None):
        return Router(torch.ones(4, 40), torch.zeros(4), reads=RouterInput(*reads), classes=classes).fingerprint()

    plain = fingerprint()
    others = [fingerprint(*reads) for reads in ((True,), (False, True), (False, False, None, True))]
    others += [fingerprint(classes=classes) for classes in ((2, 2), (1, 3))]
    assert len({plain, *others}) == 6
    assert {each.rpartition(" ")[0] for each in others} == {plain.rpartition(" ")[0]}, "of equal tensors"
    convolutions = Router(torch.ones(4, 40), torch.zeros(4), reads=RouterInput(convolutions=RouterConvolutions((1, 8))))
    assert convolutions.fingerprint().split()[2] not in {each.split()[2] for each in (plain, *others)}
