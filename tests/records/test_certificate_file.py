"""Certificates in files of their own: rewritten records are found out, and a signature says who wrote a file."""

import copy
import json
import random
from dataclasses import replace

import pytest
import torch
from life import batch, learn, train
from small_networks import MLP, ConvNet

import eidetic_kernels as ek
from eidetic_kernels.errors import CheckpointError, ForgettingError, InputError
from eidetic_kernels.records import recording, signature
from eidetic_kernels.tasks.routing import Router

TASKS = 3


def learned(make=MLP, tasks=TASKS):
    net = make()
    for task in range(tasks):
        learn(net, task, max_units=0.3)
    give_router(net)
    return net


def give_router(net, seed=0):
    columns = sum(source.columns(None) for source in net.wiring.features)
    generator = torch.Generator().manual_seed(seed)
    net.router = Router(torch.randn(net.finished_tasks, columns, generator=generator), torch.zeros(net.finished_tasks))


@pytest.fixture
def net():
    return learned()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "certificate.json"


@pytest.fixture
def keys(tmp_path):
    """A private and a public key in PEM files."""
    return make_keys(tmp_path, "mine")


def make_keys(folder, name):
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32))
    pem = serialization.Encoding.PEM
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_network_is_certified_against_its_own_certificate(net, file, tmp_path):
    net.certify().write(file)
    net.save(tmp_path / "net")
    for each in (net, ek.EideticNetwork.load(tmp_path / "net")):
        certificate = each.certify(against=file)
        assert certificate.ok and certificate.tasks == TASKS
        (note,) = certificate.notes
        assert str(file) in note and "not signed" in note
    content = json.loads(file.read_text())
    assert [entry["task"] for entry in content["tasks"]] == [0, 1, 2]
    assert all(entry[name] for entry in content["tasks"] for name in ("logits", "values", "probe", "environment"))
    assert content["router"] == net.router_fingerprint and content["made"].endswith("+00:00")


# ---- records that were rewritten


def rewritten(net):
    """The network with records, and a fingerprint of the router, of what it is now."""
    net.records = [recording.record(net, task) for task in range(net.finished_tasks)]
    net.router = net.router
    assert net.certify().ok, "its own records are consistent"
    return net


def of_weights(net):
    net.body[4].frozen_weight[0] += 0.1


def of_a_head(net):
    net.heads[1].frozen_bias[0] += 1


def of_a_norm(net):
    net.body[1].frozen_scale[0] *= 2


def of_the_probe(net):
    net.probes.of(2).neg_()


def of_the_router(net):
    net.router.weight.neg_()


def without_the_router(net):
    net.router = None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (of_weights, "task 0: body.4: its frozen tensors"),
        (of_a_head, "task 1: heads.1: its frozen tensors"),
        (of_a_norm, "task 0: body.1: its frozen tensors"),
        (of_the_probe, "task 2: its probe inputs are not"),
        (of_the_router, "the router is not the one that was certified"),
        (without_the_router, "the router is gone"),
    ],
)
def test_records_that_were_rewritten_are_found_out(net, file, tmp_path, change, named):
    net.certify().write(file)
    change(net)
    rewritten(net).save(tmp_path / "net")
    loaded = ek.EideticNetwork.load(tmp_path / "net")
    assert loaded.certify().ok
    problems = loaded.certify(against=file).problems
    assert any(named in problem for problem in problems), problems
    with pytest.raises(ForgettingError):
        loaded.certify(against=file).check()


def test_another_network_is_not_the_certified_one(net, file):
    net.certify().write(file)
    other = learned(tasks=2)
    assert "certifies 3 tasks, and 2 are finished here" in str(other.certify(against=file))
    assert not MLP().certify(against=file).ok, "one that learned nothing"
    assert not learned(ConvNet).certify(against=file).ok
    torch.manual_seed(5)
    assert not learned().certify(against=file).ok


def test_another_precision_is_no_way_around_it(net, file):
    """Fingerprints cannot be compared there, and numbers within a tolerance only."""
    net.certify().write(file)
    with pytest.raises(InputError, match="certifies a network in float32, and this one is in float16"):
        copy.deepcopy(net).half().certify(against=file)
    net.router = net.router.half()
    assert "the router is not the one that was certified" in str(net.certify(against=file))


def test_a_certificate_stays_valid_when_more_tasks_are_learned(file):
    net = learned(tasks=1)
    net.certify().write(file)
    for task in range(1, 3):
        learn(net, task, max_units=0.3)
        net.certify(against=file).check()
    give_router(net, seed=1)
    net.prepare_for_task(3, 3)
    train(net, torch.optim.AdamW(net.parameters(), 1.0))
    certificate = net.certify(against=file)
    assert certificate.ok and "2 tasks were finished after that certificate was made" in str(certificate)
    net.body[0].frozen_weight[0] += 1
    net.records = [recording.record(net, task) for task in range(3)]
    assert any("task 0: body.0" in problem for problem in net.certify(against=file).problems)


def test_a_router_that_came_later_is_noted(file):
    net = learned()
    router, net.router = net.router, None
    net.certify().write(file)
    net.router = router
    certificate = net.certify(against=file)
    assert certificate.ok and "routed answers are not certified" in str(certificate)


def test_records_of_earlier_versions_can_be_written(net, file):
    net.records = [replace(record, shared=None, values=None, probe=None) for record in net.records]
    net.certify().write(file)
    assert net.certify(against=file).ok
    net.probes.of(1).neg_()
    assert "task 1: its probe inputs are not" in str(net.certify(against=file))


def test_another_environment_is_named_and_is_no_forgetting(net, file):
    net.certify().write(file)
    torch.set_num_threads(2)
    certificate = net.certify(against=file)
    assert certificate.ok and "threads 1 (here 2)" in str(certificate)


def test_records_of_others_that_lie_in_an_honest_file_are_not_certified(net, file, tmp_path):
    """A certificate made against a file repeats what was compared; it signed the network's own records once."""
    net.certify().write(file)
    other = copy.deepcopy(net)
    other.heads[0].frozen_bias += 1
    other.router = Router(other.router.weight.neg(), other.router.bias)
    rewritten(other)

    net.records = list(other.records)
    net.router_fingerprint = other.router_fingerprint
    certificate, second = net.certify(against=file), tmp_path / "second.json"
    assert certificate.ok
    certificate.write(second)
    assert net.certify(against=second).ok
    assert any("task 0: heads.0" in problem for problem in other.certify(against=second).problems)
    assert "- the router is not the one that was certified." in other.certify(against=second).problems
    first = json.loads(file.read_text())
    assert {**json.loads(second.read_text()), "made": first["made"]} == first


def test_a_second_certificate_holds_what_the_first_says_and_the_tasks_that_came_later(file, tmp_path):
    net = learned(tasks=1)
    net.certify().write(file)
    for task in (1, 2):
        learn(net, task, max_units=0.3)
    give_router(net)
    honest, second = net.records[0], tmp_path / "second.json"
    net.records[0] = replace(honest, logits="0" * 64)
    net.certify(against=file).write(second)
    assert [entry["logits"] for entry in json.loads(second.read_text())["tasks"]] == [
        record.logits for record in (honest, *net.records[1:])
    ]
    assert net.certify(against=second).ok and not net.certify().ok
    net.router = Router(net.router.weight.neg(), net.router.bias)
    assert "- the router is not the one that was certified." in net.certify(against=second).problems


# ---- the router's settings


def of_classes(net):
    """A router that scores two classes of every task."""
    net.router = Router(net.router.weight.repeat_interleave(2, 0), torch.arange(6.0), classes=(2, 2, 2))


@pytest.mark.parametrize(
    ("name", "value"), [("classes", (1, 3, 2)), ("layers", True), ("inputs", True), ("mirrored", True)]
)
def test_other_settings_of_a_router_are_another_router(net, file, tmp_path, name, value):
    of_classes(net)
    net.certify().write(file)
    setattr(net.router, name, value)
    net.save(tmp_path / "net")
    loaded = ek.EideticNetwork.load(tmp_path / "net")
    assert getattr(loaded.router, name) == value
    for problems, said in (
        (loaded.certify(against=file).problems, "were certified"),
        (loaded.certify().problems, "it was trained with"),
    ):
        assert len(problems) == 1 and "the router's settings" in problems[0] and said in problems[0]
    assert any("settings" in problem for problem in rewritten(loaded).certify(against=file).problems)


def test_fingerprints_of_a_router_s_tensors_alone_are_compared_with_its_tensors(net, file, tmp_path):
    """Those that were written before settings were recorded; what is written next has them."""
    net.router_fingerprint = " ".join(net.router_fingerprint.split()[:2])
    net.certify().write(file)
    content = json.loads(file.read_text())
    assert len(content["router"].split()) == 3
    file.write_text(json.dumps({**content, "router": net.router_fingerprint}))
    net.save(tmp_path / "net")
    net = ek.EideticNetwork.load(tmp_path / "net")
    for certificate in (net.certify(), net.certify(against=file)):
        assert certificate.ok and "the router's settings were not recorded" in str(certificate)
    net.certify(against=file).write(tmp_path / "second.json")
    assert json.loads((tmp_path / "second.json").read_text())["router"] == net.router_fingerprint, "as compared"
    net.router.weight.neg_()
    assert "- the router's tensors are not the ones that were trained." in net.certify().problems
    assert "- the router is not the one that was certified." in net.certify(against=file).problems


# ---- signatures


def test_a_signed_certificate_is_verified(net, file, keys):
    private, public = keys
    net.certify().write(file, key=private)
    assert "signed by the key that was given" in str(net.certify(against=file, key=public))
    assert "signed, which was not checked" in str(net.certify(against=file))
    file.write_text(json.dumps(json.loads(file.read_text()), indent=4, sort_keys=True))  # laid out otherwise
    assert net.certify(against=file, key=public).ok


def test_keys_may_be_given_as_objects(net, file, keys):
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_pem_private_key(keys[0].read_bytes(), None)
    net.certify().write(file, key=private)
    assert net.certify(against=file, key=private.public_key()).ok


def test_what_was_changed_after_signing_is_refused(net, file, keys):
    """By anybody who has not the key: whatever the change is."""
    net.certify().write(file, key=keys[0])
    signed = json.loads(file.read_text())

    def refused(change, match="changed after it had been signed"):
        content = copy.deepcopy(signed)
        change(content)
        file.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=match):
            net.certify(against=file, key=keys[1])

    refused(lambda c: c.update(made="2020-01-01T00:00:00+00:00"))
    refused(lambda c: c.update(version="9"))
    refused(lambda c: c.update(router=None))
    refused(lambda c: c.update(more="than was signed"))
    refused(lambda c: c["tasks"].pop())
    for name in ("units", "fingerprints", "environment", "shared"):
        refused(lambda c, name=name: c["tasks"][1][name].update(more="x" if name != "units" else 1))
    for name in ("logits", "values", "probe"):
        refused(lambda c, name=name: c["tasks"][0].update({name: None}))
    refused(lambda c: c["signature"].update(value=c["signature"]["value"][::-1]))
    refused(lambda c: c["signature"].update(value="no base64"))
    refused(lambda c: c.update(signature=None), "is not signed")
    refused(lambda c: c["signature"].update(key="A" * 44), "signed by another key")


def test_every_byte_of_a_signed_file_counts(net, file, keys):
    net.certify().write(file, key=keys[0])
    whole, draw = file.read_bytes(), random.Random(0)
    for _ in range(150):
        at, value = draw.randrange(len(whole)), draw.randrange(256)
        changed = whole[:at] + bytes([value]) + whole[at + 1 :]
        file.write_bytes(changed)
        if changed.split() == whole.split():
            continue  # white space between values says nothing
        with pytest.raises(CheckpointError):
            net.certify(against=file, key=keys[1])


def test_another_key_is_refused(net, file, keys, tmp_path):
    _, other = make_keys(tmp_path, "other")
    net.certify().write(file, key=keys[0])
    with pytest.raises(CheckpointError, match="was signed by another key"):
        net.certify(against=file, key=other)
    net.certify().write(file)
    with pytest.raises(CheckpointError, match="is not signed, so that the key cannot say who wrote it"):
        net.certify(against=file, key=other)


def test_what_is_no_key_is_refused(net, file, keys, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed448

    private, public = keys
    net.certify().write(file, key=private)
    with pytest.raises(InputError, match="holds no public key in PEM form.*openssl pkey -in private.pem -pubout"):
        net.certify(against=file, key=private)
    with pytest.raises(InputError, match="holds no private key in PEM form.*openssl genpkey -algorithm ed25519"):
        net.certify().write(file, key=public)
    with pytest.raises(InputError, match="cannot be read.*openssl genpkey"):
        net.certify().write(file, key=tmp_path / "none.pem")
    with pytest.raises(InputError, match="Ed25519PublicKey of cryptography; got 3"):
        net.certify(against=file, key=3)
    with pytest.raises(InputError, match="key belongs to a certificate file"):
        net.certify(key=public)

    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other, secret = tmp_path / "448.pem", tmp_path / "secret.pem"
    other.write_bytes(ed448.Ed448PrivateKey.generate().private_bytes(pem, pkcs8, serialization.NoEncryption()))
    with pytest.raises(InputError, match="holds a Ed448PrivateKey, and an Ed25519PrivateKey is needed"):
        net.certify().write(file, key=other)
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    secret.write_bytes(key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"word")))
    with pytest.raises(InputError, match="protected by a passphrase.*openssl pkey -in .*secret.pem"):
        net.certify().write(file, key=secret)
    assert net.certify(against=file, key=public).ok, "the file is as it was"


def test_without_the_package_signatures_name_the_extra(net, file, monkeypatch):
    monkeypatch.setattr(signature.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r'pip install "eidetic-kernels\[sign\]"'):
        net.certify().write(file, key="private.pem")
    assert not file.exists()
    net.certify().write(file)
    assert net.certify(against=file).ok


def missing(name):
    raise ImportError(f"No module named {name!r}")


# ---- mistakes


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "cannot be read as a certificate"),
        ("[" * 100_000, "cannot be read as a certificate"),
        ("[]", "certificate is a list, a mapping was expected"),
        ("{}", "certificate.kind is missing"),
        ('{"kind": "eidetic certificate", "format": 2}', "has format 2, and this version .* reads format 1"),
    ],
)
def test_what_is_no_certificate_is_refused(net, file, content, match):
    file.write_text(content)
    with pytest.raises(CheckpointError, match=match):
        net.certify(against=file)


def test_damaged_fields_are_named(net, file):
    net.certify().write(file)
    content = json.loads(file.read_text())
    for change, match in [
        (lambda c: c.pop("tasks"), "certificate.tasks is missing"),
        (lambda c: c["tasks"][1].update(logits=3), r"certificate.tasks\[1\].logits is 3, a text was expected"),
        (lambda c: c["tasks"].reverse(), "its tasks are not 0, 1, 2"),
        (lambda c: c.update(signature={}), "certificate.signature.algorithm is missing"),
        (lambda c: c["tasks"][2].update(note="x"), r"certificate.tasks\[2\] has an entry 'note', which is unknown"),
        (lambda c: c.update(tasks=[]), "certificate.tasks has 0 entries, 1 or more were expected"),
        (lambda c: c["tasks"].insert(1, c["tasks"][0]), "its tasks are not 0, 1, 2"),
        (lambda c: c.update(made="today\n3 finished tasks: nothing was forgotten."), "certificate.made is no date"),
        (lambda c: c.update(made="2026-01-01\n00:00:00"), "certificate.made is no date"),
        (lambda c: c.update(router="float32"), "certificate.router is 'float32', a dtype and SHA-256"),
    ]:
        damaged = copy.deepcopy(content)
        change(damaged)
        file.write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match=match):
            net.certify(against=file)
    with pytest.raises(CheckpointError, match="cannot be read as a certificate"):
        net.certify(against=file.parent / "none.json")
    with pytest.raises(InputError, match="against must name a file, as text or a Path; got 3"):
        net.certify(against=3)


def leaves(value, path=()):
    """(path, value) of everything in JSON, mappings and lists included."""
    yield path, value
    if isinstance(value, (dict, list)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*path, key))


def changed(content, path, value):
    """A copy of ``content`` with another value at ``path``; without it, for "gone"."""
    whole = {"": copy.deepcopy(content)}
    holder = whole
    *way, last = ("", *path)
    for key in way:
        holder = holder[key]
    if value == "gone":
        del holder[last]
    else:
        holder[last] = value
    return whole.get("")


def test_whatever_is_written_into_a_certificate_by_hand_nothing_else_is_raised(file):
    net = learned(tasks=2)
    net.certify().write(file)
    content = json.loads(file.read_text())
    refused = 0
    for path, value in leaves(content):
        values = ["gone", None, -1, 2**70, True, "\ud800", [], [[1]], {"a": {}}]
        for other in [*values, {**value, "more": 1}] if isinstance(value, dict) else values:
            file.write_text(json.dumps(changed(content, path, other)))
            try:
                str(net.certify(against=file))
            except (CheckpointError, InputError):
                refused += 1
    assert refused > 300


def test_a_name_that_stands_twice_is_refused(net, file):
    net.certify().write(file)
    file.write_text(file.read_text().replace('"network":', '"made": "2020-01-01",\n "network":'))
    with pytest.raises(CheckpointError, match="'made' stands twice"):
        net.certify(against=file)


def test_only_what_is_certified_is_written(net, file):
    with pytest.raises(InputError, match="no task is finished"):
        MLP().certify().write(file)
    with pytest.raises(InputError, match="path must name a file"):
        net.certify().write(None)
    net.certify().write(file)
    before = file.read_text()
    net.body[0].frozen_weight[0] += 1
    with pytest.raises(ForgettingError, match="body.0"):
        net.certify().write(file)
    assert file.read_text() == before
    with pytest.raises(CheckpointError, match="cannot be written"):
        learned(tasks=1).certify().write(file / "below_a_file.json")


def test_a_certificate_says_nothing_of_the_task_in_training(net, file):
    net.prepare_for_task(TASKS, 3)
    net(batch(net)[0])
    net.certify().write(file)
    assert len(json.loads(file.read_text())["tasks"]) == TASKS
