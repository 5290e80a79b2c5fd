"""A stage in a process of its own: `python -m benchmarks.gpu.stage check|time|compile --rows FILE`.

Writes a line of JSON for each item, so that what was found outlives a crash. An error of CUDA that
the process cannot recover from ends it with LOST; __main__ starts another one behind that item.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.gpu import cases
from benchmarks.gpu.cases import BACKWARD, FORWARD

LOST = 3
CHECK, TIME, COMPILE = STAGES = ("check", "time", "compile")


def run(
    tasks: Iterable[tuple[str, Callable[[], dict]]],
    write: Callable[[dict], None],
    *,
    first: int = 0,
    until: float = float("inf"),
    alive: Callable[[], object] = lambda: None,
) -> int:
    """Writes the row of each task (title, function) from number `first` on.

    Args:
        until: of time.monotonic; tasks that would begin later are rows that say so.
        alive: raises if the device has been lost.
    """
    for index, (title, task) in enumerate(tasks):
        if index < first:
            continue
        row = {"index": index, "title": title}
        if time.monotonic() > until:
            write(row | {"skipped": "no time was left"})
            continue
        try:
            row |= task()
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:600]
        try:
            alive()
        except Exception as error:
            write(row | {"failed": row.get("failed") or f"{type(error).__name__}: {error}"[:600]})
            return LOST
        write(row)
    return 0


def tasks(stage: str, quick: bool, library, device, stream, timer) -> Iterable:
    """The stage's (title, function) pairs."""
    from benchmarks.gpu import check, measure

    if stage == CHECK:
        for item in check.items(quick):
            yield item.title, lambda item=item: check.check(library, item, device, stream())
        return
    if stage == TIME:
        wanted, found = measure.names, cases.quick_cases() if quick else cases.timed_cases()
    else:
        wanted = measure.compiled_names
        found = cases.quick_cases()[:1] if quick else cases.compiled_cases()
    for case in found:
        for passes in (FORWARD, BACKWARD):

            def task(case=case, passes=passes):
                names = wanted(case, passes)
                return measure.measure(case, passes, names, library, timer, device, stream)

            yield f"{case.name} {passes}", task


def machine(library) -> dict:
    """What the numbers belong to."""
    import torch

    about = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": library.commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    try:
        import triton

        about["triton"] = triton.__version__
    except ImportError:
        about["triton"] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "driver": _driver(),
        }
    return about


def _driver() -> str | None:
    """Its own version, as "580.159.03"."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.stage", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--until", type=float, default=float("inf"))
    options = parser.parse_args(arguments)
    import torch

    from benchmarks.gpu.library import Library

    library = Library()
    with options.rows.open("a") as file:

        def write(row):
            file.write(json.dumps(row) + "\n")
            file.flush()

        write({"machine": machine(library)})
        if not torch.cuda.is_available():
            write({"index": 0, "title": options.stage, "failed": "PyTorch sees no GPU"})
            return 0
        torch.zeros(1, device="cuda")  # makes the context current
        gc.freeze()  # what is imported stays: later collections take no time
        timer = None
        if options.stage != CHECK:
            from benchmarks.gpu.measure import copy_rate
            from benchmarks.gpu.timing import GraphTimer

            timer = GraphTimer()
            write({"copy_rate": copy_rate(timer, "cuda")})

        def stream():
            return torch.cuda.current_stream().cuda_stream

        def alive():
            torch.cuda.synchronize()
            gc.collect()
            if torch.cuda.memory_reserved() > 40 << 30:
                torch.cuda.empty_cache()

        found = tasks(options.stage, options.quick, library, "cuda", stream, timer)
        how = {"first": options.first, "until": options.until, "alive": alive}
        code = run(found, write, **how)
    if code:  # the interpreter's own way out would wait for the lost device
        os._exit(code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
