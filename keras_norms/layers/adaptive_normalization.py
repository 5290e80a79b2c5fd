"""AdaptiveNormalization."""

from typing import Any

import keras
from keras import activations, ops

from keras_norms import predictors
from keras_norms.base import PARTS, ChannelLayer, as_floats, number
from keras_norms.geometry import Shape, geometry
from keras_norms.layers.batch_normalization import BatchNormalization
from keras_norms.layers.group_normalization import GroupNormalization
from keras_norms.layers.instance_normalization import InstanceNormalization
from keras_norms.layers.layer_normalization import LayerNormalization
from keras_norms.layers.rms_normalization import RMSNormalization

_PLAIN = {"center": False, "scale": False}
NORMS: dict[str, tuple[type[keras.Layer], dict[str, bool]]] = {
    "layer": (LayerNormalization, _PLAIN),
    "instance": (InstanceNormalization, _PLAIN),
    "batch": (BatchNormalization, _PLAIN),
    "group": (GroupNormalization, _PLAIN),
    "rms": (RMSNormalization, {"use_scale": False}),
}


@keras.saving.register_keras_serializable("keras_norms")
class AdaptiveNormalization(ChannelLayer):
    """Normalizes, and takes gamma and beta from a second input, the condition c.

        y = norm(x) * gamma(c) + beta(c)
        y = norm(x) * (1 + gamma(c)) + beta(c)          with unit_offset

    Recipes of the field, `A` being this class:

        FiLM                  A(None, "dense", unit_offset=False)
        StyleGAN's AdaIN      A("instance", "dense")
        adaLN of DiT          A("layer", "dense", epsilon=1e-6, predictor_activation="silu")
        adaLN-Zero of DiT     the same with gate=True: y, gate = norm([x, c]), and the block gives
                              x + gate * sublayer(y), which is x at the start
        conditional BN, IN    A("batch", "embedding", classes=10), A("instance", ...)
        SPADE                 A("batch", "conv")
        AdaIN                 A("instance", "statistics", epsilon=1e-5)

    Args:
        norm: "layer", "instance", "batch", "group" (of 32 groups) or "rms", our layers without
            gamma and beta; None: x as it is; or a Keras layer, used as it is, or its serialized
            configuration: `GroupNormalization(8, center=False, scale=False)`. Under a mixed policy
            give such a layer the dtype "float32".
        predictor: what makes the coefficients of c; with arguments of its own, here in brackets.
            "dense": a matrix, for vectors [`unit_offset=True`; `predictor_activation=None`, applied
            to c first; `gate=False`, whether a third set of coefficients is returned, kernel and
            bias then starting at 0; those of the weights `kernel` and `bias`].
            "embedding": tables, for labels [`classes`, int, required; those of the weights `gamma`
            and `beta`, which start at 1 and 0].
            "conv": convolutions of a map that is resized to x's space (nearest)
            [`unit_offset=True`; `hidden=128`, filters of a first one with relu, None: without it;
            `kernel_size=3`; those of the weights `kernel` and `bias`, of both].
            "statistics": gamma is sqrt(variance + epsilon), beta the mean of the map c [none].
            A Keras layer, or its serialized configuration, that gives 2 numbers per channel on its
            last axis (gamma's first, then beta's; 3 with a gate), per sample or per position
            [`unit_offset=True`; `gate=False`].
        axis: int, the axis of the channels of x and of maps c; not 0, which holds the samples.
        epsilon: float >= 0, added to the variance or mean square, in a norm named by a string, and
            in "statistics"; None: that norm's default.
        **kwargs: the predictor's arguments; those of a weight are `{weight}_initializer`,
            `{weight}_regularizer` and `{weight}_constraint`. Further `activation`, applied to y,
            and those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: the list `[x, c]`. x: `(batch, ..., channels)`, or with the channels at `axis`; rank
            2 or more, only the number of channels need be known. c: `(batch, features)`; integer
            labels `(batch,)` or `(batch, 1)`; a map of x's rank (3, 4 or 5) and any space; a map of
            x's channels. x and c: float16, bfloat16, float32 or float64.
        training: bool, what it means to the norm.
        mask: optional, of x, or a list of the masks of x and c. That of x is handed to the norm and
            passed on; where a map is masked, "conv" takes it for 0, "statistics" leaves it out.

    Returns: y, shaped as x, or with `gate` the tuple `(y, gate)`, gate shaped (batch, 1, ...,
    channels), in the layer's compute dtype. All is computed in float32 or wider, and rounded once.
    A label out of range makes its sample NaN in a graph; where labels are known it raises.

    Raises:
        TypeError: `epsilon` is no number, labels are no integers.
        ValueError: `norm` or `predictor` is another; an argument means nothing to this norm or
            predictor; `axis` is 0, out of bounds or of unknown size; the inputs do not fit one
            another or the predictor; a label is out of range.

    Differences from the authors' code: DiT orders its coefficients shift, scale, gate; AdaIN's
    variances are unbiased there, n / (n - 1) times these.

    Source: Perez et al. 2018, arXiv:1709.07871, equation 2 (FiLM); Karras et al. 2019,
    arXiv:1812.04948, equation 1; Peebles and Xie 2023, arXiv:2212.09748; de Vries et al. 2017,
    arXiv:1707.00683; Dumoulin et al. 2017, arXiv:1610.07629; Park et al. 2019, arXiv:1903.07291,
    equation 1 (SPADE); Huang and Belongie 2017, arXiv:1703.06868, equation 8 (AdaIN).
    """

    gate = unit_offset = False  # without a predictor that has them

    def __init__(
        self,
        norm: Any = "layer",
        predictor: Any = "dense",
        axis: int = -1,
        epsilon: float | None = None,
        **kwargs: Any,
    ):
        norm, predictor = predictors.restored(norm), predictors.restored(predictor)
        if not (norm is None or isinstance(norm, keras.Layer) or norm in tuple(NORMS)):
            raise ValueError(
                f"`norm` must be of {tuple(NORMS)}, a Keras layer or None. Received: norm={norm!r}."
            )
        if epsilon is not None:
            number("epsilon", epsilon, least=0)
            if not isinstance(norm, str) and predictor != "statistics":
                raise ValueError(
                    "`epsilon` is for a norm named by a string, or for the predictor "
                    f'"statistics". Received: epsilon={epsilon}, norm={norm!r}.'
                )
        chosen = predictors.find(predictor)
        arguments = predictors.take_arguments(chosen, kwargs)
        super().__init__(axis, **kwargs)
        self.norm = norm
        self.predictor = predictor
        self.epsilon = epsilon
        self.chosen = chosen
        for name in chosen.options:
            setattr(self, name, arguments[name])
        for name in chosen.weights:
            parts = {part: arguments[f"{name}_{part}"] for part in PARTS}
            self.declare(name, **parts)
        self.inner = norm
        if isinstance(norm, str):
            cls, own = NORMS[norm]
            own = own if epsilon is None else {**own, "epsilon": epsilon}
            # Its result is not the last one, so it is not to be rounded to half.
            dtype = keras.backend.result_type(self.compute_dtype, "float32")
            self.inner = cls(axis=axis, dtype=dtype, name=norm, trainable=self.trainable, **own)

    @property
    def statistics_epsilon(self) -> float:
        """What the predictor "statistics" adds to c's variance."""
        return getattr(self.inner, "epsilon", 1e-3) if self.epsilon is None else self.epsilon

    def build(self, input_shape: Any) -> None:
        x, c = _pair(input_shape)
        if self.norm == "group" and x[self.axis] is not None and x[self.axis] % self.inner.groups:
            raise ValueError(
                'norm="group" has 32 groups, which must divide the number of channels; for others, '
                "norm=GroupNormalization(groups, center=False, scale=False). "
                f"Received: shapes={[x, c]}."
            )
        geometry(x, self.axis, apart="samples", groups=-1)  # for its errors
        if self.inner is not None and not self.inner.built:
            self.inner.build(x)
        spec = keras.InputSpec(ndim=len(x), axes={self.axis: x[self.axis]})
        self.input_spec = [spec, self.chosen.build(self, x, c)]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        x, c = inputs
        _pair([tuple(x.shape), tuple(c.shape)])
        x_mask, c_mask = mask if isinstance(mask, list | tuple) else (mask, None)
        gamma, beta, *gate = predictors.coefficients(self, x, c, c_mask)
        if self.inner is not None:  # Keras hands it `training`
            x = predictors.call_with_mask(self.inner, x, x_mask)
        x = as_floats(x, self.compute_dtype)
        y = predictors.modulate(x, gamma, beta, self.axis, self.activation)
        y = ops.cast(y, self.compute_dtype)
        if not gate:
            return y
        return y, ops.cast(predictors.along(gate[0], x, self.axis), self.compute_dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        several = isinstance(previous_mask, list | tuple)
        mask = previous_mask[0] if several else previous_mask
        return (mask, None) if self.gate and mask is not None else mask

    def compute_output_shape(self, input_shape: Any) -> Any:
        x, c = _pair(input_shape)
        shape = super().compute_output_shape(x)
        return (shape, predictors.gate_shape(self, x, c)) if self.gate else shape

    def get_config(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in self.chosen.options}
        if options.get("predictor_activation") is not None:
            options["predictor_activation"] = activations.serialize(self.predictor_activation)
        return {
            **super().get_config(),
            "norm": predictors.serialized(self.norm),
            "predictor": predictors.serialized(self.predictor),
            "epsilon": self.epsilon,
            **options,
        }


def _pair(shapes: Any) -> tuple[Shape, Shape]:
    """The shapes of x and c, or ValueError."""
    if isinstance(shapes, list) or all(isinstance(s, list | tuple) for s in shapes):
        shapes = [tuple(s) if isinstance(s, list | tuple) else s for s in shapes]
    fits = len(shapes) == 2 and all(isinstance(s, tuple) and s for s in shapes)
    if not fits or len({s[0] for s in shapes} - {None}) > 1:
        raise ValueError(
            "`inputs` must be the list [x, condition], two tensors of one batch: "
            f"layer([x, condition]). Received: shapes={shapes}."
        )
    return shapes[0], shapes[1]
