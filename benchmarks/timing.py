"""Times columns in turn: a disturbance of the machine meets all of them, not one."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

LONGEST_VISIT = 50  # calls


class Column(Protocol):
    """One way to compute a row."""

    def sample(self, calls: int) -> tuple[list[float], float]:
        """Calls `calls` times. Returns the wall seconds of each, and the CPU seconds of one."""


class Local:
    """A column that runs in this process: a function without arguments."""

    def __init__(self, call: Callable[[], object]):
        self.call = call

    def sample(self, calls: int) -> tuple[list[float], float]:
        return sample(self.call, calls)


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call; `cpu` counts every thread of the process."""

    wall_min: float
    wall_median: float
    cpu_min: float
    cpu_median: float
    calls: int


def sample(call: Callable[[], object], calls: int) -> tuple[list[float], float]:
    call()  # meets the caches and the threads that the column before has left
    walls = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        cpu = time.process_time()
        for _ in range(calls):
            start = time.perf_counter()
            call()
            walls.append(time.perf_counter() - start)
        return walls, (time.process_time() - cpu) / calls
    finally:
        if collecting:
            gc.enable()


def interleave(
    columns: dict[str, Column], *, rounds: int = 7, visit: float = 0.02, seconds: float = 2.5
) -> dict[str, Timing]:
    """Visits each column once a round.

    Args:
        rounds: how often each column is visited; at least 3.
        visit: seconds that a visit takes; one call if the call is longer.
        seconds: no new round is begun after that many, once there are three.
    """
    calls = {}
    for name, column in columns.items():
        column.sample(1)  # the first calls fill caches and the allocator
        shortest = min(column.sample(2)[0])
        calls[name] = max(1, min(LONGEST_VISIT, int(visit / shortest)))
    walls: dict[str, list[float]] = {name: [] for name in columns}
    cpus: dict[str, list[float]] = {name: [] for name in columns}
    start = time.perf_counter()
    for done in range(max(3, rounds)):
        if done >= 3 and time.perf_counter() - start > seconds:
            break
        for name, column in columns.items():
            wall, cpu = column.sample(calls[name])
            walls[name] += wall
            cpus[name].append(cpu)
    return {name: _timing(walls[name], cpus[name]) for name in columns}


def _timing(walls: list[float], cpus: list[float]) -> Timing:
    numbers = min(walls), statistics.median(walls), min(cpus), statistics.median(cpus)
    return Timing(*(float(f"{1e3 * seconds:.5g}") for seconds in numbers), calls=len(walls))
