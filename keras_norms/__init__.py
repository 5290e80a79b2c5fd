"""Normalization layers for Keras, computed by a compiled op or, portably, by `keras.ops`."""

import importlib

from keras_norms import callbacks, constraints, layers, ops, wrappers
from keras_norms.export import export
from keras_norms.layers import (
    AdaptiveNormalization,
    BatchGroupNormalization,
    BatchNormalization,
    BatchRenormalization,
    DynamicTanh,
    EvoNormalizationB0,
    EvoNormalizationS0,
    FilterResponseNormalization,
    GlobalResponseNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LayerNormSimpleRNNCell,
    LayerScale,
    LocalResponseNormalization,
    MeanOnlyBatchNormalization,
    MixedNormalization,
    MultiScaleNormalization,
    PixelNormalization,
    PositionalNormalization,
    PowerNormalization,
    ResidualNormalization,
    RMSNormalization,
    ScaleNormalization,
    SparseSwitchableNormalization,
    SpectralNormalization,
    SwitchableNormalization,
    ThresholdedLinearUnit,
    UnitNormalization,
    WeightNormalization,
    WeightStandardization,
)
from keras_norms.library import VERSION as __version__
from keras_norms.normalize import get_kernel, kernel_info, portable, set_kernel
from keras_norms.recompute import recompute_statistics

__all__ = [
    "AdaptiveNormalization",
    "BatchGroupNormalization",
    "BatchNormalization",
    "BatchRenormalization",
    "DynamicTanh",
    "EvoNormalizationB0",
    "EvoNormalizationS0",
    "FilterResponseNormalization",
    "GlobalResponseNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LayerNormSimpleRNNCell",
    "LayerNormalization",
    "LayerScale",
    "LocalResponseNormalization",
    "MeanOnlyBatchNormalization",
    "MixedNormalization",
    "MultiScaleNormalization",
    "PixelNormalization",
    "PositionalNormalization",
    "PowerNormalization",
    "RMSNormalization",
    "ResidualNormalization",
    "ScaleNormalization",
    "SparseSwitchableNormalization",
    "SpectralNormalization",
    "SwitchableNormalization",
    "ThresholdedLinearUnit",
    "UnitNormalization",
    "WeightNormalization",
    "WeightStandardization",
    "__version__",
    "callbacks",
    "constraints",
    "export",
    "get_kernel",
    "kernel_info",
    "layers",
    "ops",
    "portable",
    "recompute_statistics",
    "set_kernel",
    "tflite",
    "wrappers",
]


def __getattr__(name: str):
    """Imports `keras_norms.tflite` when it is first asked for."""
    if name == "tflite":
        return importlib.import_module("keras_norms.tflite")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
