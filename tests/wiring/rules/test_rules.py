"""Every rule in a network that is pruned."""

import pytest
import torch
from pruned_alike import pruned_alike
from rule_cases import WHOLE, case_of
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.wiring import rules, tracing


def name_of(key):
    return key if isinstance(key, str) else f"{key.__module__}.{key.__name__}"


BOOKS = [("module", key) for key in rules.MODULES]
BOOKS += [("function", key) for key in rules.FUNCTIONS]
BOOKS += [("method", key) for key in rules.METHODS]
RULES = len(rules.MODULES) + len(rules.FUNCTIONS) + len(rules.METHODS)  # a page that is run may register another one


@pytest.mark.parametrize(("book", "key"), BOOKS, ids=[f"{book} {name_of(key)}" for book, key in BOOKS])
def test_every_rule_in_a_network_that_is_pruned(book, key):
    """The same bits, and after pruning what the module computes without the units that are gone; or its refusal."""
    if key in WHOLE:
        module, shape = WHOLE[key]()
        x = torch.randn(2, *shape)
        assert torch.equal(ek.convert(module.eval(), x)(x), module(x))
        return
    case = case_of(key)
    assert case is not None, f"{key} has a rule, but no case in tests/support/rule_cases.py"
    module = case.module()
    assert case.makes or uses(book, key, module), f"the case for {key} does not use it"
    x = torch.randn(3, *case.form)
    if case.refused:
        with pytest.raises(ek.ConversionError, match=case.refused):
            ek.convert(module, x)
        return
    statistics = key is ek.EideticLayerNorm  # run over units, so they change with pruning
    net = ek.convert(module.eval(), x) if statistics else pruned_alike(module, x, close=CLOSE.get(key, 1e-9))
    if case.makes:
        assert any(isinstance(each, case.makes) for each in net.body.modules())


# Of what is rounded on the way.
CLOSE = {"half": 1e-2, "bfloat16": 1e-1, "float": 1e-5}


def uses(book, key, module):
    for node in tracing.graph_of(module, in_place=True).nodes:
        if book == "module":
            if node.op == "call_module" and type(module.get_submodule(node.target)) is key:
                return True
        elif node.op == f"call_{book}" and node.target == key:
            return True
    return False


def test_a_new_rule_needs_a_case(monkeypatch):
    """The test above is made from the books themselves."""
    assert case_of("frobnicate") is None and case_of(nn.Bilinear) is None and case_of(torch.fft.fft) is None
    assert len(BOOKS) == RULES > 300
