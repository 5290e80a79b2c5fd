"""RMSNormalization."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_norms.base import Normalization, as_floats, number, spread
from keras_norms.geometry import Geometry, Shape, geometry, parameter_shape
from keras_norms.normalize import normalize


@keras.saving.register_keras_serializable("keras_norms")
class RMSNormalization(Normalization):
    """Divides the channels of each position by their root mean square.

        y = x / sqrt(mean(x**2) + epsilon) * (scale + offset)

    The mean is taken over `axis`; every other axis is kept apart. `scale` has an element for each
    element along `axis` and starts at `1 - offset`.

    Args:
        axis: int, or a list or tuple of ints: the axes to normalize over. `scale` is shaped as
            those axes, sorted as they are given.
        epsilon: float >= 0, added to the mean square, so in units of x squared.
        use_scale: bool, whether there is the weight `scale` (in Keras always).
        offset: float, added to `scale`: 1 makes it a weight around zero, which weight decay leaves
            at a factor of 1, as in Gemma.
        cast_mode: "gemma", the product with the weight is taken in float32 and rounded once, or
            "llama", the normalized input is rounded to the compute dtype first, and the product is
            taken in that; matters for half types only.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).

    Call arguments:
        x: any rank, `axis` of known sizes; float16, bfloat16, float32 or float64.
        mask: optional, bool, the elements that the mean is taken over: the sizes of the input's
            axes, from the left (trailing ones may be missing). Every element is normalized; what is
            normalized together and masked as a whole counts as a whole.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        TypeError: `axis` is no int and no list or tuple of ints, `offset` is no number.
        ValueError: `axis` is out of bounds, repeats or is of unknown size; `cast_mode` is another;
            `mask` does not fit the input.

    Differences from Keras:
        - `scale` lies along `axis` whichever it is; Keras broadcasts it along the last axes.
        - Under a mixed policy `scale` stays float32.
        - A mask counts and is passed on; Keras drops it with a warning.
        - The configuration holds `axis` as it was given, also after `build`.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4 (there without epsilon).
    """

    subtract_mean = False

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-6,
        use_scale: bool = True,
        offset: float = 0.0,
        cast_mode: str = "gemma",
        **kwargs: Any,
    ):
        super().__init__(axis, epsilon, **kwargs)
        if cast_mode not in ("gemma", "llama"):
            raise ValueError(
                f'`cast_mode` must be "gemma" or "llama". Received: cast_mode={cast_mode!r}.'
            )
        self.use_scale = use_scale
        self.offset = number("offset", offset)
        self.cast_mode = cast_mode
        self.scale: Any = None

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="positions")

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        if self.use_scale:
            initial = keras.initializers.Constant(1 - self.offset)
            shape = parameter_shape(input_shape, self.axis)
            self.scale = self.add_parameter("scale", shape, initial)

    def call(self, x: Any, mask: Any = None) -> Any:
        gamma = self.scale
        if gamma is not None and self.offset:
            gamma = gamma + self.offset
        if self.cast_mode == "gemma" or gamma is None:
            return self.normalized(x, gamma, mask=mask).y
        x = as_floats(x, self.compute_dtype)
        view = self.geometry_of(x.shape)
        y = normalize(x, view, epsilon=self.epsilon, subtract_mean=False, mask=mask).y
        gamma = spread(ops.cast(gamma, self.compute_dtype), x.shape, self.axis)
        return self.finished(ops.cast(y, self.compute_dtype) * gamma)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.changed(use_scale=True, offset=0.0, cast_mode="gemma"),
        }
