"""WeightNormalization."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_norms.base import as_floats, replica_state, wide
from keras_norms.geometry import geometry
from keras_norms.kernels import (
    Kernel,
    along_bias,
    as_matrix,
    has_pre_activations,
    output_axes,
)
from keras_norms.moments import Moments, element_count
from keras_norms.normalize import moments, normalize
from keras_norms.reparametrization import Reparametrization, Values, detached, settle
from keras_norms.replicas import over_replicas

# Added to the square of a length that is at least 1, or 0.
TINY = 1e-30


@keras.saving.register_keras_serializable("keras_norms")
class WeightNormalization(Reparametrization):
    """Separates the length of the weights that lead to each output from their direction.

        w = g * v / |v|
        y = layer(x) with kernel w

    |v| is the Euclidean norm over the weights of an output; v is the layer's own kernel, g has an
    element per output and begins as |v|, so a layer that is wrapped computes what it did. Both are
    trained. A v of zeros has no direction: its output stays 0, and so does v.

    With `data_init` the first training call with elements sets g, and shifts the bias, so that the
    pre-activations t = v x / |v| (with the layer's linear part, bias and activation left out) of
    its batch, of all replicas together, get mean 0 and variance 1 for each output:

        w = (g + g_offset) * v / |v|,    g_offset = 1 / std(t) - g,
        bias + bias_offset,              bias_offset = -mean(t) / std(t)

    A bias that does not begin at 0 is added to that. Of Dense, masked positions do not count. An
    output whose t hardly varies, as behind a global pooling, gets a large g that training has to
    undo, and one that gives the model's result loses its scale: there `data_init=False`. A batch
    that gives no finite moments leaves it to the next one. The offsets are weights, not trained, so
    gradients are those of the paper's g and b. They are set once; inference never changes a weight.
    `TimeDistributed` around the wrapper calls it step by step, so the batch is its first step; the
    wrapper around `TimeDistributed` has plain initialization.

    Args:
        layer: a `keras.Layer` with kernels: Dense, EinsumDense, convolutions (depthwise,
            separable, transposed), Embedding (a row for each output, as in PyTorch), recurrent
            layers and cells, and what holds such layers.
        data_init: bool; None: True where there are pre-activations to measure, which is in Dense,
            EinsumDense, Conv1D to 3D, DepthwiseConv and Conv*Transpose, else False. The paper, too,
            leaves recurrent layers to plain initialization.
        weight_names: list of the names of the weights to normalize; None: all of "kernel",
            "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings" that there are.
        axis: int or list of ints, the axes of the weights that number the outputs; None: by the
            type of layer. Not with `data_init`.
        **kwargs: those of `keras.Layer` (`name`, ...); the dtype policy is the layer's.

    Call arguments: those of the layer; `training`: bool, whether `data_init` may happen.

    Returns: what the layer returns. The kernel is computed in float32 or wider.

    Raises:
        TypeError: `weight_names` is no list, `data_init` no bool.
        ValueError: `layer` is no layer, has no such weight, has LoRA or quantized weights, or is a
            cell with dropout; the axes of the outputs are not known; `data_init=True` for another
            layer than the above, or with `weight_names` or `axis`.

    Differences from tensorflow-addons: `data_init` goes by v / |v| (there by v, so deviations were
    0.70 to 1.01), waits for a training call and works in graphs; a transposed convolution has a g
    per filter (there per input channel); a recurrent layer's `kernel` is normalized, too. A
    kernel's regularizer and constraint act on v.

    Source: Salimans and Kingma 2016, arXiv:1602.07868, equations 2 and 5, and section 3.
    """

    def __init__(self, layer: keras.Layer, data_init: bool | None = None, **kwargs: Any):
        super().__init__(layer, **kwargs)
        possible = has_pre_activations(layer) and self.weight_names is None and self.axis is None
        if data_init not in (None, True, False):
            raise TypeError(
                f"`data_init` must be a bool or None. Received: data_init={data_init!r}."
            )
        if data_init and not possible:
            raise ValueError(
                "`data_init=True` needs a layer with pre-activations (Dense, EinsumDense with a "
                "bias for each output or none, Conv1D to Conv3D, DepthwiseConv, Conv*Transpose), "
                "and neither `weight_names` nor `axis`: wrap the layers inside of others. "
                f"Received: layer={layer}, weight_names={self.weight_names}, axis={self.axis}."
            )
        self.data_init = data_init
        self.by_data = possible if data_init is None else bool(data_init)
        self.gains: list[Any] = []
        self.g_offset: Any = None
        self.bias_offset: Any = None
        self.initialized: Any = None

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)

        def length(kernel):
            v, largest = unit_columns(kernel.matrix())
            return largest[0] * ops.sqrt(ops.sum(ops.square(v), axis=0))

        self.gains = self.add_for_each("g", length)
        if self.by_data:
            shape = (self.kernels[0].outputs,)
            self.g_offset = replica_state(self, "g_offset", shape, "zeros")
            if self.layer.bias is not None:
                shape = self.layer.bias.shape
                self.bias_offset = replica_state(self, "bias_offset", shape, "zeros")
            self.initialized = replica_state(self, "initialized", (), "zeros")

    def computed(self, kernel: Kernel, k: int) -> Any:
        gain = self.gains[k]
        return self.of_length(kernel, gain if self.g_offset is None else gain + self.g_offset)

    def of_length(self, kernel: Kernel, length: Any) -> Any:
        """The matrix with columns of this length: v by its root mean square, times the length."""
        v, n = unit_columns(kernel.matrix())[0], kernel.inputs
        columns = geometry(v.shape, -1, apart="nothing", groups=-1)
        gamma = ops.convert_to_tensor(length) / n**0.5
        return normalize(v, columns, gamma=gamma, epsilon=TINY / n, subtract_mean=False).y

    def values(self) -> Values:
        values = super().values()
        if self.bias_offset is not None:
            values.append((self.layer.bias, self.shifted_bias()))
        return values

    def shifted_bias(self) -> Any:
        bias = ops.convert_to_tensor(self.layer.bias.value)
        return bias + ops.cast(self.bias_offset, bias.dtype)

    def prepare(self, training: bool | None, mask: Any, result: Callable[[Values], Any]) -> None:
        if not (self.by_data and training and self.trainable):
            return
        outputs = self.kernels[0].outputs
        fresh = ops.equal(ops.convert_to_tensor(self.initialized.value), 0)

        def measured():
            t, counted = self.pre_activations(result, mask)
            view = geometry(t.shape, -1, apart="nothing", groups=-1)
            found = moments(t, view, mask=counted)
            count = ops.cast(element_count(t, view, counted), found.variance.dtype)
            return ops.stack([*found, ops.full((outputs,), count)])

        # A branch: after the first batch nothing is measured. What replicas exchange stays outside,
        # since TensorFlow has no collectives in branches.
        dtype = keras.backend.result_type(self.layer.compute_dtype, "float32")
        nothing = ops.zeros((4, outputs), dtype=dtype)
        found = detached(ops.cond(fresh, measured, lambda: nothing))
        found, count = Moments(*(found[k] for k in range(3))), found[3, 0]
        if keras.backend.backend() == "tensorflow":
            found, count = over_replicas(found, count, count)
        self.begin(found, ops.logical_and(fresh, count > 0))

    def pre_activations(self, result: Callable[[Values], Any], mask: Any) -> tuple[Any, Any]:
        """What the layer gives with kernel v / |v|, without bias and activation, as a matrix.

        And the mask of its rows. Only of Dense a position of the result is one of the input.
        """
        (kernel,) = self.kernels
        direction = self.of_length(kernel, ops.ones((kernel.outputs,)))
        values = [(kernel.variable, kernel.shaped(direction))]
        if self.layer.bias is not None:
            values.append((self.layer.bias, ops.zeros(self.layer.bias.shape)))
        activation, self.layer.activation = self.layer.activation, keras.activations.linear
        try:
            t = result(values)
        finally:
            self.layer.activation = activation
        if mask is not None and isinstance(self.layer, keras.layers.Dense):
            rows = ops.shape(t)[:-1]
            mask = ops.reshape(mask, (*ops.shape(mask), *[1] * (len(rows) - len(mask.shape))))
            mask = ops.reshape(ops.broadcast_to(mask, rows), (-1,))
        else:
            mask = None
        return as_matrix(wide(as_floats(t)), output_axes(self.layer, len(t.shape))), mask

    def begin(self, found: Moments, valid: Any) -> None:
        """Sets the offsets for pre-activations of these moments, where they are valid."""
        g = wide(ops.convert_to_tensor(self.gains[0].value))
        mean, variance = (ops.cast(s, g.dtype) for s in (found.center, found.variance))
        mean = mean + ops.cast(found.residual, g.dtype)
        # Without any spread there is no length to choose.
        finite = ops.logical_and(ops.all(ops.isfinite(mean)), ops.all(ops.isfinite(variance)))
        valid = ops.logical_and(valid, finite)  # else the next batch does it
        spread = variance > ops.square(mean * keras.config.epsilon()) + 1e-30
        length = ops.where(spread, ops.rsqrt(ops.where(spread, variance, 1.0)), g)
        offsets = [(self.g_offset, length - g), (self.initialized, ops.ones(()))]
        if self.bias_offset is not None:
            shift = along_bias(self.layer, self.kernels[0], -mean * length)
            offsets.append((self.bias_offset, shift))
        for variable, value in offsets:
            settle(variable, value, valid)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_init": self.data_init}


def unit_columns(matrix: Any) -> tuple[Any, Any]:
    """The matrix with columns of which the largest element is 1 or -1 (or all are 0), and these.

    The squares of the others could be beyond the type's range.
    """
    largest = detached(ops.max(ops.abs(matrix), axis=0, keepdims=True))
    some = largest > 0
    matrix = matrix / ops.where(some, largest, ops.ones_like(largest))
    return ops.where(some, matrix, ops.zeros_like(matrix)), largest
