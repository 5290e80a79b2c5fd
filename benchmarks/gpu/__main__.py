"""`python -m benchmarks.gpu`: checks, sanitizers, times; a table last. At most eight minutes.

Each stage runs in processes of its own, so that what breaks one leaves the others whole. The exit
code is 1 if a check or a sanitizer says no.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu import results, sanitize, table
from benchmarks.gpu.stage import CHECK, COMPILE, LOST, TIME

MINUTES, QUICK_MINUTES = 8.0, 1.0
GRACE = 30.0  # seconds that the last item of a stage may take
# Of the minutes: the end of each stage, so that a slow one takes nothing from the next.
ENDS = {CHECK: 0.2, "sanitize": 0.38, TIME: 0.82, COMPILE: 1.0}
QUICK_ENDS = {CHECK: 0.35, "sanitize": 0.6, TIME: 0.8, COMPILE: 1.0}


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    begin = time.monotonic()
    minutes = options.minutes or (QUICK_MINUTES if options.quick else MINUTES)
    ends = QUICK_ENDS if options.quick else ENDS
    if not options.all:  # then each of those that were asked for may use it all
        ends = dict.fromkeys(ends, 1.0)

    def left(stage: str) -> float:
        return max(5.0, begin + 60 * minutes * ends[stage] - time.monotonic())

    machine, checks, sanitizer, times = {}, [], [], []
    if options.check:
        checks = stage(CHECK, options.quick, left(CHECK), machine)
    if options.sanitize:
        tools = sanitize.TOOLS[:1] if options.quick else sanitize.TOOLS
        for done, tool in enumerate(tools):
            print(f"compute-sanitizer {tool}", flush=True)
            share = left("sanitize") / (len(tools) - done)
            sanitizer.append(sanitize.sanitize(tool, share))
    if options.time:
        for name in (TIME, COMPILE):
            times += stage(name, options.quick, left(name), machine)
    result = results.Result(machine, checks, sanitizer, times)
    print(table.text(result))
    path = options.json or results.FOLDER / f"{time.strftime('%Y-%m-%d')}-gpu.json"
    if options.json or (options.all and not options.quick and machine):
        results.write(result, path)
        print(f"kept: {path}")
    elif not machine:  # a run of today that is kept stays
        print("No part could start: nothing is kept.")
    print(f"{time.monotonic() - begin:.0f} seconds")
    return 1 if result.failures else 0


def stage(name: str, quick: bool, seconds: float, machine: dict, run=subprocess.run) -> list[dict]:
    """The rows of a stage, started again behind each item that ends its process.

    Args:
        machine: gets what the stage says of it.
    """
    print(f"{name}: at most {seconds:.0f} s", flush=True)
    begin, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        while True:
            file = Path(folder) / f"{len(rows)}.jsonl"
            left = seconds - (time.monotonic() - begin)
            first = rows[-1]["index"] + 1 if rows else 0
            command = [sys.executable, "-m", "benchmarks.gpu.stage", name, "--rows", str(file)]
            command += ["--first", str(first), "--until", f"{begin + seconds:.1f}"]
            try:
                done = run([*command, *["--quick"] * quick], timeout=left + GRACE)
                why = f"the process ended with code {done.returncode}"
                over = done.returncode == 0
            except subprocess.TimeoutExpired:
                why, over = f"it did not end in {left + GRACE:.0f} s", True
            found = _lines(file)
            for line in found:
                machine |= line.get("machine", {})
                if "copy_rate" in line:
                    machine.setdefault("copy_rate", line["copy_rate"])
            fresh = [line for line in found if "index" in line]
            rows += fresh
            if over and why.startswith("the process"):
                return rows
            if over or done.returncode != LOST:  # the item that ended it has written nothing
                index = rows[-1]["index"] + 1 if rows else 0
                rows.append({"index": index, "title": f"{name}, item {index}", "failed": why})
            if over or not fresh or left < 10:
                rows.append({"index": rows[-1]["index"] + 1, "title": f"the rest of {name}"})
                rows[-1]["skipped"] = "the stage was given up"
                return rows


def _lines(file: Path) -> list[dict]:
    """Of a process that may have been ended while it wrote one."""
    found = []
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--check", action="store_true", help="results, against float64")
    add("--sanitize", action="store_true", help="compute-sanitizer on small shapes")
    add("--time", action="store_true", help="times (default: all three)")
    add("--quick", action="store_true", help="few shapes, a minute; kept only with --json")
    add("--json", type=Path, help="keep the result here (a full run: benchmarks/results/)")
    add("--minutes", type=float, help="what does not fit is left out and named (default: 8)")
    options = parser.parse_args(arguments)
    options.all = not (options.check or options.sanitize or options.time)
    if options.all:
        options.check = options.sanitize = options.time = True
    return options


if __name__ == "__main__":
    sys.exit(main())
