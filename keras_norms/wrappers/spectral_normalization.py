"""SpectralNormalization."""

import operator
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_norms.base import number, replica_state
from keras_norms.kernels import Kernel
from keras_norms.reparametrization import Reparametrization, Values, detached, settle

# Rounds of the power method that a new layer begins with, as in PyTorch.
FIRST = 15


@keras.saving.register_keras_serializable("keras_norms")
class SpectralNormalization(Reparametrization):
    """Divides a layer's kernel by its largest singular value.

        sigma = u . W v,    v = W' u / |W' u|,    u = W v / |W v|    (power method, from the last u)
        reparam:    y = layer(x) with kernel W / sigma
        default:    W = W / sigma in training;    y = layer(x)

    W is the kernel with a row for each output, u and v hold one vector for each side of it, moved
    in training only. With `reparam=True` this is the paper's: the kernel is a weight that only
    training changes, gradients flow through sigma with u and v constant, and the layer is
    1-Lipschitz (for a convolution: its kernel as a matrix is). The default is Keras' layer, for
    models that have it: a training call assigns the kernel, so that the optimizer's steps start
    from projected weights, and the gradient is that of W, not of W / sigma.

    Args:
        layer: a `keras.Layer` with kernels: Dense, EinsumDense, convolutions (depthwise,
            separable, transposed), Embedding, recurrent layers and cells, and what holds such
            layers. By default, as in Keras, one with an attribute `kernel` or `embeddings`.
        power_iterations: int, rounds of the power method in a training call.
        reparam: bool, whether to compute the kernel on each call and never assign it.
        epsilon: float > 0, what norms are divided by at least.
        weight_names: list of the names of the weights to normalize; None: all of "kernel",
            "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings" that there are.
            Needs `reparam`, and so does `axis`.
        axis: int or list of ints, the axes of the weights that number the outputs; None: by the
            type of layer.
        **kwargs: those of `keras.Layer` (`name`, ...); the dtype policy is the layer's.

    Call arguments: those of the layer; `training`: bool, whether u and v move.

    Returns: what the layer returns. sigma is computed in float32 or wider.

    Raises:
        TypeError: `power_iterations` is no int; `epsilon` no number; `weight_names` is no list.
        ValueError: `layer` is no layer, has no such weight, has LoRA or quantized weights, or is a
            cell with dropout; the axes of the outputs are not known; `power_iterations` is less
            than 1; `epsilon` is not positive; `weight_names` or `axis` without `reparam`.

    Differences from Keras: none in values by default, but that the layer's result keeps its type.
    With `reparam` a transposed convolution's outputs are its filters (Keras takes the last axis,
    its inputs), `vector_v` is kept beside `vector_u`, and both begin with 15 rounds, as in PyTorch.
    The default form assigns the kernel, which TensorFlow refuses on several replicas: there,
    `reparam=True`.

    What moves, moves with each training call: twice where `keras.remat` or `tf.recompute_grad`
    repeats it, with gradients of the second; and at every time step in a wrapped cell, for which
    rather wrap its RNN layer (on JAX that is the only way to train).

    Source: Miyato et al. 2018, arXiv:1802.05957, equations 8 and 9 and algorithm 1.
    """

    def __init__(
        self,
        layer: keras.Layer,
        power_iterations: int = 1,
        *,
        reparam: bool = False,
        epsilon: float = 1e-12,
        **kwargs: Any,
    ):
        super().__init__(layer, **kwargs)
        if operator.index(power_iterations) <= 0:
            raise ValueError(
                "`power_iterations` must be greater than zero. "
                f"Received: power_iterations={power_iterations}."
            )
        if not number("epsilon", epsilon) > 0:
            raise ValueError(f"`epsilon` must be positive. Received: epsilon={epsilon}.")
        if not reparam and not (self.weight_names is None and self.axis is None):
            raise ValueError(
                "`weight_names` and `axis` need `reparam=True`: Keras' form has one kernel. "
                f"Received: weight_names={self.weight_names}, axis={self.axis}, reparam={reparam}."
            )
        self.power_iterations = power_iterations
        self.reparam = reparam
        self.epsilon = epsilon
        self.vectors_u: list[Any] = []
        self.vectors_v: list[Any] = []

    def kernels_of_layer(self) -> list[Kernel]:
        if self.reparam:
            return super().kernels_of_layer()
        for name in ("kernel", "embeddings"):
            weight = getattr(self.layer, name, None)
            if isinstance(weight, keras.Variable):
                return [Kernel(weight, name, (len(weight.shape) - 1,))]
        raise ValueError(
            f"{type(self.layer).__name__} object has no attribute 'kernel' nor 'embeddings'. "
            "`reparam=True` also takes depthwise, separable and recurrent kernels, and layers "
            f"inside of the layer. Received: layer={self.layer}, reparam=False."
        )

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        start = keras.initializers.TruncatedNormal(stddev=0.02)
        if not self.reparam:
            (kernel,) = self.kernels
            self.kernel = kernel.variable  # Keras' layer has it, too, and so do its files
            self.input_spec = keras.InputSpec(min_ndim=1, axes={-1: input_shape[-1]})
            self.vectors_u = [replica_state(self, "vector_u", (1, kernel.outputs), start)]
            return
        for kernel, suffix in zip(self.kernels, self.suffixes(), strict=True):

            def first_u(shape, dtype=None, kernel=kernel):
                u = ops.cast(start(shape, dtype), dtype)
                return ops.cast(self.iterated(kernel.matrix(), u, FIRST)[0], dtype)

            u = replica_state(self, f"vector_u{suffix}", (1, kernel.outputs), first_u)

            def first_v(shape, dtype=None, kernel=kernel, u=u):
                matrix = kernel.matrix()
                u = ops.cast(u.value, matrix.dtype)
                return ops.cast(self.unit(u @ ops.transpose(matrix)), dtype)

            v = replica_state(self, f"vector_v{suffix}", (1, kernel.inputs), first_v)
            self.vectors_u.append(u)
            self.vectors_v.append(v)

    def unit(self, vector: Any) -> Any:
        """The vector at length 1, or 0."""
        largest = ops.max(ops.abs(vector))  # whose square may be beyond the type's range
        vector = vector / ops.where(largest > 0, largest, ops.ones_like(largest))
        length = ops.sqrt(ops.sum(ops.square(vector)))
        return vector / ops.maximum(length, self.epsilon)

    def iterated(self, matrix: Any, u: Any, rounds: int) -> tuple[Any, Any]:
        """u and v after some rounds of the power method; u is shaped (1, outputs).

        Where the matrix leaves no direction, being 0 or not finite, u stays.
        """
        matrix = detached(matrix)
        u = ops.cast(u, matrix.dtype)
        for _ in range(rounds):
            v = self.unit(u @ ops.transpose(matrix))
            turned = self.unit(v @ matrix)
            valid = ops.logical_and(ops.any(turned != 0), ops.all(ops.isfinite(turned)))
            u = ops.where(valid, turned, u)
        return u, v

    def prepare(self, training: bool | None, mask: Any, result: Callable[[Values], Any]) -> None:
        if not training or (self.reparam and not self.trainable):
            return
        is_cell = hasattr(self.layer, "state_size") and not isinstance(self.layer, keras.layers.RNN)
        if is_cell and keras.backend.backend() == "jax":
            raise ValueError(
                "The loop of JAX cannot move a cell's vectors: wrap the RNN layer, "
                f"SpectralNormalization(RNN(cell), ...). Received: layer={self.layer}, backend=jax."
            )
        for k, kernel in enumerate(self.kernels):
            matrix, u = kernel.matrix(), ops.convert_to_tensor(self.vectors_u[k].value)
            u, v = self.iterated(matrix, u, self.power_iterations)
            # A kernel of zeros has no direction to turn to, and one of NaN none for ever.
            some = ops.logical_and(ops.any(matrix != 0), ops.all(ops.isfinite(v)))
            settle(self.vectors_u[k], u, some)
            if self.reparam:
                settle(self.vectors_v[k], v, some)
            else:
                settle(kernel.variable, kernel.shaped(matrix / self.sigma(matrix, u, v)), some)

    def sigma(self, matrix: Any, u: Any, v: Any) -> Any:
        """The singular value of these vectors; 1 where it is 0."""
        sigma = ops.sum((v @ matrix) * u)
        return ops.where(ops.abs(sigma) > self.epsilon, sigma, ops.ones_like(sigma))

    def computed(self, kernel: Kernel, k: int) -> Any:
        matrix = kernel.matrix()
        states = (self.vectors_u[k], self.vectors_v[k])
        u, v = (ops.cast(detached(state.value), matrix.dtype) for state in states)
        return matrix / self.sigma(matrix, u, v)

    def values(self) -> Values:
        return super().values() if self.reparam else []

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "power_iterations": self.power_iterations}
        given = {"reparam": (self.reparam, False), "epsilon": (self.epsilon, 1e-12)}
        return {**config, **{name: v for name, (v, default) in given.items() if v != default}}
