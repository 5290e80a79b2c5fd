"""Normalization layers for Keras, computed by a compiled op or, portably, by `keras.ops`."""

import importlib

from keras_norms import layers, ops
from keras_norms.export import export
from keras_norms.layers import (
    BatchNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    RMSNormalization,
)
from keras_norms.library import VERSION as __version__
from keras_norms.normalize import get_kernel, kernel_info, portable, set_kernel

__all__ = [
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "__version__",
    "export",
    "get_kernel",
    "kernel_info",
    "layers",
    "ops",
    "portable",
    "set_kernel",
    "tflite",
]


def __getattr__(name: str):
    """Imports `keras_norms.tflite` when it is first asked for."""
    if name == "tflite":
        return importlib.import_module("keras_norms.tflite")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
