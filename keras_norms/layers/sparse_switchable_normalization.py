"""SparseSwitchableNormalization."""

from typing import Any

import keras

from keras_norms.geometry import Shape
from keras_norms.layers.switchable_normalization import SwitchableNormalization
from keras_norms.simplex import largest_radius, sparsestmax


@keras.saving.register_keras_serializable("keras_norms")
class SparseSwitchableNormalization(SwitchableNormalization):
    """Switchable normalization whose mixture becomes a choice of one statistic.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta
        mean = sum_k sparsestmax(mean_weights; radius)[k] * mean_k
        variance = sum_k sparsestmax(variance_weights; radius)[k] * variance_k

    `sparsestmax(z; r)` is the point next to z of those that are 0 or more, sum to 1 and are r or
    more from the uniform (1 / K, ..., 1 / K), for K statistics. The weight `radius`, which is not
    trained, starts at 0 (sparsemax: weights may be 0). At `largest_radius` one weight is 1, no
    gradient reaches the logits, and the choice stays. `keras_norms.callbacks.SparsityRadius` raises
    it in `fit`. Equal logits stay uniform at any radius: they have no side to go to.

    Args:
        axis, momentum, epsilon, *affine, statistics, unbiased_instance_variance, **kwargs: as in
            `SwitchableNormalization`.

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64.
        training: bool, whether "batch" is this batch and moves the moving statistics.
        mask: optional, bool, as in `SwitchableNormalization`.

    Returns: same shape, in the layer's compute dtype.

    Raises:
        ValueError: as `SwitchableNormalization`.

    Differences from the authors' code: on an edge of the simplex the distance is to the center of
    the simplex, as in the paper (there at first to the edge's center, so edges are left early).

    Source: Shao et al. 2019, arXiv:1903.03793, equations 4 to 6 and algorithm 1.
    """

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.radius = self.add_moving("radius", (), "zeros")

    @property
    def largest_radius(self) -> float:
        """The radius from which on one weight is 1: sqrt((K - 1) / K)."""
        return largest_radius(len(self.statistics))

    def weights_of(self, logits: Any) -> Any:
        return sparsestmax(logits, self.radius)
