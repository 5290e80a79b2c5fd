"""FilterResponseNormalization."""

from typing import Any

import keras
from keras import initializers, ops

from keras_norms.base import AffineNormalization, Identifier, as_floats
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.normalize import moments, normalize_by


@keras.saving.register_keras_serializable("keras_norms")
class FilterResponseNormalization(AffineNormalization):
    """Divides each channel of each sample by its root mean square.

        y = x / sqrt(mean(x**2) + epsilon) * gamma + beta
        with `learned_epsilon`:   epsilon + abs(learned_epsilon) in its place

    The mean is taken over space; none is subtracted. `gamma` and `beta` have an element per
    channel, the weight `learned_epsilon` is a scalar. `ThresholdedLinearUnit` is the activation
    that goes with it.

    Args:
        axis: int, the axis of the channels; not 0, which holds the samples.
        epsilon: float >= 0, added to the mean square, so in units of x squared.
        *affine: `center`, `scale`, `beta_initializer`, `gamma_initializer`, `beta_regularizer`,
            `gamma_regularizer`, `beta_constraint`, `gamma_constraint`, as in Keras' norms.
        learned_epsilon: bool, whether there is the weight of that name. It helps where space is
            small: of a single element the result is otherwise little but its sign.
        learned_epsilon_initializer: initializer of that weight; None: 1e-4, as in the paper.
        learned_epsilon_constraint: optional.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64. Without
            space (rank 2) the mean square is x squared.
        mask: optional, bool, the positions that the mean is taken over: the sizes of the input's
            axes without the channel axis, from the left (trailing ones may be missing). Every
            position is normalized; a sample that is masked as a whole counts as a whole.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        TypeError: `axis` is no int.
        ValueError: `axis` is 0, out of bounds or of unknown size; `mask` does not fit the input.

    Differences from TensorFlow Addons, whose first arguments are `epsilon, axis`:
        - `axis` is the channels', not space's.
        - Any rank and any position of the channels; height and width may be unknown.
        - `gamma` and `beta` are `(channels,)` and not `(1, 1, 1, channels)`, `learned_epsilon` is
          a scalar and not `(1,)`.

    Source: Singh and Krishnan 2020, arXiv:1911.09737, equations 1 to 3.
    """

    subtract_mean = False

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-6,
        *affine: Any,
        learned_epsilon: bool = False,
        learned_epsilon_initializer: Identifier | None = None,
        learned_epsilon_constraint: Identifier | None = None,
        **kwargs: Any,
    ):
        if isinstance(axis, list | tuple):
            raise TypeError(
                "`axis` must be an int, the channel axis: space is all other axes but the first "
                f"(in TensorFlow Addons `axis` is space). Received: axis={axis!r}."
            )
        super().__init__(axis, epsilon, *affine, **kwargs)
        self.learned_epsilon = learned_epsilon
        self.declare(
            "learned_epsilon",
            initializer=learned_epsilon_initializer,
            constraint=learned_epsilon_constraint,
        )
        self.added_epsilon: Any = None

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="samples", groups=-1)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        if self.learned_epsilon:
            initial = initializers.Constant(1e-4)
            self.added_epsilon = self.add_declared("learned_epsilon", (), initial)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        if not self.learned_epsilon:
            return super().call(inputs, mask)
        inputs = as_floats(inputs, self.compute_dtype)
        view = self.geometry_of(inputs.shape)
        found = moments(inputs, view, subtract_mean=False, mask=mask)
        added = ops.abs(ops.cast(self.added_epsilon, found.variance.dtype))
        arguments = {**self.arguments(), "epsilon": self.epsilon + added}
        return ops.cast(normalize_by(found, inputs, view, **arguments), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "learned_epsilon": self.learned_epsilon}
