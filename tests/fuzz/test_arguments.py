"""Public calls that are given odd arguments work, or raise the package's own errors and change nothing."""

import inspect

import pytest
from doors_of_kernels import doors as doors_of_kernels
from fuzzing import run_cases
from odd_arguments import odd_call
from torch import nn

import eidetic_kernels as ek
import eidetic_training
from eidetic_training import data, methods, models

pytestmark = pytest.mark.filterwarnings("ignore")

# What no user calls with arguments of their own: what calls return, and what is made elsewhere or inherited.
RESULTS = {"Capacity", "CapacityRow", "Certificate", "Prediction", "PruningPlan", "Snapshot", "Event", "TaskResult"}
CONSTRUCTED_ELSEWHERE = {"ConvertedNetwork", "EideticNetwork", "Method"}
# Steps of calls, in which the network hands over to itself.
STEPS = {"as_architecture", "changing", "cut_group", "make_head", "named_parameters", "running", "traced", "train"}
CANNOT_BE_GOOD = ("net.apply_plan of odd indices", "net.restore of another")


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    """Every door by its name; files are made in a folder that is removed."""
    pytest.importorskip("pyarrow")
    from doors_of_training import doors as doors_of_training
    from tiny_runs import write_data

    folder = tmp_path_factory.mktemp("doors")
    write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield {**doors_of_kernels(folder), **doors_of_training(folder)}


def test_every_public_call_has_a_door(doors):
    named = {part for name in doors for part in name.replace("(", " ").replace(".", " ").split()}
    for module in (ek, eidetic_training, data, models):
        public = {name for name in module.__all__ if callable(getattr(module, name)) and not _is_error(module, name)}
        assert public - named - RESULTS - CONSTRUCTED_ELSEWHERE == set(), module.__name__
    assert {f"methods.{name}" for name in methods.METHODS} <= set(doors)

    network = ek.EideticNetwork
    own = {name for name, _ in inspect.getmembers(network, inspect.isfunction) if not hasattr(nn.Module, name)}
    given = {name for name in own if name[0] != "_" and len(inspect.signature(getattr(network, name)).parameters) > 1}
    assert given - named - STEPS == set()


def test_doors_know_every_argument(doors):
    for name, door in doors.items():
        call, _, _ = door.ready()
        assert not door.missing(call), (name, door.missing(call))


def test_good_arguments_are_taken(doors):
    for name, door in doors.items():
        if name not in CANNOT_BE_GOOD:
            assert odd_call(name, door, None, arguments=()) == "taken", name


def test_odd_arguments(doors):
    names = sorted(doors)

    def case(rng):
        name = rng.choice(names)
        return odd_call(name, doors[name], rng)

    ends = run_cases("arguments", 600, case)
    assert sum(ends.values()) < 100 or ends["InputError"] > ends["taken"] > 0


def _is_error(module, name):
    each = getattr(module, name)
    return isinstance(each, type) and issubclass(each, Exception)
