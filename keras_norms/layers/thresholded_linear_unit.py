"""ThresholdedLinearUnit."""

import operator
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_norms import sums
from keras_norms.base import ChannelLayer, Identifier, as_floats, spread, wide
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.normalize import exact_gradients


@keras.saving.register_keras_serializable("keras_norms")
class ThresholdedLinearUnit(ChannelLayer):
    """Cuts the input off below a learned threshold.

        y = max(x, tau)
        with `affine`:   y = max(x, alpha * x + tau)

    It is the activation of `FilterResponseNormalization`, whose result has a mean other than zero.
    Where both are equal, the gradient goes to x.

    Args:
        axis: int, the axis of the channels.
        tau_shared_axes: what `tau` (and `alpha`) is shared over. None: everything but the
            channels, so it has an element per channel. A list of ints: these axes, as
            `shared_axes` of `keras.layers.PReLU`; `[]`: only the samples, so an element for each
            position and channel, as in TensorFlow Addons.
        tau_initializer: initializer of `tau`.
        tau_regularizer, tau_constraint: optional.
        affine: bool, whether there is `alpha`.
        alpha_initializer: initializer of `alpha`.
        alpha_regularizer, alpha_constraint: optional.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more; the axes
            that `tau` has must be of known size; float16, bfloat16, float32 or float64.

    Returns: same shape, in the layer's compute dtype. Compared in float32 or wider.

    Raises:
        TypeError: `axis` is no int, or `tau_shared_axes` no list of ints.
        ValueError: `axis` is out of bounds, or of unknown size as another axis that `tau` has;
            `tau_shared_axes` holds 0 or an axis out of bounds.

    Differences from TensorFlow Addons' TLU: `tau` has an element per channel, as in the paper and
    in timm; with `tau_shared_axes=[]` it is theirs.

    Source: Singh and Krishnan 2020, arXiv:1911.09737, equation 4.
    """

    def __init__(
        self,
        axis: int = -1,
        tau_shared_axes: Sequence[int] | None = None,
        tau_initializer: Identifier = "zeros",
        tau_regularizer: Identifier | None = None,
        tau_constraint: Identifier | None = None,
        affine: bool = False,
        alpha_initializer: Identifier = "zeros",
        alpha_regularizer: Identifier | None = None,
        alpha_constraint: Identifier | None = None,
        **kwargs: Any,
    ):
        super().__init__(axis, **kwargs)
        if tau_shared_axes is not None:
            try:
                tau_shared_axes = [operator.index(a) for a in tau_shared_axes]
            except TypeError:
                raise TypeError(
                    "`tau_shared_axes` must be a list of ints or None. "
                    f"Received: tau_shared_axes={tau_shared_axes!r}."
                ) from None
        self.tau_shared_axes = tau_shared_axes
        self.affine = affine
        self.declare(
            "tau",
            initializer=tau_initializer,
            regularizer=tau_regularizer,
            constraint=tau_constraint,
        )
        self.declare(
            "alpha",
            initializer=alpha_initializer,
            regularizer=alpha_regularizer,
            constraint=alpha_constraint,
        )
        self.tau: Any = None
        self.alpha: Any = None

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="samples", groups=-1)

    def build(self, input_shape: Shape) -> None:
        self.geometry_of(input_shape)  # for its errors, before there are weights
        channels = self.axis % len(input_shape)
        axes = [channels] if self.tau_shared_axes is None else self._own_axes(input_shape)
        self.input_spec = keras.InputSpec(
            ndim=len(input_shape), axes={a: input_shape[a] for a in axes}
        )
        if self.tau_shared_axes is None:
            shape = (input_shape[channels],)
        else:
            shape = tuple(input_shape[a] if a in axes else 1 for a in range(1, len(input_shape)))
        for name in ("tau", "alpha") if self.affine else ("tau",):
            setattr(self, name, self.add_declared(name, shape))

    def _own_axes(self, shape: Shape) -> list[int]:
        """The axes along which `tau` has elements of its own."""
        given = f"tau_shared_axes={self.tau_shared_axes}, shape={tuple(shape)}"
        rank = len(shape)
        shared = {a % rank for a in self.tau_shared_axes if -rank <= a < rank}
        if 0 in shared or len(shared) < len(self.tau_shared_axes):
            raise ValueError(
                "`tau_shared_axes` must name axes of the input other than the samples' (0), none "
                f"twice. Received: {given}."
            )
        own = [a for a in range(1, rank) if a not in shared]
        if None in [shape[a] for a in own]:
            raise ValueError(
                f"The axes that `tau` is not shared over must be of known size. Received: {given}."
            )
        return own

    def call(self, inputs: Any) -> Any:
        x = ops.copy(wide(as_floats(inputs, self.compute_dtype)))  # as in `moments.centre`
        line = self.line(x)
        above = ops.logical_or(x >= line, ops.isnan(x))  # max that keeps a NaN of x and of tau
        return self.finished(ops.where(above, x, line))

    def line(self, x: Any) -> Any:
        """`alpha * x + tau`, below which x is cut off."""
        with exact_gradients():
            if not self.affine:
                return sums.add(ops.zeros_like(x), self._along(self.tau, x))
            return sums.add(sums.multiply(x, self._along(self.alpha, x)), self._along(self.tau, x))

    def _along(self, parameter: Any, x: Any) -> Any:
        parameter = ops.cast(parameter, x.dtype)
        if self.tau_shared_axes is None:
            return spread(parameter, x.shape, self.axis)
        return ops.expand_dims(parameter, 0)

    def get_config(self) -> dict[str, Any]:
        shared = self.tau_shared_axes
        config = {
            **super().get_config(),
            "tau_shared_axes": None if shared is None else list(shared),
            "affine": self.affine,
        }
        return config
