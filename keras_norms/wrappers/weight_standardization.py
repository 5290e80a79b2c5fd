"""WeightStandardization."""

from typing import Any

import keras
from keras import ops

from keras_norms.base import number
from keras_norms.geometry import geometry
from keras_norms.kernels import Kernel
from keras_norms.normalize import normalize
from keras_norms.reparametrization import Reparametrization


@keras.saving.register_keras_serializable("keras_norms")
class WeightStandardization(Reparametrization):
    """Normalizes the weights that lead to each output of a layer.

        w = (v - mean) / sqrt(variance + epsilon)
        scaled:    w = gain * gamma / sqrt(n) * (v - mean) / sqrt(variance + epsilon)
        y = layer(x) with kernel w

    `mean` and `variance` (biased) are taken over the n weights of an output; v is the layer's own
    kernel, which is trained through w. `gain`, trained, has an element per output. The scaled form
    keeps the variance of activations from layer to layer and serves nets without norms; `gamma`
    makes up for what the activation before takes away, sqrt(2 / (1 - 1 / pi)) = 1.7139 for relu.

    Args:
        layer: a `keras.Layer` with kernels: Dense, EinsumDense, convolutions (depthwise,
            separable, transposed), Embedding (a row for each output), recurrent layers and cells,
            and what holds such layers.
        epsilon: float >= 0, added to the variance.
        scaled: bool, whether to scale by `gain * gamma / sqrt(n)`.
        gamma: float, see above; matters with `scaled`.
        weight_names: list of the names of the weights to normalize; None: all of "kernel",
            "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings" that there are.
        axis: int or list of ints, the axes of the weights that number the outputs; None: by the
            type of layer.
        **kwargs: those of `keras.Layer` (`name`, ...); the dtype policy is the layer's.

    Call arguments: those of the layer.

    Returns: what the layer returns. The kernel is computed in float32 or wider.

    Raises:
        TypeError: `epsilon` or `gamma` is no number; `weight_names` is no list.
        ValueError: `layer` is no layer, has no such weight, has LoRA or quantized weights, or is a
            cell with dropout; the axes of the outputs are not known; `epsilon` is negative; `gamma`
            is given without `scaled`.

    A kernel's regularizer and constraint act on v. With one weight per output (n = 1) w is 0.

    Source: Qiao et al. 2019, arXiv:1903.10520, equation 5. The scaled form: Brock, De and Smith
    2021, arXiv:2101.08692, equation 1, as timm's `ScaledStdConv2d` computes it.
    """

    def __init__(
        self,
        layer: keras.Layer,
        epsilon: float = 1e-6,
        scaled: bool = False,
        gamma: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(layer, **kwargs)
        self.epsilon = number("epsilon", epsilon, least=0)
        self.scaled = scaled
        self.gamma = number("gamma", gamma)
        if gamma != 1 and not scaled:
            raise ValueError(
                f"`gamma` needs `scaled=True`. Received: gamma={gamma}, scaled={scaled}."
            )
        self.gains: list[Any] = []

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        if self.scaled:
            self.gains = self.add_for_each("gain", lambda kernel: ops.ones((kernel.outputs,)))

    def computed(self, kernel: Kernel, k: int) -> Any:
        v = kernel.matrix()
        gain = self.gains[k] * (self.gamma / kernel.inputs**0.5) if self.scaled else None
        columns = geometry(v.shape, -1, apart="nothing", groups=-1)
        return normalize(v, columns, gamma=gain, epsilon=self.epsilon).y

    def get_config(self) -> dict[str, Any]:
        names = ("epsilon", "scaled", "gamma")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
