"""save and load: the whole network comes back, or a CheckpointError says why not."""

import json
import struct

import pytest
import torch
from life import CLASSES, READINGS, Memory, batch, digest, learn, reading, recall, train
from safetensors import safe_open
from safetensors.torch import save_file
from small_networks import KINDS, MLP, NETWORKS, ConvNet

import eidetic_kernels as ek
from eidetic_kernels import files
from eidetic_kernels.records import checkpoint
from eidetic_kernels.tasks.routing import Router

STAGES = ("fresh", "prepared without a head", "in training", "pruned", "between tasks", "in a later task", "widened")


class SlightlyOther(MLP):
    """The same groups and widths as MLP, under another name."""


class WithCallable(MLP):
    """Takes an argument that JSON cannot hold."""

    def __init__(self, activation=torch.relu):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        return self.body(x)


def at(stage, net, how="nested"):
    """Bring ``net`` to a stage of its life."""
    if stage == "fresh":
        return net
    if stage == "prepared without a head":
        net.prepare_for_task(0)
        return net

    if stage in ("between tasks", "in a later task", "widened"):
        learn(net, 0, how)
        learn(net, 1, how)
        if stage == "between tasks":
            return net
        if stage == "widened":
            net.widen({net.groups[0].name: 30})
            return net
        net.prepare_for_task(2, CLASSES, reading(net, how, 2))
    else:
        net.prepare_for_task(0, CLASSES)

    train(net, torch.optim.SGD(net.parameters(), 0.1), 1)
    if stage == "pruned":
        net.prune(0.5)
    return net


def with_router(net):
    columns = sum(source.columns(None) for source in net.wiring.features)
    net.router = Router(torch.randn(net.finished_tasks, columns), torch.randn(net.finished_tasks))
    return net


def rewrite_header(path, **changes):
    """Change entries of a saved network's header, with a right hash: as somebody would who means to."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["eidetic"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = json.dumps({**header, **changes})
    save_file(tensors, path, {"eidetic": text, "sha256": checkpoint._content(text, tensors)})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"router_classes": [1, 2]}, r"router's classes are \[1, 2\], and its weight scores 2"),
        ({"router_classes": [2]}, "router_tasks is 2, and the router scores 1 tasks"),
        ({"router_classes": []}, "header.router_classes has 0 entries, 1 or more were expected"),
        ({"router_tasks": 3}, "router_tasks is 3, and the router scores 2 tasks"),
        ({"router_convolutions": [8]}, "header.router_convolutions has 1 entries, 2 or more were expected"),
        ({"router_fingerprint": "x"}, "header.router_fingerprint is 'x', a dtype and SHA-256"),
    ],
)
def test_a_router_that_its_tensors_do_not_fit_is_refused(path, changes, named):
    with_router(at("between tasks", MLP())).save(path)
    rewrite_header(path, **changes)
    with pytest.raises(ek.CheckpointError, match=named):
        ek.EideticNetwork.load(path)


def test_nothing_is_loaded_onto_the_meta_device(path):
    """It holds no numbers: a network without any came back, with a warning."""
    at("between tasks", MLP()).save(path)
    with torch.device("meta"):
        empty = MLP()
        with pytest.raises(ek.InputError, match="lie on the meta device, which holds no numbers"):
            ek.EideticNetwork.load(path)
    with pytest.raises(ek.InputError, match="lie on the meta device"):
        ek.EideticNetwork.load(path, empty)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


class TestRoundTrip:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("stage", STAGES)
    def test_the_whole_state_comes_back(self, kind, stage, path):
        net = at(stage, NETWORKS[kind]())
        net.zero_grad()
        net.save(path)
        again = ek.EideticNetwork.load(path)
        assert type(again) is type(net) and again is not net
        assert digest(again) == digest(net.train())
        assert str(again.capacity()) == str(net.capacity())
        assert again.certify().ok, str(again.certify())

    @pytest.mark.parametrize("how", READINGS)
    @pytest.mark.parametrize("stage", ["between tasks", "in a later task", "widened"])
    def test_life_goes_on_after_loading(self, how, stage, path):
        net = at(stage, ConvNet(dropout=0.0), how)
        memory = Memory(net)
        memory.note(net)
        net.save(path)
        again = ek.EideticNetwork.load(path)

        for each in (net, again):
            if each.current_task is None:
                each.prepare_for_task(2, CLASSES, reading(each, how, 2))
                torch.manual_seed(1)
                with torch.no_grad():
                    for parameter in each.parameters():
                        parameter.copy_(torch.randn_like(parameter))

            optimizer = torch.optim.SGD(each.parameters(), 0.1)
            train(each, optimizer, 2)
            each.prune(0.5, optimizer=optimizer)
            train(each, optimizer, 2)
            each.finish_task()
            memory.check(each, "going on")

        again.zero_grad()
        assert digest(again) == digest(net), "both go the same way, bit for bit"

    def test_in_the_middle_of_a_disjoint_task(self, path):
        net = ConvNet()
        learn(net, 0)
        net.prepare_for_task(1, 3, forward_transfer=False)
        net.prune(0.5)
        net.save(path)
        again = ek.EideticNetwork.load(path)
        assert digest(again) == digest(net)
        assert again.live_head.forward_transfer == (True, False)

    def test_tasks_without_units(self, path):
        net = MLP()
        learn(net, 0, fraction=1.0)
        learn(net, 1, fraction=0, max_units={"body.0": 0})
        net.save(path)
        again = ek.EideticNetwork.load(path)
        assert digest(again) == digest(net) and again.certify().ok

    def test_router_and_probe_come_along(self, path):
        net = with_router(at("between tasks", MLP()))
        x = batch(net)[0]
        before = net.predict(x)
        net.save(path)
        again = ek.EideticNetwork.load(path)
        after = again.predict(x)
        assert torch.equal(before.router_logits, after.router_logits) and torch.equal(before.logits, after.logits)
        assert all(torch.equal(again.probes.of(t), net.probes.of(t)) for t in range(2))
        assert again.input_shape == net.input_shape == (6,)
        assert isinstance(again.router, Router) and not list(again.router.parameters())

    def test_saving_changes_nothing_and_overwrites(self, path):
        net = at("in a later task", ConvNet())
        before = digest(net)
        net.save(path)
        net.save(path)
        assert digest(net) == before
        assert [each.name for each in path.parent.iterdir()] == [path.name]

    def test_saving_makes_the_folder_and_takes_a_string(self, tmp_path):
        MLP().save(str(tmp_path / "a" / "b" / "net"))
        assert ek.EideticNetwork.load(str(tmp_path / "a" / "b" / "net")).finished_tasks == 0

    def test_the_file_is_safetensors_and_json_and_holds_no_pickle(self, path):
        at("in a later task", ConvNet()).save(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["eidetic"])
            assert set(file.keys()) >= {"conv1.frozen_weight", "bn1.frozen_scale", "heads.0.frozen_weight", "probes.0"}
        assert header["class"] == "small_networks:ConvNet" and header["current_task"] == 2
        assert [group["name"] for group in header["groups"]] == ["conv1", "conv2", "fc"]


class TestWhichClass:
    def test_arguments_are_remembered(self, path):
        MLP((5, 4, 3), norm=False, dropout=0.25).save(path)
        again = ek.EideticNetwork.load(path)
        assert [row.width for row in again.capacity().rows] == [5, 4, 3]
        assert again.body[2].p == 0.25

    def test_load_on_the_class_itself(self, path):
        at("between tasks", MLP()).save(path)
        assert type(MLP.load(path)) is MLP

    def test_load_on_a_subclass_of_the_same_architecture(self, path):
        net = at("between tasks", MLP())
        net.save(path)
        again = SlightlyOther.load(path)
        assert type(again) is SlightlyOther and again.certify().ok

    def test_a_class_that_is_not_defined_is_named_with_the_ways_out(self, path):
        def elsewhere():
            class Hidden(MLP):
                pass

            return Hidden

        hidden = elsewhere()
        net = hidden()
        net.save(path)
        hidden.__qualname__ = "Gone"
        with pytest.raises(ek.CheckpointError, match=r"Hidden', which is not defined here.*load\(path, network="):
            ek.EideticNetwork.load(path)
        assert hidden.load(path).finished_tasks == 0
        assert ek.EideticNetwork.load(path, network=MLP()).finished_tasks == 0

    def test_a_network_that_is_given_is_not_changed(self, path):
        net = at("in a later task", MLP())
        net.zero_grad()
        net.save(path)
        given = MLP()
        before = digest(given)
        again = ek.EideticNetwork.load(path, given)
        assert digest(given) == before and given.finished_tasks == 0
        assert digest(again) == digest(net) and again is not given

    def test_a_network_with_a_life_of_its_own_is_refused(self, path):
        MLP().save(path)
        for stage in ("in training", "between tasks"):
            with pytest.raises(ek.CheckpointError, match="fresh network"):
                ek.EideticNetwork.load(path, at(stage, MLP()))

    def test_another_width_is_refused_with_both(self, path):
        MLP((10, 8)).save(path)
        with pytest.raises(ek.CheckpointError, match=r"'body\.4': 8.*'body\.4': 9"):
            ek.EideticNetwork.load(path, MLP((10, 9)))

    def test_another_architecture_is_refused(self, path):
        MLP().save(path)
        with pytest.raises(ek.CheckpointError, match="another architecture"):
            ek.EideticNetwork.load(path, ConvNet())
        with pytest.raises(ek.CheckpointError, match="does not fit MLP|another architecture"):
            ek.EideticNetwork.load(path, MLP(norm=False))

    def test_arguments_that_json_cannot_hold_need_an_instance(self, path):
        net = at("between tasks", WithCallable(torch.tanh))
        net.save(path)
        with pytest.raises(ek.CheckpointError, match=r"arguments that JSON cannot hold.*network="):
            ek.EideticNetwork.load(path)
        again = ek.EideticNetwork.load(path, WithCallable(torch.tanh))
        assert again.certify().ok

    def test_a_constructor_that_changed_since_is_named(self, path, monkeypatch):
        MLP(dropout=0.1).save(path)
        monkeypatch.setattr(MLP, "__init__", lambda self, widths: None)
        with pytest.raises(ek.CheckpointError, match="MLP cannot be built with the saved arguments"):
            MLP.load(path)

    def test_arguments_that_make_no_network_are_the_file_s_fault(self, path, monkeypatch):
        MLP().save(path)
        monkeypatch.setattr(MLP, "forward", lambda self, x: x)
        with pytest.raises(ek.CheckpointError, match="cannot be built with the saved arguments .ConversionError"):
            MLP.load(path)
        with pytest.raises(ek.ConversionError):  # the caller's own network
            MLP.load(path, MLP())


class TestDamage:
    @pytest.fixture
    def saved(self, path):
        net = with_router(at("in a later task", MLP((3, 2))))
        net.zero_grad()
        net.save(path)
        self.whole = path.read_bytes()
        (self.header,) = struct.unpack("<Q", self.whole[:8])
        self.digest = digest(net)
        return path

    def test_every_byte_of_the_tensors_is_guarded(self, saved):
        start = 8 + self.header
        for offset in range(start, len(self.whole), 7):
            self.flip(saved, offset)
            with pytest.raises(ek.CheckpointError, match="damaged"):
                ek.EideticNetwork.load(saved)

    def test_the_first_bytes_are_guarded(self, saved):
        for offset in range(10):
            self.flip(saved, offset)
            with pytest.raises(ek.CheckpointError, match="not a network saved by this package, or is damaged"):
                ek.EideticNetwork.load(saved)

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
    def test_a_truncated_file_is_refused(self, saved, share):
        saved.write_bytes(self.whole[: int(len(self.whole) * share)])
        with pytest.raises(ek.CheckpointError, match="damaged"):
            ek.EideticNetwork.load(saved)

    def test_a_longer_file_is_refused(self, saved):
        saved.write_bytes(self.whole + b"\0" * 8)
        with pytest.raises(ek.CheckpointError):
            ek.EideticNetwork.load(saved)

    @pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 100, b"PK\x03\x04" + b"x" * 500])
    def test_a_foreign_file_is_refused(self, path, content):
        path.write_bytes(content)
        with pytest.raises(ek.CheckpointError, match="not a network saved by this package"):
            ek.EideticNetwork.load(path)

    def test_safetensors_of_something_else_are_refused(self, path):
        save_file({"weight": torch.zeros(3)}, path)
        with pytest.raises(ek.CheckpointError, match="not a network saved by this package"):
            ek.EideticNetwork.load(path)

    def test_a_missing_file_and_a_folder_are_named(self, tmp_path):
        for wrong in (tmp_path / "none", tmp_path):
            with pytest.raises(ek.CheckpointError, match="there is no file"):
                ek.EideticNetwork.load(wrong)

    def test_a_later_format_is_refused_with_both_versions(self, path, monkeypatch):
        monkeypatch.setattr(checkpoint, "FORMAT", 99)
        MLP().save(path)
        monkeypatch.undo()
        with pytest.raises(ek.CheckpointError, match=r"format 99.*reads format 1"):
            ek.EideticNetwork.load(path)

    def flip(self, path, offset):
        data = bytearray(self.whole)
        data[offset] ^= 1
        path.write_bytes(data)


class TestAtomic:
    @pytest.mark.parametrize("step", ["save_file", "replace"])
    def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(self, path, monkeypatch, step):
        old = MLP()
        old.save(path)
        before = path.read_bytes()

        def fail(*args, **kwargs):
            raise OSError("no space left on device")

        if step == "replace":
            monkeypatch.setattr(files.os, "replace", fail)
        else:
            monkeypatch.setattr(files, "save_file", fail)
        with pytest.raises(ek.CheckpointError, match="cannot be written .no space"):
            at("in training", MLP()).save(path)
        assert path.read_bytes() == before
        assert [each.name for each in path.parent.iterdir()] == [path.name]

    def test_an_interrupt_cleans_up_too(self, path, monkeypatch):
        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(files, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            MLP().save(path)
        assert list(path.parent.iterdir()) == []


def test_a_loaded_network_does_not_depend_on_its_file(path):
    net = at("between tasks", MLP())
    memory = Memory(net)
    memory.note(net)
    net.save(path)
    again = ek.EideticNetwork.load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    memory.check(again, "overwriting the file")


@pytest.mark.slow
def test_every_byte_of_the_header_is_guarded(tmp_path):
    """It holds the structure: a flipped bit there could be another dropout, input shape or task."""
    net = MLP((3, 2))
    learn(net, 0)
    net.prepare_for_task(1, 3)
    path = tmp_path / "net"
    net.save(path)
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    for offset in range(8, 8 + header):
        data = bytearray(whole)
        data[offset] ^= 1
        path.write_bytes(data)
        with pytest.raises(ek.CheckpointError):
            ek.EideticNetwork.load(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_dtype_comes_back_in_it(tmp_path, dtype):
    net = MLP(norm=False)
    learn(net, 0)
    net.to(dtype)
    x = batch(net)[0]
    before = recall(net, x, 0)
    net.save(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net")
    assert again.heads[0].frozen_weight.dtype == dtype
    assert torch.equal(recall(again, x, 0), before)


@pytest.mark.parametrize("nested", [True, False])
def test_a_head_may_come_after_loading(tmp_path, nested):
    net = MLP()
    learn(net, 0)
    net.prepare_for_task(1, forward_transfer=nested)
    net.save(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net")
    net.add_head(3), again.add_head(3)
    assert again.live_head.weight.shape == net.live_head.weight.shape


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    MLP().save(tmp_path / "net")
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "net").stat().st_mode == (tmp_path / "other").stat().st_mode
