"""``eidetic certify MODEL``: certificates in files of their own, and which exit status says what."""

import json
import shutil
import subprocess

import pytest
import tiny_runs
import torch
from small_networks import MLP

import eidetic_kernels as ek
from eidetic_kernels.records import recording
from eidetic_training import models
from eidetic_training.runs.folder import RunFolder


@pytest.fixture
def net():
    net = models.build("mlp", (1, 3, 3), width=20)
    for task in range(2):
        learn(net, task)
    return net


def learn(net, task):
    net.prepare_for_task(task, 2, max_units=6)
    net.train()(torch.randn(20, *((6,) if isinstance(net, MLP) else (1, 3, 3))))
    net.finish_task()


@pytest.fixture
def saved(net, tmp_path):
    net.save(tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "certificate.json"


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def keys(tmp_path):
    """As the pages say to make them."""
    pytest.importorskip("cryptography")
    if not shutil.which("openssl"):
        pytest.skip("keys are made by openssl")
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


def failing(outcome, *parts):
    """Status 2 and one line, which holds the parts."""
    status, _, err = outcome
    assert status == 2 and err.startswith("eidetic certify: ") and err.count("\n") == 1, err
    for part in parts:
        assert part in err


def rewrite(saved, net):
    """Other weights, and records that fit them."""
    net.body[1].frozen_weight[0] += 1
    net.records = [recording.record(net, task) for task in range(net.finished_tasks)]
    net.save(saved)


def test_a_saved_network_is_compared_with_its_certificate(net, saved, file, eidetic):
    status, out, _ = eidetic("certify", saved, "--write", file)
    assert status == 0 and f"{file}: the certificate of 2 tasks." in out
    status, out, _ = eidetic("certify", saved, "--against", file)
    assert status == 0 and "2 finished tasks: nothing was forgotten." in out and f"compared with {file}" in out

    rewrite(saved, net)
    assert eidetic("certify", saved)[0] == 0, "its own records are consistent"
    status, _, err = eidetic("certify", saved, "--against", file)
    assert status == 1 and "task 0: body.1: its frozen tensors are not" in err and "Traceback" not in err


def test_an_old_certificate_is_valid_for_a_network_that_learned_more(net, saved, file, eidetic):
    assert eidetic("certify", saved, "--write", file)[0] == 0
    learn(net, 2)
    net.save(saved)
    status, out, _ = eidetic("certify", saved, "--against", file)
    assert status == 0 and "1 tasks were finished after that certificate was made" in out


def test_a_signature_says_who_wrote_it(net, saved, file, keys, eidetic):
    private, public = keys
    assert eidetic("certify", saved, "--write", file, "--sign", private)[0] == 0
    status, out, _ = eidetic("certify", saved, "--against", file, "--key", public)
    assert status == 0 and "signed by the key that was given" in out
    failing(eidetic("certify", saved, "--against", file, "--key", private), "holds no public key in PEM form")

    content = json.loads(file.read_text())
    content["tasks"][0]["units"] = dict.fromkeys(content["tasks"][0]["units"], 6)
    file.write_text(json.dumps(content | {"made": "2020-01-01T00:00:00+00:00"}))
    failing(eidetic("certify", saved, "--against", file, "--key", public), "was changed after it had been signed")
    file.write_text(json.dumps(content | {"signature": None}))
    failing(eidetic("certify", saved, "--against", file, "--key", public), "is not signed")


def test_a_run_is_certified_with_its_data_and_written(tmp_path, file, eidetic):
    data = tiny_runs.write_data(tmp_path / "images")
    config = tiny_runs.make_config(data, data={"tasks": 2}, task={"max_epochs": 2, "keep_at_least": 12})
    run = tiny_runs.run(config, tmp_path / "run")
    status, out, _ = eidetic("certify", run.path, "--write", file)
    assert status == 0 and "test logits" in out and "the certificate of 2 tasks" in out
    assert eidetic("certify", run.path, "--against", file)[0] == 0

    # Both network and certificate know it by itself, without the run.
    assert eidetic("certify", RunFolder(run.path).network_path, "--against", file)[0] == 0
    network = ek.EideticNetwork.load(run.network_path)
    rewrite(run.network_path, network)
    status, _, err = eidetic("certify", run.path, "--no-data", "--against", file)
    assert status == 1 and "task 0: body.1" in err


def test_errors_are_status_2_in_one_line(net, saved, file, tmp_path, eidetic):
    failing(eidetic("certify", saved, "--sign", "private.pem"), "give both")
    failing(eidetic("certify", saved, "--key", "public.pem"), "give both")
    failing(eidetic("certify", saved, "--against", file), f"{file} cannot be read as a certificate")
    file.write_text("{}")
    failing(eidetic("certify", saved, "--against", file), "certificate.kind is missing")
    failing(eidetic("certify", tmp_path / "nowhere"), "nowhere is not a run folder")
    failing(eidetic("certify", file), "is not a network saved by this package, or is damaged")
    models.build("mlp", (1, 3, 3), width=20).save(saved)
    failing(eidetic("certify", saved), "has finished no task")


def test_networks_of_other_classes_are_certified_in_python(tmp_path, eidetic):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    net = ek.convert(plain, example_input=torch.randn(2, 4))
    net(torch.randn(8, 4))
    net.finish_task()
    net.save(tmp_path / "converted.safetensors")
    outcome = eidetic("certify", tmp_path / "converted.safetensors")
    failing(outcome, "it was made by ek.convert", "In Python: ek.EideticNetwork.load(path).certify(against=...")
    loaded = ek.EideticNetwork.load(tmp_path / "converted.safetensors", network=ek.convert(plain, torch.randn(2, 4)))
    loaded.certify().check()
