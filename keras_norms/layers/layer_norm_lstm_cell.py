"""LayerNormLSTMCell."""

from typing import Any

import keras
from keras import ops

from keras_norms.base import Identifier
from keras_norms.layers.layer_normalization import LayerNormalization
from keras_norms.recurrent import NormalizedCell


@keras.saving.register_keras_serializable("keras_norms")
class LayerNormLSTMCell(NormalizedCell, keras.layers.LSTMCell):
    """LSTM cell that normalizes its sums and its carry.

        z = norm(x W) + norm(h U) + b                split into i, f, g, o
        c = norm(sigmoid(f) * c + sigmoid(i) * tanh(g))
        y = h = sigmoid(o) * tanh(c)

    The three norms, `kernel_norm` and `recurrent_norm` over `4 * units` and `state_norm` over
    `units`, are layer normalizations with a gamma and a beta of their own; `norm` puts another norm
    in their place. The weights are in the order kernel, recurrent_kernel, bias, gamma and beta of
    `kernel_norm`, of `recurrent_norm`, of `state_norm`: the order of tensorflow-addons, so
    `cell.set_weights(theirs.get_weights())` takes its weights over.

        keras.layers.RNN(kn.LayerNormLSTMCell(128), return_sequences=True)

    With `norm=BatchNormalization(...)` it is the batch-normalized LSTM of Cooijmans et al. 2016:
    in training each time step goes by its own batch statistics, and the moving ones, which
    inference goes by, have a row for each step, `(time_steps, channels)`; steps from `time_steps`
    on use and move the last row. gamma and beta are shared over time, and there gamma starts at
    0.1: `norm=BatchNormalization(gamma_initializer=keras.initializers.Constant(0.1))`. One more
    state, of width 3, counts the steps that the mask lets through. Inference takes each sample by
    its own count, so padding and the other samples change nothing. In training the cell does not
    see the mask: a batch is at the step of its furthest sample, and masked samples count in the
    statistics, so batches of sequences of like length suit it best. Training needs TensorFlow or
    PyTorch.

    Args:
        units: int >= 1, the width of the output.
        norm_gamma_initializer, norm_beta_initializer: initializers of the layer normalizations.
        norm_epsilon: float >= 0, added to their variances.
        norm: None for layer normalization; a layer of which each place gets a fresh one, with the
            cell's dtype (its weights, if it has any, are not taken); or such a layer's
            configuration. It acts on `(batch, channels)`, so of a norm over space alone, as
            `InstanceNormalization`, only beta is left. It is kept as a configuration.
        time_steps: int >= 1, needed with a norm of moving statistics, and only there.
        *arguments, **kwargs: those of `keras.layers.LSTMCell`: `activation`,
            `recurrent_activation`, `use_bias`, the initializers, regularizers and constraints of
            kernel, recurrent kernel and bias, `unit_forget_bias`, `dropout`, `recurrent_dropout`,
            `seed`; and those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, features)`, the input of a step.
        states: list of h and c, `(batch, units)` each, and with moving statistics the step's count,
            `(batch, 3)`.
        training: bool, whether there is dropout and whether moving statistics move.

    Returns: h, `(batch, units)`, and the list of the new states, in the cell's compute dtype.

    Raises:
        TypeError: `norm` is no layer and no configuration.
        ValueError: `units` is not positive; `norm` is given together with `norm_gamma_initializer`,
            `norm_beta_initializer` or `norm_epsilon`; `norm` has moving statistics and is no
            `BatchNormalization` (without `renorm` and `synchronized`) and no
            `BatchGroupNormalization`, or `time_steps` is missing; `time_steps` is given without
            need; JAX is to train with moving statistics.

    Differences from Keras' LSTMCell: `dropout` and `recurrent_dropout` draw one mask for all four
    gates, as tensorflow-addons.

    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450, supplement; Cooijmans et al. 2016,
    arXiv:1603.09025. In both the carry goes on as it is and only the output is made of norm(c);
    here norm(c) goes on, as in tensorflow-addons.
    """

    widths = {"kernel_norm": 4, "recurrent_norm": 4, "state_norm": 1}  # noqa: RUF012

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

    def layer_normalization(self, **arguments: Any) -> keras.Layer:
        return LayerNormalization(**arguments)

    def call(self, inputs: Any, states: Any, training: bool | None = False) -> tuple[Any, Any]:
        (h, c), steps = self.entered(states)
        x, h = self.dropped(inputs, h, training)

        def norm(name, z):
            return self.normalized(name, z, steps, training)

        z = norm("kernel_norm", ops.matmul(x, self.kernel))
        z = z + norm("recurrent_norm", ops.matmul(h, self.recurrent_kernel))
        if self.use_bias:
            z = z + self.bias
        i, f, g, o = ops.split(z, 4, axis=-1)
        c = self.recurrent_activation(f) * c + self.recurrent_activation(i) * self.activation(g)
        c = norm("state_norm", c)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, self.left([h, c], steps, states)
