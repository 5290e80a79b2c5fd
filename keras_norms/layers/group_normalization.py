"""GroupNormalization."""

from typing import Any

import keras

from keras_norms.base import AffineNormalization, Identifier, check_groups
from keras_norms.geometry import Geometry, Shape, geometry


@keras.saving.register_keras_serializable("keras_norms")
class GroupNormalization(AffineNormalization):
    """Normalizes each group of channels of each sample.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    `mean` and `variance` (biased) are taken over space and the `channels / groups` neighbouring
    channels of a group. `gamma` and `beta` have an element per channel.

    Args:
        groups: int, divides the number of channels. -1, or the number of channels, makes it
            `InstanceNormalization`.
        axis: int, the axis of the channels; not 0, which holds the samples.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        center: bool, whether `beta` is added.
        scale: bool, whether `gamma` multiplies.
        beta_initializer, gamma_initializer: initializers of the weights.
        beta_regularizer, gamma_regularizer: optional regularizers of the weights.
        beta_constraint, gamma_constraint: optional constraints of the weights.
        group_size: int, the channels of a group, instead of `groups`, which then means nothing.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64.
        mask: optional, bool, the positions that the statistics are taken over: the sizes of the
            input's axes without the channel axis, from the left (trailing ones may be missing).
            Every position is normalized; a sample that is masked as a whole counts as a whole.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        ValueError: `groups` is no positive int and not -1, `groups` or `group_size` does not divide
            the number of channels; `axis` is 0, out of bounds or of unknown size; `mask` does not
            fit the input.

    Differences from Keras:
        - The configuration holds `groups` as it was given, also after `build`.
        - The mean is subtracted before scaling and long sums are taken in parts, so the result
          holds for data far from zero and for large images.

    Source: Wu and He 2018, arXiv:1803.08494, equation 7.
    """

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Identifier = "zeros",
        gamma_initializer: Identifier = "ones",
        beta_regularizer: Identifier | None = None,
        gamma_regularizer: Identifier | None = None,
        beta_constraint: Identifier | None = None,
        gamma_constraint: Identifier | None = None,
        group_size: int | None = None,
        **kwargs: Any,
    ):
        check_groups(groups)
        if group_size is not None and (not isinstance(group_size, int) or group_size < 1):
            raise ValueError(
                f"`group_size` must be a positive int or None. Received: group_size={group_size!r}."
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
        self.groups = groups
        self.group_size = group_size

    def geometry_of(self, shape: Shape) -> Geometry:
        view = geometry(shape, self.axis, apart="samples", groups=-1)
        groups = self.groups
        if self.group_size is not None:
            groups, rest = divmod(view.groups, self.group_size)
            if rest:
                raise ValueError(
                    "`group_size` must divide the number of channels. Received: group_size="
                    f"{self.group_size}, channels={view.groups}, shape={tuple(shape)}."
                )
        return geometry(shape, self.axis, apart="samples", groups=groups)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "groups": self.groups}
        return {**config, **self.changed(group_size=None)}
