"""Configurations of any kind are completed and built, or refused with an InputError before anything is made."""

import copy
import re

import pytest
from fuzzing import damaged, run_cases
from odd_arguments import misspelt

from eidetic_kernels.errors import InputError
from eidetic_training.experiments import config as configuration
from eidetic_training.experiments.experiment import build
from eidetic_training.experiments.tasks import make_tasks

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.filterwarnings("ignore")

# As TOML writes them. Whole numbers are small, or too large for anything: those between would be built, and take long.
ODD = (
    *("0", "1", "2", "3", "-1", "7", "16", "1_099_511_627_776", "9223372036854775807", "18446744073709551616"),
    *("0.0", "0.5", "1.0", "-0.5", "1.5", "1e-3", "1e308", "nan", "inf", "-inf", "1" + "0" * 400, "1" * 5000),
    *("true", "false", '""', '"0"', '"nope"', '"auto"', '"even"', '"\\u0000"', '"a/b"', '"../x"', "'é'", '"x"'),
    *("[]", "[1]", "[0.1, 0.2]", '["l1", "taylor"]', "[[]]", "[nan]", '["digits", "digits"]', "[8, 16]", "[true]"),
    *("{}", "{ low = 1, high = 2 }", "{ low = nan, high = inf }", "{ a = 1 }", "{ a = { a = { a = 1 } } }"),
    *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", f'"{"x" * 3000}"', "[" * 30 + "]" * 30),
)
# Settings that are good elsewhere, some of which a table with others refuses.
GOOD = {
    "model.name": ('"mlp"', '"convnet"', '"resnet18"'),
    "model.width": ("4", "8"),
    "model.depth": ("1", "2"),
    "model.dropout": ("0.5",),
    "model.num_layers": ("1",),
    "model.small": ("true",),
    "optimizer.name": ('"sgd"', '"adam"', '"adamw"', '"rmsprop"'),
    "optimizer.momentum": ("0.9",),
    "optimizer.betas": ("[0.9, 0.99]", "[0.9]", '["a", "b"]'),
    "optimizer.weight_decay": ("0.1",),
    "optimizer.fused": ("true", "false"),
    "optimizer.foreach": ("true",),
    "optimizer.nesterov": ("true",),
    "optimizer.maximize": ("false",),
    "optimizer.capturable": ("true",),
    "data.sequence": ('"permuted"', '"split"', '"several"'),
    "data.resolution": ("8", "3"),
    "data.learn_first": ("1", "2"),
    "data.held_out": ("0.25", "0.01"),
    "capacity.forward_transfer": ("{ head = false }", '{ "body.1" = false }', "{ hed = true }", "{ head = 0 }"),
    "router.convolutions": ("[4]", "[4, 8]", "[4, 8, 8, 8, 8]"),
    "router.mirrored": ("true",),
    "router.classes": ("true",),
    "router.layers": ("true",),
    "router.inputs": ("true",),
    "router.hidden": ("3",),
    "capacity.share": ("0.5", "[0.5, 0.25]", "[0.5]", '"even"', "[0.5, 2.0]"),
    "methods.ewc": ("{ strength = 1.0 }", "{ strenght = 1.0 }"),
    "methods.evc": ("{}",),
    "sweep.grid": ("true",),
    "sweep.space": ('{ "optimizer.lr" = [1e-3, 1e-2] }', "{ task.step = { low = 0.1, high = 0.2, step = 0.01 } }"),
}
TINY = {"model.width": 6, "model.depth": 1, "model.num_layers": 1, "data.tasks": 2, "router.max_epochs": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tiny_runs import write_data

    return write_data(tmp_path_factory.mktemp("configurations") / "data", train=36, test=12)


def places(table, path=()):
    """The path of every value and table."""
    for key, value in table.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def overrides(rng, keys):
    """A few changes of a configuration, by dotted key, as TOML."""
    changes = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.randrange(4)
        key = rng.choice(keys) if kind else rng.choice(sorted(GOOD))
        value = rng.choice(GOOD[key]) if key in GOOD and rng.random() < 0.6 else rng.choice(ODD)
        if kind == 3:  # misspelt, in another table, or with another name
            parts = key.split(".")
            at = rng.randrange(len(parts))
            parts[at] = rng.choice((misspelt(parts[at], rng), rng.choice(keys).split(".")[-1], "", parts[at] + ".x"))
            key = ".".join(parts)
        changes[key] = value
    return changes


def removed(table, rng):
    """A copy without one of its values or tables."""
    table = copy.deepcopy(table)
    *path, last = rng.choice(list(places(table)))
    inner = table
    for key in path:
        inner = inner[key]
    inner.pop(last, None)
    return table


def text_of(name):
    return configuration.resources.files(configuration.CONFIGS).joinpath("configs", f"{name}.toml").read_bytes()


def test_configurations(folder, tmp_path):
    known = {".".join(path) for path in places(configuration.DEFAULTS)}
    keys = sorted({*known, *(f"task.{name}" for name in ("step", "importance", "of")), *GOOD})
    names, file = configuration.built_in(), tmp_path / "case.toml"

    def loaded(rng):
        """A complete configuration, and the keys that were changed."""
        name, way = rng.choice(names), rng.randrange(5)
        if way == 0:  # damaged text
            texts = [text_of(each) for each in names]
            file.write_bytes(damaged(text_of(name), texts, rng))
            return configuration.load(file), set()
        if way == 1:
            return configuration.complete(removed(configuration.load(name), rng)), set()
        changes = overrides(rng, keys)
        given = [f"{key}={value}" for key, value in changes.items()]
        if way == 2:  # what --set is given: pieces of it are missing, or more than it should be
            given = [re.sub(r"[=.\"]", rng.choice(("", "=", ".", '"', "\n", " ")), each, count=1) for each in given]
        return configuration.load(name, given), set(changes)

    def case(rng):
        config, changed = loaded(rng)
        text = configuration.to_toml(config)
        assert configuration.complete(configuration.tomllib.loads(text)) == config
        return "built" if built(config, changed, folder) else "complete"

    ends = run_cases("configurations", 60, case, weight=5)
    assert ends["InputError"] and ends["built"] or sum(ends.values()) < 100


def built(config, changed, folder):
    """Build the configuration on the tiny data set. Only what was changed, or what decides the time, stays as it is."""
    data = config["data"]
    if "data.source" not in changed and "data.folder" not in changed:
        several = data["sequence"] == "several"
        data |= {"source": ["parquet", "parquet"] if several else "parquet", "folder": str(folder)}
    elif data["folder"] is None and data["source"] not in ("digits", ["digits", "digits"]):
        return False  # from the hub

    for key, value in TINY.items():
        table, name = key.split(".")
        present = config[table].get(name)
        if present is None or key not in changed or (isinstance(present, int) and 8 < present < 2**31):
            if name in config[table] or (table, name) == ("model", "width"):
                config[table][name] = value
    if isinstance(data["resolution"], int) and 8 < data["resolution"] < 2**31:
        data["resolution"] = None
    build(config, make_tasks(data, config["seed"]))
    return True


@pytest.mark.parametrize("way", ["array", "table", "key"])
def test_tables_that_are_nested_too_deep(tmp_path, way):
    deep = {
        "array": "x = " + "[" * 5000 + "]" * 5000,
        "table": "[" + ".".join("a" * 3000) + "]",
        "key": "a." * 3000 + "a = 1",
    }
    (tmp_path / "deep.toml").write_text(deep[way])
    with pytest.raises(InputError):
        configuration.load(tmp_path / "deep.toml")
    key, _, value = deep[way].partition(" = ")
    with pytest.raises(InputError):
        configuration.load("demo", [f"{key.strip('[]')}={value or 1}"])
    space = {"sweep": {"space": configuration.tomllib.loads("a." * 500 + "a = 1")}}
    with pytest.raises(InputError):
        configuration.complete(space)
