"""Writes a model by TensorFlow's converter, and says what stands in the way when it cannot."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.signature import Signature


def write(model: keras.Model, inputs: Signature) -> bytes:
    """The model's inference on these inputs, as the bytes of a `.tflite` file."""
    import tensorflow as tf

    def call(*tensors):
        return named(model(inputs.pack(tensors), training=False))

    # The converter swallows a layer's own error, so the model is traced once where it shows.
    specs = [tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in inputs.inputs]
    trace = tf.function(call, autograph=False).get_concrete_function(*specs)
    outputs = {
        name: keras.KerasTensor(t.shape, t.dtype.name)
        for name, t in trace.structured_outputs.items()
    }
    tensors = [keras.Input(batch_shape=i.shape, dtype=i.dtype, name=i.name) for i in inputs.inputs]
    fixed = keras.Model(tensors, _Call(model, call, outputs)(*tensors), name="fixed")
    with _without_messages():
        try:
            return tf.lite.TFLiteConverter.from_keras_model(fixed).convert()
        except Exception as error:
            raise ConversionError(_reason(_real(error, fixed))) from error


class _Call(keras.layers.Layer):
    """The model as one layer: calling the model itself on new inputs would add nodes to it."""

    def __init__(self, model: keras.Model, function: Callable, outputs: dict):
        super().__init__(autocast=False, dtype="float32", name="call")
        self.model = model  # so that its variables are found
        self.function = function
        self.outputs = outputs

    def call(self, *tensors):
        return self.function(*tensors)

    def compute_output_spec(self, *tensors):
        return self.outputs


def named(outputs: Any) -> dict[str, Any]:
    """A model's outputs by the names they have in the file."""
    if isinstance(outputs, dict) and not any(map(keras.tree.is_nested, outputs.values())):
        return {str(name): tensor for name, tensor in outputs.items() if tensor is not None}
    tensors = [tensor for tensor in keras.tree.flatten(outputs) if tensor is not None]
    return {f"output_{k}": tensor for k, tensor in enumerate(tensors)}


def write_saved_model(loaded: Any, function: Callable, inputs: Signature) -> bytes:
    """A signature of a loaded SavedModel on these inputs, as the bytes of a `.tflite` file."""
    import tensorflow as tf

    specs = {i.name: tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in inputs.inputs}

    def call(**tensors):
        return function(**tensors)

    try:
        fixed = tf.function(call, autograph=False).get_concrete_function(**specs)
        return tf.lite.TFLiteConverter.from_concrete_functions([fixed], loaded).convert()
    except Exception as error:
        raise ConversionError(_reason(str(error))) from error


def _real(error: Exception, fixed: keras.Model) -> str:
    """The converter also swallows what went wrong when it wrote a SavedModel on its way."""
    if "NoneType" not in str(error):
        return str(error)
    try:
        with tempfile.TemporaryDirectory() as folder:
            fixed.export(folder, verbose=False)
    except Exception as reason:
        return str(reason)
    return str(error)


def _reason(message: str) -> str:
    names = re.findall(r"^(?:TF Select|Custom) ops: (.+)$", message, re.MULTILINE)
    if names:
        return not_built_in(sorted(set(", ".join(names).split(", "))))
    return f"The converter refused the model. No file was written. It says: {message[:1000]}"


def not_built_in(names: Iterable[str]) -> str:
    """The words for operations that LiteRT lacks."""
    text = (
        f"The model needs operations that LiteRT has not built in: {', '.join(names)}. No file was "
        "written."
    )
    if any("KerasNorms>" in name for name in names):
        text += (
            " The fused one came in with a concrete function, which was traced before: call the "
            "layer or the tf.function instead, or trace within `keras_norms.portable()`."
        )
    return text


@contextmanager
def _without_messages() -> Iterator[None]:
    """The converter writes a SavedModel on its way, and Keras would print where."""
    before = keras.config.is_interactive_logging_enabled()
    keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if before:
            keras.config.enable_interactive_logging()
