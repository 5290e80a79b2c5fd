"""Times calls by CUDA events around replays of a graph that holds them."""

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

REPLAYS = 50
LEAST_CALLS = 8  # in a graph, so that its own launch does not show


class Run(Protocol):
    """Gives the median seconds of a call; `no_graph` says why the calls are not in a graph."""

    no_graph: str

    def __call__(self) -> float: ...


class Timer(Protocol):
    """What `measure` needs; tests give another."""

    l2_bytes: int

    def scope(self) -> contextlib.AbstractContextManager: ...

    def capture(self, calls: Sequence[Callable[[], object]], *, cold: bool) -> Run: ...


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

    def capture(self, calls: Sequence[Callable[[], object]], *, cold: bool) -> Run:
        calls = [*calls] * -(-LEAST_CALLS // len(calls))
        for call in calls[:2]:  # compiles, loads and tunes what is done at the first call
            call()
        torch.cuda.synchronize()
        return _Replays(calls, cold, self.replays)


class _Replays:
    def __init__(self, calls, cold: bool, replays: int):
        self._calls, self._cold, self._replays = calls, cold, replays
        self._graph = torch.cuda.CUDAGraph()
        self.no_graph = ""
        gc.disable()  # what is freed while a graph is captured would end that
        try:
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._results = self._once()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it says only that there was an error
                    self._graph.capture_end()
                raise
            self._graph.capture_end()
            self._run = self._graph.replay
        except Exception as error:  # then the calls are timed as they are, and the row says so
            self.no_graph = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            self._run, self._results = self._once, []
            torch.cuda.synchronize()
        finally:
            gc.enable()

    def _once(self) -> list:
        results = []
        for call in self._calls:
            result = call()
            if self._cold:  # kept, or the next call's results would lie in the same place
                results.append(result)
            del result
        return results

    def __call__(self) -> float:
        for _ in range(3):
            self._run()
        pairs = []
        for _ in range(self._replays):
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            self._run()
            pair[1].record()
            pairs.append(pair)
        torch.cuda.synchronize()
        seconds = [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
        return statistics.median(seconds) / len(self._calls)
