"""Capture work on a GPU and replay it as one CUDA graph: the only module that needs ``torch.cuda`` for this."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch


class CudaGraphs:
    """CUDA graphs on one GPU.

    Work is captured on a side stream, and warmed up there: what a library makes for a stream at its first call
    (workspaces, handles) must not be made inside a capture.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = _side_stream(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run the work inside on the side stream, after all work issued before it and before all that follows."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            current.wait_stream(self.stream)

    @contextmanager
    def watch(self) -> Iterator[list[str]]:
        """A list that holds, after the block, where its work made the host wait for the GPU. No capture may wait.

        An ordinary step is watched, since a capture that fails leaves torch's allocator in capture mode.
        """
        waits: list[str] = []
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode(before)

        for warning in caught:
            if "called a synchronizing CUDA operation" in str(warning.message):
                waits.append(f"{warning.filename}:{warning.lineno}")
            elif "Synchronization debug mode" not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """``work`` as a graph that has not run: before the first replay, no tensor holds what it computes.

        Raises whatever prevents the capture; the current stream and the random numbers are then as before.
        """
        graph, first = torch.cuda.CUDAGraph(), None
        try:
            # torch.cuda.graph does not put the stream back where a capture fails. "thread_local": a DataLoader's thread
            # that pins memory may call what would end a "global" capture.
            with (
                torch.cuda.stream(self.stream),
                torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
            ):
                try:
                    work()
                except BaseException as error:
                    first = error
                    raise
        except BaseException as error:
            # Before torch 2.13 the generator stays as if captured, and refuses every later number; a copy does not.
            generator = torch.cuda.default_generators[self.stream.device_index]
            generator.graphsafe_set_state(generator.clone_state())
            raise (first or error) from None  # the end of a capture that failed raises an error of its own
        return CudaGraph(graph, self.device)


class CudaGraph:
    """Captured work, with all memory that was allocated in the capture."""

    def __init__(self, graph: torch.cuda.CUDAGraph, device: torch.device):
        self.graph, self.device = graph, device

    def replay(self) -> None:
        """Run the work once more, on the memory it was captured with."""
        self.graph.replay()

    def release(self) -> None:
        """Free its memory once the GPU has finished with it. Tensors of the capture that still live keep theirs."""
        torch.cuda.current_stream(self.device).synchronize()
        self.graph.reset()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures: libraries keep a workspace for every stream that they have seen."""
    return torch.cuda.Stream(device)
