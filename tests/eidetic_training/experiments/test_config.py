"""Configurations: defaults, files, overrides, and refusals that say what there is."""

import pytest

from eidetic_kernels.errors import InputError
from eidetic_training import TaskSettings
from eidetic_training.experiments import config as configuration


def toml(tmp_path, text):
    path = tmp_path / "some.toml"
    path.write_text(text)
    return path


def test_an_empty_file_is_every_default(tmp_path):
    config = configuration.load(toml(tmp_path, ""))
    assert config == configuration.DEFAULTS
    assert config["data"]["source"] == "digits" and config["model"] == {"name": "mlp"}


def test_defaults_cannot_be_changed_through_a_configuration():
    config = configuration.complete({})
    config["data"]["tasks"] = config["task"]["step"] = config["model"]["width"] = 3
    assert configuration.complete({})["data"]["tasks"] == 10
    assert configuration.complete({})["task"] == {}
    assert "width" not in configuration.complete({})["model"]


def test_what_a_file_says_replaces_a_default_and_nothing_else(tmp_path):
    text = '[data]\ntasks = 3\n[model]\nname = "convnet"\nwidth = 8\n[task]\nsearch = "linear"\n'
    config = configuration.load(toml(tmp_path, text))
    assert config["data"] == {**configuration.DEFAULTS["data"], "tasks": 3}
    assert config["model"] == {"name": "convnet", "width": 8}
    assert config["task"] == {"search": "linear"}
    assert config["optimizer"] == configuration.DEFAULTS["optimizer"]


def test_an_argument_of_a_model_or_optimizer_keeps_the_other_defaults(tmp_path):
    config = configuration.load(toml(tmp_path, "[optimizer]\nweight_decay = 0.1\n[model]\nwidth = 5"))
    assert config["optimizer"] == {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
    assert config["model"] == {"name": "mlp", "width": 5}


def test_the_demo_is_built_in_and_is_the_issue_s():
    assert "demo" in configuration.built_in()
    demo = configuration.load("demo")
    assert (demo["data"]["tasks"], demo["data"]["source"], demo["data"]["sequence"]) == (10, "digits", "permuted")
    assert demo["model"] == {"name": "mlp", "width": 2000, "depth": 2}


@pytest.mark.parametrize("name", configuration.built_in())
def test_every_built_in_configuration_is_valid(name):
    config = configuration.load(name)
    assert config["name"] == name
    TaskSettings.of_dict(config["task"])


@pytest.mark.parametrize(
    "override, table, key, value",
    [
        ("task.tolerance=0.02", "task", "tolerance", 0.02),
        ("task.search=linear", "task", "search", "linear"),  # text needs no quotes
        ('task.search="linear"', "task", "search", "linear"),
        (" data.tasks = 5 ", "data", "tasks", 5),
        ('data.source=["digits", "mnist"]', "data", "source", ["digits", "mnist"]),
        ("capacity.share=even", "capacity", "share", "even"),
        ("capacity.share=0.25", "capacity", "share", 0.25),
        ("capacity.prune_last=false", "capacity", "prune_last", False),
        ("capacity.widen=100", "capacity", "widen", 100),
        ("capacity.widen=0.1", "capacity", "widen", 0.1),
        ('task.importance=["l1", 2]', "task", "importance", ["l1", 2]),
        ("optimizer.lr=2e-4", "optimizer", "lr", 2e-4),
        ("model.dropout=0.1", "model", "dropout", 0.1),
        ("data.folder=/some/where=odd", "data", "folder", "/some/where=odd"),
        ("router.train=false", "router", "train", False),
        ("router.convolutions=[8, 16]", "router", "convolutions", [8, 16]),
    ],
)
def test_an_override_sets_one_value_read_as_toml_or_else_text(override, table, key, value):
    base, config = configuration.load("demo"), configuration.load("demo", [override])
    assert config[table].pop(key) == value
    base[table].pop(key, None)
    assert config == base


def test_the_last_override_wins_and_top_level_values_can_be_set():
    config = configuration.load("demo", ["seed=1", "seed=2", "name=mine"])
    assert (config["seed"], config["name"]) == (2, "mine")


@pytest.mark.parametrize("override", ["task.tolerance", "=3", "tolerance 3", ""])
def test_an_override_without_a_key_and_a_value_is_refused(override):
    with pytest.raises(InputError, match="key=value"):
        configuration.load("demo", [override])


def test_an_override_below_a_value_is_refused():
    with pytest.raises(InputError, match="'tasks' is a value, not a table"):
        configuration.load("demo", ["data.tasks.more=3"])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"dta": {}}, r"the configuration has no key 'dta' \(did you mean 'data'\?\); it has: name, seed, "),
        (
            {"data": {"task": 3}},
            r"has no key 'data\.task' \(did you mean 'data\.tasks'\?\); it has: data\.sequence, ",
        ),
        ({"capacity": {"shares": 0.1}}, r"\(did you mean 'capacity\.share'\?\)"),
        ({"zzzz": 1}, r"has no key 'zzzz'; it has: [^?]*\.$"),
        ({"task": {"tolerence": 0.1}}, r"has no key 'task.tolerence' .*; it has: .*task.tolerance"),
    ],
)
def test_an_unknown_key_is_named_with_those_there_are_and_the_closest(given, message):
    with pytest.raises(InputError, match=message):
        configuration.complete(given)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"data": 3}, "data is a table of the configuration; got 3"),
        ({"model": "mlp"}, "model is a table of the configuration; got 'mlp'"),
        ({"data": {"sequence": "random"}}, "data.sequence must be one of permuted, split, several; got 'random'"),
        ({"optimizer": {"name": "lion"}}, "optimizer.name must be one of adam, adamw, sgd, rmsprop; got 'lion'"),
        ({"capacity": {"share": 0.0}}, "capacity.share must be a fraction"),
        ({"capacity": {"share": 1.1}}, "capacity.share must be a fraction"),
        ({"capacity": {"share": "odd"}}, "capacity.share must be a fraction .* got 'odd'"),
        ({"capacity": {"share": True}}, "capacity.share must be float or str or list or nothing"),
        ({"capacity": {"share": []}}, "capacity.share must be a fraction"),
        ({"capacity": {"share": [0.5, 1.5]}}, "capacity.share must be a fraction"),
        ({"capacity": {"share": [0.5, "even"]}}, "capacity.share must be a fraction"),
        ({"capacity": {"multiple": 0}}, 'capacity.multiple must be a number of units, 1 or more, or "auto"; got 0'),
        ({"capacity": {"multiple": "all"}}, "capacity.multiple must be .* got 'all'"),
        ({"capacity": {"widen": 0}}, "capacity.widen must be a number of units, 1 or more, or a fraction .*; got 0"),
        ({"capacity": {"widen": 1.5}}, "capacity.widen must be a number of units, .* a fraction in .*; got 1.5"),
        ({"capacity": {"widen": "even"}}, "capacity.widen must be int or float or nothing; got 'even'"),
        ({"capacity": {"widen": True}}, "capacity.widen must be int or float or nothing; got True"),
        ({"data": {"held_out": 1.0}}, r"data.held_out must be a number in \(0, 1\)"),
        ({"data": {"held_out": 1}}, "data.held_out must be float or nothing; got 1"),
        ({"data": {"learn_first": 0}}, "data.learn_first must be a whole number, 1 or more; got 0"),
        ({"data": {"learn_first": "two"}}, "data.learn_first must be int or nothing"),
        ({"sweep": {"trails": 3}}, "has no key 'sweep.trails'"),
        ({"sweep": {"trials": 0}}, "^sweep.trials must be a whole number, 1 or more; got 0"),
        ({"sweep": {"space": {"task.step": [1]}}}, "sweep.space.task.step must be a list"),
        ({"router": {"convolutions": []}}, r"router.convolutions must be numbers of channels, .*; got \[\]"),
        ({"router": {"convolutions": [8, 0]}}, r"router.convolutions must be numbers of channels, .*got \[8, 0\]"),
        ({"router": {"convolutions": [8, True]}}, "router.convolutions must be numbers of channels"),
        ({"router": {"convolutions": 8}}, "router.convolutions must be numbers of channels, .*; got 8"),
        ({"router": {"hidden": -1}}, "router.hidden must be a whole number of units, 0 or more; got -1"),
        ({"router": {"augment": True}}, "router.augment=True is about convolutions, and there are none: give conv"),
        ({"router": {"alone": True}}, "router.alone=True is about convolutions, and there are none: give conv"),
        ({"router": {"convolutions": [4], "alone": True, "layers": True}}, "router.alone=True reads nothing but conv"),
        ({"router": {"mirrored": True}}, "router.mirrored=True is about convolutions, and there are none: give conv"),
        ({"task": {"search": "greedy"}}, "search must be one of"),
        ({"task": {"step": 0}}, "task.step must be a number in"),
    ],
)
def test_a_bad_value_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        configuration.complete(given)


def test_a_name_that_is_no_configuration_is_refused_with_those_built_in():
    with pytest.raises(
        InputError, match=r"there is no configuration 'dmeo' \(did you mean 'demo'\?\); built in are .*demo.*\.toml"
    ):
        configuration.load("dmeo")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="missing.toml cannot be read: No such file"):
        configuration.load(tmp_path / "missing.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        configuration.load(tmp_path / "folder.toml")


def test_a_file_that_is_not_toml_is_refused_with_the_place(tmp_path):
    with pytest.raises(InputError, match="some.toml is not TOML: .*line 2"):
        configuration.load(toml(tmp_path, "seed = 1\nname = \n"))


@pytest.mark.parametrize("key", ["capacity.forward_transfer", "capacity.prune_last", "router.train"])
def test_false_as_python_spells_it_is_not_taken_for_true(key):
    """TOML knows `false` only: "False" would be a text, which is true."""
    with pytest.raises(InputError, match=f"{key} must be bool.*'False'"):
        configuration.load("demo", [f"{key}=False"])


@pytest.mark.parametrize(
    "override",
    [
        "seed=x",
        "seed=true",
        "name=3",
        "device=3",
        "router.max_epochs=x",
        "router.lr=fast",
        "router.patience=0",
        "router.batch_size=0",
        "data.tasks=0",
        "data.batch_size=x",
        "data.resolution=x",
        "data.folder=3",
        "data.source=3",
        "data.source=[]",
        "data.source=[1]",
        "optimizer.name=[1]",
        "task.max_epochs=abc",
        "task.tolerance=x",
        "capacity.forward_transfer=3",
        "capacity.share=1",
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_its_key(override):
    with pytest.raises(InputError, match=override.partition("=")[0].removeprefix("task.")):
        configuration.load("demo", [override])


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "some.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(InputError, match="some.toml"):
        configuration.load(tmp_path / "some.toml")


# ---- written as TOML


def test_the_router_s_convolutions_are_written_and_read_back(tmp_path):
    config = configuration.complete({"router": {"convolutions": [8, 16], "augment": True, "alone": True}})
    assert configuration.load(toml(tmp_path, configuration.to_toml(config))) == config


@pytest.mark.parametrize("name", configuration.built_in())
def test_a_configuration_written_as_toml_reads_back_equal(name, tmp_path):
    config = configuration.load(name)
    assert configuration.load(toml(tmp_path, configuration.to_toml(config))) == config


def test_every_kind_of_value_is_written_as_toml(tmp_path):
    given = {
        "name": 'quoted " \\ é\n\x7f\x01',
        "data": {"source": ["digits", "mnist"], "augment": False, "folder": None},
        "optimizer": {"lr": 1e-05, "betas": [0.9, 0.999], "eps": 1e22},
        "model": {},
        "capacity": {"forward_transfer": {"body.1": False, "head": True}},
        "sweep": {"space": {"optimizer.lr": {"low": 1, "high": 2.5, "log": True}, "model": {"width": [1, 2]}}},
    }
    text = configuration.to_toml(given)
    assert "folder" not in text and "[model]" in text
    assert configuration._read(toml(tmp_path, text)) == {
        **given,
        "data": {"source": ["digits", "mnist"], "augment": False},
    }


def test_values_by_dotted_key_replace_others_and_are_checked():
    config = configuration.load("demo")
    changed = configuration.changed(config, {"task.step": 0.2, "model.dropout": 0.1, "data.held_out": 0.5})
    assert (changed["task"]["step"], changed["model"]["dropout"], changed["data"]["held_out"]) == (0.2, 0.1, 0.5)
    assert config == configuration.load("demo"), "the one given is as it was"
    with pytest.raises(InputError, match="has no key 'task.stp'"):
        configuration.changed(config, {"task.stp": 0.2})
