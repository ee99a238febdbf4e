"""CUDA graphs as the driver uses them (eidetic_training.training.cuda_graphs), simulated on CPU tensors.

The simulation has the device's rules for a captured region:

- It computes nothing. When the capture ends, everything it changed in place is restored, the random generator too. All
  tensors that it made hold garbage until the first replay.
- A replay runs the recorded ops on the memory they were recorded with. Tensors made inside the capture keep theirs as
  long as the graph lives. Any other memory must still be allocated, or the replay raises.
- Reading a value, or a shape that depends on values, on the host raises. So does making a tensor of a list, since
  copying it to the device waits.
- torch's optimizers refuse to be captured unless their groups say ``capturable``.

It sees the ops that reach torch's dispatcher, this package's own among them. It does not see host reads that bypass
the dispatcher (numpy, ``tolist``) or which tensors are on the host, and it has no streams.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

aten = torch.ops.aten
HOST_READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.nonzero_static,
    aten.masked_select,
    aten.equal,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.repeat_interleave,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
UNWRITTEN = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
HEALTH_CHECK = "_accelerator_graph_capture_health_check"


class CaptureError(RuntimeError):
    """As CUDA's cudaErrorStreamCaptureUnsupported."""


class SimulatedGraphs:
    """In place of CudaGraphs. ``captures`` holds every graph made, ``failed`` counts the captures that failed."""

    def __init__(self, device="cpu"):
        self.device = torch.device(device)
        self.captures, self.failed, self.warmed = [], 0, 0

    def aside(self):
        self.warmed += 1
        return nullcontext()

    @contextmanager
    def watch(self):
        waits = []
        with _Watching(waits):
            yield waits

    def capture(self, work):
        recorder = _Recorder()
        noise, check = torch.get_rng_state(), getattr(Optimizer, HEALTH_CHECK)
        setattr(Optimizer, HEALTH_CHECK, _refuse_uncapturable)
        try:
            with recorder:
                work()
        except BaseException:
            self.failed += 1
            raise
        finally:
            setattr(Optimizer, HEALTH_CHECK, check)
            torch.set_rng_state(noise)
            recorder.undo()
        graph = SimulatedGraph(recorder)
        self.captures.append(graph)
        return graph


class SimulatedGraph:
    """The recorded ops. ``ops`` is how many were recorded, ``replays`` how often they ran; both outlive the release."""

    def __init__(self, recorder):
        self.calls = recorder.calls
        self.ops = len(self.calls)
        self.replays = 0

    @torch.no_grad()
    def replay(self):
        assert self.calls is not None, "a graph that was released is replayed"
        self.replays += 1
        for call in self.calls:
            call.again()

    def release(self):
        self.calls = None


class _Call:
    """One op on the memory it was recorded with."""

    def __init__(self, func, arguments, results, made):
        self.func = func
        leaves, self.spec = tree_flatten(arguments)
        self.leaves = [_Outside(x) if isinstance(x, torch.Tensor) and _key(x) not in made else x for x in leaves]
        self.leaves = [x.detach() if isinstance(x, torch.Tensor) else x for x in self.leaves]
        given = {_key(x) for x in leaves if isinstance(x, torch.Tensor)}
        unwritten = func.overloadpacket in UNWRITTEN
        self.results = [  # None for an input, a view of one, or memory that the op does not write
            x.detach() if isinstance(x, torch.Tensor) and _key(x) not in given and not unwritten else None
            for x in tree_flatten(results)[0]
        ]

    def again(self):
        leaves = [x.tensor(self.func) if isinstance(x, _Outside) else x for x in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.spec)
        for kept, new in zip(self.results, tree_flatten(self.func(*args, **kwargs))[0]):
            if kept is not None:
                kept.copy_(new)


class _Outside:
    """A tensor from before the capture. The graph does not own its memory."""

    def __init__(self, tensor):
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.like = tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()

    def tensor(self, func):
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise AssertionError(f"the graph's {func} reads or writes memory that was freed since")
        dtype, offset, shape, stride = self.like
        return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.before, self.made = [], {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (read := _host_read(func, args)) is not None:
            raise CaptureError(f"operation not permitted when stream is capturing: {read}")
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        for tensor in _written(func, args, kwargs):
            if _key(tensor) not in self.made and _key(tensor) not in self.before:
                storage = tensor.untyped_storage()
                self.before[_key(tensor)] = storage, storage.clone()
        given = {_key(x) for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)}
        results = func(*args, **kwargs)
        self.calls.append(_Call(func, (args, kwargs), results, self.made))
        for x in tree_flatten(results)[0]:
            if isinstance(x, torch.Tensor) and _key(x) not in given and _key(x) not in self.before:
                self.made[_key(x)] = x.detach()
        return results

    def undo(self):
        for storage, content in self.before.values():
            storage.copy_(content)
        for tensor in self.made.values():
            storage = tensor.untyped_storage()
            torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),)).fill_(255)  # NaN, or -1
        self.before = None


class _Watching(TorchDispatchMode):
    """Records the host reads of an ordinary step."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if (read := _host_read(func, args)) is not None:
            self.waits.append(read)
        return func(*args, **(kwargs or {}))


def _host_read(func, args):
    """What the op would copy between host and device; None: nothing."""
    packet = func.overloadpacket
    if packet in HOST_READS:
        return str(packet)
    if packet in INDEXING and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
        return f"{packet} with a mask"
    if packet is aten.lift_fresh and args[0].dim():
        return "a tensor of a list"
    return None


def _written(func, args, kwargs):
    """The tensors that the op changes, by its schema."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        yield from (x for x in tree_flatten(value)[0] if isinstance(x, torch.Tensor))


def _key(tensor):
    return tensor.untyped_storage()._cdata


def _refuse_uncapturable(optimizer):
    if not all(group["capturable"] for group in optimizer.param_groups):
        raise CaptureError(f"graph capture of step() of {type(optimizer).__name__}, whose capturable is False")
