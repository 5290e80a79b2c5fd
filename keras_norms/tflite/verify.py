"""Runs a `.tflite` file in LiteRT and compares it with the model. That it loads proves nothing."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.signature import Input, is_array, per_input

SAMPLES = 8


@dataclass(frozen=True)
class Agreement:
    """Of the output that agrees worst: its largest difference, and its largest value in Keras."""

    max_error: float
    max_output: float


def run(path: str | os.PathLike, data: Any) -> Any:
    """Runs a `.tflite` file in LiteRT on any number of samples.

    Args:
        path: the file.
        data: `(samples, ...)`, an array for a file of one input, else a dict by input name. The
            number of samples is a multiple of the batch size that the file was written with.

    Returns: `(samples, ...)`, an array from a file of one output, else a dict by output name.
    Raises: ValueError, if the samples do not fit the file.
    """
    runner = litert()(model_path=os.fspath(path)).get_signature_runner()
    details = runner.get_input_details()
    arrays = per_input(data, list(details), "data", one=is_array)
    arrays = {n: np.asarray(a).astype(details[n]["dtype"]) for n, a in arrays.items()}
    batches = set()
    for name, array in arrays.items():
        batch, *rest = details[name]["shape"].tolist()
        batches.add((batch, len(array) if array.ndim else 0))
        if array.ndim == 0 or list(array.shape[1:]) != rest:
            raise ValueError(
                f"`data` must hold samples of shape {tuple(rest)} for the input {name!r}. "
                f"Received: an array of shape {array.shape}"
            )
    (batch, samples), *others = batches
    if others or not samples or samples % batch:
        raise ValueError(
            f"`data` must hold the same number of samples for every input, a multiple of {batch}. "
            f"Received: { {n: len(a) for n, a in arrays.items()} }"
        )
    outputs = in_batches(lambda b: runner(**b), arrays, batch)
    return outputs if len(outputs) > 1 else next(iter(outputs.values()))


def in_batches(
    function: Callable[[dict], dict], arrays: dict[str, np.ndarray], batch: int
) -> dict[str, np.ndarray]:
    """Applies a function of one batch to all samples and joins what it gives."""
    samples = len(next(iter(arrays.values())))
    parts = [
        function({n: a[k : k + batch] for n, a in arrays.items()}) for k in range(0, samples, batch)
    ]
    return {n: np.concatenate([np.atleast_1d(part[n]) for part in parts]) for n in parts[0]}


def generate(inputs: tuple[Input, ...]) -> dict[str, np.ndarray]:
    """Samples for a comparison where the user gave none, the same ones every time.

    Numbers from N(0, 1), integers of 0 and 1 (indices, which are in the range of any table).
    """
    random = np.random.default_rng(20)
    arrays = {}
    for i in inputs:
        shape = (-(-SAMPLES // i.shape[0]) * i.shape[0], *i.shape[1:])
        whole = not i.dtype.startswith("float")
        values = random.integers(0, 2, shape) if whole else random.standard_normal(shape)
        arrays[i.name] = values.astype(i.dtype)
    return arrays


def compare(
    want: dict[str, np.ndarray], got: dict[str, np.ndarray], *, tolerance: float
) -> Agreement:
    """Compares the outputs of Keras and LiteRT, each relative to its own largest value.

    Raises: ConversionError, if one differs by more than `tolerance` times that, or is not finite.
    """
    agreements = []
    for name, reference in want.items():
        reference = reference.astype("float64")
        if got[name].shape != reference.shape:
            raise ConversionError(
                f"The output {name!r} has shape {got[name].shape} in LiteRT and {reference.shape} "
                "in Keras. No file was written."
            )
        for where, values in ("Keras", reference), ("LiteRT", got[name]):
            if not np.all(np.isfinite(values)):
                count = np.size(values) - np.count_nonzero(np.isfinite(values))
                raise ConversionError(
                    f"The output {name!r} has {count} of {np.size(values)} values in {where} that "
                    "are NaN or infinite, so nothing shows that the file is right. No file was "
                    "written. (Other samples can be given as `data`.)"
                )
        error = float(np.max(np.abs(got[name].astype("float64") - reference), initial=0))
        largest = float(np.max(np.abs(reference), initial=0))
        if error > tolerance * largest:
            raise ConversionError(
                f"LiteRT and Keras disagree: the output {name!r} is off by {error:.3g} where its "
                f"largest value is {largest:.3g}. Allowed: tolerance={tolerance:g} times that. No "
                "file was written. (Rounding in a deep network may need a larger `tolerance`.)"
            )
        agreements.append(Agreement(error, largest))
    return max(agreements, key=lambda a: a.max_error / (a.max_output or 1))


def litert() -> type:
    """LiteRT's interpreter."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "Running a .tflite file needs LiteRT, which is not installed: "
            'pip install "keras-norms[tflite]". (`verify=False` writes a file without running it.)'
        ) from error
    return Interpreter


def runtime() -> str:
    return f"LiteRT {metadata.version('ai-edge-litert')}"
