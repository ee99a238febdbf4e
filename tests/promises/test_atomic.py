"""Calls that change a network's structure are atomic: cut off at any line, they leave the state before or after."""

import copy
import os

import pytest
import torch
from interruptions import interrupted_at, points_of
from life import Memory, batch, digest, learn, train
from slow import slow
from small_networks import MLP, Residual

SOAK = bool(os.environ.get("EIDETIC_SOAK"))  # `make soak`: every line, not a sample of them
NETWORKS = {"mlp": lambda: MLP((7, 6)), "residual": lambda: Residual(5, 6)}


class Case:
    """A network with a finished task and one in training, its optimizer, and the call that is cut off."""

    def __init__(self, network, call):
        torch.manual_seed(0)
        self.net, self.call = NETWORKS[network](), CALLS[call]
        if call != "first prepare":
            learn(self.net, 0, max_units=0.5)
            self.net.prepare_for_task(1, 3, max_units=0.5)
            self.optimizer = torch.optim.Adam(self.net.parameters(), 0.01)
            train(self.net, self.optimizer)
        else:
            self.optimizer = None
        self.snapshot = None
        if call == "restore":
            self.snapshot = self.net.snapshot(self.optimizer)
            self.net.prune(0.4, optimizer=self.optimizer)
            train(self.net, self.optimizer)

    def copied(self):
        """Another such case, with nothing in common."""
        return copy.deepcopy(self, {id(self.call): self.call})

    def run(self):
        torch.manual_seed(1)
        self.call(self)

    def digest(self):
        numbered = {id(p): number for number, p in enumerate(self.net.parameters())}
        groups = self.optimizer.param_groups if self.optimizer else ()
        held = [[numbered.get(id(p)) for p in group["params"]] for group in groups]
        state = [
            sorted((name, repr(value)) for name, value in self.optimizer.state.get(p, {}).items())
            for p in (self.net.parameters() if self.optimizer else ())
        ]
        return digest(self.net), held, state


CALLS = {
    "first prepare": lambda case: case.net.prepare_for_task(0, 3),
    "finish": lambda case: case.net.finish_task(),
    "prepare": lambda case: case.net.prepare_for_task(2, 4, optimizer=case.optimizer),
    "prune": lambda case: case.net.prune(0.5, optimizer=case.optimizer),
    "restore": lambda case: case.net.restore(case.snapshot, case.optimizer),
    "widen": lambda case: case.net.widen(9),
    "align": lambda case: case.net.align(2),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("network", ["mlp", *slow("residual")])
def test_a_call_that_is_cut_off_at_any_line_leaves_the_state_before_or_after(network, call):
    case = Case(network, call)
    before, done, memory = case.copied().digest(), case.copied(), Memory(case.net, sizes=(7,))
    memory.note(case.net) if call != "first prepare" else None
    points = points_of(done.run)
    after = done.digest()
    assert after != before and len(points) > 20
    step = 1 if SOAK else max(1, len(points) // (60 if (network, call) == ("mlp", "finish") else 20))
    for at in points[::step]:
        cut_off = case.copied()
        place = interrupted_at(cut_off.run, at)
        assert cut_off.digest() in (before, after), f"{place}: neither before nor after"
        assert cut_off.net.certify().ok, f"{place}: {cut_off.net.certify()}"
        memory.check(cut_off.net, place)
        if cut_off.digest() == before:  # and the same call again does all of it
            cut_off.run()
            assert cut_off.digest() == after, f"{place}: another state after the call was made again"


def test_after_a_call_that_was_cut_off_the_optimizer_goes_on():
    case = Case("mlp", "prune")
    assert interrupted_at(case.run, points_of(case.copied().run)[-10])
    case.optimizer.zero_grad()
    x, y = batch(case.net)
    torch.nn.functional.cross_entropy(case.net(x), y).backward()
    case.optimizer.step()  # would raise StaleOptimizerError had a parameter stayed retired
