"""The layers."""

from keras_norms.layers.adaptive_normalization import AdaptiveNormalization
from keras_norms.layers.batch_group_normalization import BatchGroupNormalization
from keras_norms.layers.batch_normalization import BatchNormalization
from keras_norms.layers.batch_renormalization import BatchRenormalization
from keras_norms.layers.dynamic_tanh import DynamicTanh
from keras_norms.layers.evo_normalization_b0 import EvoNormalizationB0
from keras_norms.layers.evo_normalization_s0 import EvoNormalizationS0
from keras_norms.layers.filter_response_normalization import FilterResponseNormalization
from keras_norms.layers.global_response_normalization import GlobalResponseNormalization
from keras_norms.layers.group_normalization import GroupNormalization
from keras_norms.layers.instance_normalization import InstanceNormalization
from keras_norms.layers.layer_norm_gru_cell import LayerNormGRUCell
from keras_norms.layers.layer_norm_lstm_cell import LayerNormLSTMCell
from keras_norms.layers.layer_norm_simple_rnn_cell import LayerNormSimpleRNNCell
from keras_norms.layers.layer_normalization import LayerNormalization
from keras_norms.layers.layer_scale import LayerScale
from keras_norms.layers.local_response_normalization import LocalResponseNormalization
from keras_norms.layers.mean_only_batch_normalization import MeanOnlyBatchNormalization
from keras_norms.layers.mixed_normalization import MixedNormalization
from keras_norms.layers.multi_scale_normalization import MultiScaleNormalization
from keras_norms.layers.pixel_normalization import PixelNormalization
from keras_norms.layers.positional_normalization import PositionalNormalization
from keras_norms.layers.power_normalization import PowerNormalization
from keras_norms.layers.residual_normalization import ResidualNormalization
from keras_norms.layers.rms_normalization import RMSNormalization
from keras_norms.layers.scale_normalization import ScaleNormalization
from keras_norms.layers.sparse_switchable_normalization import SparseSwitchableNormalization
from keras_norms.layers.switchable_normalization import SwitchableNormalization
from keras_norms.layers.thresholded_linear_unit import ThresholdedLinearUnit
from keras_norms.layers.unit_normalization import UnitNormalization
from keras_norms.wrappers import (
    SpectralNormalization,
    WeightNormalization,
    WeightStandardization,
)

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
]
