"""Runs a `.tflite` file and looks into it, as a program of its own (see `probe.py`).

    python probe_child.py FOLDER [DELEGATE]

FOLDER holds `model.tflite`; `samples.npz`, the batches as "batch number/input"; and `job.json`:
{"batches": a number, "ranges": a bool, "tensors": names}. It gets `result.npz`.
"""

import json
import resource
import sys
import warnings
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType, load_delegate

STACK = 1 << 23  # bytes, as is usual: a graph that calls itself is to end before memory does


def interpreter(path: Path, inside: bool, library: str | None) -> Interpreter:
    # Inside a delegate there is nothing to see. What is only run is run as users will.
    kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if inside else OpResolverType.AUTO
    return Interpreter(
        model_path=str(path),
        experimental_op_resolver_type=kind,
        experimental_preserve_all_tensors=inside,
        experimental_delegates=[load_delegate(library)] if library else None,
        num_threads=1,  # the same sums on every machine
    )


def real(value: np.ndarray, details: dict) -> np.ndarray:
    """The numbers that a quantized tensor stands for."""
    scales = details["quantization_parameters"]["scales"]
    if not len(scales):
        return value
    points = details["quantization_parameters"]["zero_points"]
    return ((value.astype("float64") - points) * scales).astype("float32")


def limit_stack() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft > STACK:
        resource.setrlimit(resource.RLIMIT_STACK, (STACK, hard))


def main(folder: str, library: str | None = None) -> None:
    limit_stack()
    job = json.loads(Path(folder, "job.json").read_text())
    run = interpreter(Path(folder, "model.tflite"), job["ranges"] or job["tensors"] != [], library)
    runner = run.get_signature_runner()
    samples = np.load(Path(folder, "samples.npz"))
    details = [d for d in run.get_tensor_details() if d["name"]]
    floats = [d for d in details if d["dtype"] == np.float32] if job["ranges"] else []
    wanted = {d["name"]: d for d in details if d["name"] in set(job["tensors"])}
    ranges: dict[str, tuple[float, float]] = {}
    values: dict[str, list] = {}
    for k in range(job["batches"]):
        outputs = runner(**{name: samples[f"{k}/{name}"] for name in runner.get_input_details()})
        for name, value in outputs.items():
            values.setdefault(f"output/{name}", []).append(value)
        for name, d in wanted.items():
            values.setdefault(f"tensor/{name}", []).append(real(run.get_tensor(d["index"]), d))
        for d in floats:
            try:
                value = run.get_tensor(d["index"])
            except ValueError:
                continue  # no data: a delegate runs what makes it and what takes it
            if value.size:
                least, most = ranges.get(d["name"], (np.inf, -np.inf))
                # np.minimum and not min: a NaN is to be seen.
                ranges[d["name"]] = np.minimum(least, value.min()), np.maximum(most, value.max())
    result = {name: np.stack(v) for name, v in values.items()}
    result |= {f"range/{name}": np.array(pair, "float32") for name, pair in ranges.items()}
    np.savez(Path(folder, "result.npz"), **result)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # one about memory, which is what this program is for
    main(*sys.argv[1:])
