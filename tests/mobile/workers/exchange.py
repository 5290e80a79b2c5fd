"""How a worker takes its jobs and hands back what they gave.

It runs in a runtime's own Python, in which there is NumPy and LiteRT and nothing of ours.
"""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

MARK = "@job "  # a line of stderr: what follows belongs to the job of this number

Arrays = dict[str, np.ndarray]


def serve(load: Callable[[str, dict], tuple[int, Callable[[Arrays], Arrays]]]) -> None:
    """Does the jobs of the folder that the command line names, from the number it names.

    Args:
        load: is given a file's path and options, returns its batch size and a function of a batch.
            A job without inputs asks only for that.
    """
    folder, first = Path(sys.argv[1]), int(sys.argv[2])
    jobs = json.loads((folder / "jobs.json").read_text())
    for k, job in enumerate(jobs[first:], first):
        print(f"\n{MARK}{k}", file=sys.stderr, flush=True)
        with np.load(folder / f"{k}.in.npz") as arrays:
            inputs = {name: arrays[f"arr_{i}"] for i, name in enumerate(job["names"])}
        outputs, error = {}, None
        try:
            batch, function = load(job["path"], job["options"])
            if inputs:
                outputs = in_batches(batch, function, inputs)
        except Exception as caught:
            traceback.print_exc()
            error = f"{type(caught).__name__}: {caught}"
        np.savez(folder / f"{k}.out.npz", *outputs.values())
        answer = folder / f"{k}.part"
        answer.write_text(json.dumps({"error": error, "names": list(outputs)}))
        answer.rename(folder / f"{k}.json")


def in_batches(batch: int, function: Callable[[Arrays], Arrays], inputs: Arrays) -> Arrays:
    samples = {len(array) for array in inputs.values()}
    if len(samples) != 1 or samples == {0} or max(samples) % batch:
        raise ValueError(
            f"Every input must have the same number of samples, a multiple of {batch}. "
            f"Received: { {name: array.shape for name, array in inputs.items()} }"
        )
    parts = [
        function({name: array[k : k + batch] for name, array in inputs.items()})
        for k in range(0, max(samples), batch)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
