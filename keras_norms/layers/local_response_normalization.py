"""LocalResponseNormalization."""

from typing import Any

import keras
from keras import ops

from keras_norms import sums
from keras_norms.base import ChannelLayer, as_floats, number, wide
from keras_norms.geometry import Shape, geometry
from keras_norms.windows import around


@keras.saving.register_keras_serializable("keras_norms")
class LocalResponseNormalization(ChannelLayer):
    """Divides each element by the size of its neighbours in the channels.

        y = x / (bias + alpha * sum(x**2)) ** beta

    The sum is taken, at each position, over the `2 * depth_radius + 1` channels around, as far as
    there are so many. There are no weights.

    Args:
        axis: int, the axis of the channels.
        depth_radius: int >= 0, how many channels on either side.
        bias: float >= 0; with 0, the result of a window of zeros is NaN.
        alpha: float >= 0.
        beta: float >= 0.
        convention: "tensorflow", as in `tf.nn.local_response_normalization`, or "torch", where
            `alpha` is divided by `2 * depth_radius + 1`. The defaults are TensorFlow's;
            `torch.nn.LocalResponseNorm(size)`, for odd sizes, is `depth_radius=(size - 1) // 2,
            bias=1.0, alpha=1e-4, beta=0.75, convention="torch"`.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).

    Call arguments:
        inputs: any rank, only the number of channels need be known; float16, bfloat16, float32 or
            float64.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        TypeError: `axis` or `depth_radius` is no int, `bias`, `alpha` or `beta` no number.
        ValueError: `axis` is out of bounds or of unknown size, another argument is below 0, or
            `convention` is another.

    Source: Krizhevsky, Sutskever and Hinton 2012, NIPS, section 3.3 (with bias 2, alpha 1e-4, beta
    0.75 and depth radius 2). It predates arXiv and is not on it.
    """

    def __init__(
        self,
        axis: int = -1,
        depth_radius: int = 5,
        bias: float = 1.0,
        alpha: float = 1.0,
        beta: float = 0.5,
        convention: str = "tensorflow",
        **kwargs: Any,
    ):
        super().__init__(axis, **kwargs)
        if isinstance(depth_radius, bool) or not isinstance(depth_radius, int):
            raise TypeError(
                f"`depth_radius` must be an int. Received: depth_radius={depth_radius!r}."
            )
        if convention not in ("tensorflow", "torch"):
            raise ValueError(
                '`convention` must be "tensorflow" or "torch". '
                f"Received: convention={convention!r}."
            )
        self.depth_radius = number("depth_radius", depth_radius, least=0)
        self.bias = number("bias", bias, least=0)
        self.alpha = number("alpha", alpha, least=0)
        self.beta = number("beta", beta, least=0)
        self.convention = convention

    def build(self, input_shape: Shape) -> None:
        geometry(input_shape, self.axis, apart="nothing")  # for its errors

    def call(self, inputs: Any) -> Any:
        x = wide(as_floats(inputs, self.compute_dtype))
        size = self.bias + self.alpha_of_each * self.summed(x * x)
        return self.finished(x * ops.power(size, -self.beta))

    @property
    def alpha_of_each(self) -> float:
        """What each square in the sum is multiplied by."""
        return self.alpha / (2 * self.depth_radius + 1 if self.convention == "torch" else 1)

    def summed(self, x: Any) -> Any:
        """Sums over the window; so is its gradient, as a window looks the same from both ends."""

        @sums.with_gradient
        def total(x):
            return window_sum(x, self.axis, self.depth_radius), total

        return total(x)

    def get_config(self) -> dict[str, Any]:
        names = ("depth_radius", "bias", "alpha", "beta", "convention")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def window_sum(x: Any, axis: int, radius: int) -> Any:
    """Sums over `2 * radius + 1` neighbours along an axis, zeros beyond its ends.

    Sums of all before, whose differences are the windows', would lose the small beside the large.
    """
    axis %= len(x.shape)
    radius = min(radius, max(x.shape[axis] - 1, 0))
    (total,) = around([x], axis, radius, lambda before, after: [before[0] + after[0]])
    return total
