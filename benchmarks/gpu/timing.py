"""Times calls by CUDA events around replays of a graph that holds them."""

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

REPLAYS = 50
LEAST_CALLS = 8  # in a graph, so that its own launch does not show


class Timer(Protocol):
    """What `measure` needs; tests give another."""

    l2_bytes: int

    def scope(self) -> contextlib.AbstractContextManager: ...

    def capture(self, calls: Sequence[Callable[[], object]], *, cold: bool) -> Callable[[], float]:
        """A function that gives the median seconds of a call."""


class GraphTimer:
    """On the current device. All that is timed is built and run within `scope`, on its stream."""

    def __init__(self, replays: int = REPLAYS):
        self.replays = replays
        self.l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self._stream = torch.cuda.Stream()

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.synchronize()

    def capture(self, calls: Sequence[Callable[[], object]], *, cold: bool) -> Callable[[], float]:
        calls = [*calls] * -(-LEAST_CALLS // len(calls))
        for call in calls[:2]:  # compiles, loads and tunes what is done at the first call
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        results = []
        gc.disable()  # what is freed while a graph is captured would end that
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for call in calls:
                    result = call()
                    if cold:  # kept, or the next call's results would lie in the same place
                        results.append(result)
                    del result
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it says only that there was an error
                    graph.capture_end()
                raise
            graph.capture_end()
        finally:
            gc.enable()

        def run() -> float:
            for _ in range(3):
                graph.replay()
            pairs = []
            for _ in range(self.replays):
                pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                pair[0].record()
                graph.replay()
                pair[1].record()
                pairs.append(pair)
            torch.cuda.synchronize()
            seconds = [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
            return statistics.median(seconds) / len(calls)

        run.results = results  # live as long as the graph that writes them
        return run
