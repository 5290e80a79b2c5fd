"""The format of the numbers in the file: float32, also of a model that computes in less."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from keras_norms.tflite.errors import ConversionError


@contextmanager
def float32(model: keras.Model) -> Iterator[None]:
    """Within it, every layer of the model computes in float32.

    LiteRT has no float16, bfloat16 or float64 convolution. The weights under a mixed policy are
    float32 anyway, and the comparison with Keras then is one of like with like.

    Raises: ConversionError, if there are weights in another type of float.
    """
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype) and weight.dtype != "float32":
            raise ConversionError(
                f"The weights must be float32. Received: {weight.path!r} in {weight.dtype}. "
                "(Make the model under the policy 'float32' and `set_weights` it.)"
            )
    changed = []
    try:
        for layer in model._flatten_layers():
            if layer.dtype_policy.compute_dtype != "float32":
                changed.append((layer, layer.dtype_policy))
                layer.dtype_policy = keras.DTypePolicy("float32")
        yield
    finally:
        for layer, policy in changed:
            layer.dtype_policy = policy
