"""LayerNormGRUCell."""

from typing import Any

import keras
from keras import ops

from keras_norms.base import Identifier
from keras_norms.layers.layer_normalization import LayerNormalization
from keras_norms.recurrent import NormalizedCell


@keras.saving.register_keras_serializable("keras_norms")
class LayerNormGRUCell(NormalizedCell, keras.layers.GRUCell):
    """GRU cell that normalizes its sums.

        z, r = sigmoid(norm(x W_zr) + norm(h U_zr) + b_zr)
        g = tanh(norm(x W_g) + b_g + r * (norm(h U_g) + b'_g))
        y = h = z * h + (1 - z) * g

    The four norms, `kernel_norm` and `recurrent_norm` over `2 * units`, `candidate_kernel_norm` and
    `candidate_recurrent_norm` over `units`, are layer normalizations with a gamma and a beta of
    their own; `norm` puts another norm in their place. Without them it is
    `keras.layers.GRUCell(reset_after=True)`, whose weights it has (`b_zr` is the sum of both rows
    of `bias`). The weights are in the order kernel, recurrent_kernel, bias, then gamma and beta of
    each norm, in the order above.

    Args:
        units: int >= 1, the width of the output.
        norm_gamma_initializer, norm_beta_initializer: initializers of the layer normalizations.
        norm_epsilon: float >= 0, added to their variances.
        norm: None for layer normalization; a layer of which each place gets a fresh one, with the
            cell's dtype; or such a layer's configuration. See `LayerNormLSTMCell`, also for
            batch statistics per time step.
        time_steps: int >= 1, needed with a norm of moving statistics, and only there.
        *arguments, **kwargs: those of `keras.layers.GRUCell`: `activation`,
            `recurrent_activation`, `use_bias`, the initializers, regularizers and constraints of
            kernel, recurrent kernel and bias, `dropout`, `recurrent_dropout`, `seed`; and those of
            `keras.Layer` (`name`, `dtype`, ...). `reset_after` can only be True.

    Call arguments:
        inputs: `(batch, features)`, the input of a step.
        states: list of h, `(batch, units)`, and with moving statistics the step's count,
            `(batch, 3)`.
        training: bool, whether there is dropout and whether moving statistics move.

    Returns: h, `(batch, units)`, and the list of the new states, in the cell's compute dtype.

    Raises:
        TypeError: `norm` is no layer and no configuration.
        ValueError: `reset_after=False`; `units` is not positive; `norm` is given together with
            `norm_gamma_initializer`, `norm_beta_initializer` or `norm_epsilon`; `norm` has moving
            statistics and is no `BatchNormalization` (without `renorm` and `synchronized`) and no
            `BatchGroupNormalization`, or `time_steps` is missing; `time_steps` is given without
            need; JAX is to train with moving statistics.

    Differences from Keras' GRUCell: `dropout` and `recurrent_dropout` draw one mask for all gates.

    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450, supplement (there z is the weight of g and
    1 - z that of h, which only renames it, and there are no biases beside the norms').
    """

    widths = {  # noqa: RUF012
        "kernel_norm": 2,
        "recurrent_norm": 2,
        "candidate_kernel_norm": 1,
        "candidate_recurrent_norm": 1,
    }

    def __init__(
        self,
        units: int,
        *arguments: Any,
        norm_gamma_initializer: Identifier = "ones",
        norm_beta_initializer: Identifier = "zeros",
        norm_epsilon: float = 1e-3,
        norm: keras.Layer | dict[str, Any] | None = None,
        time_steps: int | None = None,
        **kwargs: Any,
    ):
        own = {
            "norm_gamma_initializer": norm_gamma_initializer,
            "norm_beta_initializer": norm_beta_initializer,
            "norm_epsilon": norm_epsilon,
        }
        super().__init__(units, *arguments, norm=norm, time_steps=time_steps, own=own, **kwargs)
        if not self.reset_after:
            raise ValueError(
                "`reset_after` must be True: what the reset gate multiplies is a normalized "
                f"product. Received: reset_after={self.reset_after}."
            )

    def layer_normalization(self, **arguments: Any) -> keras.Layer:
        return LayerNormalization(**arguments)

    def call(self, inputs: Any, states: Any, training: bool | None = False) -> tuple[Any, Any]:
        (before,), steps = self.entered(states)
        x, h = self.dropped(inputs, before, training)

        def norm(name, z):
            return self.normalized(name, z, steps, training)

        gates = 2 * self.units
        of_x, of_h = ops.matmul(x, self.kernel), ops.matmul(h, self.recurrent_kernel)
        zr = norm("kernel_norm", of_x[:, :gates]) + norm("recurrent_norm", of_h[:, :gates])
        g = norm("candidate_kernel_norm", of_x[:, gates:])
        recurrent = norm("candidate_recurrent_norm", of_h[:, gates:])
        if self.use_bias:
            bias, recurrent_bias = ops.unstack(ops.convert_to_tensor(self.bias), axis=0)
            zr = zr + bias[:gates] + recurrent_bias[:gates]
            g = g + bias[gates:]
            recurrent = recurrent + recurrent_bias[gates:]
        z, r = ops.split(self.recurrent_activation(zr), 2, axis=-1)
        h = z * before + (1 - z) * self.activation(g + r * recurrent)
        return h, self.left([h], steps, states)
