"""Capturing work on a GPU and launching it again as one CUDA graph: all that is asked of ``torch.cuda`` for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch


class CudaGraphs:
    """CUDA graphs on one GPU. Work is captured on a stream of its own, and warmed up there: what a library makes for a
    stream at its first call (workspaces, handles) must not be made inside a capture."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = _side_stream(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Work inside runs on the side stream, after all that was issued before it and before all that follows."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            current.wait_stream(self.stream)

    @contextmanager
    def watch(self) -> Iterator[list[str]]:
        """A list that holds, after the block, where its work made the host wait for the GPU, which no capture can hold.

        Looked for in an ordinary step, since a capture that fails leaves torch's allocator in capture mode.
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
        """``work`` as a graph, not yet run: what it would have computed is in no tensor before the first replay.

        Raises what stands in the way of capturing it; the current stream and the random numbers are as before.
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
    """Captured work, with all the memory that it made inside."""

    def __init__(self, graph: torch.cuda.CUDAGraph, device: torch.device):
        self.graph, self.device = graph, device

    def replay(self) -> None:
        self.graph.replay()

    def release(self) -> None:
        """Give its memory back, once the GPU is through with it. Tensors made inside that still live keep theirs."""
        torch.cuda.current_stream(self.device).synchronize()
        self.graph.reset()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: libraries keep a workspace for every stream they have seen."""
    return torch.cuda.Stream(device)
