"""LayerNormalization."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_norms.base import AffineNormalization, Identifier
from keras_norms.geometry import Geometry, Shape, geometry


@keras.saving.register_keras_serializable("keras_norms")
class LayerNormalization(AffineNormalization):
    """Normalizes the channels of each position of each sample.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    `mean` and `variance` (biased) are taken over `axis`; every other axis is kept apart. `gamma`
    and `beta` have an element for each element along `axis`.

    Args:
        axis: int, or a list or tuple of ints: the axes to normalize over. `gamma` and `beta` are
            shaped as those axes, sorted as they are given: `[1, -1]` makes them
            `(shape[-1], shape[1])`.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        center: bool, whether `beta` is added.
        scale: bool, whether `gamma` multiplies.
        beta_initializer, gamma_initializer: initializers of the weights.
        beta_regularizer, gamma_regularizer: optional regularizers of the weights.
        beta_constraint, gamma_constraint: optional constraints of the weights.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).
            `rms_scaling`, which older configurations hold, is accepted when False.

    Call arguments:
        inputs: any rank, `axis` of known sizes; float16, bfloat16, float32 or float64.
        mask: optional, bool, the elements that the statistics are taken over: the sizes of the
            input's axes, from the left (trailing ones may be missing). Every element is normalized;
            what is normalized together and masked as a whole counts as a whole. So a mask of whole
            positions, such as an `Embedding` gives, changes nothing when `axis` is -1.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        TypeError: `axis` is no int and no list or tuple of ints.
        ValueError: `axis` is out of bounds, repeats or is of unknown size; `rms_scaling=True`;
            `mask` does not fit the input.

    Differences from Keras:
        - With several axes of mixed sign (`[1, -1]`), element `[i, j]` of `gamma` belongs to the
          elements the shape says, and is not reshaped to another order.
        - The configuration holds `axis` as it was given, also after `build`.
        - The mean is subtracted before scaling, so the result holds for data far from zero.
        - `rms_scaling=True` is refused.

    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450, equation 4.
    """

    any_rank = True

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Identifier = "zeros",
        gamma_initializer: Identifier = "ones",
        beta_regularizer: Identifier | None = None,
        gamma_regularizer: Identifier | None = None,
        beta_constraint: Identifier | None = None,
        gamma_constraint: Identifier | None = None,
        **kwargs: Any,
    ):
        if kwargs.pop("rms_scaling", False):
            raise ValueError(
                "`rms_scaling` must be False: it divides by the standard deviation and not by the "
                "root mean square. Use `keras_norms.RMSNormalization`. Received: rms_scaling=True."
            )
        if not isinstance(axis, int | list | tuple):
            raise TypeError(
                f"`axis` must be an int or a list or tuple of ints. Received: axis={axis!r}."
            )
        super().__init__(
            axis,
            epsilon,
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            **kwargs,
        )

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="positions")
