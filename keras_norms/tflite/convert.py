"""Writes a Keras model as a `.tflite` file."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_norms import files, library
from keras_norms.messages import one_line
from keras_norms.tflite import custom_op as kernel
from keras_norms.tflite import lowering, progress, steps, vectors
from keras_norms.tflite import metadata as notes
from keras_norms.tflite import quantize as quantization
from keras_norms.tflite import samples as sampling
from keras_norms.tflite import verify as verification
from keras_norms.tflite.checks import refuse
from keras_norms.tflite.contents import contents
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.load import load
from keras_norms.tflite.report import Report
from keras_norms.tflite.runtimes import in_batches, litert
from keras_norms.tflite.sources import source_of

QUANTIZE = (None, "float16", "dynamic", "int8", "int16x8")
NORMS = ("auto", "float", "quantized")


def convert(
    model: keras.Model | str | os.PathLike,
    path: str | os.PathLike,
    *,
    target: str = "any",
    quantize: str | None = None,
    representative_data: Any = None,
    norms: str = "auto",
    batch_size: int | None = 1,
    input_shapes: Any = None,
    custom_op: bool = False,
    verify: bool = True,
    data: Any = None,
    tolerance: float = 1e-5,
    metadata: bool = True,
) -> Report:
    """Writes a model's inference as a `.tflite` file, runs the file and compares the two.

    Every norm, ours or Keras', is written in the form its target needs, or is taken into the
    weights of the layer before or after it where that is exact. The file is put at `path` when it
    has proved right: before, or if anything fails, `path` is as it was. (A process that is killed
    while it writes may leave a file `.NAME.XXXXXXXX.tmp` beside it, which can be deleted.) The
    model, its weights and the kernel in use are left as they are. Converting twice gives the same
    bytes.

    Args:
        model: a built Keras model with one argument (any structure of tensors), of any kind, or the
            path of a saved one: `.keras`, `.h5`, or a SavedModel folder, which has lost its layers
            and is converted as it is. Python code in a file (a Lambda layer) is not run; a
            SavedModel is a program itself, and is run to be compared.
        path: ends in `.tflite`; an older file is replaced.
        target: what runs the file. "cpu": the fastest form there; "gpu", "npu": right in 16-bit
            floats, for any size of the input; "any": right everywhere, and fast.
        quantize: None: float32. "float16": weights of 16 bits. "dynamic": weights of 8 bits.
            "int8": weights and activations of 8 bits; "int16x8": activations of 16 bits. Inputs and
            outputs stay float32. It outranks `target`.
        representative_data: for "int8" and "int16x8", samples as in use (100 or more): arrays as
            `data`, a generator function, an iterable or a tf.data.Dataset of inputs, or of
            `(x, y)` or `(x, y, sample_weight)` as for `fit`. A tuple of two or three arrays is that
            for a model of one input; with several inputs x is a tuple, a list or a dict of them.
        norms: for those two, what the norms compute in. "auto": each in floats where 8 bits would
            cost it more than 3 dB; "float", "quantized": all of them.
        batch_size: int > 0, the samples that one run of the file takes; None leaves it open, which
            costs operations and speed and is refused for "int8" and "int16x8". A SavedModel may
            have been written for one.
        input_shapes: sizes without the batch, for models that leave some open: a tuple, or a list
            or a dict by input name of tuples. A size given as None stays open.
        custom_op: whether each norm is one node `KerasNorms>Normalize`, which runs where its
            kernel is registered (`keras_norms.tflite.custom_op`).
        verify: whether to run the file. It needs LiteRT: `pip install "keras-norms[tflite]"`.
        data: `(samples, ...)`, samples to compare on, given as `input_shapes` is, or all of a
            tf.data.Dataset as above. Their number is a multiple of `batch_size`. Without it the
            first of `representative_data`, or noise.
        tolerance: float > 0, for float32 files: the difference allowed between LiteRT and Keras,
            relative to the largest value of an output. With `quantize` the report has it in dB.
        metadata: whether the file says how it was made and holds a sample with Keras' outputs.

    Returns: a `Report`; print it.
    Raises:
        TypeError, ValueError: if an argument is wrong.
        ConversionError: a ValueError, if the model cannot be loaded, needs operations that are not
            built into LiteRT or keep a state, holds a layer derived from ours, cannot be quantized,
            or if the outputs disagree or are not finite.
        ImportError: if LiteRT is missing.
    """
    destination = _check(
        path, target, quantize, norms, batch_size, custom_op, verify, data, tolerance, metadata
    )
    progress.say("loading the model")
    source = source_of(load(model), batch_size, input_shapes)
    inputs = source.inputs
    static = quantize in quantization.STATIC
    if static and inputs.dynamic:
        sizes = {i.name: i.shape for i in inputs.inputs}
        raise ConversionError(
            f"quantize={quantize!r} needs fixed sizes: the ranges of numbers are measured for one "
            f"size. Give `batch_size` and every size in `input_shapes`. Received: {sizes}"
        )
    if verify or static:
        litert()
    if static != (representative_data is not None):
        raise ValueError(
            f"`representative_data` is what quantize={quantize!r} "
            + ("measures the ranges of numbers on. Received: none" if static else "has no use for.")
        )
    batches = sampling.batches(representative_data, inputs.inputs) if static else None
    delegates = [kernel.delegate()] if custom_op and verify else []
    progress.say("converting the model")
    with _said_of(model):
        content, found = source.written(target, quantize, custom_op)
    refuse(content, found, custom_op=custom_op, dynamic=inputs.dynamic)
    result = None
    if quantize is not None:
        progress.say(f"writing {quantize} numbers")
        own = [norm for norm in found if norm.nodes]
        result = quantization.quantize(content, quantize, norms=own, samples=batches, keep=norms)
        content = result.content
    progress.say("running the model in Keras")
    samples = _samples(data, inputs, batches)
    with _said_of(model):
        want = in_batches(source.reference, samples, inputs.batch)
    agreements = []
    if verify:
        allowed = tolerance if quantize is None else None
        agreements = verification.verified(content, want, samples, allowed, delegates)
    if metadata:
        first = {name: array[: inputs.batch] for name, array in samples.items()}
        entries = {
            notes.CONVERSION: {
                "keras_norms": library.VERSION,
                "target": target,
                "quantize": quantize,
                "norms": {norm.path: norm.form for norm in found},
            },
            notes.TEST_VECTORS: vectors.encoded(
                first, {name: array[: inputs.batch] for name, array in want.items()}
            ),
        }
        content = notes.written(content, {name: v for name, v in entries.items() if v is not None})
    with files.replacing(destination) as temporary:
        temporary.write_bytes(content)
    stands = contents(content)
    said = list(source.notes)
    if target in ("gpu", "npu") and static:
        said.append(f"{quantize} has one form for all targets: {target!r} changes nothing.")
    if target in ("gpu", "npu") and custom_op:
        said.append("Neither GPUs nor NPUs take the custom op: it runs on the CPU.")
    if stands.rank_above_4:
        said.append(
            f"The model itself has {stands.rank_above_4} tensors above rank 4 (no norm adds any), "
            "which mobile GPUs refuse."
        )
    return Report(
        path=str(destination),
        size=len(content),
        target=target,
        quantize=quantize,
        ops=stands.ops,
        rank_above_4=stands.rank_above_4,
        norms=tuple(found),
        agreements=tuple(agreements),
        tolerance=tolerance if quantize is None else None,
        samples=len(next(iter(samples.values()))) if verify else None,
        notes=(*said, *(result.warnings if result else ())),
        choices=result.norms if result else (),
        distances=result.distances if result else (),
    )


@contextmanager
def _said_of(model: keras.Model | str | os.PathLike) -> Iterator[None]:
    """What a saved model's layers raise is the file's fault; a live one's own errors are shown."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:
        if isinstance(model, keras.Model):
            raise
        raise ConversionError(
            f"{str(model)!r} cannot be computed: {type(error).__name__}: {one_line(error)}"
        ) from error


def _samples(data: Any, inputs: Any, batches: Any) -> dict[str, np.ndarray]:
    """What the file is compared on."""
    if data is not None:
        return inputs.arrays(steps.whole(data, inputs.inputs))
    if batches is None:
        return verification.generate(inputs.inputs)
    enough = -(-verification.SAMPLES // inputs.batch)
    return {
        name: np.concatenate([batch[name] for batch in batches[:enough]]) for name in batches[0]
    }


def _check(
    path, target, quantize, norms, batch_size, custom_op, verify, data, tolerance, metadata
) -> Path:
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "The converter needs Keras on TensorFlow (set KERAS_BACKEND=tensorflow and load the "
            f"saved model there). Received: the backend {keras.backend.backend()!r}"
        )
    path = files.destination(path)
    if path.suffix != ".tflite" or path.is_dir():
        raise ValueError(f"`path` must name a file ending in '.tflite'. Received: {str(path)!r}")
    for name, value, known in (
        ("target", target, lowering.TARGETS),
        ("quantize", quantize, QUANTIZE),
        ("norms", norms, NORMS),
    ):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {known}. Received: {value!r}")
    if batch_size is not None and (
        not isinstance(batch_size, int | np.integer) or batch_size < 1 or batch_size is True
    ):
        raise ValueError(
            f"`batch_size` must be an integer above 0, or None. Received: {batch_size!r}"
        )
    for name, value in (("verify", verify), ("custom_op", custom_op), ("metadata", metadata)):
        if not isinstance(value, bool):
            raise TypeError(f"`{name}` must be True or False. Received: {value!r}")
    if data is not None and not verify:
        raise ValueError("`data` is what the file is compared on. Received: data and verify=False")
    number = isinstance(tolerance, int | float | np.number) and not isinstance(tolerance, bool)
    if not (number and 0 < tolerance < math.inf):
        raise ValueError(f"`tolerance` must be a number above 0. Received: {tolerance!r}")
    return path
