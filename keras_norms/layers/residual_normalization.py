"""ResidualNormalization."""

import inspect
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_norms.base import ChannelLayer, as_floats, number, wide
from keras_norms.geometry import Shape
from keras_norms.layers.layer_normalization import LayerNormalization
from keras_norms.layers.rms_normalization import RMSNormalization

NORMS = {"layer": LayerNormalization, "rms": RMSNormalization}


@keras.saving.register_keras_serializable("keras_norms")
class ResidualNormalization(ChannelLayer):
    """Adds a residual branch to its stream and normalizes the sum.

        s = alpha * x + dropout(update)
        order "post":   y = norm(s)
        order "pre":    y = norm(s), and s is returned, too

    "post" ends a sublayer, as in the first Transformer; with `alpha` > 1 it is DeepNorm. "pre"
    joins the end of a sublayer with the normalization that begins the next one: y is what the next
    sublayer reads, s what its result is added to.

    Args:
        norm: "layer", `LayerNormalization`, or "rms", `RMSNormalization`.
        axis: int, or a list or tuple of ints: the axes to normalize over.
        epsilon: float >= 0, added to the variance or mean square; None: that norm's default, 1e-3
            or 1e-6.
        dropout: float in [0, 1], the share of `update` that training leaves out.
        order: "post" or "pre".
        alpha: float, the weight of the stream.
        seed: int, of the dropout; None: another one each time.
        **kwargs: those of the norm (`center`, `gamma_initializer`, ... or `use_scale`, `offset`,
            ...); `activation`, applied to y; those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: the list `[x, update]`, both of one shape; any rank, `axis` of known sizes; float16,
            bfloat16, float32 or float64.
        training: bool, whether there is dropout.
        mask: optional, a list of masks of which the first, of x, is handed to the norm and passed
            on.

    Returns: y, or with order "pre" the tuple `(y, s)`, each shaped as x, in the layer's compute
    dtype. The sum is taken and normalized in float32 or wider, and y and s are each rounded once.

    Raises:
        TypeError: `alpha`, `dropout` or `epsilon` is no number, or `axis` no int and no list.
        ValueError: `norm` or `order` is another, `dropout` is not in [0, 1], `inputs` is no pair of
            one shape; and what the norm raises.

    Source: Wang et al. 2022, arXiv:2203.00555, section 4.1 (DeepNorm); with alpha 1, order "post"
    is Vaswani et al. 2017, arXiv:1706.03762, section 3.1, and "pre" Xiong et al. 2020,
    arXiv:2002.04745, table 1.
    """

    def __init__(
        self,
        norm: str = "layer",
        axis: int | Sequence[int] = -1,
        epsilon: float | None = None,
        dropout: float = 0.0,
        order: str = "post",
        alpha: float = 1.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        if norm not in NORMS:
            raise ValueError(f'`norm` must be "layer" or "rms". Received: norm={norm!r}.')
        if order not in ("post", "pre"):
            raise ValueError(f'`order` must be "post" or "pre". Received: order={order!r}.')
        known = set(inspect.signature(NORMS[norm]).parameters) - {"axis", "epsilon", "kwargs"}
        own = {name: kwargs.pop(name) for name in sorted(known & set(kwargs))}
        super().__init__(axis, **kwargs)
        self.norm = norm
        self.epsilon = epsilon
        self.dropout = number("dropout", dropout, least=0, most=1)
        self.order = order
        self.alpha = number("alpha", alpha)
        self.seed = seed
        self.norm_arguments = tuple(own)
        if epsilon is not None:
            own["epsilon"] = epsilon
        self.inner = NORMS[norm](
            axis, activation=self.activation, dtype=self.dtype_policy, name=norm, **own
        )
        # As in Keras' Dropout: none without dropout, since it is saved with the weights.
        self.seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def build(self, input_shape: Any) -> None:
        self.inner.build(_pair(input_shape)[0])

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not isinstance(inputs, list | tuple):
            raise ValueError(f"{_RULE} Received: inputs={inputs!r}.")
        _pair([tuple(x.shape) for x in inputs])
        x, update = (wide(as_floats(x, self.compute_dtype)) for x in inputs)
        dtype = keras.backend.result_type(x.dtype, update.dtype)
        x, update = ops.cast(x, dtype), ops.cast(update, dtype)
        if training and self.dropout:
            update = keras.random.dropout(update, self.dropout, seed=self.seed_generator)
        total = (x if self.alpha == 1 else x * self.alpha) + update
        y = self.inner(total, mask=_first(mask))
        return y if self.order == "post" else (y, ops.cast(total, self.compute_dtype))

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        mask = _first(previous_mask)
        return mask if self.order == "post" or mask is None else (mask, mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        shape = super().compute_output_shape(_pair(input_shape)[0])
        return shape if self.order == "post" else (shape, shape)

    def get_config(self) -> dict[str, Any]:
        inner = self.inner.get_config()
        names = ("norm", "epsilon", "dropout", "order", "alpha", "seed")
        return {
            **super().get_config(),
            **{name: inner[name] for name in self.norm_arguments if name in inner},
            **{name: getattr(self, name) for name in names},
        }


_RULE = "`inputs` must be the list [x, update], two tensors of one shape."


def _pair(shapes: Any) -> list[Shape]:
    """The two shapes, or ValueError."""
    shapes = [tuple(s) if isinstance(s, list | tuple) else s for s in shapes]
    if not any(isinstance(s, tuple) for s in shapes):  # one input, whose sizes these are
        shapes = [tuple(shapes)]
    fits = len(shapes) == 2 and all(isinstance(s, tuple) for s in shapes)
    if (
        not fits
        or len(shapes[0]) != len(shapes[1])
        or any(None not in sizes and sizes[0] != sizes[1] for sizes in zip(*shapes, strict=True))
    ):
        raise ValueError(f"{_RULE} Received: shapes={shapes}.")
    return shapes


def _first(mask: Any) -> Any:
    return mask[0] if isinstance(mask, list | tuple) and mask else mask
