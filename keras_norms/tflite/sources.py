"""What a file is made of: a Keras model, whose layers can be lowered, or a SavedModel as it is."""

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_norms import normalize
from keras_norms.tflite import layers, lowering, marks, precision, writer
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.norms import Norm
from keras_norms.tflite.signature import Input, Signature, signature

# A model is changed for the time in which it is traced, and two threads may convert the same one.
_CHANGING = threading.RLock()


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
            self.notes.append(
                "Sizes are left open: the file computes shapes while it runs, XNNPACK and mobile "
                "GPUs serve less of it, and it cannot be quantized to integers."
            )

    def written(
        self, target: str, quantize: str | None, custom_op: bool
    ) -> tuple[bytes, list[Norm]]:
        """The float32 file with every norm in its form."""
        column = lowering.column(target, quantize)
        with _CHANGING, ExitStack() as stack:
            found = layers.replacements(self.model, column)
            if column == "integers":
                stack.enter_context(layers.unrolled(self.model))
            content, marked = self._traced(found)
        content, norms = lowering.lower(
            content, marked.calls, target=target, quantize=quantize, custom_op=custom_op
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
                f"{str(error).splitlines()[0][:300] if str(error) else type(error).__name__}"
            ) from error
        self.path = path
        specs = self._function.structured_input_signature[1]
        self.inputs = Signature(
            tuple(
                Input(name, tuple(spec.shape.as_list()), spec.dtype.name)
                for name, spec in sorted(specs.items())
            ),
            dict.fromkeys(specs),
        )
        self.notes = [
            "A SavedModel has lost its layers: it was converted as it is, and no norm was lowered "
            "or folded. Convert the Keras model for that."
        ]

    def written(
        self, target: str, quantize: str | None, custom_op: bool
    ) -> tuple[bytes, list[Norm]]:
        return writer.write_saved_model(self.path), []

    def reference(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        outputs = self._function(**{name: tf.constant(array) for name, array in batch.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}


def source_of(model: keras.Model | Path, batch_size: int | None, input_shapes: Any) -> Any:
    kind = KerasModel if isinstance(model, keras.Model) else SavedModel
    return kind(model, batch_size, input_shapes)
