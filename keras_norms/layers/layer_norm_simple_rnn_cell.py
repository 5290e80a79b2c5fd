"""LayerNormSimpleRNNCell."""

from typing import Any

import keras
from keras import ops

from keras_norms.base import Identifier
from keras_norms.layers.layer_normalization import LayerNormalization
from keras_norms.recurrent import NormalizedCell


@keras.saving.register_keras_serializable("keras_norms")
class LayerNormSimpleRNNCell(NormalizedCell, keras.layers.SimpleRNNCell):
    """Simple recurrent cell that normalizes its sum.

        y = h = tanh(norm(x W + h U) + b)

    The norm, `layernorm`, is a layer normalization over the `units`, with a gamma and without a
    beta, which would do what the bias does; `norm` puts another norm in its place. The weights are
    in the order kernel, recurrent_kernel, bias, gamma: the order of tensorflow-addons, so
    `cell.set_weights(theirs.get_weights())` takes its weights over.

    Args:
        units: int >= 1, the width of the output.
        layernorm_epsilon: float >= 0, added to the variance of the layer normalization.
        gamma_initializer, gamma_regularizer, gamma_constraint: of its gamma.
        norm: None for layer normalization; a layer of which a fresh one is taken, with the cell's
            dtype; or such a layer's configuration. See `LayerNormLSTMCell`, also for batch
            statistics per time step.
        time_steps: int >= 1, needed with a norm of moving statistics, and only there.
        *arguments, **kwargs: those of `keras.layers.SimpleRNNCell`: `activation`, `use_bias`, the
            initializers, regularizers and constraints of kernel, recurrent kernel and bias,
            `dropout`, `recurrent_dropout`, `seed`; and those of `keras.Layer` (`name`, ...).

    Call arguments:
        inputs: `(batch, features)`, the input of a step.
        states: list of h, `(batch, units)`, and with moving statistics the step's count,
            `(batch, 3)`.
        training: bool, whether there is dropout and whether moving statistics move.

    Returns: h, `(batch, units)`, and the list of the new states, in the cell's compute dtype.

    Raises:
        TypeError: `norm` is no layer and no configuration.
        ValueError: `units` is not positive; `norm` is given together with `layernorm_epsilon`,
            `gamma_initializer`, `gamma_regularizer` or `gamma_constraint`; `norm` has moving
            statistics and is no `BatchNormalization` (without `renorm` and `synchronized`) and no
            `BatchGroupNormalization`, or `time_steps` is missing; `time_steps` is given without
            need; JAX is to train with moving statistics.

    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450, section 3.1 and equation 4.
    """

    widths = {"layernorm": 1}  # noqa: RUF012
    own = {  # noqa: RUF012
        "layernorm_epsilon": "epsilon",
        "gamma_initializer": "gamma_initializer",
        "gamma_regularizer": "gamma_regularizer",
        "gamma_constraint": "gamma_constraint",
    }
    default_epsilon = 1e-5

    def __init__(
        self,
        units: int,
        *arguments: Any,
        layernorm_epsilon: float = 1e-5,
        gamma_initializer: Identifier = "ones",
        gamma_regularizer: Identifier | None = None,
        gamma_constraint: Identifier | None = None,
        norm: keras.Layer | dict[str, Any] | None = None,
        time_steps: int | None = None,
        **kwargs: Any,
    ):
        own = {
            "layernorm_epsilon": layernorm_epsilon,
            "gamma_initializer": gamma_initializer,
            "gamma_regularizer": gamma_regularizer,
            "gamma_constraint": gamma_constraint,
        }
        super().__init__(units, *arguments, norm=norm, time_steps=time_steps, own=own, **kwargs)

    def layer_normalization(self, **arguments: Any) -> keras.Layer:
        return LayerNormalization(center=False, **arguments)

    def call(self, inputs: Any, states: Any, training: bool | None = False) -> tuple[Any, Any]:
        (h,), steps = self.entered(states)
        x, h = self.dropped(inputs, h, training)
        total = ops.matmul(x, self.kernel) + ops.matmul(h, self.recurrent_kernel)
        h = self.normalized("layernorm", total, steps, training)
        if self.use_bias:
            h = h + self.bias
        if self.activation is not None:
            h = self.activation(h)
        return h, self.left([h], steps, states)
