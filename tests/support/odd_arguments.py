"""Odd values for the arguments of public calls, and which of them each kind of argument takes.

A call that is given a value its argument does not take must raise one of the package's own errors; one that is given a
value it does take may work or raise such an error, but nothing else.
"""

import inspect
import itertools
import os
import sys
from collections.abc import Iterable, Mapping
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eidetic_kernels.errors import EideticError

LARGEST = 2**48


class Refusing:
    """Whatever is asked of it raises."""

    def __getattr__(self, name):
        raise AttributeError(name)

    def __repr__(self):
        raise RuntimeError("no repr")


def breaking():
    """An iterator that raises at its second step."""
    yield torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
    raise OSError("the disk is gone")


# Made anew for each case, since some are used up. Numbers are small where they could be taken for sizes.
ODD = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "-1": lambda: -1,
    "0": lambda: 0,
    "1": lambda: 1,
    "3": lambda: 3,
    "-0.5": lambda: -0.5,
    "0.5": lambda: 0.5,
    "1.0": lambda: 1.0,
    "2.5": lambda: 2.5,
    "1e308": lambda: 1e308,
    "2**63": lambda: 2**63,
    "10**400": lambda: 10**400,
    "fraction": lambda: Fraction(1, 3),
    "complex": lambda: 1j,
    "numpy int": lambda: np.int64(2),
    "numpy float": lambda: np.float32(0.5),
    "numpy nan": lambda: np.float64("nan"),
    "numpy bool": lambda: np.bool_(True),
    "text 0": lambda: "0",
    "text": lambda: "nope",
    "empty text": lambda: "",
    "text with a NUL": lambda: "a\0b",
    "long text": lambda: "x" * 100_000,
    "bytes": lambda: b"abc",
    "path": lambda: Path("nowhere/at/all"),
    "[]": lambda: [],
    "[None]": lambda: [None],
    "[nan]": lambda: [float("nan")],
    "[1, 2]": lambda: [1, 2],
    "(1, 2, 3)": lambda: (1, 2, 3),
    "['a']": lambda: ["a"],
    "{}": lambda: {},
    "{'a': 1}": lambda: {"a": 1},
    "{None: None}": lambda: {None: None},
    "{'body.0': None}": lambda: {"body.0": None},
    "set": lambda: {1, 2},
    "range": lambda: range(3),
    "iterator": lambda: iter([1, 2]),
    "breaking iterator": breaking,
    "object": object,
    "refusing": Refusing,
    "class": lambda: dict,
    "function": lambda: lambda: 1,
    "scalar tensor": lambda: torch.tensor(1),
    "tensor": lambda: torch.randn(4, 6),
    "empty tensor": lambda: torch.empty(0),
    "nan tensor": lambda: torch.full((4, 6), float("nan")),
    "whole tensor": lambda: torch.tensor([0, 1, 2]),
    "bool tensor": lambda: torch.tensor([True, False]),
    "double tensor": lambda: torch.randn(4, 6, dtype=torch.float64),
    "deep tensor": lambda: torch.randn(2, 3, 4, 5, 6),
    "images": lambda: torch.randn(2, 2, 4, 4),
    "meta tensor": lambda: torch.empty(4, 6, device="meta"),
    "sparse tensor": lambda: torch.randn(4, 6).to_sparse(),
    "complex tensor": lambda: torch.randn(4, 6, dtype=torch.complex64),
    "array": lambda: np.ones((4, 6), np.float32),
    "module": lambda: nn.Linear(6, 3),
    "dtype": lambda: torch.float64,
    "whole dtype": lambda: torch.int64,
    "device": lambda: torch.device("meta"),
    "no device": lambda: "cdua",
    "optimizer": lambda: torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1),
    "generator": torch.Generator,
}


# ---- kinds: what an argument takes


def whole(least=0, most=LARGEST):
    return lambda v: isinstance(v, Integral) and not isinstance(v, bool) and least <= v <= most


def real(least=-float("inf"), most=float("inf"), above=None, below=None):
    def takes(v):
        if not isinstance(v, Real) or isinstance(v, bool) or not abs(v) <= sys.float_info.max:
            return False
        return least <= v <= most and (above is None or v > above) and (below is None or v < below)

    return takes


def flag(v):
    return isinstance(v, (bool, np.bool_))


def named(*names):
    return lambda v: any(type(v) is type(name) and v == name for name in names)


def tensor(v):
    return isinstance(v, torch.Tensor)


def kind(*types):
    return lambda v: isinstance(v, types)


def optional(takes):
    return lambda v: v is None or takes(v)


def either(*kinds):
    return lambda v: any(takes(v) for takes in kinds)


def by_name(takes):
    """One for all, or a mapping from names."""
    return lambda v: takes(v) or isinstance(v, Mapping)


def sequence_of(takes):
    """Strings and tensors are none. What is in an iterator is not known, since looking uses it up."""

    def takes_all(v):
        if not isinstance(v, Iterable) or isinstance(v, (str, bytes, torch.Tensor)):
            return False
        return hasattr(v, "__next__") or all(takes(each) for each in v)

    return takes_all


def iterable(v):
    return hasattr(v, "__iter__") and not isinstance(v, (str, bytes))


def path(v):
    return isinstance(v, (str, os.PathLike)) and bool(str(v)) and "\0" not in str(v)


def pair_of(least):
    one = whole(least)
    return lambda v: one(v) or (isinstance(v, (tuple, list)) and len(v) == 2 and all(one(each) for each in v))


def dtype(v):
    return v is None or (isinstance(v, torch.dtype) and v.is_floating_point)


def device(v):
    """What torch takes for one, that is here."""
    try:
        torch.empty(0, device=v)
    except Exception:
        return False
    return True


def text(v):
    return isinstance(v, str)


def anything(v):
    return True


share = real(0, 1)
count_or_share = either(whole(), share)


# ---- cases


class Door:
    """A public call: how to make it and good arguments for it, and what kind each argument is.

    ready: returns (the call, good arguments by name, what must stay as it is when the call raises). The last is a
        function of nothing that returns something to compare, or None.
    kinds: by argument, what it takes; one for every argument that the call has, but for those ``left_out``.
    names: correct names by argument, of which misspelt ones are tried.
    user: exceptions that are the user's own, of functions that they hand in.
    """

    def __init__(self, ready, kinds, names=None, left_out=(), user=()):
        self.ready, self.kinds, self.names = ready, kinds, names or {}
        self.left_out, self.user = set(left_out), tuple(user)

    def missing(self, call):
        """The arguments of ``call`` that the door says nothing of."""
        known = inspect.signature(call).parameters.values()
        taken = {p.name for p in known if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        return taken - set(self.kinds) - self.left_out - {"self"}


def misspelt(name, rng):
    """``name`` with one letter left out, doubled, exchanged or in the other case."""
    at = rng.randrange(len(name))
    ways = (
        name[:at] + name[at + 1 :],
        name[:at] + name[at] + name[at:],
        name[:at] + name[at].swapcase() + name[at + 1 :],
    )
    return next((each for each in rng.sample(ways, 3) if each != name), name + "x")


def odd_value(door, argument, rng):
    """(a name for it, the value)."""
    if argument in door.names and rng.random() < 0.25:
        value = misspelt(rng.choice(door.names[argument]), rng)
        return repr(value), value
    name = rng.choice(list(ODD))
    return name, ODD[name]()


def odd_call(name, door, rng, arguments=None):
    """Call ``door`` with one odd argument, sometimes two. Returns what came of it.

    arguments: (argument, name of the odd value) pairs instead of drawn ones. Raises AssertionError where something
    meaningless was taken, something else was raised, or what must stay has changed.
    """
    call, good, state = door.ready()
    if arguments is None:
        number = min(rng.choice((1, 1, 1, 2)), len(door.kinds))
        chosen = {each: odd_value(door, each, rng) for each in rng.sample(sorted(door.kinds), number)}
    else:
        chosen = {argument: (each, ODD[each]()) for argument, each in arguments}
    given = {**good, **{argument: value for argument, (_, value) in chosen.items()}}
    what = f"{name}({', '.join(f'{argument}={shown}' for argument, (shown, _) in chosen.items())})"
    taken = all(door.kinds[argument](value) for argument, (_, value) in chosen.items())
    before = state() if state else None

    try:
        call(**given)
    except EideticError as error:
        assert state is None or state() == before, f"{what}: refused ({error}), and not as it was"
        assert str(error) and len(str(error)) < 2000, f"{what}: a message of {len(str(error))} characters"
        return type(error).__name__
    except door.user:
        return "the user's own"
    except OSError as error:
        if "the disk is gone" in str(error):
            return "the user's own"
        raise AssertionError(f"{what}: OSError: {error}"[:500]) from error
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {_said(error)}"[:500]) from error
    assert taken, f"{what}: taken without a word"
    return "taken"


def _said(error):
    try:
        return str(error)
    except Exception:
        return "(an error that cannot be shown)"


def all_single(door):
    """Every (argument, odd value's name) of a door."""
    return itertools.product(sorted(door.kinds), ODD)
