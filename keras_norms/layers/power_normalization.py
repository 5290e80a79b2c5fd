"""PowerNormalization."""

from typing import Any

import keras
from keras import ops

from keras_norms.base import Identifier, as_floats, number
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.moments import element_count
from keras_norms.moving import MovingNormalization, refuse
from keras_norms.normalize import moments, scale_shift


@keras.saving.register_keras_serializable("keras_norms")
class PowerNormalization(MovingNormalization):
    """Scales each channel by a moving average of its quadratic mean.

        y = z * gamma + beta
        z = x / sqrt(square_mean + epsilon)

    `square_mean` is the mean of x^2 over samples and space: in the first `warmup_steps` training
    steps the batch's (PN-V in the paper), then, and at inference, `moving_square_mean`, in training
    as it was before the step. The moving average is a constant to the forward pass; the gradient
    instead is approximated by a second one, `moving_gradient` (the paper's nu):

        dx = (g - nu * z) / sqrt(square_mean + epsilon)             g = dy * gamma
        nu = nu * (1 - (1 - backward_momentum) * mean(z^2)) + (1 - backward_momentum) * mean(g * z)

    with nu as it was before the step; during warm-up the exact gradient, with mean(g * z) in its
    place. The backward pass of a training step moves nu: taken twice, it moves twice; it needs the
    gradient of x; gradients of second order are not defined. `gamma`, `beta` and the moving
    averages have an element per channel, `step` counts the training steps. Of several replicas
    each keeps its own averages, as `BatchNormalization`. JAX cannot change state in a backward
    pass: there only `warmup_steps=None` trains.

    Args:
        axis: int, the axis of the channels.
        momentum: float in [0, 1], the weight of the past in `moving_square_mean`; None: all batches
            weigh the same.
        backward_momentum: float in [0, 1], the weight of the past in `moving_gradient`.
        epsilon: float >= 0, added to the quadratic mean, so in units of x squared.
        warmup_steps: int >= 0, how many training steps go by the batch; None: all.
        *affine: `center`, `scale`, `beta_initializer`, `gamma_initializer`, `beta_regularizer`,
            `gamma_regularizer`, `beta_constraint`, `gamma_constraint`, as in Keras' norms.
        moving_square_mean_initializer: initializer of the weight.
        **kwargs: `freeze_statistics=True` trains gamma and beta alone; `activation`, applied to the
            result; those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; any rank, only the number
            of channels need be known; float16, bfloat16, float32 or float64.
        training: bool, whether this is a training step.
        mask: optional, bool, the positions that the statistics are taken over: the sizes of the
            input's axes without the channel axis, from the left (trailing ones may be missing).
            Every position is normalized.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider. A batch without
    elements, or masked as a whole, is no step. In TensorFlow a training call inside a branch of
    `tf.cond` has no gradient (an error): the backward pass could not reach `moving_gradient`.

    Raises:
        ValueError: `momentum` or `backward_momentum` is not in [0, 1], `warmup_steps` is below 0;
            `axis` is out of bounds or of unknown size; `mask` does not fit the input.
        TypeError: `momentum`, `backward_momentum` or `warmup_steps` is no number.
        NotImplementedError: training on JAX, unless `warmup_steps=None`.

    Differences from the authors' code: nu is algorithm 2's (there g and z, not their means, are
    weighted, and warm-up has no exact gradient); the average has no other rule during warm-up, and
    there is no group scaling in front.

    Source: Shen et al. 2020, arXiv:2003.07845, algorithm 2.
    """

    pooled = False  # a quadratic mean of all elements is the mean of the batches'

    def __init__(
        self,
        axis: int = -1,
        momentum: float | None = 0.9,
        backward_momentum: float = 0.9,
        epsilon: float = 1e-5,
        warmup_steps: int | None = 10000,
        *affine: Any,
        moving_square_mean_initializer: Identifier = "ones",
        **kwargs: Any,
    ):
        unused = ("moving_mean_initializer", "moving_variance_initializer")
        refuse(kwargs, *unused, "unbiased_moving_variance")
        super().__init__(axis, epsilon, *affine, momentum=momentum, **kwargs)
        self.backward_momentum = number("backward_momentum", backward_momentum, least=0, most=1)
        if warmup_steps is not None:
            number("warmup_steps", warmup_steps, least=0)
        self.warmup_steps = warmup_steps
        self.declare("moving_square_mean", initializer=moving_square_mean_initializer)

    @property
    def moving(self) -> tuple[str, ...]:
        return ("moving_square_mean",)

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="nothing", groups=-1)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        shape = self.moving_shape(input_shape)
        self.moving_gradient = self.add_moving("moving_gradient", shape, "zeros")
        self.step = self.add_moving("step", (), "zeros")

    def of_channels(self) -> tuple[Any, Any]:
        return None, self.moving_square_mean

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        x = as_floats(inputs, self.compute_dtype)
        if not self.goes_by_batch(training):
            return self.by_moving_statistics(x, mask)
        view = self.geometry_of(x.shape)
        count = element_count(x, view, mask)
        _, _, square_mean = moments(x, view, subtract_mean=False, mask=mask)
        by_batch = not training or self.warmup_steps is None  # the former while recording
        if by_batch:
            scale = ops.rsqrt(square_mean + self.epsilon)
        else:
            scale = self._scale(square_mean, count, element_count(x, view))
            valid = ops.cast(ops.convert_to_tensor(count) > 0, self.step.dtype)
            self.step.assign(self.step + valid)
        self.update(count, moving_square_mean=ops.stop_gradient(square_mean))
        scale = scale if self.gamma is None else scale * ops.cast(self.gamma, scale.dtype)
        y = scale_shift(x, view, scale=scale, shift=self.beta, activation=self.activation)
        return ops.cast(y, self.compute_dtype)

    def _scale(self, square_mean: Any, count: Any, whole: Any) -> Any:
        """What x is multiplied by, and the gradient of PN by way of that of the square mean.

        dz reaches x through z = x * scale, and through `square_mean` as 2 x / count times what is
        returned below: -nu * z * scale. The gradient of scale is sum(g * x).
        """
        if keras.backend.backend() == "jax":
            raise NotImplementedError(
                "`PowerNormalization` changes `moving_gradient` in the backward pass, which JAX "
                "cannot do; `warmup_steps=None` trains by the batch's statistics throughout. "
                f"Received: warmup_steps={self.warmup_steps}."
            )
        dtype = square_mean.dtype
        warm = self.step < self.warmup_steps
        past = ops.copy(ops.cast(self.moving_square_mean, dtype))
        past = ops.where(warm, ops.stop_gradient(square_mean), past)
        valid = ops.convert_to_tensor(count) > 0
        elements = ops.cast(ops.maximum(ops.where(valid, count, whole), 1), dtype)
        rate = 1 - self.backward_momentum

        # All arguments: TensorFlow loses what a custom gradient holds of a branch of tf.cond.
        @ops.custom_gradient
        def scale_of(square_mean, past, warm, valid, elements):
            scale = ops.rsqrt(past + self.epsilon)

            def gradient(*given, upstream=None):
                upstream = given[-1] if upstream is None else upstream
                nu = ops.cast(self.moving_gradient, dtype)
                batch = upstream * scale / elements
                moved = nu * (1 - rate * square_mean * ops.square(scale)) + rate * batch
                used = ops.copy(ops.where(warm > 0, batch, nu))
                used = _assigned(self.moving_gradient, ops.where(valid > 0, moved, nu), used)
                constants = map(ops.zeros_like, (past, warm, valid, elements))
                return -0.5 * elements * ops.square(scale) * used, *constants

            return scale, gradient

        return scale_of(square_mean, past, ops.cast(warm, dtype), ops.cast(valid, dtype), elements)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("moving_mean", "moving_variance"):
            del config[f"{name}_initializer"]
        return {
            **config,
            "backward_momentum": self.backward_momentum,
            "warmup_steps": self.warmup_steps,
        }


def _assigned(weight: Any, value: Any, result: Any) -> Any:
    """Assigns to the weight and gives the result, which then depends on that.

    The backward graph of a `tf.function` that is called under a tape drops what no gradient needs.
    """
    if keras.backend.backend() != "tensorflow":
        weight.assign(value)
        return result
    import tensorflow as tf

    done = weight.value.assign(tf.cast(value, weight.dtype), read_value=False)
    with tf.control_dependencies([done]):
        return tf.identity(result)
