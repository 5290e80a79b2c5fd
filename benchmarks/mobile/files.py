"""What writes a network: Keras' export, TensorFlow's converter and ours."""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

import keras_norms as kn
from keras_norms.tflite import Report


def keras_export(model: keras.Model) -> bytes:
    """`model.export(format="litert")`, with nothing of ours but the layers in it."""
    with tempfile.TemporaryDirectory() as folder, kn.portable():
        path = Path(folder) / "m.tflite"
        model.export(path, format="litert", verbose=False)
        return path.read_bytes()


def ours(model: keras.Model, **options) -> tuple[bytes, Report]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        report = kn.tflite.convert(model, path, **options)
        return path.read_bytes(), report


def tf_quantized(make: Callable, given: tuple, mode: str, batches: Sequence[dict]) -> bytes:
    """TensorFlow's converter, to integers throughout with a float32 interface.

    Args:
        make: of the model, for `given`; both are handed to another process.
        mode: "int8" or "int16x8".
        batches: arrays by input name.
    """
    import tensorflow as tf

    with kn.portable():
        model = make(*given)
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        names = [tensor.name for tensor in model.inputs]
        converter.representative_dataset = lambda: ([b[n] for n in names] for b in batches)
        sets = tf.lite.OpsSet
        converter.target_spec.supported_ops = [
            sets.TFLITE_BUILTINS_INT8
            if mode == "int8"
            else sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        # It lists the model's tensors, and warns of a float32 interface.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return converter.convert()


def batches(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """One sample each."""
    count = len(next(iter(arrays.values())))
    return [{name: a[k : k + 1] for name, a in arrays.items()} for k in range(count)]
