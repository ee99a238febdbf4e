"""Steps as CUDA graphs: the calls to torch.cuda, recorded without a GPU; and on a GPU, the bits of ordinary steps."""

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from blobs import CLASSES, blobs, network, state_of
from small_networks import MLP, ConvNet
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_training import train_epoch, train_task
from eidetic_training.data import TensorLoader
from eidetic_training.training.captured_step import WARM_UPS, CapturedSteps
from eidetic_training.training.cuda_graphs import CudaGraphs, _side_stream

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


# ---- what torch.cuda is asked, in which order


class Stream:
    def __init__(self, name, log):
        self.name, self.log, self.device_index, self.device = name, log, 0, torch.device("cuda", 0)

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def synchronize(self):
        self.log.append(f"the host waits for {self.name}")


class Graph:
    """A capture that CUDA aborts raises another error when it ends."""

    def __init__(self, log):
        self.log, self.broken = log, False

    def capture_begin(self, *pool, capture_error_mode="global", **options):
        self.log.append(f"capture ({capture_error_mode})")

    def capture_end(self):
        self.log.append("captured" if not self.broken else "capture lost")
        if self.broken:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self):
        self.log.append("replay")

    def reset(self):
        self.log.append("reset")


class Generator:
    def __init__(self, log):
        self.log = log

    def clone_state(self):
        return "a copy"

    def graphsafe_set_state(self, state):
        self.log.append(f"the generator goes on with {state}")


@pytest.fixture
def cuda(monkeypatch):
    """Records calls of torch.cuda's streams, graphs and generator; torch.cuda.graph itself is torch's."""
    log = []
    main = Stream("main", log)
    current = [main]

    class Entered:  # as torch.cuda.stream, whose end torch.cuda.graph skips where a capture fails
        def __init__(self, one):
            self.one = one

        def __enter__(self):
            self.before = current[0]
            current[0] = self.one

        def __exit__(self, *error):
            current[0] = self.before

    def made(device):
        return Stream("side", log)

    graphs = []

    def graph():
        graphs.append(Graph(log))
        return graphs[-1]

    for name, value in {
        "stream": Entered,
        "Stream": made,
        "current_stream": lambda device=None: current[0],
        "CUDAGraph": graph,
        "synchronize": lambda: log.append("the host waits for all"),
        "empty_cache": lambda: None,
        "default_generators": (Generator(log),),
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: log.append(f"sync debug mode {mode}"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    _side_stream.cache_clear()
    yield SimpleNamespace(log=log, current=lambda: current[0].name, graphs=graphs)
    _side_stream.cache_clear()


def test_warm_ups_run_beside_and_in_order(cuda):
    graphs = CudaGraphs(torch.device("cuda", 0))
    with graphs.aside():
        cuda.log.append(f"step on {cuda.current()}")
    expected = ["side waits for main", "step on side", "main waits for side"]
    assert cuda.log == expected and cuda.current() == "main"
    with pytest.raises(ValueError), graphs.aside():
        raise ValueError
    assert cuda.log[-1] == "main waits for side" and cuda.current() == "main"


def test_work_is_captured_beside_and_given_back_when_the_gpu_is_through(cuda):
    graph = CudaGraphs(torch.device("cuda", 0)).capture(lambda: cuda.log.append(f"step on {cuda.current()}"))
    assert cuda.log == ["the host waits for all", "capture (thread_local)", "step on side", "captured"]
    assert cuda.current() == "main"
    graph.replay()
    graph.release()
    assert cuda.log[4:] == ["replay", "the host waits for main", "reset"]


def test_a_capture_that_fails_tells_the_first_error_and_puts_stream_and_generator_back(cuda):
    def work():
        cuda.graphs[0].broken = True
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        CudaGraphs(torch.device("cuda", 0)).capture(work)
    assert cuda.log[-2:] == ["capture lost", "the generator goes on with a copy"]
    assert cuda.current() == "main"


def test_waiting_for_the_gpu_is_read_off_torchs_warnings_and_others_pass(cuda):
    with pytest.warns(UserWarning, match="something else") as others:
        with CudaGraphs(torch.device("cuda", 0)).watch() as waits:
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
            warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect", stacklevel=1)
    assert len(waits) == 1 and waits[0].startswith(__file__) and len(others) == 1
    assert cuda.log == ["sync debug mode warn", "sync debug mode 0"]


def test_torch_has_what_is_asked_of_it():
    assert {"stream", "capture_error_mode"} <= inspect.signature(torch.cuda.graph.__init__).parameters.keys()
    for owner, names in {
        torch.cuda: ("CUDAGraph", "Stream", "stream", "current_stream", "set_sync_debug_mode", "default_generators"),
        torch.Generator: ("clone_state", "graphsafe_set_state"),
        torch.cuda.Stream: ("wait_stream", "synchronize"),
    }.items():
        for name in names:
            assert hasattr(owner, name)


# ---- on a GPU


@ON_GPU
@pytest.mark.parametrize("make", [MLP, ConvNet])
@pytest.mark.parametrize("on_host", [False, True], ids=["batches on the GPU", "batches on the host"])
def test_a_captured_epoch_on_the_gpu(make, on_host, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def run(captured):
        torch.manual_seed(0)
        net = make().cuda()
        net.prepare_for_task(0, CLASSES)
        optimizer = ek.default_optimizer(net.parameters())
        data = [(torch.randn(size, *net.example), torch.arange(size) % CLASSES) for size in [36] * 6 + [9, 36]]
        if not on_host:
            data = [(x.cuda(), y.cuda()) for x, y in data]
        steps = CapturedSteps(CudaGraphs(torch.device("cuda", 0)), optimizer, required=True) if captured else None
        torch.manual_seed(1)
        results = [train_epoch(net, data, optimizer, F.cross_entropy, None, steps) for _ in range(3)]
        return state_of(net, optimizer), results, torch.cuda.get_rng_state().tolist()

    assert run(True) == run(False)


@ON_GPU
def test_tasks_on_the_gpu():
    def run(cuda_graphs):
        torch.manual_seed(0)
        net = MLP((20, 12), dropout=0.1).cuda()
        for task in range(2):
            net.prepare_for_task(task, CLASSES, max_units=8)
            x, y = (one.cuda() for one in blobs(task, samples=53, noise=1.5))
            data = TensorLoader(x, y, batch_size=8, num_classes=CLASSES)
            train_task(net, data, max_epochs=4, polish_epochs=2, cuda_graphs=cuda_graphs)
        return state_of(net), net

    state, _ = run(False)
    found, net = run(True)
    assert found == state
    net.certify().check()


@ON_GPU
@pytest.mark.parametrize("call", [1, WARM_UPS + 1], ids=["seen in an ordinary step", "seen in the capture"])
def test_a_loss_that_reads_the_gpu_falls_back_and_dropout_goes_on(call):
    def run(cuda_graphs):
        calls = []

        def loss(logits, y):
            calls.append(1)
            value = F.cross_entropy(logits, y)
            return value if len(calls) < call else value * float(value.detach() > -1)

        net = network(dropout=0.5).cuda()
        torch.manual_seed(1)
        data = [tuple(one.cuda() for one in blobs())] * 6
        settings = {"search": "none", "max_epochs": 2, "patience": 5, "polish_epochs": 0}
        result = train_task(net, data, loss=loss, cuda_graphs=cuda_graphs, **settings)
        return state_of(net), [event.note for event in result.history if event.phase == "graphs"]

    state, notes = run("auto")
    assert run(False) == (state, []) and len(notes) == 1
