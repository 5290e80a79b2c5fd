"""Every layer of the catalog on LiteRT's GPU delegate in float16, for inputs of four strengths."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.mobile import files, models
from benchmarks.mobile.results import KERAS, OURS, OnGpu
from keras_norms.tflite.measure import distance
from tests.mobile import gpu, runtimes
from tests.mobile.job import Failure, Job

DEVIATIONS = (0.01, 1, 100, 5000)  # squares below float16's normal range, and above it
SAMPLES = 4  # of each
SECONDS = 300


def why_not() -> str | None:
    return runtimes.why_not("gpu")


def measure(say: Callable[[str], None]) -> list[OnGpu]:
    with tempfile.TemporaryDirectory() as folder:
        asked = []
        for name in models.ROWS:
            say(f"writing {name} for the GPU")
            arrays = inputs(name)
            for column in KERAS, OURS:
                model = models.catalog(name, column == KERAS)
                path = Path(folder) / f"{column}-{name}.tflite"
                asked.append((name, column, _written(model, column, path, arrays)))
        jobs = [found[0] for *_, found in asked if not isinstance(found, str)]
        say(f"running {len(jobs)} files on the GPU delegate")
        outcomes = iter(gpu.outcomes(jobs, seconds=SECONDS))
    found: dict[str, dict] = {}
    for name, column, written in asked:
        if not isinstance(written, str):
            written = _quality(written[1], next(outcomes))
        found.setdefault(name, {})[column] = written
    return [OnGpu(name, name in models.IN_KERAS, outcomes) for name, outcomes in found.items()]


def inputs(name: str) -> dict[str, np.ndarray]:
    """Samples of every deviation, one after the other: a file is compiled once."""
    row = models.ROWS[name]
    parts = [models.samples(row, SAMPLES, 0, d, k) for k, d in enumerate(DEVIATIONS)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _written(model, column: str, path: Path, arrays: dict) -> tuple[Job, np.ndarray] | str:
    try:
        content = (
            files.keras_export(model)
            if column == KERAS
            else files.ours(model, target="gpu", verify=False)[0]
        )
    except Exception as error:  # reported; other layers go on
        return f"not written: {type(error).__name__}: {error}".splitlines()[0]
    path.write_bytes(content)
    return Job(path, arrays, {"precision": "fp16"}), models.outputs(model, arrays)


def _reason(refusal: str) -> str:
    """What is worth saying of the delegate's lines: each kind once, without tensors' names."""
    said = re.search("└ (.+)", refusal)
    if said:  # all of its log, in which no operation is named
        return said[1]
    kinds = re.findall(r"^[A-Z0-9_]+: ([^.]+\.)", refusal, re.MULTILINE)
    if kinds:
        operations = dict.fromkeys(re.findall(r"^([A-Z0-9_]+): ", refusal, re.MULTILINE))
        return f"{', '.join(operations)}: {' '.join(dict.fromkeys(kinds))}"
    return refusal.splitlines()[0]


def _quality(want: np.ndarray, outcome) -> dict[str, float] | str:
    if isinstance(outcome, Failure):
        return _reason(gpu.refusal(outcome))
    (got,) = outcome.values()
    parts = (slice(k * SAMPLES, (k + 1) * SAMPLES) for k in range(len(DEVIATIONS)))
    return {
        f"{deviation:g}": round(distance(want[part], got[part]).sqnr, 1)
        for deviation, part in zip(DEVIATIONS, parts, strict=True)
    }
