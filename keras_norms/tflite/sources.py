"""What a file is made of: a Keras model, whose layers can be lowered, or a SavedModel as it is."""

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_norms import normalize
from keras_norms.messages import one_line
from keras_norms.tflite import layers, lowering, marks, origins, precision, writer
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.norms import Norm
from keras_norms.tflite.signature import Input, Signature, signature

# A model is changed for the time in which it is traced, and two threads may convert the same one.
_CHANGING = threading.RLock()

OPEN_SIZES = (
    "Sizes are left open: the file computes shapes while it runs, XNNPACK and mobile GPUs serve "
    "less of it, and it cannot be quantized to integers."
)


class KerasModel:
    """Attributes:
    inputs: the file's.
    notes: what the report has to say.
    """

    def __init__(self, model: keras.Model, batch_size: int | None, input_shapes: Any):
        if not model.built:
            raise ValueError(
                "`model` must be built: call it once on data, or give it a keras.Input. "
                f"Received: {model.name!r}, which is not"
            )
        self.model = model
        self.inputs = signature(model, batch_size=batch_size, input_shapes=input_shapes)
        self.notes: list[str] = []
        if self.inputs.dynamic:
            self.notes.append(OPEN_SIZES)

    def written(
        self, target: str, quantize: str | None, custom_op: bool
    ) -> tuple[bytes, list[Norm]]:
        """The float32 file with every norm in its form."""
        column = lowering.column(target, quantize)
        with _CHANGING, ExitStack() as stack:
            found = layers.replacements(self.model, column)
            if column == "integers":
                stack.enter_context(layers.unrolled(self.model))
            scopes = stack.enter_context(origins.noted(self.model))
            content, marked = self._traced(found)
        content, norms = lowering.lower(
            content, marked.calls, scopes, target=target, quantize=quantize, custom_op=custom_op
        )
        return content, [*layers.computed(self.model), *norms]

    def _traced(self, found: Mapping[keras.Layer, Callable]) -> tuple[bytes, marks.Marked]:
        with (
            precision.float32(self.model),
            layers.retraced(self.model),
            layers.baked(self.model),
            normalize.portable(),
            marks.marking(found) as marked,
        ):
            return writer.write(self.model, self.inputs), marked

    def reference(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Keras' outputs by name, in float32."""
        with _CHANGING, precision.float32(self.model), layers.retraced(self.model):
            tensors = [keras.ops.convert_to_tensor(batch[i.name]) for i in self.inputs.inputs]
            outputs = writer.named(self.model(self.inputs.pack(tensors), training=False))
        return {name: keras.ops.convert_to_numpy(tensor) for name, tensor in outputs.items()}


class SavedModel:
    """A folder of TensorFlow's; its default signature."""

    def __init__(self, path: Path, batch_size: int | None, input_shapes: Any):
        import tensorflow as tf

        if input_shapes is not None:
            raise ValueError(
                "`input_shapes` cannot change a SavedModel, which is converted as it is. Received: "
                f"input_shapes={input_shapes}"
            )
        try:
            self._loaded = tf.saved_model.load(str(path))
            self._function: Callable = self._loaded.signatures["serving_default"]
        except Exception as error:
            raise ConversionError(
                f"{str(path)!r} cannot be loaded as a SavedModel with a serving signature: "
                f"{one_line(error)}"
            ) from error
        specs = self._function.structured_input_signature[1]
        self.inputs = Signature(
            tuple(_input(name, spec, batch_size) for name, spec in sorted(specs.items())),
            dict.fromkeys(specs),
        )
        self.notes = [
            "A SavedModel has lost its layers: it was converted as it is, and no norm was lowered "
            "or folded. Convert the Keras model for that."
        ]
        if self.inputs.dynamic:
            self.notes.append(OPEN_SIZES)

    def written(
        self, target: str, quantize: str | None, custom_op: bool
    ) -> tuple[bytes, list[Norm]]:
        return writer.write_saved_model(self._loaded, self._function, self.inputs), []

    def reference(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        outputs = self._function(**{name: tf.constant(array) for name, array in batch.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}


def _input(name: str, spec: Any, batch_size: int | None) -> Input:
    """An input of a SavedModel, whose batch is fixed where it was left open."""
    if spec.dtype.name == "string" or not spec.shape.rank:
        raise ConversionError(
            "The inputs of a SavedModel must be numbers with an axis for samples. Received: "
            f"{name!r}, {spec.dtype.name} of shape {spec.shape}"
        )
    batch, *sizes = spec.shape.as_list()
    if batch is not None and batch != batch_size:
        raise ValueError(
            "`batch_size` must agree with the SavedModel, which was written for one. Received: "
            f"batch_size={batch_size} for the input {name!r} of shape {spec.shape}"
        )
    return Input(name, (batch_size, *sizes), spec.dtype.name)


def source_of(model: keras.Model | Path, batch_size: int | None, input_shapes: Any) -> Any:
    kind = KerasModel if isinstance(model, keras.Model) else SavedModel
    return kind(model, batch_size, input_shapes)
