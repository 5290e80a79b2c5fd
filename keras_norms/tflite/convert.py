"""Writes a Keras model as a `.tflite` file."""

import math
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_norms import files, normalize
from keras_norms.tflite import lowering, quantize, writer
from keras_norms.tflite import verify as verification
from keras_norms.tflite.contents import contents
from keras_norms.tflite.report import Report
from keras_norms.tflite.signature import signature


def convert(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    batch_size: int = 1,
    input_shapes: Any = None,
    verify: bool = True,
    data: Any = None,
    tolerance: float = 1e-5,
) -> Report:
    """Writes a model's inference as a `.tflite` file, runs the file in LiteRT and compares the two.

    The file holds float32 numbers, fixed shapes and built-in operations only. It is put at `path`
    when it has proved right: before, or if anything fails, `path` is as it was. The model, its
    weights and the kernel in use are left as they are.

    Args:
        model: a built Keras model with one argument (any structure of tensors), of any kind.
        path: ends in `.tflite`; an older file is replaced.
        batch_size: int > 0, the samples that one run of the file takes.
        input_shapes: sizes without the batch, for models that leave some open: a tuple, or a list
            or a dict by input name of tuples.
        verify: whether to run the file. It needs LiteRT: `pip install "keras-norms[tflite]"`.
        data: `(samples, ...)`, samples to compare on, given as `input_shapes` is. Their number is
            a multiple of `batch_size`. Without it 8 samples of noise are made.
        tolerance: float > 0, the difference allowed between LiteRT and Keras, relative to the
            largest value of an output.

    Returns: a `Report`; print it.
    Raises:
        TypeError, ValueError: if an argument is wrong.
        ConversionError: a ValueError, if the model needs operations that are not built into LiteRT
            or keep a state, holds a layer derived from ours, or if the outputs disagree or are not
            finite.
        ImportError: if LiteRT is missing.
    """
    target = _check(model, path, batch_size, verify, data, tolerance)
    inputs = signature(model, batch_size=batch_size, input_shapes=input_shapes)
    if verify:
        verification.litert()
        samples = verification.generate(inputs.inputs) if data is None else inputs.arrays(data)
    layers = lowering.forms(model)
    with quantize.float32(model), files.replacing(target) as temporary:
        with normalize.portable():
            content = writer.write(model, inputs)
        found = contents(content)
        writer.refuse(found)
        temporary.write_bytes(content)
        result: dict[str, Any] = {}
        if verify:
            agreement = _verify(model, inputs, temporary, samples, tolerance)
            result = {
                "max_error": agreement.max_error,
                "max_output": agreement.max_output,
                "tolerance": tolerance,
                "samples": len(next(iter(samples.values()))),
                "runtime": verification.runtime(),
            }
    return Report(
        path=str(target),
        size=len(content),
        ops=found.ops,
        rank_above_4=found.rank_above_4,
        layers=layers,
        verified=verify,
        **result,
    )


def _check(model, path, batch_size, verify, data, tolerance) -> Path:
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "The converter needs Keras on TensorFlow (set KERAS_BACKEND=tensorflow and load the "
            f"saved model there). Received: the backend {keras.backend.backend()!r}"
        )
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: {model!r}")
    if not model.built:
        raise ValueError(
            "`model` must be built: call it once on data, or give it a keras.Input. "
            f"Received: {model.name!r}, which is not"
        )
    path = files.destination(path)
    if path.suffix != ".tflite" or path.is_dir():
        raise ValueError(f"`path` must name a file ending in '.tflite'. Received: {str(path)!r}")
    if not isinstance(batch_size, int | np.integer) or batch_size < 1 or batch_size is True:
        raise ValueError(f"`batch_size` must be an integer above 0. Received: {batch_size!r}")
    if not isinstance(verify, bool):
        raise TypeError(f"`verify` must be True or False. Received: {verify!r}")
    if data is not None and not verify:
        raise ValueError("`data` is what the file is compared on. Received: data and verify=False")
    number = isinstance(tolerance, int | float | np.number) and not isinstance(tolerance, bool)
    if not (number and 0 < tolerance < math.inf):
        raise ValueError(f"`tolerance` must be a number above 0. Received: {tolerance!r}")
    return path


def _verify(model, inputs, path, samples, tolerance):
    def reference(batch):
        tensors = [keras.ops.convert_to_tensor(batch[i.name]) for i in inputs.inputs]
        outputs = writer.named(model(inputs.pack(tensors), training=False))
        return {name: keras.ops.convert_to_numpy(tensor) for name, tensor in outputs.items()}

    want = verification.in_batches(reference, samples, inputs.inputs[0].shape[0])
    got = verification.run(path, samples)
    if not isinstance(got, dict):
        got = dict.fromkeys(want, got)
    return verification.compare(want, got, tolerance=tolerance)
