"""The networks: Keras' own norms where Keras has the layer, else ours."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

import keras_norms as kn
from keras_norms.catalog import CATALOG, Row

SHAPES = {"conv": (56, 56, 32), "dense": (128, 256)}
K = keras.layers


@dataclass(frozen=True)
class Norm:
    """A norm between two layers.

    Attributes:
        net: a key of SHAPES.
        in_keras: whether `make` makes a layer of Keras.
        relu: whether one stands before it, so that it does not fold into the layer before.
    """

    name: str
    net: str
    make: Callable[[], keras.Layer] | None
    in_keras: bool = True
    relu: bool = False


NORMS = (
    Norm("InstanceNormalization", "conv", lambda: K.GroupNormalization(-1)),
    Norm("GroupNormalization(8)", "conv", lambda: K.GroupNormalization(8)),
    Norm("GroupNormalization(1)", "conv", lambda: K.GroupNormalization(1)),
    Norm("LayerNormalization", "conv", lambda: K.LayerNormalization()),
    Norm("LayerNormalization", "dense", lambda: K.LayerNormalization()),
    Norm("LayerNormalization(axis=(1, 2, 3))", "conv", lambda: K.LayerNormalization((1, 2, 3))),
    Norm("RMSNormalization", "conv", lambda: K.RMSNormalization()),
    Norm("RMSNormalization", "dense", lambda: K.RMSNormalization()),
    Norm("UnitNormalization", "conv", lambda: K.UnitNormalization()),
    Norm("UnitNormalization", "dense", lambda: K.UnitNormalization()),
    Norm("BatchNormalization after ReLU", "conv", lambda: K.BatchNormalization(), relu=True),
    Norm("FilterResponseNormalization", "conv", lambda: kn.FilterResponseNormalization(), False),
    Norm("SwitchableNormalization", "conv", lambda: kn.SwitchableNormalization(), False),
)
# At varying gain; RMSNormalization as it is used, on sequences.
STRESSED = (
    Norm("LayerNormalization", "conv", lambda: K.LayerNormalization()),
    Norm("GroupNormalization(8)", "conv", lambda: K.GroupNormalization(8)),
    Norm("InstanceNormalization", "conv", lambda: K.GroupNormalization(-1)),
    Norm("LayerNormalization", "dense", lambda: K.LayerNormalization()),
    Norm("RMSNormalization", "dense", lambda: K.RMSNormalization()),
)


def sandwich(norm: Norm, shape: tuple[int, ...] | None = None, without: bool = False):
    """Conv2D, norm, Conv2D, or Dense, norm, Dense; the weights around the norm are always same."""
    shape = shape or SHAPES[norm.net]
    keras.utils.set_random_seed(0)
    channels = shape[-1]
    if norm.net == "conv":
        layers = [K.Conv2D(channels, 3, padding="same") for _ in range(2)]
    else:
        layers = [K.Dense(channels) for _ in range(2)]
    x = keras.Input(shape, batch_size=1, name="x")
    y = layers[0](x)
    if norm.relu:
        y = K.ReLU()(y)
    if not without:
        y = norm.make()(y)
    model = keras.Model(x, layers[1](y))
    return randomized(model)


def wrapped(make: Callable[[keras.Layer], keras.Layer] | None) -> keras.Model:
    """Two convolutions, the second in a wrapper."""
    keras.utils.set_random_seed(0)
    x = keras.Input(SHAPES["conv"], batch_size=1, name="x")
    first, second = (K.Conv2D(32, 3, padding="same") for _ in range(2))
    return keras.Model(x, (make(second) if make else second)(first(x)))


# What Keras has for rows of the catalog.
IN_KERAS: dict[str, Callable[..., keras.Layer]] = {
    "BatchNormalization": K.BatchNormalization,
    "BatchRenormalization": lambda **given: K.BatchNormalization(renorm=True, **given),
    "GroupNormalization": K.GroupNormalization,
    "InstanceNormalization": lambda **given: K.GroupNormalization(-1, **given),
    "LayerNormalization": K.LayerNormalization,
    "RMSNormalization": K.RMSNormalization,
    "SpectralNormalization": lambda **_: K.SpectralNormalization(K.Dense(11)),
    "UnitNormalization": K.UnitNormalization,
}
ROWS = {row.name: row for row in CATALOG}


def catalog(name: str, keras_own: bool) -> keras.Model:
    """A model of a row's example, of Keras' layer where `keras_own` and Keras has it."""
    row = ROWS[name]
    keras.utils.set_random_seed(zlib.crc32(name.encode()))
    if keras_own and name in IN_KERAS:
        layer = IN_KERAS[name](**row.arguments)
    else:
        layer = row.example()
        if row.form == "cell":
            layer.unroll = True  # else it is a WHILE
    inputs = [keras.Input(row.shape[1:], 1, name=n) for n in names(row)]
    x = inputs if row.inputs > 1 else inputs[0]
    y = layer(x)
    return randomized(keras.Model(x, y[0] if isinstance(y, list | tuple) else y))


def names(row: Row) -> list[str]:
    return ["x"] if row.inputs == 1 else [f"x{k}" for k in range(row.inputs)]


def samples(row: Row, count: int, mean: float, deviation: float, seed: int) -> dict:
    """Arrays by input name; a condition is one: what it is multiplied with is normalized."""
    draw = np.random.default_rng(seed)
    alike = row.name == "ResidualNormalization"
    return {
        name: draw.normal(mean, deviation if k == 0 or alike else min(deviation, 1), shape).astype(
            "float32"
        )
        for k, (name, shape) in enumerate((name, (count, *row.shape[1:])) for name in names(row))
    }


def randomized(model: keras.Model) -> keras.Model:
    """The model with weights of norms that are neither 1 nor 0, as after training."""
    draw = np.random.default_rng(3)
    for weight in model.weights:
        if "norm" in weight.path or len(weight.shape) < 2:
            weight.assign(draw.uniform(0.5, 1.5, weight.shape))
    return model


def outputs(model: keras.Model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What Keras computes."""
    values = list(arrays.values())
    with kn.portable():
        y = model(values if len(values) > 1 else values[0], training=False)
    return keras.ops.convert_to_numpy(y)


def application(name: str) -> keras.Model:
    """One of keras.applications with weights and statistics drawn at random; no download."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    draw = np.random.default_rng(3)
    for layer in model.layers:
        if isinstance(layer, K.BatchNormalization):
            for weight in (layer.gamma, layer.moving_variance):
                weight.assign(draw.uniform(0.5, 1.5, weight.shape))
            for weight in (layer.beta, layer.moving_mean):
                weight.assign(draw.normal(0, 0.1, weight.shape))
    return model
