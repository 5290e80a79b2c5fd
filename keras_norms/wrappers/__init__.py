"""Wrappers: they normalize a layer's kernel, not its input. One file for each."""

from keras_norms.wrappers.spectral_normalization import SpectralNormalization
from keras_norms.wrappers.weight_normalization import WeightNormalization
from keras_norms.wrappers.weight_standardization import WeightStandardization

__all__ = ["SpectralNormalization", "WeightNormalization", "WeightStandardization"]
