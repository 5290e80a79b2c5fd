"""Runs a `.tflite` file in a process of its own and looks into it.

LiteRT ends the whole process when an operation goes wrong beyond what it checks, and both reading
every tensor of some graphs and running a file that is still in the making do that.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_norms.tflite import custom_op
from keras_norms.tflite.errors import ConversionError

CHILD = Path(__file__).with_name("probe_child.py")
ERROR = re.compile(r"[\w.]+Error: ")  # the last line of a traceback, or those from it on

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Seen:
    """What a file computed, with the batches along the first axis; tensors in real numbers.

    `ranges` are the least and the largest value of every float32 tensor over all batches.
    """

    outputs: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]
    ranges: dict[str, tuple[float, float]]


def probe(
    content: bytes,
    batches: Sequence[Batch],
    *,
    tensors: Iterable[str] = (),
    ranges: bool = False,
    timeout: float | None = None,
) -> Seen:
    """Runs a file on some batches.

    Args:
        content: of the file, which has one signature.
        batches: by the signature's input names, in the file's sizes.
        tensors: names of tensors to return beside the outputs.
        ranges: whether to find every float32 tensor's range.
        timeout: seconds > 0 that the process may take; None: any.

    Raises: ConversionError, if the process dies, fails or takes longer.
    """
    delegate = [str(custom_op.library())] if custom_op.needed(content) else []
    job = {"batches": len(batches), "ranges": ranges, "tensors": list(tensors)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(content)
        (folder / "job.json").write_text(json.dumps(job))
        arrays = {f"{k}/{name}": a for k, batch in enumerate(batches) for name, a in batch.items()}
        np.savez(folder / "samples.npz", **arrays)
        command = [sys.executable, "-P", str(CHILD), str(folder), *delegate]
        done = _ended(command, timeout)
        if done.returncode:
            raise ConversionError(_reason(done.returncode, done.stderr))
        with np.load(folder / "result.npz") as file:
            result = {key: file[key] for key in file.files}

    def part(prefix):
        return {n.removeprefix(prefix): v for n, v in result.items() if n.startswith(prefix)}

    pairs = {name: (float(pair[0]), float(pair[1])) for name, pair in part("range/").items()}
    return Seen(part("output/"), part("tensor/"), pairs)


def _ended(command: Sequence[str], timeout: float | None) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise ConversionError(
            f"LiteRT did not come to an end with the file in {timeout:g} s."
        ) from None


def _reason(code: int, text: str) -> str:
    lines = text.strip().splitlines()
    if code > 0:  # an exception, which says what was wrong
        start = max((k for k, line in enumerate(lines) if ERROR.match(line)), default=-3)
        return f"LiteRT could not run the file. It says: {' '.join(lines[start:])[:1000]}"
    return (
        f"LiteRT could not run the file: its process was ended by {signal.Signals(-code).name}. A "
        "loop can be the reason (`unroll=True` on recurrent layers writes none), or too little "
        f"memory. It said: {' '.join(lines[-3:])[:600]!r}"
    )
