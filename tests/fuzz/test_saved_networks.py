"""Saved files that were damaged or made up are refused, or what they hold is certified for what it is."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
import torch
from fuzzing import damaged, run_cases
from life import batch, bits, learn, recall
from safetensors import safe_open
from safetensors.torch import save_file
from small_networks import MLP, ConvNet

import eidetic_kernels as ek
from eidetic_kernels.records import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")

ODD = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 1e308, float("nan")),
    *("", "0", "é" * 50, [], [[]], {}, {"a": 1}, [None]),
]


class Saved:
    """A network with two finished tasks, one in training and a router: its file, and what it answers."""

    def __init__(self, folder):
        torch.manual_seed(0)
        self.net, self.folder = MLP((7, 6)), folder
        for task in range(2):
            learn(self.net, task, max_units=0.4)
        self.net.train_router([[batch(self.net, seed=task)] for task in range(2)], max_epochs=1)
        self.net.prepare_for_task(2, 3)

        self.net.save(folder / "net")
        self.content = (folder / "net").read_bytes()
        self.header, self.tensors = parts_of(folder / "net")
        self.x = batch(self.net)[0]
        self.answers = self.answers_of(self.net)

    def answers_of(self, net):
        return [bits(recall(net, self.x, task)) for task in range(2)]

    def outcome(self, path):
        """What becomes of a file: it is refused (CheckpointError), or loaded and certified or not."""
        net = ek.EideticNetwork.load(path)
        if not net.certify().ok:
            return "not certified", net
        if net.finished_tasks == 2:
            assert self.answers_of(net) == self.answers, "certified, and answers something else"
        return "certified", net


def parts_of(path):
    """Header and tensors of a file."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["eidetic"]), tensors


def forge(path, header, tensors):
    """Write a file of this content, with the hash that belongs to it."""
    text = json.dumps(header)
    save_file(tensors, path, metadata={"eidetic": text, "sha256": checkpoint._content(text, tensors)})


@pytest.fixture(scope="module")
def saved():
    with tempfile.TemporaryDirectory() as folder:
        yield Saved(Path(folder))


def places(value, path=()):
    """Every place of a JSON value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from places(value[index], (*path, index))


def mutated(header, rng):
    """``header`` with one value or a few replaced, removed, repeated or exchanged."""
    header = copy.deepcopy(header)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        path = rng.choice([place for place in places(header) if place])
        parent = header
        for step in path[:-1]:
            parent = parent[step]
        kind = rng.randrange(4)
        if kind == 0 or (kind == 3 and not isinstance(parent, list)):
            parent[path[-1]] = copy.deepcopy(rng.choice(ODD))
        elif kind == 1:
            del parent[path[-1]]
        elif kind == 2 and isinstance(parent[path[-1]], int) and not isinstance(parent[path[-1]], bool):
            parent[path[-1]] += rng.choice((-1, 1, 1000, 10**7))
        elif kind == 3:
            parent.append(copy.deepcopy(parent[path[-1]]))
        if not header:
            break
    return header


def test_headers_with_a_right_hash_and_wrong_content(saved):
    path = saved.folder / "forged"

    def case(rng):
        forge(path, mutated(saved.header, rng), saved.tensors)
        return saved.outcome(path)[0]

    ends = run_cases("headers of saved networks", 150, case, ek.CheckpointError)
    assert ends["CheckpointError"] > sum(ends.values()) / 3 or sum(ends.values()) < 100


def test_files_with_damaged_bytes(saved):
    path = saved.folder / "damaged"

    def case(rng):
        content = damaged(saved.content, [saved.content], rng, rng.choice((None, (0, 8), (8, 4000))))
        path.write_bytes(content)
        end, net = saved.outcome(path)
        # Loaded is a file alone whose change nobody can see, such as one byte by the same, or a space in the header.
        assert end == "certified" and saved.answers_of(net) == saved.answers
        return end

    ends = run_cases("damaged saved networks", 150, case, ek.CheckpointError)
    assert ends["CheckpointError"] > sum(ends.values()) / 2 or sum(ends.values()) < 100


def test_a_convolutional_network_s_huge_claims_take_no_memory(tmp_path):
    net = ConvNet()
    learn(net, 0, max_units=0.5)
    net.save(tmp_path / "net")
    header, tensors = parts_of(tmp_path / "net")
    for key in ("frozen", "live"):
        for size in (200, 10**9):
            forged = copy.deepcopy(header)
            for group in forged["groups"]:
                group["width"] = 2**39
                group[key] = [size] if key == "frozen" else size
            forge(tmp_path / "forged", forged, tensors)
            with pytest.raises(ek.CheckpointError, match="staircase|more units than the file has numbers"):
                ek.EideticNetwork.load(tmp_path / "forged")
